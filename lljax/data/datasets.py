"""Published data sets: downloaded by hand, prepared once as TFDS array records, read at random.

None may be fetched by a program without its owners' page in between, so each is prepared from a
folder that you fill, ROOT. A set is looked for in ROOT/<its name> if there is such a folder, else
in ROOT itself. "Terms" is what the page or repository named said when this was written; where it
said nothing, ask the authors before you do more than research.

  name               pairs (train + test)    folders, below ROOT or ROOT/<name>
  lol_v1             485 + 15                our485/{low,high} eval15/{low,high}
  retinex_synthetic  1000 (+ 250, optional)  syn/{low,high} (syn_test/{low,high})
  lol_v2_real        689 + 100               Real_captured/{Train,Test}/{Low,Normal}
  lol_v2_synthetic   900 + 100               Synthetic/{Train,Test}/{Low,Normal}
  sice               by rule, see `_exposures`
                                             Dataset_Part1/{1,2,...,Label} Dataset_Part2/{...}
  enlighten_unpaired 914 low, 1016 well lit, no pairs
                                             trainA trainB (testA testB)

LOL-v2 real shows scenes of LOL-v1: do not train on one and test on the other.

What is prepared lies in `folder()`. It holds the files' own bytes wherever those are PNG or JPEG
that decode to what `images.read_rgb` gives, and a PNG of that otherwise: nothing is lost.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from lljax import images
from lljax.errors import InputError

Entry = tuple[str, dict[str, str]]  # name, and the picture file of each feature


@dataclass(frozen=True)
class Listing:
    """What a split's folders hold.

    Attributes:
      entries: (name, {feature: file}) in order of the names.
      lonely: files and scenes without a counterpart.
    """

    entries: list[Entry]
    lonely: list[str]


def by_name(low: str, high: str, drop: str = "") -> Listing:
    """Pairs of two folders' pictures by file stem.

    Args:
      low: folder of low-light pictures.
      high: folder of references.
      drop: regular expression of what does not count in a stem.
    """
    sides = []
    for folder in (low, high):
        side: dict[str, list[str]] = {}
        for path, relative in images.find([folder]):
            key = re.sub(drop, "", os.path.splitext(relative)[0])
            side.setdefault(key, []).append(path)
        sides.append(side)
    names = sorted(sides[0].keys() | sides[1].keys(), key=_natural)
    whole = [name for name in names if all(len(side.get(name, ())) == 1 for side in sides)]
    lonely = [path for name in names if name not in set(whole)
              for side in sides for path in side.get(name, ())]
    return Listing([(name, {"low": sides[0][name][0], "high": sides[1][name][0]})
                    for name in whole], lonely)


def _exposures(scenes: str, labels: str) -> Listing:
    """SICE's pairs: each frame darker than the middle one, with its scene's label.

    Frames are numbered from dark to bright; of n the first floor((n - 1) / 2) are taken. Those are
    the 3 of 7 and 4 of 9 that the evaluations on Part 2 describe; for 5, 6 and 8 frames nothing is
    published, and 2, 2 and 3 are this project's choice.
    """
    label = {os.path.splitext(name)[0]: path for path, name in images.find([labels], False)}
    folders = {entry.name: entry.path for entry in os.scandir(scenes)
               if entry.is_dir() and entry.name[0] != "." and not os.path.samefile(entry, labels)}
    entries, lonely = [], [path for scene, path in label.items() if scene not in folders]
    for scene in sorted(folders, key=_natural):
        if scene not in label:
            lonely.append(folders[scene])
            continue
        frames = sorted(images.find([folders[scene]], False), key=lambda found: _natural(found[1]))
        entries += [(f"{scene}_{os.path.splitext(name)[0]}", {"low": path, "high": label[scene]})
                    for path, name in frames[:(len(frames) - 1) // 2]]
    return Listing(entries, lonely)


def _single(pictures: str) -> Listing:
    """Every picture of a folder."""
    return Listing([(name, {"picture": path}) for path, name in images.find([pictures])], [])


def _natural(name: str) -> list:
    """Sorting key by which 2 comes before 10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part)
            for part in re.split(r"(\d+)", name)]


