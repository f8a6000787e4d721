"""Any method on videos: frame by frame, with the maps steadied over time.

The user's own `ffmpeg` and `ffprobe` decode and encode in processes of their own, so a video is
never in memory as a whole: one thread reads frames, the network runs, one thread writes. Frames
come as RGB with their timestamps (ffmpeg's `showinfo` filter reports them) and go back in a
Matroska stream of raw frames, which carries timestamps. Sound goes from file to file untouched.

A frame's own maps would differ from those of the frame before it even where nothing moved, because
noise differs, and so the picture would flicker. Here each map is averaged over time at each pixel,
over as many frames as the picture has been at rest there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import queue
import re
import shutil
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lljax import images
from lljax import method as method_lib
from lljax.errors import InputError
from lljax.inference.enhancer import finish

Array = jax.Array

SMOOTH = 12  # frames, half a second of most videos

_AHEAD = 2  # frames decoded before, and encoded behind, the network
_CUT = 0.5  # of the picture has moved: another scene
_NARROW, _WIDE = 7, 9  # px, sides of the windows that movement is looked for in
# how many times the noise a change must be: at rest below, moved above
_SIZE_MOVED, _TONE_MOVED = (1.45, 2.0), (1.6, 3.0)
_FLOOR = 0.5 / 255  # least noise: rounding to 8 bits
# kept of the video stream's own metadata; the rest says how the old stream was encoded
_TAGS = ("language", "title", "handler_name", "timecode", "creation_time")
_SCALE = "flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"


@dataclasses.dataclass(frozen=True)
class Format:
    """How a kind of file is written.

    Attributes:
      name: ffmpeg's name of the container.
      quality: default of the encoder's constant rate factor, lower is better.
      worst: the largest.
      options: of the encoder.
    """

    name: str
    quality: int
    worst: int
    options: tuple[str, ...]


_H264 = (16, 51, ("-c:v", "libx264", "-preset", "medium"))
_VP9 = (20, 63, ("-c:v", "libvpx-vp9", "-b:v", "0", "-deadline", "good", "-cpu-used", "4",
                 "-row-mt", "1"))
_FAST_START = ("-movflags", "+faststart")
FORMATS = {
    ".mp4": Format("mp4", *_H264[:2], _H264[2] + _FAST_START),
    ".m4v": Format("mp4", *_H264[:2], _H264[2] + _FAST_START),
    ".mov": Format("mov", *_H264[:2], _H264[2] + _FAST_START),
    ".mkv": Format("matroska", *_H264),
    ".webm": Format("webm", *_VP9),
}

# ffprobe's name of a colour matrix -> swscale's
_MATRICES = {"bt709": "bt709", "fcc": "fcc", "bt470bg": "bt470", "smpte170m": "smpte170m",
             "smpte240m": "smpte240m", "bt2020nc": "bt2020", "bt2020c": "bt2020"}


# ---- the maps over time ----


@flax.struct.dataclass
class Memory:
    """What one frame hands to the next.

    Attributes:
      low: [1, H, W, 3], average over time of the picture. What has moved is measured against it: a
        slow movement adds up there, where the difference of two frames would be noise.
      maps: averages over time of the method's steady maps.
      rest: for "" (the picture) and each map, over how many frames its pixels are averaged,
        [1, h, w, 1].
    """

    low: Array
    maps: dict[str, Array]
    rest: dict[str, Array]


def blank(method: method_lib.Method, nets: dict[str, Any], height: int, width: int,
          key: Array) -> Memory:
    """The memory before the first frame.

    Args:
      method: the method.
      nets: its networks.
      height: of the padded frames.
      width: of the padded frames.
      key: as `estimate` takes it.

    Raises:
      ValueError: a steady map is no map of the picture, or its sides do not divide it.
    """
    low = jax.ShapeDtypeStruct((1, height, width, 3), np.float32)
    found = jax.eval_shape(method.estimate, nets, low, key)
    shapes = {"": low, **{name: found[name] for name in method.steady}}
    for name, value in shapes.items():
        if len(value.shape) != 4 or height % value.shape[1] or width % value.shape[2]:
            raise ValueError(f"the steady map {name!r} of shape {value.shape} must be [B, h, w, C] "
                             f"with sides that divide the picture's {height} x {width}")
    zeros = {name: jnp.zeros(value.shape, value.dtype) for name, value in shapes.items()}
    rest = {name: jnp.zeros((*value.shape[:3], 1), np.float32) for name, value in shapes.items()}
    return Memory(zeros.pop(""), zeros, rest)


def step(method: method_lib.Method, nets: dict[str, Any], low: Array, key: Array, memory: Memory,
         smooth: float, strength: float) -> tuple[Array, Memory]:
    """Enhances one frame; pure, to be compiled.

    Args:
      method: the method.
      nets: its networks.
      low: [1, H, W, 3] in [0, 1], sides multiples of the method's.
      key: of what the method draws.
      memory: of the frames before.
      smooth: frames that a map is averaged over where the picture rests; 1 takes each frame's own.
      strength: 0 gives the picture itself, 1 the enhanced one.

    Returns:
      (enhanced [1, H, W, 3], unclipped; memory).
    """
    moved = _moved(low, memory)
    rest, averaged = {}, {}

    def average(name, old, new):
        height, width = new.shape[1:3]
        here = moved.reshape(1, height, -1, width, moved.shape[2] // width).max((2, 4))[..., None]
        rest[name] = jnp.minimum((1 - here) * memory.rest[name] + 1, jnp.maximum(smooth, 1))
        part = 1 / rest[name]
        return (1 - part) * old + part * new

    calm = average("", memory.low, low)
    maps = method.estimate(nets, calm, key)
    for name in method.steady:
        averaged[name] = average(name, memory.maps[name], maps[name])
    enhanced = method.apply(nets, calm, {**maps, **averaged})
    return low + strength * (enhanced - low), Memory(calm, averaged, rest)


def _moved(low: Array, memory: Memory) -> Array:
    """How much each pixel moved, [1, H, W, 1] from 0 to 1: where the picture differs from its
    average over time by more than noise does.

    Looked for in two ways: narrow windows in which it differs at all, for edges and fine detail,
    and wide ones that differ in their mean, for faint changes of tone.
    """
    # the average is noisy too: less, the more frames are in it
    change = (low - memory.low) * lax.rsqrt(1 + 1 / jnp.maximum(memory.rest[""], 1))
    size = jnp.sqrt(_mean(jnp.square(change).mean(-1, keepdims=True), _NARROW))
    tone = jnp.abs(_mean(change, _WIDE)).max(-1, keepdims=True)
    # The noise is that of the parts that change least, which rest in most videos. Where all move
    # it would be too large, and that of the single picture limits it: its finest detail. White
    # noise leaves 1 / _WIDE of itself in a mean, three times as much if neighbours share theirs.
    fine = jnp.abs(low - _mean(low, 3))
    single = _quantile(fine, 0.25) / 0.3186 / (8 / 9) ** 0.5  # of a normal variable's size
    noise = jnp.minimum(_quantile(size, 0.1), single)
    moved = jnp.maximum(
        _ramp(size / jnp.maximum(noise, _FLOOR), _SIZE_MOVED, _NARROW),
        _ramp(tone / jnp.maximum(noise * 3 / _WIDE, _FLOOR / 3), _TONE_MOVED, _WIDE))
    return jnp.where(moved.mean() > _CUT, jnp.ones_like(moved), moved)


def _quantile(x: Array, part: float) -> Array:
    return jnp.quantile(x[:, ::4, ::4], part)


def _ramp(change: Array, limits: tuple[float, float], side: int) -> Array:
    """From 0 to 1 between the limits, and as much in the surroundings: a window sees little of an
    edge that only just enters it, and the networks see some pixels around each."""
    rising = ((change - limits[0]) / (limits[1] - limits[0])).clip(0, 1)
    return _mean(_around(rising, side, jnp.maximum), side)


def _mean(x: Array, side: int) -> Array:
    """The mean of side x side pixels around each; beyond the edge lies the edge's value."""
    return _around(x, side, jnp.add) / side**2


