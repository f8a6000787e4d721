"""Speed and memory of lljax, against the same network in PyTorch where there is one.

    pip install -e '.[bench]'
    python benchmarks/run.py [--quick] [--out runs/benchmarks]

writes results.json, results.md and results.png.

Speed: each side is a process of its own with the same number of threads; they take turns, one call
each, so that a slow minute of the machine hits both. Reported are medians and the median of the
ratios of neighbouring calls. Memory and start-up: the installed command `lljax enhance` as a user
runs it, peak resident memory as the kernel counts it. Weights are random: time does not depend on
them, once PyTorch flushes denormal numbers to zero as XLA does.
"""

import argparse
import json
import multiprocessing
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime

import numpy as np
from PIL import Image

SIZES = ((480, 640), (900, 1200))  # height, width
BATCH, SIDE = 8, 256


def picture(height, width, batch=0):
    """Smooth dark noise, uint8: [H, W, 3] or [B, H, W, 3]."""
    rng = np.random.default_rng(0)
    shape = (batch, height, width, 3) if batch else (height, width, 3)
    return (rng.random(shape) ** 3 * 120).astype(np.uint8)


def lljax_side(pipe, threads):
    """The lljax process: answers each task with its seconds."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    import jax

    from lljax import config as config_lib
    from lljax import method as method_lib
    from lljax import parallel
    from lljax.data import pipeline
    from lljax.inference.enhancer import Enhancer
    config = config_lib.default("zerodce")
    method = method_lib.load(config)
    blank = np.zeros((1, 64, 64, 3), np.float32)
    nets = jax.device_get(method.init(jax.random.key(0), {"low": blank}))
    enhance = Enhancer(method, nets)
    tasks = {f"enhance {w}x{h}": (lambda p=picture(h, w): enhance(p)) for h, w in SIZES}
    whole = jax.jit(lambda nets, low: method.enhance(nets, low, jax.random.key(0)))
    for h, w in SIZES:
        low = picture(h, w)[None].astype(np.float32) / 255
        tasks[f"network {w}x{h}"] = lambda low=low: whole(nets, low).block_until_ready()

    state = parallel.place(method.start_phase(nets, 0, "train"))
    weights = method.weights()
    step = parallel.pmap(lambda s, b, w: method.train_step(
        s, pipeline.on_device(b, 0, s.step), w, phase="train"))
    batch = parallel.split({"low": picture(SIDE, SIDE, BATCH), "mask": np.ones(BATCH, np.float32),
                            "index": np.arange(BATCH, dtype=np.int32)})

    def train():
        nonlocal state
        state, scalars = step(state, batch, weights)
        return float(scalars["total/curve"])
    tasks[f"train step {BATCH}x{SIDE}"] = train
    serve(pipe, tasks)


def torch_side(pipe, threads, compiled):
    """The PyTorch process, channels_last; `compiled` by torch.compile."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    import torch
    import zerodce_torch
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # trained weights are a quarter denormals: 30 times slower
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net = zerodce_torch.DCENet().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters(), 1e-4, weight_decay=1e-4)
    call = torch.compile(net) if compiled else net

    def tensor(x):
        return torch.from_numpy(x).to(device).permute(0, 3, 1, 2).float().div(255).contiguous(
            memory_format=torch.channels_last)

    def enhance(x):
        with torch.no_grad():
            y = call(tensor(x[None]))[0]
            return (y[0].permute(1, 2, 0).clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()

    def network(x):
        with torch.no_grad():
            result = call(x)[0]
            return result.sum().item()  # waits for a GPU

    tasks = {}
    for h, w in SIZES:
        tasks[f"enhance {w}x{h}"] = lambda p=picture(h, w): enhance(p)
        tasks[f"network {w}x{h}"] = lambda x=tensor(picture(h, w)[None]): network(x)
    batch = tensor(picture(SIDE, SIDE, BATCH))
    tasks[f"train step {BATCH}x{SIDE}"] = lambda: zerodce_torch.train_step(call, optimizer, batch)
    serve(pipe, tasks)


def serve(pipe, tasks):
    """Runs tasks by name until told to stop."""
    pipe.send(list(tasks))
    while (name := pipe.recv()) is not None:
        start = time.perf_counter()
        tasks[name]()
        pipe.send(time.perf_counter() - start)


def pipeline_share(threads, steps):
    """Wall time of the loop's own work (data and dispatch) as a share of a training step."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    import tempfile

    import jax
    from PIL import Image

    from lljax import config as config_lib
    from lljax import method as method_lib
    from lljax import parallel
    from lljax.data import pipeline
    config = config_lib.default("zerodce")
    method = method_lib.load(config)
    step = parallel.pmap(lambda s, b, w: method.train_step(
        s, pipeline.on_device(b, 0, s.step), w, phase="train"))
    nets = method.init(jax.random.key(0), {"low": np.zeros((1, 64, 64, 3), np.float32)})
    state = parallel.place(method.start_phase(nets, 0, "train"))
    weights = method.weights()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(64):  # 512 px JPEGs, as the official training set's
            Image.fromarray(picture(512, 512)).save(f"{folder}/{number}.jpg", quality=90)
        config.data.source, config.data.low = "folder", folder
        stream = pipeline.Data(config.data).batches(0, 0, BATCH)
        fixed = parallel.split(next(stream)[0])
        state, scalars = step(state, fixed, weights)
        float(scalars["total/curve"])
        seconds = {"bare": 0.0, "loop": 0.0}
        for _ in range(steps):
            start = time.perf_counter()
            state, scalars = step(state, fixed, weights)
            float(scalars["total/curve"])
            seconds["bare"] += time.perf_counter() - start
            start = time.perf_counter()
            state, scalars = step(state, parallel.split(next(stream)[0]), weights)
            float(scalars["total/curve"])
            seconds["loop"] += time.perf_counter() - start
    return seconds["loop"] / seconds["bare"] - 1


def in_process(function, *args):
    """A function's result, from a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args)


def compare(rounds, threads, with_compile):
    """Seconds of every task, side by side, `rounds` times."""
    context = multiprocessing.get_context("spawn")
    sides = {"lljax": (lljax_side, ()), "torch": (torch_side, (False,))}
    if with_compile:
        sides["torch.compile"] = (torch_side, (True,))
    pipes, processes = {}, []
    for name, (target, extra) in sides.items():
        pipes[name], far = context.Pipe()
        process = context.Process(target=target, args=(far, threads, *extra), daemon=True)
        process.start()
        processes.append(process)
    tasks = [pipe.recv() for pipe in pipes.values()][0]
    seconds = {task: {name: [] for name in pipes} for task in tasks}
    for task in tasks:
        for turn in range(rounds + 2):  # two calls to compile and warm up
            for name, pipe in pipes.items():
                pipe.send(task)
                spent = pipe.recv()
                if turn >= 2:
                    seconds[task][name].append(spent)
        print(row(task, seconds[task]), flush=True)
    for pipe, process in zip(pipes.values(), processes, strict=True):
        pipe.send(None)
        process.join()
    return seconds


def ratio(peer, own):
    """Median ratio of neighbouring calls."""
    return statistics.median(a / b for a, b in zip(peer, own, strict=True))


def row(task, seconds):
    """One line of the table: medians in ms, and the ratio of each peer to lljax."""
    cells = [f"{task:22s}"]
    for name, values in seconds.items():
        cells.append(f"{name} {1000 * statistics.median(values):7.1f} ms")
        if name != "lljax":
            cells.append(f"({ratio(values, seconds['lljax']):.2f} x lljax)")
    return "  ".join(cells)


def random_weights(path):
    """Writes a weights file of the right shapes; in a process of its own, which then lets go."""
    import jax

    from lljax import config as config_lib
    from lljax import method as method_lib
    from lljax import weights
    config = config_lib.default("zerodce")
    blank = np.zeros((1, 64, 64, 3), np.float32)
    nets = method_lib.load(config).init(jax.random.key(0), {"low": blank})
    weights.save(path, config, jax.device_get(nets), {"licence": "none: random numbers"})


def command(model, picture, folder, cache):
    """One `lljax enhance`: its own split of the time, its wall time and peak memory."""
    arguments = [os.path.join(os.path.dirname(sys.executable), "lljax"), "enhance", picture,
                 "-o", folder, "--model", model, "--overwrite", "--quiet"]
    start = time.perf_counter()
    process = subprocess.Popen(arguments, env={**os.environ, "JAX_COMPILATION_CACHE_DIR": cache},
                               stdout=subprocess.PIPE, text=True)
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{' '.join(arguments)} failed")
    split = re.search(r"import ([\d.]+), compile ([\d.]+), run ([\d.]+)", text)
    return {"wall": time.perf_counter() - start, "peak_mib": usage.ru_maxrss / 1024,
            **dict(zip(("import", "compile", "run"), map(float, split.groups()), strict=True))}


def commands(quick):
    """Start-up with a cold and a warm compilation cache; cost and memory against size."""
    with tempfile.TemporaryDirectory() as folder:
        model = os.path.join(folder, "random.safetensors")
        in_process(random_weights, model)
        megapixels = {}
        for height, width in ((400, 600), (1000, 1500), (2000, 3000)) + (
                () if quick else ((4000, 6000), (5774, 8660))):
            path = os.path.join(folder, f"{width}x{height}.jpg")
            Image.fromarray(picture(height, width)).save(path, quality=92)
            megapixels[path] = width * height / 1e6
        small = next(iter(megapixels))
        cache, out = os.path.join(folder, "cache"), os.path.join(folder, "out")
        start_up = {"cold": [command(model, small, out, cache)],
                    "warm": [command(model, small, out, cache) for _ in range(1 if quick else 5)]}
        sizes = []
        for path, size in megapixels.items():
            command(model, path, out, cache)  # compiles
            sizes.append({"megapixels": size, **command(model, path, out, cache)})
    return start_up, sizes


def markdown(result):
    """The tables of results.md."""
    names = list(next(iter(result["seconds"].values())))
    lines = [f"{result['processor']}, {result['threads']} threads, {result['date'][:10]}; Python "
             f"{result['python']}, JAX {result['jax']}, PyTorch {result['torch']} (channels_last, "
             "denormals flushed).", "",
             "| Zero-DCE, float32 | " + " | ".join(f"{name}, ms" for name in names)
             + " | peers / lljax |", "|---" * (2 + len(names)) + "|"]
    for task, sides in result["seconds"].items():
        ratios = [f"{ratio(values, sides['lljax']):.2f}" for name, values in sides.items()
                  if name != "lljax"]
        medians = [f"{1000 * statistics.median(values):.0f}" for values in sides.values()]
        lines.append(f"| {task} | {' | '.join(medians)} | {', '.join(ratios)} |")
    lines += ["", f"Data pipeline and dispatch: {100 * result['pipeline_share']:.1f} % of a "
              "training step.", "",
              "| `lljax enhance one.jpg` | wall, s | import | compile | run |",
              "|---|---|---|---|---|"]
    for name, runs in result["start_up"].items():
        cells = [f"{statistics.median(run[key] for run in runs):.1f}"
                 for key in ("wall", "import", "compile", "run")]
        lines.append(f"| {name} compilation cache | {' | '.join(cells)} |")
    lines += ["", "| megapixels | wall, s | run, s | peak memory, MiB |", "|---|---|---|---|"]
    lines += [f"| {row['megapixels']:.1f} | {row['wall']:.1f} | {row['run']:.1f} | "
              f"{row['peak_mib']:.0f} |" for row in result["sizes"]]
    return "\n".join(lines) + "\n"


def plot(result, path):
    """Speed against the peers, and time and memory against size."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    tasks = list(result["seconds"])
    names = list(next(iter(result["seconds"].values())))
    for number, name in enumerate(names):
        values = [ratio(result["seconds"][task][name], result["seconds"][task]["lljax"])
                  for task in tasks]
        left.barh(np.arange(len(tasks)) + 0.25 * number, values, 0.25, label=name)
    left.set_yticks(np.arange(len(tasks)) + 0.25, tasks)
    left.set_xlabel("time / lljax's time")
    left.invert_yaxis()
    left.legend()
    size = [row["megapixels"] for row in result["sizes"]]
    right.plot(size, [row["run"] for row in result["sizes"]], "o-", label="run, s")
    right.set_xlabel("megapixels")
    right.set_ylabel("s")
    memory = right.twinx()
    memory.plot(size, [row["peak_mib"] for row in result["sizes"]], "s--", color="tab:red")
    memory.set_ylabel("peak memory, MiB (dashed)")
    memory.set_ylim(0)
    right.legend(loc="upper left")
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3 rounds, no torch.compile, small")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", default="runs/benchmarks")
    args = parser.parse_args()
    rounds = 3 if args.quick else 9
    seconds = compare(rounds, args.threads, with_compile=not args.quick)
    share = in_process(pipeline_share, args.threads, 3 if args.quick else 8)
    start_up, sizes = commands(args.quick)
    os.makedirs(args.out, exist_ok=True)
    import jax
    import torch
    result = {"seconds": seconds, "pipeline_share": share, "start_up": start_up, "sizes": sizes,
              "threads": args.threads, "processor": processor(),
              "python": platform.python_version(), "jax": jax.__version__,
              "torch": torch.__version__, "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", ""),
              "date": datetime.now(UTC).isoformat(timespec="seconds")}
    with open(os.path.join(args.out, "results.json"), "w") as file:
        json.dump(result, file, indent=1)
    text = markdown(result)
    with open(os.path.join(args.out, "results.md"), "w") as file:
        file.write(text)
    plot(result, os.path.join(args.out, "results.png"))
    print(f"\n{text}\nwrote results.json, results.md and results.png to {args.out}")


def processor():
    """Name of the CPU, on Linux."""
    with open("/proc/cpuinfo") as file:
        names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
