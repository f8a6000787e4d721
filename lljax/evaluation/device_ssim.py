"""SSIM with the usual Gaussian window, by dm-pix on the device, in float64.

In float32, which JAX computes in unless told, SSIM is off by up to 1.3e-4 where a picture is flat
and bright: a variance is a difference of squares. In float64 it equals scikit-image's to 1e-12.

A picture goes to the device in blocks whose sides come from a short list, so that a folder of
pictures of all sizes needs few programs and a large picture little memory.
"""

from __future__ import annotations

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np

from lljax.evaluation.metrics import PEAK, SIGMA, WINDOW

_STEP = 32  # windows; a block's sides are multiples of it
_LARGEST = 1024  # windows, longest side of a block


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
        for c in range(channels):  # one at a time, for less memory
            for top in range(0, rows, _LARGEST):
                for left in range(0, columns, _LARGEST):
                    inside = min(rows - top, _LARGEST), min(columns - left, _LARGEST)
                    blocks = (_block(p[..., c], top, left, inside) for p in (a, b))
                    total += float(_sum(*blocks, *inside))
    return total / (rows * columns * channels)


def _block(plane: np.ndarray, top: int, left: int, inside: tuple[int, int]) -> np.ndarray:
    """The pixels of inside[0] x inside[1] windows, and zeros up to the next size of a block."""
    pixels = plane[top:top + inside[0] + WINDOW - 1, left:left + inside[1] + WINDOW - 1]
    return np.pad(pixels, [(0, -count % _STEP) for count in inside])


@jax.jit
def _sum(a: jax.Array, b: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Sum of SSIM over the first rows x columns windows of a block."""
    values = dm_pix.ssim(a[..., None], b[..., None], max_val=PEAK, filter_size=WINDOW,
                         filter_sigma=SIGMA, return_map=True)[..., 0]
    inside = (jnp.arange(values.shape[0]) < rows)[:, None] & (jnp.arange(values.shape[1]) < columns)
    return jnp.sum(values, where=inside)