@dataclass(frozen=True)
class Set:
    """One row of the table.

    Attributes:
      title: what to look for on the page.
      page: address of the official page or repository.
      terms: what it says about use.
      folders: split -> folder of each argument of `match`. Pairs have the splits "train" and
        "test"; without pairs, "A" (low) and "B" (well lit) are appended.
      count: split -> entries of the published set, where known.
      optional: splits that may be absent.
      match: lists a split.
    """

    title: str
    page: str
    terms: str
    folders: dict[str, tuple[str, ...]]
    count: dict[str, int] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    match: Callable[..., Listing] = by_name

    @property
    def paired(self) -> bool:
        """Whether a record is a picture with its reference."""
        return self.match is not _single

    @property
    def features(self) -> tuple[str, ...]:
        """The pictures of a record."""
        return ("low", "high") if self.paired else ("picture",)


_UNSTATED = "none stated for the pictures"
_V2 = ("https://github.com/flyywh/CVPR-2020-Semi-Low-Light (in these folders: LOL-v2 of "
       "https://github.com/caiyuanhao1998/Retinexformer)")
SETS = {
    "lol_v1": Set(
        "the LOL dataset", "https://daooshee.github.io/BMVC2018website/", _UNSTATED,
        {"train": ("our485/low", "our485/high"), "test": ("eval15/low", "eval15/high")},
        {"train": 485, "test": 15}),
    # The authors publish training pairs only; the notes that name 250 test pairs do not say which.
    "retinex_synthetic": Set(
        "Synthetic Image Pairs from Raw Images", "https://daooshee.github.io/BMVC2018website/",
        _UNSTATED + "; made from photographs of RAISE, which has terms of its own",
        {"train": ("syn/low", "syn/high"), "test": ("syn_test/low", "syn_test/high")},
        {"train": 1000, "test": 250}, optional=("test",)),
    "lol_v2_real": Set(
        "LOL-v2, Real_captured", _V2, _UNSTATED,
        {"train": ("Real_captured/Train/Low", "Real_captured/Train/Normal"),
         "test": ("Real_captured/Test/Low", "Real_captured/Test/Normal")},
        {"train": 689, "test": 100},  # low00001.png goes with normal00001.png, unless renamed
        match=functools.partial(by_name, drop=r"^(low|normal)(?=\d)")),
    "lol_v2_synthetic": Set(
        "LOL-v2, Synthetic", _V2, _UNSTATED,
        {"train": ("Synthetic/Train/Low", "Synthetic/Train/Normal"),
         "test": ("Synthetic/Test/Low", "Synthetic/Test/Normal")},
        {"train": 900, "test": 100}),
    "sice": Set(
        "SICE Part 1 and Part 2 with their labels", "https://github.com/csjcai/SICE", _UNSTATED,
        {"train": ("Dataset_Part1", "Dataset_Part1/Label"),
         "test": ("Dataset_Part2", "Dataset_Part2/Label")}, match=_exposures),
    "enlighten_unpaired": Set(
        "the unpaired training data", "https://github.com/VITA-Group/EnlightenGAN",
        _UNSTATED + ", which were collected from several data sets",
        {"trainA": ("trainA",), "trainB": ("trainB",), "testA": ("testA",), "testB": ("testB",)},
        {"trainA": 914, "trainB": 1016}, optional=("testA", "testB"), match=_single),
}


