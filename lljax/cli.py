"""The `lljax` command. Heavy imports wait inside the commands, so that --help is quick."""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from lljax import errors
from lljax.errors import InputError

_NEGATIVE = re.compile(r"-(\.?\d|inf|nan)")  # how a number begins that is no option

if TYPE_CHECKING:
    from lljax.inference.enhancer import Enhancer
    from lljax.inference.folder import Done, Job, Plan, Work
    from lljax.method import Method


def entry() -> None:
    """The console entry point."""
    errors.run(main)


def main(argv: Sequence[str]) -> int:
    """Runs one command.

    Args:
      argv: program name, command, arguments.

    Returns:
      Exit code: 0 done, 1 some files failed.

    Raises:
      InputError: a mistake in the arguments, found before any work (exit code 2).
    """
    parser, commands = _parser()
    arguments = list(argv[1:])
    if arguments and not arguments[0].startswith("-"):
        if arguments[0] not in commands:
            raise errors.unknown("command", arguments[0], commands)
        if arguments[0] == "ablate":  # its flags are the config's
            return _ablate(["lljax ablate", *arguments[1:]])
        arguments[1:] = _joined(arguments[1:], commands[arguments[0]])
        _check_flags(arguments[1:], commands[arguments[0]])
    elif arguments:
        _check_flags(arguments, parser)
    options = parser.parse_args(arguments)
    if options.run is None:
        parser.print_help()
        return 0
    return options.run(options)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are InputErrors, and that knows the names of its flags.

    Attributes:
      flags: all of them.
      valued: those that a value follows.
    """

    def __init__(self, *args, **kwargs):
        self.flags: list[str] = []
        self.valued: set[str] = set()
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def add_argument(self, *args, **kwargs):
        action = super().add_argument(*args, **kwargs)
        self.flags += action.option_strings
        if action.nargs is None:
            self.valued.update(action.option_strings)
        return action

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")


def _parser() -> tuple[_Parser, dict[str, _Parser]]:
    parser = _Parser("lljax", description="Low-light image enhancement: train, evaluate, use.")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    parser.set_defaults(run=None)
    subparsers = parser.add_subparsers(metavar="COMMAND", parser_class=_Parser)
    commands = {}

    def command(name, run, text):
        commands[name] = subparsers.add_parser(name, help=text, description=text)
        commands[name].set_defaults(run=run)
        return commands[name]

    add = command("enhance", _enhance, "Enhance pictures: files, or folders with their tree. Each "
                  "keeps its name, size and format. And videos: files. Options marked (pictures) "
                  "are refused for videos, those marked (videos) for pictures.").add_argument
    add("inputs", nargs="+", metavar="IN", help="picture files and folders; video files; - for a "
        "picture from standard input")
    add("-o", "--output", metavar="OUT", help="output folder; for one input file also an output "
        "file, or - for standard output")
    add("--in-place", action="store_true", help="(pictures) replace them, each when its result "
        "is complete; instead of -o")
    add("--model", metavar="NAME|WORKDIR|FILE", help="name from `lljax models`, workdir of a "
        "training, or .safetensors file; default: the one that `lljax models` marks")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting of the "
        "model's config, e.g. denoise.name=nlm; may be repeated")
    add("--seed", type=errors.seed, default=0, metavar="N", help="of what a method draws, e.g. the "
        "noise that diffusion starts from; the same seed gives the same picture (default: 0)")
    add("--strength", default="1", metavar="0..1|auto", help="share of the change that is made; "
        "auto (pictures): by how dark it is, so that well-lit ones stay (default: 1)")
    add("--protect-highlights", type=float, default=0.0, metavar="0..1",
        help="(pictures) how far bright places go back to what they were (default: 0)")
    add("--denoise", default="none", metavar="none|nlm|bm3d", help="(pictures) filter of "
        "the result, most where the picture was dark; needs pip install 'lljax[denoise]' "
        "(default: none)")
    add("--tta", action="store_true", help="(pictures) mean over eight flips and quarter turns: "
        "eight times the work, less noise")
    add("--compare", metavar="all|MODEL,...", help="(pictures) write no results but sheets, "
        "NAME_compare.jpg: the picture and what each model makes of it, side by side")
    add("--max-memory", type=_memory, metavar="SIZE", help="(pictures) limit on memory, e.g. 2G "
        "or 800M: the process's, with an accelerator the device's. Pictures are cut into tiles "
        "that fit, and read, enhanced and written one after the other (default: none)")
    add("--save-maps", action="store_true", help="(pictures) beside each result write what "
        "the method made it of (curves, reflectance, illumination, ...) as PNG pictures, "
        "NAME_MAP.png, or where that is taken NAME.SUFFIX_MAP.png")
    add("--smooth", type=float, metavar="FRAMES", help="(videos) where the picture rests, average "
        "over so many frames against noise and flicker; 1 for none (default: 12)")
    add("--quality", type=int, metavar="CRF", help="(videos) constant rate factor of the encoder, "
        "lower is better and larger (default: 16 for H.264, 20 for .webm)")
    add("--overwrite", action="store_true", help="replace existing outputs")
    add("--skip-existing", action="store_true", help="leave out inputs whose output exists")
    add("--dry-run", action="store_true", help="only print what would be written")
    add("--json", metavar="FILE|-", help="write a summary: what became of each file, and with what")
    add("--quiet", action="store_true", help="no progress bar")

    command("models", _models, "List the methods, and the weights that come with lljax.")

    add = command("convert", _convert,
                  "Turn a published checkpoint into a weights file.").add_argument
    add("method", metavar="METHOD", help="its method (see `lljax models`)")
    add("files", nargs="+", metavar="FILE", help="the checkpoint's files: PyTorch, .safetensors, "
        "or a TensorFlow checkpoint's .index (its .data files beside it)")
    add("-o", "--output", required=True, metavar="OUT.safetensors", help="file to write")
    add("--presets", default="", help="presets of the method's config, a comma list; default: "
        "the variant that the files are recognised as")
    add("--overwrite", action="store_true", help="replace an existing file")

    add = command("pack", _pack, "Turn a training's last checkpoint into a weights file, with a "
                  "model card beside it.").add_argument
    add("workdir", metavar="WORKDIR", help="folder of the training")
    add("-o", "--output", required=True, metavar="OUT.safetensors", help="file to write")
    add("--card", action="append", default=[], metavar="KEY=VALUE",
        help="what a user should know: licence (asked for), data, hardware, ...; may be repeated")
    add("--results", metavar="FILE", help="results.json of evaluate.py, whose row for this "
        "training gives the scores")
    add("--overwrite", action="store_true", help="replace an existing file")

    add = command("export", _export, "Write a model as one program (StableHLO, ONNX, TensorFlow "
                  "Lite) that runs without lljax.").add_argument
    add("model", metavar="NAME|WORKDIR|FILE", help="name from `lljax models`, workdir of a "
        "training, or .safetensors file")
    add("-o", "--output", required=True, metavar="OUT",
        help="file to write: .stablehlo, .onnx or .tflite")
    add("--size", metavar="HxW", help="pictures of this height and width only, e.g. 1080x1920; "
        "default: of any (.tflite needs it)")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting of the "
        "model's config; may be repeated")
    add("--seed", type=errors.seed, default=0, metavar="N",
        help="of what a method draws (default: 0)")
    add("--overwrite", action="store_true", help="replace an existing file")

    add = command("data", _data, "Check pictures before training on them, or prepare a published "
                  "data set from its download.").add_argument
    add("action", choices=("check", "prepare"), metavar="ACTION",
        help="check: counts, sizes, brightness; broken, unmatched, unequal, duplicate and leaking "
        "pictures; exit code 1 if there are problems. prepare: store a published set for training "
        "and evaluation")
    add("source", metavar="SOURCE",
        help="demo, folder, pairs, unpaired, or a published set (lol_v1, ...)")
    add("--low", metavar="DIR", help="folder, pairs, unpaired: low-light pictures")
    add("--high", metavar="DIR", help="pairs: references of the same stems; unpaired: well-lit "
        "pictures")
    add("--root", metavar="DIR", help="published set: the folder it was unpacked into (default: "
        "what was prepared from it)")
    add("--prepared", metavar="DIR", help="folder of prepared sets (default: LLJAX_DATA, or the "
        "user's cache)")
    add("--against", metavar="DIR", help="check: pictures that must not be among the source's, "
        "e.g. those of a test")

    command("ablate", _ablate, "Train variants of a config and compare them in one table; "
            "its flags are those of train.py and more (lljax ablate --help).")

    add = command("serve", _serve, "A page to enhance pictures in a browser, and an HTTP API "
                  "(docs/web.md). Pictures stay in memory.").add_argument
    add("--model", action="append", default=[], metavar="NAME|WORKDIR|FILE", help="as of enhance; "
        "may be repeated, the first is the default (default: all of `lljax models`)")
    add("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 lets other machines in "
        "(default: 127.0.0.1, this machine alone)")
    add("--port", type=int, default=8000, help="0 takes a free one (default: 8000)")
    add("--max-bytes", type=int, default=64_000_000, metavar="N",
        help="of a picture's file (default: 64000000)")
    add("--max-pixels", type=int, default=50_000_000, metavar="N",
        help="of a picture (default: 50000000)")
    add("--queue", type=int, default=32, metavar="N", help="pictures in hand at one time, waiting "
        "and running; more are asked to come again (default: 32)")
    add("--timeout", type=float, default=300.0, metavar="SECONDS",
        help="that a picture may take, waiting included (default: 300)")

    command("doctor", _doctor, "Show versions, devices and the compilation cache.")
    return parser, commands


def _memory(text: str) -> int:
    """Bytes of "2G", "1.5G", "800M" or "4096K"; G is 1024 M."""
    number, unit = text[:-1], "KMG".find(text[-1:].upper())
    try:
        size = float(number) * 1024 ** (unit + 1) if unit >= 0 else 0
    except ValueError:
        size = 0
    if not 0 < size < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write e.g. 2G or 800M")
    return int(size)


class _Version(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        import lljax
        print(f"lljax {lljax.__version__}")
        parser.exit()


def _check_flags(arguments: Sequence[str], parser: _Parser) -> None:
    """argparse would name a missing argument before a misspelt flag, and suggests nothing."""
    for argument in arguments:
        if argument == "--":
            return
        flag = argument.split("=")[0] if argument.startswith("--") else argument[:2]
        if not flag.startswith("-") or argument in ("-", *parser.flags):
            continue
        if os.path.lexists(argument):  # even -old.jpg, which may also mean -o ld.jpg
            raise InputError(f'unknown option "{argument}"; for the file of that name write '
                             f".{os.sep}{argument}, or -- {argument} after all options")
        if flag not in parser.flags:
            raise errors.unknown("option", argument.split("=")[0], parser.flags)


def _joined(arguments: Sequence[str], parser: _Parser) -> list[str]:
    """The arguments, negative numbers joined to the options that they are the values of."""
    joined: list[str] = []
    for i, argument in enumerate(arguments):
        if argument == "--":
            return joined + list(arguments[i:])
        if joined and joined[-1] in parser.valued and _NEGATIVE.match(argument):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


class _Interrupt:
    """Notes Ctrl-C, beside the KeyboardInterrupt.

    Python ignores that where it comes up in a callback of the garbage collector; JAX has one.

    Attributes:
      noted: whether there was a Ctrl-C.
    """

    def __init__(self, options: argparse.Namespace):
        self.noted = False
        kept = options.in_place or options.overwrite
        self._text = ("Ctrl-C; every file is whole, " + (
            "as it was or replaced" if kept else "or not there; --skip-existing goes on from there")
            if options.output != "-" else "Ctrl-C")

    def __enter__(self) -> _Interrupt:
        def note(number, frame):
            self.noted = True
            signal.default_int_handler(number, frame)

        # Python takes signals in the main thread alone. Who starts a command in such a way that
        # Ctrl-C does not reach it means it.
        self._ours = (threading.current_thread() is threading.main_thread()
                      and signal.getsignal(signal.SIGINT) is signal.default_int_handler)
        self._hook = sys.unraisablehook
        if self._ours:
            signal.signal(signal.SIGINT, note)
            sys.unraisablehook = self._ignored
        return self

    def _ignored(self, found: Any) -> None:
        """Shows what Python ignores, but for the KeyboardInterrupt, which is noted."""
        if found.exc_type is not KeyboardInterrupt:
            self._hook(found)

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if self._ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            sys.unraisablehook = self._hook
        if kind is KeyboardInterrupt:
            raise errors.Stopped(self._text, 130) from None

    def check(self) -> None:
        """Stops if there was a Ctrl-C.

        Raises:
          KeyboardInterrupt: there was.
        """
        if self.noted:
            raise KeyboardInterrupt


def _enhance(options: argparse.Namespace) -> int:
    _few_heaps()
    with _Interrupt(options) as interrupt:
        return _enhance_files(options, interrupt)


def _enhance_files(options: argparse.Namespace, interrupt: _Interrupt) -> int:
    videos = [path for path in options.inputs if _is_video(path)]
    if videos:
        others = [path for path in options.inputs if path not in videos]
        if others:
            raise InputError(f"{videos[0]} is a video and {others[0]} is none; enhance videos and "
                             "pictures one after the other")
        return _enhance_videos(options, interrupt)
    for flag in ("smooth", "quality"):
        if getattr(options, flag) is not None:
            raise InputError(f"--{flag} is for videos, and the input is none")
    start = time.perf_counter()
    _check_enhance(options)
    from lljax.inference import folder
    from lljax.inference.control import Control
    control = Control(_number(options.strength), options.denoise, options.protect_highlights,
                      options.tta)
    plan = folder.plan(options.inputs, None if options.in_place else options.output,
                       _existing(options), bool(options.compare))
    if options.json:
        folder.check_summary(options.json)
    work, enhancers = None, {}
    if plan.jobs and (options.save_maps or not options.dry_run):
        from lljax import parallel
        parallel.keep_programs()
        interrupt.check()
        enhancers = _load(options)
        interrupt.check()
        if options.save_maps:
            plan = folder.plan_maps(plan, _drawn(enhancers[_model(options)], options),
                                    _existing(options))
    if options.dry_run:
        return _show_plan(plan)
    folder.make_folders(plan.jobs, options.json)
    if plan.jobs:
        if options.compare:
            shown = dict(zip(folder.labels(list(enhancers)), enhancers.values(), strict=True))
            work = folder.comparing(shown, control)
        else:
            work = folder.enhancing(*enhancers.values(), control, options.save_maps)
    ready = time.perf_counter() - start
    done = _progress(plan, work, options, interrupt)
    if len(done) < len(plan.jobs):
        interrupt.check()
    compiled = sum(enhancer.compile_seconds for enhancer in enhancers.values())
    seconds = {"import": ready, "compile": compiled,
               "run": time.perf_counter() - start - ready - compiled}
    return _report(options, done, plan, seconds, models=list(enhancers) or _models_of(options),
                   control=vars(control))


def _existing(options: argparse.Namespace) -> str:
    """What happens to results that exist, as `folder.plan` takes it."""
    return "replace" if options.overwrite else "skip" if options.skip_existing else "refuse"


def _says(options: argparse.Namespace) -> TextIO:
    """Where lines for people go: not where a picture or a summary goes."""
    return sys.stderr if "-" in (options.output, options.json) else sys.stdout


def _report(options: argparse.Namespace, done: Sequence[Done], plan: Plan,
            seconds: dict[str, float], **more: Any) -> int:
    """Writes the summary if wanted, says it in a line, and returns the exit code.

    Args:
      options: the command's.
      done: the jobs tried.
      plan: what was to be done.
      seconds: by what they were spent on.
      **more: to be said of the whole run.
    """
    from lljax.inference import folder
    summary = folder.summary(done, plan, **more, seed=options.seed, seconds=seconds)
    if options.json:
        from lljax.evaluation import evaluate
        folder.write_summary(options.json, {**summary, "versions": evaluate.versions()})
    totals = summary["totals"]
    skipped = f"{totals['skipped']} skipped, " if options.skip_existing else ""
    place = "standard output" if options.output == "-" else options.output or "place"
    spent = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())
    print(errors.line(
        f"{totals['enhanced']} enhanced, {skipped}{totals['failed']} failed; in {place}; "
        f"{sum(seconds.values()):.1f} s ({spent}){folder.left(plan)}"), file=_says(options))
    return 1 if totals["failed"] else 0


def _check_enhance(options: argparse.Namespace) -> None:
    """Refuses options that contradict each other."""
    given = [flag for flag, value in (
        ("--model", options.model), ("--set", options.set), ("--save-maps", options.save_maps),
        ("--in-place", options.in_place)) if value]
    if options.compare and given:
        raise InputError(f"--compare names the models and writes sheets only: leave out "
                         f"{', '.join(given)}")
    if bool(options.output) == options.in_place:
        raise InputError("give -o/--output, or --in-place to replace the pictures" +
                         ("; not both" if options.output else ""))
    _check_both(options)
    if options.in_place and "-" in options.inputs:
        raise InputError("standard input cannot be replaced: leave out --in-place")
    if options.output == "-":
        if options.save_maps or options.json == "-":
            other = "--save-maps" if options.save_maps else "--json -"
            raise InputError("-o - writes the picture to standard output, and nothing else fits "
                             f"there: leave out {other}")
        if sys.stdout.isatty():
            raise InputError("-o - would write the picture's bytes to this terminal; send them to "
                             "a file or program (> or |)")


def _check_both(options: argparse.Namespace) -> None:
    """Refuses what contradicts each other for pictures and videos alike."""
    if options.skip_existing and (options.overwrite or options.in_place):
        raise InputError("--skip-existing contradicts "
                         + ("--overwrite" if options.overwrite else "--in-place"))
    if options.dry_run and options.json:
        raise InputError("--dry-run writes nothing, so there is no --json")


def _number(text: str) -> float | str:
    """A number, or the word there is instead."""
    try:
        return float(text)
    except ValueError:
        return text


def _model(options: argparse.Namespace) -> str:
    from lljax import weights
    return options.model or weights.DEFAULT


def _models_of(options: argparse.Namespace) -> list[str]:
    """The models that are asked for."""
    if not options.compare:
        return [_model(options)]
    from lljax import weights
    names = (list(weights.shipped()) if options.compare == "all" else
             list(dict.fromkeys(filter(None, options.compare.split(",")))))
    if not names:
        raise InputError("--compare names no model; write all, or names from `lljax models`, "
                         "workdirs or .safetensors files with commas between")
    return names


def _load(options: argparse.Namespace) -> dict[str, Enhancer]:
    """The enhancers that are asked for, by name."""
    from lljax.inference import enhancer
    return {name: enhancer.load(name, options.seed, options.set, max_memory=options.max_memory)
            for name in _models_of(options)}


def _drawn(enhancer: Enhancer, options: argparse.Namespace) -> list[str]:
    """The names of the maps that are to be saved."""
    names = enhancer.drawn()
    if not names:
        raise InputError(f"--save-maps: the method of {_model(options)} has no maps that can be "
                         "drawn")
    return names


def _show_plan(plan: Plan) -> int:
    from lljax.inference import folder
    for job in plan.jobs:
        for path in (job.target, *(path for _, path in job.maps)):
            print(errors.line(f"{job.file} -> {path}"))
    for _, message in plan.refused:
        print(errors.line(f"error: {message}"), file=sys.stderr)
    print(errors.line(
        f"would enhance {len(plan.jobs)}, skip {len(plan.skipped)}, refuse {len(plan.refused)}; "
        f"nothing was written{folder.left(plan)}"))
    return 1 if plan.refused else 0


def _progress(plan: Plan, work: Work | None, options: argparse.Namespace,
              interrupt: _Interrupt) -> list[Done]:
    """Does what is planned; shows how far it is, and what goes wrong."""
    from PIL import Image
    from tqdm import tqdm

    from lljax.inference import folder
    # Pillow warns of large pictures at half the size at which it refuses them.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    done = []
    with tqdm(total=len(plan.jobs), unit="picture", file=sys.stderr, leave=False,
              disable=options.quiet or not sys.stderr.isatty()) as bar:
        for _, message in plan.refused:
            bar.write(errors.line(f"error: {message}"), file=sys.stderr)
        for one in folder.run(plan.jobs, work, 0 if options.max_memory else None,
                              lambda: interrupt.noted):
            done.append(one)
            bar.update()
            if one.error is not None:
                bar.write(errors.line(f"error: {one.error}"), file=sys.stderr)
    return done


def _is_video(path: str) -> bool:
    from lljax import images
    return os.path.splitext(path)[1].lower() in images.VIDEOS and not os.path.isdir(path)


def _check_enhance_videos(options: argparse.Namespace) -> None:
    """Refuses what is for pictures only."""
    given = [flag for flag, value in (
        ("--save-maps", options.save_maps), ("--in-place", options.in_place),
        ("--compare", options.compare), ("--tta", options.tta),
        ("--denoise", options.denoise != "none"),
        ("--protect-highlights", options.protect_highlights), ("-o -", options.output == "-"),
        ("--strength auto", options.strength == "auto"), ("--max-memory", options.max_memory)
        ) if value]
    if given:
        raise InputError(f"videos are enhanced without {', '.join(given)}: leave that out")
    if not options.output:
        raise InputError("give -o/--output: a folder, or for one video a video file")
    _check_both(options)


def _enhance_videos(options: argparse.Namespace, interrupt: _Interrupt) -> int:
    start = time.perf_counter()
    _check_enhance_videos(options)
    from lljax.inference import folder, video
    from lljax.inference.control import Control
    control = {"strength": Control(_number(options.strength)).strength,
               "smooth": video.SMOOTH if options.smooth is None else options.smooth,
               "quality": options.quality}
    plan = folder.plan_videos(options.inputs, options.output, _existing(options))
    for job in plan.jobs:
        video.check(job.target, options.quality, control["smooth"])
    if options.dry_run:
        return _show_plan(plan)
    if options.json:
        folder.check_summary(options.json)
    for _, message in plan.refused:
        print(errors.line(f"error: {message}"), file=sys.stderr)
    done, model = [], None
    if plan.jobs:
        from lljax import parallel
        from lljax.inference import enhancer
        parallel.keep_programs()
        model = enhancer.load_method(_model(options), options.set)
        interrupt.check()
    folder.make_folders(plan.jobs, options.json)
    ready = time.perf_counter() - start
    for job in plan.jobs:
        done.append(_enhance_video(job, model, control, options, interrupt))
    seconds = {"import": ready, "run": time.perf_counter() - start - ready}
    return _report(options, done, plan, seconds, models=[_model(options)], control=control)


def _enhance_video(job: Job, model: tuple[Method, dict[str, Any]], control: dict[str, Any],
                   options: argparse.Namespace, interrupt: _Interrupt) -> Done:
    """Enhances a video; shows how far it is, and what goes wrong."""
    from tqdm import tqdm

    from lljax.inference import folder, video
    interrupt.check()
    start, found, error = time.perf_counter(), None, None
    with tqdm(unit="frame", desc=errors.line(os.path.basename(job.file)), file=sys.stderr,
              leave=False, disable=options.quiet or not sys.stderr.isatty()) as bar:
        def progress(count, total):
            bar.total = max(count, total) if total else None
            bar.update()
            interrupt.check()

        try:
            found = video.enhance(job.file, job.target, *model, seed=options.seed,
                                  overwrite=options.overwrite, progress=progress, **control)
        except InputError as caught:
            error = str(caught)
        except Exception as caught:  # the other videos go on
            text = " ".join(str(caught).split())
            error = f"{job.file}: {type(caught).__name__}: {text}"
    seconds = time.perf_counter() - start
    if found is None:
        print(errors.line(f"error: {error}"), file=sys.stderr)
        return folder.Done(job, None, seconds, error)
    for note in found.notes:
        print(errors.line(f"note: {job.file}: {note}"), file=_says(options))
    height, width = found.size
    print(errors.line(f"{job.target}: {found.frames} frames of {width} x {height}, "
                      f"{found.frames / found.seconds:.1f} frames/s"), file=_says(options))
    return folder.Done(job, (width, height), seconds, None,
                       {"frames": found.frames, "notes": list(found.notes)})


def _models(options: argparse.Namespace) -> int:
    del options  # it has none
    from lljax import method, weights
    print("methods: " + ", ".join(method.list_methods()))
    rows = [("weights", "method", "licence")]
    for name, path in weights.shipped().items():
        config, card = weights.describe(path)
        rows.append((name, config.method, str(card.get("licence", "not stated"))))
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    for row in rows:
        print(f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]}"
              + ("  (default)" if row[0] == weights.DEFAULT else ""))
    return 0


def _convert(options: argparse.Namespace) -> int:
    from lljax import convert
    done = convert.convert(options.method, options.files, options.output, options.presets,
                           options.overwrite)
    variant = f"presets {done.presets}" if done.presets else "no presets"
    print(f"wrote {options.output}: {', '.join(done.nets)}; {variant}"
          f"{' (recognised)' if done.recognised else ''}")
    return 0


def _export(options: argparse.Namespace) -> int:
    size = None
    if options.size:
        sides = options.size.lower().split("x")
        if len(sides) != 2 or not all(side.isdecimal() for side in sides):
            raise InputError(f"--size {options.size}: write HEIGHTxWIDTH, e.g. 1080x1920")
        size = (int(sides[0]), int(sides[1]))
    from lljax.inference import enhancer, export
    export.check(options.output, size, options.overwrite)
    method, nets = enhancer.load_method(options.model, options.set)
    done = export.export(method, nets, options.output, size=size, seed=options.seed,
                         overwrite=options.overwrite)
    checked = " and ".join(f"{height} x {width}" for height, width in done.checked)
    what = "of any size, any number at once" if size is None else f"of {size[0]} x {size[1]}"
    print(f"wrote {options.output}: {done.bytes / 1e6:.2f} MB, for pictures {what}, on "
          f"{done.runs}; checked against JAX on {checked}: largest difference {done.error:.1g} of "
          "[0, 1]")
    return 0


def _data(options: argparse.Namespace) -> int:
    from lljax.data import check, datasets
    if options.action == "prepare":
        if options.source not in datasets.SETS:
            raise errors.unknown("published data set", options.source, datasets.SETS)
        if options.low or options.high or options.against:
            raise InputError("prepare takes --root and --prepared only")
        builder = datasets.prepare(options.source, options.root, options.prepared)
        print(f"{options.source} is prepared in {builder.data_dir}")
        return 0
    report = check.check(options.source, low=options.low, high=options.high, root=options.root,
                         prepared=options.prepared, against=options.against)
    print("\n".join(report.lines))
    return 1 if report.problems else 0


def _ablate(argv: Sequence[str]) -> int:
    from lljax.training import ablation
    return ablation.main(argv)


def _pack(options: argparse.Namespace) -> int:
    from lljax import checkpoint, weights
    from lljax import method as method_lib
    card = dict(_key_value(text) for text in options.card)
    if not card.get("licence"):
        raise InputError("say under which licence the weights are: --card licence=...")
    config, nets = checkpoint.load_nets(options.workdir)
    optional = method_lib.load(config).optional
    nets = {name: net for name, net in nets.items() if name not in optional}
    if options.results:
        card["scores"] = weights.scores(options.results, options.workdir)
    weights.save(options.output, config, nets, card, options.overwrite)
    print(f"wrote {options.output} and {weights.write_card(options.output)}")
    return 0


def _few_heaps() -> None:
    """Lets threads share two heaps where the C library would give each its own (glibc): pictures
    pass from thread to thread, and what is freed in the many heaps is not used again."""
    if sys.platform == "linux" and "MALLOC_ARENA_MAX" not in os.environ:
        limit = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
        if limit:
            limit(-8, 2)  # M_ARENA_MAX


def _serve(options: argparse.Namespace) -> int:
    _few_heaps()
    for name in ("max_bytes", "max_pixels", "queue", "timeout"):
        if not getattr(options, name) > 0:
            raise InputError(f"--{name.replace('_', '-')} {getattr(options, name)}: give a number "
                             "above 0")
    if not 0 <= options.port < 65536:
        raise InputError(f"--port {options.port}: give a number from 0 to 65535")
    try:
        import flask  # noqa: F401
        import waitress  # noqa: F401
    except ImportError as error:
        raise InputError(f"lljax serve needs {error.name}: pip install 'lljax[web]'") from error
    from lljax.inference.web import server
    limits = server.Limits(options.max_bytes, options.max_pixels, options.queue, options.timeout)
    server.serve(options.model, options.host, options.port, limits)
    return 0


def _key_value(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InputError(f"--card {text}: write KEY=VALUE")
    return key, value


def _doctor(options: argparse.Namespace) -> int:
    del options  # it has none
    import platform
    from importlib import metadata

    import jax

    from lljax import parallel
    parallel.keep_programs()
    print(f"python {platform.python_version()} on {platform.platform()}")
    for package in ("lljax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy",
                    "pillow", "safetensors"):
        print(package, metadata.version(package))
    for device in jax.devices():
        print(f"device {device.id}: {device.platform} {device.device_kind}")
    print("compiled programs are kept in", jax.config.jax_compilation_cache_dir)
    return 0


if __name__ == "__main__":
    entry()
