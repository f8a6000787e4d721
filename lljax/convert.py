"""Official PyTorch checkpoints -> weights files of this project, by each method's own key map."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lljax import config as configs
from lljax import layers, method, weights
from lljax.errors import InputError

# torch's BatchNorm counts its batches; older files lack the count and nothing here reads it
_IGNORED = ".num_batches_tracked"


def convert(method_name: str, paths: Sequence[str], out: str, presets: str = "",
            overwrite: bool = False) -> None:
    """Converts a method's official checkpoint and writes it as a weights file.

    Args:
      method_name: the method, with its shipped config.
      paths: the official files (.pth, .tar or .safetensors) that hold its networks, together.
      out: the .safetensors file to write.
      presets: presets of the config, for checkpoints of a variant.
      overwrite: whether `out` may exist and is replaced.

    Raises:
      InputError: a file that cannot be read or holds code, a name that the method does not know
        or misses, one name in two files, a tensor of the wrong shape, or an `out` that cannot be
        written.
    """
    config = configs.default(method_name, presets)
    model = method.load(config)
    nets = _rename(model, _read(paths), paths)
    _check_shapes(model, nets, paths)
    weights.save(out, config, nets, {
        "source": [{"file": os.path.basename(path), "sha256": _sha256(path)} for path in paths],
        "licence": "converted; the licence of the original applies",
    }, overwrite)


def _read(paths: Sequence[str]) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for path in paths:
        found = layers.read_tensors(path)
        if twice := sorted(tensors.keys() & found.keys()):
            raise InputError(f"{path} holds {twice[0]!r} (and {len(twice) - 1} more), which an "
                             "earlier file holds too; give each network once")
        tensors.update(found)
    return {name: value for name, value in tensors.items() if not name.endswith(_IGNORED)}


def _rename(model: method.Method, tensors: dict[str, np.ndarray],
            paths: Sequence[str]) -> dict[str, Any]:
    keys = model.official_keys()
    extra, missing = sorted(tensors.keys() - keys.keys()), sorted(keys.keys() - tensors.keys())
    if extra or missing:
        raise InputError(f"{', '.join(paths)} does not match the method "
                         f"{model.config.method!r}: unknown keys: {', '.join(extra) or 'none'}; "
                         f"missing keys: {', '.join(missing) or 'none'}")
    nets: dict[str, Any] = {}
    for name, (path, transform) in keys.items():
        *folders, leaf = path.split("/")
        node = nets
        for folder in folders:
            node = node.setdefault(folder, {})
        node[leaf] = transform(tensors[name])
    return nets


def _check_shapes(model: method.Method, nets: dict[str, Any], paths: Sequence[str]) -> None:
    """Compares the converted networks with what the method would initialise."""
    picture = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    batch = {"low": picture, "high": picture, "key": key,
             "mask": jax.ShapeDtypeStruct((1,), jnp.float32)}
    expected = jax.eval_shape(model.init, jax.random.key(0), batch)
    ours = _shapes(nets)
    theirs = _shapes({name: net for name, net in expected.items() if name in nets})
    wrong = [f"{name} {ours.get(name, 'absent')} instead of {theirs.get(name, 'nothing')}"
             for name in sorted(ours.keys() | theirs.keys()) if ours.get(name) != theirs.get(name)]
    if wrong:
        raise InputError(f"{', '.join(paths)} does not fit the method {model.config.method!r}: "
                         f"{'; '.join(wrong)}")


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