def folder() -> str:
    """Where prepared sets lie by default: LLJAX_DATA, or lljax/data in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.environ.get("LLJAX_DATA") or os.path.join(cache, "lljax", "data")


def instructions(name: str) -> str:
    """What to download for a set and which folders it must give, in one line."""
    wanted = SETS[name]
    needed = [path for split, paths in wanted.folders.items() if split not in wanted.optional
              for path in paths]
    return (f"download {wanted.title} from {wanted.page} and unpack it so that ROOT or "
            f"ROOT/{name} holds {', '.join(needed)} (terms: {wanted.terms})")


def files(name: str, root: str) -> dict[str, Listing]:
    """The splits that a downloaded set has.

    Args:
      name: of `SETS`.
      root: the folder that it was unpacked into, or one with a sub-folder of the set's name.

    Raises:
      InputError: a folder that the set must have is absent or has no pictures in it.
    """
    wanted = SETS[name]
    inside = os.path.join(root, name)
    base = inside if os.path.isdir(inside) else root
    present = {split: [os.path.isdir(os.path.join(base, path)) for path in paths]
               for split, paths in wanted.folders.items()}
    absent = [path for split, paths in wanted.folders.items()
              if split not in wanted.optional or any(present[split])
              for path, there in zip(paths, present[split], strict=True) if not there]
    if absent:
        raise InputError(f"{name}: {base} lacks {', '.join(absent)}; {instructions(name)}")
    found = {split: wanted.match(*(os.path.join(base, path) for path in paths))
             for split, paths in wanted.folders.items() if all(present[split])}
    for split, listing in found.items():
        if not (listing.entries or listing.lonely):
            raise InputError(f"{name}: no pictures in {' and '.join(wanted.folders[split])} of "
                             f"{base}; {instructions(name)}")
    return found


def prepare(name: str, root: str | None = None, prepared: str | None = None, report=print):
    """The TFDS builder of a set, prepared; an earlier preparation is used again.

    Args:
      name: of `SETS`.
      root: folder of the download; None if the set has been prepared before.
      prepared: folder to prepare it in, or that holds it; default `folder()`.
      report: called with a line when there is something to say.

    Raises:
      InputError: not prepared and no root, an incomplete download, pictures that cannot be read,
        lack a partner or differ in size from it, or a root whose files are not those that were
        prepared before.
    """
    prepared = os.path.abspath(os.path.expanduser(prepared or folder()))
    builder = _builder(name, prepared)
    if root is None:
        if not _is_prepared(builder):
            raise InputError(f"{name} is not prepared in {prepared}: {instructions(name)}, then "
                             f"run `lljax data prepare {name} --root ROOT`")
        return builder
    found = files(name, root)
    if _is_prepared(builder):
        if builder.info.metadata["files"] != _fingerprint(found):
            raise InputError(f"{name}: the files in {root} are not those prepared in "
                             f"{builder.data_dir}; remove that folder, or prepare elsewhere")
        return builder
    for split, listing in found.items():
        if listing.lonely:
            raise InputError(f"{name}: {len(listing.lonely)} pictures or scenes of {split} lack a "
                             f"partner, e.g. {listing.lonely[0]}; add or remove them (`lljax data "
                             f"check {name} --root {root}` lists them)")
        published = SETS[name].count.get(split, len(listing.entries))
        if len(listing.entries) != published:
            report(f"{name}: {split} has {len(listing.entries)} entries; the published set has "
                   f"{published}")
    sizes = ", ".join(f"{len(listing.entries)} {split}" for split, listing in found.items())
    report(f"preparing {name} ({sizes}) in {builder.data_dir}")
    _write(builder, root)
    return builder


def tables(name: str, split: str, **kwargs) -> list[Prepared]:
    """A set's split as `sources.open_tables` wants it: one table of pairs, or two without.

    Args:
      name: of `SETS`.
      split: "train" | "test".
      **kwargs: for `prepare`.

    Raises:
      InputError: as `prepare`, or the set has no such split.
    """
    parts = {split: {"low": "low", "high": "high"}}
    if not SETS[name].paired:
        parts = {split + "A": {"picture": "low"}, split + "B": {"picture": "high"}}
    builder = prepare(name, **kwargs)
    for part in parts:
        if part not in builder.info.splits:
            raise InputError(f"{name} has no {part} pictures: {builder.data_dir} was prepared "
                             f"without {' and '.join(SETS[name].folders.get(part, [part]))}; "
                             f"there is {', '.join(builder.info.splits)}")
    return [Prepared(builder, part, roles) for part, roles in parts.items()]


class Prepared(Sequence):
    """Records {role: uint8 [H, W, 3], ..., "name": str} of a prepared set.

    Args:
      builder: from `prepare`.
      split: one that it has.
      roles: stored feature -> role.
    """

    def __init__(self, builder, split: str, roles: dict[str, str]):
        import tensorflow_datasets as tfds
        # TFDS would decode with OpenCV where that is installed, whose JPEGs differ in last bits.
        skip = {feature: tfds.decode.SkipDecoding() for feature in builder.info.features
                if feature != "name"}
        self._source = builder.as_data_source(split, decoders=skip)
        self._roles = roles

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(index)
        record = self._source[index]
        return {"name": record["name"].decode(),
                **{role: _decode(record[feature]) for feature, role in self._roles.items()}}


def _decode(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def _encoded(path: str) -> tuple[bytes, tuple[int, ...]]:
    """The bytes that stand for a picture file, and its shape."""
    pixels = images.read_rgb(path)
    with open(path, "rb") as file:
        data = file.read()
    plain = data.startswith((b"\x89PNG", b"\xff\xd8\xff"))
    if not (plain and np.array_equal(_decode(data), pixels)):  # e.g. turned by its EXIF, or BMP
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        data = buffer.getvalue()
    return data, pixels.shape


def _examples(listing: Listing):
    """(key, example) of each entry, as TFDS wants them."""
    for name, paths in listing.entries:
        encoded = {feature: _encoded(path) for feature, path in paths.items()}
        if len({shape for _, shape in encoded.values()}) > 1:
            shown = ", ".join(f"{paths[feature]} is {shape[1]}x{shape[0]}"
                              for feature, (_, shape) in encoded.items())
            raise InputError(f"a pair's pictures differ in size: {shown}; make them equal or take "
                             "the pair out (`lljax data check` lists all such pairs)")
        yield name, {"name": name, **{feature: data for feature, (data, _) in encoded.items()}}


def _fingerprint(found: dict[str, Listing]) -> str:
    """Changes with the names and file sizes of a set, not with the folder that it lies in."""
    rows = [(split, name, *(os.path.getsize(path) for path in paths.values()))
            for split, listing in found.items() for name, paths in listing.entries]
    return hashlib.sha256(repr(rows).encode()).hexdigest()


def _write(builder, root: str) -> None:
    import tensorflow_datasets as tfds
    config = tfds.download.DownloadConfig(manual_dir=root)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS speaks of a download
            tfds.disable_progress_bar()
            builder.download_and_prepare(download_config=config)
    except OSError as error:
        # TFDS renames a finished folder into place: another process may have been first.
        if not _is_prepared(builder):
            raise InputError(f"cannot write {builder.data_dir} ({error.strerror}); prepare the set "
                             "elsewhere: LLJAX_DATA, or config.data.prepared") from error
        builder.info.read_from_directory(builder.data_dir)


def _is_prepared(builder) -> bool:
    """As TFDS's own, which warns if it is not."""
    return os.path.exists(os.path.join(builder.data_dir, "dataset_info.json"))


