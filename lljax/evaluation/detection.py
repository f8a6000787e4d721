"""Whether enhancing helps a detector: average precision before and after, on annotated pictures.

A detector is any function uint8 RGB [H, W, 3] -> (boxes [n, 4], scores [n]), or the same with the
boxes' class names [n] as a third value. A box is (left, top, width, height) in px, a score is
higher for what the detector is surer of. The detector is not trained on what it sees here: it is
the same function for all rows.
"""

from __future__ import annotations

import csv
import dataclasses
import importlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from lljax import images
from lljax.errors import InputError, unknown
from lljax.evaluation import report
from lljax.evaluation.baselines import BASELINES
from lljax.evaluation.evaluate import BOOTSTRAP_SEED, SHOWN, System, versions

Detector = Callable[[np.ndarray], Sequence[Any]]

BEFORE = "identity"  # the row that the others are compared with
IOU = 0.5  # from which on a detection shows an object
RESAMPLES = 2_000  # of the bootstrap; an average precision costs more than a mean
LISTED = 20  # bad files named in full
# YuNet's own thresholds would cut the curve off: average precision wants unsure detections too.
YUNET_SCORE, YUNET_NMS = 0.02, 0.3


# Annotations.


@dataclass(frozen=True)
class Annotated:
    """A picture's file and the objects in it.

    Attributes:
      name: the picture's path below its folder.
      file: its path.
      boxes: float64 [n, 4]: left, top, width, height, px.
      kinds: class name of each box.
    """

    name: str
    file: str
    boxes: np.ndarray
    kinds: tuple[str, ...]


@dataclass
class Annotations:
    """Annotated pictures, and what could not be used of their folders.

    Attributes:
      records: the pictures.
      classes: names of the classes that are evaluated, sorted.
      broken: a line for every label file that cannot be read; its picture is left out.
      notes: a line for everything else that was left out.
    """

    records: list[Annotated]
    classes: list[str]
    broken: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


FACE = "face"  # the class of formats that name none


def read_labels(path: str | os.PathLike) -> tuple[np.ndarray, tuple[str, ...]]:
    """The objects of a label file, in one of two formats, told apart by the first line.

    DARK FACE: the number of faces, then a line "left top right bottom" a face, px.
    ExDark: "% bbGt version=3", then a line "class left top width height ..." an object, px; what
    follows the height (occlusion, orientation) is not read.

    Returns:
      (boxes float64 [n, 4]: left, top, width, height; class names). The class of a face is "face".

    Raises:
      InputError: not such a file; the message names the line.
    """
    path = os.fspath(path)
    try:
        with open(path, encoding="utf-8-sig") as file:  # some editors write a mark
            lines = [line.split() for line in file]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text ({error})") from error
    numbered = [(number, words) for number, words in enumerate(lines, 1) if words]
    if not numbered:
        raise InputError(f"{path}: is empty; expected a count of faces (DARK FACE) or '% bbGt "
                         "version=3' (ExDark) in its first line")
    (_, head), *rest = numbered
    if head[0].startswith("%"):
        if head[1:2] != ["bbGt"]:
            raise InputError(f"{path}: starts with {' '.join(head)!r}, not with '% bbGt version=3'")
        found = [(words[0], _numbers(path, number, words[1:5])) for number, words in rest]
    else:
        if len(head) != 1 or not head[0].isdecimal():
            raise InputError(f"{path}: its first line is {' '.join(head)[:40]!r}; expected a count "
                             "of faces (DARK FACE) or '% bbGt version=3' (ExDark)")
        if int(head[0]) != len(rest):
            raise InputError(f"{path}: its first line says {head[0]} faces, but {len(rest)} lines "
                             "follow")
        found = []
        for number, words in rest:
            left, top, right, bottom = _numbers(path, number, words)
            found.append((FACE, (left, top, right - left, bottom - top)))
    boxes = np.array([box for _, box in found], np.float64).reshape(-1, 4)
    return boxes, tuple(kind for kind, _ in found)


def _numbers(path: str, number: int, words: Sequence[str]) -> tuple[float, ...]:
    try:
        values = tuple(float(word) for word in words)
    except ValueError:
        values = ()
    if len(values) != 4 or not np.isfinite(values).all():
        raise InputError(f"{path}: line {number} holds {' '.join(words)[:40]!r} where four numbers "
                         "should be")
    return values


