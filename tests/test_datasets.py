"""The published data sets, in small folders of the right shape, and sources made of them."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from lljax import images
from lljax.data import datasets, pipeline, sources
from lljax.errors import InputError
from lljax.evaluation import evaluate
from lljax.training.loop import fit
from tests import toy

# name -> split -> names of the records that the folders made below hold
EXPECTED = {
    "lol_v1": {"train": ["2", "5", "10"], "test": ["1", "22"]},
    "retinex_synthetic": {"train": ["a", "b", "c"], "test": ["d", "e"]},
    "lol_v2_real": {"train": ["00001", "00002", "00003"], "test": ["00690", "00691"]},
    "lol_v2_synthetic": {"train": ["r0t", "r1t", "r2t"], "test": ["r3t", "r4t"]},
    # of 7 frames the first 3, of 6 the first 2, of 9 the first 4
    "sice": {"train": ["2_1", "2_2", "2_3", "10_1", "10_2"], "test": ["1_1", "1_2", "1_3", "1_4"]},
    "enlighten_unpaired": {"trainA": ["0.png", "1.png", "2.png"], "trainB": ["0.png", "1.png"],
                           "testA": ["t.png"], "testB": ["u.png"]},
}
PAIRED = [name for name in EXPECTED if name != "enlighten_unpaired"]


def draw(path, seed, size=(20, 24)):
    """A picture of its own at `path`; returns its pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, quality=95)
    return pixels


