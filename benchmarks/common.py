"""What the methods' benchmarks share: pictures, and lljax's side of a task (peer.py: PyTorch's).

A method is benchmarked by one file `benchmarks/<method>.py`, found by that name:

  PRESETS           of its config, a comma list
  COMMAND           True for the one method whose `lljax enhance` is timed as a user runs it
  PIPELINE          a `Pipeline`: what its training reads
  lljax_tasks       (config, nets) -> {task: function}
  torch_tasks       (nets, device, compiled) -> {task: function}, tasks of the same names
  lljax_memory      optional: (config, nets) -> {what: MiB}, of compiled programs

`nets` are the same numbers for both sides. A task returns what it computed (floats, arrays or a
tuple of them, pictures as [B, H, W, C], kernels as [h, w, C, O]), so that sides can be compared.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass
class Pipeline:
    """The training data whose cost is held against a training step.

    Attributes:
      source: "folder" or "pairs".
      phase: of the step.
      batch: pictures or pairs.
      height: of the files' pictures, px.
      width: the same.
      suffix: file format, ".jpg" or ".png".
    """

    source: str
    phase: str
    batch: int
    height: int
    width: int
    suffix: str


def picture(height, width, batch=0, bright=False):
    """Noise, mostly dark or `bright`, uint8: [H, W, 3] or [B, H, W, 3]."""
    rng = np.random.default_rng(int(bright))
    shape = (batch, height, width, 3) if batch else (height, width, 3)
    return (rng.random(shape) * 255 if bright else rng.random(shape) ** 3 * 120).astype(np.uint8)


def noise(shape, seed=0):
    """Normally distributed float32."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def initial(config):
    """Networks as a training starts them, but with random biases: a forgotten one shows."""
    import jax

    from lljax import method as method_lib
    blank = np.zeros((1, 64, 64, 3), np.float32)
    nets = method_lib.load(config).init(jax.random.key(0), {"low": blank, "high": blank})
    paths, tree = jax.tree_util.tree_flatten_with_path(jax.device_get(nets))
    return jax.tree.unflatten(tree, [
        0.05 * noise(leaf.shape, i) if path[-1].key == "bias" else leaf
        for i, (path, leaf) in enumerate(paths)])


def lljax_enhance(config, nets, width, height):
    """Picture to picture, as a user gets it, and the network alone on the whole picture."""
    import jax

    from lljax import method as method_lib
    from lljax.inference.enhancer import Enhancer
    method = method_lib.load(config)
    enhancer, low = Enhancer(method, nets), picture(height, width)
    network = jax.jit(method.enhance)
    arguments = jax.device_put((nets, low[None].astype(np.float32) / 255, jax.random.key(0)))
    return {f"enhance {width}x{height}": lambda: enhancer(low),
            f"network {width}x{height}": lambda: network(*arguments).block_until_ready()}


def lljax_train(config, nets, phase, **pictures):
    """A training step of a phase: a function that takes one and returns the total loss.

    Args:
      config: the method's, with its micro-batches.
      nets: where it starts.
      phase: name of the phase.
      **pictures: `low` and, if the method needs it, `high`, uint8 [B, H, W, 3].
    """
    from lljax import method as method_lib
    state, step, weights = training(method_lib.load(config), nets, phase)
    batch = batch_of(pictures)

    def train():
        nonlocal state
        state, scalars = step(state, batch, weights)
        return total(scalars)
    return train


def batch_of(pictures):
    """What a compiled step takes, of uint8 pictures [B, H, W, 3] by role."""
    from lljax import parallel
    size = len(pictures["low"])
    return parallel.split({**pictures, "mask": np.ones(size, np.float32),
                           "index": np.arange(size, dtype=np.int32)})


def step_memory(config, nets, phase, **pictures):
    """MiB that the compiled training step takes beside its arguments and results.

    Args:
      config: the method's, with its micro-batches.
      nets: the networks.
      phase: name of the phase.
      **pictures: as for `lljax_train`.
    """
    from lljax import method as method_lib
    state, step, weights = training(method_lib.load(config), nets, phase)
    return program_memory(step.compiled, state, batch_of(pictures), weights)


def program_memory(program, *arguments):
    """MiB that a jitted function takes beside its arguments and results; it is not run."""
    compiled = program.lower(*arguments).compile()
    return compiled.memory_analysis().temp_size_in_bytes / 2**20


def training(method, nets, phase):
    """The state, the compiled step and the loss weights of a phase."""
    from lljax import parallel
    from lljax.data import pipeline
    step = parallel.pmap(lambda s, b, w: method.train_step(
        s, pipeline.on_device(b, 0, s.step), w, phase=phase))
    return parallel.place(method.start_phase(nets, 0, phase)), step, method.weights()


def total(scalars):
    """The total losses of a step, summed; waits for the step."""
    return float(sum(value for name, value in scalars.items() if name.startswith("total/")))


def lljax_layer(name, layer, params, x, to_input=True):
    """One layer forward, and forward and back.

    Args:
      name: of the tasks.
      layer: the Flax module.
      params: its parameters, `kernel` and `bias`.
      x: input [B, H, W, C].
      to_input: whether the gradient of the input is wanted, too.
    """
    import jax
    forward = jax.jit(lambda params, x: layer.apply({"params": params}, x))
    gradient = noise(jax.eval_shape(forward, params, x).shape, 1)
    params, x, gradient = jax.device_put((params, x, gradient))

    @jax.jit
    def both(params, x):
        y, pull = jax.vjp(forward, params, x)
        to_params, to_x = pull(gradient)
        return (y, to_params["kernel"], to_params["bias"]) + ((to_x,) if to_input else ())
    return {f"{name} forward": lambda: jax.block_until_ready(forward(params, x)),
            f"{name} and back": lambda: jax.block_until_ready(both(params, x))}
