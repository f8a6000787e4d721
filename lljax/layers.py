"""Blocks that two or more methods share: torch-exact layers, light curves, VGG16 features."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from safetensors import SafetensorError
from safetensors.numpy import load_file

from lljax.errors import InputError, unknown

Array = jax.Array
Initializer = Callable[..., Array]


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


def _convolve(x: Array, kernel: Array) -> Array:
    pads = [(side // 2, side // 2) for side in kernel.shape[:2]]
    return lax.conv_general_dilated(x, kernel, (1, 1), pads,
                                    dimension_numbers=("NHWC", "HWIO", "NHWC"))


@jax.custom_vjp
def convolve(x: Array, kernel: Array) -> Array:
    """Convolution of stride 1 with zero padding, as torch pads odd kernels.

    On a CPU the kernel's gradient is computed as matrix products: XLA's own made a whole
    training step of Zero-DCE 1.4 times slower, and is far slower still in a compiled loop. It is
    the same sum in another order.

    Args:
      x: [B, H, W, C].
      kernel: [h, w, C, O], h and w odd.

    Returns:
      [B, H, W, O].
    """
    return _convolve(x, kernel)


def _convolve_forward(x, kernel):
    return _convolve(x, kernel), (x, kernel)


def _convolve_backward(residuals, gradient):
    x, kernel = residuals
    if jax.default_backend() != "cpu":
        return jax.vjp(_convolve, x, kernel)[1](gradient)
    to_x = _convolve(gradient, jnp.flip(kernel, (0, 1)).swapaxes(2, 3))
    return to_x, _kernel_gradient(x, gradient, kernel.shape)


def _kernel_gradient(x: Array, gradient: Array, shape: tuple[int, ...]) -> Array:
    """d loss / d kernel[i, j] = sum over pixels of x shifted by (i, j), times the gradient.

    Shifting x by the columns j and, the other way, the gradient by the rows i gives all h * w
    products in one matrix product of [w C, pixels] and [pixels, h O]. It runs over bands of rows,
    so that the shifted copies stay in the cache and the bands on different cores.
    """
    h, w, c, o = shape
    _, height, width, _ = x.shape
    x = jnp.pad(x, ((0, 0), (0, 0), (w // 2, w // 2), (0, 0)))
    gradient = jnp.pad(gradient, ((0, 0), (h // 2, h // 2), (0, 0), (0, 0)))
    rows = max(1, 2048 // width, -(-height // 32))  # of a band; each band costs compile time
    total = jnp.zeros((w * c, h * o), x.dtype)
    for top in range(0, height, rows):
        end = min(top + rows, height)
        left = jnp.concatenate([x[:, top:end, j:j + width] for j in range(w)], -1)
        right = jnp.concatenate(
            [gradient[:, top + h - 1 - i:end + h - 1 - i] for i in range(h)], -1)
        total += jnp.tensordot(left, right, ((0, 1, 2), (0, 1, 2)))
    return total.reshape(w, c, h, o).transpose(2, 0, 1, 3)


convolve.defvjp(_convolve_forward, _convolve_backward)


class Conv(nn.Module):
    """Convolution of stride 1 with torch's zero padding, parameter shapes and initial values.

    Given several inputs it convolves their concatenation along the channels, computed as a sum of
    one convolution an input: the same up to rounding, and the concatenation is never written
    (3 x 3, 32 + 32 channels on a CPU: forward 10 to 25 % faster, gradient no slower).

    Attributes:
      features: output channels.
      size: side of the kernel, odd.
      kernel_init: initial kernel; None is torch's default.
    """

    features: int
    size: int = 3
    kernel_init: Initializer | None = None

    @nn.compact
    def __call__(self, *inputs: Array) -> Array:
        """[B, H, W, C_i] each -> [B, H, W, features]."""
        channels = [x.shape[-1] for x in inputs]
        default = torch_uniform(self.size * self.size * sum(channels))
        kernel = self.param("kernel", self.kernel_init or default,
                            (self.size, self.size, sum(channels), self.features))
        out = self.param("bias", default, (self.features,))
        for x, part in zip(inputs, jnp.split(kernel, np.cumsum(channels)[:-1], axis=2),
                           strict=True):
            out = out + convolve(x, part)
        return out


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
_VGG16_WIDTHS = {"1": 64, "2": 128, "3": 256, "4": 512, "5": 512}


def imagenet_normalize(x: Array) -> Array:
    """RGB in [0, 1] -> the input scaling that torchvision's ImageNet weights were trained with."""
    return (x - jnp.array([0.485, 0.456, 0.406])) / jnp.array([0.229, 0.224, 0.225])


