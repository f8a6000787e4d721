"""`lljax ablate`: many trainings that differ in what a question is about, and one table of them.

Every variant x seed is an ordinary run in ROOT/runs, trained by the one loop and resumed by it. The
runs of this process share the decoded pictures and, where they differ in seeds and loss weights
alone, the compiled programs; what comes out is what train.py gives for the same config.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import re
import runpy
import shlex
import sys
import time
import traceback
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from lljax import config as config_lib
from lljax import images, parallel
from lljax.errors import InputError, Stopped, unknown
from lljax.evaluation import evaluate, report
from lljax.evaluation.metrics import Metric
from lljax.training import ablation_report
from lljax.training.loop import REQUEUE, fit_members, measure
from lljax.training.member import Member
from lljax.training.shared import ALONE, LOCKSTEP, Shared, lockstep_key, program_key

MODES = ("grid", "leave-one-out", "list")
BASELINE = "baseline"
MEASURED = 200  # steps of a run from which on it is worth to measure how runs are fastest
SHOWN = 4  # scenes in the grid of pictures
# A finished run may be read, and an unfinished one go on, with other values of these.
_FREE = re.compile(r"(log|eval|checkpoint)\..+|data\.(threads|cache_gib)|phase\.\w+\.steps")
_FLAGS = dict(
    root=("", "Folder of the ablation; the same command goes on, and writes the table anew"),
    vary=([], "KEY=VALUE,VALUE,... of the config, e.g. loss.color.weight=0,5, or preset=NAME,...; "
          "may be repeated"),
    mode=("", "grid: all combinations of the --vary values; list: each value alone; "
          "leave-one-out: each enabled loss term at weight 0 (default: grid with --vary, else "
          "leave-one-out)"),
    preset=("", "A question that is ready: losses, or a name of the config's ABLATIONS (data, "
            "parameters, modules), instead of --vary"),
    seeds=(3, "Trainings of each variant, with config.seed and the numbers after it"),
    source=("", "What is scored on: demo | pairs | a published set (default: what config.eval "
            "says)"),
    low=("", "pairs: folder of low-light pictures"),
    high=("", "pairs: folder of references"),
    limit=(0, "Score only the first N pictures; 0 = what config.eval.limit says (all by default)"),
    **{flag: ([], f"{' '.join(options['metavar'])}, two files: {options['help']}")
       if "nargs" in options else (options.get("default", ""), options["help"])
       for flag, options in evaluate.SCORING.items()},
    how=("auto", "sequential, one run after the other; devices (a run on each), unrolled or vmap, "
         f"several in lockstep; auto: what is measured to be fastest, from {MEASURED} steps on"),
    together=(4, "Runs in lockstep at most, but for devices"),
    share=("", "I/N: train share I of N, from 0, and write no table"),
    collect=(False, "Train nothing: write the table of what is there"),
    launch=("", "slurm: train nothing, write an array job into ROOT/launch"),
    tasks=(0, "Tasks of the array job; 0 = one a variant"))


@dataclasses.dataclass(frozen=True)
class Scoring:
    """What is computed of every run, and on which pictures.

    Attributes:
      config: the baseline's: its `eval` says what all variants are scored on.
      cards: the columns.
      left_out: metric that cannot be computed, where all were asked for -> why.
      files: what metrics need beside the pictures: flag -> files.
      limit: the first so many pictures; 0 for config.eval's number.
      baselines: names of the methods without training that get rows too.
      names: of the pictures, once they are found.
    """

    config: ConfigDict
    cards: Sequence[Metric]
    left_out: Mapping[str, str]
    files: Mapping[str, Any]
    limit: int
    baselines: Sequence[str]
    names: Sequence[str] = ()

    def identity(self) -> dict[str, Any]:
        """What the numbers depend on beside the pictures themselves and what is scored."""
        wanted = self.config.eval
        return {"limit": self.limit or wanted.limit,
                **{f"eval.{key}": wanted[key] for key in ("source", "low", "high")},
                "metrics": {card.key: card.protocol for card in self.cards}, **self.files}


@dataclasses.dataclass(frozen=True)
class Variant:
    """One row of the table.

    Attributes:
      name: of the row.
      entries: what it changes: settings "key=value", and presets.
      config: complete config, with the first seed.
    """

    name: str
    entries: tuple[str, ...]
    config: ConfigDict

    @property
    def folder(self) -> str:
        """What its runs' folders are called."""
        plain = self.name.replace(", ", "_").replace(" ", "_")
        safe = re.sub(r"[^\w.=+-]", "_", plain)[:80]
        # what is lost of a name, e.g. a path's, could be all that tells it from another's
        return safe if safe == plain else f"{safe}-{zlib.crc32(self.name.encode()):08x}"