def annotations(pictures: str, labels: str, classes: Sequence[str] = ()) -> Annotations:
    """The pictures of a folder with a label file each.

    The label file of `sub/1.png` is `sub/1.txt` or `sub/1.png.txt` below the folder of labels,
    upper and lower case alike.

    Args:
      pictures: folder, searched with its sub-folders.
      labels: folder of label files, see `read_labels`.
      classes: to be evaluated; objects of others are left out. None given: all that occur.

    Raises:
      InputError: no such folder, no picture with a usable label file, no object, or no object of
        a class that is asked for.
    """
    for flag, folder in (("--low", pictures), ("--labels", labels)):
        if not os.path.isdir(folder):
            raise InputError(f"{flag}: no folder {folder!r}")
    files = _label_files(labels)
    found = Annotations([], [])
    lonely, flat, seen = [], 0, set()
    for file, name in images.find([pictures]):
        stem = os.path.splitext(name)[0]
        label = files.get(f"{name}.txt".lower()) or files.get(f"{stem}.txt".lower())
        if label is None:
            lonely.append(name)
            continue
        seen.add(label)
        try:
            boxes, kinds = read_labels(label)
        except InputError as error:
            found.broken.append(str(error))
            continue
        solid = (boxes[:, 2] > 0) & (boxes[:, 3] > 0)
        flat += int((~solid).sum())
        found.records.append(Annotated(name, file, boxes[solid], tuple(
            kind for kind, keep in zip(kinds, solid, strict=True) if keep)))
    if not found.records:
        wrong = f"; {found.broken[0]}" if found.broken else ""
        raise InputError(f"no picture in {pictures!r} has a label file in {labels!r}: that of "
                         f"sub/1.png would be sub/1.txt or sub/1.png.txt{wrong}")
    if lonely:
        found.notes.append(f"{len(lonely)} pictures without a label file are left out, e.g. "
                           f"{lonely[0]}")
    if unused := len(set(files.values()) - seen):
        found.notes.append(f"{unused} label files have no picture")
    if flat:
        found.notes.append(f"{flat} boxes without an area are left out")
    present = sorted({kind for record in found.records for kind in record.kinds})
    if not present:
        raise InputError(f"the label files in {labels!r} hold no object")
    for name in classes:
        if name not in present:
            raise unknown("class", name, present)
    found.classes = sorted(set(classes)) or present
    found.records = [_only(record, found.classes) for record in found.records]
    return found


def _label_files(folder: str) -> dict[str, str]:
    """Path below the folder, in lower case -> path."""
    return {os.path.relpath(os.path.join(where, name), folder).lower(): os.path.join(where, name)
            for where, _, names in os.walk(folder) for name in sorted(names)
            if name.lower().endswith(".txt")}


def _only(record: Annotated, classes: Sequence[str]) -> Annotated:
    keep = [kind in classes for kind in record.kinds]
    return dataclasses.replace(record, boxes=record.boxes[keep], kinds=tuple(
        kind for kind in record.kinds if kind in classes))


# Detectors.


def load(spec: str) -> Detector:
    """A detector by what a user writes.

    Args:
      spec: "FILE.onnx", a model of YuNet for OpenCV, or "MODULE:FUNCTION", a function of a module
        that can be imported from here or from the current folder.

    Raises:
      InputError: neither, or it cannot be loaded.
    """
    if spec.lower().endswith(".onnx"):
        return yunet(spec)
    module, colon, name = spec.partition(":")
    if not (module and colon and name):
        raise InputError(f"--detector {spec}: write FILE.onnx (a model of YuNet) or "
                         "MODULE:FUNCTION")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
    except Exception as error:  # the module is the user's: whatever its import raises
        raise InputError(f"--detector {spec}: {module} cannot be imported from here "
                         f"({type(error).__name__}: {' '.join(str(error).split())}); MODULE is "
                         "what stands after `import`, without a path and without .py") from error
    functions = [one for one, value in vars(found).items() if callable(value) and one[0] != "_"]
    if name not in functions:
        raise unknown(f"function of {module}", name, functions)
    return getattr(found, name)


