"""SSIM with the usual Gaussian window, by dm-pix on the device, in float64.

In float32, which JAX computes in unless told, SSIM is off by up to 1.3e-4 where a picture is flat
and bright: a variance is a difference of squares. In float64 it equals scikit-image's to 1e-12.

A picture goes to the device in blocks whose sides come from a short list, so that a large picture
needs little memory and a folder of pictures of all sizes few programs: 64 at most, 9 where every
side is over 350 px. Small blocks are faster too: they stay in a processor's cache.
"""

from __future__ import annotations

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np

from lljax.evaluation.metrics import PEAK, SIGMA, WINDOW

_LARGEST = 256  # windows, longest side of a block
_STEP = 32  # windows; a block's sides are multiples of it


def has_float64() -> bool:
    """Whether the default device has float64; a TPU lacks its convolutions, others lack it all."""
    return jax.default_backend() in ("cpu", "gpu")


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over channels and over all windows inside the picture; at most 1.

    Args:
      a: float64 [H, W, C] or [H, W], 0 to `PEAK`, each side at least `WINDOW`.
      b: the same shape.
    """
    if a.ndim == 2:
        a, b = a[..., None], b[..., None]
    height, width, channels = a.shape
    rows, columns = height - WINDOW + 1, width - WINDOW + 1  # windows that lie inside
    total = 0.0
    with jax.enable_x64(True):
        for top, most_rows in _cuts(rows):
            for left, most_columns in _cuts(columns):
                for c in range(channels):
                    blocks = (_block(p[..., c], top, left, most_rows, most_columns) for p in (a, b))
                    total += float(_sum(*blocks, rows - top, columns - left))
    return total / (rows * columns * channels)


def _cuts(count: int) -> list[tuple[int, int]]:
    """Starts and equal lengths of the parts of a side of `count` windows; the last overhangs."""
    parts = -(-count // _LARGEST)
    length = -(-count // (parts * _STEP)) * _STEP
    return [(start, length) for start in range(0, count, length)]


def _block(plane: np.ndarray, top: int, left: int, rows: int, columns: int) -> np.ndarray:
    """The pixels of rows x columns windows, with zeros where they overhang the picture."""
    block = np.zeros((rows + WINDOW - 1, columns + WINDOW - 1))
    pixels = plane[top:top + block.shape[0], left:left + block.shape[1]]
    block[:pixels.shape[0], :pixels.shape[1]] = pixels
    return block


@jax.jit
def _sum(a: jax.Array, b: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Sum of SSIM over the windows of a block that are among the first rows x columns."""
    values = dm_pix.ssim(a[..., None], b[..., None], max_val=PEAK, filter_size=WINDOW,
                         filter_sigma=SIGMA, return_map=True)[..., 0]
    inside = (jnp.arange(values.shape[0]) < rows)[:, None] & (jnp.arange(values.shape[1]) < columns)
    return jnp.sum(values, where=inside)