def _builder(name: str, prepared: str):
    try:
        return _builder_class()(config=name, data_dir=prepared, file_format="array_record")
    except OSError as error:
        raise InputError(f"{prepared}: no folder to keep prepared sets in ({error.strerror}); "
                         "choose another: LLJAX_DATA, or config.data.prepared") from error


@functools.cache
def _builder_class():
    """The one builder of all sets; TFDS is imported by those who use it."""
    import tensorflow_datasets as tfds

    class LowLight(tfds.core.GeneratorBasedBuilder):
        """Low-light pictures with references, or well-lit pictures beside them."""

        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name, description=row.title)
                           for name, row in SETS.items()]
        # Where TFDS would look for checksums of downloads; there are none. To find out by itself
        # it needs importlib_resources, which it does not install.
        code_path = None

        @property
        def MANUAL_DOWNLOAD_INSTRUCTIONS(self):  # noqa: N802 (TFDS's name)
            return instructions(self.builder_config.name)

        def _info(self):
            row = SETS[self.builder_config.name]
            picture = tfds.features.Image(shape=(None, None, 3))
            return tfds.core.DatasetInfo(
                builder=self, description=f"{row.title}. Terms: {row.terms}.", homepage=row.page,
                features=tfds.features.FeaturesDict({
                    "name": tfds.features.Text(), **{key: picture for key in row.features}}),
                disable_shuffling=True,  # in order of the names, so that "the first n" means them
                metadata=tfds.core.MetadataDict(files=""))

        def _split_generators(self, dl_manager):
            found = files(self.builder_config.name, os.fspath(dl_manager.manual_dir))
            self.info.metadata["files"] = _fingerprint(found)
            return {split: _examples(listing) for split, listing in found.items()}

        def _generate_examples(self):
            raise NotImplementedError("the generators come from _split_generators")

    return LowLight
