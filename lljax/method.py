"""The interface that every method implements, and the one way a network takes a gradient step."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from lljax import optim, parallel
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
      ema: averaged parameters of the networks whose optimiser has `ema` > 0.
    """

    step: Array
    phase_step: Array
    nets: dict[str, Variables]
    opt: dict[str, optax.OptState]
    ema: dict[str, Params]

    def averaged(self) -> dict[str, Variables]:
        """The networks as they should be used: averaged parameters where there are any."""
        return {name: {**net, "params": self.ema.get(name, net["params"])}
                for name, net in self.nets.items()}


class Method:
    """A published system: its networks, losses, training step and use.

    Subclass it as `Method` in `lljax/methods/<name>.py`. Batches are dicts with `low`
    [B, H, W, 3] float32 in [0, 1], `high` (same, if the data has references), `mask` [B] (1 for
    an image that counts), `key` [B] (one PRNG key an image: every random draw comes from it).

    Attributes:
      halo: radius of the receptive field of `estimate` in pixels, if it is local; None if it
        sees the whole picture.
      multiple: picture sides are padded to a multiple of this before `estimate`.
      unroll: whether micro-batches are unrolled on a CPU; False compiles faster, and runs as fast
        if every convolution that is trained is `layers.convolve`.
    """

    halo: int | None = None
    multiple: int = 1
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
        """The maps that `apply` needs, [B, h, w, C] each, from `low` [B, H, W, 3] in [0, 1]."""
        raise NotImplementedError

    def apply(self, nets: dict[str, Variables], low: Array, maps: dict[str, Array]) -> Array:
        """The enhanced picture [B, H, W, 3], unclipped. Maps may come from a smaller copy."""
        raise NotImplementedError

    def official_keys(self) -> dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]]:
        """Official checkpoint name -> (our path, e.g. "curve/params/conv1/kernel", transform)."""
        raise NotImplementedError

    def nets_of(self, phase: str) -> tuple[str, ...]:
        """The networks trained in a phase: those that have an optimiser there."""
        return tuple(self.config.phase[phase].optim)

    def enhance(self, nets: dict[str, Variables], low: Array, key: Array) -> Array:
        """`apply` of `estimate`: [B, H, W, 3] in [0, 1] -> [B, H, W, 3], unclipped."""
        return self.apply(nets, low, self.estimate(nets, low, key))

    def explain(self, nets: dict[str, Variables], low: Array, key: Array) -> dict[str, Array]:
        """The maps of `estimate` and the picture they give, under the key `enhanced`."""
        maps = self.estimate(nets, low, key)
        return {**maps, "enhanced": self.apply(nets, low, maps)}

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

    def update(self, state: State, net: str,
               loss_fn: Callable[[Params, Batch], tuple[dict[str, Array], Any]],
               batch: Batch, weights: dict[str, Array], *,
               phase: str) -> tuple[State, Scalars, Any]:
        """One gradient step on one network; call it inside the mapped training step.

        Args:
          state: as it stands; only `net`'s entries change.
          net: the network to train.
          loss_fn: (params, micro-batch) -> (terms {name: [b]}, aux). Terms are raw, one value an
            image. aux is None or a dict of per-image arrays; its key "batch_stats" holds new
            statistics of `net`, already averaged over the devices, and needs the whole batch as
            one micro-batch.
          batch: this device's share, leading axis B.
          weights: loss weights by term; a term's weight multiplies it here and nowhere else.
          phase: name of the phase.

        Returns:
          (state, scalars, aux): scalars are averages over the images of all devices, `loss/<term>`
          (raw), `total/<net>` (weighted) and `grad_norm/<net>` (before any clip); aux is
          concatenated over the micro-batches.

        Raises:
          InputError: a micro-batch that does not divide the batch, or a term without a weight.
        """
        config = self.config.phase[phase]
        params = state.nets[net]["params"]
        count = parallel.psum(batch["mask"].sum())

        def objective(params, part):
            terms, aux = loss_fn(params, part)
            if not terms:
                raise InputError(f"every loss term of network {net!r} is disabled; enable at "
                                 "least one in config.loss")
            if missing := set(terms) - set(weights):
                raise InputError(f"network {net!r} returns the loss terms {sorted(missing)}, which "
                                 f"config.loss does not enable (enabled: {sorted(weights)})")
            means = {name: (value * part["mask"]).sum() / count for name, value in terms.items()}
            total = sum(weights[name] * value for name, value in means.items())
            return total, ({**{f"loss/{k}": v for k, v in means.items()}, f"total/{net}": total},
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

        value = scalars[f"total/{net}"]
        scalars[f"grad_norm/{net}"] = optax.tree.norm(grads)
        changes, opt = self.optimizer(phase, net).update(grads, state.opt[net], params, value=value)
        params = optax.apply_updates(params, changes)
        variables = {**state.nets[net], "params": params}
        if "batch_stats" in aux:
            variables["batch_stats"] = aux.pop("batch_stats")
        ema = dict(state.ema)
        if net in ema:
            ema[net] = optax.incremental_update(params, ema[net], 1 - config.optim[net].ema)
        return state.replace(nets={**state.nets, net: variables}, opt={**state.opt, net: opt},
                             ema=ema), scalars, aux


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