@dataclasses.dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
      variant: what is trained.
      seed: of it.
      config: complete config with that seed.
      workdir: of the training.
    """

    variant: Variant
    seed: int
    config: ConfigDict
    workdir: str

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.variant.name}, seed {self.seed}"


def main(argv: Sequence[str]) -> int:
    """The command `lljax ablate`.

    Args:
      argv: the command line, program name first.

    Returns:
      Exit code: 0 done, 1 some runs failed.

    Raises:
      InputError: a mistake in the flags, found before anything is trained.
      Stopped: by SIGTERM after saving (code 75).
    """
    given, argv = argv, _one_value_each(argv)
    flags = config_lib.parse(argv, **_FLAGS)
    _check_flags(flags)
    variants = plan(flags, argv)
    scoring = scoring_of(flags, variants[0].config)
    if flags.launch:
        print(f"wrote {_launch(flags.root, given, flags.tasks or len(variants))}")
        return 0
    parallel.keep_programs()
    with Shared() as shared:
        scoring = find_pictures(scoring, shared)
        mine = _share(variants, flags.share)
        runs = in_order([run for variant in mine for run in runs_of(variant, flags)])
        failed = {} if flags.collect else train(
            runs, shared, scoring, flags.how, flags.together)
        if not flags.share:
            _write_table(flags, variants, scoring, failed, shared, given)
    for name, reason in failed.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    return 1 if failed else 0


def _one_value_each(argv: Sequence[str]) -> list[str]:
    """The command line with "--flag A B" written as "--flag=A --flag=B": absl has no flags of two
    values, and evaluate.py has."""
    double = {f"--{flag}" for flag, options in evaluate.SCORING.items() if "nargs" in options}
    found, left = [], list(argv)
    while left:
        text = left.pop(0)
        if text in double:
            if len(left) < 2 or any(value.startswith("--") for value in left[:2]):
                raise InputError(f"argument {text}: expected 2 arguments")
            found += [f"{text}={left.pop(0)}", f"{text}={left.pop(0)}"]
        else:
            found.append(text)
    return found


def scoring_of(flags: Any, config: ConfigDict) -> Scoring:
    """What the flags ask to be computed.

    Args:
      flags: parsed, see `_FLAGS`.
      config: the baseline's.

    Raises:
      InputError: as `evaluate.columns` and `evaluate.baseline_names`.
    """
    given = {flag: flags[flag].value for flag in evaluate.SCORING}
    for flag, options in evaluate.SCORING.items():
        if "nargs" in options and len(given[flag]) not in (0, options["nargs"]):
            raise InputError(f"argument --{flag}: expected {options['nargs']} arguments, once")
    cards, left_out = evaluate.columns(given)
    files = {flag: given[flag] for flag in evaluate.FILES if given[flag]}
    return Scoring(config, cards, left_out, files, flags.limit,
                   evaluate.baseline_names(flags.baselines))


def find_pictures(scoring: Scoring, shared: Shared) -> Scoring:
    """What is computed, with the names of the pictures.

    Raises:
      InputError: there are none, or some cannot be read or are not fit for the metrics.
    """
    pairs = shared.pairs(scoring.config)
    if not len(pairs):
        raise InputError("nothing to score on: there are no pairs")
    count = min(scoring.limit or scoring.config.eval.limit or len(pairs), len(pairs))
    names, *_ = evaluate.check_pairs(pairs, count, scoring.cards)
    return dataclasses.replace(scoring, names=names)


def _check_flags(flags: Any) -> None:
    if flags.config is None:
        raise InputError("give --config, e.g. --config configs/METHOD.py")
    if not flags.root:
        raise InputError("give --root, the folder of the ablation, e.g. --root runs/ablation")
    if flags.mode and flags.mode not in MODES:
        raise unknown("--mode", flags.mode, MODES)
    if flags.launch not in ("", "slurm"):
        raise unknown("--launch", flags.launch, ("slurm",))
    if flags.how not in (ways := ("auto", ALONE, *LOCKSTEP)):
        raise unknown("--how", flags.how, ways)
    for name, least in (("seeds", 1), ("limit", 0), ("tasks", 0), ("together", 1)):
        if flags[name].value < least:
            raise InputError(f"--{name} is {flags[name].value}; it must be {least} or more")
    if flags.preset and (flags.vary or flags.mode):
        raise InputError("--preset says what is varied: leave out --vary and --mode")
    if flags.vary and flags.mode == "leave-one-out":
        raise InputError("--mode leave-one-out takes every enabled loss term: leave out --vary")
    if not flags.vary and flags.mode in ("grid", "list"):
        raise InputError(f"--mode {flags.mode} needs --vary KEY=VALUE,VALUE,...")
    if sum(map(bool, (flags.share, flags.collect, flags.launch))) > 1:
        raise InputError("give one of --share, --collect and --launch")
    if flags.tasks and not flags.launch:
        raise InputError("--tasks goes with --launch slurm")
    if flags["together"].present and flags.how in (ALONE, "devices"):
        raise InputError(f"--together goes with --how auto, unrolled or vmap, not {flags.how}")
    if (flags.low or flags.high) and flags.source not in ("", "pairs"):
        raise InputError(f"--low and --high go with --source pairs, not {flags.source}")


def plan(flags: Any, argv: Sequence[str]) -> list[Variant]:
    """The variants that the flags ask for, the baseline first.

    Args:
      flags: parsed, see `_FLAGS`.
      argv: what they were parsed from.

    Returns:
      Variants of different configs; what equals an earlier one is left out.

    Raises:
      InputError: an unknown key, term or preset, a value of another type, nothing to vary.
    """
    base = _evaluated(flags.config, flags)
    if flags.preset:
        named = _question(flags.preset, base, _config_file(argv))
    elif flags.vary:
        named = _varied(flags.vary, base, flags.mode or "grid")
    else:
        named = _without_each_term(base)
    variants, seen = [Variant(BASELINE, (), base)], {config_lib.to_json(base): BASELINE}
    for name, entries in named.items():
        config = _configure(name, base, entries, flags, argv)
        if (same := seen.setdefault(config_lib.to_json(config), name)) == name:
            variants.append(Variant(name, tuple(entries), config))
        elif flags.vary:  # combinations hold the baseline's values on purpose
            if same == BASELINE:
                known = dict.fromkeys((*variants[0].entries, *entries))
                variants[0] = dataclasses.replace(variants[0], entries=tuple(known))
        else:
            why = ("the config as given has nothing of what it changes" if same == BASELINE else
                   f"it equals {same!r}")
            print(f"note: variant {name!r} ({', '.join(entries)}) is left out: {why}", flush=True)
    if len(variants) == 1:
        raise InputError("nothing is varied: every variant is the baseline")
    folders: dict[str, str] = {}
    for variant in variants:
        if (other := folders.setdefault(variant.folder, variant.name)) != variant.name:
            raise InputError(f"variants {other!r} and {variant.name!r} would share the folder "
                             f"{variant.folder}; rename one")
    return variants


def _evaluated(config: ConfigDict, flags: Any) -> ConfigDict:
    """The config with what the flags say about the data to score on."""
    settings = {"source": flags.source or ("pairs" if flags.low or flags.high else ""),
                "low": flags.low, "high": flags.high}
    settings = [f"eval.{key}={value}" for key, value in settings.items() if value]
    if "group" in config.log and not config.log.group:
        settings.append(f"log.group={os.path.basename(os.path.abspath(flags.root))}")
    return config_lib.change(config, settings)


def _configure(name: str, base: ConfigDict, entries: Sequence[str], flags: Any,
               argv: Sequence[str]) -> ConfigDict:
    """The baseline with a variant's presets and settings."""
    presets = [entry for entry in entries if "=" not in entry]
    settings = [entry for entry in entries if "=" in entry]
    try:
        if presets:
            base = _evaluated(config_lib.parse(_with_presets(argv, presets), **_FLAGS).config,
                              flags)
        return config_lib.change(base, settings)
    except InputError as error:
        raise InputError(f"variant {name!r}: {error}") from error


