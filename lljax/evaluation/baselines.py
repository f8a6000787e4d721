"""What a system has to beat: doing nothing, one fixed curve, and what needs no training.

All are functions uint8 RGB [H, W, 3] -> uint8 of the same size, on the host.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps
from scipy.ndimage import uniform_filter

from lljax import images
from lljax.evaluation.appearance import GREY


def identity(picture: np.ndarray) -> np.ndarray:
    """The picture as it is: uint8 [H, W, 3] -> the same."""
    return picture


def gamma(exponent: float) -> Callable[[np.ndarray], np.ndarray]:
    """A function uint8 [H, W, 3] -> uint8, rounded 255 (x / 255)^exponent; below 1 brightens."""
    table = np.round(255 * (np.arange(256) / 255) ** exponent).astype(np.uint8)
    return lambda picture: table[picture]


def histogram_equalisation(picture: np.ndarray) -> np.ndarray:
    """Equalises the histogram of luma (Y of YCbCr, BT.601), by Pillow; Cb and Cr stay."""
    luma, *chroma = Image.fromarray(picture).convert("YCbCr").split()
    return np.asarray(Image.merge("YCbCr", [ImageOps.equalize(luma), *chroma]).convert("RGB"))


def clahe(picture: np.ndarray, tiles: int = 8, clip: float = 2.0) -> np.ndarray:
    """Contrast-limited adaptive histogram equalisation of luma (Y of YCbCr); Cb and Cr stay.

    With OpenCV's meaning of the two parameters and its arithmetic: each tile's histogram is cut
    off at `clip` times its mean, what is cut off is spread over all levels, and a pixel's new
    level is interpolated between the four nearest tiles'.

    Source: Zuiderveld 1994, "Contrast limited adaptive histogram equalization".

    Args:
      picture: uint8 [H, W, 3].
      tiles: along each side.
      clip: limit as a multiple of a histogram's mean; above 0.
    """
    luma, *chroma = Image.fromarray(picture).convert("YCbCr").split()
    equal = Image.fromarray(_clahe(np.asarray(luma), tiles, clip))
    return np.asarray(Image.merge("YCbCr", [equal, *chroma]).convert("RGB"))


def _clahe(plane: np.ndarray, tiles: int, clip: float) -> np.ndarray:
    height, width = plane.shape
    # A side that is no multiple gets the next one; both get it as soon as one needs it.
    whole = height % tiles == 0 and width % tiles == 0
    rows, columns = (side // tiles + (not whole) for side in plane.shape)
    below, right = rows * tiles - height, columns * tiles - width
    padded = images.pad(plane[..., None], below, right)[..., 0]
    blocks = padded.reshape(tiles, rows, tiles, columns).swapaxes(1, 2).reshape(tiles**2, -1)
    counts = np.zeros((tiles**2, 256), np.int64)
    np.add.at(counts, (np.arange(tiles**2)[:, None], blocks), 1)
    counts = _clipped(counts, max(1, int(clip * rows * columns / 256)))
    tables = np.rint(counts.cumsum(1) * np.float32(255 / (rows * columns))).clip(0, 255)
    tables = tables.astype(np.float32).reshape(tiles, tiles, 256)

    def between(size: int, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        # In tiles from the middle of the first; 32 bits, or ties would round unlike OpenCV's.
        at = np.arange(size, dtype=np.float32) * np.float32(1 / side) - np.float32(0.5)
        first = np.floor(at).astype(int)
        return first.clip(0), (first + 1).clip(None, tiles - 1), at - np.float32(first)

    top, bottom, down = between(height, rows)
    left, right_, along = between(width, columns)
    down, along = down[:, None], along[None]

    def level(row: np.ndarray, column: np.ndarray) -> np.ndarray:
        return tables[row[:, None], column[None], plane]

    mixed = ((level(top, left) * (1 - along) + level(top, right_) * along) * (1 - down)
             + (level(bottom, left) * (1 - along) + level(bottom, right_) * along) * down)
    return np.rint(mixed).clip(0, 255).astype(np.uint8)


def _clipped(counts: np.ndarray, limit: int) -> np.ndarray:
    """Histograms [n, 256] cut off at `limit`, the rest spread over all levels."""
    excess = (counts - limit).clip(0).sum(1)
    counts = counts.clip(None, limit) + (excess // 256)[:, None]
    for row, left in zip(counts, excess % 256, strict=True):
        if left:  # what cannot be shared evenly, at equal steps from level 0
            row[:: max(256 // left, 1)][:left] += 1
    return counts


def lime(picture: np.ndarray, radius: int = 15, epsilon: float = 1e-3,
         exponent: float = 0.8) -> np.ndarray:
    """Divides by an illumination: LIME with a guided filter in place of its optimisation.

    Illumination is the largest of R, G and B at each pixel, smoothed along the edges of the grey
    picture and raised to `exponent`, as in the paper. Its structure-aware optimisation is replaced
    by a guided filter, which takes 1 % of the time, and the denoising afterwards is left out.

    Source: Guo et al. 2017, "LIME: low-light image enhancement via illumination map estimation",
    equations 2 and 3; He et al. 2013, "Guided image filtering", equations 5, 6 and 8.

    Args:
      picture: uint8 [H, W, 3].
      radius: of the guided filter's box, px.
      epsilon: of the guided filter; edges of less contrast than its root are smoothed, in [0, 1].
      exponent: of the illumination; 1.0 takes all of it away.
    """
    scaled = picture / 255
    smooth = _guided(scaled @ GREY, scaled.max(2), radius, epsilon).clip(1 / 255, 1)
    bright = scaled / (smooth**exponent)[..., None]
    return np.rint(bright.clip(0, 1) * 255).astype(np.uint8)


def _guided(guide: np.ndarray, plane: np.ndarray, radius: int, epsilon: float) -> np.ndarray:
    def mean(x: np.ndarray) -> np.ndarray:
        return uniform_filter(x, 2 * radius + 1, mode="nearest")

    mean_guide, mean_plane = mean(guide), mean(plane)
    slope = ((mean(guide * plane) - mean_guide * mean_plane)
             / (mean(guide**2) - mean_guide**2 + epsilon))
    return mean(slope) * guide + mean(mean_plane - slope * mean_guide)


BASELINES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "identity": identity,
    "gamma 0.4": gamma(0.4),
    "gamma 0.5": gamma(0.5),
    "HE": histogram_equalisation,
    "CLAHE": clahe,
    "LIME-style": lime,
}
