"""A method and its networks as one file that runs without lljax: StableHLO, by `jax.export`.

The sides of the picture and the number of pictures stay open: they are symbols in the program,
which pads by itself. Python code that asks for the value of a side cannot be exported that way;
then a fixed size can be.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from lljax import images
from lljax import method as method_lib
from lljax.errors import InputError

Array = jax.Array

SUFFIX = ".stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")
_ELSEWHERE = {
    ".onnx": "jax2onnx needs an older orbax-checkpoint than lljax, so an environment of its own "
             "(python -m venv onnx-env; onnx-env/bin/pip install jax2onnx ml-collections "
             "safetensors pillow tqdm scipy)",
    ".tflite": "TensorFlow Lite needs TensorFlow, which lljax does without"}
_LIMIT = 1e-3  # of [0, 1]: a quarter of an 8-bit step, for what another compilation rounds
# what JAX raises where Python code wants the value of a symbol, or a callback cannot be written
_UNEXPORTABLE = (TypeError, ValueError, NotImplementedError,
                 jax.errors.InconclusiveDimensionOperation)
_GRID = 16  # sides that networks which pad by themselves take as they are


@dataclasses.dataclass(frozen=True)
class Done:
    """What was written.

    Attributes:
      size: (height, width) that it is for, or None for any.
      error: largest difference from JAX on the pictures it was checked with, of [0, 1].
      checked: their sizes, (height, width).
      bytes: size of the file.
    """

    size: tuple[int, int] | None
    error: float
    checked: tuple[tuple[int, int], ...]
    bytes: int


def export(method: method_lib.Method, nets: dict[str, Any], target: str | os.PathLike, *,
           size: tuple[int, int] | None = None, seed: int = 0, overwrite: bool = False) -> Done:
    """Writes a program that enhances pictures, and checks it.

    The program takes float32 [B, H, W, 3] in [0, 1] and returns the same, clipped. It runs on CPU,
    GPU and TPU, wherever there is JAX (`jax.export.deserialize(file).call(pictures)`).

    Args:
      method: the method.
      nets: its networks; they become part of the file.
      target: the file to write; ends in .stablehlo.
      size: (height, width) of the pictures, one at a time; None leaves them and B open.
      seed: of what the method draws.
      overwrite: whether an existing file may be replaced.

    Raises:
      InputError: another suffix, an existing file, a method that can be exported for a fixed size
        only, or not at all, or a program that gives another picture.
    """
    target = os.fspath(target)
    check(target, overwrite)
    if size and min(size) < 1:
        raise InputError(f"--size {size[0]}x{size[1]}: both sides must be 1 or more")
    unit, exported = _exported(method, nets, size, seed)
    sizes = (size,) if size else ((unit + 37, 2 * unit + 5), (3 * unit + 2, unit + 19))
    with images.beside(target) as temporary:
        with open(temporary, "xb") as file:
            file.write(exported.serialize())
        with open(temporary, "rb") as file:
            data = file.read()
        error = _difference(jax_export.deserialize(bytearray(data)), method, nets, unit, sizes,
                            seed)
        if not error <= _LIMIT:
            raise InputError(f"{target}: the exported program differs from JAX by {error:.2g} of "
                             f"[0, 1], more than {_LIMIT:g}; it was not kept")
    return Done(size, error, sizes, len(data))


def check(target: str | os.PathLike, overwrite: bool = False) -> None:
    """Refuses a file that cannot be written, before any work starts.

    Raises:
      InputError: as `export`, for the file.
    """
    target = os.fspath(target)
    suffix = os.path.splitext(target)[1].lower()
    if suffix in _ELSEWHERE:
        raise InputError(f"{target}: {_ELSEWHERE[suffix]}; write a {SUFFIX} file, or see "
                         f"docs/export.md, section {suffix}")
    if suffix != SUFFIX:
        raise InputError(f"{target}: an exported program ends in {SUFFIX}")
    if importlib.util.find_spec("flatbuffers") is None:
        raise InputError("exporting needs flatbuffers; pip install 'lljax[export]'")
    if os.path.exists(target) and not overwrite:
        raise InputError(f"{target}: exists already; choose another name or pass --overwrite")
    if not os.path.isdir(os.path.dirname(target) or "."):
        raise InputError(f"{target}: the folder does not exist")


def program(method: method_lib.Method, nets: dict[str, Any], unit: int, low: Array,
            seed: int = 0) -> Array:
    """What is exported: pictures of any size, padded as `images.pad` does, enhanced, clipped.

    Args:
      method: the method.
      nets: its networks.
      unit: sides are padded to multiples of it.
      low: [B, H, W, 3] in [0, 1]; H and W may be symbols.
      seed: of what the method draws.

    Returns:
      [B, H, W, 3] in [0, 1].
    """
    height, width = low.shape[1:3]
    padded = low
    for axis, side in ((1, height), (2, width)):
        if unit > 1:
            padded = jnp.take(padded, _mirrored(side, -(-side // unit) * unit), axis)
    enhanced = method.enhance(nets, padded, jax.random.key(seed))
    return enhanced[:, :height, :width].clip(0, 1)


def _mirrored(side: Any, longer: Any) -> Array:
    """Which of `side` pixels stand in `longer` ones: mirrored at the end, or the last repeated
    where there are too few to mirror."""
    place, side, longer = jnp.arange(longer), jnp.asarray(side), jnp.asarray(longer)
    beyond = jnp.where(longer - side < side, 2 * side - 2 - place, side - 1)
    return jnp.where(place < side, place, beyond)


def _exported(method: method_lib.Method, nets: dict[str, Any], size: tuple[int, int] | None,
              seed: int) -> tuple[int, jax_export.Exported]:
    """The unit of the sides, and the program."""
    units = [method.multiple]
    if not size and method.multiple % _GRID:
        units.append(math.lcm(method.multiple, _GRID))  # for networks that pad by themselves
    for unit in units:
        shape = (1, *size, 3) if size else jax_export.symbolic_shape("b, h, w, 3")
        traced = jax.jit(lambda low, unit=unit: program(method, nets, unit, low, seed))
        try:
            return unit, jax_export.export(traced, platforms=PLATFORMS)(
                jax.ShapeDtypeStruct(shape, np.float32))
        except _UNEXPORTABLE as error:
            reason = error
    text = " ".join(str(reason).split())[:200]
    if size:
        raise InputError(f"method {method.config.method}: cannot be exported, because it asks for "
                         f"values while it is traced ({text})") from reason
    raise InputError(f"method {method.config.method}: cannot be exported for any size, because it "
                     f"asks how large the picture is ({text}); give --size HxW") from reason


def _difference(exported: jax_export.Exported, method: method_lib.Method, nets: dict[str, Any],
                unit: int, sizes: tuple[tuple[int, int], ...], seed: int) -> float:
    """The largest difference of the exported program from the method itself."""
    largest, enhance = 0.0, jax.jit(method.enhance)
    for number, (height, width) in enumerate(sizes):
        low = np.random.default_rng(number).random((height, width, 3), np.float32)
        padded = images.pad(low, -height % unit, -width % unit)
        expected = np.asarray(enhance(nets, padded[None], jax.random.key(seed)))[0].clip(0, 1)
        found = np.asarray(exported.call(low[None]))[0]
        difference = np.abs(found - images.crop(expected, height, width)).max()
        largest = max(largest, float(difference)) if np.isfinite(difference) else math.inf
    return largest
