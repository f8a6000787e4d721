"""Files and folders of pictures: what is to be done (`plan`), doing it (`run`), and a summary.

Nothing is read or written while planning, so a dry run is a plan that is not run.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lljax import errors, images
from lljax.errors import InputError
from lljax.inference import control as control_lib
from lljax.inference import video
from lljax.inference.enhancer import Enhancer

STREAM = "-"  # standard input or output in place of a file
CELL = 640  # px, longest side of a picture in a sheet
_MADE_BY = "lljax enhance"
_IN_PLACE = ", or --in-place (without -o) to replace the pictures"
_INPUT = "input"  # its name in a sheet
_MAP = "map"  # the mark of a map's file


class Job(NamedTuple):
    """One picture to do.

    Attributes:
      file: where it is, or `STREAM`.
      target: where its result goes, or `STREAM`.
      maps: (name, path) of the maps that are written beside the result, see `plan_maps`.
      replaces: those of the paths where a file may be already. A file that has come to one of the
        others by the time of writing stays, and the job fails.
    """

    file: str
    target: str
    maps: tuple[tuple[str, str], ...] = ()
    replaces: frozenset[str] = frozenset()

    @property
    def shown(self) -> str:
        """The input's name in messages."""
        return "standard input" if self.file == STREAM else self.file


class Plan(NamedTuple):
    """What is to be done.

    Attributes:
      jobs: to do.
      skipped: not to do, their results are there.
      refused: (job, message) of those that cannot be done. A folder that cannot be searched is
        one without a target ("").
      videos: files that have to be given by name, because folders are searched for pictures.
      others: files in the folders that are neither.
    """

    jobs: list[Job]
    skipped: list[Job]
    refused: list[tuple[Job, str]]
    videos: Sequence[str] = ()
    others: Sequence[str] = ()


class Done(NamedTuple):
    """A job that has been tried.

    Attributes:
      job: which.
      size: (width, height) of the picture in px, None if it could not be read.
      seconds: spent on it: reading, work and writing, without waiting for other pictures.
      error: what went wrong, or None.
      more: to be said of it in a summary.
    """

    job: Job
    size: tuple[int, int] | None
    seconds: float
    error: str | None
    more: Mapping[str, Any] = MappingProxyType({})


Work = Callable[[images.Picture], tuple[images.Picture, dict[str, images.Picture]]]


def plan(inputs: Sequence[str], output: str | None, existing: str = "refuse",
         sheets: bool = False) -> Plan:
    """What enhancing files and folders will write.

    Args:
      inputs: picture files and folders, or `STREAM` alone.
      output: folder, for one input file also a file, or `STREAM`; None replaces the inputs.
      existing: what happens to a picture whose result exists: "refuse", "skip" or "replace" it.
      sheets: whether the results are sheets (`comparing`), NAME_compare.jpg, or
        NAME.SUFFIX_compare.jpg where pictures differ in their suffixes only.

    Raises:
      InputError: no pictures; two that would be written to one file, or one onto itself.
    """
    if STREAM in inputs and len(inputs) > 1:
        raise InputError("- stands for standard input; enhance other pictures without it")
    found = (images.Found([(STREAM, STREAM)]) if list(inputs) == [STREAM] else
             images.search(inputs))
    unread = [(Job(folder, ""), images.unsearched(folder, reason))
              for folder, reason in found.unread]
    if output is not None:  # results of an earlier run are no inputs
        found = _outside(found, inputs, output)
    jobs, refused = _targets(inputs, found.pictures, output, sheets)
    refused += unread
    if not jobs and not refused:
        raise InputError(f"{', '.join(inputs)}: no pictures there " + (
            f"but videos, give them by name: {found.videos[0]}" if found.videos else
            f"({', '.join(sorted(images.READABLE))})"))
    planned = Plan(jobs, [], refused)
    if output is not None:
        planned = _settled(jobs, refused, existing, _IN_PLACE)
    return planned._replace(videos=found.videos, others=found.others)


