"""What runs in one process have in common: pictures decoded once, programs compiled once."""

from __future__ import annotations

import json
import re
import signal
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from lljax import config as config_lib
from lljax import parallel
from lljax.data import pipeline, sources
from lljax.inference import enhancer
from lljax.method import Method, State
from lljax.training import logs

# These reach the programs as arguments, or do not reach them: see `method.Method`.
_NO_PART = re.compile(r"seed|steps_per_call|loss\.\w+\.weight|phase\.\w+\.steps"
                      r"|(data|eval|log|checkpoint|init|resume)(\..+)?")
ALONE = "sequential"  # how one run is computed, with its batch on all devices
_PICTURES = 2 ** 30  # bytes of decoded evaluation pictures that are kept


def seed_of(seed: int) -> np.uint32:
    """A seed as the programs take it."""
    return np.uint32(seed % 2 ** 32)


def lockstep_key(config: ConfigDict) -> str:
    """Equal for configs that can be trained in lockstep: they differ in seeds and loss weights."""
    return json.dumps({key: value for key, value in config_lib.flat(config).items()
                       if not re.fullmatch(r"seed|loss\.\w+\.weight", key)}, sort_keys=True)


def program_key(config: ConfigDict) -> str:
    """Equal for configs whose training steps are one program, given batches of one size."""
    return json.dumps({key: value for key, value in config_lib.flat(config).items()
                       if not _NO_PART.fullmatch(key)}, sort_keys=True)


class Step:
    """The compiled step of one run, its batch on all devices.

    Args:
      steps: (state, batches [K, b, ...], weights) -> (state, scalars [K]), per device.
    """

    def __init__(self, steps: Callable[..., Any]):
        self._compiled = parallel.pmap(steps)

    def __call__(self, states: Any, batches: Sequence[Sequence[dict]],
                 weights: Any) -> tuple[Any, Any]:
        """(states, batches of a member [a dict a step], weights) -> (states, scalars), laid out as
        `place`, `weights` and `scalars` do and undo."""
        return self._compiled(states, self._batch(batches), weights)

    def _batch(self, batches: Sequence[Sequence[dict]]) -> dict[str, np.ndarray]:
        (batches,) = batches
        return jax.tree.map(lambda *xs: np.stack(xs, axis=1), *map(parallel.split, batches))

    def shapes(self, state: Any, batches: Sequence[dict], weights: Any) -> dict[str, Any]:
        """Shapes of the scalars of one run; nothing is compiled."""
        return jax.eval_shape(self._compiled.compiled, state, self._batch([batches]), weights)[1]

    def place(self, states: Sequence[State]) -> Any:
        """The members' states on the devices."""
        return parallel.place(states[0])

    def states(self, states: Any) -> Sequence[State]:
        """The members' states, of what `place` or a call gave."""
        return [states]

    def weights(self, weights: Sequence[dict[str, np.ndarray]]) -> Any:
        """The members' loss weights."""
        return weights[0]

    def scalars(self, scalars: dict[str, np.ndarray]) -> Sequence[dict[str, np.ndarray]]:
        """The members' scalars [K], of what a call gave."""
        return [scalars]


class _Unrolled(Step):
    """Several runs as copies in one program, on one device."""

    def __init__(self, steps: Callable[..., Any]):
        def together(states, batches, weights):
            found = [alone(*each) for each in zip(states, batches, weights, strict=True)]
            return tuple(zip(*found, strict=True))

        alone = parallel.alone(steps)
        self._compiled = jax.jit(together, donate_argnums=0)

    def _batch(self, batches: Sequence[Sequence[dict]]) -> tuple[dict[str, np.ndarray], ...]:
        return tuple(jax.tree.map(lambda *xs: np.stack(xs), *own) for own in batches)

    def place(self, states: Sequence[State]) -> Any:
        return tuple(jax.device_put(jax.device_get(state)) for state in states)

    def states(self, states: Any) -> Sequence[State]:
        return states

    def weights(self, weights: Sequence[dict[str, np.ndarray]]) -> Any:
        return tuple(weights)

    def scalars(self, scalars: Any) -> Sequence[dict[str, np.ndarray]]:
        return scalars


