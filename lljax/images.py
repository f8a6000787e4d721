"""Picture files: the only place that knows 255, EXIF orientation and file formats.

Choices, in one place:

* Grey in, grey out: the enhanced colours are reduced to BT.601 luma (what mode "L" means).
* Alpha is carried through unchanged. A palette becomes RGB (RGBA if it has a transparent entry);
  a transparent colour becomes an alpha channel. CMYK becomes RGB, without its (CMYK) profile.
* Orientation is applied once and its tag set to 1. EXIF is otherwise kept byte for byte, less the
  embedded thumbnail, which would show the old picture. TIFF keeps its descriptive tags.
* XMP is kept likewise where the format holds it (not GIF, BMP, PPM), and a PNG's text in a PNG.
* Written formats: PNG, TIFF, BMP and PPM lose nothing, JPEG is quality 95 with 4:4:4 colour, WebP
  quality 95, AVIF quality 95 with 4:4:4 colour; GIF is reduced to 256 colours because it holds no
  more. The suffix decides what is written, the content what is read.
* 16 bits a channel stay 16 bits, in PNG and TIFF, grey and colour, with and without alpha (grey
  with alpha becomes RGBA in a TIFF). What Pillow would cut to 8 bits without a word is refused
  rather than degraded: TIFFs in separate planes or CMYK, PPM, AVIF.
* HEIC (`pip install 'lljax[heif]'`) is read at 8 bits, 10 and 12 rounded, and gives a JPEG: what
  phones and cameras make of it themselves when they share it. libheif has applied its
  orientation. Of several pictures the primary one is meant.
* RAW (`pip install 'lljax[raw]'`) gives a 16-bit TIFF, what a RAW developer writes. It is
  demosaicked with the camera's white balance into sRGB. LibRaw's automatic brightening is off: it
  stretches every picture by its own histogram, so that the frames of one series would differ, and
  brightening is what the networks are for.

PNG and TIFF are deflated by run lengths: a quarter to a seventh of the time that matches
take, for files of photographs that are 7 % smaller (16 bits) to 4 % larger (8 bits).

16-bit colour needs no library beside Pillow, whose decoders read all bits and whose unpackers then
drop half of them: a second pass with the other byte order gives that half (`_read_deep`).
OpenCV (60 MB, with an LGPL FFmpeg) and imagecodecs (26 MB) would lose the metadata, and pypng
decodes in pure Python.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import os
import re
import secrets
import struct
import sys
import types
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import IO

import numpy as np
from PIL import Image, PngImagePlugin, TiffImagePlugin, features

from lljax.errors import InputError, unknown

FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".bmp": "BMP", ".tif": "TIFF",
           ".tiff": "TIFF", ".webp": "WEBP", ".gif": "GIF", ".ppm": "PPM", ".pgm": "PPM",
           ".avif": "AVIF"}  # what is read and written
HEIF = frozenset({".heic", ".heif", ".hif"})
# What is taken for a video by its name: FFmpeg decides whether it is one.
VIDEOS = frozenset({".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg",
                    ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv", ".y4m"})
RAW = frozenset({".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".iiq", ".kdc",
                 ".mef", ".mos", ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2",
                 ".rwl", ".sr2", ".srf", ".srw", ".x3f"})
READABLE = frozenset({*FORMATS, *HEIF, *RAW})

MARK = "lljax"  # keyword of a PNG's text that says what lljax made it for; not handed on

_GREY = ("1", "L", "LA", "La", "I;16", "I;16L", "I;16B")
_LUMA = np.float32([0.299, 0.587, 0.114])
_ORIENTATION = 0x0112
_TURNS = {2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.swapaxes(0, 1),
          6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 8: np.rot90}
# ImageDescription, Make, Model, Software, DateTime, Artist, Copyright: a TIFF's other tags
# describe how its pixels are stored, which is decided anew.
_TIFF_TAGS = (270, 271, 272, 305, 306, 315, 33432)
_EXIF_IFD, _GPS_IFD, _MAKER_NOTE = 0x8769, 0x8825, 0x927C
_SUBFILE, _BITS, _PHOTOMETRIC, _PLANAR, _SUB_IFDS, _DNG = 254, 258, 262, 284, 330, 50706
_MOSAIC = 32803  # as photometric interpretation: one colour a pixel
_TIFF_MAGIC = (b"II*\0", b"MM\0*")
# Contents that are no camera's RAW, whatever the file is called. (RAW files look like TIFFs.)
_NOT_RAW = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM")
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"mif2"}
# What Pillow and libheif raise for damaged files and metadata, found by damaging some.
_DAMAGE = (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, RuntimeError,
           struct.error, zlib.error)
_HDR_TRANSFERS = {16: "PQ", 18: "HLG"}  # ITU-T H.273
_STRIP = 1 << 20  # bytes of pixels that are filtered and compressed at a time
_XMP_TAG = 700
_XMP_FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "AVIF")
_XMP_HEAD = b"http://ns.adobe.com/xap/1.0/\0"  # of its segment in a JPEG
_XMP_IN_JPEG = 65533 - len(_XMP_HEAD)  # bytes
_XMP_KEY = "XML:com.adobe.xmp"  # of a PNG's text
# ImageMagick's way to keep EXIF and XMP as hexadecimal text. As such they would say the old
# orientation, which programs heed.
_HEX_KEYS = tuple(f"Raw profile type {kind}" for kind in ("exif", "APP1", "xmp"))

# `read` has limits of its own, and up to twice Pillow's, where it refuses, it only warns.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", "Corrupt EXIF data|Metadata Warning", UserWarning)  # see _upright


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture and what writing it back needs.

    Attributes:
      pixels: uint8 or uint16 [H, W, 3], RGB (grey: three equal channels), upright.
      alpha: same dtype [H, W], or None.
      mode: the file's Pillow mode; decides whether grey or colour is written.
      format: the Pillow format that it is written in if no suffix says otherwise: the file's own,
        "JPEG" for HEIC, "TIFF" for RAW.
      icc: ICC profile, or None.
      exif: EXIF block beginning with "Exif", orientation 1; empty if there is none.
      dpi: dots per inch (x, y), or None.
      compression: "raw" for a TIFF that is not compressed and stays so, or None.
      xmp: XMP packet (UTF-8), orientation 1, without thumbnails; empty if there is none.
      text: a PNG's text chunks by keyword, without those that hold EXIF or XMP and without
        `MARK`.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    mode: str = "RGB"
    format: str = "PNG"
    icc: bytes | None = None
    exif: bytes = b""
    dpi: tuple[float, float] | None = None
    compression: str | None = None
    xmp: bytes = b""
    text: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def grey(self) -> bool:
        """Whether it is written as grey."""
        return self.mode in _GREY


def read(file: str | os.PathLike | IO[bytes], name: str | None = None, *,
         max_pixels: int | None = None) -> Picture:
    """Reads a picture.

    Args:
      file: a path, or a binary file object (an upload, `sys.stdin.buffer`), which is read from its
        beginning and left open. The content decides what it is, and the suffix only for RAW.
      name: what errors call it, and whose suffix may be that of a RAW; default: the path, or a
        file object's own name.
      max_pixels: more than these are refused before any are decoded; default, and most: twice
        `PIL.Image.MAX_IMAGE_PIXELS`, 179 megapixels.

    Raises:
      InputError: missing, empty, damaged or no picture, several frames, too many pixels, more bits
        a channel than can be kept, or a kind that needs an optional part which is not installed.
    """
    if isinstance(file, str | os.PathLike):
        path = os.fspath(file)
        name = name or path
        try:
            with open(path, "rb") as stream:
                return _read(stream, name, max_pixels)
        except FileNotFoundError:
            raise InputError(f"{name}: {_missing(path, 'no such file')}") from None
        except IsADirectoryError:
            raise InputError(f"{name}: is a folder; name a picture in it") from None
        except PermissionError:
            raise InputError(f"{name}: permission to read it is denied") from None
        except OSError as error:
            raise InputError(f"{name}: cannot be read ({error.strerror})") from error
    name = name or str(getattr(file, "name", None) or "picture")
    return _read(file if file.seekable() else io.BytesIO(file.read()), name, max_pixels)


def read_rgb(path: str | os.PathLike) -> np.ndarray:
    """Reads a picture file as uint8 RGB [H, W, 3], upright; alpha is dropped, 16 bits rounded.

    Raises:
      InputError: as `read`.
    """
    pixels = read(path).pixels
    return pixels if pixels.dtype == np.uint8 else to_uint(to_float(pixels), np.uint8)


def write(path: str | os.PathLike, picture: Picture, *, replace: bool = True) -> None:
    """Writes a picture file, whole or not at all, in the format of the path's suffix.

    Args:
      path: output file. A suffix that is not in `FORMATS` keeps the picture's own format.
      picture: what to write.
      replace: whether an existing file is replaced.

    Raises:
      InputError: as `beside`; the format cannot be written or cannot hold it (alpha or 16 bits),
        or the folder cannot be written.
    """
    path = os.fspath(path)
    suffix = os.path.splitext(path)[1].lower()
    if suffix in HEIF | RAW:
        raise InputError(f"{path}: {suffix} can be read but not written; write a "
                         f"{os.path.splitext(output_name(path))[1]}")
    form = FORMATS.get(suffix, picture.format)
    _check_fit(picture, form, path)
    try:
        with atomic(path, replace) as file:
            _save(file, picture, form)
    except InputError:
        raise
    except _DAMAGE as error:
        reason = getattr(error, "strerror", None) or error  # without the temporary name
        raise InputError(f"{path}: cannot be written ({reason})") from error


def encode(picture: Picture, form: str, name: str = "picture") -> bytes:
    """The bytes of a picture file, for a stream or a download.

    Args:
      picture: what to write.
      form: a Pillow format of `FORMATS`, e.g. "PNG", or `picture.format`.
      name: what errors call it.

    Raises:
      InputError: an unknown format, or one that cannot hold the picture (alpha or 16 bits).
    """
    if form not in FORMATS.values():
        raise unknown("picture format", form, set(FORMATS.values()))
    _check_fit(picture, form, name)
    buffer = io.BytesIO()
    try:
        _save(buffer, picture, form)
    except _DAMAGE as error:
        raise InputError(f"{name}: cannot be written as {form} ({error})") from error
    return buffer.getvalue()


def output_name(name: str) -> str:
    """The name of the result of an input of that name: HEIC gives .jpg, RAW .tif, others theirs."""
    stem, suffix = os.path.splitext(name)
    suffix = suffix.lower()
    return stem + ".jpg" if suffix in HEIF else stem + ".tif" if suffix in RAW else name


@contextlib.contextmanager
def atomic(path: str | os.PathLike, replace: bool = True) -> Iterator[IO[bytes]]:
    """Opens a file that takes the name `path` only when the block ends without an error.

    Args:
      path: as of `beside`.
      replace: as of `beside`.

    Yields:
      A binary file as `beside` names it.

    Raises:
      InputError: as `beside`.
    """
    with beside(path, replace) as temporary, open(temporary, "xb") as file:
        yield file


@contextlib.contextmanager
def beside(path: str | os.PathLike, replace: bool = True) -> Iterator[str]:
    """A name for a file that takes the name `path` only when the block ends without an error.

    A file that it replaces hands on its permissions, and goes only when the new one is on the disk.

    Args:
      path: the name.
      replace: whether a file that has that name, or a link, gives way; else it stays, even if it
        came while the block was at work.

    Yields:
      The path of a file in the same folder, which the block is to write; it is removed if the
      block fails. It is short: the name may be as long as the system allows.

    Raises:
      InputError: with `replace` False, there is something of that name.
    """
    path = os.fspath(path)
    temporary = os.path.join(os.path.dirname(path), f".lljax-{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        if not replace:
            _name(temporary, path)
            return
        if os.path.exists(path):
            os.chmod(temporary, os.stat(path).st_mode & 0o7777)
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):  # it may not have been made
            os.remove(temporary)
        raise


def _name(temporary: str, path: str) -> None:
    """Gives a file a name that nothing has."""
    try:
        try:
            os.link(temporary, path)  # unlike renaming it fails if the name is taken
        except FileExistsError:
            raise
        except OSError:
            # No links on this file system (FAT, some of networks). An empty file takes the name,
            # which fails likewise, and is replaced: who looks between the two sees it empty.
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            _replace_empty(temporary, path)
        else:
            os.remove(temporary)
    except FileExistsError:
        raise InputError(f"{path} exists already; --overwrite replaces it") from None


def _replace_empty(temporary: str, path: str) -> None:
    try:
        os.replace(temporary, path)
    except BaseException:
        os.remove(path)
        raise


@dataclasses.dataclass(frozen=True)
class Found:
    """What files and folders hold.

    Attributes:
      pictures: (file, name) pairs in sorted order within each path; `name` is relative to the
        folder given, or the file's own name.
      videos: files in the folders whose suffixes are those of `VIDEOS`.
      others: files in the folders of other suffixes.
      unread: (folder, reason) of those that could not be searched.
    """

    pictures: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    videos: list[str] = dataclasses.field(default_factory=list)
    others: list[str] = dataclasses.field(default_factory=list)
    unread: list[tuple[str, str]] = dataclasses.field(default_factory=list)


def search(paths: Iterable[str | os.PathLike], recursive: bool = True) -> Found:
    """Looks for pictures among files and folders.

    Args:
      paths: files (taken for pictures whatever their suffix) and folders (searched for the
        suffixes of `READABLE`, upper or lower case; names that begin with a dot are skipped).
      recursive: whether to search sub-folders.

    Raises:
      InputError: a path that does not exist.
    """
    found = Found()
    for path in map(os.fspath, paths):
        if os.path.isdir(path):
            _walk(path, recursive, found)
        elif os.path.exists(path):
            found.pictures.append((path, os.path.basename(path)))
        else:
            raise InputError(f"{path}: {_missing(path, 'no such file or folder')}")
    return found


def find(paths: Iterable[str | os.PathLike], recursive: bool = True) -> list[tuple[str, str]]:
    """The pictures that `search` finds.

    Raises:
      InputError: a path that does not exist, or a folder that cannot be searched.
    """
    found = search(paths, recursive)
    if found.unread:
        raise InputError(unsearched(*found.unread[0]))
    return found.pictures


def unsearched(folder: str, reason: str) -> str:
    """The message for an entry of `Found.unread`."""
    return f"{folder}: cannot be searched ({reason}); change its permissions, or leave it out"


def mark(path: str | os.PathLike) -> str | None:
    """What a PNG says that lljax made it for, see `MARK`; None of any other file."""
    try:
        with Image.open(path, formats=["PNG"]) as im:
            return im.info.get(MARK)
    except (*_DAMAGE, Image.DecompressionBombError):
        return None


def dangling(path: str | os.PathLike) -> str | None:
    """Where a link leads that leads nowhere; None for anything else."""
    return os.readlink(path) if os.path.islink(path) and not os.path.exists(path) else None


def to_float(pixels: np.ndarray) -> np.ndarray:
    """uint8 or uint16 -> float32 in [0, 1], same shape.

    Raises:
      ValueError: another dtype.
    """
    return pixels.astype(np.float32) / np.float32(_top(pixels.dtype))


def to_uint(pixels: np.ndarray, dtype: np.dtype | type = np.uint8) -> np.ndarray:
    """Float pixels -> the integers that a user gets: clipped to [0, 1], scaled, rounded.

    Halves go to the even neighbour (as numpy, JAX and torch round). Evaluation scores these.

    Args:
      pixels: float array, nominally [0, 1].
      dtype: uint8 or uint16.

    Raises:
      ValueError: another dtype, or a value that is not a number.
    """
    top = _top(np.dtype(dtype))
    if np.isnan(pixels).any():
        raise ValueError("the picture has values that are not numbers (NaN)")
    return np.rint(np.clip(pixels, 0, 1) * np.float32(top)).astype(dtype)


def from_pil(image: Image.Image) -> Picture:
    """A Pillow image as it lies in memory: orientation tags are not applied, metadata not read.

    Raises:
      InputError: a mode whose pixels have no 8- or 16-bit form (32-bit integers, floats).
    """
    pixels, alpha = _channels(image, "picture")
    return Picture(pixels, alpha, image.mode)


def to_pil(picture: Picture) -> Image.Image:
    """The picture as a Pillow image: L, LA, RGB, RGBA or I;16.

    Raises:
      InputError: 16 bits in colour or with alpha, which Pillow cannot hold.
    """
    stored = _stored(picture)
    if stored.dtype == np.uint16 and stored.ndim == 3:
        raise InputError("a Pillow image holds 16 bits a channel in grey without alpha only; use "
                         "lljax.images.write or encode")
    return Image.fromarray(stored)


def drawing(pixels: np.ndarray) -> Picture:
    """A uint8 array [H, W, 1 or 3] as a picture, grey or RGB."""
    grey = pixels.shape[-1] == 1
    return Picture(np.repeat(pixels, 3, axis=2), None, "L") if grey else Picture(pixels)


def pad(pixels: np.ndarray, bottom: int, right: int) -> np.ndarray:
    """Extends a picture below and to the right.

    Args:
      pixels: [H, W, C].
      bottom: rows to add.
      right: columns to add.

    Returns:
      [H + bottom, W + right, C]; an axis is mirrored without repeating the edge, or, where it is
      too short for that, continued with its last value.
    """
    for axis, extra in enumerate((bottom, right)):
        if extra:
            widths = [(0, 0)] * pixels.ndim
            widths[axis] = (0, extra)
            pixels = np.pad(pixels, widths, "reflect" if extra < pixels.shape[axis] else "edge")
    return pixels


def crop(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """The top left [..., height, width, C] of [..., H, W, C]: undoes `pad`."""
    return pixels[..., :height, :width, :]


def _top(dtype: np.dtype) -> int:
    """The integer that stands for 1.0."""
    tops = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}
    if dtype not in tops:
        raise ValueError(f"pixels of dtype {dtype}; expected uint8 or uint16")
    return tops[dtype]


def _missing(path: str, otherwise: str) -> str:
    """Why there is nothing at a path."""
    target = dangling(path)
    return otherwise if target is None else f"a link to {target}, which does not exist"


def _walk(folder: str, recursive: bool, found: Found) -> None:
    def unread(error):
        found.unread.append((error.filename, error.strerror))

    for here, folders, files in os.walk(folder, onerror=unread):
        folders[:] = sorted(f for f in folders if f[0] != ".") if recursive else []
        for name in sorted(name for name in files if name[0] != "."):
            file, suffix = os.path.join(here, name), os.path.splitext(name)[1].lower()
            if suffix in READABLE:
                found.pictures.append((file, os.path.relpath(file, folder)))
            else:
                (found.videos if suffix in VIDEOS else found.others).append(file)


def _read(file: IO[bytes], name: str, max_pixels: int | None) -> Picture:
    """`read` of a file that can be searched; closes nothing."""
    file.seek(0)
    head = file.read(1 << 16)
    if not head:
        raise InputError(f"{name}: the file is empty")
    file.seek(0)
    suffix = os.path.splitext(name)[1].lower()
    brands = _brands(head)
    if brands & _AVIF_BRANDS:
        _check_avif(head, name)
    elif brands & _HEIF_BRANDS:
        return _read_heif(file, name, max_pixels)
    elif b"crx " in brands or suffix in RAW and not head.startswith(_NOT_RAW):
        return _read_raw(file, name, max_pixels)
    try:
        if head.startswith(_TIFF_MAGIC) and _is_camera(file, head):
            return _read_raw(file, name, max_pixels)
        with Image.open(file, formats=sorted(set(FORMATS.values()))) as im:
            _check_size(*im.size, name, max_pixels)
            # MPO is a JPEG with a camera's extras behind it; its first frame is the picture.
            if im.format != "MPO" and getattr(im, "n_frames", 1) > 1:
                raise InputError(f"{name}: has {im.n_frames} frames or pages, and all but the "
                                 "first would be lost; split it into single pictures first")
            layout = _deep_layout(im, name)
            if layout:
                _retile(im, swap=False)
            im.load()  # before the EXIF is read: Pillow turns TIFFs here, and PNG keeps it last
            if layout:
                mode = "LA" if layout.startswith("LA") else im.mode
                return _picture(im, mode, *_read_deep(file, im, layout))
            return _picture(im, im.mode, *_channels(im, name))
    except Image.UnidentifiedImageError:
        if head.startswith(_TIFF_MAGIC):
            raise InputError(f"{name}: a TIFF whose pixels are stored in an unusual way, or "
                             "damaged; save it as grey or RGB of 8 or 16 bits first") from None
        raise InputError(f"{name}: not a picture in a known format "
                         f"({', '.join(sorted(set(FORMATS.values())))}, HEIC, RAW)") from None
    except Image.DecompressionBombError:
        raise _too_large(name, 2 * Image.MAX_IMAGE_PIXELS) from None
    except InputError:
        raise
    except _DAMAGE as error:
        raise _damaged(name, error) from error


def _damaged(name: str, error: Exception | str) -> InputError:
    text = " ".join(str(error).split()) or type(error).__name__
    return InputError(f"{name}: cannot be read ({text}); the file is damaged or incomplete, get a "
                      "new copy")


def _too_large(name: str, limit: int) -> InputError:
    return InputError(f"{name}: more than {limit:,} pixels; cut or shrink it first")


def _check_size(width: int, height: int, name: str, max_pixels: int | None) -> None:
    for limit in (max_pixels, Image.MAX_IMAGE_PIXELS and 2 * Image.MAX_IMAGE_PIXELS):
        if limit is not None and width * height > limit:
            raise _too_large(name, limit)


def _brands(head: bytes) -> set[bytes]:
    """What an ISO base media file (HEIC, AVIF, CR3) says that it is; empty for other files."""
    if head[4:8] != b"ftyp":
        return set()
    (size,) = struct.unpack_from(">I", head)
    return {head[8:12], *(head[at:at + 4] for at in range(16, min(size, len(head)), 4))}


def _check_avif(head: bytes, name: str) -> None:
    """Refuses what Pillow cannot read, or would cut to 8 bits."""
    if not features.check("avif"):
        raise InputError(f"{name}: this build of Pillow reads no AVIF; pip install -U pillow")
    at = head.find(b"av1C")  # the codec's settings; the 7th bit of their 3rd byte: above 8 bits
    if at >= 0 and len(head) > at + 6 and head[at + 6] & 0x40:
        raise InputError(f"{name}: an AVIF of 10 or 12 bits a channel, of which only 8 could be "
                         "kept; convert it to a 16-bit PNG, or to 8 bits, first")


def _optional(module: str, extra: str, kind: str, name: str) -> types.ModuleType:
    """An optional package, imported."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(f"{name}: {kind} pictures need {module}: "
                         f"pip install 'lljax[{extra}]'") from None


