"""Speed and memory of lljax, against the same networks in PyTorch where there are any.

    pip install -e '.[bench]'
    python benchmarks/run.py [--quick] [--method NAME|all] [--out runs/benchmarks]

writes results.json, results.md and results.png. What is timed for a method is said in the file of
its name beside this one; common.py says how such a file is made.

Speed: each side is a process of its own with the same number of threads; they take turns, one call
each, so that a slow minute of the machine hits both. Reported are medians and the median of the
ratios of neighbouring calls. The first three calls warm up, and what they give is compared: outputs
must agree to 1e-4, total losses of three training steps to 1e-3, 8-bit pictures to one level.
Memory and start-up: the installed command `lljax enhance` as a user runs it, peak resident memory
as the kernel counts it; it never counts less than the parent's own peak, so this process stays
small. Weights are random: time does not depend on them, once PyTorch flushes
denormal numbers to zero as XLA does.

To try settings, e.g. micro-batches, a side of its own for each:

    python benchmarks/run.py --method NAME --task step --also phase.PHASE.microbatch=1

The memory of a method's compiled programs alone, which are not run:

    python benchmarks/run.py --method NAME --memory
"""

import argparse
import importlib
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
from importlib import metadata

import numpy as np
from common import initial, picture, total, training
from PIL import Image

WARM_UP = 3  # calls, whose results are compared
GPU_LIMIT = 1e-2  # of the differences: TF32 has ten bits


def methods():
    """The methods of lljax that have a file here."""
    import lljax
    here, package = (os.path.dirname(os.path.abspath(file)) for file in (__file__, lljax.__file__))
    known = set(os.listdir(here)) & set(os.listdir(os.path.join(package, "methods")))
    return sorted(name[:-3] for name in known if name.endswith(".py"))


def prepare(name, settings=()):
    """A method's benchmarks and its config."""
    from lljax import config as config_lib
    module = importlib.import_module(name)
    return module, config_lib.change(config_lib.default(name, module.PRESETS), settings)


def is_command(name):
    """Whether a method is the one that `lljax enhance` is timed with."""
    return importlib.import_module(name).COMMAND


def start_weights(name):
    """The numbers that both sides start from."""
    return initial(prepare(name)[1])


def lljax_side(pipe, threads, name, nets, settings):
    """The lljax process: answers each task with its seconds."""
    pin(threads)
    import jax
    device = jax.devices()[0].platform  # before the method's file brings PyTorch's libraries
    module, config = prepare(name, settings)
    serve(pipe, module.lljax_tasks(config, nets), device)


def torch_side(pipe, threads, name, nets, compiled):
    """The PyTorch process, channels_last; `compiled` by torch.compile."""
    pin(threads)
    # Waiting for each other, its threads spin; where another program wants their core, they then
    # spin for a whole time slice an operation: a step of many small ones was six times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import torch
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # trained weights are a quarter denormals: 30 times slower
    device = "cuda" if torch.cuda.is_available() else "cpu"
    serve(pipe, importlib.import_module(name).torch_tasks(nets, device, compiled), device)


def pin(threads):
    """Restricts this process to so many cores."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def serve(pipe, tasks, device):
    """Runs tasks by name until told to stop; sends the seconds and, if asked for, the result."""
    pipe.send((device, list(tasks)))
    while (order := pipe.recv()) is not None:
        name, wanted = order
        start = time.perf_counter()
        result = tasks[name]()
        seconds = time.perf_counter() - start
        pipe.send((seconds, on_host(result) if wanted else None))


def on_host(result):
    """The arrays of a task's result, as NumPy has them."""
    parts = result if isinstance(result, tuple) else (result,)
    return [np.asarray(part.cpu() if hasattr(part, "cpu") else part) for part in parts]


