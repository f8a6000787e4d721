"""Devices: data parallelism (the only file that says `pmap`), start-up, the compilation cache.

`jax.pmap` is `jit` of `shard_map` underneath. The state is kept unreplicated (`in_axes=None`,
`out_axes=None`): one global array a leaf, no leading device axis to strip.
"""

from __future__ import annotations

import os
import platform
import sys
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "devices"  # the mapped axis: BatchNorm and batch-wide means take it as `axis_name`


def start(coordinator: str, process_count: int, process_id: int) -> None:
    """Joins the processes of one training (call before any other use of JAX).

    Args:
      coordinator: "host:port" of process 0, or "auto" to let a cluster's launcher (SLURM, TPU
        pod, Open MPI) tell everything.
      process_count: number of processes; ignored with "auto".
      process_id: this process, from 0; ignored with "auto".
    """
    if coordinator == "auto":
        jax.distributed.initialize()
    else:
        jax.distributed.initialize(coordinator, process_count, process_id)


def sharding() -> NamedSharding:
    """The sharding of a replicated array on this process's devices."""
    return NamedSharding(Mesh(np.array(jax.local_devices()), (AXIS,)), PartitionSpec())


def place(tree: Any) -> Any:
    """Puts a tree of arrays on every local device.

    Without it the first call of a pmapped step compiles for one placement and the second for
    another, and with several processes donated buffers are lost ("Array has been deleted").
    """
    return jax.device_put(tree, sharding())


def split(batch: Any) -> Any:
    """Reshapes host arrays [B, ...] to [D, B/D, ...], D the number of local devices."""
    count = jax.local_device_count()
    return jax.tree.map(lambda x: x.reshape((count, len(x) // count) + x.shape[1:]), batch)


def pmap(step: Callable[..., tuple[Any, dict[str, jax.Array]]]) -> Callable[..., Any]:
    """Maps a training step over the devices.

    Args:
      step: (state, batch, weights) -> (state, scalars), per device. It must make the state equal
        on all devices (psum of gradients, synchronised batch statistics): device 0's is kept.

    Returns:
      The compiled step. State (donated) and weights are unreplicated, the batch has a leading
      device axis, the scalars are averaged over all devices.

    Raises:
      ValueError: at a call, if a leading axis of the batch is not the local device count.
    """
    def mapped(state, batch, weights):
        state, scalars = step(state, batch, weights)
        return state, lax.pmean(scalars, AXIS)

    compiled = jax.pmap(mapped, AXIS, in_axes=(None, 0, None), out_axes=None, donate_argnums=0)

    def call(state, batch, weights):
        count = jax.local_device_count()
        for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
            if leaf.shape[:1] != (count,):
                raise ValueError(f"batch{jax.tree_util.keystr(path)} has shape {leaf.shape}; "
                                 f"its first axis must be the {count} local devices")
        return compiled(state, batch, weights)

    call.compiled = compiled
    return call


def alone(step: Callable[..., Any]) -> Callable[..., Any]:
    """Binds the mapped axis to one device: sums over devices are over this one.

    Args:
      step: a function as `pmap` takes.

    Returns:
      The same function, to be compiled, mapped or unrolled for several runs at once.
    """
    return jax.vmap(step, in_axes=None, out_axes=None, axis_name=AXIS, axis_size=1)


def apart(step: Callable[..., Any]) -> Callable[..., Any]:
    """Maps a step of a whole run over the devices, a run each; nothing passes between them.

    Args:
      step: (state, batch, weights) -> (state, scalars), of `alone`.

    Returns:
      The compiled step; every array has a leading axis of runs, as many as devices at most. The
      state is donated.
    """
    return jax.pmap(step, donate_argnums=0)


def psum(tree: Any) -> Any:
    """Sum over all devices of all processes; only inside a function given to `pmap`."""
    return lax.psum(tree, AXIS)


def scan(body: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any,
         unroll: bool = True) -> tuple[Any, Any]:
    """`lax.scan` where compiled loops are fast, an unrolled loop on CPU.

    XLA:CPU computes a convolution's weight gradient about 30 times slower inside a compiled
    loop. The barrier keeps the unrolled copies in order, so that the activations of only one are
    alive at a time: that is what makes micro-batches of one image fast on a CPU.

    Args:
      body: (carry, x) -> (carry, y).
      carry: initial carry.
      xs: tree of arrays with a common leading axis.
      unroll: whether to unroll on a CPU; False if the body has no convolution whose weight
        gradient is XLA's (`layers.convolve` has its own), to save compile time.

    Returns:
      (carry, ys) as `lax.scan`.
    """
    if jax.default_backend() != "cpu" or not unroll:
        return lax.scan(body, carry, xs)
    ys = []
    for i in range(len(jax.tree.leaves(xs)[0])):
        carry, x = lax.optimization_barrier((carry, jax.tree.map(lambda a, i=i: a[i], xs)))
        carry, y = body(carry, x)
        ys.append(y)
    return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *ys)


def keep_programs() -> None:
    """Keeps compiled programs between runs, in the user's cache or JAX_COMPILATION_CACHE_DIR."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", os.path.join(_cache_folder(), "jax"))
    # By default only programs that took a second to compile are kept: ours take less, often.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _cache_folder() -> str:
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or os.path.expanduser(r"~\AppData\Local")
    elif sys.platform == "darwin":
        base = os.path.expanduser("~/Library/Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(base, "lljax", _processor())


def _processor() -> str:
    """A name for this kind of CPU: programs compiled for one may not run on another, and machines
    of a cluster share a home."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = next((line for line in file if line.startswith(("flags", "Features"))), "")
    except OSError:  # not Linux
        flags = platform.processor()
    return f"{platform.machine()}-{zlib.crc32(flags.encode()):08x}"
