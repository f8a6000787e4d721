"""Weights files: one .safetensors with the networks, the config and the model card.

A tensor's name is the path of its array, "curve/params/conv1/kernel". The metadata holds `lljax`
(version that wrote it), `config` (JSON) and `card` (JSON: licence, data, scores, ...).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from ml_collections import ConfigDict

from lljax import config as config_lib
from lljax.errors import InputError
from lljax.images import atomic

DEFAULT = "zerodcepp"  # what enhances where no model is named; why: docs/zerodcepp.md
_SUFFIX = ".safetensors"


def save(path: str | os.PathLike, config: ConfigDict, nets: Mapping[str, Any],
         card: Mapping[str, Any], overwrite: bool = False) -> None:
    """Writes a weights file, whole or not at all.

    Args:
      path: ends in .safetensors.
      config: the complete config of the training; its `method` says what the networks are.
      nets: network name -> variables, nested mappings of arrays.
      card: what a user should know, JSON values: `licence`, `data`, `source`, `scores`, ...
      overwrite: whether an existing file may be replaced.

    Raises:
      InputError: another suffix, an existing file, or no such folder.
      ValueError: an array's name holds a slash.
    """
    path = os.fspath(path)
    if not path.endswith(_SUFFIX):
        raise InputError(f"{path}: a weights file ends in {_SUFFIX}")
    if os.path.exists(path) and not overwrite:
        raise InputError(f"{path}: exists already; choose another name or pass --overwrite")
    if not os.path.isdir(os.path.dirname(path) or "."):
        raise InputError(f"{path}: the folder does not exist")
    # safetensors writes a transposed view's memory as it lies, so make every array contiguous.
    tensors = {name: np.asarray(value, order="C") for name, value in _flat(nets)}
    about = {"lljax": metadata.version("lljax"), "config": config_lib.to_json(config),
             "card": json.dumps(dict(card), indent=1, sort_keys=True)}
    with atomic(path) as file:
        file.write(safetensors.numpy.save(tensors, about))


def load(path: str | os.PathLike) -> tuple[ConfigDict, dict[str, Any], dict[str, Any]]:
    """Reads a weights file.

    Returns:
      (config, nets, card): the locked config, network name -> nested dicts of numpy arrays, card.

    Raises:
      InputError: missing, damaged, or not a file that `save` wrote.
    """
    path = os.fspath(path)
    about, tensors = _open(path, tensors=True)
    nets: dict[str, Any] = {}
    for name, value in tensors.items():
        *parents, leaf = name.split("/")
        branch = nets
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[leaf] = value
    return config_lib.from_json(about["config"]), nets, json.loads(about["card"])


def describe(path: str | os.PathLike) -> tuple[ConfigDict, dict[str, Any]]:
    """(config, card) of a weights file, without reading the networks.

    Raises:
      InputError: as `load`.
    """
    about, _ = _open(os.fspath(path), tensors=False)
    return config_lib.from_json(about["config"]), json.loads(about["card"])


def write_card(path: str | os.PathLike) -> str:
    """Writes FILE.json beside FILE.safetensors: its card, what was trained, and its SHA-256.

    Returns:
      The card's path.

    Raises:
      InputError: as `load`.
    """
    path = os.fspath(path)
    config, card = describe(path)
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    whole = {**card, "file": os.path.basename(path), "sha256": digest, "method": config.method,
             "seed": config.seed,
             "steps": {phase: config.phase[phase].steps for phase in config.phases},
             "config": json.loads(config_lib.to_json(config))}
    target = path.removesuffix(_SUFFIX) + ".json"
    with atomic(target) as file:
        file.write((json.dumps(whole, indent=1, sort_keys=True) + "\n").encode())
    return target


def scores(results: str | os.PathLike, model: str) -> dict[str, Any]:
    """What a results.json says of a model: means, intervals, n and protocols.

    Args:
      results: file that evaluate.py wrote.
      model: the workdir or weights file as it was given there.

    Raises:
      InputError: no such file, or it does not hold that model.
    """
    try:
        with open(results, encoding="utf-8") as file:
            whole = json.load(file)
        rows = {os.path.abspath(path): name for name, path in whole["models"].items()}
        row = whole["systems"][rows[os.path.abspath(model)]]
    except OSError as error:
        raise InputError(f"{results}: {error.strerror}") from error
    except (ValueError, KeyError) as error:
        raise InputError(f"{results}: not a results.json of evaluate.py that scored {model}"
                         ) from error
    return {"source": whole["source"], "date": whole["date"], **row}


def shipped() -> dict[str, str]:
    """The weights that come with lljax: name -> file, the default first, the others sorted."""
    folder = os.path.dirname(__file__)
    names = [name.removesuffix(_SUFFIX) for name in os.listdir(folder) if name.endswith(_SUFFIX)]
    return {name: os.path.join(folder, name + _SUFFIX)
            for name in sorted(names, key=lambda name: (name != DEFAULT, name))}


def list_weights() -> list[str]:
    """Names of the weights that come with lljax."""
    return list(shipped())


def _open(path: str, tensors: bool) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such file")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            about = file.metadata() or {}
            values = {name: file.get_tensor(name) for name in file.keys()} if tensors else {}
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a weights file of lljax, or damaged ({error}); a published "
                         "checkpoint is turned into one by `lljax convert METHOD FILE -o "
                         f"OUT{_SUFFIX}`") from error
    if missing := {"config", "card"} - set(about):
        raise InputError(f"{path}: a {_SUFFIX} file, but not written by lljax (it has no "
                         f"{' and no '.join(sorted(missing))}); see `lljax convert`")
    return about, values


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if "/" in key:
            raise ValueError(f"the name {prefix + key!r}: {key!r} holds a slash")
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}/")
        else:
            yield prefix + key, value