def _read_heif(file: IO[bytes], name: str, max_pixels: int | None) -> Picture:
    pi_heif = _optional("pi_heif", "heif", "HEIC", name)
    try:
        heif = pi_heif.open_heif(file)
        _check_size(*heif.size, name, max_pixels)
        transfer = heif.info.get("nclx_profile", {}).get("transfer_characteristics")
        if transfer in _HDR_TRANSFERS:
            raise InputError(f"{name}: an HDR picture ({_HDR_TRANSFERS[transfer]}), whose values "
                             "are not sRGB's; export it as SDR first")
        im = heif.to_pillow()
        exif = _upright(im.info.get("exif") or b"")
        return Picture(*_channels(im, name), im.mode, "JPEG", im.info.get("icc_profile"), exif,
                       xmp=_upright_xmp(im.info.get("xmp")))
    except InputError:
        raise
    except _DAMAGE as error:
        raise _damaged(name, error) from error


def _is_camera(file: IO[bytes], head: bytes) -> bool:
    """Whether a TIFF is a camera's RAW, of which Pillow would show the preview."""
    tags = TiffImagePlugin.ImageFileDirectory_v2(head[:8])
    file.seek(tags.next)
    tags.load(file)
    small = tags.get(_SUBFILE) == 1 and _SUB_IFDS in tags
    return _DNG in tags or tags.get(_PHOTOMETRIC) == _MOSAIC or small or head[8:10] == b"CR"


