"""A method and its networks as one file that runs without lljax.

The suffix says which: .stablehlo (`jax.export`), .onnx (jax2onnx) or .tflite (jax2tf and
TensorFlow's converter).

The sides of the picture and the number of pictures stay open where the format can: they are symbols
in the program, which pads by itself. Python code that asks for the value of a side cannot be
exported that way; then a fixed size can be.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import logging
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from jax import lax

from lljax import images
from lljax import method as method_lib
from lljax.errors import InputError

Array = jax.Array
Size = tuple[int, int] | None  # height and width; None: any
Run = Callable[[np.ndarray], np.ndarray]  # pictures [B, H, W, 3] -> the same, enhanced

PLATFORMS = ("cpu", "cuda", "tpu")  # of a .stablehlo file
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
      runs: where it runs.
    """

    size: Size
    error: float
    checked: tuple[tuple[int, int], ...]
    bytes: int
    runs: str


@dataclasses.dataclass(frozen=True)
class _Format:
    """A format of programs.

    Attributes:
      runs: where its files run.
      needs: modules without which it cannot be written.
      get: what to do where one is absent.
      open: whether the size of the pictures may stay open.
      convert: (method, networks, size, seed) -> the unit of the sides, and the file.
      load: file -> what runs it, for the check.
    """

    runs: str
    needs: tuple[str, ...]
    get: str
    open: bool
    convert: Callable[[method_lib.Method, dict[str, Any], Size, int], tuple[int, bytes]]
    load: Callable[[bytes], Run]


def export(method: method_lib.Method, nets: dict[str, Any], target: str | os.PathLike, *,
           size: Size = None, seed: int = 0, overwrite: bool = False) -> Done:
    """Writes a program that enhances pictures, and checks it.

    The program takes float32 [B, H, W, 3] in [0, 1] and returns the same, clipped. A .stablehlo
    file runs on CPU, GPU and TPU, wherever there is JAX
    (`jax.export.deserialize(file).call(pictures)`), a .onnx file in ONNX Runtime, a .tflite file in
    LiteRT.

    Args:
      method: the method.
      nets: its networks; they become part of the file.
      target: the file to write; its suffix says which format.
      size: (height, width) of the pictures, one at a time; None leaves them and B open.
      seed: of what the method draws.
      overwrite: whether an existing file may be replaced.

    Raises:
      InputError: another suffix, an existing file, a package that the format needs and that is
        absent, a method that can be exported for a fixed size only, or not at all, or a program
        that gives another picture.
    """
    target = os.fspath(target)
    check(target, size, overwrite)
    form = _FORMATS[_suffix(target)]
    with images.beside(target, overwrite) as temporary:
        unit, converted = form.convert(method, nets, size, seed)
        with open(temporary, "xb") as file:
            file.write(converted)
        with open(temporary, "rb") as file:
            data = file.read()
        sizes = (size,) if size else ((unit + 37, 2 * unit + 5), (3 * unit + 2, unit + 19))
        error = _difference(_loaded(form, data, target), method, nets, unit, sizes, seed)
        if not error <= _LIMIT:
            raise InputError(f"{target}: the exported program differs from JAX by {error:.2g} of "
                             f"[0, 1], more than {_LIMIT:g}; it was not kept")
    return Done(size, error, sizes, len(data), form.runs)


def check(target: str | os.PathLike, size: Size = None, overwrite: bool = False) -> None:
    """Refuses a file that cannot be written, before any work starts.

    Raises:
      InputError: as `export`, for the file, its size and what writes it.
    """
    target = os.fspath(target)
    form = _FORMATS.get(_suffix(target))
    if form is None:
        raise InputError(f"{target}: an exported program ends in {', '.join(_FORMATS)}")
    if size and min(size) < 1:
        raise InputError(f"--size {size[0]}x{size[1]}: both sides must be 1 or more")
    if not (form.open or size):
        raise InputError(f"{target}: a {_suffix(target)} program is for one size of picture; give "
                         "--size HxW, e.g. 1080x1920")
    for module in form.needs:
        if importlib.util.find_spec(module) is None:
            raise InputError(f"{target}: needs {module}; {form.get}")
    if os.path.exists(target) and not overwrite:
        raise InputError(f"{target}: exists already; choose another name or pass --overwrite")
    if not os.path.isdir(os.path.dirname(target) or "."):
        raise InputError(f"{target}: the folder does not exist")


