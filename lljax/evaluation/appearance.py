"""How a picture looks, with little or no reference: order of lightness, brightness, cast, noise.

Every function takes pictures that `metrics.check` has passed: uint8 RGB [H, W, 3].
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image
from scipy.ndimage import correlate1d

GREY = np.array([0.299, 0.587, 0.114])  # BT.601 luma of RGB, in this order
LOE_SIDE = 50  # px, shorter side of what the order of lightness is compared on


def mean_grey(picture: np.ndarray, weights: np.ndarray = GREY) -> float:
    """Mean over the pixels of the weighted sum of red, green and blue: grey levels."""
    return float((picture.mean((0, 1), dtype=np.float64) * weights).sum())


def brightness(enhanced: np.ndarray, reference: np.ndarray) -> float:
    """Mean grey of the output over that of the reference; 1 is right, below 1 too dark.

    A black reference gives inf, unless the output is black too (1).
    """
    ours, theirs = mean_grey(enhanced), mean_grey(reference)
    if theirs:
        return ours / theirs
    return math.inf if ours else 1.0


def cast(enhanced: np.ndarray, reference: np.ndarray | None) -> float:
    """Angle in degrees between the mean colours (R, G, B) of the output and of the reference.

    0 is the same hue and saturation on average, whatever the brightness. Without a reference the
    angle is that to grey, which a scene that is colourful on average has too. A black picture
    counts as grey.
    """
    a, b = (np.ones(3) if picture is None or not picture.any()
            else picture.mean((0, 1), dtype=np.float64) for picture in (enhanced, reference))
    # Not the arc cosine, which has no digits left at small angles.
    return math.degrees(math.atan2(float(np.linalg.norm(np.cross(a, b))), float(a @ b)))


def noise(enhanced: np.ndarray) -> float:
    """Estimated standard deviation of the noise in grey levels, mean over channels.

    The mean absolute value of a filter that is blind to planes and to straight edges along the
    axes. Fine texture counts as noise, so compare outputs of one scene only. (The estimate from
    wavelet medians in `lljax.denoise` moves in steps of 0.7 levels on 8-bit pictures.)

    Source: Immerkaer 1996, "Fast noise variance estimation", equation 5.
    """
    filtered = enhanced.astype(np.float64)
    for axis in (0, 1):
        filtered = correlate1d(filtered, [1.0, -2.0, 1.0], axis=axis)
    return float(np.abs(filtered[1:-1, 1:-1]).mean()) * math.sqrt(math.pi / 2) / 6


def loe(enhanced: np.ndarray, low: np.ndarray) -> float:
    """Lightness order error: how many pixels swap order with a pixel, mean over pixels.

    Lightness is the largest of R, G and B. Both pictures are first shrunk so that the shorter
    side is 50 px (smaller ones are left alone) by cubic filtering of 8-bit values, Pillow's,
    which is MATLAB's `imresize` but for the border: the value grows with the number of pixels,
    and programs that shrink another way, to 100 px, or pick single pixels, print other numbers.

    Source: Wang et al. 2013, "Naturalness preserved enhancement algorithm for non-uniform
    illumination images", equations 24 to 26.

    Args:
      enhanced: uint8 [H, W, 3].
      low: the input of the same size.
    """
    ours, theirs = _lightness(enhanced), _lightness(low)
    joint = np.zeros((256, 256))  # 8 bits: pairs of pixels need no loop, pairs of levels do
    np.add.at(joint, (theirs.ravel(), ours.ravel()), 1)
    below = joint.cumsum(0).cumsum(1)  # pixels not lighter in both, by the pixel's two levels
    differ = below[:, -1:] + below[-1:, :] - 2 * below
    return float((joint * differ).sum() / ours.size)


def _lightness(picture: np.ndarray) -> np.ndarray:
    lightness = picture.max(2)
    height, width = lightness.shape
    scale = LOE_SIDE / min(height, width)
    if scale >= 1:
        return lightness
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(lightness).resize(size, Image.Resampling.BICUBIC))
