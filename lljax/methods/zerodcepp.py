"""Zero-DCE++: Zero-DCE with a tenth of its parameters, on a smaller copy of the picture.

Source: Li, Guo, Loy: Learning to Enhance Low-Light Image via Zero-Reference Deep Curve Estimation.
IEEE TPAMI 2021, arXiv:2103.00860. Official program: github.com/Li-Chongyi/Zero-DCE_extension.

What differs from Zero-DCE (zerodce.py, whose losses, training step and drawing are used here):
convolutions are separable, one curve map serves all iterations, and the map is estimated on the
picture shrunk by `scale` and enlarged.

|                | official code                      | lljax (knob)                          |
|----------------|------------------------------------|---------------------------------------|
| scale          | 1 in training, 12 in use           | code (`train_scale`, `scale`)         |
| other sides    | right and lower rest cropped off   | mirrored to a multiple, cropped back  |
| shrinking      | bilinear, not smoothed             | code                                  |
| enlarging      | bilinear, aligned corners          | code; a tile as the whole picture     |
| smoothness     | as Zero-DCE's code, weight 1600    | `form`: code; 8 maps of 200 each      |
| other losses   | as Zero-DCE's code                 | `form`: code                          |
| training size  | 512 x 512, aspect ignored          | code                                  |
| data           | 2,002 pictures of SICE Part 1      | yours or the demo                     |
| optimiser      | Adam 1e-4, L2 1e-4, clip 0.1       | code                                  |
| epochs         | 100                                | 25,025 steps = 100                    |
| initial values | torch's (N(0, 0.02) commented out) | code                                  |
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from lljax import layers
from lljax import method as base
from lljax.errors import InputError
from lljax.methods import zerodce

Array = jax.Array


class SeparableConv(nn.Module):
    """A 3 x 3 convolution of every channel by itself, then a 1 x 1 convolution of all of them.

    Attributes:
      features: output channels.
    """

    features: int

    @nn.compact
    def __call__(self, *inputs: Array) -> Array:
        """[B, H, W, C_i] each, concatenated -> [B, H, W, features]."""
        x = jnp.concatenate(inputs, -1)
        return layers.Conv(self.features, 1, name="point")(layers.Depthwise(name="depth")(x))


class Method(zerodce.Method):
    """Zero-DCE++.

    Networks: `curve`, and with `config.loss.perceptual` also the frozen `vgg16`.
    """

    placed = True  # enlarging with aligned corners depends on the place in the picture

    def __init__(self, config: ConfigDict):
        """Builds the network.

        Raises:
          InputError: as Zero-DCE's, or a scale under 1.
        """
        super().__init__(config)
        model = config.model
        for knob in ("scale", "train_scale"):
            if model[knob] < 1:
                raise InputError(f"config.model.{knob} is {model[knob]}; it must be 1 or more")
        self.multiple = model.scale
        self.light = model.scale > 1
        # each 3 x 3 convolution sees one pixel of the small picture further, and so does enlarging
        self.halo = (model.depth + (model.scale > 1)) * model.scale
        self.curve = zerodce.CurveNet(3, model.depth, model.width, SeparableConv)

    def training_curves(self, nets: dict[str, base.Variables], low: Array) -> Array:
        """The curve map of the picture shrunk by `train_scale`, at the picture's size.

        Raises:
          InputError: sides that are not multiples of the scale.
        """
        scale = self.config.model.train_scale
        if low.shape[1] % scale or low.shape[2] % scale:
            raise InputError(f"config.model.train_scale is {scale}, but the training pictures are "
                             f"{low.shape[1]} x {low.shape[2]} px: set config.data.resize or "
                             "config.data.crop to a multiple of it")
        return layers.enlarge(self._curves(nets, low, scale), scale)

    def estimate(self, nets: dict[str, base.Variables], low: Array, key: Array,
                 window: layers.Window | None = None) -> dict[str, Array]:
        """The curve map: {"curves": [B, H / scale, W / scale, 3]} in [-1, 1], negative brightens.

        Raises:
          ValueError: sides that are not multiples of the scale.
        """
        del key  # nothing is drawn
        return {"curves": self._curves(nets, low, self.config.model.scale, window)}

    def _curves(self, nets: dict[str, base.Variables], low: Array, scale: int,
                window: layers.Window | None = None) -> Array:
        return self.curve.apply(nets["curve"], layers.shrink(low, scale),
                                window and window.smaller(scale))

    def apply(self, nets: dict[str, base.Variables], low: Array, maps: dict[str, Array],
              window: layers.Window | None = None) -> Array:
        """The map enlarged and the iterated curve.

        Args:
          nets: not used: the map says everything.
          low: [B, H, W, 3] in [0, 1], a picture or a tile.
          maps: of `estimate`, of the same picture or tile.
          window: where the tile lies in its picture; None for the whole picture.

        Returns:
          [B, H, W, 3], in [0, 1] up to rounding.

        Raises:
          ValueError: a map of another size than a `scale`-th of the picture's.
        """
        del nets
        scale = self.config.model.scale
        curves = layers.enlarge(maps["curves"], scale,
                                window and window.smaller(scale))
        return layers.light_curve(low, curves, self.config.model.iterations)

    def official_keys(self) -> dict[str, tuple[str, base.Callable[[np.ndarray], np.ndarray]]]:
        """Names in the official `Epoch99.pth`."""
        keys = {}
        for i in range(1, self.config.model.depth + 1):
            for part in ("depth", "point"):
                ours, theirs = f"curve/params/conv{i}/{part}", f"e_conv{i}.{part}_conv"
                keys[f"{theirs}.weight"] = (f"{ours}/kernel", layers.kernel_from_torch)
                keys[f"{theirs}.bias"] = (f"{ours}/bias", np.asarray)
        return keys