def plan_videos(inputs: Sequence[str], output: str, existing: str = "refuse") -> Plan:
    """What enhancing videos will write.

    Args:
      inputs: video files.
      output: folder, for one input file also a video file.
      existing: as of `plan`.

    Raises:
      InputError: a missing one; two that would be written to one file, or one onto itself.
    """
    found = images.search(inputs).pictures  # files that are named are taken whatever they are
    if len(found) == 1 and _is_file(output, video.FORMATS, "video", ".mp4"):
        return _settled([Job(found[0][0], output)], [], existing)
    _check_folder(output, "videos")
    jobs = [Job(file, os.path.join(output, name)) for file, name in found]
    return _settled(list(dict.fromkeys(jobs)), [], existing)


def _settled(jobs: list[Job], refused: list[tuple[Job, str]], existing: str,
             instead: str = "") -> Plan:
    """A plan in which no two jobs have one target, none its own file, and old results stay.

    Args:
      jobs: may be changed.
      refused: may be changed.
      existing: as of `plan`.
      instead: what may be done rather than give a result its input's name.
    """
    owner: dict[str, str] = {}
    # Those that keep their suffix come first: IMG_1.HEIC gives way to the IMG_1.JPG beside it.
    for job in sorted(jobs, key=_renamed):
        if job.target == STREAM:
            continue
        other = owner.setdefault(_key(job.target), job.file)
        if other != job.file:
            clash = f"{other} and {job.file} would both be written to {job.target}"
            if not _renamed(job):
                raise InputError(f"{clash}; run them one after the other, into different folders")
            jobs.remove(job)
            refused.append((job, f"{clash}; enhance {job.file} by itself, into another folder"))
            continue
        if os.path.realpath(job.file) == os.path.realpath(job.target):
            raise InputError(f"{job.file}: input and output are the same file; choose another "
                             f"output folder{instead}")
    if existing == "replace":
        return Plan([job._replace(replaces=frozenset({job.target})) for job in jobs], [], refused)
    todo, there = [], []
    for job in jobs:
        exists = job.target != STREAM and os.path.lexists(job.target)
        (there if exists else todo).append(job)
    if existing == "skip":
        return Plan(todo, there, refused)
    return Plan(todo, [], refused + [(job, _exists(job, job.target)) for job in there])


def _exists(job: Job, path: str) -> str:
    """The message for a job that has a result, or a map, already."""
    return f"{job.shown}: {path} exists already; --overwrite replaces it"


def _key(path: str) -> str:
    """A path for comparing. Without case: two such names are one file on many systems."""
    return os.path.realpath(path).lower()


def left(planned: Plan) -> str:
    """What `Plan.videos` and `Plan.others` say, as the end of a line; empty if nothing."""
    text = ""
    if planned.videos:
        names = ", ".join(planned.videos[:3]) + (", ..." if len(planned.videos) > 3 else "")
        them = "them" if len(planned.videos) > 1 else "it"
        text = f"; {_count(planned.videos, 'video')} left, give {them} by name: {names}"
    if planned.others:
        text += f"; {_count(planned.others, 'other file')} left"
    return text


def _count(things: Sequence, name: str) -> str:
    return f"{len(things)} {name}{'s' * (len(things) != 1)}"


def _renamed(job: Job) -> bool:
    """Whether the result has another suffix than its picture, whose format cannot be written."""
    (stem, suffix), (new_stem, new) = (os.path.splitext(os.path.basename(path))
                                       for path in (job.file, job.target))
    return stem == new_stem and suffix.lower() != new.lower()


def _targets(inputs: Sequence[str], found: Sequence[tuple[str, str]], output: str | None,
             sheets: bool) -> tuple[list[Job], list[tuple[Job, str]]]:
    """The jobs of what was found, and what cannot be one."""
    single = (len(found) == 1 and len(inputs) == 1 and not os.path.isdir(inputs[0]))
    if output == STREAM:
        if not single:
            raise InputError("-o - writes one picture to standard output; give one input file")
        return [Job(found[0][0], STREAM)], []
    if output is None:
        return _replaced(found)
    if single and _is_file(output, images.FORMATS, "picture", ".jpg"):
        return [Job(found[0][0], output)], []
    if inputs[0] == STREAM:
        raise InputError("a picture from standard input has no name: give -o a picture file, or "
                         "- for standard output")
    _check_folder(output, "pictures")
    for path in inputs:
        if os.path.isdir(path) and os.path.realpath(path) == os.path.realpath(output):
            raise InputError(f"{path}: input and output are the same folder; choose another output "
                             f"folder{_IN_PLACE}")
    names = _sheet_files([name for _, name in found]) if sheets else [
        images.output_name(name) for _, name in found]
    jobs = [Job(file, os.path.join(output, name))
            for (file, _), name in zip(found, names, strict=True)]
    # A file may be named twice, by itself and in its folder.
    return list(dict.fromkeys(jobs)), []


