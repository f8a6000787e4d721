"""The built-in demo set: 24 free photographs and a camera model that takes them in the dark.

The references are real photographs (LICENSES.md names the origin of each); the low-light pictures
are simulated from them, so a score on this set says that a program works, not how it ranks on
real low light.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from lljax.errors import InputError, unknown

FOLDER = Path(__file__).parent

# Split by photograph: no scene is on both sides.
SPLITS = {
    "train": (
        "aqueduct", "astronaut", "cathedral", "drums", "horses", "kingfisher", "kitten", "lemur",
        "meadow", "moose", "museum", "musicians", "osprey", "otter", "pika", "red_panda",
        "river_castle", "wall",
    ),
    "test": ("castle", "cat", "coffee", "gallery", "lake", "tourist"),
}

# exposure, gamma, read_noise, full_well of `darken`. A low `full_well` stands for a high ISO.
VARIANTS = {
    "evening": (0.11, 1.10, 4.0, 6000.0),
    "lamp": (0.08, 1.15, 5.0, 3500.0),
    "candle": (0.06, 1.30, 5.0, 4500.0),
    "night": (0.035, 1.05, 4.0, 2500.0),
}

_MAX_ELECTRONS = 20_000  # the tables of `_thresholds` grow with the brightest electron count


def names(split: str) -> tuple[str, ...]:
    """The photographs of a split, e.g. ("castle", "cat", ...), sorted.

    Raises:
      InputError: (a ValueError) `split` is neither "train" nor "test".
    """
    if split not in SPLITS:
        raise unknown("split of the demo set", split, SPLITS)
    return SPLITS[split]


def _decode(encoded: np.ndarray) -> np.ndarray:
    """Code value / 255 -> linear light, both [0, 1] (IEC 61966-2-1)."""
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


@functools.lru_cache(maxsize=16)
def _thresholds(exposure: float, gamma: float, read_noise: float, full_well: float) -> np.ndarray:
    """uint64 [256, 255]: (value in << 32) + 2^32 P(value out < c) for c = 1 ... 255."""
    light = exposure * _decode(np.arange(256) / 255)  # of each value in, as a share of full well
    # The least light that rounds to the value c: 255 encode(light)^gamma = c - 1/2.
    edge = _decode(((np.arange(1, 256) - 0.5) / 255) ** (1 / gamma))
    if math.isinf(full_well):
        below = (light[:, None] < edge).astype(np.float64)
    else:
        mean = light * full_well
        count = np.arange(int(mean[-1] + 12 * math.sqrt(mean[-1]) + 20))
        log_factorial = np.cumsum(np.log(np.maximum(count, 1)))
        # Poisson(count; mean); a mean of 0 puts all on count 0 (exp(-1e300) = 0).
        log_mean = np.log(mean, out=np.full(256, -1e300), where=mean > 0)
        shot = np.exp(count * log_mean[:, None] - mean[:, None] - log_factorial)
        gap = edge * full_well - count[:, None]  # [count, edge]
        if read_noise:
            z = np.clip(gap / (read_noise * math.sqrt(2)), -6, 6)
            read = 0.5 + 0.5 * np.frompyfunc(math.erf, 1, 1)(z).astype(np.float64)
        else:
            read = (gap > 0).astype(np.float64)
        below = np.clip(shot @ read / shot.sum(1, keepdims=True), 0, 1)
    below = np.maximum.accumulate(below, axis=1)
    row = np.arange(256, dtype=np.uint64)[:, None] << 32
    return row + np.rint(below * 2**32).astype(np.uint64)


def darken(high: np.ndarray, exposure: float, gamma: float, read_noise: float, full_well: float,
           rng: np.random.Generator) -> np.ndarray:
    """The picture that a camera would have taken with less light.

    Per pixel and channel, independently, with y the linear light of `high` (1 = white):

        electrons = Poisson(full_well * exposure * y) + Normal(0, read_noise)
        low = round(255 * srgb(clip(electrons / full_well, 0, 1)) ** gamma)

    With 256 values in and 256 out that law is one table, computed in float64 and rounded to 2^-32;
    each pixel inverts its row at one 32-bit random number. A last-bit difference of `exp` between
    machines is lost in that rounding, where it would put the rejection loops of `rng.poisson` and
    `rng.normal` out of step for the rest of the picture.

    Not modelled: demosaicking and denoising (which make real noise coarser and tie the channels
    together), white balance, fixed-pattern noise, lens blur.

    Args:
      high: uint8 [H, W, 3], sRGB.
      exposure: light reaching the sensor relative to `high`, (0, 1].
      gamma: tone curve on the encoded value in [0, 1]; 1 = plain sRGB, more darkens.
      read_noise: standard deviation of the read noise, electrons, >= 0.
      full_well: electrons at white, > 0; `math.inf` = no noise at all.
      rng: with a PCG64 bit generator, as `np.random.default_rng(seed)` has.

    Returns:
      uint8 [H, W, 3].

    Raises:
      InputError: (a ValueError) an argument is outside its range.

    Source: the Poisson-Gaussian sensor model, Foi et al., "Practical Poissonian-Gaussian noise
      modeling and fitting for single-image raw-data", IEEE TIP 17(10), 2008.
    """
    if high.dtype != np.uint8 or high.ndim != 3 or high.shape[2] != 3:
        raise InputError(f"high must be uint8 [H, W, 3], not {high.dtype} {list(high.shape)}")
    electrons = full_well * exposure  # at white
    for name, value, fine, limit in (
            ("exposure", exposure, 0 < exposure <= 1, "above 0 and up to 1"),
            ("gamma", gamma, 0 < gamma < math.inf, "above 0 (1 = plain sRGB)"),
            ("read_noise", read_noise, 0 <= read_noise < math.inf, "of 0 or more electrons"),
            ("full_well * exposure", electrons, 0 < electrons <= _MAX_ELECTRONS
             or electrons == math.inf, f"up to {_MAX_ELECTRONS} electrons, or inf for no noise")):
        if not fine:
            raise InputError(f"{name} is {value}; give a value {limit}")
    if not isinstance(rng.bit_generator, np.random.PCG64):
        raise InputError(f"rng draws from {type(rng.bit_generator).__name__}, whose words are not "
                         "known to be 64 random bits; use np.random.default_rng(seed)")
    table = _thresholds(float(exposure), float(gamma), float(read_noise), float(full_well))
    # random_raw is the one stream that NumPy promises to keep; two pixels share its 64 bits.
    raw = rng.bit_generator.random_raw((high.size + 1) // 2).astype("<u8", copy=False)
    uniform = raw.view("<u4")[:high.size].reshape(high.shape)
    # value out = how many thresholds of the value's row are <= uniform. Rows do not overlap, so
    # one search of the whole table finds it, behind 255 thresholds for every darker row.
    position = np.searchsorted(table.ravel(), (high.astype(np.uint64) << 32) + uniform, "right")
    return (position - 255 * high.astype(np.int64)).astype(np.uint8)


class Records(Sequence):
    """Pairs of a split, made when asked for: every photograph under every one of `VARIANTS`.

    Item [i] is {"name": str, "low": uint8 [H, W, 3], "high": uint8 [H, W, 3]} with names such as
    "cat_night". The noise depends on the name alone, so a pair is the same on every visit.
    """

    def __init__(self, split: str):
        """As `records`."""
        self._items = tuple(itertools.product(names(split), VARIANTS))

    def __len__(self) -> int:
        """Photographs times variants."""
        return len(self._items)

    def __getitem__(self, index: int) -> dict:
        """The pair at `index`, an integer; IndexError beyond the ends."""
        name, variant = self._items[index]
        with Image.open(FOLDER / f"{name}.jpg") as file:
            high = np.asarray(file.convert("RGB"))
        seed = zlib.crc32(f"{name}/{variant}".encode())
        rng = np.random.Generator(np.random.PCG64(seed))
        return {"name": f"{name}_{variant}", "low": darken(high, *VARIANTS[variant], rng),
                "high": high}


def records(split: str) -> Records:
    """The pairs of "train" or "test" (InputError, a ValueError, otherwise); see `Records`."""
    return Records(split)


def write(folder: str | os.PathLike, split: str) -> int:
    """Writes a split's pairs as folder/low/NAME.png and folder/high/NAME.png.

    Args:
      folder: made if missing; files of the same names are replaced.
      split: "train" | "test"; InputError (a ValueError) otherwise.

    Returns:
      The number of pairs.
    """
    pairs = records(split)
    for role in ("low", "high"):
        (Path(folder) / role).mkdir(parents=True, exist_ok=True)
    for pair in pairs:
        for role in ("low", "high"):
            Image.fromarray(pair[role]).save(Path(folder) / role / f"{pair['name']}.png")
    return len(pairs)