def pipeline_share(name, threads, steps):
    """Wall time of the loop's own work (data and dispatch) as a share of a training step."""
    pin(threads)
    from lljax import method as method_lib
    from lljax import parallel
    from lljax.data import pipeline
    module, config = prepare(name)
    pictures = module.PIPELINE
    state, step, weights = training(method_lib.load(config), initial(config), pictures.phase)
    with tempfile.TemporaryDirectory() as folder:
        config.data.source = pictures.source
        for role in ("low",) if pictures.source == "folder" else ("low", "high"):
            config.data[role] = os.path.join(folder, role)
            os.mkdir(config.data[role])
            image = Image.fromarray(picture(pictures.height, pictures.width, bright=role == "high"))
            for number in range(64):
                image.save(os.path.join(config.data[role], f"{number}{pictures.suffix}"))
        stream = pipeline.Data(config.data).batches(0, 0, pictures.batch)
        fixed = parallel.split(next(stream)[0])
        state, scalars = step(state, fixed, weights)
        total(scalars)
        seconds = {"bare": 0.0, "loop": 0.0}
        for _ in range(steps):
            start = time.perf_counter()
            state, scalars = step(state, fixed, weights)
            total(scalars)
            seconds["bare"] += time.perf_counter() - start
            start = time.perf_counter()
            state, scalars = step(state, parallel.split(next(stream)[0]), weights)
            total(scalars)
            seconds["loop"] += time.perf_counter() - start
    return seconds["loop"] / seconds["bare"] - 1


def memory(name, threads):
    """MiB of a method's compiled programs, as far as its file asks for them."""
    pin(threads)
    module, config = prepare(name)
    wanted = getattr(module, "lljax_memory", None)
    return wanted(config, initial(config)) if wanted else {}


def in_process(function, *args):
    """A function's result, from a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args)


def compare(name, args):
    """Seconds of every task of a method, side by side, and how far the sides' results differ."""
    context = multiprocessing.get_context("spawn")
    nets = in_process(start_weights, name)
    sides = {"lljax": (lljax_side, ())}
    sides |= {setting: (lljax_side, setting.split()) for setting in args.also}
    sides["torch"] = (torch_side, False)
    if not args.quick:
        sides["torch.compile"] = (torch_side, True)
    pipes, processes, devices, offered = {}, [], {}, {}
    for side, (target, how) in sides.items():
        pipes[side], far = context.Pipe()
        process = context.Process(target=target, args=(far, args.threads, name, nets, how),
                                  daemon=True)
        process.start()
        far.close()  # so that a side that dies is noticed
        processes.append(process)
    for side, pipe in pipes.items():
        devices[side], offered[side] = pipe.recv()
    print(f"{name}: " + ", ".join(f"{side} on {device}" for side, device in devices.items()))
    seconds, differences = {}, {}
    for task in offered["lljax"]:
        if args.task not in task:
            continue
        present = {side: pipe for side, pipe in pipes.items() if task in offered[side]}
        seconds[task] = {side: [] for side in present}
        differences[task] = dict.fromkeys(present, 0.0)
        for turn in range(WARM_UP + args.rounds):
            results = {}
            for side, pipe in present.items():
                pipe.send((task, turn < WARM_UP))
                spent, results[side] = pipe.recv()
                if turn >= WARM_UP:
                    seconds[task][side].append(spent)
            if turn < WARM_UP:
                for side in present:
                    differences[task][side] = max(differences[task][side], difference(
                        f"{name}, {task}, {side}", results["lljax"], results[side],
                        exact=set(devices.values()) == {"cpu"}))
        print(row(task, seconds[task]), flush=True)
    for pipe, process in zip(pipes.values(), processes, strict=True):
        pipe.send(None)
        process.join()
    return seconds, differences


def difference(what, own, peer, exact):
    """The largest difference of two results, relative where they exceed 1.

    Args:
      what: they are.
      own: arrays that lljax gave.
      peer: those of the other side.
      exact: whether both computed with all bits of float32.

    Raises:
      SystemExit: it is too large, or the shapes differ.
    """
    worst = 0.0
    for a, b in zip(own, peer, strict=True):
        if a.shape != b.shape:
            raise SystemExit(f"{what}: shape {b.shape}, lljax has {a.shape}")
        limit = 1e-4 if a.ndim else 1e-3
        scale = max(1.0, float(np.abs(a).max()))
        if a.dtype == np.uint8:
            limit, scale = 1 / 255, 255.0
        found = float(np.abs(a.astype(np.float64) - b).max()) / scale
        if not exact:
            limit = max(limit, GPU_LIMIT)
        if not found <= limit:
            raise SystemExit(f"{what}: differs from lljax by {found:.2g}, more than {limit:.2g}; "
                             "the two sides do not compute the same")
        worst = max(worst, found)
    return worst


