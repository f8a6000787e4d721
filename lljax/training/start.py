"""Where a run starts: its own workdir, another run, other networks, or nothing."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from lljax import checkpoint
from lljax import config as config_lib
from lljax import method as method_lib
from lljax.errors import InputError, unknown
from lljax.inference import enhancer
from lljax.method import Method, State
from lljax.training import logs
from lljax.training.shared import Shared, seed_of

LEAST = {"seed": 0, "steps_per_call": 1, "data.resize": 0, "data.crop": 0, "data.threads": 0,
         "data.cache_gib": 0, "eval.every": 0, "eval.limit": 0, "log.every": 0,
         "log.samples_every": 0, "log.samples": 0, "checkpoint.every": 0, "checkpoint.keep": 1}
PRECISIONS = ("default", "high", "highest")


def check(config: ConfigDict) -> None:
    """Refuses what can be refused before any work.

    Raises:
      InputError: a value out of its range, a phase that is not described, steps or batch sizes
        that do not fit the steps per call or the devices, a logger that is not installed.
    """
    flat = config_lib.flat(config)
    for key, least in LEAST.items():
        if flat[key] < least:
            raise InputError(f"config.{key} is {flat[key]}; it must be {least} or more")
    if config.precision not in PRECISIONS:
        raise unknown("config.precision", config.precision, PRECISIONS)
    logs.check(config)
    if not config.phases:
        raise InputError(f"config.phases is empty; phases that are described: "
                         f"{', '.join(sorted(config.phase))}")
    devices, calls = jax.device_count(), config.steps_per_call
    for phase in config.phases:
        if phase not in config.phase:
            raise unknown("phase in config.phases", phase, config.phase)
        size, steps = config.phase[phase].batch_size, config.phase[phase].steps
        if size < 1 or size % devices:
            raise InputError(f"config.phase.{phase}.batch_size is {size}; it must be a multiple of "
                             f"the {devices} devices")
        if steps < 1 or steps % calls:
            raise InputError(f"config.phase.{phase}.steps is {steps}; it must be a multiple of "
                             f"config.steps_per_call, {calls}, and 1 or more")


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a run starts.

    Attributes:
      state: host or device arrays, not yet placed.
      phases: those still to run, the first perhaps half done; empty if the run is finished.
      notes: what the user should know, a line each.
    """

    state: State
    phases: tuple[str, ...]
    notes: tuple[str, ...] = ()


def check_pairs(config: ConfigDict, method: Method, phases: tuple[str, ...],
                unpaired: bool) -> None:
    """Refuses pictures that are drawn independently where a phase needs those of one scene.

    Args:
      config: complete config.
      method: of the config.
      phases: those still to run.
      unpaired: whether the training data are, see `pipeline.Data`.

    Raises:
      InputError: such a phase.
    """
    for phase in phases if unpaired else ():
        if method.paired(phase):
            raise InputError(
                f"phase {phase!r} is trained on two pictures of one scene at a time, but "
                f"config.data.source={config.data.source} draws them independently; use "
                "config.data.source=pairs with data.low and data.high (matched by file name)")


def find(config: ConfigDict, method: Method, saved: checkpoint.Checkpoints,
         shared: Shared) -> Start:
    """The own workdir's last checkpoint, else another run's, else other networks or new ones.

    Raises:
      InputError: a checkpoint or network that does not fit the config.
    """
    first = config.phases[0]
    traced, new = shared.initial(config, method)
    beginning = _beginning(config)
    fresh = jax.eval_shape(lambda: method.start_phase(traced(*beginning), 0, first))
    if saved.latest() is not None:
        return _resume(config, method, saved, fresh)
    if config.resume:
        with checkpoint.Checkpoints(config.resume, read_only=True) as other:
            if other.latest() is None:
                raise InputError(f"config.resume: {config.resume!r} has no checkpoint")
            begin = _resume(config, method, other, fresh)
        if not begin.phases:
            raise InputError(f"config.resume: the run in {config.resume!r} is finished; raise the "
                             "steps of its last phase, or take its networks by config.init")
        return begin
    _check_needs(config, method)
    nets = new(*beginning)
    notes = []
    for net, path in config.init.items():
        if path:
            nets[net], changed = _borrowed(config, net, nets[net])
            notes.append(f"network {net} from {path}{changed}")
    return Start(method.start_phase(nets, 0, first), tuple(config.phases), tuple(notes))


