"""The one training loop. It does not know the method: the method owns its training step."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from lljax.errors import InputError, Stopped
from lljax.method import State
from lljax.training import logs, start
from lljax.training.member import Member
from lljax.training.shared import ALONE, LOCKSTEP, Features, Shared, Step, seed_of

_WARM_UP, _TIMED = 2, 5  # calls to measure
REQUEUE = 75  # exit code after a SIGTERM: saved, run the same command again (EX_TEMPFAIL)


def fit(config: ConfigDict, workdir: str, shared: Shared | None = None) -> State:
    """Trains what `config` describes, from wherever `workdir` stands.

    Args:
      config: complete config, as configs/<method>.py gives it.
      workdir: folder of the run; the same call resumes it, or returns at once if it is finished.
      shared: what the runs of this process have in common; None for a run alone.

    Returns:
      The final state.

    Raises:
      InputError: something the caller has to mend, in one line.
      Stopped: by SIGTERM after saving (code 75), or by a loss that is not finite (code 1).
    """
    if shared is None:
        with Shared() as shared:
            return fit(config, workdir, shared)
    with Member(config, workdir, shared) as member:
        fit_members([member], shared)
        if member.stopped:
            raise member.stopped
        return member.state


def fit_members(members: Sequence[Member], shared: Shared, how: str = ALONE) -> None:
    """Trains one run, or several in lockstep.

    A run whose losses are not finite ends, and says so in its `stopped`; the others go on.

    Args:
      members: the runs. Several start at the same step, and their configs differ in seeds and
        loss weights alone.
      shared: what the runs of this process have in common.
      how: several are computed together, or in `rounds`: a name of `shared.LOCKSTEP`.

    Raises:
      InputError: something the caller has to mend, in one line.
      Stopped: by SIGTERM after saving (code 75).
    """
    for member in members:
        if not member.begin.phases:
            member.say(f"finished: {int(member.state.step)} steps in {member.workdir}")
            for note in member.begin.notes[1:]:  # the first says where it stands
                member.say(f"without effect, {note}")
    members = [member for member in members if member.begin.phases]
    for part in rounds(members, how):
        _Training(part, shared, how if len(part) > 1 else ALONE).run()


def rounds(members: Sequence[Member], how: str) -> list[Sequence[Member]]:
    """Which runs are computed together, in the order of their doing.

    Args:
      members: the runs.
      how: `ALONE`: each by itself; "devices": as many at once as there are devices, in rounds of
        about one size; else all at once.
    """
    if not members:
        return []
    most = {ALONE: 1, "devices": jax.local_device_count()}.get(how, len(members))
    size = -(-len(members) // -(-len(members) // most))
    return [members[at:at + size] for at in range(0, len(members), size)]


def measure(members: Sequence[Member], shared: Shared) -> dict[str, float | str]:
    """Seconds a training step of all members, in their longest phase, by every way to compute it.

    Where one program does not take them all, the first of the `rounds` is measured and counted as
    often as there are rounds.

    Args:
      members: as for `fit_members`; nothing is written, and their states stay as they are.
      shared: what the runs of this process have in common.

    Returns:
      `ALONE` or a name of `LOCKSTEP` -> median seconds, or why it cannot be.
    """
    first = members[0]
    phase = max(first.begin.phases, key=lambda name: first.config.phase[name].steps)
    training = _Training(members, shared, ALONE)
    stream = training.batches(phase, 0, first.config.steps_per_call)
    found: dict[str, float | str] = {}
    for how in (ALONE, *LOCKSTEP):
        runs, *others = rounds(members, how)
        if how == "devices" and len(runs) == 1:
            found[how] = f"{len(members)} runs on {jax.local_device_count()} devices"
            continue
        step = shared.step(first.config, first.method, phase, how, len(runs))
        try:
            states = step.place([jax.device_get(run.method.start_phase(run.state.nets, 0, phase))
                                 for run in runs])
            weights, seconds = step.weights([run.weights for run in runs]), []
            for _ in range(_WARM_UP + _TIMED):
                batches, _ = next(stream)
                begin = time.perf_counter()
                states, scalars = step(states, batches[:len(runs)], weights)
                jax.block_until_ready(scalars)
                seconds.append(time.perf_counter() - begin)
        except Exception as error:  # e.g. no rule to vmap an operation, no memory
            found[how] = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
            continue
        found[how] = (float(np.median(seconds[_WARM_UP:])) * (1 + len(others))
                      / first.config.steps_per_call)
    return found


class _Training:
    """What every phase needs, and the phases' loop."""

    def __init__(self, members: Sequence[Member], shared: Shared, how: str):
        """Opens the data and traces every phase: what can fail comes before anything is written."""
        self.members, self.shared, self.how = members, shared, how
        self.config, self.method = members[0].config, members[0].method
        self.data = shared.data(self.config)
        start.check_pairs(self.config, self.method, members[0].begin.phases, self.data.unpaired)
        for member in members:
            member.open_pairs()
        self.total = sum(self.config.phase[phase].steps for phase in self.config.phases)
        self._check_terms()

    def run(self) -> None:
        """Runs the phases that are left."""
        for member in self.members:
            member.open_log()
        for number, phase in enumerate(self.members[0].begin.phases):
            self.members = [member for member in self.members if not member.stopped]
            for member in self.members:
                member.start_phase(phase, first=number == 0)
            if self.members:
                self._phase(phase)

    def _check_terms(self) -> None:
        """The enabled loss terms must be those that the phases' steps return."""
        first, returned = self.members[0], set()
        for phase in self.config.phases:
            state = jax.eval_shape(lambda n, p=phase: self.method.start_phase(n, 0, p),
                                   first.state.nets)
            step = self.shared.step(self.config, self.method, phase)
            batches, _ = next(self.batches(phase, 0, 1, features=False))
            scalars = step.shapes(state, batches[0], first.weights)
            returned |= {name.removeprefix("loss/") for name in scalars
                         if name.startswith("loss/")}
        if returned != set(first.weights):
            raise InputError(f"config.loss enables {sorted(first.weights)}, but the training steps "
                             f"of {tuple(self.config.phases)} return {sorted(returned)}")

    def batches(self, phase: str, start: int, calls: int,
                features: bool = True) -> Iterator[tuple[list, list[list[str]]]]:
        """Batches of `calls` steps each: a list of them a member, and the pictures' names; perhaps
        with the `features` that are computed once a picture."""
        adds = [self.shared.features(member.config, member.method, phase, member.state.nets)
                if features else Features() for member in self.members]
        number = tuple(self.config.phases).index(phase)
        seeds = [member.config.seed for member in self.members]
        streams = {seed: self.data.batches(
            seed + 7919 * number, start, self.config.phase[phase].batch_size,
            jax.process_index(), jax.process_count()) for seed in seeds}
        while True:
            steps = {seed: [next(stream) for _ in range(calls)] for seed, stream in streams.items()}
            stop = np.float32(self.shared.interrupted)
            batches = {seed: [
                {**batch, "stop": np.full_like(batch["mask"], stop),
                 "seed": np.full(batch["mask"].shape, seed_of(seed))}
                for batch, _ in own] for seed, own in steps.items()}
            yield [[add(batch) for batch in batches[seed]]
                   for seed, add in zip(seeds, adds, strict=True)], [
                [name for _, names in steps[seed] for name in names] for seed in seeds]

    def _phase(self, phase: str) -> None:
        config, members = self.config, self.members
        steps = config.phase[phase].steps
        calls = config.steps_per_call
        done = int(members[0].state.phase_step)
        offset = int(members[0].state.step) - done
        step = self.shared.step(config, self.method, phase, self.how, len(members))
        states = step.place([member.state for member in members])
        weights = step.weights([member.weights for member in members])
        stream = self.batches(phase, done, calls)
        previous, stop, clock = None, False, logs.Clock(done)
        while done < steps:
            batches, names = next(stream)
            states, scalars = step(states, batches, weights)
            # The device works on this call while the previous one's numbers are read.
            if previous:
                stop |= self._read(*previous)
            done += calls
            previous = (step, scalars, names, offset + done)
            due = _due(done, calls, steps, config) | ({"stop"} if stop else set())
            if due:  # nothing unread is shown or saved
                stop, previous = stop | self._read(*previous), None
            if all(member.stopped for member in members):
                return
            if not due:
                continue
            rate = clock.rate(done) if due & {"log", "end", "stop"} else 0
            with clock.paused():
                for member, state in zip(members, step.states(states), strict=True):
                    if member.stopped:
                        continue
                    if rate:
                        member.report(phase, done, offset + done, self.total - offset - done, rate,
                                      self.data.skipped)
                    member.occasionally(state, phase, due)
            if "stop" in due and done < steps:
                raise Stopped(f"interrupted; saved at step {offset + done}, the same command "
                              "goes on from there", REQUEUE)

    def _read(self, step: Step, scalars: Any, names: list[list[str]], at: int) -> bool:
        """A call's scalars, on the host and to each member; whether to stop."""
        stop = False
        for member, own, pictures in zip(self.members, step.scalars(jax.device_get(scalars)),
                                         names, strict=True):
            if not member.stopped:
                member.read(own, pictures, at)
            stop |= bool(own["stop"].any())
        return stop


def _due(done: int, calls: int, steps: int, config: ConfigDict) -> set[str]:
    """What is to be done after the phase step `done`, given that `calls` steps were just made."""
    periods = {"log": config.log.every, "eval": config.eval.every,
               "checkpoint": config.checkpoint.every, "samples": config.log.samples_every}
    due = {name for name, period in periods.items()
           if period and done // period > (done - calls) // period}
    return due | ({"end"} if done == steps else set())