def ratio(peer, own):
    """Median ratio of neighbouring calls."""
    return statistics.median(a / b for a, b in zip(peer, own, strict=True))


def row(task, seconds):
    """One line of the table: medians in ms, and the ratio of each other side to lljax."""
    cells = [f"{task:28s}"]
    for name, values in seconds.items():
        cells.append(f"{name} {1000 * statistics.median(values):7.1f} ms")
        if name != "lljax":
            cells.append(f"({ratio(values, seconds['lljax']):.2f} x lljax)")
    return "  ".join(cells)


def random_weights(name, path):
    """Writes a weights file of the right shapes; in a process of its own, which then lets go."""
    from lljax import weights
    config = prepare(name)[1]
    weights.save(path, config, initial(config), {"licence": "none: random numbers"})


def write_picture(path, height, width):
    """Writes a JPEG; in a process of its own, as `random_weights`."""
    Image.fromarray(picture(height, width)).save(path, quality=92)


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


def commands(name, quick):
    """Start-up with a cold and a warm compilation cache; cost and memory against size."""
    with tempfile.TemporaryDirectory() as folder:
        model = os.path.join(folder, "random.safetensors")
        in_process(random_weights, name, model)
        megapixels = {}
        for height, width in ((400, 600), (1000, 1500), (2000, 3000)) + (
                () if quick else ((4000, 6000), (5774, 8660))):
            path = os.path.join(folder, f"{width}x{height}.jpg")
            in_process(write_picture, path, height, width)
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
    lines = [f"{result['processor']}, {result['threads']} threads, {result['date'][:10]}; Python "
             f"{result['python']}, JAX {result['jax']}, PyTorch {result['torch']} (channels_last, "
             f"denormals flushed, OMP_WAIT_POLICY={result['OMP_WAIT_POLICY']})."]
    for method, tasks in result["seconds"].items():
        names = list(next(iter(tasks.values())))
        lines += ["", f"| {method}, float32 | " + " | ".join(f"{name}, ms" for name in names)
                  + " | others / lljax | difference |", "|---" * (3 + len(names)) + "|"]
        for task, sides in tasks.items():
            ratios = [f"{ratio(values, sides['lljax']):.2f}" for name, values in sides.items()
                      if name != "lljax"]
            medians = [f"{1000 * statistics.median(sides[name]):.4g}" if name in sides else ""
                       for name in names]
            worst = max(result["differences"][method][task].values())
            lines.append(f"| {task} | {' | '.join(medians)} | {', '.join(ratios)} | {worst:.1g} |")
        if method in result["pipeline_share"]:
            share = 100 * result["pipeline_share"][method]
            lines += ["", f"Data pipeline and dispatch: {share:.1f} % of a training step."]
        if found := result["memory"].get(method):
            lines += ["", *memory_table(found)]
    if result["start_up"]:
        lines += ["", "| `lljax enhance one.jpg` | wall, s | import | compile | run |",
                  "|---|---|---|---|---|"]
    for name, runs in result["start_up"].items():
        cells = [f"{statistics.median(run[key] for run in runs):.1f}"
                 for key in ("wall", "import", "compile", "run")]
        lines.append(f"| {name} compilation cache | {' | '.join(cells)} |")
    if result["sizes"]:
        lines += ["", "| megapixels | wall, s | run, s | peak memory, MiB |", "|---|---|---|---|"]
    lines += [f"| {row['megapixels']:.1f} | {row['wall']:.1f} | {row['run']:.1f} | "
              f"{row['peak_mib']:.0f} |" for row in result["sizes"]]
    return "\n".join(lines) + "\n"


def memory_table(found):
    """A table's lines, of {what: MiB}."""
    return ["| memory of the compiled program | MiB |", "|---|---|",
            *(f"| {what} | {mib:.0f} |" for what, mib in found.items())]