class _Stacked(Step):
    """Several runs by vmap, on one device: every array has a leading axis of runs."""

    def __init__(self, steps: Callable[..., Any]):
        self._compiled = jax.jit(jax.vmap(parallel.alone(steps)), donate_argnums=0)

    def _batch(self, batches: Sequence[Sequence[dict]]) -> dict[str, np.ndarray]:
        return _stack([jax.tree.map(lambda *xs: np.stack(xs), *own) for own in batches])

    def place(self, states: Sequence[State]) -> Any:
        return jax.device_put(_stack(jax.device_get(list(states))))

    def states(self, states: Any) -> Sequence[State]:
        return _unstack(jax.device_get(states))

    def weights(self, weights: Sequence[dict[str, np.ndarray]]) -> Any:
        return _stack(weights)

    def scalars(self, scalars: Any) -> Sequence[dict[str, np.ndarray]]:
        return _unstack(scalars)


class _Apart(_Stacked):
    """Several runs, one a device."""

    def __init__(self, steps: Callable[..., Any]):
        self._compiled = parallel.apart(parallel.alone(steps))

    def place(self, states: Sequence[State]) -> Any:
        return _stack(jax.device_get(list(states)))


def _stack(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *xs: np.stack(xs), *trees)


def _unstack(tree: Any) -> list[Any]:
    count = len(jax.tree.leaves(tree)[0])
    return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(count)]


LOCKSTEP: dict[str, type[Step]] = {"devices": _Apart, "unrolled": _Unrolled, "vmap": _Stacked}


class Features:
    """Adds to a run's batches what a phase needs of each picture, computed once a picture.

    Args:
      compute: compiled, (networks, uint8 [1, H, W, 3]) -> {name: [1, ...]}; None to add nothing.
      nets: the networks that the phase does not train.
      pictures: number of pictures of a role, at most.
      room: bytes that may be kept in memory; where all pictures would take more, nothing is added.

    Attributes:
      computed: pictures computed so far.
    """

    def __init__(self, compute: Callable[..., dict[str, jax.Array]] | None = None,
                 nets: dict[str, Any] | None = None, pictures: int = 0, room: int = 0):
        self.computed = 0
        self._compute, self._pictures, self._room = compute, pictures, room
        # a copy: the training takes the buffers of its own
        self._nets = jax.device_put(jax.device_get(nets or {}), jax.local_devices()[0])
        self._kept: dict[tuple[str, int], dict[str, np.ndarray]] = {}

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """A batch of `pipeline.Data`, with `features` (see `Method.frozen_features`) and without
        the records' numbers."""
        roles = [role for role in pipeline.ROLES if role in batch]
        numbers = {role: batch[f"{role}_record"] for role in roles}
        batch = {name: value for name, value in batch.items() if not name.endswith("_record")}
        if not self._kept and self._compute and not self._fits(batch[roles[0]], len(roles)):
            self._compute = None
        if not self._compute:
            return batch
        return {**batch, "features": {role: _stack([
            self._of(role, int(number), picture)
            for number, picture in zip(numbers[role], batch[role], strict=True)])
            for role in roles}}

    def _fits(self, pictures: np.ndarray, roles: int) -> bool:
        """Whether there is room for the features of all pictures, if they are of this size."""
        found = jax.eval_shape(self._compute, self._nets, pictures[:1])
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(found))
        return size * self._pictures * roles <= self._room

    def _of(self, role: str, number: int, picture: np.ndarray) -> dict[str, np.ndarray]:
        if (role, number) not in self._kept:
            found = jax.device_get(self._compute(self._nets, picture[None]))
            self._kept[role, number] = {name: value[0] for name, value in found.items()}
            self.computed += 1
        return self._kept[role, number]


