"""Diffusion models: noise schedule, sampling steps, and sampling over tiles. Functions only.

Source: Ho et al., NeurIPS 2020 (DDPM); Song et al., ICLR 2021 (DDIM); the details where programs
differ are those of LightenDiffusion's (Jiang et al., ECCV 2024).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lljax.errors import InputError

Array = jax.Array


def linear_betas(total: int = 1000, first: float = 1e-4, last: float = 0.02) -> np.ndarray:
    """Variances of the noise that each step adds, evenly spaced.

    Args:
      total: number of steps, >= 1.
      first: variance of the first step, in (0, 1).
      last: of the last step, in (0, 1).

    Returns:
      float32 [total], rounded from float64 as the official programs do.

    Raises:
      InputError: a number outside its range.

    Source: Ho et al., section 4.
    """
    if total < 1 or not 0 < first < 1 or not 0 < last < 1:
        raise InputError(f"a noise schedule of {total} steps with variances {first} to {last}: "
                         "steps must be 1 or more and variances between 0 and 1")
    return np.linspace(first, last, total, dtype=np.float64).astype(np.float32)


def alpha_bars(betas: np.ndarray) -> np.ndarray:
    """Share of the picture's variance that is left after each step, float32 [T].

    Args:
      betas: float32 [T], e.g. of `linear_betas`.

    Source: Ho et al., eq. 4.
    """
    # alpha_bar_t = prod_{s <= t} (1 - beta_s): float32 factors, and torch multiplies in float64
    kept = np.float32(1) - np.asarray(betas, np.float32)
    return np.cumprod(kept, dtype=np.float64).astype(np.float32)


def ddim_times(total: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The times that a sampler of few steps visits.

    Args:
      total: steps of the schedule.
      steps: steps of the sampler, 1 to `total`.

    Returns:
      (times, following): int32 [steps] each. Times fall from floor((steps - 1) total / steps) to
      0 and are as even as whole numbers can be; each one's following is the next, and -1 (no
      noise left) the last one's.

    Raises:
      InputError: `steps` outside its range.

    Source: Song et al., appendix D.2, linear. The official program steps by total // steps, which
      is the same where that divides evenly, and takes more than `steps` elsewhere.
    """
    if not 1 <= steps <= total:
        raise InputError(f"{steps} sampling steps: must be 1 to {total}, the steps of the noise "
                         "schedule")
    times = (np.arange(steps, dtype=np.int64) * total // steps)[::-1].astype(np.int32)
    return times, np.append(times[1:], np.int32(-1))


def q_sample(x0: Array, noise: Array, alpha_bar: Array) -> Array:
    """A noisy picture x_t.

    Args:
      x0: [B, h, w, C], in [-1, 1].
      noise: the same shape, standard normal.
      alpha_bar: `alpha_bars` at time t, a scalar or [B].

    Raises:
      ValueError: shapes disagree.

    Source: Ho et al., eq. 4.
    """
    alpha_bar = jnp.asarray(alpha_bar)
    if x0.shape != noise.shape or alpha_bar.shape not in ((), x0.shape[:1]):
        raise ValueError(f"q_sample: x0 {x0.shape} and noise {noise.shape} must agree, and "
                         f"alpha_bar {alpha_bar.shape} be a scalar or one an image")
    alpha_bar = alpha_bar.reshape(-1, *(1,) * (x0.ndim - 1))
    # sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) e
    return jnp.sqrt(alpha_bar) * x0 + jnp.sqrt(1 - alpha_bar) * noise


def antithetic_times(key: Array, index: Array, count: int, total: int) -> Array:
    """Random times of a batch in which times t and total - 1 - t come in pairs.

    An image's time depends on the key, its place and `count` only, so every device and
    micro-batch finds its own images' times.

    Args:
      key: one key for the whole batch, equal on all devices.
      index: int [b], places of some images in the global batch, 0 to count - 1.
      count: images in the global batch.
      total: steps of the schedule.

    Returns:
      int32 [b], 0 to total - 1.

    Source: the official programs of Song et al. and Jiang et al.: of d = count // 2 + 1 draws t',
      the first `count` of [t', total - 1 - t'].
    """
    draws = count // 2 + 1
    slot = index % draws
    drawn = jax.vmap(lambda k: jax.random.randint(jax.random.fold_in(key, k), (), 0, total))(slot)
    return jnp.where(index < draws, drawn, total - 1 - drawn)


def timestep_embedding(t: Array, dim: int) -> Array:
    """Sines, then cosines of the times multiplied by frequencies from 1 down to 1/10000.

    Args:
      t: [B], times.
      dim: even, 4 or more.

    Returns:
      float32 [B, dim].

    Raises:
      InputError: another `dim`.

    Source: Vaswani et al., NeurIPS 2017, section 3.5, but not interleaved and with 1/10000
      reached, as in the official programs of Ho et al. and their successors.
    """
    if dim < 4 or dim % 2:
        raise InputError(f"a timestep embedding of {dim} numbers: must be even and 4 or more")
    half = dim // 2
    # w_i = 10000^(-i / (half - 1))
    frequencies = np.exp(-math.log(1e4) / (half - 1) * np.arange(half)).astype(np.float32)
    angles = t.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)