def _read_raw(file: IO[bytes], name: str, max_pixels: int | None) -> Picture:
    rawpy = _optional("rawpy", "raw", "RAW", name)
    file.seek(0)
    try:
        with rawpy.imread(file) as raw:
            _check_size(raw.sizes.width, raw.sizes.height, name, max_pixels)
            pixels = raw.postprocess(
                output_bps=16, output_color=rawpy.ColorSpace.sRGB, gamma=(2.4, 12.92),
                use_camera_wb=True, no_auto_bright=True)
            exif = _raw_exif(file, rawpy, raw)
    except rawpy.LibRawFileUnsupportedError:
        raise InputError(f"{name}: not a RAW file that LibRaw {_version(rawpy)} can read") from None
    except rawpy.LibRawError as error:
        raise _damaged(name, error.args[0].decode()) from error  # bytes
    except InputError:
        raise
    except _DAMAGE as error:  # of the EXIF
        raise _damaged(name, error) from error
    grey = pixels.shape[2] == 1
    return Picture(np.repeat(pixels, 3, axis=2) if grey else pixels, None,
                   "I;16" if grey else "RGB", "TIFF", exif=exif)


def _version(rawpy: types.ModuleType) -> str:
    return ".".join(map(str, rawpy.libraw_version))


def _raw_exif(file: IO[bytes], rawpy: types.ModuleType, raw) -> bytes:
    """The descriptive tags of a RAW, as far as it is a TIFF or holds a JPEG; else nothing."""
    file.seek(0)
    if file.read(4) in _TIFF_MAGIC:
        exif = Image.Exif()
        file.seek(0)
        exif.load_from_fp(file)
        exif.get_ifd(_EXIF_IFD).pop(_MAKER_NOTE, None)  # its offsets point into the RAW file
        return _tiff_exif(exif)
    try:
        preview = raw.extract_thumb()
    except (rawpy.LibRawNoThumbnailError, rawpy.LibRawUnsupportedThumbnailError):
        return b""
    if preview.format != rawpy.ThumbFormat.JPEG:
        return b""
    with Image.open(io.BytesIO(preview.data), formats=["JPEG"]) as im:
        return _upright(im.info.get("exif", b""))


