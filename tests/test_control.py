"""What a user may turn: strength, highlights, denoising, averaging; and well-lit pictures stay."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

import lljax
from lljax import denoise, images, weights
from lljax import method as method_lib
from lljax.data import demo
from lljax.errors import InputError
from lljax.inference import control as control_lib
from lljax.inference.control import Control, average, mix
from lljax.inference.enhancer import Enhancer

DTYPES = [np.uint8, np.uint16, np.float16, np.float32, np.float64]


class Brighter(method_lib.Method):
    """x -> its square root plus a ramp from the left, so that flips and turns differ."""

    halo, multiple = None, 1

    def __init__(self):
        super().__init__(ConfigDict())

    def estimate(self, nets, low, key):
        return {"ramp": jnp.linspace(0, 0.1, low.shape[2])[None, None, :, None] + 0 * low}

    def apply(self, nets, low, maps):
        return jnp.sqrt(low) + maps["ramp"]


@pytest.fixture(scope="module")
def enhancer():
    return Enhancer(Brighter(), {})


def picture(dtype=np.float32, height=20, width=30, top=0.9):
    low = np.random.default_rng(0).random((height, width, 3)) * top
    return (low.astype(dtype) if np.dtype(dtype).kind == "f"
            else images.to_uint(low, dtype))


def unit(pixels):
    return pixels.astype(np.float64) / (np.iinfo(pixels.dtype).max
                                        if pixels.dtype.kind == "u" else 1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_ends_are_exact(enhancer, dtype):
    low = picture(dtype)
    nothing, all_of_it = enhancer(low, strength=0), enhancer(low, strength=1.0)
    np.testing.assert_array_equal(nothing, low)
    assert nothing.dtype == low.dtype and not np.shares_memory(nothing, low)
    np.testing.assert_array_equal(all_of_it, enhancer(low))
    np.testing.assert_array_equal(all_of_it, enhancer._enhance(low))


@pytest.mark.parametrize("dtype", DTYPES)
def test_between_them_it_is_a_mixture(enhancer, dtype):
    low, full = picture(dtype), enhancer(picture(dtype))
    half = enhancer(low, strength=0.5)
    assert half.dtype == low.dtype
    rounding = {np.uint8: 0.5 / 255, np.uint16: 0.5 / 65535, np.float16: 1e-3}.get(dtype, 1e-6)
    assert np.abs(unit(half) - (unit(low) + unit(full)) / 2).max() <= rounding + 1e-7


def test_highlights_come_back_by_the_square_of_the_luma(enhancer):
    low = picture()
    full = enhancer(low)
    luma = (low @ np.float32([0.299, 0.587, 0.114]))[..., None]
    for protect in (0.4, 1):
        np.testing.assert_allclose(enhancer(low, protect_highlights=protect),
                                   full + protect * luma**2 * (low - full), atol=1e-6)
    np.testing.assert_allclose(
        enhancer(low, protect_highlights=1, strength=0.3),
        low + 0.3 * (enhancer(low, protect_highlights=1) - low), atol=1e-6)


def test_protected_steps_keep_their_order():
    """With the weights in the box a brighter grey stays brighter: no dark ring round a lamp."""
    enhancer = lljax.load("zerodce")
    ramp = np.zeros((64, 64, 3), np.float32) + np.linspace(0, 1, 64, dtype=np.float32)[:, None]
    for protect in (0.5, 1):
        result = enhancer(ramp, protect_highlights=protect)[32, 8:-8].mean(-1)  # border: padding
        assert (np.diff(result) > 0).all()
        assert result[-1] < enhancer(ramp)[32, 55].mean()


@pytest.mark.parametrize("strength, median, expected", [
    ("auto", 0.05, 1), ("auto", 0.2, 1), ("auto", 0.3, 0.5), ("auto", 0.4, 0), ("auto", 0.9, 0),
    (0.7, 0.9, 0.7)])
def test_the_automatic_strength_goes_by_the_median(strength, median, expected):
    pixels = np.full((21, 40, 3), median, np.float32)
    pixels[:10] = 1  # a bright sky over less than half of it
    assert Control(strength).strength_for(pixels) == pytest.approx(expected, abs=1e-5)
    u16 = images.to_uint(pixels, np.uint16)
    assert Control(strength).strength_for(u16) == pytest.approx(expected, abs=1e-3)


def test_the_automatic_strength_of_a_large_picture_is_that_of_a_sample():
    rng = np.random.default_rng(0)
    pixels = (0.25 + 0.1 * rng.random((1100, 1000, 1), np.float32)).repeat(3, 2)
    assert Control("auto").strength_for(pixels) == pytest.approx(0.5, abs=0.01)


def test_well_lit_photographs_stay_with_the_automatic_strength():
    """Mean |change| of the demo's references: the default weights alone make it 0.2 to 0.4."""
    enhancer = lljax.load(weights.DEFAULT)
    for name in demo.names("test"):
        high = images.read_rgb(demo.FOLDER / f"{name}.jpg")
        np.testing.assert_array_equal(enhancer(high, strength="auto"), high)
        # a little darker, where the strength fades
        median = np.median(unit(high) @ np.array([0.299, 0.587, 0.114]))
        less = np.rint(high * min(1, 0.35 / median)).astype(np.uint8)
        change, whole = (np.abs(unit(enhancer(less, strength=strength)) - unit(less)).mean()
                         for strength in ("auto", 1))
        assert 0.02 < change < 0.08 and whole > 0.2