def _outside(found: images.Found, inputs: Sequence[str], output: str) -> images.Found:
    """What was found less what lies in an output folder inside an input folder."""
    inside = os.path.realpath(output) + os.sep
    within = [os.path.realpath(path) + os.sep for path in inputs]
    if not any(inside.startswith(path) and inside != path for path in within):
        return found

    def apart(file):
        return not os.path.realpath(file).startswith(inside)

    return images.Found([pair for pair in found.pictures if apart(pair[0])],
                        list(filter(apart, found.videos)), list(filter(apart, found.others)))


def _is_file(output: str, known: Iterable[str], kind: str, usual: str) -> bool:
    """Whether the output for one input is a file, and not a folder.

    Args:
      output: as given.
      known: suffixes of such files.
      kind: what they hold.
      usual: one of them.

    Raises:
      InputError: its suffix is a misspelt one, or that of something else.
    """
    stem, suffix = os.path.splitext(output)
    suffix = suffix.lower()
    if os.path.isdir(output) or suffix in known:
        return not os.path.isdir(output)
    hint = f"(a folder of that name is written {output}{os.sep})"
    if suffix in images.READABLE | images.VIDEOS:
        raise InputError(f"{output}: a {kind} is not written as {suffix}; write e.g. "
                         f"{stem}{usual} {hint}")
    if suffix and (near := errors.nearest(suffix, known)):
        raise InputError(f'{output}: unknown suffix "{suffix}", did you mean "{near}"? '
                         f"{hint}")
    return False


def _check_folder(output: str, kind: str) -> None:
    if os.path.isdir(output):
        return
    if os.path.exists(output):
        raise InputError(f"{output}: is a file; the output of several {kind} is a folder")
    if os.path.splitext(output)[1].lower() in images.READABLE | images.VIDEOS:
        raise InputError(f"{output}: the output of several {kind}, or of a folder, is a folder; a "
                         f"folder of that name is written {output}{os.sep}")


def _replaced(found: Sequence[tuple[str, str]]) -> tuple[list[Job], list[tuple[Job, str]]]:
    """The jobs that replace what was found, and those that would have to but cannot."""
    # A link stays one; its file is replaced, once, however often it is named.
    files = {os.path.realpath(file): file for file, _ in reversed(found)}
    jobs, refused = [], []
    for target, file in reversed(files.items()):
        job = Job(file, target, replaces=frozenset({target}))
        if (gone := images.dangling(file)) is not None:
            refused.append((job, f"{file}: cannot be replaced, it is a link to {gone}, which does "
                            "not exist"))
        elif images.output_name(target) != target:
            refused.append((job, f"{file}: cannot be replaced, its format is not written; give -o "
                            "a folder"))
        elif not os.access(target, os.W_OK):
            refused.append((job, f"{file}: cannot be replaced, it is read-only"))
        else:
            jobs.append(job)
    return jobs, refused


def _sheet_files(names: Sequence[str]) -> list[str]:
    """The names of sheets for those of their pictures."""
    def named(name, whole):
        return _beside(name, "compare.jpg", whole)

    whole = _whole(names, lambda name, whole: [named(name, whole).lower()])
    return [named(name, name in whole) for name in names]


def _beside(name: str, end: str, whole: bool = False) -> str:
    """The name of what is made beside a picture, with its suffix in it (`whole`) or without."""
    return f"{name if whole else os.path.splitext(name)[0]}_{end}"


