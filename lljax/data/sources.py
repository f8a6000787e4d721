"""Where pictures come from: the built-in demo set, folders and published data sets, as
random-access sequences."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

import numpy as np

from lljax import images
from lljax.data import datasets, demo
from lljax.errors import InputError, unknown

SOURCES = ("demo", "folder", "pairs", "unpaired", *datasets.SETS)
WITH_REFERENCES = ("demo", "pairs", *(name for name, row in datasets.SETS.items() if row.paired))


class Files:
    """Records {role: uint8 [H, W, 3], ..., "name": str} read from picture files.

    A record is a dict role -> path; every role's picture of a record shows the same scene. Files
    that turn out to be broken are named once on `report`, counted in `skipped`, and the next
    good record stands in for theirs, so that a record depends on nothing but its index.

    Args:
      records: one dict role -> path a record; not empty.
      names: one name a record, for messages and tables.
      where: what to call the sequence in an error.
      report: called with one line for every broken record.
    """

    def __init__(self, records: Sequence[dict[str, str]], names: Sequence[str], where: str,
                 report=print):
        self.records, self.names, self.where = list(records), list(names), where
        self.skipped: set[int] = set()
        self._report = report
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict:
        for offset in range(len(self)):
            at = (index + offset) % len(self)
            if at in self.skipped:
                continue
            record = self._read(at)
            if record is not None:
                return record
        raise InputError(f"{self.where}: none of the {len(self)} pictures could be read")

    def strict(self, index: int) -> dict:
        """The record of that index, or InputError if a file of it is broken (for evaluation)."""
        record = {role: images.read_rgb(path) for role, path in self.records[index].items()}
        sizes = {role: picture.shape for role, picture in record.items()}
        if len(set(sizes.values())) > 1:
            paths = self.records[index]
            shown = ", ".join(f"{paths[r]} is {s[1]}x{s[0]}" for r, s in sizes.items())
            raise InputError(f"a pair's pictures differ in size: {shown}; "
                             "make them equal or take the pair out")
        return {**record, "name": self.names[index]}

    def _read(self, index: int) -> dict | None:
        try:
            return self.strict(index)
        except InputError as error:
            with self._lock:
                new = index not in self.skipped
                self.skipped.add(index)
            if new:
                self._report(f"skipped ({len(self.skipped)} so far): {error}")
            return None


class Cached:
    """A sequence of records that keeps those it has read, up to a number of bytes.

    Attributes:
      records: the sequence behind it.
    """

    def __init__(self, records: Sequence[dict], limit: int):
        self.records = records
        self._kept: dict[int, dict] = {}
        self._room = limit
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict:
        if index in self._kept:
            return self._kept[index]
        record = self.records[index]
        size = sum(value.nbytes for value in record.values() if isinstance(value, np.ndarray))
        with self._lock:
            if size <= self._room and index not in self._kept:
                self._room -= size
                self._kept[index] = record
        return record


def _listing(folder: str | None, flag: str) -> list[str]:
    """Picture files below a folder, as relative paths, sorted."""
    if not folder:
        raise InputError(f"this data source needs a folder: give {flag}")
    if not os.path.isdir(folder):
        raise InputError(f"{flag}: no folder {folder!r}")
    files = [relative for _, relative in images.find([folder], recursive=True)]
    if not files:
        raise InputError(f"{flag}: no pictures in {folder!r}")
    return files


def _stem(path: str) -> str:
    return os.path.splitext(path)[0]


def _by_stem(folder: str, flag: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in _listing(folder, flag):
        other = found.setdefault(_stem(path), path)
        if other != path:
            raise InputError(f"{flag}: {other} and {path} have the same stem; keep one")
    return found


def _pairs(low: str, high: str, flags: str, **kwargs) -> Files:
    lows, highs = _by_stem(low, flags + "low"), _by_stem(high, flags + "high")
    lonely = sorted(lows.keys() ^ highs.keys())
    if lonely:
        where = "high" if lonely[0] in lows else "low"
        raise InputError(f"{len(lonely)} pictures of {low} and {high} lack a partner of the same "
                         f"stem, e.g. {lonely[0]!r} has none in {where}; add or remove them")
    records = [{"low": os.path.join(low, lows[stem]), "high": os.path.join(high, highs[stem])}
               for stem in lows]
    return Files(records, [lows[stem] for stem in lows], f"{low} and {high}", **kwargs)


def _folder(folder: str, role: str, flags: str, **kwargs) -> Files:
    files = _listing(folder, flags + role)
    records = [{role: os.path.join(folder, path)} for path in files]
    return Files(records, files, folder, **kwargs)


class _Role:
    """One role of a sequence of pairs."""

    def __init__(self, records: Sequence[dict], role: str):
        self.records, self.role = records, role

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict:
        record = self.records[index]
        return {"name": record["name"], self.role: record[self.role]}


class Mixed:
    """Several sequences as one; a record's name begins with its source's.

    Args:
      tables: source -> its records; all with the same roles.
    """

    def __init__(self, tables: dict[str, Sequence[dict]]):
        self.tables = tables
        self._starts = np.cumsum([0, *map(len, tables.values())])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> dict:
        return self._record(index, lambda table, i: table[i])

    def strict(self, index: int) -> dict:
        """The record of that index, or InputError if a file of it is broken (for evaluation)."""
        return self._record(index, _strict)

    @property
    def skipped(self) -> set[tuple[str, int]]:
        """The broken records met so far."""
        return {(name, index) for name, table in self.tables.items()
                for index in getattr(table, "skipped", ())}

    def _record(self, index: int, read) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(index)
        which = int(np.searchsorted(self._starts, index, "right")) - 1
        name, table = list(self.tables.items())[which]
        record = read(table, index - int(self._starts[which]))
        return {**record, "name": f"{name}/{record['name']}"}


def _strict(table: Sequence[dict], index: int) -> dict:
    return table.strict(index) if isinstance(table, Files | Mixed) else table[index]


def _mix(names: Sequence[str], parts: Sequence[list[Sequence[dict]]]) -> list[Sequence[dict]]:
    """Tables with the records of all sources, number by number."""
    if len(set(names)) < len(names):
        raise InputError(f"data source {'+'.join(names)}: each may be named once")
    roles = [[_roles(table) for table in part] for part in parts]
    if any(other != roles[0] for other in roles):
        shown = "; ".join(f"{name} has {' beside '.join(' and '.join(r) for r in role)}"
                          for name, role in zip(names, roles, strict=True))
        raise InputError(f"data source {'+'.join(names)}: only sources of one kind can be mixed "
                         f"({shown})")
    return [Mixed(dict(zip(names, column, strict=True))) for column in zip(*parts, strict=True)]


_FOLDERS = {"folder": {"low"}, "pairs": {"low", "high"}, "unpaired": {"low", "high"}}


def _check_folders(names: Sequence[str], given: dict[str, str | None], flags: str) -> None:
    """A folder that no source reads is a forgotten `source`, not something to pass over."""
    read = set().union(*(_FOLDERS.get(name, set()) for name in names))
    for role in sorted(role for role, folder in given.items() if folder and role not in read):
        raise InputError(f"{flags}{role} is given, but the data source {'+'.join(names)} does not "
                         f"read it; set {flags}source to folder, pairs or unpaired")


def _roles(table: Sequence[dict]) -> list[str]:
    """The pictures that a table's records have."""
    record = table.records[0] if isinstance(table, Files) else table[0]
    return sorted(key for key in record if key != "name")


