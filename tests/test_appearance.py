"""Order of lightness, brightness, cast and noise, against their definitions written out."""

import math

import numpy as np
import pytest
from PIL import Image

from lljax.evaluation import appearance


def picture(seed=0, shape=(23, 31, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def loe_by_pairs(enhanced, low):
    """Every pixel against every other one."""
    a, b = (p.max(2).ravel() for p in (low, enhanced))
    return np.mean([((a >= a[i]) != (b >= b[i])).sum() for i in range(a.size)])


@pytest.mark.parametrize("levels", [256, 6], ids=["few ties", "many ties"])
def test_loe_is_the_sum_over_all_pairs(levels):
    enhanced, low = (picture(seed) // (256 // levels) for seed in (0, 1))
    assert appearance.loe(enhanced, low) == pytest.approx(loe_by_pairs(enhanced, low), rel=1e-12)
    assert loe_by_pairs(enhanced, low) > 100


def test_loe_is_of_a_smaller_picture():
    large, low = picture(3, (150, 100, 3)), picture(4, (150, 100, 3))
    shrunk = [np.asarray(Image.fromarray(p.max(2)).resize((50, 75), Image.Resampling.BICUBIC))
              [..., None] for p in (large, low)]
    assert appearance.loe(large, low) == pytest.approx(loe_by_pairs(*shrunk), rel=1e-12)


def test_loe_is_0_where_the_order_stays():
    low = picture() // 4
    assert appearance.loe(low * 3 + 7, low) == 0
    # an inverted picture: every two pixels that differ have swapped
    ramp = np.arange(30, dtype=np.uint8).reshape(5, 6, 1).repeat(3, 2)
    assert appearance.loe(255 - ramp, ramp) == 29


def test_brightness_is_the_ratio_of_mean_greys():
    enhanced = np.full((4, 4, 3), (10, 20, 30), np.uint8)
    reference = np.full((4, 4, 3), (40, 50, 60), np.uint8)
    expected = (2.99 + 11.74 + 3.42) / (11.96 + 29.35 + 6.84)
    assert appearance.brightness(enhanced, reference) == pytest.approx(expected, rel=1e-12)
    black = np.zeros_like(enhanced)
    assert appearance.brightness(enhanced, black) == math.inf
    assert appearance.brightness(black, enhanced) == 0 and appearance.brightness(black, black) == 1


def test_cast_is_the_angle_between_mean_colours():
    red = np.full((4, 4, 3), (90, 0, 0), np.uint8)
    assert appearance.cast(red, red // 2) == 0  # brightness does not matter
    assert appearance.cast(red, red[..., ::-1]) == pytest.approx(90)
    grey = math.degrees(math.acos(1 / math.sqrt(3)))
    assert appearance.cast(red, None) == pytest.approx(grey)
    assert appearance.cast(red, np.zeros_like(red)) == pytest.approx(grey)
    assert appearance.cast(np.zeros_like(red), None) == 0
    half = red.copy()
    half[:2] = (0, 90, 0)  # the mean counts, not the pixels
    assert appearance.cast(half, red) == pytest.approx(45)


@pytest.mark.parametrize("sigma", [2.0, 10.0])
def test_noise_is_found(sigma):
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:120, :160]
    clean = (60 + 0.5 * x + 0.3 * y)[..., None].repeat(3, 2)
    clean[:, 80:] += 30  # an edge along an axis is no noise, a slope neither
    assert appearance.noise(np.rint(clean).astype(np.uint8)) < 0.5
    noisy = np.rint(clean + rng.normal(0, sigma, clean.shape)).astype(np.uint8)
    assert appearance.noise(noisy) == pytest.approx(sigma, rel=0.05)


def test_noise_by_hand():
    spot = np.zeros((3, 3, 3), np.uint8)
    spot[1, 1] = 6
    assert appearance.noise(spot) == pytest.approx(4 * 6 * math.sqrt(math.pi / 2) / 6)
