"""Picture files: the only place that knows 255, EXIF orientation and file formats.

Choices, in one place:

* Grey in, grey out: the enhanced colours are reduced to BT.601 luma (what mode "L" means).
* Alpha is carried through unchanged. A palette becomes RGB (RGBA if it has a transparent entry);
  a transparent colour becomes an alpha channel. CMYK becomes RGB, without its (CMYK) profile.
* Orientation is applied once and its tag set to 1. EXIF is otherwise kept byte for byte, less the
  embedded thumbnail, which would show the old picture. TIFF keeps its descriptive tags.
* Written formats: PNG, TIFF, BMP and PPM lose nothing, JPEG is quality 95 with 4:4:4 colour, WebP
  quality 95; GIF is reduced to 256 colours because it holds no more.
* 16 bits a channel: grey only (PNG, TIFF). Pillow cuts 16-bit colour to 8 bits without a word, so
  such files are refused rather than degraded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import IO

import numpy as np
from PIL import Image

from lljax.errors import InputError

FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".bmp": "BMP", ".tif": "TIFF",
           ".tiff": "TIFF", ".webp": "WEBP", ".gif": "GIF", ".ppm": "PPM", ".pgm": "PPM"}

_GREY = ("1", "L", "LA", "La", "I;16", "I;16L", "I;16B")
_LUMA = np.float32([0.299, 0.587, 0.114])
_ORIENTATION = 0x0112
_TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
          4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
          6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
          8: Image.Transpose.ROTATE_90}
# ImageDescription, Make, Model, Software, DateTime, Artist, Copyright: a TIFF's other tags
# describe how its pixels are stored, which is decided anew.
_TIFF_TAGS = (270, 271, 272, 305, 306, 315, 33432)
_EXIF_IFD, _GPS_IFD = 0x8769, 0x8825
_LOSSLESS_TIFF = ("raw", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits")


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture and what writing it back needs.

    Attributes:
      pixels: uint8 or uint16 [H, W, 3], RGB (grey: three equal channels), upright.
      alpha: same dtype [H, W], or None.
      mode: the file's Pillow mode; decides whether grey or colour is written.
      format: the file's Pillow format, e.g. "JPEG".
      icc: ICC profile, or None.
      exif: EXIF block beginning with "Exif", orientation 1; empty if there is none.
      dpi: dots per inch (x, y), or None.
      compression: a TIFF's lossless compression, or None.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    mode: str = "RGB"
    format: str = "PNG"
    icc: bytes | None = None
    exif: bytes = b""
    dpi: tuple[float, float] | None = None
    compression: str | None = None

    @property
    def grey(self) -> bool:
        """Whether it is written as grey."""
        return self.mode in _GREY


def read(path: str | os.PathLike) -> Picture:
    """Reads a picture file.

    Args:
      path: a file in one of `FORMATS` (the content decides, not the suffix).

    Raises:
      InputError: missing, empty, damaged or no picture, several frames, more pixels than Pillow
        allows, or more bits a channel than can be kept.
    """
    path = os.fspath(path)
    try:
        if os.path.getsize(path) == 0:
            raise InputError(f"{path}: the file is empty")
        with Image.open(path, formats=sorted(set(FORMATS.values()))) as im:
            # MPO is a JPEG with a camera's extras behind it; its first frame is the picture.
            if im.format != "MPO" and getattr(im, "n_frames", 1) > 1:
                raise InputError(f"{path}: has {im.n_frames} frames or pages, and all but the "
                                 "first would be lost; split it into single pictures first")
            _check_depth(im, path)
            im.load()  # before the EXIF is read: Pillow turns TIFFs here, and PNG keeps it last
            return _picture(im, path)
    except Image.UnidentifiedImageError:
        raise InputError(f"{path}: not a picture in a known format "
                         f"({', '.join(sorted(set(FORMATS.values())))})") from None
    except Image.DecompressionBombError:
        raise InputError(f"{path}: more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels; "
                         "cut or shrink it first") from None
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except PermissionError:
        raise InputError(f"{path}: permission to read it is denied") from None
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: cannot be read ({text}); the file is damaged or incomplete, "
                         "get a new copy") from error


def read_rgb(path: str | os.PathLike) -> np.ndarray:
    """Reads a picture file as uint8 RGB [H, W, 3], upright; alpha is dropped, 16 bits rounded.

    Raises:
      InputError: as `read`.
    """
    pixels = read(path).pixels
    return pixels if pixels.dtype == np.uint8 else to_uint(to_float(pixels), np.uint8)


def write(path: str | os.PathLike, picture: Picture) -> None:
    """Writes a picture file, whole or not at all, in the format of the path's suffix.

    Args:
      path: output file; an existing one is replaced. A suffix that is not in `FORMATS` keeps the
        picture's own format.
      picture: what to write.

    Raises:
      InputError: the format cannot hold it (alpha or 16 bits), or the folder cannot be written.
    """
    path = os.fspath(path)
    suffix = os.path.splitext(path)[1].lower()
    form = FORMATS.get(suffix, picture.format)
    if picture.alpha is not None and form in ("JPEG", "PPM"):
        raise InputError(f"{path}: {form} cannot hold the alpha channel; write a PNG")
    if picture.pixels.dtype == np.uint16 and form not in ("PNG", "TIFF"):
        raise InputError(f"{path}: {form} cannot hold 16 bits a channel; write a PNG or TIFF")
    options = {}
    if picture.icc:
        options["icc_profile"] = picture.icc
    if picture.exif:
        options["exif"] = picture.exif
    if picture.dpi and min(picture.dpi) > 1:
        options["dpi"] = picture.dpi
    if form == "JPEG":
        options |= {"quality": 95, "subsampling": 0}
    elif form == "WEBP":
        options |= {"quality": 95}
    elif form == "TIFF":
        options |= {"compression": picture.compression or "tiff_adobe_deflate"}
    try:
        with atomic(path) as file:
            to_pil(picture).save(file, form, **options)
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be written ({error})") from error


@contextlib.contextmanager
def atomic(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """Opens a file that takes the name `path` only when the block ends without an error.

    Yields:
      A binary file in the same folder, removed if the block fails.
    """
    with beside(path) as temporary, open(temporary, "xb") as file:
        yield file


@contextlib.contextmanager
def beside(path: str | os.PathLike) -> Iterator[str]:
    """A name for a file that takes the name `path` only when the block ends without an error.

    Yields:
      The path of a file in the same folder, which the block is to write; it is removed if the
      block fails.
    """
    path = os.fspath(path)
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):  # it may not have been made
            os.remove(temporary)
        raise


def find(paths: Iterable[str | os.PathLike], recursive: bool = True) -> list[tuple[str, str]]:
    """Lists the pictures among files and folders.

    Args:
      paths: files (taken whatever their suffix) and folders (searched for the suffixes of
        `FORMATS`, upper or lower case; names that begin with a dot are skipped).
      recursive: whether to search sub-folders.

    Returns:
      (file, name) pairs in sorted order within each path; `name` is relative to the folder given,
      or the file's own name.

    Raises:
      InputError: a path that does not exist.
    """
    found = []
    for path in map(os.fspath, paths):
        if os.path.isdir(path):
            found += _walk(path, recursive)
        elif os.path.exists(path):
            found.append((path, os.path.basename(path)))
        else:
            raise InputError(f"{path}: no such file or folder")
    return found


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
    pixels = picture.pixels
    if picture.grey:
        luma = pixels.astype(np.float32) @ _LUMA
        pixels = np.rint(luma).clip(0, _top(pixels.dtype)).astype(pixels.dtype)
    if pixels.dtype == np.uint16 and (pixels.ndim == 3 or picture.alpha is not None):
        raise InputError("16 bits a channel can be written in grey without alpha only")
    if picture.alpha is not None:
        pixels = np.dstack([pixels, picture.alpha])
    return Image.fromarray(pixels)


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


def _walk(folder: str, recursive: bool) -> list[tuple[str, str]]:
    found = []
    for here, folders, files in os.walk(folder, onerror=_unreadable):
        folders[:] = sorted(f for f in folders if f[0] != ".") if recursive else []
        for name in sorted(files):
            if name[0] != "." and os.path.splitext(name)[1].lower() in FORMATS:
                file = os.path.join(here, name)
                found.append((file, os.path.relpath(file, folder)))
    return found


def _unreadable(error: OSError) -> None:
    raise InputError(f"{error.filename}: cannot be searched ({error.strerror})") from error


def _check_depth(im: Image.Image, path: str) -> None:
    """Refuses what Pillow would cut to 8 bits on loading; the storage layout tells it."""
    for tile in im.tile:
        args = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        deep = any(isinstance(a, str) and ";16" in a for a in args)
        if im.format == "PPM" and im.mode != "1":
            deep = deep or any(isinstance(a, int) and a > 255 for a in args)
        if deep and not im.mode.startswith("I;16"):
            raise InputError(f"{path}: has 16 bits a channel in mode {im.mode}, of which only 8 "
                             "could be kept; 16-bit grey PNG and TIFF are supported, else "
                             "convert it to 8 bits first")


def _picture(im: Image.Image, path: str) -> Picture:
    """A loaded image, turned upright, with its metadata."""
    exif = im.getexif()
    orientation = exif.get(_ORIENTATION, 1)
    form = "JPEG" if im.format == "MPO" else im.format
    raw = _tiff_exif(exif) if form == "TIFF" else im.info.get("exif", b"")
    dpi = im.info.get("dpi")
    icc = None if im.mode == "CMYK" else im.info.get("icc_profile")
    compression = im.info.get("compression")
    mode, turn = im.mode, _TURNS.get(orientation)
    if turn is not None:
        info = im.info
        im = im.transpose(turn)
        im.info = info  # a transparent colour is found there
        dpi = dpi and (dpi[::-1] if orientation > 4 else dpi)
    pixels, alpha = _channels(im, path)
    return Picture(
        pixels, alpha, mode, form, icc, _upright(raw), dpi and (float(dpi[0]), float(dpi[1])),
        compression if compression in _LOSSLESS_TIFF else None)


def _channels(im: Image.Image, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """(RGB pixels [H, W, 3], alpha [H, W] or None) of an image of any mode."""
    clear = "transparency" in im.info
    if im.mode.startswith("I;16"):
        if clear:
            raise InputError(f"{name}: 16-bit grey with a transparent colour; make it 8 bits")
        grey = np.asarray(im).astype(np.uint16)
        return np.repeat(grey[:, :, None], 3, axis=2), None
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

    Patching in place keeps what a rewrite would lose: maker notes hold absolute offsets.
    """
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