def yunet(path: str) -> Detector:
    """The face detector YuNet, run by OpenCV.

    Args:
      path: model file of OpenCV's zoo, e.g. face_detection_yunet_2023mar.onnx.

    Raises:
      InputError: OpenCV is not installed, or no such file, or it cannot read it.
    """
    try:
        import cv2
        create = cv2.FaceDetectorYN.create
    except (ImportError, AttributeError) as error:
        raise InputError(f"--detector {path} needs OpenCV 4.10 or later: pip install "
                         "'lljax[detect]'") from error
    if not os.path.isfile(path):
        raise InputError(f"--detector {path}: no such file; a model of YuNet is "
                         "face_detection_yunet_2023mar.onnx of OpenCV's model zoo")
    try:
        network = create(path, "", (320, 320), YUNET_SCORE, YUNET_NMS)
    except cv2.error as error:
        raise InputError(f"--detector {path}: OpenCV cannot read it as a model of YuNet "
                         f"({' '.join(str(error).split())[:200]})") from error

    def detect(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        network.setInputSize((picture.shape[1], picture.shape[0]))
        _, faces = network.detect(np.ascontiguousarray(picture[..., ::-1]))  # OpenCV wants BGR
        faces = np.zeros((0, 15)) if faces is None else faces  # box, 5 landmarks, score
        return faces[:, :4], faces[:, 14]

    return detect


@dataclass(frozen=True)
class Detections:
    """What a detector found in a picture: boxes [n, 4], scores [n], class names or None."""

    boxes: np.ndarray
    scores: np.ndarray
    kinds: tuple[str, ...] | None


def detect(detector: Detector, picture: np.ndarray) -> Detections:
    """Runs a detector and checks what it returns.

    Raises:
      InputError: it returned something else than a detector does.
    """
    found = detector(picture)
    if not isinstance(found, (tuple, list)) or len(found) not in (2, 3):
        raise InputError("the detector has to return (boxes, scores) or (boxes, scores, class "
                         f"names), not {type(found).__name__}")
    try:
        boxes, scores = (np.asarray(value, np.float64) for value in found[:2])
    except (TypeError, ValueError) as error:
        raise InputError("the detector returned boxes or scores that are no arrays of numbers "
                         f"({error})") from error
    boxes = boxes.reshape(-1, 4) if boxes.size == 0 else boxes
    if boxes.ndim != 2 or boxes.shape[1] != 4 or scores.shape != boxes.shape[:1]:
        raise InputError(f"the detector returned boxes of shape {boxes.shape} and scores of shape "
                         f"{scores.shape}; expected [n, 4] and [n]")
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all() and (boxes[:, 2:] >= 0).all()):
        raise InputError("the detector returned a box or score that is not finite, or a width or "
                         "height below 0; a box is (left, top, width, height)")
    kinds = tuple(map(str, found[2])) if len(found) == 3 else None
    if kinds is not None and len(kinds) != len(boxes):
        raise InputError(f"the detector returned {len(boxes)} boxes and {len(kinds)} class names")
    return Detections(boxes, scores, kinds)


# Average precision.


def overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes [n, 4] and [m, 4] (left, top, width, height): [n, m].

    Coordinates are continuous: a box of width 2 covers 2 px.
    """
    start = np.maximum(boxes[:, None, :2], others[None, :, :2])
    end = np.minimum((boxes[:, :2] + boxes[:, 2:])[:, None],
                     (others[:, :2] + others[:, 2:])[None])
    shared = np.clip(end - start, 0, None).prod(-1)
    union = boxes[:, 2:].prod(-1)[:, None] + others[:, 2:].prod(-1)[None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def match(boxes: np.ndarray, scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Which detections of one class in one picture show an object: bool [n].

    In order of their scores, each detection is given the object that it overlaps most; it shows
    it if they overlap by at least `IOU` and no detection with a higher score has shown it before.

    Source: Everingham et al. 2010, "The PASCAL Visual Object Classes (VOC) Challenge", section
    4.2.

    Args:
      boxes: [n, 4]: left, top, width, height.
      scores: [n].
      truth: the objects' boxes, [m, 4].
    """
    hits = np.zeros(len(boxes), bool)
    if not len(truth) or not len(boxes):
        return hits
    shared = overlaps(boxes, truth)
    taken = set()
    for i in np.argsort(-scores, kind="stable"):
        nearest = int(shared[i].argmax())
        if shared[i, nearest] >= IOU and nearest not in taken:
            hits[i] = True
            taken.add(nearest)
    return hits


