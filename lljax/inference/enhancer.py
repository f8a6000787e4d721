"""Any method on pictures of any size and depth.

A *local* method (`halo` pixels of sight) runs on overlapping tiles of a few fixed sizes: a tile at
the picture's border sits exactly on it, so that networks pad with zeros where they would anyway,
and a tile's inner edges lose `halo` pixels. Every pixel then equals that of the whole picture (to
float rounding), mixed sizes compile a handful of programs, memory is bounded, and on a CPU the
activations stay in the cache and one tile runs on each core. A picture smaller than the smallest
tile lies in the corner of a larger one where the method knows its place (`placed`), so that small
pictures share programs too; else it runs as it is. A *staged* method is local but for
what it does with a condensed copy: tiles, the whole copy, tiles again. Other methods see the whole
picture. Margins (`Method.margins`) are made as tiles are cut: a large picture is never copied.

With a limit on memory, the sides of the tiles and how many run at once are chosen by what the
compiled programs say they need.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from lljax import config as config_lib
from lljax import images, layers, weights
from lljax import method as method_lib
from lljax.errors import InputError, unknown
from lljax.inference import control

# Sides of tiles in pixels, and what starting one costs beside its own pixels (as pixels of its
# side). The CPU's were chosen by measurement: from 64 to 176 the time a pixel is nearly flat, above
# it the activations leave the cache; these four keep tiles over mixed sizes within 30 % of no
# overlap at all. An accelerator wants fewer and larger ones.
_CPU_SIDES, _CPU_START = (64, 112, 144, 176), 4
_ACCELERATOR_SIDES, _ACCELERATOR_START = (128, 256, 512, 768), 64
# Sides of tiles that hold a whole picture: each so many times the next. Smaller steps would compute
# fewer pixels beyond the picture and compile more programs for mixed sizes.
_HOLDING, _SHORTEST = 1.4, 128
# Programs that are kept, the latest used: a method that sees the whole picture has one a size.
_PROGRAMS = 48
_CPU_HALO = 8  # the sides suit a halo of at most this; a larger one scales them, and takes more of
_BETWEEN = 3  # them, as many between two: its overlap costs more than another compilation
# A side is at most this, or 8 halos if that is more: activations of a wide network are a kilobyte
# a pixel. Within such tiles XLA itself uses the cores, so fewer run at once: as many as have
# together this many pixels.
_CPU_MOST, _ACCELERATOR_MOST = 1280, 3072
_FLIGHT = 2 ** 22
_FEWER = (3, 4, 6)  # halos: further sides where memory is limited
_HOST_BYTES = 80  # a pixel of a tile, while it is cut and while its result is rounded
# What a running program takes beside what it tells: on a CPU 1.2 to 1.5 times as much was measured.
_MORE, _THREAD = 1.5, 24 * 2 ** 20
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
    def of(cls, height: int, width: int) -> _Tile:
        """The whole of a picture."""
        return cls(*(_Span(0, side, 0, side) for side in (height, width)))


class _Plan(NamedTuple):
    """Into which tiles a picture is cut, and how many of them run at once."""

    rows: list[_Span]
    columns: list[_Span]
    workers: int

    def tiles(self) -> list[_Tile]:
        return [_Tile(row, column) for row in self.rows for column in self.columns]


class _Padded:
    """A picture [H, W, 3] with its margins, which are made where it is looked at.

    Attributes:
      pixels: the picture without them.
      height: with them.
      width: with them.
      top: rows before the picture.
      left: columns before it.
    """

    def __init__(self, pixels: np.ndarray, margins: Callable[[int], tuple[int, int]]):
        self.pixels = pixels
        widths = [margins(side) for side in pixels.shape[:2]]
        # mirrored without the edge, or, where the picture is too small for that, its last value
        self._rows, self._columns = (
            np.pad(np.arange(side), width, "reflect" if max(width) < side else "edge")
            for side, width in zip(pixels.shape[:2], widths, strict=True))
        self.height, self.width = len(self._rows), len(self._columns)
        (self.top, _), (self.left, _) = widths

    def cut(self, tile: _Tile) -> np.ndarray:
        """What the network sees: float32 [1, h, w, 3] in [0, 1]; beyond the picture, its edge."""
        rows, columns = (places.take(np.arange(span.start, span.start + span.side), mode="clip")
                         for places, span in zip((self._rows, self._columns), tile, strict=True))
        top, left = rows.min(), columns.min()
        low = self.pixels[top:rows.max() + 1, left:columns.max() + 1]
        if low.shape[:2] != (len(rows), len(columns)):
            low = low[np.ix_(rows - top, columns - left)]
        return (images.to_float(low) if low.dtype.kind == "u" else low.astype(np.float32))[None]

    def place(self, scale: int) -> tuple[slice, slice]:
        """Where the picture itself lies in a map of the whole, `scale` times smaller."""
        return tuple(slice(before // scale, -(-(before + side) // scale)) for before, side in zip(
            (self.top, self.left), self.pixels.shape[:2], strict=True))

    def crop(self, value: np.ndarray) -> np.ndarray:
        """A map [..., h, w, C] of the whole without its margins; what is no map, as it is."""
        scale = _scale(_Tile.of(self.height, self.width), value)
        if scale is None:
            return value
        return np.ascontiguousarray(value[..., *self.place(scale), :])


class _Sheets(dict):
    """Maps put together from tiles: name -> [..., h, w, C]; what is no map is as it came last.

    Args:
      padded: the picture.
      margins: whether the maps keep its margins.
    """

    def __init__(self, padded: _Padded, margins: bool = False):
        super().__init__()
        self._padded, self._margins, self._lock = padded, margins, threading.Lock()

    def put(self, tile: _Tile, found: Mapping[str, np.ndarray]) -> None:
        """Adds a tile's; several threads may."""
        for name, value in found.items():
            scale = _scale(tile, value)
            if scale is None:
                self[name] = value
                continue
            places = (slice(0, self._padded.height // scale), slice(0, self._padded.width // scale))
            if not self._margins:
                places = self._padded.place(scale)
            with self._lock:
                if name not in self:
                    size = tuple(place.stop - place.start for place in places)
                    self[name] = np.empty(value.shape[:-3] + size + value.shape[-1:], value.dtype)
            to, of = zip(*(_overlap(span, place, scale) for span, place in zip(
                tile, places, strict=True)), strict=True)
            self[name][..., *to, :] = value[..., *of, :]


def _overlap(span: _Span, place: slice, scale: int) -> tuple[slice, slice]:
    """(where in a sheet, where in the tile) what is kept of a tile lies, `scale` times smaller;
    the sheet shows `place` of the padded picture."""
    kept, inner = span.kept(scale), span.inner(scale)
    first, last = max(kept.start, place.start), max(min(kept.stop, place.stop), place.start)
    shift = inner.start - kept.start
    return slice(first - place.start, last - place.start), slice(first + shift, last + shift)


class Enhancer:
    """A method and its networks, ready for pictures.

    Calling it enhances a picture. The pictures of a batch are enhanced one by one with the same
    random key, so a picture's result does not depend on its neighbours.

    Attributes:
      compile_seconds: time spent so far on compiling, or on loading what was compiled before.
    """

    def __init__(self, method: method_lib.Method, nets: dict[str, Any], seed: int = 0,
                 max_memory: int | None = None):
        """Puts the networks on the default device; compiles nothing yet.

        Args:
          method: the method.
          nets: network name -> variables.
          seed: of what the method draws (diffusion noise); the same seed gives the same picture.
          max_memory: bytes that enhancing may take at most, as far as the compiled programs tell
            (what a library takes that a method calls, as for denoising, they do not): on a CPU the
            process's resident memory, all that was there before included; on an accelerator the
            device's memory. None is no limit.
        """
        self.method = method
        self._nets = jax.device_put(nets)
        self._key = jax.random.key(seed)
        # One program gives the picture and the maps, because a second one would round a few
        # pixels otherwise; maps that nobody asks for cost no measurable time. The method's costly
        # ones have a program of their own. What a program does not return, XLA takes out.
        self._networks = {("condense", False): jax.jit(method.condense),
                          ("apply", False): jax.jit(method.apply)}
        for stage, function in (("explain", method.explain), ("solve", method.solve)):
            for costly in (False, True):
                self._networks[stage, costly] = jax.jit(
                    functools.partial(self._maps, function, costly))
        self._compiled: dict[tuple, Any] = {}
        self._lock = threading.Lock()
        self.compile_seconds = 0.0
        self._cpu = cpu = jax.default_backend() == "cpu"
        self._limit, self._base = max_memory, None
        self._start = _CPU_START if cpu else _ACCELERATOR_START
        # sides of tiles that a picture is cut into, and of those that hold a smaller one
        self._halo, self._sides, self._holding = None, [], []
        if method.halo is not None:
            self._halo = _up(method.halo, method.multiple)
            self._sides = _sides(self._halo, method.multiple, cpu)
            if method.placed:
                self._holding = _holding(self._sides[-1], method.multiple)
                if method.light:
                    self._sides = [side for side in self._holding if side >= self._sides[0]]

    def use(self, nets: dict[str, Any], seed: int | None = None) -> None:
        """Replaces the networks by others of the same shapes; nothing is compiled anew.

        Args:
          nets: network name -> variables.
          seed: of what the method draws from now on; None leaves it.
        """
        self._nets = jax.device_put(nets)
        if seed is not None:
            self._key = jax.random.key(seed)

    @property
    def programs(self) -> int:
        """Number of programs compiled so far."""
        return len(self._compiled)

    def __call__(self, image: Any, **controls: Any) -> Any:
        """Enhances a picture or a batch.

        Args:
          image: uint8, uint16 or float array (numpy or JAX) [H, W, 3] or [B, H, W, 3], floats in
            [0, 1]; or a PIL image (as it lies in memory: no orientation tag is applied).
          **controls: `strength`, `denoise`, `protect_highlights`, `tta`; see `control.Control`.

        Returns:
          The same type, dtype and size, floats clipped to [0, 1]. A PIL image stays grey if it
          was and keeps its alpha; a palette becomes RGB or RGBA, CMYK becomes RGB.

        Raises:
          InputError: another shape or dtype, floats outside [0, 1], a control that cannot be, or
            more than `max_memory` needed.
        """
        enhance = functools.partial(control.enhance, self._enhance,
                                    control=control.Control(**controls))
        if isinstance(image, Image.Image):
            picture = images.from_pil(image)
            pixels = enhance(picture.pixels)
            return images.to_pil(dataclasses.replace(picture, pixels=pixels))
        pixels = _checked(image)
        if pixels.ndim == 4:
            result = np.stack([enhance(one) for one in pixels])
        else:
            result = enhance(pixels)
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
        enhanced, maps = self._gather(_one(image), lambda enhanced: enhanced, dict)
        return {**maps, "enhanced": enhanced}

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
        return self._gather(
            pixels, lambda enhanced: finish(enhanced, pixels.dtype),
            lambda found: {name: images.to_uint(value, np.uint8)
                           for name, value in self.method.draw(found).items()})

    def drawn(self) -> list[str]:
        """Names of the pictures that the method draws of its maps."""
        maps = self._blank(_up(64, self.method.multiple))
        maps.pop("enhanced")
        return sorted(self.method.draw(maps))

    def _blank(self, side: int) -> dict[str, np.ndarray]:
        """Maps as `explain` gives them, of a square picture, without computing any."""
        maps = jax.eval_shape(self.method.explain, self._nets, _float32(1, side, side, 3),
                              self._key)
        return {name: np.zeros(value.shape[1:], np.float32) for name, value in maps.items()}

    def _enhance(self, pixels: np.ndarray) -> np.ndarray:
        """[H, W, 3] of any accepted dtype -> the same, enhanced."""
        return self._gather(pixels, lambda enhanced: finish(enhanced, pixels.dtype))[0]

    def _gather(self, pixels: np.ndarray, picture: Callable[[np.ndarray], np.ndarray],
                draw: Callable[[dict], dict] | None = None) -> tuple[np.ndarray, dict]:
        """(what `picture` makes of the enhanced pixels, what `draw` makes of the maps), of a tile
        each, put together. None: no maps are wanted."""
        padded = _Padded(pixels, self.method.margins)
        plan = self._plan(padded, picture, draw)
        tiles, costly = plan.tiles(), _costly(self.method, draw)
        if tiles == [_Tile.of(padded.height, padded.width)]:
            found = self._explain(padded, tiles[0], costly, bool(draw))
            # cropped before drawing, which may put several maps side by side
            maps = {name: padded.crop(value) for name, value in found.items()}
            return picture(maps.pop("enhanced")), draw(maps) if draw else {}
        sheets, maps = _Sheets(padded), {}
        if self.method.staged:
            maps = self._solve(padded, plan, costly)

            def work(tile):
                sheets.put(tile, {"": picture(self._apply(padded, tile, maps))})
        else:
            def work(tile):
                found = self._explain(padded, tile, costly, bool(draw))
                enhanced = picture(found.pop("enhanced"))
                sheets.put(tile, {**(draw(found) if draw else {}), "": enhanced})
        self._each(plan, work)
        enhanced = sheets.pop("")
        if draw and self.method.staged:
            return enhanced, draw({name: padded.crop(value) for name, value in maps.items()})
        return enhanced, dict(sheets)

    def _each(self, plan: _Plan, work: Callable[[_Tile], None]) -> None:
        with ThreadPoolExecutor(plan.workers) as pool:
            for _ in pool.map(work, plan.tiles()):
                pass

    def _explain(self, padded: _Padded, tile: _Tile, costly: Sequence[bool], maps: bool) -> dict:
        """`enhanced` of a tile, and if asked for its maps, [h, w, C] each."""
        inputs = [padded.cut(tile), self._key]
        if self.method.placed:
            inputs.append(layers.Window(*map(np.int32, (
                tile.rows.start, tile.columns.start, padded.height, padded.width))))
        return {name: np.asarray(value)[0] for which in costly
                for name, value in self._run("explain", which, *inputs).items()
                if maps or name == "enhanced"}

    def _solve(self, padded: _Padded, plan: _Plan, costly: Sequence[bool]) -> dict:
        """The maps of a staged method, [h, w, C] each, with the margins."""
        small = _Sheets(padded, margins=True)

        def work(tile):
            found = self._run("condense", False, padded.cut(tile))
            small.put(tile, {name: np.asarray(value)[0] for name, value in found.items()})

        self._each(plan, work)
        small = {name: value[None] for name, value in small.items()}
        return {name: np.asarray(value)[0] for which in costly
                for name, value in self._run("solve", which, small, self._key).items()}

    def _apply(self, padded: _Padded, tile: _Tile, maps: dict[str, np.ndarray]) -> np.ndarray:
        """The enhanced tile [h, w, 3] of a staged method, of the maps of the whole picture."""
        whole, parts = _Tile.of(padded.height, padded.width), {}
        for name, value in maps.items():
            if name in self.method.costly:
                continue
            scale = _scale(whole, value)
            if scale is not None:
                value = value[..., *(slice(span.start // scale, (span.start + span.side) // scale)
                                     for span in tile), :]
            parts[name] = value[None]
        return np.asarray(self._run("apply", False, padded.cut(tile), parts))[0]

    def _maps(self, function: Callable[..., dict], costly: bool, *inputs: Any) -> dict[str, Any]:
        """Those maps that are costly or are not."""
        return {name: value for name, value in function(*inputs).items()
                if (name in self.method.costly) == costly}

    def _run(self, stage: str, costly: bool, *inputs: Any) -> Any:
        return self._program(stage, costly, *inputs)(self._nets, *inputs)

    def _program(self, stage: str, costly: bool, *inputs: Any) -> Any:
        """The compiled program for inputs of these shapes: its costly maps, or all else."""
        which = (stage, costly, *(leaf.shape for leaf in jax.tree.leaves(inputs)))
        with self._lock:
            if which in self._compiled:
                self._compiled[which] = self._compiled.pop(which)  # the latest used comes last
            else:
                while len(self._compiled) >= _PROGRAMS:
                    del self._compiled[next(iter(self._compiled))]
                start, before = time.perf_counter(), _resident()
                self._compiled[which] = self._networks[stage, costly].lower(
                    self._nets, *inputs).compile()
                self.compile_seconds += time.perf_counter() - start
                if self._cpu and self._base is not None:
                    self._base += max(0, _resident() - before)
            return self._compiled[which]

    # ---- tiles ----

    def _plan(self, padded: _Padded, picture: Callable, draw: Callable | None) -> _Plan:
        """The tiles that cost least time, within the limit on memory."""
        if self._limit is not None:
            return _Budget(self, padded, picture, draw).plan()
        rows, columns = (self._cover(side) for side in (padded.height, padded.width))
        return _Plan(rows, columns, self._workers(rows[0].side * columns[0].side))

    def _workers(self, pixels: int) -> int:
        """How many tiles of so many pixels run at once, if memory allows it.

        XLA leaves cores idle within one small tile, so as many run as there are cores; on an
        accelerator two hide the copies behind the computation.
        """
        return min(_cores(), 16, max(1, _FLIGHT // pixels)) if self._cpu else 2

    def _candidates(self, length: int) -> list[int]:
        """Sides of tiles that an axis may be cut into, or that may hold it. Without tiles that
        hold more than the picture, a short one is its own tile."""
        sides = [side for side in self._sides if side <= length]
        if self._holding:
            return sides + [side for side in self._holding if side >= length][:1]
        whole = _CPU_SIDES[0] if self._cpu else _ACCELERATOR_SIDES[0]
        small = self._halo is None or length < whole * max(1, self._halo / _CPU_HALO)
        return [length] if small or not sides else sides

    def _count(self, length: int, side: int) -> int:
        """How many tiles of a side cover an axis."""
        if side >= length:
            return 1
        return -(-(length - 2 * self._halo) // (side - 2 * self._halo))

    def _cost(self, length: int, side: int) -> int:
        """Pixels computed along an axis, and what starting its tiles costs."""
        return self._count(length, side) * (side + self._start)

    def _cover(self, length: int, side: int | None = None) -> list[_Span]:
        """Equal tiles over an axis, of a side, or of the side that costs least."""
        side = side or min(self._candidates(length), key=lambda one: self._cost(length, one))
        spans, last = [], 0
        for i in range(self._count(length, side)):
            start = max(0, min(i * (side - 2 * (self._halo or 0)), length - side))
            first, end = last, start + side
            last = length if end >= length else end - self._halo
            spans.append(_Span(start, side, first, last))
        return spans


class _Budget:
    """Chooses tiles for one picture within a limit on memory.

    What a tile takes is what its compiled program says; of a size that is not compiled yet, as
    much a pixel as the greediest one that is.
    """

    def __init__(self, enhancer: Enhancer, padded: _Padded, picture: Callable,
                 draw: Callable | None):
        self._enhancer, self._padded, self._draw = enhancer, padded, draw
        self._costly = _costly(enhancer.method, draw)
        self._lengths = padded.height, padded.width
        self._measured: dict[tuple[int, int], int] = {}  # sides -> bytes of one running tile
        self._small = self._solving = self._solved = 0  # bytes of a staged method's middle
        self._fixed = (padded.pixels.nbytes + self._kept(picture)) if enhancer._cpu else 0

    def plan(self) -> _Plan:
        """The plan that takes least time.

        Raises:
          InputError: none stays within the limit.
        """
        enhancer = self._enhancer
        shapes = list(itertools.product(*map(self._sides, self._lengths)))
        least = min(shapes, key=math.prod)
        if enhancer._base is None:  # once: it would grow with every picture, and plans change
            enhancer._base = (_resident() - self._padded.pixels.nbytes if enhancer._cpu else
                              sum(leaf.nbytes for leaf in jax.tree.leaves(enhancer._nets)))
        if enhancer.method.staged and least != self._lengths:
            self._measure_middle()
        self._measure(least)
        while True:
            fitting = [(self._time(shape, workers), shape, workers) for shape in shapes
                       if (workers := self._most(shape))]
            if not fitting:
                height, width = self._padded.pixels.shape[:2]
                raise InputError(
                    f"a picture of {width} x {height} px takes {_size(self._total(least, 1))} of "
                    f"memory even in small tiles, and the limit is {_size(enhancer._limit)}; "
                    "raise it, or cut or shrink the picture")
            _, shape, workers = min(fitting)
            if shape in self._measured:
                return _Plan(*map(enhancer._cover, self._lengths, shape), workers)
            self._measure(shape)

    def _sides(self, length: int) -> list[int]:
        """Sides of tiles along an axis, those too that are not worth their overlap."""
        enhancer, sides = self._enhancer, []
        if enhancer._halo:
            fewer = (_up(times * enhancer._halo, enhancer.method.multiple) for times in _FEWER)
            sides = [side for side in (*fewer, *enhancer._sides) if side < length]
        return sorted({*sides, *enhancer._candidates(length)})

    def _time(self, shape: tuple[int, int], workers: int) -> float:
        """What a plan takes, as pixels computed with all cores."""
        costs = map(self._enhancer._cost, self._lengths, shape)
        return math.prod(costs) * self._wanted(shape) / workers

    def _wanted(self, shape: tuple[int, int]) -> int:
        """How many tiles run at once if there is memory."""
        count = math.prod(map(self._enhancer._count, self._lengths, shape))
        return min(count, self._enhancer._workers(math.prod(shape)))

    def _most(self, shape: tuple[int, int]) -> int:
        """How many tiles may run at once; 0 if not even one."""
        return next((workers for workers in range(self._wanted(shape), 0, -1)
                     if self._total(shape, workers) <= self._enhancer._limit), 0)

    def _total(self, shape: tuple[int, int], workers: int) -> int:
        """Bytes that a plan takes at its peak."""
        running = workers * self._tile(shape)
        if self._enhancer.method.staged and shape != self._lengths:
            # going in, the condensed copy is copied once more
            running = max(running + max(self._small, self._solved),
                          2 * self._small + self._solving)
        return int(self._enhancer._base + self._fixed + running)

    def _tile(self, shape: tuple[int, int]) -> int:
        """Bytes of one running tile."""
        if shape in self._measured:
            return self._measured[shape]
        return math.ceil(math.prod(shape) * max(
            found / math.prod(known) for known, found in self._measured.items()))

    def _measure(self, shape: tuple[int, int]) -> None:
        """Compiles the programs for tiles of a size."""
        enhancer, (temporary, result) = self._enhancer, (0, 0)
        for stage, costly, inputs in self._programs(shape):
            memory = enhancer._program(stage, costly, *inputs).memory_analysis()
            temporary = max(temporary, memory.temp_size_in_bytes)
            result += memory.output_size_in_bytes
        pixels = math.prod(shape)
        host = _HOST_BYTES * pixels + (2 * result if self._draw else 0)
        self._measured[shape] = self._running(
            temporary + result + (host if enhancer._cpu else 12 * pixels))

    def _running(self, told: int) -> int:
        """Bytes that a running program takes, of what it tells."""
        return int(_MORE * told) + _THREAD if self._enhancer._cpu else told

    def _programs(self, shape: tuple[int, int]) -> list[tuple[str, bool, tuple]]:
        """What runs over a tile: stage, costly or not, and the shapes of what goes in."""
        enhancer, low = self._enhancer, _float32(1, *shape, 3)
        if enhancer.method.staged and shape != self._lengths:
            maps = {name: _float32(*value.shape[:-3], *(
                side // scale for side in shape), value.shape[-1]) if (
                    scale := _scale(_Tile.of(*self._lengths), value)) else value
                    for name, value in self._solution(False).items()}
            return [("condense", False, (low,)), ("apply", False, (low, maps))]
        window = [layers.Window(*[jax.ShapeDtypeStruct((), np.int32)] * 4)]
        inputs = (low, enhancer._key, *(window if enhancer.method.placed else []))
        return [("explain", costly, inputs) for costly in self._costly]

    def _condensed(self) -> dict:
        enhancer = self._enhancer
        return jax.eval_shape(enhancer.method.condense, enhancer._nets,
                              _float32(1, *self._lengths, 3))

    def _solution(self, costly: bool) -> dict:
        enhancer = self._enhancer
        return jax.eval_shape(enhancer._networks["solve", costly], enhancer._nets,
                              self._condensed(), enhancer._key)

    def _measure_middle(self) -> None:
        """Compiles what a staged method does with the whole picture."""
        enhancer, small = self._enhancer, self._condensed()
        self._small = _bytes(small)
        for costly in self._costly:
            memory = enhancer._program("solve", costly, small, enhancer._key).memory_analysis()
            self._solving = max(self._solving, self._solved + memory.output_size_in_bytes
                                + self._running(memory.temp_size_in_bytes))
            self._solved += memory.output_size_in_bytes

    def _kept(self, picture: Callable) -> int:
        """Bytes of the results."""
        side = _up(64, self._enhancer.method.multiple)
        found = self._enhancer._blank(side)
        kept = picture(found.pop("enhanced")).nbytes
        if self._draw:
            kept += sum(value.nbytes for value in self._draw(found).values())
        return math.ceil(kept / side ** 2 * math.prod(self._lengths))


def finish(enhanced: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The pixels that a user gets of raw ones: clipped to [0, 1]; integers are scaled and rounded.

    Args:
      enhanced: float array, of `explain`.
      dtype: of the picture that was enhanced.
    """
    if np.dtype(dtype).kind == "u":
        return images.to_uint(enhanced, dtype)
    return enhanced.clip(0, 1).astype(dtype, copy=False)


def read(source: str | os.PathLike, averaged: bool = True,
         step: int | None = None) -> tuple[ConfigDict, dict[str, Any]]:
    """Config and networks of weights that come with lljax, a training's workdir or a weights file.

    Args:
      source: a name of `list_weights()`, a folder, or a .safetensors file.
      averaged: of a workdir, whether to take averaged parameters where there are any.
      step: of a workdir, the checkpoint; None for the newest.

    Raises:
      InputError: none of these, or a damaged one; or no averages that could be left out.
    """
    source = os.fspath(source)
    shipped = weights.shipped()
    if os.path.isdir(source):
        from lljax import checkpoint  # Orbax is slow to import, and only trainings need it

        return checkpoint.load_nets(source, averaged, step)
    if source in shipped or os.path.isfile(source):
        return weights.load(shipped.get(source, source))[:2]
    raise InputError(f"{unknown('weights', source, shipped)}; the workdir of a training or a "
                     ".safetensors file will do too, but none lies there")


def load(source: str | os.PathLike, seed: int = 0, settings: Sequence[str] = (),
         averaged: bool = True, max_memory: int | None = None,
         step: int | None = None) -> Enhancer:
    """An `Enhancer` of what `read` reads.

    Args:
      source: a name of `list_weights()`, a folder, or a .safetensors file.
      seed: as in `Enhancer`.
      settings: changes of the config it was trained with, e.g. ["denoise.name=nlm"]; see
        `config.change`.
      averaged: as in `read`.
      max_memory: bytes, as in `Enhancer`.
      step: as in `read`.

    Raises:
      InputError: as `read`, or settings that cannot be, or that make other networks.
    """
    return Enhancer(*load_method(source, settings, averaged, step), seed, max_memory)


def load_method(source: str | os.PathLike, settings: Sequence[str] = (),
                averaged: bool = True,
                step: int | None = None) -> tuple[method_lib.Method, dict[str, Any]]:
    """The method and the networks of what `read` reads.

    Args:
      source: as in `load`.
      settings: as in `load`.
      averaged: as in `read`.
      step: as in `read`.

    Raises:
      InputError: as `load`.
    """
    config, nets = read(source, averaged, step)
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


def _sides(halo: int, multiple: int, cpu: bool) -> list[int]:
    """Sides of tiles for a halo, in px, multiples of `multiple`."""
    sides, most = ((_CPU_SIDES, _CPU_MOST) if cpu else (_ACCELERATOR_SIDES, _ACCELERATOR_MOST))
    scale = max(1, halo / _CPU_HALO)
    if scale > 1:
        places = np.arange(0, len(sides) - 1 + 1e-9, 1 / _BETWEEN)
        sides = np.interp(places, np.arange(len(sides)), sides) * scale
    if sides[-1] > most:
        largest = max(most, sides[0])
        sides = np.linspace(largest / 2, largest, len(sides))
    return sorted({_up(round(side), multiple) for side in sides})


def _holding(most: int, multiple: int) -> list[int]:
    """Sides of tiles that hold a picture of at most `most` px, in px, multiples of `multiple`."""
    sides, side = [most], most / _HOLDING
    while side > _SHORTEST / _HOLDING:
        sides.append(_up(round(side), multiple))
        side /= _HOLDING
    return sorted(sides)


def _costly(method: method_lib.Method, draw: Callable | None) -> list[bool]:
    """Of which kinds maps are computed: not costly, costly."""
    return [False, True] if draw and method.costly else [False]


def _float32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, np.float32)


def _bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _size(count: int) -> str:
    """Bytes for people, rounded up: what is printed suffices."""
    return f"{math.ceil(count / 2 ** 20):,}M"


def _resident() -> int:
    """Bytes of memory that this process has now; where the system does not say, had at most."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except FileNotFoundError:  # not Linux
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def _cores() -> int:
    """Cores this process may use (a launcher may have pinned it to a few)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
