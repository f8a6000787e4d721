"""What a training leaves behind to read: progress, metrics.jsonl, TensorBoard events, versions,
and, where it is asked for, a run of Weights & Biases."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import secrets
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics as clu_metrics
from clu import parameter_overview
from ml_collections import ConfigDict
from tensorboardX import SummaryWriter

from lljax import config as config_lib
from lljax.errors import InputError, unknown
from lljax.evaluation import evaluate

_WANDB = ("", "online", "offline")  # config.log.wandb


def averages(rows: Sequence[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """The mean of every scalar over the calls of a window.

    Args:
      rows: one mapping a call, each value [K] (one number a training step).
    """
    stacked = {name: jnp.asarray(np.concatenate([row[name] for row in rows])) for name in rows[0]}
    return {name: float(clu_metrics.Average.from_model_output(values).compute())
            for name, values in stacked.items()}


def line(record: Mapping[str, float | int | str], total: int, eta: float) -> str:
    """One line of progress: step, losses, speed, time left."""
    losses = " ".join(f"{name.split('/', 1)[1]} {value:.4g}" for name, value in record.items()
                      if name.startswith("loss/"))
    totals = " ".join(f"{name} {value:.4g}" for name, value in record.items()
                      if name.startswith("total/"))
    left = datetime.timedelta(seconds=round(eta))
    return (f"{record['phase']} {record['step']}/{total} | {totals} | {losses} | "
            f"{record['images_per_s']:.3g} images/s | {left} left")


class Clock:
    """Training steps a second since the last look, pauses for other work left out."""

    def __init__(self, done: int):
        self._done = done
        self._time = time.perf_counter()

    @contextlib.contextmanager
    def paused(self):
        """Time spent in this block does not count."""
        start = time.perf_counter()
        yield
        self._time += time.perf_counter() - start

    def rate(self, done: int) -> float:
        """Training steps a second since the last call, given the steps done by now."""
        now = time.perf_counter()
        rate = (done - self._done) / (now - self._time)
        self._done, self._time = done, now
        return rate


def say_anywhere(text: str) -> None:
    """Prints a line from any process of a training; not the first one's says which it is from."""
    number = jax.process_index()
    print(f"process {number}: {text}" if number else text, flush=True)


def check(config: ConfigDict) -> None:
    """Refuses a logger that cannot be had, before any work.

    Raises:
      InputError: an unknown value of config.log.wandb, or wandb is not installed.
    """
    if config.log.wandb not in _WANDB:
        raise unknown("config.log.wandb", config.log.wandb, _WANDB)
    if config.log.wandb and jax.process_index() == 0:
        _wandb(config)


def _wandb(config: ConfigDict) -> Any:
    """The package wandb."""
    try:
        import wandb
    except ImportError as error:
        missing = error
    else:
        if hasattr(wandb, "init"):  # a folder wandb/, as its runs make one, can be imported too
            return wandb
        missing = None
    raise InputError(f"config.log.wandb is {config.log.wandb}, but wandb cannot be imported: pip "
                     "install 'lljax[wandb]', or leave config.log.wandb empty") from missing


def _wandb_run(config: ConfigDict, workdir: str) -> Any:
    """A run of Weights & Biases, or the one of this workdir that is resumed.

    What an interrupted training logged after its last checkpoint cannot be taken back there, and
    need not be: the resumed one logs the same numbers at the same steps again, and Weights & Biases
    keeps the first.
    """
    wandb = _wandb(config)
    name = os.path.basename(os.path.abspath(workdir))
    identity = os.path.join(workdir, "wandb_id.txt")
    run_id = secrets.token_hex(4)
    if os.path.exists(identity):
        with open(identity, encoding="utf-8") as file:
            run_id = file.read().strip()
    resume = {"resume": "allow"} if config.log.wandb == "online" else {}
    try:
        run = wandb.init(
            mode=config.log.wandb, project=config.log.project, group=config.log.group or None,
            name=name, id=run_id, dir=workdir, config=config.to_dict(), **resume,
            reinit="create_new",  # an ablation has several runs open
            settings=wandb.Settings(silent=True, console="off"))
    except wandb.errors.Error as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"config.log.wandb is {config.log.wandb}, but Weights & Biases cannot be "
                         f"used: {reason}; log in with `wandb login`, or take offline and `wandb "
                         "sync` it later") from error
    with open(identity, "w", encoding="utf-8") as file:
        file.write(run_id)
    return run