def _beginning(config: ConfigDict) -> tuple[np.ndarray, np.ndarray]:
    """What initial networks are made of: the seed, and a picture of the size they are for."""
    side = config.data.crop or config.data.resize or 64
    return seed_of(config.seed), np.zeros((1, side, side, 3), np.float32)


def _check_needs(config: ConfigDict, method: Method) -> None:
    """A phase must find the networks it builds on."""
    trained = {net for net, path in config.init.items() if path}
    for phase in config.phases:
        for net in method.needs(phase):
            if net not in trained:
                raise InputError(
                    f"phase {phase!r} builds on the network {net!r}, which no earlier phase of "
                    f"config.phases {tuple(config.phases)} trains; put one that does before it, or "
                    f"give --config.init.{net} a workdir or a weights file")
        trained |= set(method.nets_of(phase))


def _borrowed(config: ConfigDict, net: str, own: Any) -> tuple[Any, str]:
    """The variables of `config.init.<net>`'s workdir or weights file, of the shapes of `own`, and
    what differs about its model."""
    path = config.init[net]
    other, nets = enhancer.read(path)
    if net not in nets:
        raise InputError(f"config.init.{net}: {path!r} has the networks {sorted(nets)}")
    if text := method_lib.shape_differences(nets[net], own):
        raise InputError(f"config.init.{net}: {path!r} holds another variant of it: {text}"
                         + _model_differences(other, config, "; set as it was: "))
    return nets[net], _model_differences(other, config, "; trained with another config: ")


def _model_differences(old: ConfigDict, new: ConfigDict, before: str) -> str:
    """Why networks of two configs differ, to be appended to a message; "" if nothing does."""
    lines = [line for line in config_lib.differences(old, new)
             if line.startswith(("method:", "model."))]
    return before + ", ".join(lines) if lines else ""


def _resume(config, method, saved, fresh: State) -> Start:
    step = saved.latest()
    meta = saved.meta(step)
    old, phase = meta["config"], meta["phase"]
    if phase not in config.phases:
        raise InputError(f"the checkpoint is in phase {phase!r}, which config.phases "
                         f"{tuple(config.phases)} lacks; use another --workdir")
    at = tuple(config.phases).index(phase)
    for name in config.phases[:at]:
        if old.phase[name].steps != config.phase[name].steps:
            raise InputError(
                f"config.phase.{name}.steps is {config.phase[name].steps}, but the checkpoint ran "
                f"that phase for {old.phase[name].steps} steps; restore the value, or use another "
                "--workdir")
    done, length = meta["phase_step"], config.phase[phase].steps
    if done > length:
        raise InputError(f"config.phase.{phase}.steps is {length}, but the checkpoint is already "
                         f"at step {done} of that phase; raise it, or use another --workdir")
    target = jax.eval_shape(lambda nets: method.start_phase(nets, 0, phase), fresh.nets)
    try:
        state = saved.restore(step, target)
    except InputError as error:
        raise InputError(
            f"{error}{_model_differences(old, config, '; set as it was: ')}") from error
    notes = [f"resumed at step {step} ({phase} {done}/{length})"]
    notes += [f"changed since the checkpoint: {text}" for text in
              config_lib.differences(old, config)]
    rest = tuple(config.phases[at + (done == length):])
    if done == length and rest:
        state = method.start_phase(state.nets, state.step, rest[0])
    return Start(state, rest, tuple(notes))
