"""Speed of lljax against the same network in PyTorch, interleaved in one run.

    python benchmarks/run.py [--quick] [--out benchmarks/results]

Each side is a process of its own with the same number of threads; they take turns, one call each,
so that a slow minute of the machine hits both. Reported are medians and the median of the ratios
of neighbouring calls.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import time
from datetime import UTC, datetime

import numpy as np

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
    net = zerodce_torch.DCENet().to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters(), 1e-4, weight_decay=1e-4)
    call = torch.compile(net) if compiled else net

    def tensor(x):
        return torch.from_numpy(x).permute(0, 3, 1, 2).float().div(255).contiguous(
            memory_format=torch.channels_last)

    def enhance(x):
        with torch.no_grad():
            y = call(tensor(x[None]))[0]
            return (y[0].permute(1, 2, 0).clamp(0, 1) * 255).round().to(torch.uint8).numpy()

    def network(x):
        with torch.no_grad():
            return call(x)[0]

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


def row(task, seconds):
    """One line of the table: medians in ms, and the ratio of each peer to lljax."""
    cells = [f"{task:22s}"]
    for name, values in seconds.items():
        cells.append(f"{name} {1000 * statistics.median(values):7.1f} ms")
        if name != "lljax":
            ratios = [peer / own for peer, own in zip(values, seconds["lljax"], strict=True)]
            cells.append(f"({statistics.median(ratios):.2f} x lljax)")
    return "  ".join(cells)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3 rounds, no torch.compile")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", default="runs/benchmarks")
    args = parser.parse_args()
    rounds = 3 if args.quick else 9
    seconds = compare(rounds, args.threads, with_compile=not args.quick)
    share = in_process(pipeline_share, args.threads, 3 if args.quick else 8)
    print(f"data and dispatch: {100 * share:.1f} % of a training step")
    os.makedirs(args.out, exist_ok=True)
    import jax
    import torch
    result = {"seconds": seconds, "pipeline_share": share, "threads": args.threads,
              "processor": processor(), "python": platform.python_version(),
              "jax": jax.__version__, "torch": torch.__version__,
              "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", ""),
              "date": datetime.now(UTC).isoformat(timespec="seconds")}
    with open(os.path.join(args.out, "results.json"), "w") as file:
        json.dump(result, file, indent=1)


def processor():
    """Name of the CPU, on Linux."""
    with open("/proc/cpuinfo") as file:
        names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
