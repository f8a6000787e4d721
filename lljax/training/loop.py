"""The one training loop. It does not know the method: the method owns its training step."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
from collections.abc import Iterator

import jax
import numpy as np
from ml_collections import ConfigDict

from lljax import checkpoint, optim, parallel
from lljax import method as method_lib
from lljax.data import pipeline, sources
from lljax.errors import InputError, Stopped
from lljax.evaluation import evaluate, report
from lljax.inference import enhancer
from lljax.method import Method, State
from lljax.training import logs, start

REQUEUE = 75  # exit code after a SIGTERM: saved, run the same command again (EX_TEMPFAIL)


def fit(config: ConfigDict, workdir: str) -> State:
    """Trains what `config` describes, from wherever `workdir` stands.

    Args:
      config: complete config, as configs/<method>.py gives it.
      workdir: folder of the run; the same call resumes it, or returns at once if it is finished.

    Returns:
      The final state.

    Raises:
      InputError: something the caller has to mend, in one line.
      Stopped: by SIGTERM after saving (code 75), or by a loss that is not finite (code 1).
    """
    start.check(config)
    jax.config.update("jax_default_matmul_precision",
                      None if config.precision == "default" else config.precision)
    method = method_lib.load(config)
    maximize = evaluate.higher_is_better(config.checkpoint.best)
    best = config.checkpoint.best if config.eval.every else None
    with checkpoint.Checkpoints(
            workdir, config.checkpoint.keep, best, maximize) as saved, _Interrupt() as interrupt:
        begin = start.find(config, method, saved)
        if not begin.phases:
            print(f"finished: {int(begin.state.step)} steps in {workdir}", flush=True)
            for note in begin.notes[1:]:  # the first says where it stands
                print(f"without effect, {note}", flush=True)
            return begin.state
        training = _Training(config, method, saved, interrupt)
        training.prepare(begin)  # what can fail comes before anything is written
        with logs.Log(workdir, config, int(begin.state.step)) as training.log:
            return training.run(begin)


class _Interrupt:
    """Notes a SIGTERM, so that the step in progress can end and be saved."""

    def __init__(self):
        self.seen = False

    def __enter__(self) -> _Interrupt:
        def note(*_):
            self.seen = True
        # Python takes signals in the main thread alone.
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._before = signal.signal(signal.SIGTERM, note)
        return self

    def __exit__(self, *_) -> None:
        if self._main:
            signal.signal(signal.SIGTERM, self._before)


@dataclasses.dataclass
class _Training:
    """One run of `fit`: what every phase needs, and the phases' loop."""

    config: ConfigDict
    method: Method
    saved: checkpoint.Checkpoints
    interrupt: _Interrupt
    log: logs.Log | None = None
    enhance: enhancer.Enhancer | None = None

    def prepare(self, begin: start.Start) -> None:
        """Opens the data and traces every phase."""
        config = self.config
        self.data = pipeline.Data(config.data, report=logs.say_anywhere)
        start.check_pairs(config, self.method, begin.phases, self.data.unpaired)
        self.weights = self.method.weights()
        self.pairs = self._pairs()
        self.total = sum(config.phase[phase].steps for phase in config.phases)
        self._check_terms(begin.state.nets)

    def run(self, begin: start.Start) -> State:
        """Runs the phases that are left."""
        for note in (*begin.notes, *self.method.notes()):
            self.log.say(note)
        state = parallel.place(begin.state)
        for number, phase in enumerate(begin.phases):
            if number:
                state = parallel.place(
                    self.method.start_phase(state.nets, state.step, phase))
            self.log.networks(state.nets, self.method.nets_of(phase), phase)
            state = self._phase(state, phase)
        return state

    def _pairs(self):
        wanted = self.config.eval
        if not (wanted.every or self.config.log.samples):
            return None
        data = self.config.data
        return sources.open(wanted.source, split="test", low=wanted.low, high=wanted.high,
                            root=data.root, prepared=data.prepared, flags="--config.eval.")

    def _check_terms(self, nets) -> None:
        """The enabled loss terms must be those that the phases' steps return."""
        returned = set()
        for phase in self.config.phases:
            state = jax.eval_shape(lambda n, p=phase: self.method.start_phase(n, 0, p), nets)
            batch = next(self.batches(phase, 0, 1))[0]
            scalars = jax.eval_shape(self.step_fn(phase).compiled, state, batch, self.weights)[1]
            returned |= {name.removeprefix("loss/") for name in scalars
                         if name.startswith("loss/")}
        if returned != set(self.weights):
            raise InputError(f"config.loss enables {sorted(self.weights)}, but the training steps "
                             f"of {tuple(self.config.phases)} return {sorted(returned)}")

    def step_fn(self, phase: str):
        """The compiled step: (state, batches [D, K, b, ...], weights) -> (state, scalars [K])."""
        method, seed = self.method, self.config.seed

        def one(state, batch, weights):
            stop = batch.pop("stop")
            batch = pipeline.on_device(batch, seed, state.step)
            state, scalars = method.train_step(state, batch, weights, phase=phase)
            state = state.replace(step=state.step + 1, phase_step=state.phase_step + 1)
            return state, {**scalars, "stop": stop}

        return parallel.pmap(lambda state, batches, weights: parallel.scan(
            lambda carry, batch: one(carry, dict(batch), weights), state, batches))

    def batches(self, phase: str, start: int, calls: int) -> Iterator[tuple[dict, list[str]]]:
        """Batches of `calls` steps each: arrays [D, K, b, ...] and the pictures' names."""
        config = self.config
        number = tuple(config.phases).index(phase)
        stream = self.data.batches(config.seed + 7919 * number, start,
                                   config.phase[phase].batch_size,
                                   jax.process_index(), jax.process_count())
        while True:
            steps = [next(stream) for _ in range(calls)]
            stacked = [parallel.split(batch) for batch, _ in steps]
            arrays = jax.tree.map(lambda *xs: np.stack(xs, axis=1), *stacked)
            stop = np.full(arrays["mask"].shape[:2], self.interrupt.seen, np.float32)
            yield {**arrays, "stop": stop}, [name for _, names in steps for name in names]

    def _phase(self, state: State, phase: str) -> State:
        config = self.config
        steps = config.phase[phase].steps
        calls = config.steps_per_call
        done = int(state.phase_step)
        offset = int(state.step) - done
        step_fn, stream = self.step_fn(phase), self.batches(phase, done, calls)
        window, previous, stop, clock = [], None, False, logs.Clock(done)
        while done < steps:
            batch, names = next(stream)
            state, scalars = step_fn(state, batch, self.weights)
            # The device works on this call while the previous one's numbers are read.
            if previous:
                window.append(self._read(*previous))
                stop = stop or window[-1]["stop"].any()
            done += calls
            previous = (scalars, names, offset + done)
            due = _due(done, calls, steps, config) | ({"stop"} if stop else set())
            if not due:
                continue
            window.append(self._read(*previous))  # nothing unread is shown or saved
            stop, previous = stop or window[-1]["stop"].any(), None
            if due & {"log", "end", "stop"}:
                self._report(window, phase, done, offset, clock)
            with clock.paused():
                self._occasionally(state, phase, due)
            if "stop" in due and done < steps:
                raise Stopped(f"interrupted; saved at step {offset + done}, the same command "
                              "goes on from there", REQUEUE)
        return state

    def _occasionally(self, state: State, phase: str, due: set[str]) -> None:
        """Evaluation, checkpoint and sample pictures, as far as they are due."""
        step = int(state.step)
        metrics = self._evaluate(state, step) if "eval" in due else None
        if due & {"eval", "checkpoint", "end", "stop"}:
            self.saved.save(state, self.config, phase, metrics)
        if due & {"samples", "end"}:
            self._samples(state, step)

    def _read(self, scalars, names: list[str], step: int) -> dict[str, np.ndarray]:
        """A call's scalars on the host; one that is not finite ends the training."""
        scalars = jax.device_get(scalars)
        finite = {name: np.isfinite(values) for name, values in scalars.items()}
        if all(ok.all() for ok in finite.values()):
            return scalars
        at = min(int(np.argmin(ok)) for ok in finite.values() if not ok.all())
        broken = sorted(name for name, ok in finite.items() if not ok[at])
        # The terms are the cause; totals and norms follow from them.
        named = [name for name in broken if name.startswith("loss/")] or broken
        values = ", ".join(f"{name} is {scalars[name][at]}" for name in named)
        raise Stopped(f"{values} at step {step - len(finite[named[0]]) + 1 + at}; its batch: "
                      f"{', '.join(names)}. Nothing was saved since the last checkpoint; lower the "
                      "learning rate or take the pictures out", 1)

    def _report(self, window, phase, done, offset, clock) -> None:
        if not window:
            return
        phase_config = self.config.phase[phase]
        means = logs.averages(window)
        means.pop("stop")
        rate = clock.rate(done)
        record = {"step": offset + done, "phase": phase, "phase_step": done, **means,
                  "images_per_s": rate * phase_config.batch_size,
                  "skipped_records": self.data.skipped}
        for net in self.method.nets_of(phase):
            base = float(optim.schedule(phase_config.optim[net])(done - 1))
            record[f"lr/{net}"] = base * record.pop(f"lr_scale/{net}", 1.0)
        self.log.scalars(record)
        self.log.say(logs.line(record, self.total, (self.total - offset - done) / rate))
        for note in self.method.observe(record):
            self.log.say(note)
        window.clear()

    def _enhancer(self, state: State) -> enhancer.Enhancer:
        """The networks as they stand, in one enhancer for the whole run: it compiles once."""
        nets = jax.device_get(state.averaged())
        if self.enhance is None:
            self.enhance = enhancer.Enhancer(self.method, nets, seed=self.config.seed)
        self.enhance.use(nets)
        return self.enhance

    def _evaluate(self, state: State, step: int) -> dict[str, float] | None:
        if not self.log.writes:
            return None
        results = evaluate.evaluate({"model": self._enhancer(state)}, self.pairs,
                                    limit=self.config.eval.limit, baselines=False)
        means = results.means("model")
        self.log.scalars({"step": step, **{f"eval/{k}": v for k, v in means.items()}})
        self.log.say(f"evaluation at step {step}: " + " ".join(
            f"{name} {value:.4g}" for name, value in means.items()))
        return means

    def _samples(self, state: State, step: int) -> None:
        if not (self.log.writes and self.config.log.samples):
            return
        enhance = self._enhancer(state)
        shown = [self.pairs[i] for i in report.spread(len(self.pairs), self.config.log.samples)]
        sheet = report.contact_sheet({"low": [pair["low"] for pair in shown],
                                      "enhanced": [enhance(pair["low"]) for pair in shown],
                                      "reference": [pair["high"] for pair in shown]})
        report.write_png(os.path.join(self.log.workdir, "samples", f"step_{step:06d}.png"), sheet)
        self.log.picture("samples", sheet, step)


def _due(done: int, calls: int, steps: int, config: ConfigDict) -> set[str]:
    """What is to be done after the phase step `done`, given that `calls` steps were just made."""
    periods = {"log": config.log.every, "eval": config.eval.every,
               "checkpoint": config.checkpoint.every, "samples": config.log.samples_every}
    due = {name for name, period in periods.items()
           if period and done // period > (done - calls) // period}
    return due | ({"end"} if done == steps else set())