def ddim_sample(predict: Callable[[Array, Array], Array], noise: Array, alpha_bars: np.ndarray,
                steps: int, *, eta: float = 0.0, key: Array | None = None,
                checkpoint: bool = False) -> tuple[Array, Array]:
    """Samples by few steps of a model trained with many.

    Args:
      predict: (x [B, h, w, C], t int32 [B]) -> the noise in x, [B, h, w, C].
      noise: where sampling starts, standard normal, [B, h, w, C].
      alpha_bars: the schedule, on the host, [T].
      steps: see `ddim_times`.
      eta: 0 (no randomness after `noise`) to 1 (as much as the trained chain has).
      key: for eta > 0: one key, or one an image, [B], so that an image's draws do not depend on
        the batch it is in.
      checkpoint: whether a gradient keeps only what goes into each step and computes the step
        again: memory of one step instead of all.

    Returns:
      (x [B, h, w, C], x0s [steps, B, h, w, C]): the sample, and at each step the clean picture
      that it foresees, which nothing clips. The last of them is the sample.

    Raises:
      InputError: `steps` or `eta` outside its range.
      ValueError: eta > 0 without a key.

    Source: Song et al., eq. 12 and 16. As in LightenDiffusion's program the first time is not the
      schedule's last one, though `noise` is standard normal.
    """
    if not 0 <= eta <= 1:
        raise InputError(f"eta {eta}: must be 0 to 1")
    if eta and key is None:
        raise ValueError(f"ddim_sample: eta {eta} draws noise and needs a key")
    count = noise.shape[0]
    keys = None if not eta else key if key.ndim else jax.random.split(key, count)
    times, (noise_now, signal_now, signal_next, noise_next, spread) = _coefficients(
        alpha_bars, steps, eta)

    def step(x, now):
        i, t, noise_now, signal_now, signal_next, noise_next, spread = now
        found = predict(x, jnp.full((count,), t))
        # x_0 = (x - sqrt(1 - a) e) / sqrt(a);  x' = sqrt(a') x_0 + sqrt(1 - a' - s^2) e + s n
        x0 = (x - noise_now * found) / signal_now
        x = signal_next * x0 + noise_next * found
        if eta:
            x = x + spread * jax.vmap(lambda k: jax.random.normal(
                jax.random.fold_in(k, i), x.shape[1:], x.dtype))(keys)
        return x, x0

    coefficients = (jnp.asarray(c, noise.dtype) for c in (
        noise_now, signal_now, signal_next, noise_next, spread))
    # a scan on a CPU too: `layers.convolve` has a gradient that is fast in compiled loops, and of
    # unrolled steps XLA would see that they are computed twice, and keep all of them
    return lax.scan(jax.checkpoint(step) if checkpoint else step, noise,
                    (jnp.arange(steps), jnp.asarray(times), *coefficients))


def _coefficients(alpha_bars: np.ndarray, steps: int, eta: float) -> tuple[np.ndarray, tuple]:
    """(times, what each step multiplies by), on the host and in float64."""
    times, following = ddim_times(len(alpha_bars), steps)
    a = np.asarray(alpha_bars, np.float64)
    now, after = a[times], np.where(following < 0, 1.0, a[following])
    # s = eta sqrt((1 - a') / (1 - a)) sqrt(1 - a / a')
    spread = eta * np.sqrt((1 - after) / (1 - now) * (1 - now / after))
    return times, (np.sqrt(1 - now), np.sqrt(now), np.sqrt(after),
                   np.sqrt(np.maximum(1 - after - spread ** 2, 0)), spread)