def _layout(tile) -> str:
    """The raw mode of a Pillow tile: how its pixels lie in the file."""
    return tile.args if isinstance(tile.args, str) else tile.args[0]


def _deep_layout(im: Image.Image, name: str) -> str | None:
    """The raw mode of an image of 16 bits a channel in colour or with alpha; None for others.

    Raises:
      InputError: more than 8 bits that Pillow would cut on loading, of a kind that `_read_deep`
        does not read either.
    """
    if im.format == "TIFF":
        deep = max(im.tag_v2.get(_BITS, (1,))) > 8
    elif im.format == "PPM":
        deep = im.mode != "1" and any(isinstance(value, int) and value > 255
                                      for tile in im.tile for value in tile.args[1:])
    else:
        deep = im.format == "PNG" and any(";16" in _layout(tile) for tile in im.tile)
    if not deep or im.mode.startswith("I;16") or im.mode in ("I", "F"):
        return None
    planes = im.format == "TIFF" and im.tag_v2.get(_PLANAR, 1) != 1
    if im.format not in ("PNG", "TIFF") or im.mode not in ("RGB", "RGBA") or planes:
        kind = "in separate planes" if planes else f"in mode {im.mode} as {im.format}"
        raise InputError(f"{name}: has 16 bits a channel {kind}, of which only 8 could be kept; "
                         "convert it to a 16-bit PNG, or to 8 bits, first")
    return _layout(im.tile[0])