class Curve:
    """All detections of one class by one system, for average precision over any pictures.

    Args:
      scores: of the detections, [n].
      hits: whether each shows an object, bool [n].
      pictures: index of each detection's picture, [n].
      objects: number of objects in each picture, [p].
    """

    def __init__(self, scores: np.ndarray, hits: np.ndarray, pictures: np.ndarray,
                 objects: np.ndarray):
        order = np.argsort(-scores, kind="stable")
        ranked = scores[order]
        self._hits, self._pictures = hits[order].astype(np.float64), pictures[order]
        # A threshold cannot come between equal scores: the curve has no point there.
        self._ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)[:len(ranked)])
        self._objects = objects

    def average_precision(self, draws: np.ndarray | None = None) -> float:
        """Area under the precision-recall curve, in [0, 1]; NaN where there is no object.

        Precision at a recall is the best at that or a higher one, and the area is taken at every
        recall that occurs (as VOC since 2010, and as DARK FACE's program; VOC 2007 took 11).

        Args:
          draws: how often each picture counts, [p]; None for once.
        """
        draws = np.ones(len(self._objects)) if draws is None else draws
        total = float(draws @ self._objects)
        if not total:
            return float("nan")
        weights = draws[self._pictures]
        shown = np.cumsum(weights * self._hits)[self._ends]
        made = np.cumsum(weights)[self._ends]
        precision = np.divide(shown, made, out=np.zeros_like(shown), where=made > 0)
        best = np.maximum.accumulate(precision[::-1])[::-1]
        return float(np.diff(shown / total, prepend=0.0) @ best)


# Evaluation.


@dataclass(frozen=True)
class Column:
    """A column of the tables, as `report` shows it."""

    title: str
    protocol: str
    unit: str = "%"
    better: str = "up"
    gt_mean: bool = False

    @property
    def heading(self) -> str:
        """Title, unit and direction."""
        return f"{self.title} {self.unit} ({self.better})"


@dataclass
class Results:
    """Average precisions of a run, in [0, 1].

    Attributes:
      systems: names of the rows; the first is the pictures as they are.
      classes: names of the classes.
      names: the pictures' names.
      objects: number of objects, int [picture, class].
      ap: [system, class].
      drawn: the same for every resample of the bootstrap, [resample, system, class]; the pictures
        that are drawn are the same for all systems.
      found: number of detections, int [system, picture], of all classes.
      shown: number of objects that were found, int [system, picture].
      left_out: a line for every picture that could not be used.
      info: what else results.json says.
    """

    systems: list[str]
    classes: list[str]
    names: list[str]
    objects: np.ndarray
    ap: np.ndarray
    drawn: np.ndarray
    found: np.ndarray
    shown: np.ndarray
    left_out: list[str]
    info: dict[str, Any] = field(default_factory=dict)

    def mean(self, system: str) -> tuple[float, tuple[float, float] | None]:
        """Mean average precision over the classes, and its 95 % interval over pictures."""
        s = self.systems.index(system)
        return float(self.ap[s].mean()), self._interval(self._drawn_mean(s))

    def of(self, system: str, kind: str) -> tuple[float, tuple[float, float] | None]:
        """Average precision of one class, and its 95 % interval over pictures."""
        s, k = self.systems.index(system), self.classes.index(kind)
        return float(self.ap[s, k]), self._interval(self.drawn[..., s, k])

    def difference(self, system: str) -> tuple[float, tuple[float, float] | None]:
        """A system's mean average precision minus that of the first row, and its interval.

        The pictures are drawn, each with what was found in it before and after.
        """
        s = self.systems.index(system)
        return (self.mean(system)[0] - self.mean(self.systems[0])[0],
                self._interval(self._drawn_mean(s) - self._drawn_mean(0)))

    def class_difference(self, system: str,
                         kind: str) -> tuple[float, tuple[float, float] | None]:
        """`difference` for one class."""
        s, k = self.systems.index(system), self.classes.index(kind)
        return (float(self.ap[s, k] - self.ap[0, k]),
                self._interval(self.drawn[..., s, k] - self.drawn[..., 0, k]))

    def _drawn_mean(self, s: int) -> np.ndarray:
        """Mean over the classes that were drawn, [resample]; NaN where none was."""
        if len(self.names) < 2:
            return np.empty(0)
        there = ~np.isnan(self.drawn[:, s])
        count = there.sum(1)
        total = np.where(there, self.drawn[:, s], 0).sum(1)
        return np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)

    def _interval(self, values: np.ndarray) -> tuple[float, float] | None:
        if len(self.names) < 2:
            return None
        low, high = np.nanpercentile(values, [2.5, 97.5])  # NaN: no object was drawn
        return float(low), float(high)