def blended(function: Callable[..., Array], arrays: Sequence[Array], tile: int,
            overlap: int) -> Array:
    """`function(*arrays)`, computed tile by tile and blended: memory is that of one tile.

    Neighbouring tiles overlap, and their weights fall smoothly to 0 at their edges and sum to 1
    everywhere. Arrays that fit in a tile are computed at once.

    Args:
      function: maps arrays [B, s, t, ...] to [B, s, t, C]; traced once for all tiles.
      arrays: each [B, h, w, ...], with the same h and w.
      tile: side of the square tiles; a side smaller than it is taken whole.
      overlap: what neighbours share at least, 0 to tile - 1. The last tile of a row or column is
        shifted inwards and shares more.

    Returns:
      [B, h, w, C]. If `tile` is a multiple of 8 (or of 4 or 2), tiles begin at multiples of it,
      except the last ones where h or w is none, so a network with strides sees one raster.

    Raises:
      InputError: `tile` and `overlap` do not fit together.
      ValueError: shapes disagree, or `function` does not keep h and w.
    """
    height, width = arrays[0].shape[1:3]
    if any(a.shape[:3] != arrays[0].shape[:3] for a in arrays):
        raise ValueError(f"blended: arrays {[a.shape for a in arrays]} must agree in their first "
                         "three axes")
    raster = math.gcd(tile, 8)
    if tile < 1 or not 0 <= overlap <= tile - raster:
        raise InputError(f"tiles of {tile} with an overlap of {overlap}: the overlap must be 0 to "
                         f"{max(tile - raster, 0)}, which is a tile less the raster of {raster}")
    if height <= tile and width <= tile:
        return function(*arrays)
    rows, row_weights = _tiles(height, tile, overlap)
    columns, column_weights = _tiles(width, tile, overlap)
    sides = row_weights.shape[1], column_weights.shape[1]

    def cut(a, row, column):
        return lax.dynamic_slice(a, (0, row, column, *(0,) * (a.ndim - 3)),
                                 (len(a), *sides, *a.shape[3:]))

    of_tile = jax.eval_shape(lambda *a: function(*(cut(x, 0, 0) for x in a)), *arrays)
    if of_tile.ndim != 4 or of_tile.shape[1:3] != sides:
        raise ValueError(f"blended: of a tile of {sides} px the function made {of_tile.shape}; it "
                         "must keep height and width, [B, h, w, C]")

    def add(out, place):
        i, j = place
        row, column = jnp.asarray(rows)[i], jnp.asarray(columns)[j]
        weights = (jnp.asarray(row_weights, out.dtype)[i][:, None, None]
                   * jnp.asarray(column_weights, out.dtype)[j][:, None])
        made = weights * function(*(cut(a, row, column) for a in arrays))
        return lax.dynamic_update_slice(out, cut(out, row, column) + made, (0, row, column, 0)), ()

    places = np.indices((len(rows), len(columns))).reshape(2, -1)
    out = jnp.zeros((len(arrays[0]), height, width, of_tile.shape[3]), of_tile.dtype)
    return lax.scan(add, out, tuple(map(jnp.asarray, places)))[0]


@functools.cache
def _tiles(side: int, tile: int, overlap: int) -> tuple[np.ndarray, np.ndarray]:
    """(where tiles begin [n], weights along them [n, min(tile, side)]) of one axis."""
    if side <= tile:
        return np.zeros(1, np.int32), np.ones((1, side))
    raster = math.gcd(tile, 8)
    stride = (tile - overlap) // raster * raster
    begins = np.append(np.arange(0, side - tile, stride), side - tile).astype(np.int32)
    # sin^2 over the overlap: it and its mirror image sum to 1, the rest of the sum is divided out
    distance = np.minimum(np.arange(tile), np.arange(tile)[::-1]) + 0.5
    weights = np.sin(np.pi / 2 * np.minimum(distance / max(overlap, 1), 1)) ** 2
    total = np.zeros(side)
    for begin in begins:
        total[begin:begin + tile] += weights
    return begins, np.stack([weights / total[begin:begin + tile] for begin in begins])
