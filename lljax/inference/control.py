"""What a user may turn without another model: how much of it, where, how noisy, how averaged.

With x the picture, y its luma, e what the model makes of x (`tta`: the mean of eight such), all in
[0, 1]:

    d = e + (1 - y) (denoised e - e)                  what was dark is denoised most
    result = x + strength (1 - protect y^2) (d - x)

* y^2 keeps dark places (y 0.2: 4 %) and gives bright ones back (y 0.9: 81 %). It is a function of
  the pixel alone: a blurred luma left bright rims around dark roofs under a sky, the brightest
  channel in place of the luma a dark ring around the moon; an edge-preserving blur looked the
  same as this. It has no threshold, and a step up in the input stays a step up.
* strength "auto" follows the median m of y: 1 up to 0.2, 0 from 0.4, between them
  1 - t^2 (3 - 2 t) with t = (m - 0.2) / 0.2. Models trained on dark pictures brighten whatever they
  are given: the weights that come with lljax change well-lit photographs by 0.25 to 0.33 on
  average. All of 244 dark photographs (SICE, LOL) had a median below 0.19, and 206 of 213 well-lit
  exposures (SICE) one above 0.2; a backlit scene, whose mean is high, still counts as dark.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from lljax import denoise as denoise_lib
from lljax import images
from lljax.errors import InputError

AUTO = "auto"
_DARK, _LIT = 0.2, 0.4  # medians of luma between which the automatic strength falls from 1 to 0
_LUMA = np.float32([0.299, 0.587, 0.114])
_BAND = 2**19  # px of the rows that are mixed at a time: their floats take some 50 MB
_SAMPLE = 2**18  # px of which a median is taken
_THREADS = 4  # bands at a time where they are denoised, which is slow


@dataclasses.dataclass(frozen=True)
class Control:
    """What is done with a model's result; the defaults leave it as it is.

    Attributes:
      strength: share of the change that is made, 0 (the input, bit for bit) to 1 (all of it), or
        "auto": by how dark the picture is.
      denoise: filter of the result, of `denoise.NAMES`. It takes the noise that it estimates from
        the result. "nlm" works in bands of rows, "bm3d" on the whole picture.
      protect_highlights: 0 to 1: how far bright places go back to what they were.
      tta: whether to average the results of the picture's eight flips and quarter turns
        (test-time augmentation): eight times the work, less noise.
    """

    strength: float | str = 1.0
    denoise: str = "none"
    protect_highlights: float = 0.0
    tta: bool = False

    def __post_init__(self):
        """Checks the values.

        Raises:
          InputError: one is out of range, unknown, or needs a package that is not there.
        """
        if self.strength != AUTO:
            _check("strength", self.strength, f' or "{AUTO}"')
        _check("protect_highlights", self.protect_highlights)
        if not isinstance(self.tta, bool | np.bool_):
            raise InputError(f"tta is {self.tta!r}; it must be True or False")
        denoise_lib.check(self._filter)

    @property
    def _filter(self):
        return denoise_lib.default(name=self.denoise, sigma=0.0)

    def strength_for(self, pixels: np.ndarray) -> float:
        """The strength for a picture [H, W, 3] of any accepted dtype, 0 to 1."""
        if self.strength != AUTO:
            return float(self.strength)
        step = max(1, math.isqrt(pixels.shape[0] * pixels.shape[1] // _SAMPLE))
        median = float(np.median(_float(pixels[::step, ::step]) @ _LUMA))
        t = min(max((median - _DARK) / (_LIT - _DARK), 0.0), 1.0)
        return 1 - t * t * (3 - 2 * t)


def enhance(enhancer: Callable[[np.ndarray], np.ndarray], pixels: np.ndarray,
            control: Control) -> np.ndarray:
    """A picture enhanced as a `Control` says.

    Args:
      enhancer: an `Enhancer`, or another function [H, W, 3] -> the same, of any of its dtypes.
      pixels: uint8, uint16 or float in [0, 1], [H, W, 3].
      control: what to do.

    Returns:
      The same dtype and shape. With strength 0 a copy of `pixels`; with the defaults exactly what
      the enhancer returns.
    """
    strength = control.strength_for(pixels)
    if strength == 0:
        return pixels.copy()
    return mix(pixels, average(enhancer, pixels) if control.tta else enhancer(pixels), control)


def average(enhancer: Callable[[np.ndarray], np.ndarray], pixels: np.ndarray) -> np.ndarray:
    """The mean of the results of a picture's eight flips and quarter turns.

    They are summed in 32 bit before any rounding, which takes 36 bytes a pixel.

    Args:
      enhancer: as for `enhance`.
      pixels: [H, W, 3] of any accepted dtype.

    Returns:
      float32 [H, W, 3] in [0, 1].
    """
    pixels, total = _float(pixels), np.zeros(pixels.shape, np.float32)
    for turns in range(4):
        for flip in (1, -1):
            seen = np.ascontiguousarray(np.rot90(pixels, turns)[:, ::flip])
            total += np.rot90(enhancer(seen)[:, ::flip], -turns)
    total /= 8
    return total


def mix(pixels: np.ndarray, enhanced: np.ndarray, control: Control) -> np.ndarray:
    """A picture and its enhanced one, denoised and mixed as a `Control` says.

    It works in bands of rows: beside the result little memory is needed ("bm3d": some 60 bytes a
    pixel).

    Args:
      pixels: uint8, uint16 or float in [0, 1], [H, W, 3].
      enhanced: [H, W, 3] of the same dtype, or float32 in [0, 1].
      control: what to do; its `tta` has been done.

    Returns:
      [H, W, 3] of the dtype of `pixels`.
    """
    strength = control.strength_for(pixels)
    if strength == 0:
        return pixels.copy()
    same = strength == 1 and not control.protect_highlights and control.denoise == "none"
    if same and enhanced.dtype == pixels.dtype:
        return enhanced
    config, sigma, halo = control._filter, 0.0, 0
    if control.denoise != "none" and (sigma := _noise(enhanced)):
        config.sigma = sigma
        halo = denoise_lib.halo(config)
    result = np.empty_like(pixels)

    def work(rows: slice):
        low, high = _float(pixels[rows]), _float(enhanced[rows])
        luma = (low @ _LUMA)[..., None]
        if sigma:
            high = high + (1 - luma) * (_filtered(config, enhanced, rows, halo) - high)
        share = strength * (1 - control.protect_highlights * luma**2)
        result[rows] = _as(low + share * (high - low), pixels.dtype)

    bands = list(_bands(pixels, whole=halo is None))
    with ThreadPoolExecutor(_THREADS if sigma else 1) as pool:
        list(pool.map(work, bands))
    return result


def _check(name: str, value: float | str, other: str = "") -> None:
    if not isinstance(value, numbers.Real) or not 0 <= value <= 1:
        raise InputError(f"{name} is {value!r}; it must be a number from 0 to 1{other}")


def _float(pixels: np.ndarray) -> np.ndarray:
    return (images.to_float(pixels) if pixels.dtype.kind == "u"
            else pixels.astype(np.float32, copy=False))


def _as(pixels: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Float pixels in the user's dtype, as `enhancer.finish`."""
    return images.to_uint(pixels, dtype) if dtype.kind == "u" else pixels.clip(0, 1).astype(dtype)


def _bands(pixels: np.ndarray, whole: bool) -> Iterator[slice]:
    """Slices of rows that are all of a picture [H, W, 3]."""
    height, width = pixels.shape[:2]
    step = height if whole else max(1, _BAND // width)
    for start in range(0, height, step):
        yield slice(start, min(start + step, height))


def _noise(enhanced: np.ndarray) -> float:
    """The noise of a picture, estimated from pairs of rows spread over it."""
    pairs = enhanced.shape[0] // 2
    step = max(1, enhanced.shape[0] * enhanced.shape[1] // (4 * _SAMPLE))
    rows = (2 * np.arange(0, pairs, step)[:, None] + [0, 1]).ravel()
    return denoise_lib.noise(_float(enhanced[rows]))


def _filtered(config, enhanced: np.ndarray, rows: slice, halo: int | None) -> np.ndarray:
    """The filtered picture's `rows`; the filter sees `halo` more on either side, or all."""
    if halo is None:
        return denoise_lib.filtered(config, _float(enhanced)).clip(0, 1).astype(np.float32)
    first = max(0, rows.start - halo)
    seen = denoise_lib.filtered(config, _float(enhanced[first:rows.stop + halo]))
    return seen[rows.start - first:rows.stop - first].astype(np.float32)