def evaluate(systems: Mapping[str, System], annotated: Annotations, detector: Detector, *,
             out: str | None = None, limit: int = 0, progress: bool = False,
             info: Mapping[str, Any] | None = None) -> Results:
    """Average precision of a detector on pictures as they are and as each system makes them.

    A picture that cannot be read is left out of every row, and named in `left_out`.

    Args:
      systems: name -> uint8 [H, W, 3] -> uint8 [H, W, 3], of the same size.
      annotated: the pictures.
      detector: see the top of this file.
      out: folder for results.json, results.md, results.tex, per_image.csv and detections.png;
        None to write nothing.
      limit: only the first so many pictures; 0 for all.
      progress: whether to show a progress bar on a terminal.
      info: what results.json is to say beside the scores.

    Raises:
      InputError: a system with a baseline's name, one that returns another size, a detector that
        returns something else or names no class that is looked for, no readable picture, a folder
        that cannot be written to.
    """
    if taken := sorted(set(systems) & set(BASELINES)):
        raise InputError(f"a system may not be called {taken[0]!r}: that row is always there")
    rows = {BEFORE: BASELINES[BEFORE], **systems,
            **{name: one for name, one in BASELINES.items() if name != BEFORE}}
    records = annotated.records[:limit or None]
    run = _Run(list(rows), annotated.classes)
    sheet = _Sheet(report.spread(len(records), SHOWN), [BEFORE, *systems]) if out else None
    left_out = list(annotated.broken)
    for i, record in enumerate(tqdm(records, unit="picture", disable=None if progress else True)):
        try:
            picture = images.read_rgb(record.file)
        except InputError as error:
            left_out.append(str(error))
            continue
        for name, system in rows.items():
            enhanced, found = _attempt(name, system, detector, record, picture)
            run.add(name, record, found)
            if sheet is not None:
                sheet.add(name, i, enhanced, record, found)
        run.finish(record)
    results = run.results(left_out, {
        **(info or {}), "pictures": len(run.names), "pictures_in_source": len(annotated.records),
        "classes": annotated.classes, "left_out": left_out, "notes": annotated.notes,
        "bootstrap": {"resamples": RESAMPLES, "seed": BOOTSTRAP_SEED},
        "versions": versions(), "date": datetime.now(UTC).isoformat(timespec="seconds")})
    if out is not None:
        write(results, out)
        sheet.write(out)
    return results


def _attempt(name: str, system: System, detector: Detector, record: Annotated,
             picture: np.ndarray) -> tuple[np.ndarray, Detections]:
    try:
        enhanced = system(picture)
        if enhanced.shape != picture.shape or enhanced.dtype != np.uint8:
            raise InputError(f"it returned {enhanced.dtype} {enhanced.shape} for uint8 "
                             f"{picture.shape}; boxes are only comparable at one size")
        return enhanced, detect(detector, enhanced)
    except InputError as error:
        raise InputError(f"{name} on {record.name}: {error}") from error
    except Exception as error:
        error.add_note(f"while evaluating {name} on {record.name}")
        raise