def _retile(im: Image.Image, swap: bool) -> None:
    """Has a 16-bit image that is not loaded yet unpacked into the upper bytes of its values.

    Args:
      im: the image; TIFF's associated alpha is left in its colours, which Pillow would otherwise
        divide by it, each half by itself.
      swap: into the lower bytes.
    """
    native = "L" if sys.byteorder == "little" else "B"
    tiles = []
    for tile in im.tile:
        mode, order = _layout(tile).replace("RGBa", "RGBA").split(";16")
        order = native if order == "N" else order
        if swap:
            order = "B" if order == "L" else "L"
        layout = f"{mode};16{order}"
        args = layout if isinstance(tile.args, str) else (layout, *tile.args[1:])
        tiles.append(tile._replace(args=args))
    im.tile = tiles


def _read_deep(file: IO[bytes], im: Image.Image,
               layout: str) -> tuple[np.ndarray, np.ndarray | None]:
    """(RGB pixels, alpha or None), uint16, of a 16-bit PNG or TIFF in colour or with alpha.

    Pillow decodes all bits and unpacks the upper half of each value. With the byte order turned
    round it takes the lower half for the upper, so two passes give both. For grey with alpha it
    has one order only; but those 4 bytes a pixel are also what an 8-bit RGBA has.

    Args:
      file: the file, for the second pass.
      im: the same, loaded after `_retile`.
      layout: its raw mode in the file.
    """
    if layout.startswith("LA"):
        file.seek(0)
        with Image.open(_as_rgba(file.read()), formats=["PNG"]) as four:
            return _deep_channels(np.asarray(four).view(">u2").astype(np.uint16), im)
    deep = np.asarray(im).astype(np.uint16) << 8
    with Image.open(file, formats=[im.format]) as other:
        _retile(other, swap=True)
        deep |= np.asarray(other)
    if layout.startswith("RGBa"):
        alpha = deep[:, :, 3:].astype(np.uint32)
        colours = (deep[:, :, :3] * np.uint32(65535) + alpha // 2) // np.maximum(alpha, 1)
        deep[:, :, :3] = np.minimum(colours, 65535)
    return _deep_channels(deep, im)


def _as_rgba(png: bytes) -> io.BytesIO:
    """A 16-bit grey + alpha PNG whose header says 8-bit RGBA: the same bytes a pixel."""
    header = b"IHDR" + png[16:24] + b"\x08\x06" + png[26:29]
    return io.BytesIO(png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:])