def test_averaging_eight(enhancer):
    low = picture()
    total = np.zeros_like(low)
    for k in range(4):
        for mirror in (False, True):
            seen = np.rot90(low, k)
            seen = seen[:, ::-1] if mirror else seen
            out = np.asarray(enhancer(np.ascontiguousarray(seen)))
            out = out[:, ::-1] if mirror else out
            total += np.rot90(out, -k)
    np.testing.assert_allclose(average(enhancer, low), total / 8, atol=1e-6)
    np.testing.assert_allclose(enhancer(low, tta=True), total / 8, atol=1e-6)
    assert np.abs(enhancer(low, tta=True) - enhancer(low)).max() > 0.02


def test_averaging_rounds_once_and_commutes_with_a_turn(enhancer):
    low = picture(np.uint8)
    exact = average(enhancer, low)
    assert exact.dtype == np.float32
    np.testing.assert_array_equal(enhancer(low, tta=True), images.to_uint(exact, np.uint8))
    turned = enhancer(np.ascontiguousarray(np.rot90(low)), tta=True)
    assert np.abs(turned.astype(int) - np.rot90(enhancer(low, tta=True))).max() <= 1


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_bands_equal_the_whole_picture(monkeypatch, dtype):
    pytest.importorskip("skimage")
    low, full = picture(dtype, 70, 40, 0.5), picture(dtype, 70, 40)
    for control in (Control(0.6, protect_highlights=0.7), Control(denoise="nlm")):
        whole = mix(low, full, control)
        monkeypatch.setattr(control_lib, "_BAND", 40 * 9)
        assert len(list(control_lib._bands(low, whole=False))) == 8
        np.testing.assert_allclose(mix(low, full, control), whole, atol=1e-5)
        monkeypatch.undo()


def test_denoising_takes_noise_where_the_picture_was_dark():
    pytest.importorskip("skimage")
    rng = np.random.default_rng(0)
    clean = np.full((60, 80, 3), 0.5, np.float32)
    noisy = (clean + 0.05 * rng.standard_normal(clean.shape)).astype(np.float32).clip(0, 1)
    assert control_lib._noise(noisy) == pytest.approx(0.05, rel=0.1)
    low = np.zeros_like(noisy)
    low[:, 40:] = 1  # there nothing is filtered
    result = mix(low, noisy, Control(denoise="nlm"))
    assert (result[:, :30] - 0.5).std() < 0.3 * (noisy[:, :30] - 0.5).std()
    np.testing.assert_allclose(result[:, 45:], noisy[:, 45:], atol=1e-6)
    np.testing.assert_array_equal(mix(low, clean, Control(denoise="nlm")), clean)  # no noise
    assert denoise.noise(np.zeros((1, 1, 3))) == 0


def test_types_batches_and_pil(enhancer):
    low = picture(np.uint8)
    dimmer = picture(np.uint8, top=0.2)
    both = enhancer(np.stack([low, dimmer]), strength=0.4, protect_highlights=0.2)
    np.testing.assert_array_equal(both[0], enhancer(low, strength=0.4, protect_highlights=0.2))
    np.testing.assert_array_equal(both[1], enhancer(dimmer, strength=0.4, protect_highlights=0.2))
    image = Image.fromarray(low)
    np.testing.assert_array_equal(np.asarray(enhancer(image, strength=0.4)),
                                  enhancer(low, strength=0.4))
    grey = image.convert("LA")
    assert enhancer(grey, tta=True).mode == "LA"
    assert isinstance(enhancer(jnp.asarray(low), strength=0.4), jax.Array)


@pytest.mark.parametrize("knobs, match", [
    ({"strength": 1.1}, r"strength is 1.1; .* 0 to 1 or .auto"),
    ({"strength": -0.1}, "0 to 1"), ({"strength": math.nan}, "nan"),
    ({"strength": "automatic"}, "automatic"), ({"tta": "yes"}, "tta is 'yes'"),
    ({"protect_highlights": 2}, "protect_highlights is 2"),
    ({"protect_highlights": "auto"}, "protect_highlights is 'auto'"),
    ({"denoise": "nml"}, 'Did you mean "nlm"')])
def test_what_cannot_be_is_refused(enhancer, knobs, match):
    with pytest.raises(InputError, match=match):
        enhancer(picture(), **knobs)


def test_an_unknown_control_is_named(enhancer):
    with pytest.raises(TypeError, match="strenght"):
        enhancer(picture(), strenght=0.5)