def make(name, root):
    """The folders of a set below `root`; seeds of low and high tell the pictures apart."""
    if name == "sice":
        for part, scenes in (("Dataset_Part1", {"2": 7, "10": 6}), ("Dataset_Part2", {"1": 9})):
            for scene, frames in scenes.items():
                seed = int(scene) * 100 + 10_000 * (part == "Dataset_Part2")
                draw(root / part / "Label" / f"{scene}.JPG", seed)
                for frame in range(1, frames + 1):
                    draw(root / part / scene / f"{frame}.JPG", seed + frame)
        return
    seed = 0
    for split, paths in datasets.SETS[name].folders.items():
        for number, path in enumerate(paths):
            for stem in EXPECTED[name][split]:
                prefix = ("low", "normal")[number] if name == "lol_v2_real" else ""
                seed += 1
                draw(root / path / f"{prefix}{stem.removesuffix('.png')}.png", seed)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Prepared sets of a test go nowhere else."""
    monkeypatch.setenv("LLJAX_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("name", EXPECTED)
def test_a_set_has_every_record_of_its_folders(name, tmp_path):
    make(name, tmp_path / "in")
    for split in ("train", "test"):
        tables = sources.open_tables(name, split=split, root=str(tmp_path / "in"))
        parts = [split] if name in PAIRED else [split + "A", split + "B"]
        assert [[record["name"] for record in table] for table in tables] == [
            EXPECTED[name][part] for part in parts]
        roles = [{"low", "high", "name"}] if name in PAIRED else [{"low", "name"}, {"high", "name"}]
        assert [set(table[0]) for table in tables] == roles
        for table in tables:
            with pytest.raises(IndexError):
                table[len(table)]


@pytest.mark.parametrize("name", PAIRED)
def test_pairs_are_the_files_pixels_and_splits_share_none(name, tmp_path):
    make(name, tmp_path / "in")
    seen = {}
    for split, listing in datasets.files(name, str(tmp_path / "in")).items():
        (table,) = sources.open_tables(name, split=split, root=str(tmp_path / "in"))
        for record, (_, paths) in zip(table, listing.entries, strict=True):
            for role in ("low", "high"):
                np.testing.assert_array_equal(record[role], images.read_rgb(paths[role]))
        seen[split] = {record[role].tobytes() for record in table for role in ("low", "high")}
    assert seen["train"] and seen["test"] and not seen["train"] & seen["test"]


def test_the_right_files_are_paired(tmp_path):
    make("lol_v2_real", tmp_path / "a")
    low, high = datasets.files("lol_v2_real", str(tmp_path / "a"))["train"].entries[0][1].values()
    assert low.endswith("Low/low00001.png") and high.endswith("Normal/normal00001.png")
    make("sice", tmp_path / "b")
    name, paths = datasets.files("sice", str(tmp_path / "b"))["train"].entries[3]
    assert name == "10_1" and paths["low"].endswith("Part1/10/1.JPG")
    assert paths["high"].endswith("Part1/Label/10.JPG")


def test_a_set_is_prepared_once(tmp_path, capsys):
    make("lol_v1", tmp_path / "in")
    first = datasets.prepare("lol_v1", str(tmp_path / "in"))
    said = capsys.readouterr().out
    assert "train has 3 entries; the published set has 485" in said and "preparing lol_v1" in said
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.array*")}
    assert len(written) == 2
    again = datasets.prepare("lol_v1", str(tmp_path / "in"))
    alone = datasets.prepare("lol_v1")  # the download may be gone
    assert capsys.readouterr().out == ""
    assert first.data_dir == again.data_dir == alone.data_dir
    assert written == {path: path.stat().st_mtime_ns for path in written}
    assert alone.info.homepage.startswith("https://") and "Terms" in alone.info.description
    elsewhere = datasets.prepare("lol_v1", str(tmp_path / "in"), str(tmp_path / "other"))
    assert str(elsewhere.data_dir).startswith(str(tmp_path / "other"))


def test_other_files_than_those_prepared_are_refused(tmp_path):
    make("lol_v1", tmp_path / "in")
    datasets.prepare("lol_v1", str(tmp_path / "in"))
    for role in ("low", "high"):
        draw(tmp_path / "in" / "our485" / role / "77.png", 77)
    with pytest.raises(InputError, match="are not those prepared in"):
        datasets.prepare("lol_v1", str(tmp_path / "in"))


@pytest.mark.parametrize("name", EXPECTED)
def test_an_absent_download_is_one_line_that_says_what_to_get(name, tmp_path, caplog):
    (tmp_path / "in").mkdir()
    for root in (str(tmp_path / "in"), None):
        with pytest.raises(InputError) as error:
            sources.open_tables(name, root=root)
        text = str(error.value)
        assert "\n" not in text and "https://" in text and f"ROOT/{name}" in text
        needed = [path for split, paths in datasets.SETS[name].folders.items()
                  if split not in datasets.SETS[name].optional for path in paths]
        assert all(path in text for path in needed)
    assert "lljax data prepare" in text
    assert not (tmp_path / "cache").exists() and not caplog.records


def test_the_folder_that_is_missing_is_named(tmp_path):
    make("lol_v1", tmp_path / "lol_v1")  # a sub-folder of the set's name will do
    os.rename(tmp_path / "lol_v1" / "eval15" / "high", tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"lol_v1 lacks eval15/high;"):
        datasets.files("lol_v1", str(tmp_path))
    (tmp_path / "lol_v1" / "eval15" / "high").mkdir()
    for path in (tmp_path / "lol_v1" / "eval15" / "low").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="no pictures in eval15/low"):
        datasets.files("lol_v1", str(tmp_path))


@pytest.mark.parametrize("name, gone, split", [
    ("retinex_synthetic", "syn_test", "test"), ("enlighten_unpaired", "test?", "testA")])
def test_a_test_split_that_is_not_published_may_be_absent(name, gone, split, tmp_path):
    make(name, tmp_path / "in")
    for folder in list((tmp_path / "in").glob(gone)):
        folder.rename(tmp_path / folder.name)
    assert sources.open_tables(name, root=str(tmp_path / "in"))
    with pytest.raises(InputError, match=f"has no {split} pictures"):
        sources.open_tables(name, split="test")


def test_broken_unequal_and_lonely_files_stop_the_preparation(tmp_path):
    make("lol_v1", tmp_path / "in")
    low = tmp_path / "in" / "our485" / "low" / "5.png"
    whole = low.read_bytes()
    low.write_bytes(whole[:60])
    with pytest.raises(InputError, match=r"low/5\.png"):
        datasets.prepare("lol_v1", str(tmp_path / "in"))
    draw(low, 1, (10, 10))
    with pytest.raises(InputError, match="low/5.png is 10x10, .*high/5.png is 24x20"):
        datasets.prepare("lol_v1", str(tmp_path / "in"))
    low.unlink()
    with pytest.raises(InputError, match="1 pictures or scenes of train lack a partner"):
        datasets.prepare("lol_v1", str(tmp_path / "in"))
    low.write_bytes(whole)
    assert len(datasets.prepare("lol_v1", str(tmp_path / "in")).as_data_source("train")) == 3


def test_what_is_stored_loses_nothing(tmp_path):
    pixels = draw(tmp_path / "a.png", 1)
    Image.fromarray(pixels).save(tmp_path / "a.bmp")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=exif)
    Image.fromarray(pixels).save(tmp_path / "plain.jpg")
    for name, kept in (("a.png", True), ("plain.jpg", True), ("a.bmp", False),
                       ("turned.jpg", False)):
        data, shape = datasets._encoded(str(tmp_path / name))
        assert (data == (tmp_path / name).read_bytes()) == kept, name
        np.testing.assert_array_equal(datasets._decode(data), images.read_rgb(tmp_path / name))
        assert shape == datasets._decode(data).shape


def test_sources_can_be_mixed(tmp_path):
    for name in ("lol_v1", "retinex_synthetic"):
        make(name, tmp_path / "in" / name)
    (mixed,) = sources.open_tables("lol_v1+retinex_synthetic+demo", root=str(tmp_path / "in"))
    names = [f"lol_v1/{n}" for n in EXPECTED["lol_v1"]["train"]]
    names += [f"retinex_synthetic/{n}" for n in EXPECTED["retinex_synthetic"]["train"]]
    assert len(mixed) == 6 + 72
    assert [mixed[i]["name"] for i in range(6)] == names
    assert mixed[6]["name"].startswith("demo/")
    one, two = sources.open_tables("enlighten_unpaired+unpaired", root=made_unpaired(tmp_path))
    assert (len(one), len(two)) == (3 + 72, 2 + 72)


def made_unpaired(tmp_path):
    make("enlighten_unpaired", tmp_path / "unpaired")
    return str(tmp_path / "unpaired")


def test_a_mix_is_shuffled_together_and_gives_every_record(tmp_path):
    for name in ("lol_v1", "retinex_synthetic"):
        make(name, tmp_path / "in" / name)
    config = toy.get_config().data
    config.source, config.root = "lol_v1+retinex_synthetic", str(tmp_path / "in")
    stream = pipeline.Data(config).batches(0, 0, 6)
    epochs = [next(stream)[1] for _ in range(2)]
    expected = {f"{s}/{n}" for s in ("lol_v1", "retinex_synthetic") for n in EXPECTED[s]["train"]}
    assert set(epochs[0]) == set(epochs[1]) == expected and epochs[0] != epochs[1]
    kinds = [name.split("/")[0] for name in epochs[0] + epochs[1]]
    assert kinds[:6] not in (sorted(kinds[:6]), sorted(kinds[:6], reverse=True))


def test_broken_files_of_a_mix_are_skipped_in_training_and_counted(tmp_path):
    for number in range(3):
        draw(tmp_path / "low" / f"{number}.png", number)
        draw(tmp_path / "high" / f"{number}.png", number + 10)
    (tmp_path / "low" / "1.png").write_bytes(b"no picture")
    lines = []
    folders = dict(low=str(tmp_path / "low"), high=str(tmp_path / "high"))
    (mixed,) = sources.open_tables("pairs+demo", report=lines.append, **folders)
    assert mixed[1]["name"] == "pairs/2.png"
    assert mixed.skipped == {("pairs", 1)} and len(lines) == 1
    scored = sources.open("pairs+demo", **folders)
    assert scored[2]["name"] == "pairs/2.png" and scored[3]["name"].startswith("demo/")
    with pytest.raises(InputError, match=r"1\.png"):
        scored[1]


@pytest.mark.parametrize("source, message", [
    ("demo+demo", "named once"), ("demo+unpaired", "only sources of one kind"),
    ("demo+lol_v3", 'Did you mean "lol_v1"'), ("demo+", 'unknown data source ""')])
def test_sources_that_cannot_be_mixed_are_one_line(source, message):
    with pytest.raises(InputError, match=message) as error:
        sources.open_tables(source)
    assert "\n" not in str(error.value)


def test_evaluation_reads_the_test_split(tmp_path):
    make("lol_v1", tmp_path / "in")
    pairs = sources.open("lol_v1", root=str(tmp_path / "in"))
    assert [pair["name"] for pair in pairs] == ["1", "22"]
    assert [pair["name"] for pair in sources.open("lol_v1", split="train")] == ["2", "5", "10"]
    with pytest.raises(InputError, match="source of pairs"):
        sources.open("enlighten_unpaired")


def test_evaluate_takes_a_set_from_where_the_flags_say(tmp_path, cache):
    make("lol_v1", tmp_path / "in")
    flags = ["--source", "lol_v1", "--prepared", str(tmp_path / "mine"), "--metrics=psnr",
             "--baselines=identity"]
    for split, names in (("test", ["1", "22"]), ("train", ["2", "5", "10"])):
        assert evaluate.main(["evaluate.py", *flags, "--split", split, "--root",
                              str(tmp_path / "in"), "--out", str(tmp_path / split)]) == 0
        with open(tmp_path / split / "per_image.csv", encoding="utf-8") as file:
            assert [row["name"] for row in csv.DictReader(file)] == names
    assert list((tmp_path / "mine").iterdir()) and not cache.exists()


def test_training_and_evaluation_on_a_prepared_set(tmp_path, capsys):
    make("lol_v1", tmp_path / "in")
    config = toy.get_config()
    config.data.source, config.data.root = "lol_v1", str(tmp_path / "in")
    config.eval.source, config.eval.every = "lol_v1", 3
    config.phases, config.phase.first.batch_size = ("first",), 4
    config.loss.match.enabled = config.loss.score.enabled = False
    fit(config, str(tmp_path / "run"))
    assert "preparing lol_v1 (3 train, 2 test)" in capsys.readouterr().out
    rows = [json.loads(text) for text in (tmp_path / "run/metrics.jsonl").open()]
    assert [row["step"] for row in rows if "loss/l1" in row] == [1, 2, 3]
    assert any(key.startswith("eval/") for row in rows for key in row)


def test_only_published_sets_import_tfds(tmp_path):
    make("lol_v1", tmp_path / "in")
    script = ("import sys; from lljax.data import sources, check; sources.open('demo')[0]; "
              "assert 'tensorflow_datasets' not in sys.modules; "
              f"sources.open('lol_v1', root={str(tmp_path / 'in')!r})[0]; "
              "assert 'tensorflow_datasets' in sys.modules and 'tensorflow' not in sys.modules")
    subprocess.run([sys.executable, "-c", script], check=True)
