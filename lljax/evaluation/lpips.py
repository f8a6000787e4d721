"""Learned perceptual distance (LPIPS 0.1) in JAX, on weights from the user's files."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from lljax import layers, tensors
from lljax.errors import InputError, unknown

Array = jax.Array
NETS = ("alex", "vgg")
# convolution of torchvision's alexnet().features -> its output channels, side, stride, padding
_ALEXNET = {0: (64, 11, 4, 2), 3: (192, 5, 1, 2), 6: (384, 3, 1, 1), 8: (256, 3, 1, 1),
            10: (256, 3, 1, 1)}
_POOLED = (3, 6)  # convolutions of pooled features
_VGG16 = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")
_CHANNELS = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}


class Lpips:
    """Distance between two pictures in the features of a network that recognises objects.

    Features of five layers, of unit length at every pixel, are subtracted and squared, weighted by
    learned heads, and averaged over the picture; the five numbers are added. 0 for equal pictures,
    about 1 for unlike ones; lower is better.

    Source: Zhang et al. 2018, "The unreasonable effectiveness of deep features as a perceptual
    metric", equation 1; scaling of the input as in version 0.1 of the authors' program.

    Args:
      net: "alex" or "vgg". Their values are not comparable.
      backbone: file of torchvision's AlexNet or VGG16 (ImageNet), .pth or .safetensors.
      heads: file of the authors' linear heads for that network, v0.1/alex.pth or v0.1/vgg.pth.

    Raises:
      InputError: an unknown net, a missing or unreadable file, or one of another network.
    """

    def __init__(self, net: str, backbone: str, heads: str):
        if net not in NETS:
            raise unknown("network of LPIPS", net, NETS)
        self._params = (_read_alexnet(backbone) if net == "alex"
                        else layers.read_vgg16(backbone, _VGG16[-1], "torchvision"))
        self._heads = _read_heads(heads, net)
        features = _alexnet if net == "alex" else _vgg16
        self._distance = jax.jit(lambda params, heads, pair: _distance(
            features(params, _scaled(pair)), heads))

    def __call__(self, a: np.ndarray, b: np.ndarray) -> float:
        """Distance of two RGB pictures [H, W, 3] of 0 to 255, uint8 or float."""
        pair = np.stack([a, b]).astype(np.float32)
        with jax.default_matmul_precision("highest"):  # GPUs would round the products to 10 bits
            return float(self._distance(self._params, self._heads, pair))


def _scaled(pictures: Array) -> Array:
    shift, scale = jnp.array([-0.030, -0.088, -0.188]), jnp.array([0.458, 0.448, 0.450])
    return (pictures / 127.5 - 1 - shift) / scale


def _distance(features: list[Array], heads: list[Array]) -> Array:
    total = jnp.zeros(())
    for layer, head in zip(features, heads, strict=True):
        length = jnp.sqrt(jnp.sum(layer**2, -1, keepdims=True))
        a, b = layer / (length + 1e-10)
        total += jnp.mean((a - b) ** 2 @ head)
    return total


def _vgg16(params: Mapping[str, Mapping[str, Array]], x: Array) -> list[Array]:
    # Compiled as one program, in which the layers that they share are computed once.
    return [layers.vgg16_features(params, x, layer) for layer in _VGG16]


def _alexnet(params: Mapping[int, Mapping[str, Array]], x: Array) -> list[Array]:
    found = []
    for number, (_, _, stride, padding) in _ALEXNET.items():
        if number in _POOLED:
            x = nn.max_pool(x, (3, 3), (2, 2))
        x = nn.relu(lax.conv_general_dilated(
            x, params[number]["kernel"], (stride, stride), [(padding, padding)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC")) + params[number]["bias"])
        found.append(x)
    return found


def _read_alexnet(path: str) -> dict[int, dict[str, np.ndarray]]:
    found, params, channels = tensors.read(path), {}, 3
    for number, (width, side, _, _) in _ALEXNET.items():
        names = f"features.{number}.weight", f"features.{number}.bias"
        for name, shape in zip(names, ((width, channels, side, side), (width,)), strict=True):
            _expect(path, "torchvision's AlexNet", found, name, shape)
        params[number] = {"kernel": layers.kernel_from_torch(found[names[0]]),
                          "bias": found[names[1]]}
        channels = width
    return params


def _read_heads(path: str, net: str) -> list[np.ndarray]:
    found, heads = tensors.read(path), []
    for number, channels in enumerate(_CHANNELS[net]):
        name = f"lin{number}.model.1.weight"
        _expect(path, f"LPIPS's heads for {net}", found, name, (1, channels, 1, 1))
        heads.append(found[name].reshape(channels))
    return heads


def _expect(path: str, what: str, found: Mapping[str, np.ndarray], name: str,
            shape: tuple[int, ...]) -> None:
    if name not in found or found[name].shape != shape:
        got = f"has shape {found[name].shape}" if name in found else "is absent"
        raise InputError(f"{path} is not {what}: {name} {got}, expected {shape}")
