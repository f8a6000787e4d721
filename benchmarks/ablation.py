"""Time of an ablation against as many separate trainings, compile time included.

    python benchmarks/ablation.py [--steps 10] [--side 32] [--rounds 1] [--out runs/ablation_speed]

Eight variants of Zero-DCE, as a user would run them: once by `lljax ablate`, once by eight commands
`train.py` and one `evaluate.py` over their workdirs, which gives the same scores. The sides take
turns; every round of a side begins with an empty compilation cache of its own, which its commands
share: the second to eighth `train.py` find their programs there and pay for start-up and tracing
alone. Printed are medians and the median ratio of the rounds, of wall time and of processor time
(which other programs on the machine disturb less); the scores of both sides must be equal.
"""

import argparse
import csv
import json
import os
import pathlib
import resource
import shutil
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
COLORS, WEIGHTS = (0.0, 5.0), (0.0, 20.0, 200.0, 2000.0)  # 2 x 4; the baseline is (5, 200)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10, help="of each training (default: 10)")
    parser.add_argument("--side", type=int, default=32, help="of the pictures, px (default: 32)")
    parser.add_argument("--limit", type=int, default=2, help="pictures scored (default: 2)")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--how", default="auto", help="as of lljax ablate")
    parser.add_argument("--out", default="runs/ablation_speed")
    options = parser.parse_args()
    flags = [f"--config={ROOT}/configs/zerodce.py:smoke", "--config.log.samples=0",
             f"--config.data.resize={options.side}", "--config.checkpoint.every=1000000",
             f"--config.phase.train.steps={options.steps}", "--config.log.every=1000000"]
    out = pathlib.Path(options.out).resolve()
    seconds, processor = {"ablate": [], "separate": []}, {"ablate": [], "separate": []}
    for number in range(options.rounds):
        order = list(seconds) if number % 2 else list(seconds)[::-1]
        for side in order:
            shutil.rmtree(out / side, ignore_errors=True)
            os.makedirs(out / side)
            env = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(out / side / "cache"),
                   "PYTHONPATH": str(ROOT)}
            begin, before = time.perf_counter(), children()
            SIDES[side](out / side, flags, options, env)
            seconds[side].append(time.perf_counter() - begin)
            processor[side].append(children() - before)
            print(f"round {number + 1}, {side}: {seconds[side][-1]:.1f} s, processor "
                  f"{processor[side][-1]:.1f} s", flush=True)
    check(out)
    result = {"seconds": seconds, "processor_seconds": processor, **vars(options)}
    (out / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"8 variants, {options.steps} steps of 8 pictures of {options.side} px, start-up and "
          "compilation included")
    for what, times in (("wall", seconds), ("processor", processor)):
        ratio = statistics.median(a / b for a, b in zip(*times.values(), strict=True))
        print(f"{what}: ablate {statistics.median(times['ablate']):.1f} s, separate "
              f"{statistics.median(times['separate']):.1f} s, ratio {ratio:.2f}")


def children():
    """Processor seconds of the commands that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def call(*command, env):
    done = subprocess.run(list(map(str, command)), env=env, text=True, capture_output=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")


def ablate(folder, flags, options, env):
    call(sys.executable, "-m", "lljax.cli", "ablate", *flags, "--root", folder / "root",
         f"--vary=loss.color.weight={','.join(map(str, COLORS))}",
         f"--vary=loss.smoothness.weight={','.join(map(str, WEIGHTS))}", "--seeds=1",
         f"--limit={options.limit}", f"--how={options.how}", env=env)


def separate(folder, flags, options, env):
    workdirs = []
    for color in COLORS:
        for weight in WEIGHTS:
            workdirs.append(f"--workdir={folder}/{color}_{weight}")
            call(sys.executable, ROOT / "train.py", *flags, workdirs[-1],
                 f"--config.loss.color.weight={color}",
                 f"--config.loss.smoothness.weight={weight}", env=env)
    call(sys.executable, ROOT / "evaluate.py", *workdirs, "--source=demo",
         f"--limit={options.limit}", "--out", folder / "scores", env=env)


SIDES = {"ablate": ablate, "separate": separate}


def check(out):
    """Both sides scored the same."""
    with open(out / "ablate" / "root" / "runs.csv", encoding="utf-8") as file:
        found = {row["variant"]: float(row["psnr"]) for row in csv.DictReader(file)}
    systems = json.loads((out / "separate" / "scores" / "results.json").read_text())["systems"]
    for color in COLORS:
        for weight in WEIGHTS:
            name = ("baseline" if (color, weight) == (5.0, 200.0) else
                    f"color={color}, smoothness={weight}")
            other = systems[f"{color}_{weight}"]["psnr"]["mean"]
            if abs(found[name] - other) > 1e-3:
                sys.exit(f"{name}: PSNR {found[name]} by ablate, {other} by train.py")


if __name__ == "__main__":
    main()
