"""One run as the loop sees it: its config, files, state, and what it reads, logs and saves."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from lljax import checkpoint, optim
from lljax import method as method_lib
from lljax.errors import Stopped
from lljax.evaluation import evaluate, report
from lljax.inference.enhancer import Enhancer
from lljax.method import State
from lljax.training import logs, start
from lljax.training.shared import Shared


class Member:
    """A run: alone, or one of several in lockstep. Use it as a context.

    Args:
      config: complete config.
      workdir: of the run.
      shared: data and programs of the process.
      name: put before every line that is printed; "" for none.

    Attributes:
      begin: where the run starts.
      state: where it stands.
      weights: loss weights by term.
      stopped: why it ended early, None if it did not.

    Raises:
      InputError: a config that cannot be run, or a workdir that does not fit it.
    """

    def __init__(self, config: ConfigDict, workdir: str, shared: Shared, name: str = ""):
        start.check(config)
        jax.config.update("jax_default_matmul_precision",
                          None if config.precision == "default" else config.precision)
        self.config, self.workdir, self.shared = config, workdir, shared
        self.name, self._say = name, f"{name}: " if name else ""
        self.method = method_lib.load(config)
        self.weights = self.method.weights()
        maximize = evaluate.higher_is_better(config.checkpoint.best)
        best = config.checkpoint.best if config.eval.every else None
        self.saved = checkpoint.Checkpoints(workdir, config.checkpoint.keep, best, maximize)
        self.log: logs.Log | None = None
        self.pairs = None
        self.stopped: Stopped | None = None
        self._window: list[dict[str, np.ndarray]] = []
        self._open = contextlib.ExitStack()
        self._open.enter_context(self.saved)
        try:
            self.begin = start.find(config, self.method, self.saved, shared)
        except BaseException:
            self._open.close()
            raise
        self.state = self.begin.state

    def __enter__(self) -> Member:
        return self

    def __exit__(self, *error) -> None:
        # what ended the run is told to those that log it
        if self.stopped and error == (None, None, None):
            error = (type(self.stopped), self.stopped, self.stopped.__traceback__)
        self._open.__exit__(*error)

    def say(self, text: str) -> None:
        """Prints a line, once for all processes."""
        if jax.process_index() == 0:
            print(f"{self._say}{text}", flush=True)

    def open_pairs(self) -> None:
        """Opens what is evaluated and shown while training, if anything is."""
        if self.config.eval.every or self.config.log.samples:
            self.pairs = self.shared.pairs(self.config)

    def open_log(self) -> None:
        """Starts to write into the workdir."""
        self.log = self._open.enter_context(
            logs.Log(self.workdir, self.config, int(self.state.step)))
        for note in (*self.begin.notes, *self.method.notes()):
            self.say(note)

    def start_phase(self, phase: str, first: bool) -> None:
        """Lists the networks; a phase that is not the first to run gets new optimisers."""
        if not first:
            self.state = self.method.start_phase(self.state.nets, self.state.step, phase)
        self.log.networks(self.state.nets, self.method.nets_of(phase), phase)

    def read(self, scalars: Mapping[str, np.ndarray], names: Sequence[str], step: int) -> None:
        """Takes the scalars [K] of a call, whose last step is `step`; one that is not finite ends
        the run.

        Args:
          scalars: on the host.
          names: of the call's pictures.
          step: over all phases.
        """
        self._window.append(dict(scalars))
        finite = {name: np.isfinite(values) for name, values in scalars.items()}
        if all(ok.all() for ok in finite.values()):
            return
        at = min(int(np.argmin(ok)) for ok in finite.values() if not ok.all())
        broken = sorted(name for name, ok in finite.items() if not ok[at])
        # The terms are the cause; totals and norms follow from them.
        named = [name for name in broken if name.startswith("loss/")] or broken
        values = ", ".join(f"{name} is {scalars[name][at]}" for name in named)
        self.stopped = Stopped(
            f"{values} at step {step - len(finite[named[0]]) + 1 + at}; its batch: "
            f"{', '.join(names)}. Nothing was saved since the last checkpoint; lower the "
            "learning rate or take the pictures out", 1)

    def report(self, phase: str, done: int, step: int, left: int, rate: float,
               skipped: int) -> None:
        """A line of progress, and the record of it.

        Args:
          phase: that runs.
          done: steps of it.
          step: steps over all phases.
          left: steps to go over all phases.
          rate: steps a second.
          skipped: broken pictures so far.
        """
        phase_config = self.config.phase[phase]
        means = logs.averages(self._window)
        means.pop("stop")
        record = {"step": step, "phase": phase, "phase_step": done, **means,
                  "images_per_s": rate * phase_config.batch_size, "skipped_records": skipped}
        for net in self.method.nets_of(phase):
            base = float(optim.schedule(phase_config.optim[net])(done - 1))
            record[f"lr/{net}"] = base * record.pop(f"lr_scale/{net}", 1.0)
        self.log.scalars(record)
        self.say(logs.line(record, step + left, left / rate))
        for note in self.method.observe(record):
            self.say(note)
        self._window.clear()

    def occasionally(self, state: State, phase: str, due: set[str]) -> None:
        """Evaluation, checkpoint and sample pictures, as far as they are due."""
        self.state, step = state, int(state.step)
        metrics = self._evaluate(step) if "eval" in due else None
        if due & {"eval", "checkpoint", "end", "stop"}:
            self.saved.save(state, self.config, phase, metrics)
        if due & {"samples", "end"}:
            self._samples(step)

    def enhancer(self, seed: int) -> Enhancer:
        """The networks as they stand; the next call for any run of the process replaces them."""
        return self.shared.enhancer(self.config, self.method,
                                    jax.device_get(self.state.averaged()), seed)

    def _evaluate(self, step: int) -> dict[str, float] | None:
        if not self.log.writes:
            return None
        results = evaluate.evaluate({"model": self.enhancer(self.config.seed)}, self.pairs,
                                    limit=self.config.eval.limit, baselines=False)
        means = results.means("model")
        self.log.scalars({"step": step, **{f"eval/{k}": v for k, v in means.items()}})
        self.say(f"evaluation at step {step}: " + " ".join(
            f"{name} {value:.4g}" for name, value in means.items()))
        return means

    def _samples(self, step: int) -> None:
        if not (self.log.writes and self.config.log.samples):
            return
        enhance = self.enhancer(self.config.seed)
        shown = [self.pairs[i] for i in report.spread(len(self.pairs), self.config.log.samples)]
        sheet = report.contact_sheet({"low": [pair["low"] for pair in shown],
                                      "enhanced": [enhance(pair["low"]) for pair in shown],
                                      "reference": [pair["high"] for pair in shown]})
        report.write_png(os.path.join(self.log.workdir, "samples", f"step_{step:06d}.png"), sheet)
        self.log.picture("samples", sheet, step)