class _Run:
    """Collects what is found, picture by picture."""

    def __init__(self, systems: list[str], classes: list[str]):
        self.systems, self.classes = systems, classes
        self.names: list[str] = []
        self._objects: list[list[int]] = []
        self._counts: dict[str, list[tuple[int, int]]] = {name: [] for name in systems}
        self._parts = {(name, kind): ([], [], []) for name in systems for kind in classes}
        self._named: set[str] = set()

    def add(self, system: str, record: Annotated, found: Detections) -> None:
        """What was found in the picture that comes next."""
        kinds = found.kinds
        if kinds is None:
            if len(self.classes) > 1:
                raise InputError(f"the detector names no classes, but the labels have "
                                 f"{', '.join(self.classes)}; choose one with --classes, or return "
                                 "(boxes, scores, class names)")
            kinds = (self.classes[0],) * len(found.boxes)
        self._named |= set(kinds)
        made = shown = 0
        for kind in self.classes:
            mine = [one == kind for one in kinds]
            truth = record.boxes[[one == kind for one in record.kinds]]
            hits = match(found.boxes[mine], found.scores[mine], truth)
            scores, all_hits, pictures = self._parts[system, kind]
            scores.append(found.scores[mine])
            all_hits.append(hits)
            pictures.append(np.full(len(hits), len(self.names)))
            made, shown = made + len(hits), shown + int(hits.sum())
        self._counts[system].append((made, shown))

    def finish(self, record: Annotated) -> None:
        """Ends a picture."""
        self.names.append(record.name)
        self._objects.append([record.kinds.count(kind) for kind in self.classes])

    def results(self, left_out: list[str], info: dict[str, Any]) -> Results:
        if not self.names:
            raise InputError(f"none of the pictures can be used: {left_out[0]}")
        if self._named and not self._named & set(self.classes):
            raise InputError(f"the detector finds {', '.join(sorted(self._named)[:LISTED])}, but "
                             f"the labels have {', '.join(self.classes)}; make it return their "
                             "names")
        objects = np.array(self._objects)
        if not objects.any():
            raise InputError(f"the {len(self.names)} pictures hold no object to be found; take "
                             "more of them")
        curves = [[Curve(*map(np.concatenate, self._parts[name, kind]), objects[:, k])
                   for k, kind in enumerate(self.classes)] for name in self.systems]
        present = objects.any(0)  # with a limit, some classes may have no object left
        classes = [kind for kind, keep in zip(self.classes, present, strict=True) if keep]
        curves = [[curve for curve, keep in zip(row, present, strict=True) if keep]
                  for row in curves]
        rng, count = np.random.default_rng(BOOTSTRAP_SEED), len(self.names)
        draws = (rng.multinomial(count, np.full(count, 1 / count)).astype(np.float64)
                 for _ in range(RESAMPLES if count > 1 else 0))
        drawn = [[[curve.average_precision(one) for curve in row] for row in curves]
                 for one in draws]
        counts = np.array([self._counts[name] for name in self.systems])
        return Results(
            self.systems, classes, self.names, objects[:, present],
            np.array([[curve.average_precision() for curve in row] for row in curves]),
            np.array(drawn).reshape(-1, len(self.systems), len(classes)),
            counts[..., 0], counts[..., 1], left_out, info)


class _Sheet:
    """Pictures with boxes: green is what is there, red the surest detections, as many of them."""

    def __init__(self, shown: Sequence[int], columns: Sequence[str]):
        self._shown = set(shown)
        self._columns: dict[str, list[np.ndarray]] = {name: [] for name in columns}

    def add(self, name: str, i: int, picture: np.ndarray, record: Annotated,
            found: Detections) -> None:
        if i not in self._shown or name not in self._columns:
            return
        small = Image.fromarray(report.shrink(picture))
        scale = small.width / picture.shape[1]
        draw = ImageDraw.Draw(small)
        surest = np.argsort(-found.scores, kind="stable")[:len(record.boxes)]
        # around the objects, so that a box of equal size does not hide them
        for boxes, colour, gap in ((record.boxes, (60, 220, 60), 2),
                                   (found.boxes[surest], (255, 60, 60), 0)):
            for left, top, width, height in boxes * scale:
                draw.rectangle((left - gap, top - gap, left + width + gap, top + height + gap),
                               outline=colour)
        self._columns[name].append(np.asarray(small))

    def write(self, out: str) -> None:
        if any(self._columns.values()):  # else none of those to be shown could be read
            with report.writing(out):
                report.write_png(os.path.join(out, "detections.png"),
                                 report.contact_sheet(self._columns))


# What is written.


def table(results: Results) -> str:
    """The results as fixed-width text."""
    return report.text_tables(_content(results))


