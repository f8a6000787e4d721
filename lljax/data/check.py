"""What is wrong with a set of pictures, before a training or a table finds out: `lljax data check`.

Problems (exit code 1) are broken files, pictures without a partner, pairs of unequal size, and
leaks: a picture, or another exposure of its scene, on both sides of train and test. Duplicates
within one side are shown and are no problem by themselves: several low-light pictures may share a
reference, and a set for training without references may hold whole exposure series.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from PIL import Image
from tqdm import tqdm

from lljax import images
from lljax.data import datasets, demo, sources
from lljax.errors import InputError, unknown

LISTED = 20  # problems of a kind that are named; a fourth of that for what is no problem
BINS = 8  # of the brightness histogram
SIDE = 16  # the perceptual hash has SIDE * SIDE bits
# Bits in which the hashes of one scene may differ. Measured on 958 frames of exposure series: it
# finds 0.64 of the pairs of frames of one scene. Of the 455,795 pairs that the series' labels say
# are of two scenes it takes 69; the 12 looked at of those up to 32 bits all show one scene after
# all. It misses frames many stops apart, where black or white has swallowed the order of areas.
NEAR = 24
_LUMA = np.float32([0.299, 0.587, 0.114])  # BT.601

Reader = Callable[[], tuple[str, np.ndarray]]


@dataclass(frozen=True)
class Facts:
    """What is kept of a picture.

    Attributes:
      name: for messages.
      size: (width, height), px.
      luma: mean BT.601 luma, [0, 255].
      exact: digest of size and pixels.
      scene: `scene_hash`.
    """

    name: str
    size: tuple[int, int]
    luma: float
    exact: bytes
    scene: np.ndarray | None


@dataclass
class Part:
    """Pictures that are looked at together: one role of one split.

    Attributes:
      split: "train" | "test"; "" where the source has no splits.
      role: "low" | "high".
      readers: one function a picture, giving name and uint8 [H, W, 3]; InputError if broken.
      paired: whether the other role's picture of equal index shows the same.
      facts: of each picture; None for a broken one.
      source: which of several joined sources it is of; "" if there is one.
    """

    split: str
    role: str
    readers: Sequence[Reader]
    paired: bool = False
    facts: list[Facts | None] = field(default_factory=list)
    source: str = ""

    @property
    def title(self) -> str:
        """For messages."""
        return " ".join(filter(None, (self.source, self.split, self.role)))

    @property
    def good(self) -> list[Facts]:
        """The facts of the pictures that could be read."""
        return [fact for fact in self.facts if fact is not None]


@dataclass
class Report:
    """Lines to print, and the number of problems by kind."""

    lines: list[str] = field(default_factory=list)
    problems: dict[str, int] = field(default_factory=dict)

    def found(self, what: str, items: Sequence[str], problem: str | None = None) -> None:
        """Names what was found, if anything, and counts it as `problem`."""
        if not items:
            return
        shown = LISTED if problem else LISTED // 4
        self.lines += [f"{what} ({len(items)}):", *(f"  {item}" for item in items[:shown])]
        if len(items) > shown:
            self.lines.append(f"  and {len(items) - shown} more")
        if problem:
            self.problems[problem] = self.problems.get(problem, 0) + len(items)


def check(source: str, *, low: str | None = None, high: str | None = None,
          root: str | None = None, prepared: str | None = None,
          against: str | None = None) -> Report:
    """Reads every picture of a source and says what it found.

    Args:
      source: "demo" | "folder" | "pairs" | "unpaired" | a name of `datasets.SETS`.
      low: folder of low-light pictures.
      high: folder of references or well-lit pictures.
      root: folder that a published set was unpacked into: its files are checked, and nothing is
        prepared. Without it, what was prepared is checked.
      prepared: folder of prepared sets; default `datasets.folder()`.
      against: folder whose pictures must not be among the source's.

    Raises:
      InputError: unknown source, or a folder that is missing or empty.
    """
    parts, lonely = _parts(source, low, high, root, prepared)
    others = [Part("", "against", _folder(against, "--against"))] if against else []
    broken = _read([*parts, *others])
    report = Report()
    for part in parts:
        report.lines += _overview(part)
    report.found("broken", broken, "broken")
    report.found("without exactly one partner", lonely, "unmatched")
    report.found("pairs of unequal size", _unequal(parts), "of unequal size")
    for part in parts:
        report.found(f"groups with the same pixels, in {part.title}", _duplicates(part.good))
        report.found(f"groups of one scene, in {part.title}", _series(part.good))
    sides = {split: [fact for part in parts if part.split == split for fact in part.good]
             for split in ("train", "test")}
    report.found("of test, and also in train", _leaks(sides["test"], sides["train"]), "leaking")
    ours = [fact for part in parts for fact in part.good]
    report.found(f"of {against}, and also here", _leaks([f for p in others for f in p.good], ours),
                 "leaking")
    total = sum(len(part.readers) for part in parts)
    shown = ", ".join(f"{count} {kind}" for kind, count in report.problems.items())
    report.lines.append(f"{source}: {total} pictures, {shown or 'no problems'}")
    return report


# the flags that a source takes; the others are published sets
_FLAGS = {"demo": (), "folder": ("--low",), "pairs": ("--low", "--high"),
          "unpaired": ("--low", "--high")}


def _parts(source: str, low: str | None, high: str | None, root: str | None,
           prepared: str | None) -> tuple[list[Part], list[str]]:
    """A source's parts, or those of several joined by "+", and the files that lack a partner."""
    given = {"--low": low, "--high": high, "--root": root, "--prepared": prepared}
    names = source.split("+")
    for name in names:
        if name not in sources.SOURCES:
            raise unknown("data source", name, sources.SOURCES)
    takes = {name: _FLAGS.get(name, ("--root", "--prepared")) for name in names}
    every = list(dict.fromkeys(flag for flags in takes.values() for flag in flags))
    for flag, value in given.items():
        if value is not None and flag not in every:
            raise InputError(f"{flag} does not go with {source}; that takes "
                             f"{' and '.join(every) or 'no folder'}")
    if len(names) > 1:
        found = [_parts(name, *(given[flag] if flag in takes[name] else None for flag in given))
                 for name in names]
        return ([dataclasses.replace(part, source=name) for name, (parts, _) in
                 zip(names, found, strict=True) for part in parts],
                [path for _, lonely in found for path in lonely])
    used = takes[source]
    if source == "demo":  # both pictures of a record are made at once
        tables = {split: sources.Cached(demo.records(split), 2**30) for split in ("train", "test")}
        return [part for split, table in tables.items()
                for part in _tabled(split, {"low": table, "high": table})], []
    if source == "pairs":
        for flag in used:
            _folder(given[flag], flag)
        listing = datasets.by_name(low, high)
        return _listed("", listing.entries), listing.lonely
    if source in ("folder", "unpaired"):
        return [Part("", flag[2:], _folder(given[flag], flag)) for flag in used], []
    if root is not None:
        found = datasets.files(source, root)
        return ([part for split, listing in found.items()
                 for part in _listed(split, listing.entries)],
                [path for listing in found.values() for path in listing.lonely])
    builder = datasets.prepare(source, prepared=prepared)
    return [part for split in builder.info.splits for part in _tabled(split, {
        feature: datasets.Prepared(builder, split, {feature: feature})
        for feature in datasets.SETS[source].features})], []


