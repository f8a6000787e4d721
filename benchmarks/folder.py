"""A folder of pictures of many sizes: do reading, the network and writing hide behind each other?

    python benchmarks/folder.py --pictures DIR [--count 50 200] [--model NAME] [--side 480]

DIR has some photographs; resized copies of them, JPEG and PNG, longest sides from a third of
`--side` to `--side` px, make the folder. For each count the installed `lljax enhance` runs on it as
a user runs it, for time, CPU time and peak resident memory; then each stage runs alone on the
largest, in its plain loop: reading, network, writing. With cores to spare the whole takes about as
long as its slowest stage. Where the network itself uses every core (a CPU), nothing can hide: there
the whole can only take as much CPU time as the stages together, so both are printed.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
from PIL import Image


def make(sources, folder, count, side):
    """Writes `count` pictures; returns their megapixels."""
    files = sorted(file for file in pathlib.Path(sources).iterdir()
                   if file.suffix.lower() in (".jpg", ".png", ".bmp"))
    if not files:
        sys.exit(f"{sources}: no photographs (.jpg, .png, .bmp) there")
    rng, total = np.random.default_rng(0), 0
    folder.mkdir()
    for i in range(count):
        with Image.open(files[i % len(files)]) as image:
            picture = image.convert("RGB")
        longest = int(rng.integers(side // 3, side + 1))
        scale = longest / max(picture.size)
        picture = picture.resize([max(1, round(length * scale)) for length in picture.size])
        picture.save(folder / f"{i:04d}{('.jpg', '.png')[i % 4 == 3]}", quality=92)
        total += picture.width * picture.height
    return total / 1e6


def command(folder, out, model):
    """The installed command on a folder: (wall s of its run, CPU s in all, peak MiB)."""
    program = pathlib.Path(sys.executable).with_name("lljax")
    arguments = [program, "enhance", folder, "-o", out, "--quiet", "--json", f"{out}.json"]
    arguments += ["--model", model] if model else []
    # A child's peak is never below its parent's at the start, so this runs before JAX is imported.
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"lljax enhance ended with status {status}")
    seconds = json.loads(pathlib.Path(f"{out}.json").read_text())["seconds"]
    return seconds["run"], usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def stages(folder, out, model):
    """Each stage alone, one picture after the other: {stage: (wall s, CPU s)}, and programs."""
    import dataclasses

    import lljax
    from lljax import images
    enhancer = lljax.load(model or lljax.list_weights()[0])
    files = sorted(folder.iterdir())
    out.mkdir()
    spent = {}

    def timed(name, function, items):
        wall, cpu = time.perf_counter(), time.process_time()
        result = [function(item) for item in items]
        spent[name] = (time.perf_counter() - wall, time.process_time() - cpu)
        return result

    def network(picture):
        return dataclasses.replace(picture, pixels=enhancer(picture.pixels))

    pictures = timed("reading", images.read, files)
    for picture in pictures:
        network(picture)  # compiles
    enhanced = timed("network", network, pictures)
    timed("writing", lambda pair: images.write(out / pair[0].name, pair[1]),
          list(zip(files, enhanced, strict=True)))
    return spent, enhancer.programs


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", required=True, help="folder of photographs")
    parser.add_argument("--count", type=int, nargs="+", default=[50, 200])
    parser.add_argument("--model", help="name, workdir or file; default: that of lljax enhance")
    parser.add_argument("--side", type=int, default=480, help="longest side of the largest, px")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        whole = {}
        for count in sorted(options.count):
            folder = scratch / f"{count}"
            megapixels = make(options.pictures, folder, count, options.side)
            whole[count] = command(folder, scratch / f"out{count}", options.model)
            print("{} pictures, {:.1f} megapixels: whole {:.1f} s, CPU {:.1f} s, peak {:.0f} MiB"
                  .format(count, megapixels, *whole[count]), flush=True)
        spent, programs = stages(folder, scratch / "alone", options.model)
    for name, (wall, cpu) in spent.items():
        print(f"{name} alone: {wall:.1f} s, CPU {cpu:.1f} s")
    slowest = max(wall for wall, _ in spent.values())
    used = sum(cpu for _, cpu in spent.values())
    wall, cpu, _ = whole[max(whole)]
    print(f"whole / slowest stage: {wall / slowest:.2f}; CPU of the whole (with starting and "
          f"compiling) / of the stages: {cpu / used:.2f}; {programs} programs; "
          f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
