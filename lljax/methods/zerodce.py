"""Zero-DCE: curves estimated by a small network that is trained without reference pictures.

Source: Guo, Li, Guo, Loy, Hou, Kwong, Cong: Zero-Reference Deep Curve Estimation for Low-Light
Image Enhancement. CVPR 2020, arXiv:2001.06826. Official program: github.com/Li-Chongyi/Zero-DCE.

|                | paper                      | official code                | lljax (preset)     |
|----------------|----------------------------|------------------------------|--------------------|
| curve          | x + a x (1 - x)            | x + r (x^2 - x): r = -a      | code               |
| spatial        | (abs dY - abs dI)^2, eq. 4 | (dY - dI)^2, black outside   | `form`: code       |
| exposure       | abs(Y - E), weight 1       | (Y - E)^2, weight 10         | `form`: code       |
| colour         | sum of squares, weight 0.5 | root of sum of 4th powers, 5 | `form`: code, but  |
|                |                            | (gradient NaN on grey)       | gradient 0 on grey |
| smoothness     | (abs dx + abs dy)^2, mean  | 2 (dx^2 + dy^2), summed over | `form`: code       |
|                | of the 8 maps, weight 20   | 24 channels, weight 200      |                    |
| training size  | 512 x 512                  | 256 x 256, aspect ignored    | 256 (paper: 512)   |
| data           | 2,422 of SICE Part 1       | 2,002 of them published      | yours or the demo  |
| optimiser      | Adam 1e-4, "default"       | + L2 1e-4, clip 0.1          | code (paper: none) |
| epochs         | not stated                 | 200 set, file of epoch 99    | 50,050 steps = 200 |
| initial values | N(0, 0.02), constant bias  | N(0, 0.02), torch's bias     | code               |
| last batch     | not stated                 | may be smaller               | always full        |
| extra terms    | -                          | Sa_Loss and perception_loss: | `saturation`,      |
|                |                            | defined, unused              | `perceptual`: off  |

`config` selects the official program's side everywhere; the preset `paper` selects the paper's
where the table names two.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from lljax import layers, losses
from lljax import method as base
from lljax.errors import InputError

Array = jax.Array


_Conv = functools.partial(layers.Conv, kernel_init=nn.initializers.normal(0.02))


class CurveNet(nn.Module):
    """DCE-Net: 3 x 3 convolutions that keep the size, with symmetrical concatenations.

    Of `depth` = 2k + 1 convolutions the first k + 1 form a chain and each later one takes the
    latest features and those of its mirror image: with depth 7, conv5 sees (x3, x4), conv6
    (x2, x5) and conv7 (x1, x6).

    Attributes:
      channels: of the curve maps, three a map.
      depth: number of convolutions, odd, 3 or more.
      width: channels between them.
      conv: (output channels, name=...) -> a 3 x 3 convolution of the concatenation of its inputs.
    """

    channels: int
    depth: int
    width: int
    conv: Callable[..., nn.Module] = _Conv

    @nn.compact
    def __call__(self, low: Array, window: layers.Window | None = None) -> Array:
        """[B, H, W, 3] in [0, 1] -> curves [B, H, W, channels] in [-1, 1]; window says where a tile
        lies that may be larger than its picture."""
        half = self.depth // 2
        features, x = [], (layers.inside(low, window),)
        for i in range(1, self.depth):
            found = nn.relu(self.conv(self.width, name=f"conv{i}")(*x))
            features.append(layers.inside(found, window))
            mirror = () if i <= half else (features[self.depth - 1 - i],)
            x = (*mirror, features[-1])
        return nn.tanh(self.conv(self.channels, name=f"conv{self.depth}")(*x))


class Method(base.Method):
    """Zero-DCE.

    Networks: `curve`, and with `config.loss.perceptual` also the frozen `vgg16`.
    """

    multiple = 1
    optional = ("vgg16",)
    steady = ("curves",)
    unroll = False  # layers.Conv is fast in compiled loops

    def __init__(self, config: ConfigDict):
        """Builds the network.

        Raises:
          InputError: an even depth or one under 3 (the concatenations would have no mirror), or
            fewer than one iteration or channel.
        """
        super().__init__(config)
        model = config.model
        if model.depth < 3 or model.depth % 2 == 0:
            raise InputError(f"config.model.depth is {model.depth}; it must be odd and 3 or more, "
                             "because the concatenations mirror the first half")
        for knob in ("iterations", "width"):
            if model[knob] < 1:
                raise InputError(f"config.model.{knob} is {model[knob]}; it must be 1 or more")
        self.halo = model.depth  # every 3 x 3 convolution sees one pixel further
        self.curve = CurveNet(3 * model.iterations, model.depth, model.width)

    def init(self, key: Array, batch: base.Batch) -> dict[str, base.Variables]:
        """Initial variables; reads the VGG16 file if the perceptual term is enabled."""
        nets = {"curve": dict(self.curve.init(key, batch["low"][:1]))}
        perceptual = self.config.loss.perceptual
        if perceptual.enabled:
            if not perceptual.vgg16:
                raise InputError("config.loss.perceptual.enabled needs "
                                 "config.loss.perceptual.vgg16, a file of torchvision's VGG16 "
                                 "weights (.pth or .safetensors)")
            nets["vgg16"] = {"params": layers.read_vgg16(
                perceptual.vgg16, perceptual.layer, "torchvision")}
        return nets

    def train_step(self, state: base.State, batch: base.Batch, weights: dict[str, Array], *,
                   phase: str) -> tuple[base.State, base.Scalars]:
        """One gradient step on `curve`."""
        def loss_fn(params, part):
            nets = {**state.nets, "curve": {"params": params["curve"]}}
            return self.terms(nets, part["low"]), None

        state, scalars, _ = self.update(state, ("curve",), loss_fn, batch, weights, phase=phase)
        return state, scalars

    def terms(self, nets: dict[str, base.Variables], low: Array) -> dict[str, Array]:
        """The enabled loss terms, raw, [B] each, for pictures [B, H, W, 3] in [0, 1]."""
        loss = self.config.loss
        curves = self.training_curves(nets, low)
        enhanced = layers.light_curve(low, curves, self.config.model.iterations)
        every = {
            "spatial": lambda c: losses.spatial(enhanced, low, c.region, c.form),
            "exposure": lambda c: losses.exposure(enhanced, c.region, c.level, c.form),
            "color": lambda c: losses.color(enhanced, c.form),
            "smoothness": lambda c: losses.smoothness(curves, c.form),
            "saturation": lambda c: losses.saturation(enhanced),
            "perceptual": lambda c: losses.perceptual(self._features(nets, enhanced),
                                                      self._features(nets, low)),
        }
        return {name: term(loss[name]) for name, term in every.items() if loss[name].enabled}

    def training_curves(self, nets: dict[str, base.Variables], low: Array) -> Array:
        """The curve maps that training sees, at the picture's size [B, H, W, C] in [-1, 1]."""
        return self.curve.apply(nets["curve"], low)

    def _features(self, nets: dict[str, base.Variables], x: Array) -> Array:
        perceptual = self.config.loss.perceptual
        if perceptual.normalize:
            x = layers.imagenet_normalize(x)
        return layers.vgg16_features(nets["vgg16"]["params"], x, perceptual.layer)

    def estimate(self, nets: dict[str, base.Variables], low: Array,
                 key: Array) -> dict[str, Array]:
        """The curve maps: {"curves": [B, H, W, 3 * iterations]} in [-1, 1], negative brightens."""
        del key  # nothing is drawn
        return {"curves": self.curve.apply(nets["curve"], low)}

    def apply(self, nets: dict[str, base.Variables], low: Array, maps: dict[str, Array]) -> Array:
        """The iterated curve. The maps must have the picture's size.

        Raises:
          ValueError: they have another.
        """
        del nets  # the maps say everything
        return layers.light_curve(low, maps["curves"], self.config.model.iterations)

    def draw(self, maps: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One picture of the curves: their mean over the iterations by colour, with the sign
        turned so that what is brightened is bright, and [-1, 1] brought to [0, 1]: 0.5 is "left
        as it is", 1 the most light that one iteration can give, 0 the most it can take."""
        curves = maps["curves"]
        mean = curves.reshape(*curves.shape[:2], -1, 3).mean(2)
        return {"curves": (1 - mean) / 2}

    def official_keys(self) -> dict[str, tuple[str, base.Callable[[np.ndarray], np.ndarray]]]:
        """Names in the official `Epoch99.pth`."""
        keys = {}
        for i in range(1, self.config.model.depth + 1):
            ours = f"curve/params/conv{i}"
            keys[f"e_conv{i}.weight"] = (f"{ours}/kernel", layers.kernel_from_torch)
            keys[f"e_conv{i}.bias"] = (f"{ours}/bias", np.asarray)
        return keys
