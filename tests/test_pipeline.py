"""Batches: a function of (seed, step), whatever the processes; pairs stay pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from lljax.configs import common
from lljax.data import pipeline, sources
from lljax.errors import InputError


def data(**changes):
    config = common.get_config("tests.toy", ())
    config.data.resize = 16
    config.data.update(changes)
    return pipeline.Data(config.data)


def take(stream, count):
    return [next(stream) for _ in range(count)]


def test_batches_depend_on_seed_and_step_alone():
    straight = take(data().batches(3, 0, 4), 5)
    later = take(data().batches(3, 2, 4), 3)
    for (a, names), (b, others) in zip(straight[2:], later, strict=True):
        assert names == others
        np.testing.assert_array_equal(a["low"], b["low"])
        np.testing.assert_array_equal(a["high"], b["high"])
    other = take(data().batches(4, 0, 4), 5)
    assert [names for _, names in other] != [names for _, names in straight]


def test_every_record_comes_once_an_epoch_and_epochs_differ():
    one = data()
    names = [name for _, batch in take(one.batches(0, 0, 4), 2 * len(one) // 4) for name in batch]
    first, second = names[:len(one)], names[len(one):]
    assert len(set(first)) == len(one) and set(first) == set(second) and first != second


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_same_samples(processes):
    whole, names = next(data(augment="flip").batches(1, 3, 8))
    seen = {}
    for process in range(processes):
        part, own = next(data(augment="flip").batches(1, 3, 8, process, processes))
        for index, name, low in zip(part["index"], own, part["low"], strict=True):
            seen[int(index)] = (name, low)
    assert sorted(seen) == list(range(8))
    for index in range(8):
        assert seen[index][0] == names[index]
        np.testing.assert_array_equal(seen[index][1], whole["low"][index])


@pytest.fixture
def coded(tmp_path):
    """Pictures whose pixels say where they are: red the row, green the column, blue the file."""
    y, x = np.mgrid[0:40, 0:60].astype(np.uint8)
    for role in ("low", "high"):
        (tmp_path / role).mkdir()
        for number in range(3):
            picture = np.stack([y, x, np.full_like(y, number + 100 * (role == "high"))], -1)
            Image.fromarray(picture).save(tmp_path / role / f"{number}.png")
    return {"low": str(tmp_path / "low"), "high": str(tmp_path / "high")}


@pytest.mark.parametrize("augment", ["none", "flip", "dihedral"])
def test_both_pictures_of_a_pair_are_cut_and_turned_alike(coded, augment):
    one = data(source="pairs", resize=0, crop=12, augment=augment, **coded)
    seen = set()
    for batch, _ in take(one.batches(0, 0, 4), 12):
        np.testing.assert_array_equal(batch["low"][..., :2], batch["high"][..., :2])
        np.testing.assert_array_equal(batch["low"][..., 2] + 100, batch["high"][..., 2])
        for low in batch["low"].astype(int):
            steps = (low[1, 0, :2] - low[0, 0, :2], low[0, 1, :2] - low[0, 0, :2])
            seen.add(tuple(map(tuple, steps)))
            assert np.ptp(low[..., 0]) == np.ptp(low[..., 1]) == 11
    assert len(seen) == {"none": 1, "flip": 2, "dihedral": 8}[augment]


def test_channels_of_a_pair_are_permuted_alike(coded):
    one = data(source="pairs", resize=0, crop=12, permute_channels=True, **coded)
    seen = set()
    for batch, _ in take(one.batches(0, 0, 4), 12):
        for low, high in zip(batch["low"].astype(int), batch["high"].astype(int), strict=True):
            order = tuple(np.argsort(np.ptp(low, (0, 1)), kind="stable"))  # the file's is flat
            assert tuple(np.ptp(high, (0, 1))) == tuple(np.ptp(low, (0, 1)))
            assert set((high - low).ravel()) == {0, 100}
            rises = tuple("yx"[int(low[1, 0, c] == low[0, 0, c])] if np.ptp(low[..., c]) else "-"
                          for c in range(3))
            seen.add(rises)
            assert order[0] == rises.index("-")
    assert len(seen) == 6


def test_crops_lie_everywhere(coded):
    one = data(source="pairs", resize=0, crop=38, **coded)
    corners = {tuple(low[0, 0, :2]) for batch, _ in take(one.batches(0, 0, 4), 30)
               for low in batch["low"]}
    assert {row for row, _ in corners} == {0, 1, 2} and len({x for _, x in corners}) > 15


def test_unpaired_pictures_are_drawn_independently(coded, tmp_path):
    one = data(source="unpaired", resize=0, crop=40, **coded)
    pairs = {(low[0, 0, 2], high[0, 0, 2]) for batch, _ in take(one.batches(0, 0, 3), 30)
             for low, high in zip(batch["low"], batch["high"], strict=True)}
    assert len(pairs) == 9  # every low with every high
    assert next(data(source="unpaired").batches(0, 0, 2))[0]["high"].shape == (2, 16, 16, 3)


def test_folder_gives_low_alone(coded):
    batch, names = next(data(source="folder", low=coded["low"]).batches(0, 0, 2))
    assert set(batch) == {"low", "low_record", "mask", "index"} and batch["low"].dtype == np.uint8
    assert set(names) <= {"0.png", "1.png", "2.png"}


@pytest.mark.parametrize("source", ["pairs", "unpaired"])
def test_a_number_stands_for_a_picture(coded, source):
    """Blue is the file: the second is left out."""
    one = data(source=source, resize=0, **coded)
    for table in one._chosen:
        table.indices = [0, 2]
    seen = {(role, number, picture[0, 0, 2]) for batch, _ in take(one.batches(0, 0, 3), 4)
            for role in ("low", "high")
            for number, picture in zip(batch[f"{role}_record"], batch[role], strict=True)}
    assert len(seen) == 4 and {number for _, number, _ in seen} == {0, 2}


def test_resize_ignores_the_aspect_as_the_official_loaders_do(coded):
    picture = np.asarray(Image.open(coded["low"] + "/0.png"))
    wanted = np.asarray(Image.fromarray(picture).resize((16, 16), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(pipeline.resize(picture, 16), wanted)


def test_on_device_gives_unit_range_and_one_key_an_image():
    batch, _ = next(data().batches(0, 0, 4))
    first = pipeline.on_device(batch, 7, jnp.int32(2))
    assert first["low"].dtype == jnp.float32 and float(first["low"].max()) <= 1
    np.testing.assert_array_equal(np.round(np.asarray(first["low"]) * 255), batch["low"])
    keys = np.asarray(jax.random.key_data(first["key"]))
    assert len(np.unique(keys, axis=0)) == 4
    again = pipeline.on_device({**batch, "index": batch["index"][::-1]}, 7, jnp.int32(2))
    np.testing.assert_array_equal(keys[::-1], jax.random.key_data(again["key"]))
    other = pipeline.on_device(batch, 7, jnp.int32(3))
    assert (keys != np.asarray(jax.random.key_data(other["key"]))).any()


def test_the_cache_keeps_no_more_than_its_limit():
    records = [{"name": str(i), "low": np.zeros((10, 10, 3), np.uint8)} for i in range(4)]
    reads = []

    class Counting(list):
        def __getitem__(self, index):
            reads.append(index)
            return super().__getitem__(index)

    cached = sources.Cached(Counting(records), 650)
    for _ in range(2):
        for index in range(4):
            assert cached[index]["name"] == str(index)
    assert reads == [0, 1, 2, 3, 2, 3]


@pytest.mark.parametrize("kwargs, message", [
    (dict(source="pairs"), "--low"),
    (dict(source="pairs", low="nowhere", high="nowhere"), "nowhere"),
    (dict(source="dmo"), 'Did you mean "demo"'),
])
def test_sources_that_cannot_be_opened(kwargs, message):
    with pytest.raises(InputError, match=message):
        sources.open(**kwargs)


def test_evaluation_names_broken_and_lonely_pictures(coded, tmp_path):
    pairs = sources.open("pairs", **coded)
    assert len(pairs) == 3 and pairs[1]["name"] == "1.png"
    (tmp_path / "low" / "1.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"low.1\.png"):
        pairs[1]
    (tmp_path / "low" / "1.png").unlink()
    with pytest.raises(InputError, match="lack a partner"):
        sources.open("pairs", **coded)
    Image.new("RGB", (40, 60)).save(tmp_path / "low" / "1.png")
    with pytest.raises(InputError, match="40x60.*60x40"):
        sources.open("pairs", **coded)[1]
