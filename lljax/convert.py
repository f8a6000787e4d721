"""Official checkpoints -> weights files of this project, by each method's own key map."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lljax import config as configs
from lljax import method, weights
from lljax import tensors as tensors_lib
from lljax.errors import InputError

# torch's BatchNorm counts its batches; older files lack the count and nothing here reads it
_IGNORED = ".num_batches_tracked"
_NAMED = 8  # names that a message lists


class Converted(NamedTuple):
    """What `convert` wrote: the config's presets, whether the files told them, the networks."""

    presets: str
    recognised: bool
    nets: tuple[str, ...]


def convert(method_name: str, paths: Sequence[str], out: str, presets: str = "",
            overwrite: bool = False) -> Converted:
    """Converts a method's official checkpoint and writes it as a weights file.

    Args:
      method_name: the method, with its shipped config.
      paths: the official files that hold its networks, together: .pth, .tar, .safetensors, or a
        TensorFlow checkpoint, of which any of its files or their common name stands for all.
      out: the .safetensors file to write.
      presets: presets of the config, for checkpoints of a variant; empty for what the method
        recognises.
      overwrite: whether `out` may exist and is replaced.

    Raises:
      InputError: a file that cannot be read or holds code, a name that the method does not know
        or misses, one name in two files, a tensor of the wrong shape, or an `out` that cannot be
        written.
    """
    kind = type(method.load(configs.default(method_name)))
    tensors, sources = _read(kind, paths)
    variant = presets or kind.official_presets(tensors.keys())
    config = configs.default(method_name, variant)
    model = method.load(config)
    try:
        nets = _rename(model, tensors)
        _check_shapes(model, nets)
    except _Unfit as error:
        as_what = f" with presets {variant}" if variant else ""
        raise InputError(f"{', '.join(paths)} does not fit the method {method_name!r}{as_what}: "
                         f"{error}") from None
    weights.save(out, config, nets, {
        "source": [{"file": os.path.basename(path), "sha256": _sha256(path)} for path in sources],
        "variant": variant,
        "licence": "converted; the licence of the original applies",
    }, overwrite)
    return Converted(variant, bool(variant and not presets), tuple(nets))


def _read(kind: type[method.Method],
          paths: Sequence[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """(every tensor that is part of the method, the files that were read)."""
    tensors: dict[str, np.ndarray] = {}
    sources: list[str] = []
    for path in paths:
        parts = tensors_lib.files(path)
        if len(parts) > 1 and parts[0] in sources:
            continue  # a pattern like model.ckpt.* names each file of one checkpoint
        found = tensors_lib.read(path)
        unused = kind.official_unused(found.keys())
        found = {name: value for name, value in found.items()
                 if name not in unused and not name.endswith(_IGNORED)}
        prefix = kind.official_prefix(found.keys())
        found = {prefix + name: value for name, value in found.items()}
        if twice := sorted(tensors.keys() & found.keys()):
            raise InputError(f"{path} holds {twice[0]!r} (and {len(twice) - 1} more), which an "
                             "earlier file holds too; give each network once")
        tensors.update(found)
        sources += parts
    return tensors, sources


class _Unfit(Exception):
    """What the files hold instead of the method's networks, in words."""


def _some(names: Sequence[str]) -> str:
    """Names for a message: the first few, and how many more there are."""
    shown = ", ".join(names[:_NAMED]) or "none"
    return shown + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _rename(model: method.Method, tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    keys = model.official_keys()
    owner = {name: path.split("/")[0] for name, (path, _) in keys.items()}
    given = {owner[name] for name in keys.keys() & tensors}
    # enhancing needs no discriminator: its file may be left out
    keys = {name: entry for name, entry in keys.items()
            if owner[name] in given or owner[name] not in model.optional}
    extra, missing = sorted(tensors.keys() - keys.keys()), sorted(keys.keys() - tensors.keys())
    if extra or missing:
        absent = sorted({owner[name] for name in keys} - given)
        hint = f" (nothing of {', '.join(absent)}: is a file not given?)" if absent else ""
        raise _Unfit(f"unknown keys: {_some(extra)}; missing keys: {_some(missing)}{hint}")
    nets: dict[str, Any] = {}
    for name, (path, transform) in keys.items():
        *folders, leaf = path.split("/")
        node = nets
        for folder in folders:
            node = node.setdefault(folder, {})
        node[leaf] = transform(tensors[name])
    return nets


def _check_shapes(model: method.Method, nets: dict[str, Any]) -> None:
    """Compares the converted networks with what the method would initialise."""
    picture = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    batch = {"low": picture, "high": picture, "key": key,
             "mask": jax.ShapeDtypeStruct((1,), jnp.float32)}
    expected = jax.eval_shape(model.init, jax.random.key(0), batch)
    expected = {name: net for name, net in expected.items() if name in nets}
    if wrong := method.shape_differences(nets, expected):
        raise _Unfit(wrong)


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
