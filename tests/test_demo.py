"""The demo set: what is shipped, the camera model, and that it is the same everywhere."""

import math
import re
import zlib

import numpy as np
import pytest
from PIL import Image

from lljax.data import demo


def rng(seed=0):
    return np.random.Generator(np.random.PCG64(seed))


def grey(value, side=300):
    return np.full((side, side, 3), value, np.uint8)


def linear(code):
    """sRGB code value -> linear light, written out again for the tests."""
    encoded = np.asarray(code, np.float64) / 255
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def luma(picture):
    return float((picture @ np.array([0.299, 0.587, 0.114])).mean())


def test_splits_share_no_photograph_and_name_every_file():
    train, test = demo.names("train"), demo.names("test")
    shipped = sorted(path.stem for path in demo.FOLDER.glob("*.jpg"))
    assert sorted(train + test) == shipped  # also: none twice
    assert len(shipped) == 24 and len(test) == 6
    with pytest.raises(ValueError, match="train"):
        demo.names("validation")


def test_files_and_licences_agree():
    table = (demo.FOLDER / "LICENSES.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+\.jpg)` \|(.*)$", table, re.M)
    assert sorted(name for name, _ in rows) == sorted(p.name for p in demo.FOLDER.glob("*.jpg"))
    for name, row in rows:
        assert re.search(r"\| [^|]*(CC0|public domain)[^|]* \|", row, re.I), name
    assert sum(path.stat().st_size for path in demo.FOLDER.glob("*.*")) < 2_500_000


def test_photographs_are_well_exposed_and_carry_no_metadata():
    for path in demo.FOLDER.glob("*.jpg"):
        with Image.open(path) as file:
            assert file.mode == "RGB" and 384 <= max(file.size) <= 512 and min(file.size) >= 288
            assert not file.getexif() and not {"icc_profile", "xmp", "comment"} & set(file.info)
            assert 80 < luma(np.asarray(file)) < 170, path.name


def test_records_are_darker_pairs_and_the_same_on_every_visit():
    pairs = demo.records("test")
    assert len(pairs) == 6 * len(demo.VARIANTS) == 24
    assert len(demo.records("train")) == 18 * len(demo.VARIANTS)
    for index in (1, 7, 18, -1):
        pair = pairs[index]
        assert pair["low"].shape == pair["high"].shape
        assert pair["low"].dtype == pair["high"].dtype == np.uint8
        assert 9 < luma(pair["low"]) < 50 and luma(pair["low"]) < 0.45 * luma(pair["high"])
        again = demo.records("test")[index]
        assert again["name"] == pair["name"] and np.array_equal(again["low"], pair["low"])
    assert [pairs[i]["name"] for i in (0, 4)] == ["castle_evening", "cat_evening"]
    with pytest.raises(IndexError):
        pairs[24]


def test_two_variants_do_not_share_their_noise():
    photograph = demo.records("test")[4]["high"]
    seeds = [zlib.crc32(f"cat/{variant}".encode()) for variant in demo.VARIANTS]
    lows = [demo.darken(photograph, 0.1, 1.0, 4.0, 2000.0, rng(seed)) for seed in seeds]
    assert len({low.tobytes() for low in lows}) == len(seeds)
    assert np.array_equal(demo.records("test")[7]["low"],
                          demo.darken(photograph, *demo.VARIANTS["night"], rng(seeds[3])))


def test_every_shipped_variant_gives_the_known_bytes():
    """Recorded once; if this fails, the demo set is not the published one on this machine."""
    ramp = np.arange(256 * 48, dtype=np.uint64).reshape(64, 64, 3) * 37 % 256
    got = {variant: zlib.crc32(demo.darken(ramp.astype(np.uint8), *knobs, rng(1)).tobytes())
           for variant, knobs in demo.VARIANTS.items()}
    assert got == {"evening": 788347553, "lamp": 3741635096, "candle": 2295398587,
                   "night": 4104121816}