class Shared:
    """Data and programs of the runs of one process, the last of each kind.

    A run alone makes its own; runs one after the other, or in lockstep, are given one. Only the
    latest config's are kept: memory stays that of one run. Use it as a context: within it a
    SIGTERM is noted, so that the step in progress can end and be saved.

    Attributes:
      interrupted: whether there was a SIGTERM.
    """

    def __init__(self):
        self.interrupted = False
        self._last: dict[str, tuple[Hashable, Any]] = {}

    def __enter__(self) -> Shared:
        def note(*_):
            self.interrupted = True
        # Python takes signals in the main thread alone.
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._before = signal.signal(signal.SIGTERM, note)
        return self

    def __exit__(self, *_) -> None:
        if self._main:
            signal.signal(signal.SIGTERM, self._before)

    def data(self, config: ConfigDict) -> pipeline.Data:
        """The training data of a config.

        Raises:
          InputError: as `pipeline.Data`.
        """
        return self._kept("data", config_lib.to_json(config.data), lambda: pipeline.Data(
            config.data, report=logs.say_anywhere))

    def pairs(self, config: ConfigDict) -> sources.Cached:
        """The pairs of `config.eval`, each decoded once.

        Raises:
          InputError: as `sources.open`.
        """
        data, wanted = config.data, config.eval
        where = {"source": wanted.source, "low": wanted.low, "high": wanted.high,
                 "root": data.root, "prepared": data.prepared}
        return self._kept("pairs", json.dumps(where), lambda: sources.Cached(sources.open(
            split="test", flags="--config.eval.", **where), _PICTURES))

    def initial(self, config: ConfigDict, method: Method) -> tuple[Callable, Callable]:
        """The function (seed, blank picture [1, H, W, 3]) -> initial networks: to be traced, and
        compiled."""
        # it runs once a run, and its many random draws take a CPU's compiler a minute otherwise
        quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None

        def make():
            traced = jax.jit(lambda seed, blank: method.init(
                jax.random.key(seed), {"low": blank, "high": blank}))
            return traced, jax.jit(traced, compiler_options=quick)

        return self._program(config, "initial", make)

    def step(self, config: ConfigDict, method: Method, phase: str, how: str = ALONE,
             count: int = 1) -> Step:
        """The compiled step of a phase, for one run or several in lockstep."""
        return self._program(config, ("step", phase, how, count),
                             lambda: {ALONE: Step, **LOCKSTEP}[how](_steps(method, phase)))

    def features(self, config: ConfigDict, method: Method, phase: str,
                 nets: dict[str, Any]) -> Features:
        """What adds to one run's batches of a phase what is computed once a picture: nothing where
        the pictures differ from step to step, or the method has nothing to keep.

        Args:
          config: of the run.
          method: of the config.
          phase: that is to run.
          nets: all networks at its start.
        """
        of_pictures, data = method.frozen_features(phase), self.data(config)
        if not (of_pictures and data.fixed):
            return Features()
        compute = self._program(config, ("features", phase), lambda: jax.jit(
            lambda nets, picture: of_pictures(nets, pipeline.unit(picture))))
        frozen = {net: nets[net] for net in nets if net not in method.nets_of(phase)}
        return Features(compute, frozen, len(data), int(config.data.cache_gib * 2**30))

    def enhancer(self, config: ConfigDict, method: Method, nets: dict[str, Any],
                 seed: int) -> enhancer.Enhancer:
        """Networks as they stand, in one enhancer for all: it compiles once."""
        made = self._program(config, "enhancer", lambda: enhancer.Enhancer(method, nets))
        made.use(nets, seed)
        return made

    def _program(self, config: ConfigDict, name: Hashable, make: Callable[[], Any]) -> Any:
        programs = self._kept("programs", program_key(config), dict)
        if name not in programs:
            programs[name] = make()
        return programs[name]

    def _kept(self, kind: str, key: Hashable, make: Callable[[], Any]) -> Any:
        if self._last.get(kind, (None,))[0] != key:
            self._last.pop(kind, None)  # first let go, then make
            self._last[kind] = key, make()
        return self._last[kind][1]


def _steps(method: Method, phase: str) -> Callable[..., tuple[Any, dict[str, jax.Array]]]:
    """The training steps of a call, per device: (state, batches [K, b, ...], weights) -> (state,
    scalars [K])."""
    def one(state, batch, weights):
        stop, seed = batch.pop("stop")[0], batch.pop("seed")[0]
        batch = pipeline.on_device(batch, seed, state.step)
        state, scalars = method.train_step(state, batch, weights, phase=phase)
        state = state.replace(step=state.step + 1, phase_step=state.phase_step + 1)
        return state, {**scalars, "stop": stop}

    return lambda state, batches, weights: parallel.scan(
        lambda carry, batch: one(carry, dict(batch), weights), state, batches)