def _around(x: Array, side: int, join: Callable[[Array, Array], Array]) -> Array:
    """side x side pixels around each, joined into one."""
    # shifts and not windows, which XLA runs 5 to 10 times slower on a CPU
    for axis in (1, 2):
        width = x.shape[axis]
        pads = [(0, 0)] * 4
        pads[axis] = (side // 2, side // 2)
        padded = jnp.pad(x, pads, "edge")
        x = functools.reduce(join, (lax.slice_in_dim(padded, i, i + width, axis=axis)
                                    for i in range(side)))
    return x


# ---- files ----


@dataclasses.dataclass(frozen=True)
class Source:
    """A video file, as ffprobe sees it.

    Attributes:
      path: the file.
      stream: number of its video stream.
      size: (height, width) in px, upright.
      frames: how many, about; 0 if nothing is known.
      rate: frames a second on average, or None.
      start: of the whole file, s.
      deep: whether it has more than 8 bits a channel.
      chroma: "420", "422" or "444".
      matrix: colour matrix as tagged, or "unknown" (then what players assume is used).
      full: whether black is 0 and white 255, not 16 and 235.
      primaries: colour primaries as tagged.
      transfer: transfer function as tagged.
      aspect: of a pixel, width / height.
      time_base: unit of its timestamps, s.
      containers: ffmpeg's names for the file's format.
      others: kind of stream ("audio", "subtitle", "data") -> codecs of those beside the video.
      tags: metadata of the video stream.
      notes: what will be lost, a line each.
    """

    path: str
    stream: int
    size: tuple[int, int]
    frames: int
    rate: Fraction | None
    start: Fraction
    deep: bool
    chroma: str
    matrix: str
    full: bool
    primaries: str
    transfer: str
    aspect: Fraction
    time_base: Fraction
    containers: tuple[str, ...]
    others: dict[str, list[str]]
    tags: dict[str, str]
    notes: tuple[str, ...]

    @property
    def scale_matrix(self) -> str:
        """The colour matrix for swscale: high definition is BT.709 to players, the rest BT.601."""
        unknown = "bt709" if self.size[0] >= 720 else "smpte170m"
        return _MATRICES[unknown if self.matrix == "unknown" else self.matrix]


@dataclasses.dataclass(frozen=True)
class Done:
    """What was written.

    Attributes:
      frames: how many.
      seconds: time it took.
      size: (height, width) in px.
      notes: what the user should know, a line each.
    """

    frames: int
    seconds: float
    size: tuple[int, int]
    notes: tuple[str, ...]


def check(target: str | os.PathLike, quality: int | None = None, smooth: float = SMOOTH) -> None:
    """Refuses what cannot be done before any work starts.

    Args:
      target: the file that will be written.
      quality: constant rate factor, or None.
      smooth: frames to average over.

    Raises:
      InputError: ffmpeg is absent or too old, a suffix that is not in `FORMATS`, or a quality or
        number of frames out of range.
    """
    if not smooth >= 1:
        raise InputError(f"--smooth {smooth:g}: it must be 1 frame or more")
    suffix = os.path.splitext(os.fspath(target))[1].lower()
    if suffix not in FORMATS:
        raise InputError(f"{target}: a video is written as {', '.join(FORMATS)}; give -o such a "
                         "file name")
    worst = FORMATS[suffix].worst
    if quality is not None and not 0 <= quality <= worst:
        raise InputError(f"--quality {quality}: for {suffix} it must be from 0 (best) to {worst}")
    for program in ("ffmpeg", "ffprobe"):
        if shutil.which(program) is None:
            raise InputError(f"videos need the program {program}, which is not on the PATH; "
                             "install FFmpeg (https://ffmpeg.org/download.html, or `apt install "
                             "ffmpeg`, `brew install ffmpeg`, `winget install ffmpeg`)")
    first = subprocess.run(["ffmpeg", "-version"], capture_output=True, text=True).stdout[:80]
    number = re.match(r"ffmpeg version n?(\d+)\.(\d+)", first)
    if number and (int(number[1]), int(number[2])) < (5, 1):
        raise InputError(f"videos need FFmpeg 5.1 or newer; here is {number[1]}.{number[2]}")


def probe(path: str | os.PathLike) -> Source:
    """Reads what a video file says of itself.

    Raises:
      InputError: no such file, none that ffprobe can read, or one without a video.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such file")
    found = _ffprobe("-show_format", "-show_streams", f"file:{path}", path=path)
    streams = [stream for stream in found["streams"] if stream["codec_type"] == "video"
               and not stream.get("disposition", {}).get("attached_pic")
               and stream.get("width") and stream.get("height")]
    if not streams:
        raise InputError(f"{path}: holds no video")
    stream, about = streams[0], found["format"]
    turned = [side["rotation"] for side in stream.get("side_data_list", ()) if "rotation" in side]
    size = (stream["height"], stream["width"])
    aspect = _fraction(stream.get("sample_aspect_ratio", "").replace(":", "/")) or Fraction(1)
    if turned and turned[0] % 180 == 90:
        size, aspect = size[::-1], 1 / aspect
    if "pix_fmt" not in stream:
        raise InputError(f"{path}: FFmpeg has no decoder for its video "
                         f"({stream.get('codec_name', stream.get('codec_tag_string', 'unknown'))})")
    layout = _pixel_format(stream["pix_fmt"], path)
    rgb = bool(layout["flags"]["rgb"])
    matrix = "unknown" if rgb else stream.get("color_space", "unknown")
    if matrix not in (*_MATRICES, "unknown"):
        raise InputError(f"{path}: its colour matrix {matrix} is not one that can be converted; "
                         "encode it with another one first")
    rate = _fraction(stream.get("avg_frame_rate"))
    seconds = float(stream.get("duration") or about.get("duration") or 0)
    others: dict[str, list[str]] = {}
    for other in found["streams"]:
        if other["codec_type"] != "video" and other.get("codec_tag_string") != "tmcd":
            others.setdefault(other["codec_type"], []).append(other.get("codec_name", "unknown"))
    notes = []
    if layout["flags"]["alpha"]:
        notes.append("its transparency is left out")
    if stream.get("field_order", "progressive") not in ("progressive", "unknown"):
        notes.append("it is interlaced, and its half pictures are enhanced woven as they are; "
                     "deinterlace it first (ffmpeg -vf yadif) to have whole ones")
    if len(streams) > 1:
        notes.append(f"of its {len(streams)} videos the first is written")
    return Source(
        path, stream["index"], size, int(stream.get("nb_frames") or seconds * (rate or 0)),
        rate, _fraction(about.get("start_time")) or Fraction(0),
        max(part["bit_depth"] for part in layout["components"]) > 8,
        {(1, 1): "420", (1, 0): "422", (2, 0): "422"}.get(
            (layout["log2_chroma_w"], layout["log2_chroma_h"]),
            "444" if rgb or not layout["log2_chroma_w"] and layout["nb_components"] > 2 else "420"),
        matrix, not rgb and stream.get("color_range") == "pc",
        stream.get("color_primaries", "unknown"), stream.get("color_transfer", "unknown"),
        aspect, Fraction(stream["time_base"]), tuple(about["format_name"].split(",")), others,
        {key: value for key, value in stream.get("tags", {}).items() if key in _TAGS},
        tuple(notes))


def enhance(source: str | os.PathLike, target: str | os.PathLike, method: method_lib.Method,
            nets: dict[str, Any], *, seed: int = 0, smooth: float = SMOOTH, strength: float = 1.0,
            quality: int | None = None, overwrite: bool = False,
            progress: Callable[[int, int], None] = lambda done, total: None) -> Done:
    """Enhances a video file.

    The result is upright, has the source's size, timestamps, depth (8 or 10 bits) and colour tags,
    its sound as it was, and its metadata. It takes its name when it is finished.

    Args:
      source: a video file.
      target: the file to write; its suffix, one of `FORMATS`, decides how.
      method: the method.
      nets: its networks.
      seed: of what the method draws; every frame draws the same.
      smooth: frames that the maps are averaged over where the picture rests; 1 for none.
      strength: 0 gives the video as it was, 1 the enhanced one.
      quality: constant rate factor, lower is better and larger; None is the format's default.
      overwrite: whether an existing file may be replaced.
      progress: called after each frame with (frames done, frames in all or 0).

    Raises:
      InputError: bad arguments, a source that cannot be read or is damaged (what could be decoded
        is kept beside `target`, under a name that the message says), or a result that cannot be
        written.
    """
    source, target = os.fspath(source), os.fspath(target)
    check(target, quality, smooth)
    if not 0 <= strength <= 1:
        raise InputError(f"--strength {strength:g}: it must be from 0 to 1")
    video = probe(source)
    if os.path.exists(target):
        if os.path.samefile(source, target):
            raise InputError(f"{source}: input and output are the same file; choose another output")
        if not overwrite:
            raise InputError(f"{source}: {target} exists already; --overwrite replaces it")
    start = time.perf_counter()
    with images.beside(target, overwrite) as temporary:
        with _Decoder(video) as decoder, _Encoder(video, target, temporary, quality) as encoder:
            count = 0
            for count in _through(decoder, encoder, method, nets, seed, smooth, strength):
                progress(count, video.frames)
            decoder.finish()
            if count == 0:
                raise InputError(f"{source}: not one frame could be decoded{decoder.reason}")
            encoder.finish()
        if decoder.damaged:
            kept = _free(target)
            os.replace(temporary, kept)
            of = f" of about {video.frames}" if video.frames > count else ""
            raise InputError(f"{source}: is damaged or cut short{decoder.reason}; the {count} "
                             f"frames{of} that could be decoded are in {kept}")
    notes = video.notes + encoder.notes
    if not method.steady and smooth > 1:
        notes += ("the method names no maps to be steadied, so it may flicker",)
    return Done(count, time.perf_counter() - start, video.size, notes)


def _through(decoder: _Decoder, encoder: _Encoder, method: method_lib.Method, nets: dict[str, Any],
             seed: int, smooth: float, strength: float) -> Iterator[int]:
    """Brings the frames from one program to the other; yields how many are on their way.

    Two threads wait for the programs and convert pixels, a few frames ahead and behind.
    """
    height, width = decoder.video.size
    bottom, right = -height % method.multiple, -width % method.multiple
    nets, key = jax.device_put(nets), jax.random.key(seed)
    memory = blank(method, nets, height + bottom, width + right, key)
    program = jax.jit(functools.partial(step, method), donate_argnames="memory")

    def read():
        frame = decoder.read()
        if frame is None:
            return None
        pixels, at = frame
        return images.to_float(images.pad(pixels, bottom, right))[None], at

    def write(enhanced, at):
        pixels = images.crop(np.asarray(enhanced)[0], height, width)
        encoder.write(finish(pixels, decoder.dtype), at)

    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        try:
            reading, writing, count = deque(), deque(), 0
            for _ in range(_AHEAD):
                reading.append(reader.submit(read))
            while (frame := reading.popleft().result()) is not None:
                reading.append(reader.submit(read))
                low, at = frame
                enhanced, memory = program(nets, low, key, memory, smooth, strength)
                writing.append(writer.submit(write, enhanced, at))
                if len(writing) > _AHEAD:
                    writing.popleft().result()
                count += 1
                yield count
            for future in writing:
                future.result()
        except BaseException:
            # the threads wait for these, and the pools for the threads
            decoder.kill()
            encoder.kill()
            raise


class _Program:
    """A running ffmpeg whose messages are read as they come."""

    def __init__(self, level: str, arguments: list[str], **pipes):
        self._errors: list[str] = []
        # in a session of its own, so that Ctrl-C reaches this program alone, which ends the others
        self._process = subprocess.Popen(
            ["ffmpeg", "-hide_banner", "-nostats", "-loglevel", f"level+{level}", *arguments],
            stderr=subprocess.PIPE, start_new_session=True, **pipes)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.kill()

    def kill(self) -> None:
        """Ends the program, if it still runs."""
        self._process.kill()
        self._process.wait()
        self._listener.join()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                with contextlib.suppress(BrokenPipeError):  # what was not yet sent
                    pipe.close()

    @property
    def reason(self) -> str:
        """What ffmpeg said first, in brackets, or nothing."""
        return f" (ffmpeg: {self._errors[0]})" if self._errors else ""

    def _listen(self) -> None:
        with self._process.stderr as pipe:
            for line in pipe:
                self._heard(line.decode(errors="replace").strip())
        self._heard(None)

    def _heard(self, line: str | None) -> None:
        found = line and re.search(r"\[(?:error|fatal|panic)\] (.*)", line)
        # two frames of one time are no damage
        if found and "monotonic" not in line and len(self._errors) < 20:
            self._errors.append(found[1])


class _Decoder(_Program):
    """Frames of a video and their times."""

    def __init__(self, video: Source):
        self.video = video
        self.dtype = np.dtype("<u2" if video.deep else "u1")
        self._shape = (*video.size, 3)
        self._times: queue.Queue[Fraction | None] = queue.Queue()
        self._base = Fraction(0)
        height, width = video.size
        # given in full, because a stream may change its size midway
        filters = (f"showinfo=checksum=0,scale={width}:{height}:{_SCALE}:"
                   f"in_color_matrix={video.scale_matrix}:in_range={'pc' if video.full else 'tv'}:"
                   f"out_range=pc,format={'rgb48le' if video.deep else 'rgb24'}")
        super().__init__("info", [
            "-nostdin", "-copyts", "-i", f"file:{video.path}", "-map", f"0:{video.stream}",
            "-vf", filters, "-fps_mode", "passthrough", "-enc_time_base", str(video.time_base),
            "-f", "rawvideo", "pipe:1"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)

    def read(self) -> tuple[np.ndarray, Fraction | None] | None:
        """The next frame's pixels [H, W, 3] and its time in s from the file's start (None if the
        file does not say); None after the last."""
        size = int(np.prod(self._shape)) * self.dtype.itemsize
        data = self._process.stdout.read(size)
        if len(data) < size:
            return None
        return np.frombuffer(data, self.dtype).reshape(self._shape), self._times.get()

    def finish(self) -> None:
        """Waits for the program's end."""
        self._process.wait()
        self._listener.join()

    @property
    def damaged(self) -> bool:
        """After `finish`: whether there was something that it could not read."""
        return bool(self._errors) or self._process.returncode != 0

    def _heard(self, line: str | None) -> None:
        if line is None:
            self._times.put(None)  # nobody shall wait for a time that does not come
        elif "showinfo" not in line:
            super()._heard(line)
        elif base := re.search(r"config in time_base: (\d+)/(\d+)", line):
            self._base = Fraction(int(base[1]), int(base[2]))
        elif at := re.search(r"\bn: *\d+ pts: *(-?\d+|NOPTS)\b", line):
            known = at[1] != "NOPTS"
            self._times.put(int(at[1]) * self._base - self.video.start if known else None)


class _Encoder(_Program):
    """Writes frames, and beside them what else the source holds."""

    def __init__(self, video: Source, target: str, temporary: str, quality: int | None):
        self._target, self._sound = target, "audio" in video.others
        self._usual = 1 / (video.rate or Fraction(25))  # s from a frame to the next
        self._last = -self._usual
        form = FORMATS[os.path.splitext(target)[1].lower()]
        height, width = video.size
        chroma, self.notes = video.chroma, ()
        if "libx264" in form.options and (height % 2 and chroma == "420"
                                          or width % 2 and chroma != "444"):
            chroma = "444"
            self.notes += (f"H.264 has no odd size ({width} x {height}) with 4:{video.chroma[1:]} "
                           "colour, so it is written with full colour (4:4:4), which some players "
                           "do not show; a .webm has no such limit",)
        maps = ["-map", "0:v:0", "-map", "1:a?"]
        kept = form.name in video.containers
        if kept and (form.name != "webm" or set(video.others.get("subtitle", ())) <= {"webvtt"}):
            maps += ["-map", "1:s?"]
        elif "subtitle" in video.others:
            self.notes += (f"its subtitles are left out: {form.name} may not hold them",)
        if kept and form.name == "matroska":
            maps += ["-map", "1:t?"]
        if "data" in video.others:
            self.notes += ("its streams of data (such as places) are left out",)
        matrix = video.matrix
        filters = (f"scale={_SCALE}:in_range=pc:out_color_matrix={video.scale_matrix}:"
                   f"out_range={'pc' if video.full else 'tv'},"
                   f"format=yuv{chroma}p{'10le' if video.deep else ''},setsar={video.aspect},"
                   f"setparams=range={'pc' if video.full else 'tv'}:colorspace={matrix}:"
                   f"color_primaries={video.primaries}:color_trc={video.transfer}")
        tags = [f"{key}={value}" for key, value in video.tags.items()]
        super().__init__("error", [
            "-y", "-copyts", "-f", "matroska", "-i", "pipe:0",
            "-itsoffset", f"{float(-video.start):.9f}", "-i", f"file:{video.path}", *maps,
            "-map_metadata", "1", "-map_chapters", "1",
            *(word for tag in tags for word in ("-metadata:s:v:0", tag)),
            "-c", "copy", *form.options, "-crf", str(form.quality if quality is None else quality),
            "-vf", filters, "-fps_mode", "passthrough", "-enc_time_base", str(video.time_base),
            "-max_muxing_queue_size", "9999", "-f", form.name, f"file:{temporary}"],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        self._send(_matroska(width, height, video.deep, self._usual))

    def write(self, pixels: np.ndarray, at: Fraction | None) -> None:
        """Writes a frame [H, W, 3].

        Args:
          pixels: uint8 or uint16.
          at: its time in s; None, or a time before the last frame's, is replaced by the usual.

        Raises:
          InputError: the encoder has stopped.
        """
        if at is None or at <= self._last:
            at = self._last + self._usual
        self._last = max(at, Fraction(0))
        self._send(_cluster(self._last, pixels.tobytes()))

    def finish(self) -> None:
        """Closes the file.

        Raises:
          InputError: the encoder has failed.
        """
        with contextlib.suppress(BrokenPipeError):  # the exit code tells more
            self._process.stdin.close()
        if self._process.wait() != 0:
            raise self._failed()

    def _send(self, data: bytes) -> None:
        try:
            self._process.stdin.write(data)
        except BrokenPipeError:
            raise self._failed() from None

    def _failed(self) -> InputError:
        self._process.wait()
        self._listener.join()
        hint = "; if it cannot hold this sound, .mkv holds any" if self._sound else ""
        return InputError(f"{self._target}: cannot be written{self.reason}{hint}")


def _matroska(width: int, height: int, deep: bool, usual: Fraction) -> bytes:
    """The head of a Matroska stream of raw RGB frames, whose times are in ns.

    Source: RFC 8794 (EBML), RFC 9559 (Matroska).
    """
    head = _element("1A45DFA3", _number("4286", 1) + _number("42F7", 1) + _number("42F2", 4)
                    + _number("42F3", 8) + _element("4282", b"matroska") + _number("4287", 4)
                    + _number("4285", 2))
    segment = bytes.fromhex("18538067") + b"\x01" + b"\xff" * 7  # of unknown length
    picture = _element("E0", _number("B0", width) + _number("BA", height)
                       + _element("2EB524", b"RGB" + (b"\x30" if deep else b"\x18")))
    track = _element("AE", _number("D7", 1) + _number("73C5", 1) + _number("83", 1)
                     + _number("23E383", round(usual * 10**9))
                     + _element("86", b"V_UNCOMPRESSED") + picture)
    return head + segment + _element("1549A966", _number("2AD7B1", 1)) + _element("1654AE6B", track)


def _cluster(at: Fraction, data: bytes) -> bytes:
    """A frame at a time in s."""
    return _element("1F43B675", _number("E7", round(at * 10**9))
                    + _element("A3", b"\x81\0\0\x80" + data))


def _element(name: str, data: bytes) -> bytes:
    return bytes.fromhex(name) + (len(data) | 1 << 56).to_bytes(8, "big") + data


def _number(name: str, value: int) -> bytes:
    return _element(name, value.to_bytes(8, "big"))


def _ffprobe(*arguments: str, path: str) -> dict[str, Any]:
    done = subprocess.run(["ffprobe", "-v", "error", "-of", "json", *arguments],
                          capture_output=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        text = " ".join(done.stderr.decode(errors="replace").split())
        raise InputError(f"{path}: no video that can be read, or damaged (ffprobe: {text})")
    return json.loads(done.stdout)


def _pixel_format(name: str, path: str) -> dict[str, Any]:
    for layout in _ffprobe("-show_pixel_formats", path=path)["pixel_formats"]:
        if layout["name"] == name:
            return layout
    raise InputError(f"{path}: its pixel format {name} is not known to ffprobe; encode it with "
                     "another one first")


def _fraction(text: str | None) -> Fraction | None:
    """A number as ffprobe writes it, "30000/1001" or "1.4"; None for none and for zero."""
    try:
        return Fraction(text or 0) or None
    except (ValueError, ZeroDivisionError):  # "N/A", "0/0"
        return None


def _free(target: str) -> str:
    """A name beside `target` that nothing has, for what there is of it."""
    stem, suffix = os.path.splitext(target)
    names = (f"{stem}.partial{number or ''}{suffix}" for number in itertools.count())
    return next(name for name in names if not os.path.lexists(name))