def _question(name: str, base: ConfigDict, path: str) -> Mapping[str, Sequence[str]]:
    """Variants of a question that is ready: name -> entries."""
    known = {"losses": None, **runpy.run_path(path).get("ABLATIONS", {})}
    if name not in known:
        raise unknown("--preset", name, known)
    return known[name] or _without_each_term(base)


def _without_each_term(base: ConfigDict) -> dict[str, tuple[str, ...]]:
    named = {f"without {term}": (f"loss.{term}.weight=0",)
             for term, knobs in base.loss.items() if knobs.enabled and knobs.weight}
    if not named:
        raise InputError("no loss term is enabled with a weight other than 0: nothing to leave out")
    return named


def _varied(texts: Sequence[str], base: ConfigDict, mode: str) -> dict[str, tuple[str, ...]]:
    """Variants of --vary flags: name -> entries."""
    axes: dict[str, list[str]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        found = re.findall(r"(?:\[[^\]]*\]|[^,])+", values)  # a list's commas are its own
        if not equals or not key or not found:
            raise InputError(f"--vary {text}: write KEY=VALUE,VALUE,..., e.g. "
                             "loss.color.weight=0,5")
        if key in axes:
            raise InputError(f"--vary {key} is given twice; give its values together")
        _check_key(text, key, found, base)
        axes[key] = [value if key == "preset" else f"{key}={value}" for value in found]
    if mode == "list":
        rows = [(entry,) for axis in axes.values() for entry in axis]
    else:
        rows = list(itertools.product(*axes.values()))
    return {", ".join(map(_label, row)): row for row in rows}


def _check_key(text: str, key: str, values: Sequence[str], base: ConfigDict) -> None:
    if key == "preset":
        return  # the config's file knows them
    if key == "seed":
        raise InputError("--vary seed: the seeds are --seeds N, from config.seed on")
    try:
        for value in values:
            config_lib.change(base, [f"{key}={value}"])
    except InputError as error:
        raise InputError(f"--vary {text}: {error}") from error
    group, *rest = key.split(".")
    if group == "eval":
        raise InputError(f"--vary {text}: all variants are scored on the same pictures, those of "
                         "--source, --low and --high or of the baseline's config.eval")
    term, knob = (rest or [""])[0], rest[1:]
    if group == "loss" and not base.loss[term].enabled and knob != ["enabled"]:
        raise InputError(f"--vary {text}: the loss term {term!r} is not enabled, so nothing would "
                         f"change; add --config.loss.{term}.enabled=True")


def _label(entry: str) -> str:
    """What a variant's name says of an entry: loss.color.weight=0 is color=0."""
    return re.sub(r"^loss\.(\w+)\.weight=", r"\1=", entry)


def _config_flag(argv: Sequence[str]) -> tuple[int, str]:
    """(place in the command line, value) of the last --config."""
    for i in reversed(range(1, len(argv))):
        if match := re.fullmatch(r"--?config=(.*)", argv[i]):
            return i, match.group(1)
        if argv[i - 1] in ("--config", "-config"):
            return i, argv[i]
    raise InputError("give --config, e.g. --config configs/METHOD.py")


def _config_file(argv: Sequence[str]) -> str:
    return _config_flag(argv)[1].split(":")[0]


def _with_presets(argv: Sequence[str], presets: Sequence[str]) -> list[str]:
    """The command line with more presets of the config, after the others."""
    at, value = _config_flag(argv)
    path, _, present = value.partition(":")
    value = f"{path}:{','.join(filter(None, (present, *presets)))}"
    text = argv[at]
    return [*argv[:at], f"--config={value}" if text.startswith("-") else value, *argv[at + 1:]]


def runs_of(variant: Variant, flags: Any) -> list[Run]:
    """A variant's trainings."""
    runs = []
    for number in range(flags.seeds):
        seed = variant.config.seed + number
        config = config_lib.change(variant.config, [f"seed={seed}"])
        runs.append(Run(variant, seed, config, os.path.join(
            flags.root, "runs", f"{variant.folder}_seed{seed}")))
    return runs


def in_order(runs: Sequence[Run]) -> list[Run]:
    """The runs, those that share programs and data one after the other."""
    places: dict[str, int] = {}
    keys = [[places.setdefault(text, len(places)) for text in (
        program_key(run.config), config_lib.to_json(run.config.data))] for run in runs]
    return [run for _, run in sorted(zip(keys, runs, strict=True), key=lambda pair: pair[0])]


def _share(variants: list[Variant], text: str) -> list[Variant]:
    if not text:
        return variants
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise InputError(f"--share {text}: write I/N with I from 0 to N - 1, e.g. 0/4")
    return variants[int(match[1])::int(match[2])]


def train(runs: Sequence[Run], shared: Shared, scoring: Scoring, how: str = ALONE,
          together: int = 4) -> dict[str, str]:
    """Trains and scores what is not yet.

    Args:
      runs: in the order of their doing.
      shared: what they have in common.
      scoring: what is computed, of `find_pictures`.
      how: one after the other (`ALONE`), in lockstep (a name of `LOCKSTEP`), or "auto": what is
        measured to be fastest.
      together: at most so many in lockstep; of "devices", as many as there are.

    Returns:
      Name of a failed run -> why; its traceback, if it was not the user's mistake, is in its
      folder's error.txt.

    Raises:
      Stopped: by SIGTERM after saving (code 75).
    """
    failed, choices, begin = {}, {}, time.perf_counter()
    todo = [run for run in runs if scores_of(run, scoring) is None]
    if len(todo) < len(runs):
        print(f"{len(runs) - len(todo)} of {len(runs)} runs are finished", flush=True)
    if how == "auto" and max((_length(run) for run in todo), default=0) < MEASURED:
        how = ALONE
    for number, group in enumerate(groups := _groups(todo, how, together), 1):
        print(f"[{number}/{len(groups)}] {'; '.join(run.name for run in group)}", flush=True)
        failed |= _train_group(group, shared, scoring, how, choices)
        if shared.interrupted:
            raise Stopped("interrupted between two runs; the same command goes on", REQUEUE)
    print(f"{len(todo) - len(failed)} of {len(todo)} runs done in "
          f"{time.perf_counter() - begin:.1f} s", flush=True)
    return failed


def _length(run: Run) -> int:
    return sum(run.config.phase[phase].steps for phase in run.config.phases)


def _groups(runs: Sequence[Run], how: str, together: int) -> list[list[Run]]:
    """Neighbours that may be in lockstep."""
    size = {ALONE: 1, "devices": jax.local_device_count(),
            "auto": max(together, jax.local_device_count())}.get(how, together)
    groups: list[list[Run]] = []
    for run in runs:
        if groups and len(groups[-1]) < size and (
                lockstep_key(groups[-1][0].config) == lockstep_key(run.config)):
            groups[-1].append(run)
        else:
            groups.append([run])
    return groups


def _train_group(group: Sequence[Run], shared: Shared, scoring: Scoring, how: str,
                 choices: dict[tuple, str]) -> dict[str, str]:
    """Trains and scores some runs, in lockstep if they are several; name -> why it failed.
    `choices` keeps what "auto" has measured."""
    failed = _in_lockstep(group, shared, how, choices) if len(group) > 1 else {}
    for run in group:  # those trained in lockstep are found finished, and are scored
        if run.name in failed:
            continue
        try:
            _check_same(run)
            with Member(run.config, run.workdir, shared) as member:
                fit_members([member], shared)
                if member.stopped:
                    raise member.stopped
                score(run, member, scoring)
        except Stopped as stopped:
            if stopped.code == REQUEUE:
                raise
            failed[run.name] = str(stopped)
        except InputError as error:
            failed[run.name] = str(error)
        except Exception as error:  # whatever it is, the other variants go on
            path = os.path.join(run.workdir, "error.txt")
            os.makedirs(run.workdir, exist_ok=True)
            _write(path, traceback.format_exc())
            text = " ".join(str(error).split())[:200]
            failed[run.name] = f"{type(error).__name__}: {text} (the traceback: {path})"
        if run.name in failed:
            print(f"failed: {run.name}: {failed[run.name]}", file=sys.stderr, flush=True)
    return failed


def _in_lockstep(group: Sequence[Run], shared: Shared, how: str,
                 choices: dict[tuple, str]) -> dict[str, str]:
    """Trains those of a group that stand at one step; name -> why it failed. Whatever else is the
    matter with a run shows when it is trained alone."""
    failed = {}
    if choices.get((program_key(group[0].config), len(group))) == ALONE:
        return failed
    try:
        with contextlib.ExitStack() as opened:
            places: dict[tuple, list[Member]] = {}
            for run in group:
                with contextlib.suppress(InputError):
                    _check_same(run)
                    member = opened.enter_context(
                        Member(run.config, run.workdir, shared, run.name))
                    at = (member.begin.phases, int(member.state.step))
                    places.setdefault(at, []).append(member)
            for (phases, _), members in places.items():
                if not phases or len(members) == 1:
                    continue
                key = program_key(members[0].config), len(members)
                if how != "auto":
                    choices[key] = how
                elif key not in choices:
                    choices[key] = _fastest(measure(members, shared), len(members))
                if choices[key] != ALONE:
                    fit_members(members, shared, choices[key])
                failed |= {member.name: str(member.stopped) for member in members
                           if member.stopped}
    except Stopped:
        raise
    except Exception as error:  # e.g. out of memory
        print(f"not in lockstep ({type(error).__name__}: {' '.join(str(error).split())[:200]}), "
              "so one after the other", file=sys.stderr, flush=True)
    return failed


def _fastest(found: Mapping[str, float | str], count: int) -> str:
    """The fastest of what was measured; says what was."""
    shown = ", ".join(f"{how} {1000 * value:.4g} ms" if isinstance(value, float) else
                      f"{how} not possible ({value})" for how, value in found.items())
    times = {how: value for how, value in found.items() if isinstance(value, float)}
    best = min(times, key=times.get, default=ALONE)
    print(f"a step of {count} runs: {shown}; chosen: {best}", flush=True)
    return best


def _fixed(config: ConfigDict) -> dict[str, Any]:
    """What decides a run's numbers, but for its length."""
    return {key: value for key, value in config_lib.flat(config).items()
            if not _FREE.fullmatch(key)}


def _check_same(run: Run) -> None:
    """A folder that another ablation left is not taken for this one's."""
    path = os.path.join(run.workdir, "config.json")
    if not os.path.exists(path):
        return
    with open(path, encoding="utf-8") as file:
        old = _fixed(config_lib.from_json(file.read()))
    new = _fixed(run.config)
    lines = [f"{key}: {old.get(key, 'absent')} -> {new.get(key, 'absent')}"
             for key in sorted(old.keys() | new.keys())
             if old.get(key, "absent") != new.get(key, "absent")]
    if lines:
        raise InputError(f"{run.workdir} was trained with another config ({', '.join(lines)}); "
                         "choose another --root, or take that folder away")


def _identity(run: Run, scoring: Scoring) -> dict[str, Any]:
    """What a run's scores depend on."""
    flat = config_lib.flat(run.config)
    return {**_fixed(run.config), **scoring.identity(),
            **{key: value for key, value in flat.items()
               if key.startswith("phase.") and key.endswith(".steps")}}


def score(run: Run, member: Member, scoring: Scoring) -> None:
    """Scores a finished run as evaluate.py does, and keeps scores and some pictures with it."""
    enhance, small = member.enhancer(seed=0), []

    def system(low: np.ndarray) -> np.ndarray:  # called once a picture, in their order
        enhanced = enhance(low)
        small.append(report.shrink(enhanced))
        return enhanced

    results = evaluate.evaluate(
        {"model": system}, member.shared.pairs(scoring.config), limit=len(scoring.names),
        baselines=False, metrics=scoring.cards)
    for number, index in enumerate(report.spread(len(results.names), SHOWN)):
        report.write_png(_picture(run, number), small[index])
    with open(os.path.join(run.workdir, "metrics.jsonl"), encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    last = next(record for record in reversed(records) if "phase" in record)
    _keep(_scores(run), _identity(run, scoring), results, results.values[0], {
        key: value for key, value in last.items() if key.startswith("loss/")})


def scores_of(run: Run, scoring: Scoring) -> dict[str, Any] | None:
    """What `score` kept of a run; None if it did not, or the run or the scoring is another now."""
    return _kept(_scores(run), _identity(run, scoring), scoring)


def untrained(root: str, scoring: Scoring, shared: Shared) -> dict[str, np.ndarray]:
    """Scores of the methods that need no training; those that an earlier call kept are read.

    Args:
      root: of the ablation.
      scoring: what is computed, of `find_pictures`.
      shared: has the pictures.

    Returns:
      Name -> values [picture, metric].
    """
    if not scoring.baselines:
        return {}
    path = os.path.join(root, "untrained.json")
    of = {**scoring.identity(), "baselines": list(scoring.baselines)}
    if (found := _kept(path, of, scoring)) is None:
        results = evaluate.evaluate(
            {}, shared.pairs(scoring.config), limit=len(scoring.names),
            baselines=scoring.baselines, metrics=scoring.cards, progress=True)
        _keep(path, of, results, results.values, {})
        found = _kept(path, of, scoring)
    return dict(zip(scoring.baselines, found["values"], strict=True))


def _keep(path: str, of: Mapping[str, Any], results: evaluate.Results, values: np.ndarray,
          losses: Mapping[str, float]) -> None:
    """Writes scores, and what they depend on."""
    with report.writing(os.path.dirname(path)):
        _write(path, json.dumps({
            "of": of, "names": results.names,
            "metrics": [{"key": card.key, "heading": card.heading, "better": card.better,
                         "digits": card.digits, "gt_mean": card.gt_mean,
                         "protocol": card.protocol} for card in results.metrics],
            # JSON has no infinity
            "values": np.vectorize(lambda value: repr(float(value)), otypes=[object])(
                values).tolist(),
            "losses": losses, "versions": evaluate.versions()}, indent=1, allow_nan=False) + "\n")


def _kept(path: str, of: Mapping[str, Any], scoring: Scoring) -> dict[str, Any] | None:
    """What `_keep` wrote; None if nothing, or of something else or other pictures."""
    if not os.path.exists(path):
        return None
    with open(path, encoding="utf-8") as file:
        found = json.load(file)
    if found["of"] != json.loads(json.dumps(of)) or found["names"] != list(scoring.names):
        return None
    return {**found, "values": np.array(found["values"], np.float64)}


def _scores(run: Run) -> str:
    return os.path.join(run.workdir, "scores.json")


def _picture(run: Run, number: int) -> str:
    return os.path.join(run.workdir, f"shown_{number}.png")


def _write_table(flags: Any, variants: Sequence[Variant], scoring: Scoring,
                 failed: Mapping[str, str], shared: Shared, argv: Sequence[str]) -> None:
    """Everything that is read off the scores, into ROOT."""
    rows, absent = [], {}
    for variant in variants:
        scores = {}
        for run in runs_of(variant, flags):
            if (found := scores_of(run, scoring)) is not None:
                scores[run.seed] = found
            else:
                absent[run.name] = failed.get(run.name) or (
                    "scored by other metrics or on other pictures; without --collect it is scored "
                    "anew" if os.path.exists(_scores(run)) else "not trained yet")
        if scores:
            rows.append(ablation_report.Row(variant.name, config_lib.flat(variant.config),
                                            variant.entries, scores))
    if not rows:
        print("there is no finished run yet, so there is no table", file=sys.stderr)
        for name, why in absent.items():
            print(f"{name}: {why}", file=sys.stderr)
        return
    absent |= {f"metric {name}": why for name, why in scoring.left_out.items()}
    ablation = ablation_report.Ablation(
        rows, absent, shlex.join(["lljax", "ablate", *argv[1:]]),
        untrained(flags.root, scoring, shared))
    ablation_report.write(ablation, flags.root, _sheet(flags, variants, scoring, shared))
    print(ablation_report.text(ablation))
    print(f"\nwrote ablation.html, .md, .tex, .csv and .json, runs.csv, per_image.csv, plots/ and "
          f"pictures.png to {flags.root}")


def _sheet(flags: Any, variants: Sequence[Variant], scoring: Scoring,
           shared: Shared) -> np.ndarray:
    """The same scenes, as every variant's first seed enhances them."""
    pairs = shared.pairs(scoring.config)
    scenes = [pairs[index] for index in report.spread(len(scoring.names), SHOWN)]
    columns = {report.LOW: [report.shrink(scene["low"]) for scene in scenes]}
    for variant in variants:
        run = runs_of(variant, flags)[0]
        if scores_of(run, scoring) is not None:
            columns[variant.name] = [np.asarray(Image.open(_picture(run, number)).convert("RGB"))
                                     for number in range(len(scenes))]
    columns[report.REFERENCE] = [report.shrink(scene["high"]) for scene in scenes]
    return report.contact_sheet(columns, width=240)


def _launch(root: str, argv: Sequence[str], tasks: int) -> str:
    """Writes a SLURM array job that trains one share a task; the path of its file."""
    arguments, skip = [], False
    for text in argv[1:]:
        if skip:  # the value of a flag that is left out
            skip = False
        elif re.fullmatch(r"--?(launch|tasks)(=.*)?", text):
            skip = "=" not in text
        else:
            arguments.append(text)
    folder = os.path.abspath(os.path.join(root, "launch"))
    command = shlex.join([sys.executable, "-m", "lljax.cli", "ablate", *arguments])
    path = os.path.join(folder, "ablation.sbatch")
    with report.writing(folder):
        os.makedirs(folder, exist_ok=True)
        _write(path, _SBATCH.format(
            name=re.sub(r"\W+", "_", os.path.basename(os.path.abspath(root))), last=tasks - 1,
            tasks=tasks, folder=shlex.quote(folder), here=shlex.quote(os.getcwd()),
            command=command))
    return path


_SBATCH = """\
#!/bin/bash
# sbatch this file, with --partition, --gres=gpu:1, --time, ... as your cluster wants them; then
# collect: the command below with --collect instead of --share.
#SBATCH --job-name={name}
#SBATCH --array=0-{last}
#SBATCH --output={folder}/%A_%a.log
#SBATCH --requeue
#SBATCH --signal=TERM@120
cd {here}
code=0
srun --ntasks=1 {command} \\
  --share="$SLURM_ARRAY_TASK_ID/{tasks}" || code=$?
# saved before the time was up: goes on in the queue
if [ "$code" = 75 ]; then
  scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"
fi
exit "$code"
"""


def _write(path: str, text: str) -> None:
    with images.atomic(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))