def _whole(names: Iterable[str], keys: Callable[[str, bool], Iterable[str]],
           taken: Container[str] = ()) -> set[str]:
    """Which names keep their suffix in the names of what is made beside them.

    All of those that would have one name, not only the second: else a picture that comes to
    another one later could take that one's for its own.

    Args:
      names: of pictures.
      keys: what is made beside a name, with its suffix or without.
      taken: what nothing may be called.
    """
    names, whole = set(names), set()
    while True:
        made = {name: list(keys(name, name in whole)) for name in names}
        counts = Counter(key for found in made.values() for key in found)
        more = {name for name in names - whole
                if any(counts[key] > 1 or key in taken for key in made[name])}
        if not more:
            return whole
        whole |= more


def make_folders(jobs: Iterable[Job], summary: str | None = None) -> None:
    """Makes the folders of the results before work starts.

    Args:
      jobs: to be done.
      summary: where a summary will be written, if anywhere.

    Raises:
      InputError: one cannot be made or written into.
    """
    files = {*(job.target for job in jobs), summary} - {None, STREAM}
    for folder in sorted({os.path.dirname(file) or "." for file in files}):
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make the folder {folder}: {error.strerror}; choose another "
                             "-o") from error
        if not os.access(folder, os.W_OK):
            raise InputError(f"cannot write into {folder}: permission denied; choose another -o")


def plan_maps(planned: Plan, names: Sequence[str], existing: str) -> Plan:
    """A plan of results and their maps, NAME_MAP.png beside them.

    Where an input, a result or another map has that name, it is NAME.SUFFIX_MAP.png. A picture for
    which that is taken, too, is refused.

    A result is written after its maps, so maps without one are those of a run that was
    interrupted. They bear a mark, and "skip" writes them again; files without it stay.

    Args:
      planned: of the results.
      names: the maps', see `Enhancer.drawn`.
      existing: what happens to a picture whose map exists: "refuse" it, "skip" (refuse it unless
        lljax made the map) or "replace" the map.
    """
    def map_file(target, name, whole):
        return _beside(target, f"{name}.png", whole)

    # Those that are not done have maps of earlier runs, whose names stay theirs.
    jobs = [*planned.jobs, *planned.skipped, *(job for job, _ in planned.refused if job.target)]
    taken = {_key(job.target): f"the result of {job.file}" for job in jobs}
    taken |= {_key(job.file): f"the input {job.file}" for job in jobs}
    # One file may be that of two jobs, in other letters; the one that is done counts.
    targets = {_key(job.target): job.target for job in reversed(jobs)}
    whole = _whole(targets.values(), lambda target, whole: [
        _key(map_file(target, name, whole)) for name in names], taken)
    todo, refused = [], list(planned.refused)
    for job in planned.jobs:
        maps = tuple((name, map_file(job.target, name, job.target in whole)) for name in names)
        paths = [path for _, path in maps]
        ours = {path for path in paths if existing == "replace" or (
            existing == "skip" and images.mark(path) == _MAP)}
        clash = [path for path in paths if _key(path) in taken]
        there = [path for path in paths if path not in ours and os.path.lexists(path)]
        if clash:
            refused.append((job, f"{job.file}: its map {clash[0]} would have the place of "
                                 f"{taken[_key(clash[0])]}; enhance it by itself, into another "
                                 "folder"))
        elif there:
            refused.append((job, _exists(job, there[0])))
        else:
            todo.append(job._replace(maps=maps, replaces=job.replaces | ours))
    return planned._replace(jobs=todo, refused=refused)


def enhancing(enhancer: Enhancer, control: control_lib.Control, maps: bool = False) -> Work:
    """The work of enhancing a picture, with its maps as pictures if wanted."""
    def work(picture):
        pixels, drawings = picture.pixels, {}
        if maps:
            enhanced, drawn = enhancer.draw(pixels)
            if control.tta:
                enhanced = control_lib.average(enhancer, pixels)
            result = control_lib.mix(pixels, enhanced, control)
            drawings = {name: dataclasses.replace(images.drawing(value), text={images.MARK: _MAP})
                        for name, value in drawn.items()}
        else:
            result = control_lib.enhance(enhancer, pixels, control)
        return dataclasses.replace(picture, pixels=result), drawings
    return work


