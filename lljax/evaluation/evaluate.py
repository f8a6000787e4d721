"""Scores of systems on pictures, with or without references: one protocol, every picture, error
bars.

A system is a function uint8 [H, W, 3] -> uint8 [H, W, 3]. What it returns is what a user would
get, and that is what is measured: no crop, no resize, no best-of. Every table has the rows that a
system must beat (`BASELINES`) and says over how many pictures it is.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import importlib.metadata
import io
import json
import math
import os
import platform
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
import scipy.stats
from tqdm import tqdm

from lljax import errors
from lljax.errors import InputError, unknown
from lljax.evaluation import report
from lljax.evaluation.baselines import BASELINES
from lljax.evaluation.metrics import (
    DEFAULT_PROTOCOL,
    KNOWN,
    METRICS,
    PROTOCOLS,
    Files,
    Metric,
    check,
    choose,
    nearness,
    table,
)

System = Callable[[np.ndarray], np.ndarray]
RESAMPLES = 10_000
BOOTSTRAP_SEED = 0
SHOWN = 6  # pictures on the contact sheet
SETTLED = 10  # pictures from which on a system may be called the best; below, intervals mislead
LISTED = 20  # bad pictures named in full in one error


@dataclass(frozen=True)
class Summary:
    """One metric of one system over the pictures.

    Attributes:
      mean: mean over pictures; inf as soon as one picture is.
      sd: standard deviation over pictures (n - 1); None below two pictures or with an inf.
      ci95: 95 % interval of the mean, see `interval`; None where `sd` is.
      n: pictures.
      n_inf: pictures whose value is infinite (PSNR of an output that equals its reference).
      protocol: what was computed.
    """

    mean: float
    sd: float | None
    ci95: tuple[float, float] | None
    n: int
    n_inf: int
    protocol: str


@dataclass(frozen=True)
class Difference:
    """One metric of one system minus another's, over the same pictures.

    Attributes:
      mean: mean over pictures of the differences; None with an infinite value.
      ci95: 95 % interval of `mean` over pictures, see `interval`: the pictures are drawn, each
        with both of its values; None below two pictures or where `mean` is None.
      n: pictures.
      wins: pictures on which the system is better; `losses` and `ties` are the others.
      p: of the Wilcoxon signed-rank test, see `signed_rank`; None if all pictures tie.
    """

    mean: float | None
    ci95: tuple[float, float] | None
    n: int
    wins: int
    losses: int
    ties: int
    p: float | None


@dataclass
class Results:
    """Every score of a run.

    Attributes:
      systems: names of the rows, baselines last.
      metrics: the columns' cards.
      names: the pictures' names.
      values: float64 [system, picture, metric]; PSNR may be inf. Pictures are in one order for
        all systems: paired differences are `values[a] - values[b]`.
      info: what else results.json says: source, seeds, versions, command, date.
    """

    systems: list[str]
    metrics: list[Metric]
    names: list[str]
    values: np.ndarray
    info: dict[str, Any] = field(default_factory=dict)
    _summaries: dict[str, dict[str, Summary]] = field(default_factory=dict, repr=False)
    _differences: dict[tuple[str, str], dict[str, Difference]] = field(
        default_factory=dict, repr=False)

    def of(self, system: str, metric: str) -> np.ndarray:
        """Per-picture values [n] of one system and metric.

        Raises:
          InputError: no such system or metric in these results.
        """
        keys = [card.key for card in self.metrics]
        for what, name, known in (("system", system, self.systems), ("metric", metric, keys)):
            if name not in known:
                raise unknown(what, name, known)
        return self.values[self.systems.index(system), :, keys.index(metric)]

    def means(self, system: str) -> dict[str, float]:
        """Mean over pictures by metric."""
        return {card.key: float(self.of(system, card.key).mean()) for card in self.metrics}

    def summary(self, system: str) -> dict[str, Summary]:
        """Mean, spread and interval by metric; computed once, for files and tables alike."""
        if system not in self._summaries:
            self._summaries[system] = {
                card.key: summarise(self.of(system, card.key), card.protocol)
                for card in self.metrics}
        return self._summaries[system]

    def difference(self, system: str, against: str) -> dict[str, Difference]:
        """`system` minus `against` by metric, paired by picture; computed once.

        Raises:
          InputError: no such system in these results.
        """
        if (system, against) not in self._differences:
            self._differences[system, against] = {
                card.key: difference(self.of(system, card.key), self.of(against, card.key),
                                     _UP[card.better])
                for card in self.metrics}
        return self._differences[system, against]

    def is_best(self, system: str, metric: str) -> bool:
        """Whether the pictures show `system` to be better than every other one.

        That is: its difference from each of the others has a 95 % interval on the better side of
        0. Intervals of two means may well overlap then: pictures differ more than systems do. The
        intervals are not corrected for the number of comparisons. Fewer than `SETTLED` pictures
        show nothing: two that agree would have an interval without 0.

        Raises:
          InputError: no such system or metric in these results.
        """
        own = self.of(system, metric)
        card = next(card for card in self.metrics if card.key == metric)
        merits = {name: card.merit(self.of(name, metric)) for name in self.systems}
        others = [name for name in self.systems if name != system]
        if len(own) < SETTLED or any(
                merits[name].mean() > merits[system].mean() for name in others):
            return False
        if card.better == "one":
            if not all(np.isfinite(values).all() for values in merits.values()):
                return False
            intervals = [interval(merits[system] - merits[name]) for name in others]
        else:
            intervals = [self.difference(system, name)[metric].ci95 for name in others]
        return bool(others) and all(
            ci95 is not None and (ci95[1] < 0 if card.better == "down" else ci95[0] > 0)
            for ci95 in intervals)


_UP = {"up": True, "down": False, "one": None}


def higher_is_better(metric: str) -> bool:
    """Whether a larger value of the metric of that key, a default one, is the better one.

    Raises:
      InputError: no such metric among the default ones.
    """
    if metric not in METRICS:
        raise unknown("metric", metric, METRICS)
    return METRICS[metric].better == "up"


def interval(values: np.ndarray, seed: int = BOOTSTRAP_SEED) -> tuple[float, float] | None:
    """95 % percentile-bootstrap interval of the mean over pictures; None below two values.

    It says how much the mean would move with other pictures of the same kind, not with another
    training. Few pictures make it too narrow: in simulations it covered the true mean in
    85 % of cases at n = 5, 92 % at n = 15 and 94 % at n = 50 (normal values; of skewed ones 82, 91
    and 93 %: benchmarks/bootstrap.py).

    Args:
      values: finite, [n].
      seed: of the resampling; equal for all systems, so equal pictures are drawn.
    """
    if len(values) < 2:
        return None
    result = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, method="percentile",
        batch=100,  # resamples at once: bounds the memory whatever n is
        rng=np.random.default_rng(seed))
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def summarise(values: np.ndarray, protocol: str) -> Summary:
    """The summary of per-picture values [n], n >= 1."""
    n_inf = int(np.isinf(values).sum())
    spread = len(values) > 1 and not n_inf
    return Summary(mean=float(values.mean()), sd=float(values.std(ddof=1)) if spread else None,
                   ci95=interval(values) if spread else None, n=len(values), n_inf=n_inf,
                   protocol=protocol)


def difference(a: np.ndarray, b: np.ndarray, up: bool | None = True) -> Difference:
    """a - b of per-picture values [n] of the same pictures.

    Args:
      a: values of the system, [n], n >= 1.
      b: values of what it is compared with, [n].
      up: whether higher values are better; None if the nearer to 1 is: wins and p are of that
        nearness then, the mean difference of the values.
    """
    finite = bool(np.isfinite(a).all() and np.isfinite(b).all())
    near_a, near_b = (a, b) if up is not None else (nearness(a), nearness(b))
    higher, lower = int((near_a > near_b).sum()), int((near_a < near_b).sum())
    wins, losses = (lower, higher) if up is False else (higher, lower)
    return Difference(mean=float((a - b).mean()) if finite else None,
                      ci95=interval(a - b) if finite else None, n=len(a), wins=wins,
                      losses=losses, ties=len(a) - wins - losses, p=signed_rank(near_a, near_b))


def signed_rank(a: np.ndarray, b: np.ndarray) -> float | None:
    """Two-sided p of the Wilcoxon signed-rank test of a - b; None if all pictures tie.

    How likely the ranks of the differences would be so one-sided if each picture's difference were
    as likely to have the other sign. It uses the differences' order alone, so an infinite PSNR is
    a largest difference (two of them are a tie) and one outlier decides nothing. Ties are left
    out. Exact for few pictures, else by the normal approximation (scipy's "auto"). It is not
    corrected for the number of comparisons. Below 6 pictures it cannot be under 0.05, whatever
    they show.

    Args:
      a: values of the system, [n].
      b: values of what it is compared with, on the same pictures, [n].
    """
    changed = a != b  # inf - inf has no value
    differences = a[changed] - b[changed]
    if not len(differences):
        return None
    return float(scipy.stats.wilcoxon(differences).pvalue)


def evaluate(systems: Mapping[str, System], pairs: Sequence[Mapping[str, Any]], *,
             out: str | None = None, with_report: bool = False, limit: int = 0,
             baselines: bool | Iterable[str] = True, progress: bool = False,
             metrics: Sequence[Metric] = tuple(METRICS.values()), leave_out: bool = False,
             info: Mapping[str, Any] | None = None) -> Results:
    """Scores every system on every pair.

    All pairs are read and their sizes compared before the first picture is enhanced, and a picture
    that cannot be scored ends the run with nothing written: no mean is ever over fewer pictures
    than it says.

    Args:
      systems: name -> uint8 [H, W, 3] -> uint8 [H, W, 3].
      pairs: [i] gives {"name": str, "low": uint8 [H, W, 3], "high": the same size}. Without
        "high" only metrics that need no reference can be computed.
      out: folder for results.json, results.md, results.tex, per_image.csv and contact_sheet.png;
        None to write nothing.
      with_report: whether report.html and the folder pictures/ are written into `out` too.
      limit: only the first so many pairs; 0 for all.
      baselines: which of `BASELINES` get rows too; True for all of them.
      progress: whether to show a progress bar on a terminal.
      metrics: the columns, see `metrics.choose`.
      leave_out: whether a column that some picture is too small for is left out, with the reason
        in the results' info under "not_computed", and the others go on. Else it ends the run.
      info: what results.json is to say beside the scores (source, seeds, command).

    Returns:
      All scores; systems in the given order, then the baselines.

    Raises:
      InputError: no pairs, unusable pairs (all of them named), a system that returns another
        size or type (named with the picture), a system with a baseline's name or "low" or
        "reference", an unknown baseline, no metrics, a folder that cannot be written to.
    """
    if limit < 0:
        raise InputError(f"limit is {limit}; give the number of pictures, or 0 for all")
    if taken := sorted(set(systems) & {*BASELINES, report.LOW, report.REFERENCE}):
        raise InputError(f"a system may not be called {taken[0]!r}: that row or column is always "
                         "there")
    if with_report and out is None:
        raise InputError("a report needs a folder: give out")
    rows = {**systems, **_baselines(baselines)}
    if not rows:
        raise InputError("nothing to evaluate: give at least one system")
    count = min(limit or len(pairs), len(pairs))
    if not count:
        raise InputError("nothing to evaluate on: there are no pairs")
    cards = list(metrics)
    if not cards:
        raise InputError("nothing to evaluate by: give at least one metric")
    names, references, small = check_pairs(pairs, count, cards, leave_out)
    cards = [card for card in cards if card.key not in small]
    if small:
        info = {**(info or {}),
                "not_computed": {**(info or {}).get("not_computed", {}), **small}}

    values = np.empty((len(rows), count, len(cards)))
    sheet: dict[str, list[np.ndarray]] = {}
    shown = report.spread(count, SHOWN) if out is not None else []

    def keep(label: str, i: int, picture: np.ndarray) -> None:
        if i in shown and label not in BASELINES:
            sheet.setdefault(label, []).append(report.shrink(picture))
        if pictures is not None:
            pictures.add(label, i, picture)

    files = (report.Pictures(out, names, rows, references) if with_report
             else contextlib.nullcontext())
    bar = tqdm(total=count * len(rows), unit="picture", disable=None if progress else True)
    with files as pictures, bar:
        for i in range(count):
            pair = pairs[i]
            keep(report.LOW, i, pair["low"])
            for s, (name, system) in enumerate(rows.items()):
                enhanced, values[s, i] = _score(name, system, pair, cards)
                keep(name, i, enhanced)
                bar.update()
            if references:
                keep(report.REFERENCE, i, pair["high"])
        results = Results(list(rows), cards, names, values, {
            **(info or {}), "pictures": count, "pictures_in_source": len(pairs),
            "bootstrap": {"resamples": RESAMPLES, "seed": BOOTSTRAP_SEED},
            "versions": versions(), "date": datetime.now(UTC).isoformat(timespec="seconds")})
        if out is not None:
            write(results, out)
            titles = dict.fromkeys(systems, "enhanced") if len(systems) == 1 else {}
            with report.writing(out):
                report.write_png(
                    os.path.join(out, "contact_sheet.png"), report.contact_sheet(
                        {titles.get(label, label): column for label, column in sheet.items()}))
        if pictures is not None:
            pictures.place()
            report.write_report(results, pictures, out)
    return results


def _baselines(wanted: bool | Iterable[str]) -> dict[str, System]:
    if isinstance(wanted, bool):
        return dict(BASELINES) if wanted else {}
    wanted = list(wanted)
    for name in wanted:
        if name not in BASELINES:
            raise unknown("baseline", name, BASELINES)
    return {name: BASELINES[name] for name in wanted}


def check_pairs(pairs: Sequence[Mapping[str, Any]], count: int, cards: Sequence[Metric],
                leave_out: bool = False) -> tuple[list[str], bool, dict[str, str]]:
    """What can be scored, before anything is.

    Args:
      pairs: of which the first `count` are looked at.
      count: how many.
      cards: the metrics.
      leave_out: as in `evaluate`.

    Returns:
      (names, whether all have references, why metrics are to be left out, by key).

    Raises:
      InputError: names those that cannot be read or are not fit for the metrics.
    """
    names, problems, references = [], [], True
    small: dict[str, list[str]] = {}
    needed = any(card.needs == "reference" for card in cards)
    for i in range(count):
        try:
            pair = pairs[i]
        except InputError as error:  # its message names the files
            problems.append(str(error))
            continue
        names.append(pair["name"])
        references = references and "high" in pair
        try:
            if needed and "high" not in pair:
                raise InputError("it has no reference")
            check(pair["low"], pair.get("high", pair["low"]), names=("low", "high"))
        except InputError as error:
            problems.append(f"{pair['name']}: {error}")
            continue
        reasons = _too_small(pair, cards)
        if leave_out:
            for key, reason in reasons.items():
                small.setdefault(key, []).append(reason)
        else:
            problems += list(reasons.values())[:1]
    if len(small) == len(cards):  # no column would be left
        problems += small[cards[0].key]
    if problems:
        more = len(problems) - LISTED
        raise InputError(
            f"{len(problems)} of {count} pairs cannot be scored, so none is: "
            + "; ".join(problems[:LISTED]) + (f"; and {more} more" if more > 0 else ""))
    return names, references, {
        key: f"too small for it: {len(reasons)} of {count} pictures, e.g. {reasons[0]}"
        for key, reasons in small.items()}


def _too_small(pair: Mapping[str, Any], cards: Sequence[Metric]) -> dict[str, str]:
    """Key of a metric -> what is too small for it."""
    reasons = {}
    for card in cards:
        try:
            check(pair["low"], pair["low"], card.min_size, card.title)
        except InputError as error:
            reasons[card.key] = f"{pair['name']}: {error}"
    return reasons


def _score(name: str, system: System, pair: Mapping[str, Any],
           cards: Sequence[Metric]) -> tuple[np.ndarray, list[float]]:
    try:
        enhanced = system(pair["low"])
        return enhanced, [card.function(enhanced, pair.get("high"), pair["low"]) for card in cards]
    except InputError as error:
        raise InputError(f"{name} on {pair['name']}: {error}") from error
    except Exception as error:
        error.add_note(f"while evaluating {name} on {pair['name']}")
        raise


def versions() -> dict[str, str]:
    """Versions of what decides the numbers, and the devices."""
    import jax  # evaluate.py's mistakes in the flags should not cost the import

    packages = ("lljax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "dm-pix", "numpy",
                "scipy", "pillow")
    return {"python": platform.python_version(), "platform": platform.platform(),
            "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            **{name: importlib.metadata.version(name) for name in packages}}


def to_json(results: Results) -> str:
    """The summary as JSON: {"systems": {system: {metric: {...}}}, "paired": {...}, ...}.

    "paired" compares every other row with the first: {"against": the first row's name,
    "systems": {system: {metric: its value minus the first row's, see `Difference`}}}. "p" is not
    corrected for the number of comparisons.

    JSON has no infinity: an infinite mean is the string "inf" (`float("inf")` reads it), and its
    sd and ci95 are null. There is never a NaN.
    """
    systems = {
        name: {key: {"mean": s.mean if math.isfinite(s.mean) else "inf", "sd": s.sd,
                     "ci95": s.ci95, "n": s.n, "n_inf": s.n_inf, "protocol": s.protocol}
               for key, s in results.summary(name).items()}
        for name in results.systems}
    cards = {card.key: card.card() for card in results.metrics}
    first, *others = results.systems
    paired = {"against": first, "systems": {
        name: {key: dataclasses.asdict(d) for key, d in results.difference(name, first).items()}
        for name in others}}
    return json.dumps({"systems": systems, "paired": paired, "metrics": cards, **results.info},
                      indent=1, allow_nan=False) + "\n"


def to_csv(results: Results) -> str:
    """Per-picture values as CSV: system, name, one column a metric; "inf" for infinity."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["system", "name", *(card.key for card in results.metrics)])
    for system, rows in zip(results.systems, results.values, strict=True):
        for name, row in zip(results.names, rows, strict=True):
            writer.writerow([system, name, *(repr(float(value)) for value in row)])
    return text.getvalue()


def write(results: Results, out: str) -> None:
    """Writes the scores and tables into `out`, each file whole or not at all.

    The files: per_image.csv, results.json, results.md, results.tex.

    Raises:
      InputError: the folder cannot be made or written to.
    """
    report.write_texts(out, {
        "per_image.csv": to_csv(results), "results.json": to_json(results),
        "results.md": report.markdown(results) + "\n",
        "results.tex": report.latex(results) + "\n"})


class _Row(NamedTuple):
    """A row of the table: a model, changes of its config, and whether averages are taken."""

    path: str
    settings: list[str]
    averaged: bool


_TEST = "test"  # the split that is scored unless another is asked for
_SELECT = ("last", "val")  # which checkpoint of a training
_AVERAGES = {"on": (True,), "off": (False,), "both": (True, False)}


# Flags that say what is computed and what stands beside it: `lljax ablate` has them too.
SCORING: dict[str, dict[str, Any]] = {
    "metrics": dict(metavar="NAME[,...]", help="columns: all, default, or of "
                    f"{', '.join(KNOWN)} (default: PSNR, SSIM and MAE, and those whose files are "
                    "given)"),
    "protocol": dict(default=DEFAULT_PROTOCOL, metavar="NAME", help="how PSNR, SSIM and the "
                     "gt-mean columns are computed: " + "; ".join(
                         f"{name}: {rules.about}" for name, rules in PROTOCOLS.items())),
    "niqe": dict(metavar="FILE", help="NIQE's parameters (.npz or .mat)"),
    "lpips-alex": dict(nargs=2, metavar=("ALEXNET", "HEADS"),
                       help="torchvision's AlexNet and LPIPS's v0.1 heads for it"),
    "lpips-vgg": dict(nargs=2, metavar=("VGG16", "HEADS"),
                      help="torchvision's VGG16 and LPIPS's v0.1 heads for it"),
    "brisque": dict(nargs=2, metavar=("MODEL", "RANGE"),
                    help="OpenCV's BRISQUE model and range"),
    "baselines": dict(default="all", metavar="NAME[,...]", help="rows of methods that need no "
                      f"training: all (default), none, or of {', '.join(BASELINES)}"),
}
FILES = ("niqe", "lpips-alex", "lpips-vgg", "brisque")  # those of them that name files


def columns(given: Mapping[str, Any],
            references: bool = True) -> tuple[list[Metric], dict[str, str]]:
    """The columns that the flags of `SCORING` ask for.

    Args:
      given: flag -> its value; what is empty was not given.
      references: whether there are references.

    Returns:
      As `metrics.choose`.

    Raises:
      InputError: as `metrics.choose`.
    """
    files = Files(*(given[flag] or None for flag in FILES))
    return choose(_names(given["metrics"] or ""), given["protocol"], files, references)


def baseline_names(text: str) -> list[str]:
    """The rows that the flag --baselines asks for.

    Raises:
      InputError: an unknown baseline.
    """
    return list(_baselines({"all": True, "none": False}.get(text, _names(text))))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise InputError(message)


def _parser() -> _Parser:
    parser = _Parser(
        prog="evaluate.py", allow_abbrev=False, description="Score trained systems and the "
        "baselines on pictures, with references or without; writes results.json, results.md, "
        "results.tex, per_image.csv and contact_sheet.png, with --report also a page to look at.")
    add = parser.add_argument
    add("--workdir", action="append", default=[], metavar="W",
        help="folder of a training; may be repeated")
    add("--weights", action="append", default=[], metavar="FILE",
        help="weights file, or the name of one that comes with lljax; may be repeated")
    add("--with", action="append", default=[], dest="settings", metavar="KEY=VALUE[,...]",
        help="one more row for every model, with these settings of its config changed, e.g. "
        "denoise.name=nlm; may be repeated")
    add("--average", default="on", metavar="on|off|both",
        help="trainings that keep an average of their parameters (ema): score it (default), the "
        "parameters of the last step, or both in rows of their own")
    add("--select", default="last", metavar="last|val", help="trainings: score the newest "
        "checkpoint (default), or the best by the training's own evaluations on config.eval's "
        "pictures, which must then be others than those scored here")
    for flag, options in SCORING.items():
        add(f"--{flag}", **options)
    add("--list-metrics", action="store_true", help="print the card of every metric under "
        "--protocol, as a Markdown table, and stop")
    add("--source", help="demo | pairs | folder, which has no references (default: pairs with "
        "--low and --high, else what the workdir's config.eval says, else demo)")
    add("--low", metavar="DIR", help="pairs, folder: folder of low-light pictures")
    add("--high", metavar="DIR", help="pairs: folder of references, same file stems")
    add("--root", metavar="DIR", help="published sets: folder that they were unpacked into; not "
        "needed once they are prepared")
    add("--prepared", metavar="DIR", help="published sets: where they are prepared (default: "
        "LLJAX_DATA, or a folder of the user's cache)")
    add("--split", help=f"train | test, where the source has both (default: {_TEST})")
    add("--limit", type=int, default=0, metavar="N", help="only the first N pictures; 0 = all")
    add("--seed", type=errors.seed, default=0, metavar="N",
        help="seed of systems that draw random numbers")
    add("--out", metavar="DIR", help="where to write (default: W/eval_<source> for one workdir, "
        "else ./eval_<source>)")
    add("--report", metavar="DIR", help="write everything into DIR, with report.html (opens "
        "offline) and all pictures")
    add("--detector", metavar="FILE.onnx|MODULE:FUNCTION", help="score what a detector finds in "
        "the pictures of --low, before and after, in place of the pictures: a model of YuNet, or a "
        "function uint8 [H, W, 3] -> boxes [n, 4] (left, top, width, height), scores [n]")
    add("--labels", metavar="DIR", help="--detector: folder of DARK FACE or ExDark label files")
    add("--classes", metavar="NAME[,...]", help="--detector: classes to look for (default: all)")
    return parser


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if rest and rest[0].startswith("--"):
        known = [flag for action in parser._actions for flag in action.option_strings
                 if flag.startswith("--")]
        raise unknown("flag", rest[0].split("=")[0], known)
    if rest:
        raise InputError(f"unexpected argument {rest[0]!r}; flags are written --name VALUE")
    if args.list_metrics:
        return args
    _check_detector(args)
    if not (args.workdir or args.weights or args.source or args.low or args.high):
        raise InputError("give what to evaluate: --workdir W or --weights FILE (and on what: "
                         "--low DIR --high DIR); --help shows all flags")
    if args.settings and not (args.workdir or args.weights):
        raise InputError("--with changes settings of a model: give --workdir W or --weights FILE")
    for text in args.settings:
        if args.settings.count(text) > 1:
            raise InputError(f"--with {text} is given {args.settings.count(text)} times; give it "
                             "once")
    if args.average not in _AVERAGES:
        raise unknown("--average", args.average, _AVERAGES)
    if args.average != "on" and not args.workdir:
        raise InputError(f"--average {args.average} is about trainings: give --workdir W (a "
                         "weights file holds one set of parameters)")
    if args.select not in _SELECT:
        raise unknown("--select", args.select, _SELECT)
    if args.select != "last" and not args.workdir:
        raise InputError(f"--select {args.select} is about trainings: give --workdir W (a weights "
                         "file holds one step)")
    if args.split not in (None, "train", _TEST):
        raise unknown("split", args.split, ("train", _TEST))
    if args.out is not None and args.report is not None:
        raise InputError("--out and --report both say where to write; give one")
    if args.limit < 0:
        raise InputError(f"--limit is {args.limit}; give the number of pictures, or 0 for all")
    return args


def _check_detector(args: argparse.Namespace) -> None:
    """Refuses flags that do not go with a detector, or not without one."""
    if args.detector is None:
        if args.labels is not None or args.classes is not None:
            raise InputError("--labels and --classes go with --detector")
        return
    for flag in ("source", "high", "split", "root", "prepared", "report", *SCORING):
        usual = SCORING.get(flag, {}).get("default")
        if getattr(args, flag.replace("-", "_")) != usual:
            raise InputError(f"--{flag} does not go with --detector, which takes --low DIR "
                             "(pictures), --labels DIR and --out DIR")
    if not (args.low and args.labels):
        raise InputError("--detector looks for what label files say is there: give --low DIR "
                         "(pictures) and --labels DIR")


class _Data(NamedTuple):
    """What is scored on, as `sources.open` takes it."""

    source: str
    low: str | None = None
    high: str | None = None
    root: str | None = None
    prepared: str | None = None


def _data(args: argparse.Namespace) -> _Data:
    """From the flags, or as the workdirs' trainings were evaluated."""
    if args.source or args.low or args.high:
        if args.low and not (args.high or args.source):
            raise InputError("--low alone: give --high DIR too, or --source folder to score "
                             "without references")
        source = args.source or "pairs"
        if source not in ("pairs", "folder") and (args.low or args.high):
            raise InputError(f"--low and --high go with --source pairs, or --low alone with "
                             f"--source folder, not with {source}")
        return _Data(source, args.low, args.high, args.root, args.prepared)
    found = {_eval_data(workdir) for workdir in args.workdir}
    if len(found) > 1:
        raise InputError("the workdirs were evaluated on different data while training; say which "
                         "with --source, or --low and --high")
    data = found.pop() if found else _Data("demo")
    return data._replace(root=args.root or data.root, prepared=args.prepared or data.prepared)


def _eval_data(workdir: str) -> _Data:
    path = os.path.join(workdir, "config.json")
    try:
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
        wanted = config["eval"]
        data = _Data(wanted["source"], wanted["low"], wanted["high"])
        if set(data.source.split("+")) <= {"demo", "pairs"}:
            return data  # where published sets are does not matter
        return data._replace(root=config["data"]["root"], prepared=config["data"]["prepared"])
    except OSError as error:
        raise InputError(f"--workdir {workdir}: cannot read {path} ({error.strerror}); give the "
                         "folder of a training") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"--workdir {workdir}: {path} is not a config of lljax; say what to "
                         "evaluate on with --source") from error


def _row_names(paths: Sequence[str]) -> dict[str, str]:
    """Row name -> path: the shortest ends of the paths that differ, without the file ending."""
    parts = [os.path.abspath(path).split(os.sep) for path in paths]
    for path in paths:
        if paths.count(path) > 1:
            raise InputError(f"{path} is given {paths.count(path)} times; give it once")
    for depth in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(part[-depth:]).removesuffix(".safetensors") for part in parts]
        if len(set(names)) == len(names):
            return dict(zip(names, paths, strict=True))
    if paths:  # spelled differently, yet one and the same
        raise InputError(f"some of these are the same: {', '.join(paths)}; give each once")
    return {}


def _variants(models: Mapping[str, str], args: argparse.Namespace) -> dict[str, _Row]:
    """Rows by name: every model as it is, then once with each of the settings; trainings with the
    averages of their parameters or without."""
    rows: dict[str, _Row] = {}
    for name, path in models.items():
        for averaged in _AVERAGES[args.average if path in args.workdir else "on"]:
            row = name if averaged else f"{name} without average"
            rows[row] = _Row(path, [], averaged)
            for text in args.settings:
                # A comma within a value is not followed by a key.
                rows[f"{row} with {text}"] = _Row(path, re.split(r",(?=[\w.]+=)", text), averaged)
    return rows


def _checkpoints(models: Mapping[str, str], args: argparse.Namespace,
                 pairs: Sequence[Mapping[str, Any]] = ()) -> dict[str, dict[str, Any]]:
    """Name of a training -> the step that is scored, and what chose it."""
    if not args.workdir:
        return {}
    from lljax.evaluation import selection  # Orbax is slow to import

    chosen = {name: selection.choose(path, args.select) for name, path in models.items()
              if path in args.workdir}
    shared = selection.separate(list(chosen.values()), pairs, args.limit)
    for workdir, found in shared.items():
        if found != "none":
            print(f"note: whether {workdir} is scored on pictures that chose its step is {found}")
    return selection.facts(chosen, shared)


def _label(source: str, split: str, low: str | None, high: str | None) -> str:
    """A short name of the data, for a folder: eval15 for LOL/eval15/low and LOL/eval15/high."""
    if source not in ("pairs", "folder"):
        return f"{source}_{split}"
    paths = [os.path.abspath(path) for path in (low, high) if path]
    return os.path.basename(os.path.commonpath(paths)) or "pairs"


def _names(text: str) -> list[str]:
    """The parts of a comma list."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _systems(models: Mapping[str, str], rows: Mapping[str, _Row], args: argparse.Namespace,
             checkpoints: Mapping[str, Mapping[str, Any]]) -> dict[str, System]:
    from lljax import parallel
    from lljax.inference import enhancer

    parallel.keep_programs()
    steps = {models[name]: found["step"] for name, found in checkpoints.items()}
    return {name: enhancer.load(row.path, args.seed, row.settings, row.averaged,
                                step=steps.get(row.path)) for name, row in rows.items()}


def _info(models: Mapping[str, str], rows: Mapping[str, _Row], args: argparse.Namespace,
          checkpoints: Mapping[str, Any], source: str, argv: Sequence[str]) -> dict[str, Any]:
    """What results.json says beside the scores."""
    info = {"source": source, "seed": args.seed, "models": models}
    if checkpoints:
        info["checkpoints"] = checkpoints
    if args.settings:  # apart: who looks a model's row up in "models" wants it as it was trained
        info["settings"] = {name: ", ".join(row.settings) for name, row in rows.items()
                            if row.settings}
    return {**info, "command": shlex.join(argv)}


def _detect(args: argparse.Namespace, argv: Sequence[str]) -> int:
    """Scores a detector before and after; the exit code is 1 if pictures had to be left out."""
    from lljax.evaluation import detection

    detector = detection.load(args.detector)
    wanted = [name for name in (args.classes or "").split(",") if name]
    annotated = detection.annotations(args.low, args.labels, wanted)
    for note in annotated.notes:
        print(f"note: {note}")
    models = _row_names([*args.workdir, *args.weights])
    rows, checkpoints = _variants(models, args), _checkpoints(models, args)
    single = args.workdir[0] if len(args.workdir) == 1 and not args.weights else ""
    out = args.out or os.path.join(
        single, f"detect_{os.path.basename(os.path.abspath(args.low))}")
    info = _info(models, rows, args, checkpoints, args.low, argv)
    results = detection.evaluate(
        _systems(models, rows, args, checkpoints), annotated, detector, out=out, limit=args.limit,
        progress=True, info={**info, "detector": args.detector, "labels": args.labels})
    for line in detection.lines(results.left_out):
        print(f"error: left out: {line}", file=sys.stderr)
    print(detection.table(results))
    print("\nwrote results.json, results.md, results.tex, per_image.csv and detections.png to "
          f"{out}")
    return 1 if results.left_out else 0


def main(argv: Sequence[str]) -> int:
    """The command `evaluate.py`.

    Args:
      argv: the command line, program name first.

    Returns:
      The exit code: 0, or 1 if something was left out: columns that a picture is too small for,
      or pictures that a detector could not be scored on.

    Raises:
      InputError: see `evaluate`, and flags that make no sense.
    """
    args = _parse(argv[1:])
    if args.list_metrics:
        print(table(args.protocol))
        return 0
    if args.detector:
        return _detect(args, argv)
    models = _row_names([*args.workdir, *args.weights])
    source, low, high, root, prepared = _data(args)
    split = args.split or _TEST
    from lljax.data import datasets, sources  # after the flags: a typing error costs no import

    for name in source.split("+"):
        if name not in ("folder", *sources.WITH_REFERENCES):
            raise unknown("source", name, ("folder", *sources.WITH_REFERENCES))
    if (args.root or args.prepared) and not set(source.split("+")) & datasets.SETS.keys():
        raise InputError("--root and --prepared say where published sets are; the source "
                         f"{source} needs neither")
    references = source != "folder"
    cards, left_out = columns(
        {flag: getattr(args, flag.replace("-", "_")) for flag in SCORING}, references)
    baselines = baseline_names(args.baselines)
    pairs = (sources.open(source, split=split, low=low, high=high, root=root, prepared=prepared)
             if references else sources.Pairs(sources.open_tables(source, low=low, high=high)[0]))
    label = _label(source, split, low, high)
    rows, checkpoints = _variants(models, args), _checkpoints(models, args, pairs)
    systems = _systems(models, rows, args, checkpoints)
    single = args.workdir[0] if len(args.workdir) == 1 and not args.weights else ""
    out = args.report or args.out or os.path.join(single, f"eval_{label}")
    described = {"pairs": f"{low} and {high}", "folder": low}.get(
        source, f"{source} ({split})")
    info = {**_info(models, rows, args, checkpoints, described, argv), "protocol": args.protocol}
    if left_out:
        info["not_computed"] = left_out
    results = evaluate(
        systems, pairs, out=out, with_report=bool(args.report), limit=args.limit, progress=True,
        baselines=baselines, metrics=cards, leave_out=True, info=info)
    small = {key: reason for key, reason in results.info.get("not_computed", {}).items()
             if key not in left_out}
    for key, reason in small.items():
        print(f"error: left out: {key}: {reason}", file=sys.stderr)
    print(report.table(results))
    more = "report.html, pictures/, " if args.report else ""
    print(f"\nwrote {more}results.json, results.md, results.tex, per_image.csv and "
          f"contact_sheet.png to {out}")
    return 1 if small else 0
