"""Baselines: against direct computation, and what they are to do to dark pictures."""

import numpy as np
import pytest
from PIL import Image

from lljax.evaluation import baselines
from lljax.evaluation.baselines import BASELINES, lime


def dark(shape=(61, 83)):
    """A dark picture with a gradient, texture and colour."""
    y, x = np.mgrid[:shape[0], :shape[1]]
    plane = 12 + 0.3 * x + 6 * np.sin(x / 5) * np.cos(y / 4)
    picture = np.stack([plane, plane * 0.9, plane * 0.7 + 3], -1)
    return np.clip(picture + np.random.default_rng(2).normal(0, 1, picture.shape), 0, 255
                   ).astype(np.uint8)


def luma(picture):
    return np.asarray(Image.fromarray(picture).convert("YCbCr"))[..., 0]


def test_identity_and_gamma():
    picture = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    np.testing.assert_array_equal(BASELINES["identity"](picture), picture)
    for exponent in (0.4, 0.5):
        out = BASELINES[f"gamma {exponent}"](picture)
        np.testing.assert_array_equal(out, np.round(255 * (picture / 255) ** exponent))
    assert BASELINES["gamma 0.5"](np.full((1, 1, 3), 64, np.uint8))[0, 0, 0] == 128
    assert BASELINES["gamma 0.4"](picture).mean() > BASELINES["gamma 0.5"](picture).mean()


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_keeps_size_and_type(name):
    for shape in ((1, 1), (3, 17), (61, 83), (64, 96)):
        picture = dark(shape)
        before = picture.copy()
        out = BASELINES[name](picture)
        assert out.dtype == np.uint8 and out.shape == picture.shape
        np.testing.assert_array_equal(picture, before)  # the caller's is left alone
    for level in (0, 255):
        flat = np.full((24, 24, 3), level, np.uint8)
        assert np.ptp(BASELINES[name](flat)) == 0


@pytest.mark.parametrize("name", [name for name in BASELINES if name != "identity"])
def test_every_baseline_but_identity_brightens(name):
    picture = dark()
    out = BASELINES[name](picture)
    assert out.mean() > 1.2 * picture.mean()
    assert luma(out).std() > luma(picture).std()


def test_equalisation_spreads_luma_and_keeps_chroma():
    picture = dark((128, 128))
    out = BASELINES["HE"](picture)
    histogram = np.histogram(luma(out), bins=8, range=(0, 256))[0] / luma(out).size
    assert histogram.min() > 0.06 and histogram.max() < 0.2  # 1/8 each, but for levels in lumps
    inside = (out > 0).all(-1) & (out < 255).all(-1)  # elsewhere RGB was clipped
    chroma = [np.asarray(Image.fromarray(p).convert("YCbCr"))[..., 1:].astype(int)
              for p in (picture, out)]
    assert np.abs(chroma[0] - chroma[1])[inside].max() <= 2


def test_clahe_of_one_tile_without_limit_is_equalisation():
    plane = luma(dark((64, 64)))
    counts = np.bincount(plane.ravel(), minlength=256)
    expected = np.rint(counts.cumsum() * 255 / plane.size)[plane]
    np.testing.assert_array_equal(baselines._clahe(plane, 1, 256.0), expected)


def test_clahe_limits_contrast():
    noise = np.random.default_rng(0).normal(100, 2, (256, 256)).round().astype(np.uint8)
    spreads = [baselines._clahe(noise, 8, clip).std() for clip in (1.0, 2.0, 8.0)]
    assert noise.std() < spreads[0] < spreads[1] < spreads[2]


# By OpenCV 5.0 createCLAHE(2.0, (8, 8)): sums of levels, and of squares, of luma of dark(shape).
@pytest.mark.parametrize("shape, total, squares", [
    ((64, 96), 263919, 12366795), ((61, 83), 195941, 8189543), ((200, 300), 3865100, 280465698)])
def test_clahe_equals_opencv(shape, total, squares):
    out = baselines._clahe(luma(dark(shape)), 8, 2.0).astype(int)
    assert out.sum() == total and (out**2).sum() == squares


def test_lime_divides_by_the_illumination():
    picture = np.full((40, 40, 3), (20, 40, 30), np.uint8)
    expected = np.array([20, 40, 30]) / (40 / 255) ** 0.8
    assert np.abs(lime(picture)[20, 20] - expected).max() <= 0.5
    assert lime(picture, exponent=1.0)[20, 20].max() == 255


def test_lime_keeps_edges():
    picture = np.full((60, 80, 3), 15, np.uint8)
    picture[:, 40:] = 150
    out = lime(picture).astype(float).mean((0, 2))
    assert out[39] < out[40] - 50 and np.ptp(out[:38]) < 25 and np.ptp(out[42:]) < 25
