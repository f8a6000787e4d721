"""Reading configs: a file with presets, changes from the command line, JSON from a checkpoint."""

from __future__ import annotations

import importlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from lljax.errors import InputError, unknown


def parse(argv: Sequence[str], **extra: tuple[Any, str]) -> flags.FlagValues:
    """Parses `--config FILE[:preset,...] --config.key=value ...` and a command's own flags.

    Args:
      argv: the command line, program name first.
      **extra: flag name -> (default, help). The default's type decides the flag's: bool, int,
        str, or a list of strings for a flag that may be repeated.

    Returns:
      The parsed flags; `.config` is the locked ConfigDict (None if --config was not given) and
      the extra flags are attributes.

    Raises:
      InputError: unknown flag, config key, preset, or a value of the wrong type, in one line.
    """
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", None, "Config file, presets after a colon: configs/METHOD.py:PRESET",
        lock_config=True, flag_values=values, sys_argv=list(argv))
    for name, (default, text) in extra.items():
        define = {bool: flags.DEFINE_bool, int: flags.DEFINE_integer,
                  list: flags.DEFINE_multi_string}.get(type(default), flags.DEFINE_string)
        define(name, default, text, flag_values=values)
    if {"--help", "-h", "-help"} & set(argv[1:]):
        print(f"usage: {os.path.basename(argv[0])} [flags]\n")
        print(values.main_module_help() or values.get_help())
        raise SystemExit(0)
    _check_config_file(argv)
    try:
        rest = values(list(argv))
    except InputError:
        raise
    except (flags.Error, KeyError, AttributeError, TypeError, ValueError) as error:
        raise InputError(_one_line(error)) from error
    if len(rest) > 1:
        raise InputError(f"unexpected argument {rest[1]!r}; flags are written --name=value")
    return values


def _check_config_file(argv: Sequence[str]) -> None:
    """config_flags loads a missing file as an object that raises at first use; say it now."""
    for i, arg in enumerate(argv):
        match = re.fullmatch(r"--?config(?:=(.*))?", arg)
        if not match:
            continue
        value = match.group(1) or (argv[i + 1] if i + 1 < len(argv) else "")
        path = value.split(":")[0]
        if not os.path.isfile(path):
            raise InputError(f"--config: no file {path!r}; those that come with lljax are "
                             "configs/<method>.py")


def _one_line(error: Exception) -> str:
    """The cause of a parsing error, without the traceback that config_flags quotes."""
    while error.args and isinstance(error.args[0], Exception):  # config_flags wraps a KeyError
        error = error.args[0]
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    if "Traceback" in text:  # an exception from get_config: its own message is the last line
        head = text.split("Error whilst")[0].rstrip(": ")
        text = f"{head}: {text.strip().splitlines()[-1].split(': ', 1)[-1]}"
    text = re.sub(r"\s*\n\s*", ". ", text.strip())
    if isinstance(error, (KeyError, AttributeError)):
        text = f"unknown config key {text}"
    return text


def default(method: str, presets: str = "") -> ConfigDict:
    """The shipped config of a method, as `configs/<method>.py:<presets>`.

    Raises:
      InputError: no config of that name is shipped, or an unknown preset.
    """
    name = f"lljax.configs.{method}"
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in (name, "lljax.configs"):
            raise
        from lljax.method import list_methods
        raise unknown("method", method, list_methods()) from None
    return module.get_config(presets).lock()


def apply_presets(config: ConfigDict, presets: str, known: Mapping[str, Any]) -> ConfigDict:
    """Applies a comma list of presets in order, later wins.

    Args:
      config: complete config, changed in place.
      presets: e.g. "paper,smoke"; empty for none.
      known: preset name -> nested mapping of the values it sets, or a function of the config.

    Raises:
      InputError: an unknown preset (names the known), or a preset that sets a missing key.
    """
    config.lock()
    for name in filter(None, (p.strip() for p in presets.split(","))):
        if name not in known:
            raise unknown("preset", name, known)
        preset = known[name]
        if callable(preset):
            preset(config)
        else:
            config.update(preset)
    return config


def change(config: ConfigDict, settings: Sequence[str]) -> ConfigDict:
    """A copy with some values changed, e.g. how a trained network is used.

    Args:
      config: complete config; it stays as it is.
      settings: "key=value" texts, later wins; the key is dotted ("denoise.name=nlm"), the value
        is read as the type of the present one, and a list as JSON ("[1, 2]").

    Returns:
      The copy, locked.

    Raises:
      InputError: no "=", an unknown key, a group of keys, or a value of another type.
    """
    config = config.copy_and_resolve_references()
    with config.unlocked():
        for text in settings:
            key, equals, value = text.partition("=")
            if not equals or not key:
                raise InputError(f"setting {text!r}: write KEY=VALUE, e.g. model.width=32")
            *groups, name = key.split(".")
            node, prefix = config, ""
            for group in groups:
                node = _entry(node, prefix, group)
                prefix += f"{group}."
                if not isinstance(node, ConfigDict):
                    raise InputError(f"setting {text!r}: {prefix[:-1]} is one value, no group")
            present = _entry(node, prefix, name)
            if isinstance(present, ConfigDict):
                keys = ", ".join(f"{key}.{one}" for one in sorted(present))
                raise InputError(f"setting {text!r}: {key} is a group; set one of {keys}")
            node[name] = _parsed(text, value, present)
    return config.lock()


def _entry(node: ConfigDict, prefix: str, name: str) -> Any:
    if name not in node:
        raise unknown("config key", prefix + name, [prefix + one for one in node])
    return node[name]


def _parsed(text: str, value: str, present: Any) -> Any:
    """`value` as the type of the present one."""
    if present is None or isinstance(present, str):  # what may be None is a path or a name
        return value
    kind = tuple if isinstance(present, (list, tuple)) else type(present)
    try:
        if kind is bool:
            return {"true": True, "false": False}[value.lower()]
        if kind is tuple:
            found = json.loads(value)
            if not isinstance(found, list):
                raise ValueError
            return type(present)(found)
        number = kind(value)
        if not math.isfinite(number):
            raise ValueError
        return number
    except (ValueError, KeyError):
        what = {bool: "true or false", int: "a whole number", float: "a number",
                tuple: "a list such as [1, 2]"}[kind]
        raise InputError(f"setting {text!r}: {value!r} is not {what}") from None


def to_json(config: ConfigDict) -> str:
    """A config as JSON text (tuples become lists)."""
    return json.dumps(config.to_dict(), indent=1, sort_keys=True)


def from_json(text: str) -> ConfigDict:
    """A config from `to_json`, locked."""
    return ConfigDict(json.loads(text)).lock()


def differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """The keys whose values differ, as `key: old -> new` lines."""
    before, after = flat(old), flat(new)
    absent = "absent"
    return [f"{key}: {before.get(key, absent)} -> {after.get(key, absent)}"
            for key in sorted(before.keys() | after.keys())
            if before.get(key, absent) != after.get(key, absent)]


def flat(config: ConfigDict) -> dict[str, Any]:
    """Every value by its dotted key, as JSON keeps it (tuples are lists)."""
    return _flat(json.loads(to_json(config)), "")


def _flat(tree: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    values = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            values.update(_flat(value, f"{prefix}{key}."))
        else:
            values[prefix + key] = value
    return values
