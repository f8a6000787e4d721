"""The interface that every method implements, and the one way networks take a gradient step."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from lljax import layers, optim, parallel
from lljax.errors import InputError, unknown

Array = jax.Array
Params = Any  # a pytree of arrays
Variables = dict[str, Params]  # {"params": ..., "batch_stats"?: ...}
Batch = dict[str, Array]
Scalars = dict[str, Array]


@flax.struct.dataclass
class State:
    """Everything a training carries from step to step.

    Attributes:
      step: int32, updates over all phases.
      phase_step: int32, updates within this phase.
      nets: every network, trained or frozen.
      opt: optimiser state of the networks trained in this phase; an absent network is frozen.
      ema: averaged parameters of the networks whose optimiser has `ema` > 0: after n steps of the
        phase, those of step i weigh ema^(n - i), and the initial ones nothing.
    """

    step: Array
    phase_step: Array
    nets: dict[str, Variables]
    opt: dict[str, optax.OptState]
    ema: dict[str, Params]

    def averaged(self) -> dict[str, Variables]:
        """The networks as they should be used: averaged parameters where there are any; running
        statistics are those of the last step."""
        return {name: {**net, "params": self.ema.get(name, net["params"])}
                for name, net in self.nets.items()}


class Method:
    """A published system: its networks, losses, training step and use.

    Subclass it as `Method` in `lljax/methods/<name>.py`. Batches are dicts with `low`
    [B, H, W, 3] float32 in [0, 1], `high` (same, if the data has references), `mask` [B] (1 for
    an image that counts), `key` [B] (one PRNG key an image: every random draw comes from it), and
    for draws that tie images together `step_key` [B] (the step's PRNG key, the same for all images
    of all devices) and `index` [B] int32 (the image's place in the batch of all devices); some
    have `features`, see there.

    Runs whose configs differ only in what is no part of the program share one compiled step: the
    training step reads neither `config.seed` nor `config.data`, nor a loss term's weight.

    Attributes:
      halo: radius of the receptive field of `enhance` in pixels, if it is local; None if it sees
        the whole picture. With `staged`: of `condense`, and of `apply` in picture and maps.
      multiple: picture sides are padded to a multiple of this before `estimate`, see `margins`.
      placed: whether a local method must know where in its picture a tile lies: `estimate`,
        `apply`, `enhance` and `explain` then take `window`, a `layers.Window` in px of the padded
        picture whose corners are multiples of `multiple`; None means the whole picture. A tile may
        be larger than its picture: what it shows of the picture must not depend on what lies
        beyond (`layers.inside`).
      light: of a `placed` method, whether a megapixel takes less time than compiling: its tiles
        have fewer different sides.
      staged: whether only what lies between `condense` and `apply` sees the whole picture:
        `condense` and `apply` then run tile by tile and `solve` once.
      optional: networks that enhancing does not need; an official file without them is converted,
        and weights are packed without them.
      costly: maps of `explain` that the picture does not need and that cost time: they are computed
        only where maps are asked for.
      steady: maps of `estimate` [B, h, w, C] that are averaged over time in a video, so that a
        scene at rest does not flicker; h and w divide the padded picture's sides.
      unroll: whether micro-batches are unrolled on a CPU; False compiles faster, and runs as fast
        if every convolution that is trained is `layers.convolve`.
    """

    halo: int | None = None
    multiple: int = 1
    placed: bool = False
    light: bool = False
    staged: bool = False
    optional: tuple[str, ...] = ()
    costly: tuple[str, ...] = ()
    steady: tuple[str, ...] = ()
    unroll: bool = True

    def __init__(self, config: ConfigDict):
        self.config = config

    def init(self, key: Array, batch: Batch) -> dict[str, Variables]:
        """Initial variables of every network, from the shapes of `batch`."""
        raise NotImplementedError

    def train_step(self, state: State, batch: Batch, weights: dict[str, Array], *,
                   phase: str) -> tuple[State, Scalars]:
        """One training step on one device, by calls of `update`; traced once a phase."""
        raise NotImplementedError

    def estimate(self, nets: dict[str, Variables], low: Array, key: Array) -> dict[str, Array]:
        """The maps that `apply` needs, [B, h, w, C] each, from `low` [B, H, W, 3] in [0, 1].

        Here `solve` of `condense`; a method defines either this or those two.
        """
        return self.solve(nets, self.condense(nets, low), key)

    def condense(self, nets: dict[str, Variables], low: Array) -> dict[str, Array]:
        """What `solve` needs of `low` [B, H, W, 3]: few or small maps, [B, h, w, C] each."""
        raise NotImplementedError

    def solve(self, nets: dict[str, Variables], small: dict[str, Array],
              key: Array) -> dict[str, Array]:
        """The maps that `apply` needs, and others for `explain`, of what `condense` made of the
        whole picture."""
        raise NotImplementedError

    def apply(self, nets: dict[str, Variables], low: Array, maps: dict[str, Array]) -> Array:
        """The enhanced picture [B, H, W, 3], unclipped. Maps may come from a smaller copy."""
        raise NotImplementedError

    def official_keys(self) -> dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]]:
        """Official checkpoint name -> (our path, e.g. "curve/params/conv1/kernel", transform).

        The names follow the config: those of the variant, and of the networks, that it asks for.
        """
        raise NotImplementedError

    @classmethod
    def official_presets(cls, names: Collection[str]) -> str:
        """The variant of the method that an official checkpoint is of.

        `convert` uses it where the user gives no presets. What cannot be told from the tensors'
        shapes, such as the padding, is then recorded with the weights and cannot be got wrong.

        Args:
          names: of every tensor in the checkpoint's files, less those of `official_unused`.

        Returns:
          Presets of the method's config, a comma list; "" for the config as it is.
        """
        del names
        return ""

    @classmethod
    def official_unused(cls, names: Collection[str]) -> set[str]:
        """Those tensors of one official file that are no part of the method.

        `convert` drops them before it puts the files together, so they may even have the names
        of another file's tensors.

        Args:
          names: of every tensor in the file.
        """
        del names
        return set()

    @classmethod
    def official_prefix(cls, names: Collection[str]) -> str:
        """What `convert` puts before the names of one official file's tensors.

        It tells apart networks whose files use the same names; `official_presets` and
        `official_keys` have the names with it.

        Args:
          names: of every tensor in the file, less those of `official_unused`.
        """
        del names
        return ""

    def notes(self) -> tuple[str, ...]:
        """What the user should know before the training starts, a line each.

        Here: a phase that a moving average, which is what is used, spans from its first steps on,
        or one too long for its learning rate.
        """
        lines = []
        for phase in self.config.phases:
            knobs = self.config.phase[phase]
            for net, optimizer in knobs.optim.items():
                where = f"--config.phase.{phase}.optim.{net}"
                if optimizer.ema ** knobs.steps > 0.05:
                    lines.append(f"the moving average of {net}, which is what is used, reaches "
                                 f"back to the first of {knobs.steps} steps: for a run this short "
                                 f"set {where}.ema=0.0, or nearer to 0")
                if optimizer.schedule == "linear" and optimizer.decay_end < knobs.steps:
                    lines.append(f"the learning rate of {net} is 0 from step {optimizer.decay_end} "
                                 f"of {knobs.steps} of phase {phase!r} on: raise {where}.decay_end "
                                 "(and .decay_start) too")
        return tuple(lines)

    def observe(self, record: Mapping[str, float | int | str]) -> tuple[str, ...]:
        """What the user should know of the training's course, a line each.

        The loop calls it at every line of progress, on the host.

        Args:
          record: what is logged: `step`, `loss/<term>`, ... averaged since the last line.
        """
        del record
        return ()

    def nets_of(self, phase: str) -> tuple[str, ...]:
        """The networks trained in a phase: those that have an optimiser there."""
        return tuple(self.config.phase[phase].optim)

    def needs(self, phase: str) -> tuple[str, ...]:
        """The networks that a phase builds on: trained by an earlier phase, or brought along by
        `config.init` or `config.resume`. A training that starts without them is refused."""
        del phase
        return ()

    def paired(self, phase: str) -> bool:
        """Whether a phase needs `low` and `high` of one scene. A training of such a phase on
        pictures that are drawn independently is refused."""
        del phase
        return False

    def frozen_features(self, phase: str) -> (
            Callable[[dict[str, Variables], Array], dict[str, Array]] | None):
        """What a phase needs of each picture and does not change while it trains, as a function
        (the networks that the phase does not train, pictures [B, H, W, 3] in [0, 1]) -> {name:
        [B, ...] float32}, of each picture by itself; None if there is nothing worth keeping.

        Where the data show the same pictures at every step the function is called once a picture,
        and batches have what it returned: `features`, {"low": {name: [B, ...]}, "high"?: ...}.
        Elsewhere they have no `features`, and the training step calls the function itself.
        """
        del phase
        return None

    def margins(self, side: int) -> tuple[int, int]:
        """How many px a picture's side is extended by, before and after it, to a multiple of
        `multiple`: mirrored without the edge, or with the edge repeated if it is too short."""
        return 0, -side % self.multiple

    def enhance(self, nets: dict[str, Variables], low: Array, key: Array,
                window: layers.Window | None = None) -> Array:
        """`apply` of `estimate`: [B, H, W, 3] in [0, 1] -> [B, H, W, 3], unclipped.

        Args:
          nets: the networks.
          low: pictures, or tiles of them.
          key: of what is drawn.
          window: where a tile lies, if the method is `placed`.
        """
        return self.explain(nets, low, key, window)["enhanced"]

    def explain(self, nets: dict[str, Variables], low: Array, key: Array,
                window: layers.Window | None = None) -> dict[str, Array]:
        """The maps of `estimate` and the picture they give, under the key `enhanced`; arguments as
        of `enhance`. A method may add maps; what is not asked for is not in the compiled
        program."""
        place = {"window": window} if self.placed else {}
        maps = self.estimate(nets, low, key, **place)
        return {**maps, "enhanced": self.apply(nets, low, maps, **place)}

    def draw(self, maps: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Pictures of the maps, for people to look at; runs on the host.

        Here those of one or three channels, cut to [0, 1]; a method whose maps have another range
        or depth says how they are shown. A large picture comes in tiles, if the method has a
        `halo`: a pixel is drawn of the maps at that pixel alone. What is drawn in another size
        than a map's (a strip of several) is kept whole.

        Args:
          maps: of one picture or tile, raw, [h, w, C] or [n, h, w, C] each (and what is no map, as
            it is), without `enhanced`.

        Returns:
          Name -> [h, w, 1 or 3] in [0, 1]. The names do not depend on the values.
        """
        return {name: value.clip(0, 1) for name, value in maps.items()
                if value.ndim == 3 and value.shape[-1] in (1, 3)}

    def optimizer(self, phase: str, net: str) -> optax.GradientTransformationExtraArgs:
        """The optimiser of one network in one phase."""
        return optim.build(self.config.phase[phase].optim[net])

    def weights(self) -> dict[str, np.ndarray]:
        """The weight of every enabled loss term: a traced argument of the training step."""
        return {name: np.float32(term.weight)
                for name, term in self.config.loss.items() if term.enabled}

    def start_phase(self, nets: dict[str, Variables], step: Array, phase: str) -> State:
        """The state at the start of a phase: networks as they are, optimisers and averages new.

        Raises:
          InputError: the phase trains a network that `nets` lacks.
        """
        trained = self.nets_of(phase)
        for net in trained:
            if net not in nets:
                raise unknown(f"network in config.phase.{phase}.optim", net, nets)
        params = {net: nets[net]["params"] for net in trained}
        averaged = [net for net in trained if self.config.phase[phase].optim[net].ema]
        return State(
            step=jnp.asarray(step, jnp.int32), phase_step=jnp.zeros((), jnp.int32), nets=nets,
            opt={net: self.optimizer(phase, net).init(params[net]) for net in trained},
            ema={net: jax.tree.map(jnp.copy, params[net]) for net in averaged})

    def update(self, state: State, nets: Sequence[str],
               loss_fn: Callable[[dict[str, Params], Batch], tuple[dict[str, Array], Any]],
               batch: Batch, weights: dict[str, Array], *,
               phase: str) -> tuple[State, Scalars, Any]:
        """One gradient step on one network, or on several that share a loss (end to end).

        Call it inside the mapped training step. Each network has its own optimiser.

        Args:
          state: as it stands; only the entries of `nets` change.
          nets: the networks to train.
          loss_fn: ({net: params}, micro-batch) -> (terms {name: [b]}, aux). Terms are raw, one
            value an image. aux is None or a dict of per-image arrays; its key "batch_stats" holds
            {net: new statistics}, already averaged over the devices, and needs the whole batch
            as one micro-batch.
          batch: this device's share, leading axis B.
          weights: loss weights by term; a term's weight multiplies it here and nowhere else.
          phase: name of the phase.

        Returns:
          (state, scalars, aux): scalars are averages over the images of all devices, `loss/<term>`
          (raw), `total/<nets joined by +>` (weighted) and `grad_norm/<net>` (before any clip);
          aux is concatenated over the micro-batches.

        Raises:
          InputError: a micro-batch that does not divide the batch, or a term without a weight.
        """
        config = self.config.phase[phase]
        joined = "+".join(nets)
        params = {net: state.nets[net]["params"] for net in nets}
        count = parallel.psum(batch["mask"].sum())

        def objective(params, part):
            terms, aux = loss_fn(params, part)
            if not terms:
                raise InputError(f"every loss term of network {joined!r} is disabled; enable at "
                                 "least one in config.loss")
            if missing := set(terms) - set(weights):
                raise InputError(f"network {joined!r} returns the loss terms {sorted(missing)}, "
                                 f"which config.loss does not enable (enabled: {sorted(weights)})")
            means = {name: (value * part["mask"]).sum() / count for name, value in terms.items()}
            total = sum(weights[name] * value for name, value in means.items())
            return total, ({**{f"loss/{k}": v for k, v in means.items()}, f"total/{joined}": total},
                           aux)

        grad_fn = jax.grad(objective, has_aux=True)
        size = batch["mask"].shape[0]
        micro = config.microbatch or size
        if micro == -1:
            micro = 1 if jax.default_backend() == "cpu" else size
        if micro < 1 or size % micro:
            raise InputError(f"config.phase.{phase}.microbatch is {config.microbatch}, which does "
                             f"not divide the {size} images of one device; choose a divisor, 0 "
                             "for all, or -1 for one image on CPU and all elsewhere")
        if micro >= size:
            grads, (scalars, aux) = grad_fn(params, batch)
            aux = dict(aux or {})
        else:
            grads, scalars, aux = _accumulate(grad_fn, params, batch, micro, self.unroll)
        grads, scalars = parallel.psum((grads, scalars))

        stats = aux.pop("batch_stats", {})
        state = state.replace(nets=dict(state.nets), opt=dict(state.opt), ema=dict(state.ema))
        for net in nets:
            scalars[f"grad_norm/{net}"] = optax.tree.norm(grads[net])
            changes, state.opt[net] = self.optimizer(phase, net).update(
                grads[net], state.opt[net], params[net], value=scalars[f"total/{joined}"])
            if config.optim[net].schedule == "plateau":
                scalars[f"lr_scale/{net}"] = optax.tree_utils.tree_get(state.opt[net], "scale")
            new = optax.apply_updates(params[net], changes)
            state.nets[net] = {**state.nets[net], "params": new}
            if net in stats:
                state.nets[net]["batch_stats"] = stats[net]
            if net in state.ema:
                # Corrected for the start, as Adam's averages are: the initial values do not count.
                decay, steps = config.optim[net].ema, state.phase_step + 1
                share = (decay - 1) / jnp.expm1(steps * math.log(decay))
                state.ema[net] = optax.incremental_update(new, state.ema[net], share)
        return state, scalars, aux


def _accumulate(grad_fn, params, batch, micro, unroll):
    """Gradients and scalars summed, aux concatenated, over micro-batches of `micro` images."""
    parts = jax.tree.map(lambda x: x.reshape((-1, micro) + x.shape[1:]), batch)
    first = jax.tree.map(lambda x: x[0], parts)
    shapes = jax.eval_shape(grad_fn, params, first)
    if "batch_stats" in (shapes[1][1] or {}):
        raise InputError("a network with batch statistics needs the whole batch at once: "
                         "set this phase's microbatch to 0")
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (shapes[0], shapes[1][0]))

    def body(sums, part):
        grads, (scalars, aux) = grad_fn(params, part)
        return jax.tree.map(jnp.add, sums, (grads, scalars)), aux

    (grads, scalars), aux = parallel.scan(body, zeros, parts, unroll)
    aux = jax.tree.map(lambda x: x.reshape((-1,) + x.shape[2:]), aux)
    return grads, scalars, dict(aux or {})


def shape_differences(found: Any, expected: Any) -> str:
    """Where the shapes of two trees of arrays differ, in words, at most three; "" if nowhere."""
    found, expected = _shapes(found), _shapes(expected)
    wrong = [f"{name} {found.get(name, 'absent')} instead of {expected.get(name, 'nothing')}"
             for name in sorted(found.keys() | expected.keys())
             if found.get(name) != expected.get(name)]
    return "; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else "")


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def load(config: ConfigDict) -> Method:
    """The method that `config.method` names: a file of `lljax/methods/`, or a dotted module.

    Raises:
      InputError: no such method (names the known ones).
    """
    name = config.method
    path = name if "." in name else f"lljax.methods.{name}"
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not (path == error.name or path.startswith(error.name + ".")):
            raise
        raise unknown("method", name, list_methods()) from None
    return module.Method(config)


def list_methods() -> Sequence[str]:
    """Names of the methods in the box."""
    folder = os.path.join(os.path.dirname(__file__), "methods")
    return sorted(f[:-3] for f in os.listdir(folder) if f.endswith(".py") and f[0] != "_")