def comparing(enhancers: Mapping[str, Enhancer], control: control_lib.Control) -> Work:
    """The work of enhancing a picture by several models and putting the results on a sheet.

    Args:
      enhancers: by the names to be written below.
      control: for all of them.
    """
    def work(picture):
        shown = {_INPUT: _rgb(picture)}
        for name, enhancer in enhancers.items():
            pixels = control_lib.enhance(enhancer, picture.pixels, control)
            shown[name] = _rgb(dataclasses.replace(picture, pixels=pixels))
        return images.Picture(sheet(shown), format="JPEG"), {}
    return work


def labels(models: Sequence[str]) -> list[str]:
    """Names of models for a sheet: the last part of a path, and more where that is not unique."""
    parts = [os.path.abspath(model).split(os.sep) if os.path.exists(model) else [model]
             for model in models]
    depths = [1] * len(parts)
    while True:
        found = [os.sep.join(part[-depth:]) for part, depth in zip(parts, depths, strict=True)]
        counts = Counter([_INPUT, *found])
        longer = [i for i, name in enumerate(found)
                  if counts[name] > 1 and depths[i] < len(parts[i])]
        if not longer:
            break
        for i in longer:
            depths[i] += 1
    # One model by two names, or one that is called like the input.
    return [f"{name} ({number})" if counts[name] > 1 else name
            for number, name in enumerate(found, 1)]


def _rgb(picture: images.Picture) -> Image.Image:
    """A picture as a sheet shows it: at most `CELL` px, 8 bits, without alpha."""
    pixels = picture.pixels
    if pixels.dtype != np.uint8:
        pixels = images.to_uint(images.to_float(pixels), np.uint8)
    image = images.to_pil(dataclasses.replace(picture, pixels=pixels, alpha=None)).convert("RGB")
    image.thumbnail((CELL, CELL), Image.Resampling.LANCZOS)
    return image