def vgg16_features(params: Mapping[str, Mapping[str, Array]], x: Array,
                   layer: str = "relu4_3") -> Array:
    """Features of VGG16 after a ReLU; the classifier part does not exist here.

    Args:
      params: {"conv1_1": {"kernel", "bias"}, ...} at least up to `layer`, as `read_vgg16` gives.
      x: [B, H, W, 3] scaled as the weights want it: torchvision's expect `imagenet_normalize` of
        RGB in [0, 1], weights converted from Caffe expect BGR of 0 to 255.
      layer: "relu1_1" ... "relu5_3".

    Returns:
      [B, H // s, W // s, C], s = 1, 2, 4, 8, 16 in blocks 1 to 5.

    Raises:
      ValueError: an unknown layer, not a picture, or a picture smaller than the pooling.

    Source: Simonyan and Zisserman, ICLR 2015, configuration D.
    """
    names = _vgg16_convs_to(layer)
    block = int(names[-1][4])
    if x.ndim != 4 or x.shape[-1] != 3 or min(x.shape[1:3]) < 2 ** (block - 1):
        raise ValueError(f"vgg16_features: {x.shape} must be [B, H, W, 3] with sides of "
                         f"{2 ** (block - 1)} px or more for {layer}")
    for name in names:
        if name.endswith("_1") and name != "conv1_1":
            x = _max_pool(x)
        x = nn.relu(lax.conv_general_dilated(
            x, params[name]["kernel"], (1, 1), "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC")) + params[name]["bias"])
    return x


def read_vgg16(path: str, layer: str = "relu5_3") -> dict[str, dict[str, np.ndarray]]:
    """Reads VGG16 weights from a user's file. There is no fallback to random features.

    Args:
      path: .safetensors or .pth, with torchvision's names (`features.0.weight`, ...) or those of
        the Caffe conversions (`conv1_1.weight`, ...). The two want different input scalings.
      layer: the last layer that is needed; later ones are left out.

    Returns:
      Parameters for `vgg16_features`.

    Raises:
      InputError: no such file, an unreadable one, or one that lacks these weights.
    """
    tensors = read_tensors(path)
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


def _max_pool(x: Array) -> Array:
    """2 x 2, stride 2, by strided slices: the gradient is much faster than a window's."""
    h, w = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    rows = jnp.maximum(x[:, 0:h:2], x[:, 1:h:2])
    return jnp.maximum(rows[:, :, 0:w:2], rows[:, :, 1:w:2])


# ---- other programs' weight files ----


def read_tensors(path: str) -> dict[str, np.ndarray]:
    """The tensors of a .safetensors file or a PyTorch checkpoint, by name, as numpy arrays.

    A PyTorch file is read without running code from it. A checkpoint that holds its network under
    `state_dict` is unwrapped, and the `module.` that DataParallel puts before names is removed.

    Raises:
      InputError: no such file, not a file of named tensors, or PyTorch is not installed.
    """
    if not os.path.isfile(path):
        raise InputError(f"no file {path!r}")
    if path.endswith(".safetensors"):
        try:
            return load_file(path)
        except SafetensorError as error:
            raise InputError(f"{path} is not a safetensors file: {error}") from error
    content = _read_torch(path)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content or not all(
            isinstance(k, str) and hasattr(v, "numpy") for k, v in content.items()):
        raise InputError(f"{path} holds no dict of named tensors (a network's state_dict)")
    return {name.removeprefix("module."): tensor.detach().numpy()
            for name, tensor in content.items()}


def _read_torch(path: str) -> Any:
    try:
        import torch
    except ImportError as error:
        raise InputError(f"reading the PyTorch file {path} needs PyTorch: "
                         "pip install torch (lljax's extra [torch])") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    except Exception as error:  # its reader interprets bytes: damage may raise any exception
        raise InputError(f"{path} is refused: not a PyTorch checkpoint of plain tensors, or "
                         "damaged (code and other objects in a file are never run)") from error