class Log:
    """The files of a workdir that only grow; one process of a training writes them.

    Args:
      workdir: made if it is not there.
      config: of the run.
      step: where the run starts; what an interrupted run logged after it is taken back.

    Raises:
      InputError: Weights & Biases is asked for and cannot be reached.
    """

    def __init__(self, workdir: str, config: ConfigDict, step: int):
        self.workdir = workdir
        self.writes = jax.process_index() == 0
        if not self.writes:
            return
        os.makedirs(os.path.join(workdir, "samples"), exist_ok=True)
        self._run = _wandb_run(config, workdir) if config.log.wandb else None
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        self._write("config.json", config_lib.to_json(config))
        self._write("command.txt", f"{now} {shlex.join(sys.argv)}\n", "a")
        self._write("versions.txt", "".join(
            f"{name} {version}\n" for name, version in evaluate.versions().items()))
        self._metrics = os.path.join(workdir, "metrics.jsonl")
        self._take_back(step)
        self._events = SummaryWriter(workdir, purge_step=step + 1 if step else None)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, *_) -> None:
        if not self.writes:
            return
        self._events.close()
        if self._run is not None:
            self._run.finish(exit_code=0 if error is None else getattr(error, "code", 1))

    def _write(self, name: str, text: str, mode: str = "w") -> None:
        with open(os.path.join(self.workdir, name), mode, encoding="utf-8") as file:
            file.write(text)

    def _take_back(self, step: int) -> None:
        if not os.path.exists(self._metrics):
            return
        with open(self._metrics, encoding="utf-8") as file:
            # A killed run may have left half a line, always the last one.
            lines = [text for text in file if text.endswith("\n")]
        kept = [text for text in lines if json.loads(text)["step"] <= step]
        self._write("metrics.jsonl", "".join(kept))

    def say(self, text: str) -> None:
        """Prints a line, once for all processes."""
        if self.writes:
            print(text, flush=True)

    def scalars(self, record: Mapping[str, float | int | str]) -> None:
        """Appends a record with its `step` to metrics.jsonl, the TensorBoard events and W&B."""
        if not self.writes:
            return
        self._write("metrics.jsonl", json.dumps(record) + "\n", "a")
        for name, value in record.items():
            if isinstance(value, float):
                self._events.add_scalar(name, value, record["step"])
        if self._run is not None:
            self._run.log({name: value for name, value in record.items()
                           if name != "step" and not isinstance(value, str)}, record["step"])

    def picture(self, name: str, picture: np.ndarray, step: int) -> None:
        """Adds a picture, uint8 [H, W, 3], to the TensorBoard events and W&B."""
        if not self.writes:
            return
        self._events.add_image(name, picture, step, dataformats="HWC")
        if self._run is not None:
            import wandb
            self._run.log({name: wandb.Image(picture)}, step)

    def networks(self, nets: Mapping[str, Mapping], trained: Sequence[str], phase: str) -> None:
        """Writes the table of every network's parameters, prints one line a network."""
        if not self.writes:
            return
        tables = [f"{name}\n{parameter_overview.get_parameter_overview(net['params'])}\n"
                  for name, net in nets.items()]
        self._write("parameters.txt", "\n".join(tables))
        for name, net in nets.items():
            count = parameter_overview.count_parameters(net["params"])
            role = "trained" if name in trained else "frozen"
            self.say(f"{phase}: network {name}, {count:,} parameters, {role}")