def sheet(pictures: Mapping[str, Image.Image]) -> np.ndarray:
    """Pictures of one size in rows, at most four a row, their names written below.

    Args:
      pictures: by name; of a name that is too long the end is shown.

    Returns:
      uint8 [H, W, 3].
    """
    font, gap, bar = ImageFont.load_default(16), 8, 28
    size = next(iter(pictures.values())).size
    width, height = max(size[0], 160) + gap, size[1] + bar + gap
    across = min(4, len(pictures))
    whole = Image.new("RGB", (across * width + gap, -(-len(pictures) // across) * height + gap),
                      "white")
    draw = ImageDraw.Draw(whole)
    for i, (name, picture) in enumerate(pictures.items()):
        left, top = gap + i % across * width, gap + i // across * height
        whole.paste(picture, (left, top))
        while font.getlength(name) > width - gap:
            name = name[1:]
        draw.text((left, top + size[1] + 4), name, "black", font)
    return np.asarray(whole)


def run(jobs: Sequence[Job], work: Work, ahead: int | None = None,
        stop: Callable[[], bool] = lambda: False) -> Iterator[Done]:
    """Does the jobs; yields each when it is finished, in their order but for failed ones.

    Reading and writing run in threads beside the work, a few pictures ahead and behind: memory does
    not grow with the number of files.

    Args:
      jobs: what to do; the folders of their targets exist.
      work: picture -> (result, {name: map}); the maps are written where the job says, or as
        NAME_MAP.png beside the result, before it.
      ahead: how many pictures are read ahead, and written behind; 0 has one picture in memory at a
        time. Default: by the number of cores.
      stop: asked before each picture whether to leave out it and the rest.
    """
    if ahead is None:
        ahead = max(2, min(8, (os.cpu_count() or 1) // 2))
    threads = max(1, ahead)
    with ThreadPoolExecutor(threads) as readers, ThreadPoolExecutor(threads) as writers:
        reading, writing, rest = deque(), deque(), iter(jobs)

        def read_next():
            for job in rest:
                reading.append((job, readers.submit(_attempt, job, _read, job.file)))
                return True
            return False

        for _ in range(ahead):
            read_next()
        while (reading or read_next()) and not stop():
            job, future = reading.popleft()
            picture, spent, error = future.result()
            del future  # it has the picture as it was
            if ahead:
                read_next()
            size = None if picture is None else picture.pixels.shape[1::-1]
            if error is None:
                found, seconds, error = _attempt(job, work, picture)
                spent += seconds
            if error is not None:
                yield Done(job, size, spent, error)
                continue
            writing.append((job, size, spent, writers.submit(
                _attempt, job, _write, job, *found)))
            del picture, found  # else one more is held while the next is waited for
            if len(writing) > ahead:
                yield _written(*writing.popleft())
        while writing:
            yield _written(*writing.popleft())


def _written(job: Job, size: tuple[int, int], spent: float, future: Any) -> Done:
    _, seconds, error = future.result()
    return Done(job, size, spent + seconds, error)


def _attempt(job: Job, function: Callable, *arguments: Any) -> tuple[Any, float, str | None]:
    """(what it returns, seconds, what went wrong).

    Whatever one file brings about, the others go on; the message says what it was.
    """
    start, result, message = time.perf_counter(), None, None
    try:
        result = function(*arguments)
    except InputError as error:
        text = str(error)
        message = text if job.shown in text else f"{job.shown}: {text}"
    except Exception as error:
        text = " ".join(str(error).split())
        message = f"{job.shown}: {type(error).__name__}: {text}"
    return result, time.perf_counter() - start, message


def _read(file: str) -> images.Picture:
    if file == STREAM:
        return images.read(sys.stdin.buffer, "standard input")
    return images.read(file)


def _write(job: Job, picture: images.Picture, maps: Mapping[str, images.Picture]) -> None:
    paths = dict(job.maps)
    for name, drawn in maps.items():
        path = paths.get(name) or _beside(job.target, f"{name}.png")
        images.write(path, drawn, replace=path in job.replaces)
    if job.target != STREAM:
        # Last: a result says that its maps are there.
        images.write(job.target, picture, replace=job.target in job.replaces)
        return
    sys.stdout.buffer.write(images.encode(picture, picture.format, "standard output"))
    sys.stdout.buffer.flush()


def summary(done: Sequence[Done], planned: Plan, **more: Any) -> dict[str, Any]:
    """What was done, for programs.

    Args:
      done: the jobs tried.
      planned: what was to be done.
      **more: said of the whole run, e.g. seed=0.

    Returns:
      made_by, `more`, totals {enhanced, failed, skipped}, left {videos: [file], others: how many},
      and files: [{input, output, width, height, seconds, error, skipped, and what `Done.more`
      has}]; output, width, height, seconds and error are None where there are none.
    """
    def entry(job, size=None, seconds=None, error=None, more=MappingProxyType({}), skipped=False):
        width, height = size or (None, None)
        return {"input": job.file, "output": job.target or None, "width": width, "height": height,
                "seconds": None if seconds is None else round(seconds, 4), "error": error,
                "skipped": skipped, **more}

    files = [entry(*one) for one in done]
    files += [entry(job, error=error) for job, error in planned.refused]
    files += [entry(job, skipped=True) for job in planned.skipped]
    failed = sum(file["error"] is not None for file in files)
    return {"made_by": _MADE_BY, **more,
            "totals": {"enhanced": len(files) - failed - len(planned.skipped), "failed": failed,
                       "skipped": len(planned.skipped)},
            "left": {"videos": list(planned.videos), "others": len(planned.others)},
            "files": files}


def check_summary(path: str) -> None:
    """Refuses a place for a summary where something else is.

    Raises:
      InputError: it does not end in .json, or what is there is no summary.
    """
    if path == STREAM:
        return
    if not path.endswith(".json"):
        raise InputError(f"--json {path}: give a name that ends in .json, or -")
    if not os.path.lexists(path):
        return
    try:
        with open(path, encoding="utf-8") as file:
            ours = json.load(file).get("made_by") == _MADE_BY
    except (OSError, ValueError, AttributeError):
        ours = False
    if not ours:
        raise InputError(f"{path}: is there already and no earlier summary, so it is left alone; "
                         "choose another name")


def write_summary(path: str, content: Mapping[str, Any]) -> None:
    """Writes a summary as JSON to a file, or to standard output.

    Raises:
      InputError: it cannot be written.
    """
    text = json.dumps(content, indent=2) + "\n"
    if path == STREAM:
        sys.stdout.write(text)
        return
    try:
        with images.atomic(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error