def open_tables(source: str, *, split: str = "train", low: str | None = None,
                high: str | None = None, root: str | None = None, prepared: str | None = None,
                flags: str = "--", report=print) -> list[Sequence[dict]]:
    """A source as independent tables; a training sample takes one record of each.

    Args:
      source: "demo" | "folder" | "pairs" | "unpaired" | a name of `datasets.SETS`, or several
        joined by "+" ("lol_v1+retinex_synthetic"): the records of all.
      split: "train" | "test"; only `demo` and the published sets have both.
      low: folder of low-light pictures.
      high: folder of references (pairs, matched by stem) or well-lit pictures (unpaired).
      root: folder that published sets were unpacked into; None if they are prepared.
      prepared: folder of prepared sets; default `datasets.folder()`.
      flags: how the user names `low` and `high`, for messages ("--config.data.").
      report: called with a line for every broken record, and when a set is prepared.

    Returns:
      One table of {"low"} or {"low", "high"} records; two for unpaired sources. Each record also
      has its "name".

    Raises:
      InputError: unknown source, missing or empty folder, pictures without a partner, sources
        that cannot be mixed, and as `datasets.prepare`.
    """
    names = source.split("+")
    _check_folders(names, {"low": low, "high": high}, flags)
    if len(names) > 1:
        return _mix(names, [_open_one(name, split, low, high, root, prepared, flags, report)
                            for name in names])
    return _open_one(source, split, low, high, root, prepared, flags, report)


def _open_one(source, split, low, high, root, prepared, flags, report) -> list[Sequence[dict]]:
    if source in datasets.SETS:
        return datasets.tables(source, split, root=root, prepared=prepared, report=report)
    if source == "demo":
        return [demo.records(split)]
    if source == "folder":
        return [_folder(low, "low", flags, report=report)]
    if source == "pairs":
        return [_pairs(low, high, flags, report=report)]
    if source == "unpaired":
        if not low and not high:  # the demo set serves as unpaired too
            records = demo.records(split)
            return [_Role(records, "low"), _Role(records, "high")]
        return [_folder(low, "low", flags, report=report),
                _folder(high, "high", flags, report=report)]
    raise unknown("data source", source, SOURCES)


class Pairs:
    """Low-light pictures with their references, for evaluation: a broken file is an error."""

    def __init__(self, table: Sequence[dict]):
        self.table = table

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return _strict(self.table, index)


def open(source: str, *, split: str = "test", **kwargs) -> Pairs:
    """Pairs to evaluate on: [i] gives {"name", "low", "high"}, uint8 [H, W, 3].

    Args:
      source: as `open_tables`, with references.
      split: "train" | "test".
      **kwargs: for `open_tables`.

    Raises:
      InputError: a source without references, or as `open_tables`.
    """
    for name in source.split("+"):
        if name not in WITH_REFERENCES:
            raise unknown("source of pairs", name, WITH_REFERENCES)
    return Pairs(open_tables(source, split=split, **kwargs)[0])