def _folder(folder: str | None, flag: str) -> list[Reader]:
    """The pictures of a folder; InputError if there are none."""
    if not folder:
        raise InputError(f"this data source needs a folder: give {flag}")
    if not os.path.isdir(folder):
        raise InputError(f"{flag}: no folder {folder!r}")
    found = images.find([folder])
    if not found:
        raise InputError(f"{flag}: no pictures in {folder!r}")
    return [_reader(name, path) for path, name in found]


def _reader(name: str, path: str) -> Reader:
    return lambda: (name, images.read_rgb(path))


def _listed(split: str, entries: Sequence[datasets.Entry]) -> list[Part]:
    """The parts of a listing: one a feature."""
    features = list(entries[0][1]) if entries else []
    return [_part(split, feature, [_reader(name, paths[feature]) for name, paths in entries],
                  len(features) > 1) for feature in features]


def _tabled(split: str, tables: dict[str, Sequence[dict]]) -> list[Part]:
    """The parts of records in tables: one a feature."""
    def read(table, feature, index):
        record = table[index]
        return record["name"], record[feature]
    return [_part(split, feature, [functools.partial(read, table, feature, index)
                                   for index in range(len(table))], len(tables) > 1)
            for feature, table in tables.items()]


def _part(split: str, feature: str, readers: list, paired: bool) -> Part:
    """A part; the splits trainA and trainB of sets without pairs are train's low and high."""
    if feature == "picture":
        return Part(split[:-1], {"A": "low", "B": "high"}[split[-1]], readers)
    return Part(split, feature, readers, paired)


def _read(parts: Sequence[Part]) -> list[str]:
    """Fills in the facts; returns what was said of broken pictures."""
    def attempt(reader):
        try:
            return facts(*reader())
        except InputError as error:
            return str(error)

    broken = []
    total = sum(len(part.readers) for part in parts)
    # Decoding and hashing release the interpreter, so threads share the work.
    with ThreadPoolExecutor(os.cpu_count()) as pool, \
            tqdm(total=total, unit="picture", leave=False, disable=None) as bar:
        for part in parts:
            for result in pool.map(attempt, part.readers):
                bar.update()
                part.facts.append(result if isinstance(result, Facts) else None)
                if isinstance(result, str):
                    broken.append(result)
    return broken


def facts(name: str, pixels: np.ndarray) -> Facts:
    """The facts of a picture, uint8 [H, W, 3]."""
    height, width = pixels.shape[:2]
    digest = hashlib.blake2b(np.ascontiguousarray(pixels), digest_size=16)
    digest.update(f"{width}x{height}".encode())
    luma = float(pixels.reshape(-1, 3).mean(0) @ _LUMA)
    return Facts(name, (width, height), luma, digest.digest(), scene_hash(pixels))