def test_darken_without_noise_is_the_closed_form():
    # 188 -> linear 0.50289; half of it, 0.25144, encodes to 0.53863 * 255 = 137.35.
    assert (demo.darken(grey(188, 4), 0.5, 1.0, 0.0, math.inf, rng()) == 137).all()
    # gamma 2 on that: 0.53863^2 * 255 = 73.98.
    assert (demo.darken(grey(188, 4), 0.5, 2.0, 0.0, math.inf, rng()) == 74).all()
    # 20 -> linear 0.00699; a tenth lies on the straight part: 0.000699 * 12.92 * 255 = 2.30.
    assert (demo.darken(grey(20, 4), 0.1, 1.0, 0.0, math.inf, rng()) == 2).all()
    every = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    assert np.array_equal(demo.darken(every, 1.0, 1.0, 0.0, math.inf, rng()), every)


@pytest.mark.parametrize(("exposure", "read_noise", "full_well"),
                         [(0.5, 0.0, 1000.0), (0.5, 10.0, 1000.0), (0.2, 20.0, 4000.0)])
def test_noise_has_the_mean_and_variance_of_the_sensor(exposure, read_noise, full_well):
    low = demo.darken(grey(188), exposure, 1.0, read_noise, full_well, rng(3))
    electrons = linear(low) * full_well
    mean = float(linear(188)) * exposure * full_well
    variance = mean + read_noise**2  # shot + read
    # 270 000 samples: the mean is known to 0.2 % of a standard deviation, the variance to 0.3 %.
    # Rounding to 8 bit adds 1/12 of a squared step to the variance (up to 2 % here) and, where no
    # read noise smooths the whole electrons, 1.1 % of a standard deviation to the mean.
    assert abs(electrons.mean() - mean) < (0.01 if read_noise else 0.015) * math.sqrt(variance)
    assert electrons.var() == pytest.approx(variance, rel=0.03)
    channels = low.reshape(-1, 3).astype(np.float64)
    assert abs(np.corrcoef(channels.T)[np.triu_indices(3, 1)]).max() < 0.02  # independent


def test_black_keeps_half_of_its_read_noise():
    low = demo.darken(grey(0), 0.1, 1.0, 5.0, 1000.0, rng(4))
    # Codes 1 and up begin at 1000 * 0.5 / 255 / 12.92 = 0.1518 electrons: P = 1 - Phi(0.03035).
    assert (low > 0).mean() == pytest.approx(0.48789, abs=0.004)
    assert (demo.darken(grey(0), 0.1, 1.0, 0.0, 1000.0, rng(4)) == 0).all()


@pytest.mark.parametrize("bad", [
    dict(high=np.zeros((4, 4), np.uint8)), dict(high=np.zeros((4, 4, 3), np.float32)),
    dict(exposure=0.0), dict(exposure=1.5), dict(gamma=0.0), dict(read_noise=-1.0),
    dict(full_well=0.0), dict(full_well=1e6), dict(full_well=math.nan),
    dict(rng=np.random.Generator(np.random.MT19937(0))),
])
def test_darken_refuses(bad):
    good = dict(high=grey(9, 4), exposure=0.5, gamma=1.0, read_noise=1.0, full_well=99.0, rng=rng())
    demo.darken(**good)
    with pytest.raises(ValueError, match=next(iter(bad))):
        demo.darken(**{**good, **bad})


def test_write_gives_equal_names_and_the_same_pixels(tmp_path, monkeypatch):
    monkeypatch.setitem(demo.SPLITS, "test", ("cat",))
    assert demo.write(tmp_path / "new", "test") == 4
    low, high = (sorted((tmp_path / "new" / role).iterdir()) for role in ("low", "high"))
    assert [p.name for p in low] == [p.name for p in high]
    for pair in demo.records("test"):
        for role in ("low", "high"):
            with Image.open(tmp_path / "new" / role / f"{pair['name']}.png") as file:
                assert np.array_equal(np.asarray(file), pair[role])
