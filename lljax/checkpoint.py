"""Orbax checkpoints of {state, meta}: meta holds the config, the phase and its step."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers

from lljax import config as config_lib
from lljax import method as method_lib
from lljax.errors import InputError

# Orbax logs a line a file and warns of every default; what matters is raised as an exception.
logging.getLogger("absl").addFilter(
    lambda record: "orbax" not in record.pathname or record.levelno >= logging.ERROR)


class Checkpoints:
    """The checkpoints of one workdir: written in the background, complete or not there at all.

    Args:
      workdir: they lie in its folder `checkpoints`.
      keep: newest ones that are kept.
      best: metric by which one more is kept; None to keep only the newest.
      maximize: whether more of it is better.
      read_only: nothing is created or deleted.
    """

    def __init__(self, workdir: str, keep: int = 1, best: str | None = None, maximize: bool = True,
                 read_only: bool = False):
        def score(metrics):
            return metrics[best] if maximize else -metrics[best]

        policy = checkpoint_managers
        keepers = [policy.LatestN(keep)]
        if best:
            keepers.append(policy.BestN(get_metric_fn=score, n=1,
                                        keep_checkpoints_without_metrics=False))
        folder = os.path.abspath(os.path.join(workdir, "checkpoints"))
        self._writes = not read_only and jax.process_index() == 0
        if self._writes:
            try:
                os.makedirs(folder, exist_ok=True)
            except OSError as error:
                raise InputError(f"cannot write checkpoints to {folder!r}: {error.strerror}; "
                                 "choose another --workdir") from error
        # Orbax would wait for every process at a barrier; the state is the same in all of them, so
        # the first one writes and each reads by itself.
        process = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=process, active_processes={process},
            barrier_sync_key_prefix=f"process_{process}") if jax.process_count() > 1 else (
                ocp.options.MultiprocessingOptions())
        self._manager = ocp.CheckpointManager(
            folder, item_names=("state", "meta"),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy.AnyPreservationPolicy(keepers),
                best_fn=score if best else None, create=False, read_only=not self._writes,
                multiprocessing_options=alone))

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_) -> None:
        self._manager.close()

    def latest(self) -> int | None:
        """Step of the newest checkpoint, None if there is none."""
        return self._manager.latest_step()

    def scores(self) -> dict[int, dict[str, float]]:
        """The validation's metrics by step, of the checkpoints that were saved with them."""
        found = {step: self._manager.metrics(step) for step in self._manager.all_steps()}
        return {step: dict(metrics) for step, metrics in found.items() if metrics}

    def save(self, state: Any, config: ConfigDict, phase: str,
             metrics: dict[str, float] | None = None) -> None:
        """Writes a checkpoint at `state.step` in the background.

        The arrays are copied to the host first: the next training step may reuse their memory.
        """
        if not self._writes:
            return
        state = jax.tree.map(lambda x: np.array(x, copy=True), state)
        meta = {"config": json.loads(config_lib.to_json(config)), "phase": phase,
                "phase_step": int(state.phase_step)}
        self._manager.save(
            int(state.step), metrics=metrics, args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)))

    def meta(self, step: int) -> dict[str, Any]:
        """{"config": ConfigDict, "phase": str, "phase_step": int} of a checkpoint."""
        meta = self._restored(step, meta=ocp.args.JsonRestore()).meta
        return {**meta, "config": config_lib.from_json(json.dumps(meta["config"]))}

    def restore(self, step: int, target: Any) -> Any:
        """The state of a checkpoint as host arrays.

        Args:
          step: of the checkpoint.
          target: a state of the same structure and shapes (arrays or their shapes).

        Raises:
          InputError: the checkpoint's networks or optimisers have other names or shapes.
        """
        blank = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), target)
        try:
            state = self._manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(blank))).state
            # Orbax minds the names alone and hands back arrays of the saved shapes.
            if text := method_lib.shape_differences(state.nets, target.nets):
                raise ValueError(text)
            return state
        except (ValueError, KeyError, OSError, RuntimeError) as error:
            self.raw(step)  # raises if the fault is the file's
            reason = " ".join(str(error).split())[:300]
            raise InputError(
                f"the checkpoint at step {step} of {self._manager.directory} does not fit this "
                f"config's networks and optimisers; use the config it was trained with, or "
                f"another --workdir ({reason})") from error

    def raw(self, step: int) -> dict[str, Any]:
        """The state of a checkpoint as nested dicts, without knowing its method."""
        return self._restored(step, state=ocp.args.StandardRestore()).state

    def _restored(self, step: int, **items: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except (ValueError, KeyError, OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"the checkpoint at step {step} of {self._manager.directory} cannot be read, it is "
                f"damaged or incomplete; delete that folder to go on from an older one ({reason})"
            ) from error


def load_nets(workdir: str, averaged: bool = True,
              step: int | None = None) -> tuple[ConfigDict, dict[str, Any]]:
    """The networks of a training's checkpoint.

    Args:
      workdir: of the training.
      averaged: whether to take averaged parameters where there are any, or those of the last step.
      step: of the checkpoint; None for the newest.

    Returns:
      (config, {network: variables}).

    Raises:
      InputError: no such folder, it has no checkpoint, or no averages that could be left out.
    """
    with opened(workdir) as saved:
        step = saved.latest() if step is None else step
        meta, state = saved.meta(step), saved.raw(step)
    if not (averaged or state["ema"]):
        raise InputError(f"{workdir!r} keeps no averages of its parameters (ema is 0.0 in all of "
                         "config.phase): there is nothing to leave out")
    state = method_lib.State(**{**state, "opt": {}})
    return meta["config"], state.averaged() if averaged else state.nets


@contextlib.contextmanager
def opened(workdir: str) -> Iterator[Checkpoints]:
    """The checkpoints of a training, to be read; there is at least one.

    Raises:
      InputError: no such folder, or it has no checkpoint.
    """
    if not os.path.isdir(os.path.join(workdir, "checkpoints")):
        raise InputError(f"{workdir!r} is not the workdir of a training: it has no checkpoints/")
    with Checkpoints(workdir, read_only=True) as saved:
        if saved.latest() is None:
            raise InputError(f"{workdir!r} has no complete checkpoint yet")
        yield saved