def plot(result, path):
    """Speed against the peers, a group a method, and time and memory against size."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    groups, sizes = result["seconds"], result["sizes"]
    counts = [len(tasks) for tasks in groups.values()]
    figure = pyplot.figure(figsize=(11 if sizes else 7, 2 + 0.45 * sum(counts)),
                           layout="constrained")
    grid = figure.add_gridspec(len(groups), 2 if sizes else 1, height_ratios=counts)
    axes = None
    for number, (method, tasks) in enumerate(groups.items()):
        axes = figure.add_subplot(grid[number, 0], sharex=axes)
        _bars(axes, method, tasks)
    axes.set_xlabel("time / lljax's time")
    if sizes:
        _growth(figure.add_subplot(grid[:, 1]), sizes)
    figure.savefig(path, dpi=120)


def _bars(axes, method, tasks):
    """One method's tasks, a bar a side."""
    names = list(next(iter(tasks.values())))
    height = 0.8 / len(names)
    for number, name in enumerate(names):
        at = [i for i, sides in enumerate(tasks.values()) if name in sides]
        values = [ratio(sides[name], sides["lljax"]) for sides in tasks.values() if name in sides]
        axes.barh(np.array(at) + height * number, values, height, label=name)
    axes.set_yticks(np.arange(len(tasks)) + 0.4 - height / 2, tasks)
    axes.set_title(method, loc="left")
    axes.invert_yaxis()
    axes.legend(fontsize="small")


def _growth(axes, sizes):
    """Time and memory of the command against the size of the picture."""
    size = [row["megapixels"] for row in sizes]
    axes.plot(size, [row["run"] for row in sizes], "o-", label="run, s")
    axes.set_title("lljax enhance", loc="left")
    axes.set_xlabel("megapixels")
    axes.set_ylabel("s")
    memory = axes.twinx()
    memory.plot(size, [row["peak_mib"] for row in sizes], "s--", color="tab:red")
    memory.set_ylabel("peak memory, MiB (dashed)")
    memory.set_ylim(0)
    axes.legend(loc="upper left")


def arguments():
    """The command line."""
    known = methods()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", default="all", choices=["all", *known])
    parser.add_argument("--quick", action="store_true", help="3 rounds, no torch.compile, small")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", default="runs/benchmarks")
    parser.add_argument("--task", default="", metavar="TEXT",
                        help="only tasks whose name has this in it, and nothing but tasks")
    parser.add_argument("--also", action="append", default=[], metavar="'KEY=VALUE ...'",
                        help="one more side, lljax with these settings; may be repeated")
    parser.add_argument("--memory", action="store_true",
                        help="only the memory of compiled programs; writes no files")
    args = parser.parse_args()
    args.methods = known if args.method == "all" else [args.method]
    args.rounds = 3 if args.quick else 9
    if args.also and len(args.methods) > 1:
        parser.error("--also needs --method: settings are a method's own")
    return args


def main():
    args = arguments()
    if args.memory:
        for name in args.methods:
            print("\n".join([f"{name}:", *memory_table(in_process(memory, name, args.threads))]))
        return
    compared = {name: compare(name, args) for name in args.methods}
    shares, memories, start_up, sizes = {}, {}, {}, []
    if not args.task:
        steps = 3 if args.quick else 8
        memories = {name: in_process(memory, name, args.threads) for name in args.methods}
        shares = {name: in_process(pipeline_share, name, args.threads, steps)
                  for name in args.methods}
        for name in args.methods:
            if in_process(is_command, name):
                start_up, sizes = commands(name, args.quick)
    os.makedirs(args.out, exist_ok=True)
    result = {"seconds": {name: seconds for name, (seconds, _) in compared.items()},
              "differences": {name: found for name, (_, found) in compared.items()},
              "pipeline_share": shares, "memory": memories, "start_up": start_up, "sizes": sizes,
              "threads": args.threads, "processor": processor(),
              "python": platform.python_version(), "jax": metadata.version("jax"),
              "torch": metadata.version("torch"),
              "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", ""),
              "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "passive"),
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