def scene_hash(pixels: np.ndarray) -> np.ndarray | None:
    """The difference hash of a picture: which of two neighbouring areas is the brighter.

    A tone curve keeps that order, so exposures of one scene have nearly the same hash.

    Args:
      pixels: uint8 [H, W, 3].

    Returns:
      uint8 [SIDE * SIDE / 8]; None where hardly a bit is set or hardly one is not: flat pictures
      and plain ramps would all be alike.
    """
    small = Image.fromarray(pixels).convert("L").resize((SIDE + 1, SIDE), Image.Resampling.BOX)
    grey = np.asarray(small)
    bits = grey[:, 1:] > grey[:, :-1]
    return np.packbits(bits) if 16 <= bits.sum() <= bits.size - 16 else None


def _overview(part: Part) -> list[str]:
    """Count, sizes and brightness of a part."""
    good = part.good
    if not good:
        return [f"{part.title}: {len(part.readers)} pictures, none of which could be read"]
    sizes = collections.Counter(fact.size for fact in good).most_common()
    shown = ", ".join(f"{count} of {width}x{height}" for (width, height), count in sizes[:4])
    shown += f", {len(sizes) - 4} further sizes" if len(sizes) > 4 else ""
    lumas = np.array([fact.luma for fact in good])
    dark, bright = good[lumas.argmin()], good[lumas.argmax()]
    lines = [f"{part.title}: {len(part.readers)} pictures ({shown})",
             f"  mean luma {lumas.mean():.1f} of 255; darkest {dark.luma:.1f} ({dark.name}), "
             f"brightest {bright.luma:.1f} ({bright.name})"]
    counts, edges = np.histogram(lumas, BINS, (0, 256))
    for start, end, count in zip(edges, edges[1:], counts, strict=False):
        bar = "#" * -(-40 * count // len(good))
        lines.append(f"  {start:3.0f} to {end:3.0f}  {count:5d}  {bar}".rstrip())
    return lines


def _unequal(parts: Sequence[Part]) -> list[str]:
    """The pairs whose pictures differ in size."""
    found = []
    for low, high in zip(parts, parts[1:], strict=False):
        if low.paired and (
                low.source, low.split, low.role, high.role) == (
                high.source, high.split, "low", "high"):
            found += [f"{a.name}: low is {a.size[0]}x{a.size[1]}, high {b.size[0]}x{b.size[1]}"
                      for a, b in zip(low.facts, high.facts, strict=True)
                      if a is not None and b is not None and a.size != b.size]
    return found


def _duplicates(those: Sequence[Facts]) -> list[str]:
    """Groups of pictures with the same pixels."""
    groups = collections.defaultdict(list)
    for fact in those:
        groups[fact.exact].append(fact.name)
    return [_joined(names, " = ") for names in groups.values() if len(names) > 1]


def _joined(names: Sequence[str], sign: str) -> str:
    more = f"{sign}{len(names) - 3} more" if len(names) > 3 else ""
    return sign.join(names[:3]) + more


def _series(those: Sequence[Facts]) -> list[str]:
    """Groups of pictures that show one scene, without those of equal pixels."""
    those = list({fact.exact: fact for fact in those}.values())
    group = list(range(len(those)))
    for i, j, _ in _near(those, those):
        if i < j and group[i] != group[j]:  # join the two groups
            group = [group[i] if g == group[j] else g for g in group]
    members = collections.defaultdict(list)
    for number, fact in zip(group, those, strict=True):
        members[number].append(fact.name)
    return [_joined(names, " ~ ") for names in members.values() if len(names) > 1]


def _leaks(those: Sequence[Facts], others: Sequence[Facts]) -> list[str]:
    """The pictures of `those` that, or whose scenes, are among `others`."""
    exact = {fact.exact: fact.name for fact in others}
    near: dict[int, tuple[int, int]] = {}
    for i, j, bits in _near(those, others):
        near[i] = min(near.get(i, (bits, j)), (bits, j))
    found = []
    for i, fact in enumerate(those):
        if fact.exact in exact:
            found.append(f"{fact.name} = {exact[fact.exact]} (the same pixels)")
        elif i in near:
            bits, j = near[i]
            found.append(f"{fact.name} ~ {others[j].name} (one scene: {bits} of {SIDE * SIDE} bits "
                         "differ)")
    return found


def _near(those: Sequence[Facts], others: Sequence[Facts]) -> Iterator[tuple[int, int, int]]:
    """(i, j, bits) of the pictures whose hashes differ in at most `NEAR` bits."""
    columns = [j for j, fact in enumerate(others) if fact.scene is not None]
    if not columns:
        return
    table = np.stack([others[j].scene for j in columns])
    for i, fact in enumerate(those):
        if fact.scene is not None:
            bits = np.bitwise_count(table ^ fact.scene).sum(1)
            for place in np.flatnonzero(bits <= NEAR):
                yield i, columns[place], int(bits[place])
