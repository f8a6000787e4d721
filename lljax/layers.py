"""Blocks that two or more methods share: torch-exact layers, light curves, VGG16 features."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lljax import tensors as tensors_lib
from lljax.errors import InputError, unknown

Array = jax.Array
Initializer = Callable[..., Array]
Pads = tuple[tuple[int, int], tuple[int, int]]  # (above, below), (left, right)

PADDINGS = ("zero", "replicate", "valid")
ORIGINS = ("torch", "tensorflow")


# ---- torch-exact layers ----


def torch_uniform(fan_in: int) -> Initializer:
    """torch's default initial values of a convolution's or linear layer's kernel and bias.

    Args:
      fan_in: inputs of one output value, e.g. 9 * channels for a 3 x 3 convolution.

    Returns:
      An initializer of U(-1 / sqrt(fan_in), 1 / sqrt(fan_in)).

    Source: torch.nn.Conv2d.reset_parameters (kaiming_uniform with a = sqrt(5) is the same bound).
    """
    bound = fan_in ** -0.5

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def kernel_from_torch(weight: np.ndarray) -> np.ndarray:
    """A torch convolution kernel [out, in, h, w] in the layout of this project, [h, w, in, out]."""
    return np.ascontiguousarray(np.transpose(weight, (2, 3, 1, 0)))


def kernel_from_torch_transposed(weight: np.ndarray) -> np.ndarray:
    """A torch ConvTranspose2d kernel [in, out, h, w] as `ConvTranspose` has it, [h, w, in, out].

    It is turned by 180 degrees: torch spreads each input value with the kernel, here a convolution
    of the input with zeros between its values gathers them.
    """
    return np.ascontiguousarray(np.transpose(weight, (2, 3, 0, 1))[::-1, ::-1])


def _convolve(x: Array, kernel: Array, stride: int, pads: Pads, spread: int = 1) -> Array:
    """The convolution as XLA does it, of x with `spread` - 1 zeros between its values."""
    small = any(isinstance(side, int) and side < taps  # an exported program's may be a symbol
                for side, taps in zip(x.shape[1:3], kernel.shape[:2], strict=True))
    if jax.default_backend() == "cpu" and small:
        # where the kernel is larger than the picture without its pads, XLA:CPU is 40 times slower;
        # without the barrier it would make them pads again
        sides = ((*pad, spread - 1) for pad in pads)
        x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *sides, (0, 0, 0)))
        x = lax.optimization_barrier(x)
        pads, spread = ((0, 0), (0, 0)), 1
    return lax.conv_general_dilated(x, kernel, (stride, stride), pads, (spread, spread),
                                    dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _turn(kernel: Array) -> Array:
    """The kernel [h, w, O, C] that carries a gradient back through [h, w, C, O]."""
    return jnp.flip(kernel, (0, 1)).swapaxes(2, 3)


def _same(kernel: Array) -> Pads:
    h, w = kernel.shape[0] // 2, kernel.shape[1] // 2
    return (h, h), (w, w)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(x: Array, kernel: Array, stride: int = 1, pads: Pads | None = None) -> Array:
    """Convolution with zero padding.

    On a CPU the kernel's gradient is computed as matrix products: XLA's own made a whole
    training step of Zero-DCE 1.4 times slower, and is 30 to 75 times slower in a compiled loop.
    It is the same sum in another order.

    Args:
      x: [B, H, W, C].
      kernel: [h, w, C, O].
      stride: step of the kernel in px, down and across.
      pads: rows of zeros ((above, below), (left, right)); None is half the kernel's sides, rounded
        down, which for odd sides and stride 1 keeps the size.

    Returns:
      [B, (H + above + below - h) // stride + 1, the same of W, O].
    """
    return _convolve(x, kernel, stride, pads or _same(kernel))


def _convolve_forward(x, kernel, stride, pads):
    return _convolve(x, kernel, stride, pads or _same(kernel)), (x, kernel)


def _convolve_backward(stride, pads, residuals, gradient):
    x, kernel = residuals
    pads = pads or _same(kernel)
    if jax.default_backend() != "cpu":
        return jax.vjp(lambda x, k: _convolve(x, k, stride, pads), x, kernel)[1](gradient)
    to_x = _input_gradient(gradient, kernel, x.shape, stride, pads)
    return to_x, _kernel_gradient(x, gradient, kernel.shape, stride, pads)


convolve.defvjp(_convolve_forward, _convolve_backward)


def _input_gradient(gradient: Array, kernel: Array, shape: tuple[int, ...], stride: int,
                    pads: Pads) -> Array:
    """d loss / d x, by a convolution of stride 1.

    With a stride, each residue of the rows and columns of x has met its own part of the kernel; the
    residues are computed as so many more channels and then put between each other. XLA convolves
    the gradient with zeros between its values instead: that takes about as long, and for small
    pictures with many channels 20 times longer.
    """
    if stride == 1:
        return _convolve(gradient, _turn(kernel), 1, _turned(pads, kernel.shape))
    h, w, c, o = kernel.shape
    taps = (-(-h // stride), -(-w // stride))
    kernel = jnp.pad(kernel, ((0, taps[0] * stride - h), (0, taps[1] * stride - w), (0, 0), (0, 0)))
    kernel = kernel.reshape(taps[0], stride, taps[1], stride, c, o).transpose(0, 2, 5, 1, 3, 4)
    kernel = jnp.flip(kernel, (0, 1)).reshape(*taps, o, stride * stride * c)
    # padded row stride * q + residue of x has met row q - m of the output by tap m
    first = [before // stride for before, _ in pads]
    last = [(side - 1 + before) // stride
            for side, (before, _) in zip(shape[1:3], pads, strict=True)]
    margins = [(count - 1 - low, high - side + 1) for count, low, high, side in zip(
        taps, first, last, gradient.shape[1:3], strict=True)]
    x = _convolve(gradient, kernel, 1, tuple(margins))
    batch, rows, columns, _ = x.shape
    x = x.reshape(batch, rows, columns, stride, stride, c).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(batch, rows * stride, columns * stride, c)
    top, left = (before % stride for before, _ in pads)
    return x[:, top:top + shape[1], left:left + shape[2]]


def _turned(pads: Pads, shape: tuple[int, ...]) -> Pads:
    """The pads with which the turned kernel undoes a convolution of stride 1 with `pads`."""
    (above, below), (left, right) = pads
    h, w = shape[0] - 1, shape[1] - 1
    return (h - above, h - below), (w - left, w - right)


def _kernel_gradient(x: Array, gradient: Array, shape: tuple[int, ...], stride: int,
                     pads: Pads) -> Array:
    """d loss / d kernel[i, j] = sum over pixels of x shifted by (i, j), times the gradient.

    All shifts in one matrix product: either x is shifted by the columns j and, the other way, the
    gradient by the rows i, or one of them by both. The fewest values a pixel are copied that way
    that suits the numbers of channels.
    """
    h, w, c, o = shape
    both, x_only, gradient_only = w * c + h * o, h * w * c + o, c + h * w * o
    if stride == 1 and h * w > 1 and gradient_only < min(both, x_only):
        # the two change places: the gradient is shifted and the result is the turned kernel
        return _turn(_shift_x(gradient, x, (h, w, o, c), 1, _turned(pads, shape)))
    if h * w > 1 and x_only < both:
        return _shift_x(x, gradient, shape, stride, pads)
    return _shift_both(x, gradient, shape, stride, pads)


def _shift_x(x: Array, gradient: Array, shape: tuple[int, ...], stride: int, pads: Pads) -> Array:
    """Product of [h w C, pixels] and [pixels, O], over bands of rows in a compiled loop.

    The loop's buffers stay in the cache: with 9 x 9 shifts it is twice as fast as bands unrolled.
    """
    h, w, c, o = shape
    batch, height, width, _ = gradient.shape
    rows = min(height, max(1, 1024 // (width * batch)))
    bands = -(-height // rows)
    (above, below), across = pads
    below = max(below, (bands * rows - 1) * stride + h - above - x.shape[1])
    x = lax.pad(x, jnp.zeros((), x.dtype),
                ((0, 0, 0), (above, below, 0), (*across, 0), (0, 0, 0)))
    gradient = jnp.pad(gradient, ((0, 0), (0, bands * rows - height), (0, 0), (0, 0)))

    def add(band, total):
        part = lax.dynamic_slice_in_dim(x, band * rows * stride, (rows - 1) * stride + h, 1)
        part = _shifts(part, 2, range(w), stride, width)
        part = _shifts(part, 1, range(h), stride, rows)
        right = lax.dynamic_slice_in_dim(gradient, band * rows, rows, 1)
        return total + jnp.tensordot(part, right, ((0, 1, 2), (0, 1, 2)))

    return lax.fori_loop(0, bands, add, jnp.zeros((h * w * c, o), x.dtype)).reshape(shape)


def _shift_both(x: Array, gradient: Array, shape: tuple[int, ...], stride: int,
                pads: Pads) -> Array:
    """Products of [w C, pixels] and [pixels, h O], over bands of rows in a compiled loop.

    With a stride, each residue of the rows of x meets its own rows of the kernel: every stride-th
    one.
    """
    h, w, c, o = shape
    batch, height, width, _ = gradient.shape
    above, across = pads[0][0], (*pads[1], 0)
    blank, none = jnp.zeros((), x.dtype), (0, 0, 0)
    kernel = jnp.zeros(shape, x.dtype)
    for residue in range(min(stride, h)):
        # row r of `part`, times the gradient's row r + offset - i, is for kernel row
        # residue + stride * i
        first = (residue - above) % stride
        offset = (first + above - residue) // stride
        part = x[:, first::stride]
        count, taps = part.shape[1], len(range(residue, h, stride))
        # bands of 512 pixels stay in the cache (two to four times faster than 2,048)
        rows = max(1, min(count, 512 // (width * batch) if h * w > 1 else count))
        bands = max(1, -(-count // rows))
        part = lax.pad(part, blank, (none, (0, bands * rows - count, 0), across, none))
        before = taps - 1 - offset
        after = bands * rows + taps - 1 - before - height
        right = lax.pad(gradient, blank, (none, (before, after, 0), none, none))

        def add(band, total, part=part, right=right, rows=rows, taps=taps):
            left = lax.dynamic_slice_in_dim(part, band * rows, rows, 1)
            left = _shifts(left, 2, range(w), stride, width)
            band = lax.dynamic_slice_in_dim(right, band * rows, rows + taps - 1, 1)
            band = _shifts(band, 1, range(taps - 1, -1, -1), 1, rows)
            return total + jnp.tensordot(left, band, ((0, 1, 2), (0, 1, 2)))

        total = lax.fori_loop(0, bands, add, jnp.zeros((w * c, taps * o), x.dtype))
        kernel = kernel.at[residue::stride].set(
            total.reshape(w, c, taps, o).transpose(2, 0, 1, 3))
    return kernel


def _shifts(x: Array, axis: int, starts: Iterable[int], stride: int, count: int) -> Array:
    """`count` rows or columns of x from each start on, side by side as channels."""
    return jnp.concatenate([lax.slice_in_dim(x, start, start + stride * (count - 1) + 1, stride,
                                             axis) for start in starts], -1)


class Conv(nn.Module):
    """Convolution with torch's parameter shapes and, unless told otherwise, padding and start.

    Given several inputs it convolves their concatenation along the channels, computed as a sum of
    one convolution an input: the same up to rounding, and the concatenation is never written
    (3 x 3, 32 + 32 channels on a CPU: forward 10 to 25 % faster, gradient no slower).

    Attributes:
      features: output channels.
      size: side of the kernel.
      stride: step of the kernel in px.
      padding: what lies outside the picture: "zero", "replicate" (the nearest edge pixel), or
        "valid" (nothing: the output is smaller by the kernel's side - 1).
      origin: whose widths of the padding: "torch", size // 2 on all sides, or "tensorflow", what
        SAME needs, the odd one below and on the right. They differ for an even kernel, and for
        stride 2 on even sides.
      kernel_init: initial kernel; None is torch's default.
      bias_init: initial bias; None is torch's default.

    Raises:
      InputError: an unknown padding or origin.
    """

    features: int
    size: int = 3
    stride: int = 1
    padding: str = "zero"
    origin: str = "torch"
    kernel_init: Initializer | None = None
    bias_init: Initializer | None = None

    @nn.compact
    def __call__(self, *inputs: Array) -> Array:
        """[B, H, W, C_i] each -> [B, h, w, features]; h, w = H, W at stride 1 and odd size."""
        channels = [x.shape[-1] for x in inputs]
        default = torch_uniform(self.size * self.size * sum(channels))
        kernel = self.param("kernel", self.kernel_init or default,
                            (self.size, self.size, sum(channels), self.features))
        out = self.param("bias", self.bias_init or default, (self.features,))
        pads = self._pads(*inputs[0].shape[1:3])
        for x, part in zip(inputs, jnp.split(kernel, np.cumsum(channels)[:-1], axis=2),
                           strict=True):
            if self.padding == "replicate":
                x = jnp.pad(x, ((0, 0), *pads, (0, 0)), mode="edge")
            out = out + convolve(x, part, self.stride,
                                 pads if self.padding == "zero" else ((0, 0), (0, 0)))
        return out

    def _pads(self, height: int, width: int) -> Pads:
        if self.padding not in PADDINGS:
            raise unknown("padding", self.padding, PADDINGS)
        if self.origin not in ORIGINS:
            raise unknown("origin of a padding", self.origin, ORIGINS)
        if self.origin == "torch":
            return ((self.size // 2,) * 2,) * 2
        window, strides = (self.size,) * 2, (self.stride,) * 2
        down, across = lax.padtype_to_pads((height, width), window, strides, "SAME")
        return tuple(down), tuple(across)


def _shifted_products(x: Array, kernel: Array) -> Array:
    h, w = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return sum(x[:, i:i + h, j:j + w] * kernel[i, j, 0] for i in range(3) for j in range(3))


@jax.custom_vjp
def depthwise(x: Array, kernel: Array) -> Array:
    """3 x 3 convolution of every channel by itself, zeros outside.

    Nine shifted products: XLA's grouped convolution is 30 times slower on a CPU.

    Args:
      x: [B, H, W, C].
      kernel: [3, 3, 1, C].

    Returns:
      [B, H, W, C].
    """
    return _shifted_products(x, kernel)


def _depthwise_forward(x, kernel):
    return _shifted_products(x, kernel), (x, kernel)


def _depthwise_backward(residuals, gradient):
    x, kernel = residuals
    batch, height, width, channels = x.shape
    to_x = _shifted_products(gradient, jnp.flip(kernel, (0, 1)))
    # bands of 512 pixels stay in the cache: 64 channels of 128 x 128 px take a quarter of the time
    rows = height
    if jax.default_backend() == "cpu":
        rows = min(height, max(1, 512 // (width * batch)))
    bands = -(-height // rows)
    rest = bands * rows - height
    x = jnp.pad(x, ((0, 0), (1, 1 + rest), (1, 1), (0, 0)))
    gradient = jnp.pad(gradient, ((0, 0), (0, rest), (0, 0), (0, 0)))

    def add(band, total):
        part = lax.dynamic_slice_in_dim(x, band * rows, rows + 2, 1)
        right = lax.dynamic_slice_in_dim(gradient, band * rows, rows, 1)
        return total + jnp.stack([(part[:, i:i + rows, j:j + width] * right).sum((0, 1, 2))
                                  for i in range(3) for j in range(3)])

    to_kernel = lax.fori_loop(0, bands, add, jnp.zeros((9, channels), x.dtype))
    return to_x, to_kernel.reshape(kernel.shape)


depthwise.defvjp(_depthwise_forward, _depthwise_backward)


class Depthwise(nn.Module):
    """`depthwise` with a kernel and a bias that start as torch's do."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, h, w, C] -> the same."""
        default = torch_uniform(9)
        kernel = self.param("kernel", default, (3, 3, 1, x.shape[-1]))
        return depthwise(x, kernel) + self.param("bias", default, x.shape[-1:])


@jax.custom_vjp
def _convolve_spread(x: Array, kernel: Array) -> Array:
    return _convolve(x, kernel, 1, ((1, 2), (1, 2)), spread=2)


def _convolve_spread_forward(x, kernel):
    return _convolve_spread(x, kernel), (x, kernel)


def _convolve_spread_backward(residuals, gradient):
    # It is the input's gradient of a convolution of stride 2 with the turned kernel, so this is
    # that convolution. XLA's own kernel gradient is 60 to 100 times slower on a CPU.
    x, kernel = residuals
    pads = ((1, 1), (1, 1))
    to_x, pull = jax.vjp(lambda k: convolve(gradient, k, 2, pads), _turn(kernel))
    return to_x, _turn(pull(x)[0])


_convolve_spread.defvjp(_convolve_spread_forward, _convolve_spread_backward)


class ConvTranspose(nn.Module):
    """Transposed convolution that doubles the sides.

    Attributes:
      features: output channels.
      kernel_init: initial kernel; None is torch's default.
      bias_init: initial bias; None is torch's default.

    Source: torch.nn.ConvTranspose2d with kernel_size 3, stride 2, padding 1 and output_padding 1.
      `kernel_from_torch_transposed` converts its weight.
    """

    features: int
    kernel_init: Initializer | None = None
    bias_init: Initializer | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, h, w, C] -> [B, 2 h, 2 w, features]."""
        # torch takes dimension 1 of the weight [in, out, 3, 3] for its inputs
        default = torch_uniform(9 * self.features)
        kernel = self.param("kernel", self.kernel_init or default,
                            (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", self.bias_init or default, (self.features,))
        return _convolve_spread(x, kernel) + bias


class BatchNorm(nn.Module):
    """Batch normalisation as torch has it: the running variance is the unbiased one.

    flax's keeps the biased one, which over the few pixels of a deep layer is another number.

    Attributes:
      axis_name: mapped axis over whose devices the batch is spread, or None; the statistics are
        those of the whole batch, so that the number of devices changes nothing.
      momentum: weight of the new batch in the running statistics.
      epsilon: added to the variance.
      scale_init: initial scale.

    Source: torch.nn.BatchNorm2d.
    """

    axis_name: str | None = None
    momentum: float = 0.1
    epsilon: float = 1e-5
    scale_init: Initializer = nn.initializers.ones_init()

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """[B, H, W, C] -> the same; with `train` by the batch's own statistics, which enter the
        running ones ("batch_stats": `mean`, `var`)."""
        channels = x.shape[-1:]
        mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
        var = self.variable("batch_stats", "var", jnp.ones, channels)
        scale = self.param("scale", self.scale_init, channels)
        bias = self.param("bias", nn.initializers.zeros_init(), channels)
        if not train:
            return (x - mean.value) * (scale * lax.rsqrt(var.value + self.epsilon)) + bias
        # the variance needs the mean first: the mean of squares would cancel
        batch_mean = self._over_devices(x.mean((0, 1, 2)))
        batch_var = self._over_devices(jnp.square(x - batch_mean).mean((0, 1, 2)))
        count = x.size // x.shape[-1]
        if self.axis_name:
            count *= lax.psum(1, self.axis_name)
        unbiased = batch_var * (count / max(count - 1, 1))
        mean.value += self.momentum * (lax.stop_gradient(batch_mean) - mean.value)
        var.value += self.momentum * (lax.stop_gradient(unbiased) - var.value)
        return (x - batch_mean) * (scale * lax.rsqrt(batch_var + self.epsilon)) + bias

    def _over_devices(self, value: Array) -> Array:
        return lax.pmean(value, self.axis_name) if self.axis_name else value


def instance_norm(x: Array, epsilon: float = 1e-5) -> Array:
    """Every channel of every image with mean 0 and (biased) variance 1; nothing is learned.

    Args:
      x: [B, H, W, C].
      epsilon: added to the variance; a constant channel becomes 0.

    Source: torch.nn.InstanceNorm2d with affine=False.
    """
    x = x - x.mean((1, 2), keepdims=True)
    return x * lax.rsqrt(jnp.square(x).mean((1, 2), keepdims=True) + epsilon)


def max_pool(x: Array) -> Array:
    """2 x 2, stride 2, by strided slices: the gradient is much faster than a window's.

    Args:
      x: [B, H, W, C]; an odd row or column at the end is left out.

    Returns:
      [B, H // 2, W // 2, C].
    """
    h, w = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    rows = jnp.maximum(x[:, 0:h:2], x[:, 1:h:2])
    return jnp.maximum(rows[:, :, 0:w:2], rows[:, :, 1:w:2])


# ---- resizing ----


def resize_nearest(x: Array, height: int, width: int) -> Array:
    """Nearest-neighbour resizing without half-pixel centres: row i is row floor(i * H / height).

    Args:
      x: [B, H, W, C].
      height: wanted height in px.
      width: wanted width in px.

    Returns:
      [B, height, width, C].

    Source: torch's interpolate(mode="nearest") and TensorFlow 1's resize_nearest_neighbor. Both
      round H / height to float32 first, and so does this: in about 2 % of the sizes it tells.
    """
    b, h, w, c = x.shape
    if _repeats(h, height) and _repeats(w, width):
        # a repeat: its gradient is a sum, three times faster than a gather's
        shape = (b, h, height // h, w, width // w, c)
        return jnp.broadcast_to(x[:, :, None, :, None], shape).reshape(b, height, width, c)
    return x[:, _nearest(h, height)[:, None], _nearest(w, width)]


def _repeats(old: int, new: int) -> bool:
    """Whether each value is taken equally often; sides of exported programs may be symbols."""
    factor = new // old
    if not isinstance(factor, int) or factor * old != new:
        return False
    # the quotient of a power of two is exact, so that there is nothing to round
    return factor & (factor - 1) == 0 or np.array_equal(_nearest(old, new),
                                                        np.arange(new) // factor)


def _nearest(old: int, new: int) -> np.ndarray:
    scale = np.float32(old) / np.float32(new)
    source = np.floor(np.arange(new, dtype=np.float32) * scale).astype(np.int32)
    return np.minimum(source, old - 1)


def resize_bilinear(x: Array, height: int, width: int, align_corners: bool = True) -> Array:
    """Bilinear resizing, without smoothing where it shrinks.

    Args:
      x: [B, H, W, C].
      height: wanted height in px.
      width: wanted width in px.
      align_corners: the corner pixels stay where they are: row i is row i * (H - 1) / (height - 1).
        False maps the pictures' edges to each other instead, i.e. (i + 0.5) * H / height - 0.5.

    Returns:
      [B, height, width, C].

    Source: torch's interpolate(mode="bilinear"). Before torch 0.4 it always aligned corners.
    """
    return _bilinear(_bilinear(x, 1, height, align_corners), 2, width, align_corners)


def _bilinear(x: Array, axis: int, new: int, align_corners: bool) -> Array:
    """`resize_bilinear` along one axis."""
    old = x.shape[axis]
    if new == old:
        return x
    if align_corners and not isinstance(old, int):  # a symbol, of an exported program
        return _enlarge(x, axis, new // old, 0, old)
    below, part = _bilinear_source(old, new, align_corners)
    if new == 2 * old:
        # every row becomes two, each of itself and one neighbour: shifts, no gather (whose
        # gradient is slow) and no matrix product
        first = jnp.concatenate([lax.slice_in_dim(x, 0, 1, axis=axis),
                                 lax.slice_in_dim(x, 0, old - 1, axis=axis)], axis)
        last = jnp.concatenate([lax.slice_in_dim(x, 1, old, axis=axis),
                                lax.slice_in_dim(x, old - 1, old, axis=axis)], axis)
        # an even row lies between the row before and its own, an odd one between its own and
        # the next; the first and the last lie on their own
        own = np.where(below == np.arange(new) // 2, 1 - part, part)
        shape = [1] * x.ndim
        shape[axis] = old
        even, odd = (jnp.asarray(own[i::2], x.dtype).reshape(shape) for i in (0, 1))
        out = jnp.stack([even * x + (1 - even) * first, odd * x + (1 - odd) * last], axis + 1)
        return out.reshape(*x.shape[:axis], new, *x.shape[axis + 1:])
    weights = np.zeros((new, old), np.float32)
    np.add.at(weights, (np.arange(new), below), 1 - part)
    np.add.at(weights, (np.arange(new), np.minimum(below + 1, old - 1)), part)
    out = jnp.tensordot(jnp.asarray(weights, x.dtype), x, ((1,), (axis,)), precision="highest")
    return jnp.moveaxis(out, 0, axis)


def _bilinear_source(old: int, new: int, align_corners: bool) -> tuple[np.ndarray, np.ndarray]:
    """For every new row: the old row below or at it, and how far it is from there to the next."""
    row = np.arange(new, dtype=np.float64)
    if align_corners:
        at = row * ((old - 1) / max(new - 1, 1))
    else:
        at = np.clip((row + 0.5) * (old / new) - 0.5, 0, old - 1)
    below = np.clip(np.floor(at + 1e-9).astype(np.int32), 0, old - 1)
    return below, np.clip(at - below, 0, 1)


def shrink(x: Array, factor: int) -> Array:
    """Bilinear shrinking by a whole factor, without smoothing and without aligned corners.

    It is `resize_bilinear(..., align_corners=False)` to 1 / `factor` of the size: of every cell of
    `factor` x `factor` pixels the middle one, or the mean of the middle four.

    Args:
      x: [B, H, W, C], sides that are multiples of `factor`.
      factor: how many times smaller, 1 or more.

    Returns:
      [B, H / factor, W / factor, C].

    Raises:
      ValueError: other sides.
    """
    if x.shape[1] % factor or x.shape[2] % factor:
        raise ValueError(f"shrink: the sides of {x.shape} must be multiples of {factor}")
    first, second = slice((factor - 1) // 2, None, factor), slice(factor // 2, None, factor)
    x = (x[:, first] + x[:, second]) / 2
    return (x[:, :, first] + x[:, :, second]) / 2


@flax.struct.dataclass
class Window:
    """Where a tile lies in its picture, in px; all int32, traced, so that one program serves all.

    Attributes:
      top: the tile's first row.
      left: its first column.
      height: of the whole picture, as the network would see it (padded).
      width: the same.
    """

    top: Array | int
    left: Array | int
    height: Array | int
    width: Array | int

    def smaller(self, factor: int) -> Window:
        """The same tile of a copy `factor` times smaller; all four must be multiples of it."""
        return Window(self.top // factor, self.left // factor,
                      self.height // factor, self.width // factor)


def inside(x: Array, window: Window | None) -> Array:
    """A map of a tile, with zeros where the tile lies beyond its picture.

    Before every convolution that pads with zeros, it makes what the tile shows of the picture equal
    to what a tile that ends with the picture shows.

    Args:
      x: [B, h, w, C].
      window: where it lies, at the map's own scale; None if all of it is picture.

    Returns:
      [B, h, w, C].
    """
    if window is None:
        return x
    rows = window.top + jnp.arange(x.shape[1]) < window.height
    columns = window.left + jnp.arange(x.shape[2]) < window.width
    return jnp.where((rows[:, None] & columns)[..., None], x, 0)


def spread(x: Array, window: Window | None) -> Array:
    """A map of a tile, with the picture's last row and column repeated beyond the picture.

    Args:
      x: [B, h, w, C].
      window: where it lies, at the map's own scale; None if all of it is picture.

    Returns:
      [B, h, w, C].
    """
    if window is None:
        return x
    rows, columns = (jnp.minimum(jnp.arange(side), whole - start - 1) for side, start, whole in (
        (x.shape[1], window.top, window.height), (x.shape[2], window.left, window.width)))
    return x[:, rows][:, :, columns]


def enlarge(x: Array, factor: int, window: Window | None = None) -> Array:
    """Bilinear enlarging with aligned corners, of a tile as of the whole picture.

    It is `resize_bilinear` to `factor` times the size, except that a tile (`window`) is placed as
    the whole would be: with aligned corners the place of a pixel depends on the picture's size.

    Args:
      x: [B, h, w, C], a tile of a small picture. Its neighbours beyond the tile are taken for its
        outermost values: at inner edges the outermost `factor` pixels of the result are wrong.
      factor: how many times larger, 1 or more.
      window: where `x` lies in the whole small picture; None if it is the whole. What lies beyond
        the picture is not looked at for what lies inside.

    Returns:
      [B, factor * h, factor * w, C].
    """
    window = window or Window(0, 0, *x.shape[1:3])
    x = _enlarge(x, 1, factor, window.top, window.height)
    return _enlarge(x, 2, factor, window.left, window.width)


def _enlarge(x: Array, axis: int, factor: int, start: Array | int, whole: Array | int) -> Array:
    """`enlarge` along one axis: new row factor * q + r lies less than a row away from row q."""
    old = x.shape[axis]
    rows = start + jnp.arange(old)[:, None]
    part = jnp.arange(factor)
    # i (n - 1) / (f n - 1) - q, for i = f q + r, written so that it does not cancel
    span = jnp.maximum(factor * whole - 1, 1)
    away = ((part - (factor * rows + part) * ((factor - 1) / span)) / factor).astype(x.dtype)
    shape = [1] * (x.ndim + 1)
    shape[axis:axis + 2] = old, factor
    away = away.reshape(shape)

    def beside(first, second):
        return jnp.expand_dims(jnp.concatenate([
            lax.slice_in_dim(x, *first, axis=axis), lax.slice_in_dim(x, *second, axis=axis)], axis),
            axis + 1)

    before, after = beside((0, 1), (0, old - 1)), beside((1, old), (old - 1, old))
    out = (jnp.maximum(-away, 0) * before + (1 - jnp.abs(away)) * jnp.expand_dims(x, axis + 1)
           + jnp.maximum(away, 0) * after)
    return out.reshape(*x.shape[:axis], old * factor, *x.shape[axis + 1:])


# ---- light curves (Zero-DCE, Zero-DCE++) ----


def light_curve(low: Array, curves: Array, iterations: int) -> Array:
    """Applies the quadratic light-enhancement curve again and again.

    Args:
      low: [B, H, W, 3] in [0, 1].
      curves: [B, H, W, 3 * iterations] in [-1, 1], one map of three channels an iteration in
        order, or [B, H, W, 3], one map for all of them. Negative brightens.
      iterations: how often the curve is applied.

    Returns:
      [B, H, W, 3], in [0, 1] up to rounding.

    Raises:
      ValueError: the maps are not of the picture's size or not of either depth.

    Source: Guo et al., CVPR 2020, eq. 3. The sign is the official program's, x + r (x^2 - x); the
      paper writes x + a x (1 - x), so a = -r.
    """
    if (curves.shape[:-1] != low.shape[:-1] or low.shape[-1] != 3
            or curves.shape[-1] not in (3, 3 * iterations)):
        raise ValueError(f"light_curve: curves {curves.shape} must be the picture's {low.shape} "
                         f"with 3 or 3 * {iterations} channels")
    x = low
    for i in range(iterations):
        at = 3 * i if curves.shape[-1] > 3 else 0
        # x * x, not a power: exact in every backend and exporter
        x = x + curves[..., at:at + 3] * (x * x - x)
    return x


# ---- VGG16 features ----

# convolution -> its number in torchvision's vgg16().features
VGG16_CONVS = {
    "conv1_1": 0, "conv1_2": 2, "conv2_1": 5, "conv2_2": 7, "conv3_1": 10, "conv3_2": 12,
    "conv3_3": 14, "conv4_1": 17, "conv4_2": 19, "conv4_3": 21, "conv5_1": 24, "conv5_2": 26,
    "conv5_3": 28}
VGG16_STYLES = ("caffe", "torchvision")
_VGG16_WIDTHS = {"1": 64, "2": 128, "3": 256, "4": 512, "5": 512}


def imagenet_normalize(x: Array) -> Array:
    """RGB in [0, 1] -> the input scaling that torchvision's ImageNet weights were trained with."""
    return (x - jnp.array([0.485, 0.456, 0.406])) / jnp.array([0.229, 0.224, 0.225])


def caffe_scale(x_pm1: Array) -> Array:
    """RGB in [-1, 1] -> BGR of 0 to 255, as EnlightenGAN feeds weights that come from Caffe.

    The means of the channels, which Caffe's VGG16 was trained without, are not taken off: so does
    the official program.
    """
    return (x_pm1[..., ::-1] + 1) * 127.5


def vgg16_features(params: Mapping[str, Mapping[str, Array]], x: Array,
                   layer: str = "relu4_3", pool4: bool = True) -> Array:
    """Features of VGG16 after a ReLU; the classifier part does not exist here.

    Args:
      params: {"conv1_1": {"kernel", "bias"}, ...} at least up to `layer`, as `read_vgg16` gives.
      x: [B, H, W, 3] scaled as the weights want it: torchvision's expect `imagenet_normalize` of
        RGB in [0, 1], weights converted from Caffe expect BGR of 0 to 255 (`caffe_scale`).
      layer: "relu1_1" ... "relu5_3".
      pool4: whether block 5 sees pooled features; EnlightenGAN leaves that pooling out.

    Returns:
      [B, H // s, W // s, C], s = 1, 2, 4, 8, 16 in blocks 1 to 5; 8 in block 5 without `pool4`.

    Raises:
      InputError: an unknown layer, not a picture, or a picture smaller than the pooling.

    Source: Simonyan and Zisserman, ICLR 2015, configuration D.
    """
    names = _vgg16_convs_to(layer)
    pooled = [name for name in names[1:] if name.endswith("_1") and (pool4 or name != "conv5_1")]
    if x.ndim != 4 or x.shape[-1] != 3 or min(x.shape[1:3]) < 2 ** len(pooled):
        raise InputError(f"VGG16 features: {x.shape} must be [B, H, W, 3] with sides of "
                         f"{2 ** len(pooled)} px or more for {layer}; use larger pictures or "
                         "patches, or an earlier layer")
    for name in names:
        if name in pooled:
            x = max_pool(x)
        x = nn.relu(lax.conv_general_dilated(
            x, params[name]["kernel"], (1, 1), "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC")) + params[name]["bias"])
    return x


def read_vgg16(path: str, layer: str = "relu5_3",
               style: str = "torchvision") -> dict[str, dict[str, np.ndarray]]:
    """Reads VGG16 weights from a user's file. There is no fallback to random features.

    Args:
      path: .safetensors or .pth, with torchvision's names (`features.0.weight`, ...) or those of
        the Caffe conversions (`conv1_1.weight`, ...). The two want different input scalings.
      layer: the last layer that is needed; later ones are left out.
      style: "torchvision" or "caffe", the scaling that the caller will feed; a file with the other
        one's names is refused.

    Returns:
      Parameters for `vgg16_features`.

    Raises:
      InputError: no such file, an unreadable one, or one that lacks these weights or is of the
        other style; an unknown style.
    """
    if style not in VGG16_STYLES:
        raise unknown("style of VGG16 weights", style, VGG16_STYLES)
    tensors = tensors_lib.read(path)
    for other, first in (("caffe", "conv1_1.weight"), ("torchvision", "features.0.weight")):
        if style != other and first in tensors:
            raise InputError(f"{path} has the names of {other}'s VGG16 ({first}), whose input is "
                             f"scaled another way than {style}'s; give a file of {style}'s or, "
                             f"where the method has the choice, set the style to {other}")
    params, channels = {}, 3
    for name in _vgg16_convs_to(layer):
        theirs = name if f"{name}.weight" in tensors else f"features.{VGG16_CONVS[name]}"
        width = _VGG16_WIDTHS[name[4]]
        for part, shape in (("weight", (width, channels, 3, 3)), ("bias", (width,))):
            found = tensors.get(f"{theirs}.{part}")
            if found is None or found.shape != shape:
                what = "is absent" if found is None else f"has shape {found.shape}"
                raise InputError(f"{path} is not a VGG16: {theirs}.{part} {what}, expected {shape}")
        params[name] = {"kernel": kernel_from_torch(tensors[f"{theirs}.weight"]),
                        "bias": tensors[f"{theirs}.bias"]}
        channels = width
    return params


def _vgg16_convs_to(layer: str) -> list[str]:
    names = list(VGG16_CONVS)
    known = [name.replace("conv", "relu") for name in names]
    if layer not in known:
        raise unknown("VGG16 layer", layer, known)
    return names[:known.index(layer) + 1]
