"""What steadying does to a video: flicker at rest, ghosts on a pan, speed, memory.

    python benchmarks/video.py PICTURE [--model NAME|WORKDIR|FILE] [--height 96] [--seconds 3]

Clips are made of one dark picture: `static`, it and noise; `pan`, a slow pan (1 px in 4 frames)
under slowly rising light, with and without noise; each with a tone, 25 frames/s, noise of 3 of 255.
They go through `lljax enhance` as a user would do it. Needs FFmpeg.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np
from PIL import Image
from scipy.ndimage import uniform_filter


def make(path, frames):
    height, width = frames[0].shape[:2]
    command = ["ffmpeg", "-y", "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s",
               f"{width}x{height}", "-r", "25", "-i", "-", "-f", "lavfi", "-t",
               str(len(frames) / 25), "-i", "sine", "-c:v", "libx264", "-crf", "4", "-pix_fmt",
               "yuv420p", path]
    data = b"".join(np.rint(255 * frame.clip(0, 1)).astype(np.uint8).tobytes() for frame in frames)
    subprocess.run(command, input=data, check=True)


def read(path, shape):
    raw = subprocess.run(["ffmpeg", "-v", "error", "-i", path, "-f", "rawvideo", "-pix_fmt",
                          "rgb24", "-"], capture_output=True, check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, *shape).astype(np.float32)


def enhance(source, smooth, options, shape):
    """(frames, s, CPU s, peak MB of lljax)."""
    target = f"{source[:-4]}_{smooth}.mp4"
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "lljax.cli", "enhance", source, "-o", target, "--smooth",
               str(smooth), "--quiet", "--overwrite"]
    if options.model:
        command += ["--model", options.model]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return read(target, shape), time.perf_counter() - start, cpu, after.ru_maxrss / 1e3


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("picture")
    parser.add_argument("--model")
    parser.add_argument("--height", type=int, default=96)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--keep", help="folder for the clips; default: a temporary one")
    options = parser.parse_args()
    count, height = round(25 * options.seconds), options.height
    width = height * 4 // 3
    picture = Image.open(options.picture).convert("RGB")
    side = height * 5 // 4
    picture = picture.resize((max(picture.width * side // picture.height, width + count), side),
                             Image.Resampling.LANCZOS)
    low = np.asarray(picture)[:height].astype(np.float32) / 255
    rng = np.random.default_rng(0)

    def noisy(frame):
        return frame + rng.normal(0, 3 / 255, frame.shape)

    def panned(at):
        first, part = int(at), at % 1
        return (1 - part) * low[:, first:first + width] + part * low[:, first + 1:first + 1 + width]

    still = low[:, :width]
    pan = [panned(i / 4) * (1 + 0.1 * i / count) for i in range(count)]
    folder = options.keep or tempfile.mkdtemp(prefix="lljax-video-")
    os.makedirs(folder, exist_ok=True)
    names = ("static", "clean", "pan", "long")
    path = {name: os.path.join(folder, f"{name}.mp4") for name in names}
    make(path["static"], [noisy(still) for _ in range(count)])
    make(path["clean"], pan)
    make(path["pan"], [noisy(frame) for frame in pan])
    make(path["long"], [noisy(still) for _ in range(4 * count)])

    shape = still.shape
    rest = slice(min(15, count // 2), None)
    for smooth in (1, 12):
        found, spent, cpu, peak = enhance(path["static"], smooth, options, shape)
        wide = uniform_filter(found, (0, 15, 15, 0))
        print(f"static, --smooth {smooth}: standard deviation over time "
              f"{found[rest].std(0).mean():.2f} of 255 a pixel, {wide[rest].std(0).mean():.2f} in "
              f"15 x 15 px, {found[rest].mean((1, 2, 3)).std():.3f} of the frame; {count} frames "
              f"in {spent:.0f} s ({cpu:.0f} s of CPU), peak {peak:.0f} MB", flush=True)
    truth = enhance(path["clean"], 1, options, shape)[0]
    slope = np.abs(np.diff(truth.mean(-1), axis=2))
    edges = slope > np.quantile(slope, 0.9)
    for name, smooth in (("clean", 12), ("pan", 1), ("pan", 12)):
        error = np.abs(enhance(path[name], smooth, options, shape)[0] - truth).mean(-1)[:, :, 1:]
        print(f"{name}, --smooth {smooth}: differs from the pan without noise, frame by frame, by "
              f"{error.mean():.2f} of 255, at edges {error[edges].mean():.2f}", flush=True)
    _, spent, cpu, peak = enhance(path["long"], 12, options, shape)
    print(f"four times as long: {4 * count} frames in {spent:.0f} s ({cpu:.0f} s of CPU), peak "
          f"{peak:.0f} MB")


if __name__ == "__main__":
    main()
