"""The `lljax` command. Heavy imports wait inside the commands, so that --help is quick."""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import NoReturn

from lljax import errors
from lljax.errors import InputError

# Inputs of these names are taken for videos; FFmpeg decides whether they are.
_VIDEOS = (".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg",
           ".mts", ".ogv", ".ts", ".webm", ".wmv", ".y4m")


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
        _check_flags(arguments[1:], commands[arguments[0]])
    elif arguments:
        _check_flags(arguments, parser)
    options = parser.parse_args(arguments)
    if options.run is None:
        parser.print_help()
        return 0
    return options.run(options)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are InputErrors, and that knows the names of its flags."""

    def __init__(self, *args, **kwargs):
        self.flags: list[str] = []
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def add_argument(self, *args, **kwargs):
        action = super().add_argument(*args, **kwargs)
        self.flags += action.option_strings
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
                  "keeps its name, size and format. And videos: files.").add_argument
    add("inputs", nargs="+", metavar="IN", help="picture files and folders, video files")
    add("-o", "--output", required=True, metavar="OUT",
        help="output folder (for one input file also an output file)")
    add("--model", metavar="NAME|WORKDIR|FILE", help="name from `lljax models`, workdir of a "
        "training, or .safetensors file; default: the first of `lljax models`")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting of the "
        "model's config, e.g. denoise.name=nlm; may be repeated")
    add("--seed", type=int, default=0, metavar="N", help="of what a method draws, e.g. the noise "
        "that diffusion starts from; the same seed gives the same picture (default: 0)")
    add("--save-maps", action="store_true", help="beside each result write what the method made "
        "it of (curves, reflectance, illumination, ...) as PNG pictures, NAME_MAP.png")
    add("--strength", type=float, default=1.0, metavar="S", help="videos: from 0, as it was, to 1, "
        "enhanced (default: 1)")
    add("--smooth", type=float, metavar="FRAMES", help="videos: where the picture rests, average "
        "over so many frames against noise and flicker; 1 for none (default: 12)")
    add("--quality", type=int, metavar="CRF", help="videos: constant rate factor of the encoder, "
        "lower is better and larger (default: 16 for H.264, 20 for .webm)")
    add("--overwrite", action="store_true", help="replace existing outputs")
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

    add = command("export", _export, "Write a model as one program (StableHLO) that runs without "
                  "lljax.").add_argument
    add("model", metavar="NAME|WORKDIR|FILE", help="name from `lljax models`, workdir of a "
        "training, or .safetensors file")
    add("-o", "--output", required=True, metavar="OUT.stablehlo", help="file to write")
    add("--size", metavar="HxW", help="pictures of this height and width only, e.g. 1080x1920; "
        "default: of any")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting of the "
        "model's config; may be repeated")
    add("--seed", type=int, default=0, metavar="N", help="of what a method draws (default: 0)")
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

    command("doctor", _doctor, "Show versions, devices and the compilation cache.")
    return parser, commands


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
        if flag.startswith("-") and len(flag) > 1 and flag not in parser.flags:
            raise errors.unknown("option", argument.split("=")[0], parser.flags)


def _enhance(options: argparse.Namespace) -> int:
    if any(map(_is_video, options.inputs)):
        if not all(map(_is_video, options.inputs)):
            raise InputError("videos and pictures in one command; run them one after the other")
        return _enhance_videos(options)
    for flag in ("smooth", "quality"):
        if getattr(options, flag) is not None:
            raise InputError(f"--{flag} is for videos, and the input is none")
    start = time.perf_counter()
    jobs, failed = _plan(options.inputs, options.output, options.overwrite)
    model = _model(options.model)
    from lljax import parallel
    parallel.keep_programs()
    from lljax.inference import enhancer as enhancer_lib
    enhancer = enhancer_lib.load(model, options.seed, options.set)
    _make_folders(target for _, target in jobs)
    if options.save_maps:
        names = enhancer.drawn()
        if not names:
            raise InputError(f"--save-maps: the method of {model} has no maps that can be drawn")
        jobs, refused = _plan_maps(jobs, names, options.overwrite)
        failed += refused
    from PIL import Image
    from tqdm import tqdm
    ready = time.perf_counter() - start
    # Pillow warns of large pictures at half the size at which it refuses them.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    done = 0
    with tqdm(total=len(jobs), unit="picture", file=sys.stderr, leave=False,
              disable=options.quiet or not sys.stderr.isatty()) as bar:
        for message in failed:
            bar.write(f"error: {message}", file=sys.stderr)
        for _, error in _run(enhancer, jobs, options.save_maps):
            bar.update()
            if error is None:
                done += 1
            else:
                failed.append(error)
                bar.write(f"error: {error}", file=sys.stderr)
    spent = time.perf_counter() - start
    print(f"{done} enhanced, {len(failed)} failed; in {options.output}; {spent:.1f} s (import "
          f"{ready:.1f}, compile {enhancer.compile_seconds:.1f}, "
          f"run {spent - ready - enhancer.compile_seconds:.1f})")
    return 1 if failed else 0


def _model(name: str | None) -> str:
    """The model that the user named, or the first that comes with lljax."""
    from lljax import weights
    model = name or next(iter(weights.shipped()), None)
    if model is None:
        raise InputError("no weights come with this version of lljax: give --model a workdir of a "
                         "training or a .safetensors file (see `lljax convert`)")
    return model


def _is_video(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in _VIDEOS and not os.path.isdir(path)


def _enhance_videos(options: argparse.Namespace) -> int:
    start = time.perf_counter()
    if options.save_maps:
        raise InputError("--save-maps is for pictures, and the input is a video")
    from lljax import parallel
    from lljax.inference import enhancer as enhancer_lib
    from lljax.inference import video
    single = len(options.inputs) == 1 and _is_video(options.output)
    jobs = [(file, options.output if single else
             os.path.join(options.output, os.path.basename(file))) for file in options.inputs]
    if len({os.path.realpath(target).lower() for _, target in jobs}) < len(jobs):
        raise InputError("two of the videos would be written under the same name; run them one "
                         "after the other, into different folders")
    for _, target in jobs:
        video.check(target, options.quality)
    method, nets = enhancer_lib.load_method(_model(options.model), options.set)
    parallel.keep_programs()
    _make_folders(target for _, target in jobs)
    from tqdm import tqdm
    done = 0
    for file, target in jobs:
        with tqdm(unit="frame", desc=os.path.basename(file), file=sys.stderr, leave=False,
                  disable=options.quiet or not sys.stderr.isatty()) as bar:
            def progress(count, total, bar=bar):
                bar.total = max(count, total) if total else None
                bar.update()

            try:
                found = video.enhance(
                    file, target, method, nets, seed=options.seed, strength=options.strength,
                    smooth=video.SMOOTH if options.smooth is None else options.smooth,
                    quality=options.quality, overwrite=options.overwrite, progress=progress)
            except InputError as error:
                print(f"error: {error}", file=sys.stderr)
                continue
        done += 1
        for note in found.notes:
            print(f"note: {file}: {note}")
        height, width = found.size
        print(f"{target}: {found.frames} frames of {width} x {height}, "
              f"{found.frames / found.seconds:.1f} frames/s")
    print(f"{done} enhanced, {len(jobs) - done} failed; in {options.output}; "
          f"{time.perf_counter() - start:.1f} s")
    return 1 if done < len(jobs) else 0


def _plan(inputs: Sequence[str], output: str,
          overwrite: bool) -> tuple[list[tuple[str, str]], list[str]]:
    """(input, output) pairs to do, and the messages of those refused."""
    from lljax import images
    found = images.find(inputs)
    suffix = os.path.splitext(output)[1].lower()
    single = (len(inputs) == 1 and os.path.isfile(inputs[0]) and suffix in images.FORMATS
              and not os.path.isdir(output))
    if single:
        jobs = [(found[0][0], output)]
    else:
        if os.path.exists(output) and not os.path.isdir(output):
            raise InputError(f"{output}: is a file; the output of several pictures is a folder")
        inside = os.path.realpath(output) + os.sep  # results of an earlier run are no inputs
        within = [os.path.realpath(path) + os.sep for path in inputs]
        skip = any(inside.startswith(path) and inside != path for path in within)
        jobs = [(file, os.path.join(output, name)) for file, name in found
                if not (skip and os.path.realpath(file).startswith(inside))]
    if not jobs:
        raise InputError(f"{', '.join(inputs)}: no pictures there "
                         f"({', '.join(sorted(images.FORMATS))})")
    owner: dict[str, str] = {}
    jobs = list(dict.fromkeys(jobs))  # a file may be named twice, by itself and in its folder
    for file, target in jobs:
        # Compared without case: two such names are one file on many systems.
        other = owner.setdefault(os.path.realpath(target).lower(), file)
        if other != file:
            raise InputError(f"{other} and {file} would both be written to {target}; "
                             "run them one after the other, into different folders")
        if os.path.realpath(file) == os.path.realpath(target):
            raise InputError(f"{file}: input and output are the same file; "
                             "choose another output folder")
    todo, refused = [], []
    for file, target in jobs:
        if os.path.exists(target) and not overwrite:
            refused.append(f"{file}: {target} exists already; --overwrite replaces it")
        else:
            todo.append((file, target))
    return todo, refused


def _make_folders(targets: Iterable[str]) -> None:
    """Makes the folders of the results before work starts.

    Raises:
      InputError: one cannot be made or written into.
    """
    for folder in sorted({os.path.dirname(target) or "." for target in targets}):
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make the folder {folder}: {error.strerror}; choose another "
                             "-o") from error
        if not os.access(folder, os.W_OK):
            raise InputError(f"cannot write into {folder}: permission denied; choose another -o")


def _map_file(target: str, name: str) -> str:
    return f"{os.path.splitext(target)[0]}_{name}.png"


def _plan_maps(jobs: Sequence[tuple[str, str]], names: Sequence[str],
               overwrite: bool) -> tuple[list[tuple[str, str]], list[str]]:
    """`jobs` whose maps may be written too, and the messages of those refused.

    Raises:
      InputError: a map would take the place of an input, of a result or of another map.
    """
    taken = {}  # a path, compared without case as in _plan -> what it is
    for file, target in jobs:
        taken[os.path.realpath(target).lower()] = f"the result of {file}"
    for file, _ in jobs:
        taken[os.path.realpath(file).lower()] = "an input"
    todo, refused = [], []
    for file, target in jobs:
        paths = [_map_file(target, name) for name in names]
        for path in paths:
            mine = f"a map of {file}"
            other = taken.setdefault(os.path.realpath(path).lower(), mine)
            if other != mine:
                raise InputError(f"{path} would be both {mine} and {other}; rename one picture, "
                                 "or enhance them one after the other into different folders")
        if not overwrite and (existing := [path for path in paths if os.path.exists(path)]):
            refused.append(f"{file}: {existing[0]} exists already; --overwrite replaces it")
        else:
            todo.append((file, target))
    return todo, refused


def _run(enhancer, jobs: Sequence[tuple[str, str]],
         save_maps: bool) -> Iterator[tuple[str, str | None]]:
    """Enhances the jobs; yields (input, None or what went wrong) as each is finished.

    Reading and writing run in threads beside the network, a few pictures ahead and behind: memory
    does not grow with the number of files.
    """
    import dataclasses
    from collections import deque
    from concurrent.futures import ThreadPoolExecutor

    from lljax import images

    def enhance(pixels):
        return enhancer.draw(pixels) if save_maps else (enhancer(pixels), {})

    def write(target, picture, maps):
        for name, drawn in maps.items():
            images.write(_map_file(target, name), images.drawing(drawn))
        images.write(target, picture)  # last: a result says that its maps are there

    def attempt(file, function, *arguments):
        # Whatever one file brings about, the others go on; the message says what it was.
        try:
            return function(*arguments), None
        except InputError as error:
            text = str(error)
            return None, text if file in text else f"{file}: {text}"
        except Exception as error:
            text = " ".join(str(error).split())
            return None, f"{file}: {type(error).__name__}: {text}"

    ahead = 2
    with ThreadPoolExecutor(ahead) as readers, ThreadPoolExecutor(ahead) as writers:
        reading, writing, rest = deque(), deque(), iter(jobs)

        def read_next():
            for file, target in rest:
                reading.append((file, target, readers.submit(attempt, file, images.read, file)))
                return

        def written():
            file, future = writing.popleft()
            return file, future.result()[1]

        for _ in range(ahead):
            read_next()
        while reading:
            file, target, future = reading.popleft()
            picture, error = future.result()
            read_next()
            if error is None:
                found, error = attempt(file, enhance, picture.pixels)
            if error is not None:
                yield file, error
                continue
            picture = dataclasses.replace(picture, pixels=found[0])
            writing.append((file, writers.submit(attempt, file, write, target, picture, found[1])))
            if len(writing) > ahead:
                yield written()
        while writing:
            yield written()


def _models(options: argparse.Namespace) -> int:
    del options  # it has none
    from lljax import method, weights
    print("methods: " + ", ".join(method.list_methods()))
    rows = [("weights", "method", "licence")]
    for name, path in weights.shipped().items():
        config, card = weights.describe(path)
        rows.append((name, config.method, str(card.get("licence", "not stated"))))
    if len(rows) == 1:
        print("weights: none come with this version; train some, or see `lljax convert`")
        return 0
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    for row in rows:
        print(f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]}")
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
    export.check(options.output, options.overwrite)
    method, nets = enhancer.load_method(options.model, options.set)
    done = export.export(method, nets, options.output, size=size, seed=options.seed,
                         overwrite=options.overwrite)
    checked = " and ".join(f"{height} x {width}" for height, width in done.checked)
    what = "of any size, any number at once" if size is None else f"of {size[0]} x {size[1]}"
    print(f"wrote {options.output}: {done.bytes / 1e6:.1f} MB, for pictures {what}, on "
          f"{', '.join(export.PLATFORMS)}; checked against JAX on {checked}: largest difference "
          f"{done.error:.1g} of [0, 1]")
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
