"""Which checkpoint of a training is evaluated: by a rule that never sees the score reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from lljax import checkpoint
from lljax.data import check, sources
from lljax.errors import InputError
from lljax.evaluation.evaluate import higher_is_better


@dataclass(frozen=True)
class Chosen:
    """A training's checkpoint, and what chose it.

    Attributes:
      workdir: of the training.
      step: training steps made, over all phases.
      phase: that it is in, or at the end of.
      rule: "last": the newest; "val": the best by the training's own evaluations.
      by: metric of those evaluations ("val"), "" otherwise.
      score: its mean at that step ("val"), in the metric's unit.
      validation: `config.eval` and what is needed to open it ("val").
    """

    workdir: str
    step: int
    phase: str
    rule: str
    by: str = ""
    score: float | None = None
    validation: ConfigDict | None = None

    def facts(self) -> dict[str, Any]:
        """What results.json says of it."""
        found = {"step": self.step, "phase": self.phase, "select": self.rule}
        if self.rule == "val":
            found |= {"by": self.by, "score": self.score,
                      "validated_on": _described(self.validation)}
        return found


def choose(workdir: str, rule: str) -> Chosen:
    """The checkpoint that a rule takes.

    Args:
      workdir: of a training.
      rule: "last" | "val": the best by `config.checkpoint.best` on `config.eval`'s pictures; of
        equal ones the newest.

    Raises:
      InputError: not the workdir of a training, no evaluations in it, or evaluations on different
        pictures.
    """
    with checkpoint.opened(workdir) as saved:
        last = saved.latest()
        meta = saved.meta(last)
        if rule == "last":
            return Chosen(workdir, last, meta["phase"], rule)
        metric = meta["config"].checkpoint.best
        scores = {step: found[metric] for step, found in saved.scores().items() if metric in found}
        if not scores:
            raise InputError(
                f"--select val: no checkpoint of {workdir} has a validation score; train with "
                f"--config.eval.every=N (N is {meta['config'].eval.every}), or take --select last")
        sign = 1 if higher_is_better(metric) else -1
        best = max(scores, key=lambda step: (sign * scores[step], step))
        metas = {step: saved.meta(step) for step in scores}
    validation = _validation(metas[best]["config"])
    for step, other in metas.items():
        if _validation(other["config"]) != validation:
            raise InputError(
                f"--select val: steps {min(step, best)} and {max(step, best)} of {workdir} were "
                "validated on different pictures (config.eval changed), so their scores cannot be "
                "compared; take --select last")
    return Chosen(workdir, best, metas[best]["phase"], rule, metric, float(scores[best]),
                  validation)


def _validation(config: ConfigDict) -> ConfigDict:
    wanted = config.eval
    return ConfigDict({"source": wanted.source, "low": wanted.low, "high": wanted.high,
                       "limit": wanted.limit, "root": config.data.root,
                       "prepared": config.data.prepared})


def _described(validation: ConfigDict) -> str:
    text = validation.source
    if validation.low or validation.high:
        text += f": {validation.low} and {validation.high}"
    return text + (f", the first {validation.limit}" if validation.limit else "")


def separate(chosen: Sequence[Chosen], pairs: Sequence[Mapping[str, Any]],
             limit: int = 0) -> dict[str, str]:
    """Makes sure that no checkpoint is scored on the pictures that chose it.

    Pictures are compared by their pixels, whatever their files are called: a pair is the same as
    another if the low-light pictures are, or the references.

    Args:
      chosen: checkpoints; those of the rule "last" need no check.
      pairs: to be scored, [i] gives {"name", "low", "high"}, or without "high".
      limit: only the first so many of `pairs`; 0 for all.

    Returns:
      workdir -> what was found, for results.json: that none is shared, or why nobody knows.

    Raises:
      InputError: a picture is shared.
    """
    ours: dict[str, set[bytes]] = {}
    known: dict[str, set[bytes] | str] = {}
    said = {}
    for one in chosen:
        if one.rule != "val":
            continue
        key = str(one.validation.to_dict())
        if key not in known:
            known[key] = _digests_of(one.validation)
        theirs = known[key]
        if isinstance(theirs, str):
            said[one.workdir] = f"not known, its validation pictures cannot be read: {theirs}"
            continue
        ours = ours or _digests(pairs, limit)
        if shared := [name for name, digests in ours.items() if digests & theirs]:
            raise InputError(
                f"--select val: {len(shared)} of the {len(ours)} pictures chose step {one.step} of "
                f"{one.workdir} (e.g. {shared[0]}), so its score on them would say nothing of "
                "others; score it on other pictures (--source, --low, --high), or take "
                "--select last")
        said[one.workdir] = "none"
    return said


def _digests_of(validation: ConfigDict) -> set[bytes] | str:
    """Digests of the validation's pictures, or why there are none."""
    try:
        pairs = sources.open(validation.source, split="test", low=validation.low,
                             high=validation.high, root=validation.root,
                             prepared=validation.prepared, flags="--config.eval.")
        return set().union(*_digests(pairs, validation.limit).values())
    except InputError as error:  # the training may have been on another machine
        return str(error)


def _digests(pairs: Sequence[Mapping[str, Any]], limit: int) -> dict[str, set[bytes]]:
    """Digests of a pair's pictures, by name."""
    found = {}
    for i in range(min(limit or len(pairs), len(pairs))):
        pair = pairs[i]
        found[pair["name"]] = {check.facts(pair["name"], pair[role]).exact
                               for role in ("low", "high") if role in pair}
    return found


def facts(chosen: Mapping[str, Chosen], shared: Mapping[str, str]) -> dict[str, Any]:
    """What results.json says: row of a model -> step, rule, and shared pictures.

    Args:
      chosen: by the model's name.
      shared: of `separate`.
    """
    return {name: {**one.facts(), **({"shared_pictures": shared[one.workdir]}
                                     if one.workdir in shared else {})}
            for name, one in chosen.items()}