def _deep_grey(im: Image.Image) -> np.ndarray:
    """uint16 [H, W] of a loaded image of mode I;16."""
    grey = np.asarray(im).astype(np.uint16)
    tags = getattr(im, "tag_v2", {})  # a TIFF's; Pillow turns 8-bit negatives, but not these
    if tags.get(_BITS) == (12,):
        grey = grey << 4 | grey >> 8
    return 65535 - grey if tags.get(_PHOTOMETRIC) == 0 else grey


def _deep_channels(deep: np.ndarray, im: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """(RGB [H, W, 3], alpha [H, W] or None) of 16-bit pixels [H, W, 1 to 4] as they are stored."""
    alpha = None
    if deep.shape[2] in (2, 4):
        deep, alpha = deep[:, :, :-1], np.ascontiguousarray(deep[:, :, -1])
    elif "transparency" in im.info:
        clear = (deep == np.uint16(im.info["transparency"])).all(2)
        alpha = np.where(clear, np.uint16(0), np.uint16(65535))
    return np.ascontiguousarray(np.broadcast_to(deep, (*deep.shape[:2], 3))), alpha


def _stored(picture: Picture) -> np.ndarray:
    """The pixels as a file holds them: [H, W] if grey, else [H, W, C] with the alpha last."""
    pixels = picture.pixels
    if picture.grey:
        luma = pixels.astype(np.float32) @ _LUMA
        pixels = np.rint(luma).clip(0, _top(pixels.dtype)).astype(pixels.dtype)
    return pixels if picture.alpha is None else np.dstack([pixels, picture.alpha])


def _check_fit(picture: Picture, form: str, name: str) -> None:
    """Refuses a format that would drop something."""
    if picture.alpha is not None and form in ("JPEG", "PPM"):
        raise InputError(f"{name}: {form} cannot hold the alpha channel; write a PNG")
    if picture.pixels.dtype == np.uint16 and form not in ("PNG", "TIFF"):
        raise InputError(f"{name}: {form} cannot hold 16 bits a channel; write a PNG or TIFF")


def _save(file: IO[bytes], picture: Picture, form: str) -> None:
    stored = _stored(picture)
    if form == "TIFF":
        return _save_tiff(file, picture, stored)
    if stored.dtype == np.uint16 and stored.ndim == 3:
        return _save_deep_png(file, picture, stored)
    options = _metadata(picture, form)
    if form == "PNG":
        options |= {"compress_type": zlib.Z_RLE}
    elif form == "JPEG":
        options |= {"quality": 95, "subsampling": 0}
    elif form == "WEBP":
        options |= {"quality": 95}
    elif form == "AVIF":
        # Speed 9 of 10 takes a fifteenth of the time of the default, 6, for files of equal size.
        options |= {"quality": 95, "subsampling": "4:4:4", "speed": 9}
    Image.fromarray(stored).save(file, form, **options)


def _metadata(picture: Picture, form: str) -> dict:
    """Pillow's options for what is no pixel, as far as the format holds it."""
    options = {}
    if picture.icc:
        options["icc_profile"] = picture.icc
    if picture.exif:
        options["exif"] = picture.exif
    if picture.dpi and min(picture.dpi) > 1:
        options["dpi"] = picture.dpi
    if form == "PNG":
        options["pnginfo"] = _png_text(picture)
    elif picture.xmp and form in _XMP_FORMATS and (
            form != "JPEG" or len(picture.xmp) <= _XMP_IN_JPEG):
        options["xmp"] = picture.xmp
    return options


def _png_text(picture: Picture) -> PngImagePlugin.PngInfo:
    chunks = PngImagePlugin.PngInfo()
    for key, value in picture.text.items():
        chunks.add_text(key, value)  # not deflated: Pillow inflates no more than 1 MiB
    if picture.xmp:
        chunks.add_itxt(_XMP_KEY, picture.xmp)
    return chunks


def _bands(stored: np.ndarray) -> Iterator[np.ndarray]:
    rows = max(1, _STRIP // stored[0].nbytes)
    return (stored[top:top + rows] for top in range(0, len(stored), rows))


def _save_deep_png(file: IO[bytes], picture: Picture, stored: np.ndarray) -> None:
    """Writes uint16 [H, W, 2 to 4] as PNG, each row filtered by its left neighbours ("Sub")."""
    height, width, channels = stored.shape
    small = io.BytesIO()  # Pillow's own metadata chunks, taken from a picture of one pixel
    Image.new("RGB", (1, 1)).save(small, "PNG", **_metadata(picture, "PNG"))
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    file.write(small.getvalue()[:8])
    _chunk(file, b"IHDR", header)
    for kind, data in _chunks(small.getvalue()):
        if kind not in (b"IHDR", b"IDAT", b"IEND"):
            _chunk(file, kind, data)
    deflater = zlib.compressobj(strategy=zlib.Z_RLE)
    for band in _bands(stored):
        raw = band.astype(">u2").view(np.uint8).reshape(len(band), -1)
        rows = np.empty((len(band), raw.shape[1] + 1), np.uint8)
        rows[:, 0] = 1
        rows[:, 1:] = raw
        rows[:, 1 + 2 * channels:] -= raw[:, :-2 * channels]
        if data := deflater.compress(rows):
            _chunk(file, b"IDAT", data)
    _chunk(file, b"IDAT", deflater.flush())
    _chunk(file, b"IEND", b"")


def _chunk(file: IO[bytes], kind: bytes, data: bytes) -> None:
    """Writes a chunk of a PNG."""
    file.write(struct.pack(">I", len(data)) + kind)
    file.write(data)
    file.write(struct.pack(">I", zlib.crc32(data, zlib.crc32(kind))))


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 8
    while at < len(png):
        (size,) = struct.unpack_from(">I", png, at)
        yield png[at + 4:at + 8], png[at + 8:at + 8 + size]
        at += 12 + size


def _save_tiff(file: IO[bytes], picture: Picture, stored: np.ndarray) -> None:
    """Writes a little-endian TIFF, deflated unless it came raw.

    Pillow's own writer knows no 16 bits in colour, and through libtiff fails where there are EXIF
    tags beyond the first directory.
    """
    if stored.ndim == 2:
        stored = stored[:, :, None]
    elif stored.shape[2] == 2 and stored.dtype == np.uint16:
        stored = stored[:, :, [0, 0, 0, 1]]  # Pillow, so `read`, knows no such grey with alpha
    height, width, channels = stored.shape
    plain = picture.compression == "raw"
    ordered = stored.dtype.newbyteorder("<")
    strips = []
    for band in _bands(stored):
        if plain:
            strips.append(band.astype(ordered).tobytes())
            continue
        change = band.copy()
        change[:, 1:] -= band[:, :-1]
        deflater = zlib.compressobj(strategy=zlib.Z_RLE)
        strips.append(deflater.compress(change.astype(ordered).tobytes()) + deflater.flush())
    sizes = [len(strip) for strip in strips]
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    exif = Image.Exif()
    exif.load(picture.exif)
    for tag in _TIFF_TAGS:
        if tag in exif:
            tags[tag] = exif[tag]
    for tag in (_EXIF_IFD, _GPS_IFD):
        if values := exif.get_ifd(tag):
            tags[tag] = dict(values)
    options = _metadata(picture, "TIFF")
    if "icc_profile" in options:
        tags[34675] = options["icc_profile"]
    if "xmp" in options:
        tags[_XMP_TAG] = options["xmp"]
    if "dpi" in options:
        tags[282], tags[283], tags[296] = *options["dpi"], 2
    tags[256], tags[257] = width, height
    tags[_BITS] = (stored.itemsize * 8,) * channels
    tags[259] = 1 if plain else 8  # Adobe deflate
    tags[_PHOTOMETRIC] = 1 if channels < 3 else 2
    tags[277] = channels
    tags[278] = len(next(_bands(stored)))  # rows in a strip
    tags[273] = tuple(np.cumsum([0, *sizes[:-1]]).tolist())  # Pillow adds the directory's end
    tags[279] = tuple(sizes)
    for tag in (273, 279):
        tags.tagtype[tag] = 4  # 32 bits
    if not plain:
        tags[317] = 2  # differences of neighbours
    if channels in (2, 4):
        tags[338] = 2  # alpha that the colours are not multiplied by
    tags.save(file)
    for strip in strips:
        file.write(strip)


def _picture(im: Image.Image, mode: str, pixels: np.ndarray, alpha: np.ndarray | None) -> Picture:
    """A loaded image's pixels turned upright, with its metadata."""
    exif = im.getexif()
    orientation = exif.get(_ORIENTATION, 1)
    raw = _tiff_exif(exif) if im.format == "TIFF" else im.info.get("exif", b"")
    xmp, text = im.info.get("xmp"), {}
    if im.format == "PNG":
        text = {key: value for key, value in im.text.items()
                if key not in (*_HEX_KEYS, _XMP_KEY, MARK)}
        hidden = _hex_profiles(im.text)
        raw, xmp = raw or hidden[0], xmp or hidden[1]
    dpi, compression = im.info.get("dpi"), im.info.get("compression")
    if turn := _TURNS.get(orientation):
        pixels = np.ascontiguousarray(turn(pixels))
        alpha = alpha if alpha is None else np.ascontiguousarray(turn(alpha))
        dpi = dpi and (dpi[::-1] if orientation > 4 else dpi)
    return Picture(
        pixels, alpha, mode, "JPEG" if im.format == "MPO" else im.format,
        None if im.mode == "CMYK" else im.info.get("icc_profile"), _upright(raw),
        dpi and (float(dpi[0]), float(dpi[1])),
        "raw" if im.format == "TIFF" and compression == "raw" else None, _upright_xmp(xmp), text)


def _channels(im: Image.Image, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """(RGB pixels [H, W, 3], alpha [H, W] or None) of an image of any mode."""
    clear = "transparency" in im.info
    if im.mode.startswith("I;16"):
        return _deep_channels(_deep_grey(im)[:, :, None], im)
    if im.mode in ("I", "F"):
        raise InputError(f"{name}: 32 bits a pixel (mode {im.mode}); convert it to 8 bits, or to "
                         "16-bit grey, first")
    if clear or im.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        rgba = np.asarray(im.convert("RGBA"))
        return np.ascontiguousarray(rgba[:, :, :3]), np.ascontiguousarray(rgba[:, :, 3])
    return np.asarray(im.convert("RGB")), None


def _tiff_exif(exif: Image.Exif) -> bytes:
    """The descriptive tags of a TIFF as an EXIF block."""
    kept = Image.Exif()
    for tag in _TIFF_TAGS:
        if tag in exif:
            kept[tag] = exif[tag]
    for ifd in (_EXIF_IFD, _GPS_IFD):
        if values := exif.get_ifd(ifd):
            kept.get_ifd(ifd).update(values)
    return kept.tobytes() if len(kept) or kept.get_ifd(_EXIF_IFD) else b""


def _upright(exif: bytes) -> bytes:
    """An EXIF block with orientation 1 and without its thumbnail, otherwise byte for byte.

    Patching in place keeps what a rewrite would lose: maker notes hold absolute offsets. A block
    that ends before it should is left out: the picture is sound without it.
    """
    try:
        return _patched(exif)
    except struct.error:
        return b""


def _patched(exif: bytes) -> bytes:
    data = bytearray(exif.removeprefix(b"Exif\0\0"))
    order = {b"II": "<", b"MM": ">"}.get(bytes(data[:2]))
    if order is None:
        return b""
    (first,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, first)
    for entry in range(first + 2, first + 2 + 12 * count, 12):
        tag, kind = struct.unpack_from(order + "HH", data, entry)
        if tag == _ORIENTATION:
            struct.pack_into(order + ("I" if kind == 4 else "H"), data, entry + 8, 1)
    end = first + 2 + 12 * count  # the offset of the next directory: the thumbnail's
    if end + 4 <= len(data):
        struct.pack_into("I", data, end, 0)
    return b"Exif\0\0" + bytes(data)


def _hex_profiles(text: Mapping[str, str]) -> tuple[bytes, bytes]:
    """(EXIF, XMP) that a PNG's text holds as hexadecimal digits, behind three other lines."""
    exif = xmp = b""
    for key in _HEX_KEYS:
        try:
            data = bytes.fromhex("".join(text.get(key, "").split("\n")[3:]))
        except ValueError:  # damaged: the picture is sound without it
            continue
        if data.startswith(_XMP_HEAD) or key == _HEX_KEYS[-1]:
            xmp = xmp or data.removeprefix(_XMP_HEAD)
        else:
            exif = exif or data
    return exif, xmp


def _upright_xmp(xmp: bytes | None) -> bytes:
    """An XMP packet with orientation 1 and without thumbnails; nothing of one that is damaged."""
    if not isinstance(xmp, bytes):
        return b""
    xmp = xmp.rstrip(b"\0")  # some programs end it like a C string
    try:
        xmp.decode()
    except UnicodeDecodeError:
        return b""
    # Padding beside the text, which exists for changes in place, is kept with the rest.
    xmp = re.sub(rb"<(xmp|xap):Thumbnails\b.*?</\1:Thumbnails>", b"", xmp, flags=re.S)
    return re.sub(rb"""(tiff:Orientation(?:=["']|>)\s*)[2-8]\b""", rb"\g<1>1", xmp)