def _suffix(target: str) -> str:
    return os.path.splitext(target)[1].lower()


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
            # rounded up without negative numbers: ONNX divides towards zero
            indices = _mirrored(side, (side + unit - 1) // unit * unit)
            padded = jnp.take(padded, indices, axis=axis)
    enhanced = method.enhance(nets, padded, jax.random.key(seed))
    return enhanced[:, :height, :width].clip(0, 1)


def _mirrored(side: Any, longer: Any) -> Array:
    """Which of `side` pixels stand in `longer` ones: mirrored at the end, or the last repeated
    where there are too few to mirror."""
    place, side, longer = jnp.arange(longer), jnp.asarray(side), jnp.asarray(longer)
    beyond = jnp.where(longer - side < side, 2 * side - 2 - place, side - 1)
    return jnp.where(place < side, place, beyond)


def _traced(method: method_lib.Method, nets: dict[str, Any], size: Size, seed: int,
            trace: Callable[[Callable, jax.ShapeDtypeStruct], Any]) -> tuple[int, Any]:
    """The unit of the sides, and what `trace` makes of the program and its argument."""
    units = [method.multiple]
    if not size and method.multiple % _GRID:
        units.append(math.lcm(method.multiple, _GRID))  # for networks that pad by themselves
    for unit in units:
        shape = (1, *size, 3) if size else jax_export.symbolic_shape("b, h, w, 3")
        try:
            return unit, trace(lambda low, unit=unit: program(method, nets, unit, low, seed),
                               jax.ShapeDtypeStruct(shape, np.float32))
        except _UNEXPORTABLE as error:
            reason = error
    text = _line(reason)
    if size:
        raise InputError(f"method {method.config.method}: cannot be exported, because it asks for "
                         f"values while it is traced ({text})") from reason
    raise InputError(f"method {method.config.method}: cannot be exported for any size, because it "
                     f"asks how large the picture is ({text}); give --size HxW") from reason


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _unconverted(method: method_lib.Method, converter: str, size: Size,
                 error: Exception) -> InputError:
    """What a converter of others raised, which may be of any kind."""
    return InputError(f"method {method.config.method}: {converter} does not convert it"
                      f"{'' if size else ' for any size'} ({type(error).__name__}: {_line(error)})"
                      f"{'' if size else '; give --size HxW'}")


def _to_stablehlo(method: method_lib.Method, nets: dict[str, Any], size: Size,
                  seed: int) -> tuple[int, bytes]:
    def trace(function, low):
        return jax_export.export(jax.jit(function), platforms=PLATFORMS)(low)

    unit, exported = _traced(method, nets, size, seed, trace)
    return unit, exported.serialize()


def _load_stablehlo(data: bytes) -> Run:
    return jax_export.deserialize(bytearray(data)).call


def _to_onnx(method: method_lib.Method, nets: dict[str, Any], size: Size,
             seed: int) -> tuple[int, bytes]:
    import jax2onnx
    # It warns of each value inside the program whose kind it does not note down.
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    unit, closed = _traced(method, nets, size, seed,
                           lambda function, low: jax.make_jaxpr(function)(low))
    low = jax.ShapeDtypeStruct(closed.in_avals[0].shape, np.float32)
    try:
        # It traces with functions of its own in place of jnp's, which know less of symbols than
        # JAX: what it gets has been traced.
        model = jax2onnx.to_onnx(lambda low: _run(closed.jaxpr, closed.consts, [low])[0], [low],
                                 return_mode="proto", input_names=["low"],
                                 output_names=["enhanced"])
    except Exception as error:
        raise _unconverted(method, "jax2onnx", size, error) from error
    return unit, model.SerializeToString()


def _run(jaxpr: Any, constants: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    """Runs a traced program in the words that jax2onnx 0.17 knows: arrays of open sizes are padded
    by putting values beside them, and what is constant is computed here (jax2onnx does so in the
    first program that a process converts only)."""
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*constants, *arguments), strict=True))

    def read(atom):
        return atom.val if isinstance(atom, jax.extend.core.Literal) else values[atom]

    for step in jaxpr.eqns:
        given, name = [read(atom) for atom in step.invars], step.primitive.name
        inner = step.params.get("jaxpr" if name in ("jit", "pjit") else "call_jaxpr")
        if inner is not None:  # of a jitted function or one with a derivative of its own
            results = _run(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), given)
        elif name == "pad" and not _fixed(given[0].shape):
            results = [_pad(*given, step.params["padding_config"])]
        else:
            constant = (given and not any(isinstance(value, jax.core.Tracer) for value in given)
                        and all(_fixed(result.aval.shape) for result in step.outvars))
            with jax.ensure_compile_time_eval() if constant else contextlib.nullcontext():
                results = step.primitive.bind(*given, **step.params)
            results = results if step.primitive.multiple_results else [results]
        values.update(zip(step.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _fixed(shape: Sequence[Any]) -> bool:
    return all(isinstance(side, int) for side in shape)


def _pad(x: Array, value: Array, config: Sequence[tuple[int, int, int]]) -> Array:
    """`lax.pad` by concatenation.

    Raises:
      NotImplementedError: values between those of x, or fewer than x has.
    """
    for axis, (before, after, between) in enumerate(config):
        if between or before < 0 or after < 0:
            raise NotImplementedError(f"lax.pad by {config} of an open size")
        parts = [lax.full_like(x, value, shape=(*x.shape[:axis], count, *x.shape[axis + 1:]))
                 if count else None for count in (before, after)]
        parts.insert(1, x)
        x = lax.concatenate([part for part in parts if part is not None], axis)
    return x


def _load_onnx(data: bytes) -> Run:
    import onnxruntime
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return lambda low: session.run(None, {"low": low})[0]


def _to_tflite(method: method_lib.Method, nets: dict[str, Any], size: Size,
               seed: int) -> tuple[int, bytes]:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # it tells of itself on stderr
    import tensorflow as tf
    from jax.experimental import jax2tf
    tf.config.set_visible_devices([], "GPU")  # it would take the memory that JAX has

    def trace(function, low):
        converted = jax2tf.convert(function, with_gradient=False,
                                   native_serialization_platforms=("cpu",))
        signature = [tf.TensorSpec(low.shape, tf.float32, name="low")]
        whole = tf.function(converted, input_signature=signature, autograph=False)
        return whole, whole.get_concrete_function()

    unit, (whole, concrete) = _traced(method, nets, size, seed, trace)
    try:
        return unit, tf.lite.TFLiteConverter.from_concrete_functions([concrete], whole).convert()
    except Exception as error:
        raise _unconverted(method, "TensorFlow's converter", size, error) from error


def _load_tflite(data: bytes) -> Run:
    from ai_edge_litert import interpreter
    loaded = interpreter.Interpreter(model_content=data)
    loaded.allocate_tensors()
    (low,), (enhanced,) = loaded.get_input_details(), loaded.get_output_details()

    def run(pictures):
        loaded.set_tensor(low["index"], pictures)
        loaded.invoke()
        return loaded.get_tensor(enhanced["index"])

    return run


def _loaded(form: _Format, data: bytes, target: str) -> Run:
    """What runs the file, and says in one line if it cannot."""
    def run(pictures):
        try:
            return form.load(data)(pictures)
        except Exception as error:  # what others' programs raise may be of any kind
            raise InputError(f"{target}: {form.runs} does not run the exported program, which was "
                             f"not kept ({type(error).__name__}: {_line(error)})") from error

    return run


def _difference(run: Run, method: method_lib.Method, nets: dict[str, Any], unit: int,
                sizes: Sequence[tuple[int, int]], seed: int) -> float:
    """The largest difference of what an exported program gives from the method itself: of one
    picture of the first size, two of the second."""
    largest, enhance = 0.0, jax.jit(method.enhance)
    for number, (height, width) in enumerate(sizes):
        lows = np.random.default_rng(number).random((number + 1, height, width, 3), np.float32)
        padded = np.stack([images.pad(low, -height % unit, -width % unit) for low in lows])
        expected = np.asarray(enhance(nets, padded, jax.random.key(seed))).clip(0, 1)
        found = np.asarray(run(lows))
        if found.shape != lows.shape:
            return math.inf
        for one, other in zip(found, expected, strict=True):
            difference = np.abs(one - images.crop(other, height, width)).max()
            largest = max(largest, float(difference)) if np.isfinite(difference) else math.inf
    return largest


_FORMATS = {
    ".stablehlo": _Format(
        runs=f"JAX ({', '.join(PLATFORMS)})", needs=("flatbuffers",),
        get="pip install 'lljax[export]'", open=True, convert=_to_stablehlo, load=_load_stablehlo),
    ".onnx": _Format(
        runs="ONNX Runtime", needs=("jax2onnx", "onnxruntime"),
        get="it wants an older orbax-checkpoint than lljax, so make an environment of its own: "
            "python -m venv onnx-env; onnx-env/bin/pip install jax2onnx ml-collections safetensors "
            "pillow tqdm scipy; onnx-env/bin/pip install --no-deps lljax; then "
            "onnx-env/bin/lljax export (docs/export.md)",
        open=True, convert=_to_onnx, load=_load_onnx),
    ".tflite": _Format(
        runs="LiteRT (TensorFlow Lite)", needs=("tensorflow", "ai_edge_litert"),
        get="pip install 'lljax[tflite]'", open=False, convert=_to_tflite, load=_load_tflite),
}
