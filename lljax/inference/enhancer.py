"""Any method on pictures of any size and depth.

A *local* method (`halo` pixels of sight) runs on overlapping tiles of a few fixed sizes: a tile at
the picture's border sits exactly on it, so that networks pad with zeros where they would anyway,
and a tile's inner edges lose `halo` pixels. Every pixel then equals that of the whole picture (to
float rounding), mixed sizes compile a handful of programs, memory is bounded, and on a CPU the
activations stay in the cache and one tile runs on each core. Other methods see the whole picture,
padded to their `multiple`.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from lljax import config as config_lib
from lljax import images, weights
from lljax import method as method_lib
from lljax.errors import InputError, unknown

# Sides of tiles in pixels, and what starting one costs beside its own pixels (as pixels of its
# side). The CPU's were chosen by measurement: from 64 to 176 the time a pixel is nearly flat, above
# it the activations leave the cache; these four keep tiles over mixed sizes within 30 % of no
# overlap at all. An accelerator wants fewer and larger ones.
_CPU_SIDES, _CPU_START = (64, 112, 144, 176), 4
_ACCELERATOR_SIDES, _ACCELERATOR_START = (128, 256, 512, 768), 64
_CPU_HALO = 8  # the sides suit a halo of at most this; a larger one scales them, and takes more of
_BETWEEN = 3  # them, as many between two: its overlap costs more than another compilation
_SLACK = 1e-3  # floats may leave [0, 1] by so much: resampling rounds


class _Span(NamedTuple):
    """A tile along one axis: the network sees `side` pixels from `start`, `first`..`last` stay."""

    start: int
    side: int
    first: int
    last: int

    def seen(self) -> slice:
        """What the network sees, in the picture."""
        return slice(self.start, self.start + self.side)

    def kept(self, scale: int = 1) -> slice:
        """What is kept, in the picture, `scale` times smaller."""
        return slice(self.first // scale, self.last // scale)

    def inner(self, scale: int = 1) -> slice:
        """What is kept, in the tile, `scale` times smaller."""
        return slice((self.first - self.start) // scale, (self.last - self.start) // scale)


class _Tile(NamedTuple):
    rows: _Span
    columns: _Span

    @classmethod
    def of(cls, pixels: np.ndarray) -> _Tile:
        """The whole of [H, W, C]."""
        return cls(*(_Span(0, side, 0, side) for side in pixels.shape[:2]))

    def whole(self, pixels: np.ndarray) -> bool:
        """Whether it is all of [H, W, C]."""
        return self == _Tile.of(pixels)


class Enhancer:
    """A method and its networks, ready for pictures.

    Calling it enhances a picture. The pictures of a batch are enhanced one by one with the same
    random key, so a picture's result does not depend on its neighbours.

    Attributes:
      compile_seconds: time spent so far on compiling, or on loading what was compiled before.
    """

    def __init__(self, method: method_lib.Method, nets: dict[str, Any], seed: int = 0):
        """Puts the networks on the default device; compiles nothing yet.

        Args:
          method: the method.
          nets: network name -> variables.
          seed: of what the method draws (diffusion noise); the same seed gives the same picture.
        """
        self.method = method
        self._nets = jax.device_put(nets)
        self._key = jax.random.key(seed)
        # One program gives the picture and the maps, because a second one would round a few
        # pixels otherwise; maps that nobody asks for cost no measurable time. The method's costly
        # ones have a program of their own. What a program does not return, XLA takes out.
        self._networks = {costly: jax.jit(functools.partial(self._maps, costly))
                          for costly in (False, True)}
        self._compiled: dict[tuple[int, int, bool], Any] = {}
        self._lock = threading.Lock()
        self.compile_seconds = 0.0
        cpu = jax.default_backend() == "cpu"
        # XLA leaves cores idle within one small tile, so as many tiles run as there are cores; on
        # an accelerator two hide the copies behind the computation.
        self._workers = min(_cores(), 16) if cpu else 2
        self._start = _CPU_START if cpu else _ACCELERATOR_START
        self._halo, self._sides = None, ()
        if method.halo is not None:
            self._halo = _up(method.halo, method.multiple)
            scale = max(1, self._halo / _CPU_HALO)
            sides = _CPU_SIDES if cpu else _ACCELERATOR_SIDES
            if scale > 1:
                places = np.arange(0, len(sides) - 1 + 1e-9, 1 / _BETWEEN)
                sides = np.interp(places, np.arange(len(sides)), sides)
            self._sides = [_up(round(side * scale), method.multiple) for side in sides]

    def use(self, nets: dict[str, Any]) -> None:
        """Replaces the networks by others of the same shapes; nothing is compiled anew."""
        self._nets = jax.device_put(nets)

    @property
    def programs(self) -> int:
        """Number of programs compiled so far."""
        return len(self._compiled)

    def __call__(self, image: Any) -> Any:
        """Enhances a picture or a batch.

        Args:
          image: uint8, uint16 or float array (numpy or JAX) [H, W, 3] or [B, H, W, 3], floats in
            [0, 1]; or a PIL image (as it lies in memory: no orientation tag is applied).

        Returns:
          The same type, dtype and size, floats clipped to [0, 1]. A PIL image stays grey if it
          was and keeps its alpha; a palette becomes RGB or RGBA, CMYK becomes RGB.

        Raises:
          InputError: another shape or dtype, or floats outside [0, 1].
        """
        if isinstance(image, Image.Image):
            picture = images.from_pil(image)
            pixels = self._enhance(picture.pixels)
            return images.to_pil(dataclasses.replace(picture, pixels=pixels))
        pixels = _checked(image)
        if pixels.ndim == 4:
            result = np.stack([self._enhance(one) for one in pixels])
        else:
            result = self._enhance(pixels)
        return jax.numpy.asarray(result) if isinstance(image, jax.Array) else result

    def explain(self, image: Any) -> dict[str, np.ndarray]:
        """The maps behind one enhanced picture.

        Args:
          image: one picture, as for a call.

        Returns:
          The method's maps and `enhanced`, raw and unclipped float32 [H, W, C]; `finish` makes
          the latter what a call gives. Maps of a smaller copy are as much smaller; several of one
          kind are [n, H, W, C]; what has no height and width is returned as it is.

        Raises:
          InputError: as for a call, or for a batch.
        """
        return self._gather(_one(image), dict)

    def draw(self, image: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """A picture enhanced, and the pictures that the method draws of its maps.

        The maps are drawn tile by tile: raw, they are many times larger than the picture.

        Args:
          image: one picture, as for a call.

        Returns:
          (pixels, drawings): pixels [H, W, 3] are those of a call, the drawings uint8 [h, w, 1 or
          3] by the names of `drawn`.

        Raises:
          InputError: as `explain`.
        """
        pixels = _one(image)

        def convert(found):
            enhanced = finish(found.pop("enhanced"), pixels.dtype)
            return {"": enhanced, **{name: images.to_uint(value, np.uint8)
                                     for name, value in self.method.draw(found).items()}}

        result = self._gather(pixels, convert)
        return result.pop(""), result

    def drawn(self) -> list[str]:
        """Names of the pictures that the method draws of its maps."""
        side = _up(64, self.method.multiple)
        low = jax.ShapeDtypeStruct((1, side, side, 3), np.float32)
        maps = jax.eval_shape(self.method.explain, self._nets, low, self._key)
        maps.pop("enhanced")
        return sorted(self.method.draw({name: np.zeros(value.shape[1:], np.float32)
                                        for name, value in maps.items()}))

    def _enhance(self, pixels: np.ndarray) -> np.ndarray:
        """[H, W, 3] of any accepted dtype -> the same, enhanced."""
        return self._gather(pixels, lambda found: {
            "enhanced": finish(found["enhanced"], pixels.dtype)}, "enhanced")["enhanced"]

    def _gather(self, pixels: np.ndarray, convert: Callable[[dict], dict[str, np.ndarray]],
                *names: str) -> dict[str, np.ndarray]:
        """What `convert` makes of the maps (of these names, or all) of each tile, put together."""
        height, width = pixels.shape[:2]
        padded = self._pad(pixels)
        result: dict[str, np.ndarray] = {}
        for tile, found in self._pieces(padded, *names):
            if tile.whole(padded):  # before drawing, which may put several maps side by side
                return convert({name: _cropped(value, _scale(tile, value), height, width)
                                for name, value in found.items()})
            for name, value in convert(found).items():
                scale = _scale(tile, value)
                if scale is None:
                    result[name] = value
                    continue
                if name not in result:
                    size = (padded.shape[0] // scale, padded.shape[1] // scale)
                    result[name] = np.empty(
                        value.shape[:-3] + size + value.shape[-1:], value.dtype)
                result[name][..., tile.rows.kept(scale), tile.columns.kept(scale), :] = (
                    value[..., tile.rows.inner(scale), tile.columns.inner(scale), :])
        scales = {name: _scale(_Tile.of(padded), value) for name, value in result.items()}
        return {name: _cropped(value, scales[name], height, width)
                for name, value in result.items()}

    def _maps(self, costly: bool, nets: dict[str, Any], low: Any, key: Any) -> dict[str, Any]:
        """Those maps of `explain`, and the picture, that are costly or are not."""
        return {name: value for name, value in self.method.explain(nets, low, key).items()
                if (name in self.method.costly) == costly}

    def _pad(self, pixels: np.ndarray) -> np.ndarray:
        """Extends the sides to the method's multiple."""
        height, width = pixels.shape[:2]
        multiple = self.method.multiple
        return images.pad(pixels, _up(height, multiple) - height, _up(width, multiple) - width)

    def _pieces(self, pixels: np.ndarray,
                *names: str) -> Iterator[tuple[_Tile, dict[str, np.ndarray]]]:
        """Runs the network over the tiles of [H, W, 3]; yields them with the maps [h, w, C] of
        these names, or with all."""
        rows, columns = (self._cover(length) for length in pixels.shape[:2])
        wanted = {name in self.method.costly for name in names} or {
            False, bool(self.method.costly)}
        programs = [self._program(rows[0].side, columns[0].side, costly)
                    for costly in sorted(wanted)]

        def run(tile):
            low = pixels[tile.rows.seen(), tile.columns.seen()]
            low = images.to_float(low) if low.dtype.kind == "u" else low.astype(np.float32)
            found = {name: value for program in programs
                     for name, value in program(self._nets, low[None], self._key).items()}
            return {name: np.asarray(found[name])[0] for name in names or found}

        tiles = [_Tile(row, column) for row in rows for column in columns]
        if len(tiles) == 1:
            yield tiles[0], run(tiles[0])
            return
        with ThreadPoolExecutor(self._workers) as pool:
            yield from zip(tiles, pool.map(run, tiles), strict=True)

    def _cover(self, length: int) -> list[_Span]:
        """Equal tiles over an axis, of the side that costs least."""
        sides = [side for side in self._sides if side <= length]
        if not sides:
            return [_Span(0, length, 0, length)]
        halo = self._halo

        def count(side):
            return 1 if side == length else -(-(length - 2 * halo) // (side - 2 * halo))

        side = min(sides, key=lambda side: count(side) * (side + self._start))
        spans, last = [], 0
        for i in range(count(side)):
            start = min(i * (side - 2 * halo), length - side)
            first, end = last, start + side
            last = length if end == length else end - halo
            spans.append(_Span(start, side, first, last))
        return spans

    def _program(self, height: int, width: int, costly: bool) -> Any:
        """The compiled network for tiles of a size: its costly maps, or all else."""
        with self._lock:
            which = (height, width, costly)
            if which not in self._compiled:
                start = time.perf_counter()
                low = jax.ShapeDtypeStruct((1, height, width, 3), np.float32)
                self._compiled[which] = self._networks[costly].lower(
                    self._nets, low, self._key).compile()
                self.compile_seconds += time.perf_counter() - start
            return self._compiled[which]


def finish(enhanced: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The pixels that a user gets of raw ones: clipped to [0, 1]; integers are scaled and rounded.

    Args:
      enhanced: float array, of `explain`.
      dtype: of the picture that was enhanced.
    """
    if np.dtype(dtype).kind == "u":
        return images.to_uint(enhanced, dtype)
    return enhanced.clip(0, 1).astype(dtype, copy=False)


def read(source: str | os.PathLike,
         averaged: bool = True) -> tuple[ConfigDict, dict[str, Any]]:
    """Config and networks of weights that come with lljax, a training's workdir or a weights file.

    Args:
      source: a name of `list_weights()`, a folder, or a .safetensors file.
      averaged: of a workdir, whether to take averaged parameters where there are any.

    Raises:
      InputError: none of these, or a damaged one; or no averages that could be left out.
    """
    source = os.fspath(source)
    shipped = weights.shipped()
    if os.path.isdir(source):
        from lljax import checkpoint  # Orbax is slow to import, and only trainings need it

        return checkpoint.load_nets(source, averaged)
    if source in shipped or os.path.isfile(source):
        return weights.load(shipped.get(source, source))[:2]
    raise InputError(f"{unknown('weights', source, shipped)}; the workdir of a training or a "
                     ".safetensors file will do too, but none lies there")


def load(source: str | os.PathLike, seed: int = 0, settings: Sequence[str] = (),
         averaged: bool = True) -> Enhancer:
    """An `Enhancer` of what `read` reads.

    Args:
      source: a name of `list_weights()`, a folder, or a .safetensors file.
      seed: as in `Enhancer`.
      settings: changes of the config it was trained with, e.g. ["denoise.name=nlm"]; see
        `config.change`.
      averaged: as in `read`.

    Raises:
      InputError: as `read`, or settings that cannot be, or that make other networks.
    """
    return Enhancer(*load_method(source, settings, averaged), seed)


def load_method(source: str | os.PathLike, settings: Sequence[str] = (),
                averaged: bool = True) -> tuple[method_lib.Method, dict[str, Any]]:
    """The method and the networks of what `read` reads.

    Args:
      source: as in `load`.
      settings: as in `load`.
      averaged: as in `read`.

    Raises:
      InputError: as `load`.
    """
    config, nets = read(source, averaged)
    if not settings:
        return method_lib.load(config), nets
    method = method_lib.load(config_lib.change(config, settings))
    _check_fit(method, nets, settings)
    return method, nets


def _check_fit(method: method_lib.Method, nets: dict[str, Any], settings: Sequence[str]) -> None:
    """A trained network has the width and depth that it has."""
    side = _up(64, method.multiple)
    low = jax.ShapeDtypeStruct((1, side, side, 3), np.float32)
    expected = jax.eval_shape(method.init, jax.random.key(0), {"low": low, "high": low})
    found = {name: nets[name] for name in expected if name in nets}
    if wrong := method_lib.shape_differences(found, expected):
        raise InputError(f"{', '.join(settings)}: the trained networks are others: {wrong}; a "
                         "setting of the networks themselves takes a training of its own")


def _one(image: Any) -> np.ndarray:
    """The pixels of one picture."""
    if isinstance(image, Image.Image):
        return images.from_pil(image).pixels
    pixels = _checked(image)
    if pixels.ndim != 3:
        raise InputError(f"explain takes one picture [H, W, 3], not shape {pixels.shape}")
    return pixels


def _checked(image: Any) -> np.ndarray:
    pixels = np.asarray(image)
    if pixels.ndim not in (3, 4) or pixels.shape[-1] != 3 or 0 in pixels.shape:
        raise InputError(f"a picture of shape {pixels.shape}; expected [H, W, 3] or [B, H, W, 3]")
    if pixels.dtype in (np.uint8, np.uint16):
        return pixels
    if not np.issubdtype(pixels.dtype, np.floating):
        raise InputError(f"a picture of dtype {pixels.dtype}; expected uint8, uint16 or a float")
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= -_SLACK and high <= 1 + _SLACK):
        raise InputError(f"a float picture with values from {low:g} to {high:g}; expected [0, 1]")
    return pixels.clip(0, 1)


def _scale(tile: _Tile, value: np.ndarray) -> int | None:
    """How many times smaller than its tile a map [..., h, w, C] is; None for what is no map of
    the picture."""
    if value.ndim < 3 or tile.rows.side % value.shape[-3]:
        return None
    scale = tile.rows.side // value.shape[-3]
    return scale if value.shape[-2] * scale == tile.columns.side else None


def _cropped(value: np.ndarray, scale: int | None, height: int, width: int) -> np.ndarray:
    """A map `scale` times smaller than its padded picture, cut to the picture [height, width]."""
    if scale is None:
        return value
    return np.ascontiguousarray(images.crop(value, -(-height // scale), -(-width // scale)))


def _up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def _cores() -> int:
    """Cores this process may use (a launcher may have pinned it to a few)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