def _content(results: Results) -> report.Content:
    protocol = f"ap[voc,iou{IOU},all-points]"
    columns = [Column("AP", protocol), Column("found", f"recall[iou{IOU},any score]")]
    if len(results.classes) > 1:
        columns = [Column("mAP", f"{protocol}, mean over {len(results.classes)} classes"),
                   columns[1], *(Column(kind, protocol) for kind in results.classes)]
    scores, differences = [], []
    for s, name in enumerate(results.systems):
        several = [_cell(*results.of(name, kind)) for kind in results.classes]
        recall = results.shown[s].sum() / results.objects.sum()
        rest = several if len(results.classes) > 1 else []
        scores.append((name, [_cell(*results.mean(name)), report.Cell(f"{100 * recall:.1f}"),
                              *rest]))
        if s:
            rest = [_cell(*results.class_difference(name, kind), sign="+")
                    for kind in results.classes] if len(results.classes) > 1 else []
            differences.append((name, [_cell(*results.difference(name), sign="+"), *rest]))
    n, total = len(results.names), results.info.get("pictures_in_source", len(results.names))
    scope = f"{n} pictures" if n == total else f"{n} of {total} pictures"
    if source := results.info.get("source"):
        scope += f" of {source}"
    scope += f" with {int(results.objects.sum())} objects"
    if n > 1:
        scope += "; [95 % bootstrap interval over pictures]"
    return report.Content(scope, [
        report.Section("average precision of the detector", columns, scores),
        report.Section(f"each row minus {results.systems[0]} (the pictures as they are)",
                       [columns[0], *columns[2:]], differences)],
        ["intervals are not corrected for the number of comparisons"])


def _cell(value: float, ci95: tuple[float, float] | None, sign: str = "") -> report.Cell:
    percent = None if ci95 is None else (100 * ci95[0], 100 * ci95[1])
    return report.Cell(f"{100 * value:{sign}.2f}", interval=report.brackets(percent, 2))


def to_json(results: Results) -> str:
    """The results as JSON: {"systems": {system: {...}}, "paired": {...}, ...}, AP in [0, 1].

    "paired" holds each system's average precision minus that of the first row.
    """
    def entry(mean, ci95):
        return {"mean": mean, "ci95": ci95}

    systems = {name: {
        "ap": {**entry(*results.mean(name)), "n": len(results.names)},
        "classes": {kind: entry(*results.of(name, kind)) for kind in results.classes},
        "found": int(results.shown[s].sum()), "detections": int(results.found[s].sum())}
        for s, name in enumerate(results.systems)}
    paired = {"against": results.systems[0], "systems": {name: {
        "ap": entry(*results.difference(name)),
        "classes": {kind: entry(*results.class_difference(name, kind))
                    for kind in results.classes}} for name in results.systems[1:]}}
    objects = dict(zip(results.classes, results.objects.sum(0).tolist(), strict=True))
    protocol = {"iou": IOU, "matching": "VOC: greedy by score, object of the largest overlap",
                "area": "all points, precision made monotonic", "equal_scores": "one threshold"}
    return json.dumps({"systems": systems, "paired": paired, "objects": objects,
                       "protocol": protocol, **results.info}, indent=1, allow_nan=False) + "\n"


def to_csv(results: Results) -> str:
    """A line a system and picture: objects, detections at any score, objects found."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["system", "name", "objects", "detections", "found"])
    for s, system in enumerate(results.systems):
        for i, name in enumerate(results.names):
            writer.writerow([system, name, results.objects[i].sum(), results.found[s, i],
                             results.shown[s, i]])
    return text.getvalue()


def write(results: Results, out: str) -> None:
    """Writes results.json, results.md, results.tex and per_image.csv into `out`.

    Raises:
      InputError: the folder cannot be made or written to.
    """
    content = _content(results)
    report.write_texts(out, {
        "per_image.csv": to_csv(results), "results.json": to_json(results),
        "results.md": report.markdown_tables(content) + "\n",
        "results.tex": report.latex_tables(content) + "\n"})


def lines(errors: Iterable[str]) -> Iterator[str]:
    """The first errors in full, and how many more there are."""
    errors = list(errors)
    yield from errors[:LISTED]
    if len(errors) > LISTED:
        yield f"and {len(errors) - LISTED} more"
