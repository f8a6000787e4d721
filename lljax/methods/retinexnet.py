"""Retinex-Net: a picture is taken apart into reflectance and illumination, and relit.

Source: Wei, Wang, Yang, Liu: Deep Retinex Decomposition for Low-Light Enhancement. BMVC 2018,
arXiv:1808.04560. Official program (TensorFlow 1): github.com/weichen582/RetinexNet; a PyTorch port
that is not the authors': github.com/aasharma90/RetinexNet_PyTorch.

|              | paper          | official code         | PyTorch port           | lljax (knob)    |
|--------------|----------------|-----------------------|------------------------|-----------------|
| Enhance-Net  | adds skips     | adds, after the ReLU  | concatenates; odd pads | `skips`: add    |
|              |                |                       | of last two layers     |                 |
| borders      | not stated     | zeros; of stride 2    | "replicate", zeros in  | `padding`: zero |
|              |                | right and bottom      | its files              | `origin`        |
| smoothness   | exp(-10 dR)    | 3 x 3 mean of dR;     | other borders          | `form`: code    |
|              |                | its files: 3 scales   |                        | (released, ...) |
| its weights  | 0.1            | 0.1, 0.1; enhanced: 3 | same                   | code            |
| reflectance  | 0.001          | 0.01                  | 0.01, R_high fixed     | 0.01            |
| patch        | 96 px          | 48 px                 | 96 px                  | 48 px           |
| start values | not stated     | Glorot, bias 0        | torch's                | `origin`        |
| joint tuning | SGD at the end | none                  | none                   | `finetune`      |
| data order   | not stated     | never shuffled (slip) | same                   | shuffled        |
| denoising    | BM3D on R      | none                  | none                   | `denoise`       |

`config` selects the official program's side; the preset `torch_port` the port's, and `paper` the
paper's numbers and its last phase (smoothness and denoising stay as they are in the program).
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from lljax import denoise, layers, losses
from lljax import method as base
from lljax.errors import InputError, unknown

Array = jax.Array

UPSAMPLINGS = ("resize", "transposed")
SKIPS = ("add", "concat")
PADDINGS = ("zero", "replicate")
ORIGINS = ("tensorflow", "torch")
ADJUSTS = ("relight", "ones")
_DECOM_RADIUS = 4 + 1  # the first and the last layer of Decom-Net, px
_RELIGHT_RADIUS = 23  # Enhance-Net, down three strides and up again, px


class _Net(nn.Module):
    """What both networks share.

    Attributes:
      width: channels of the hidden layers.
      padding: "zero" or "replicate", what lies outside the picture.
      origin: "tensorflow" or "torch", whose stride-2 padding and initial values.
    """

    width: int = 64
    padding: str = "zero"
    origin: str = "tensorflow"

    def conv(self, name: str, size: int = 3, features: int | None = None, **changes):
        """A convolution as the origin has it."""
        options = dict(padding=self.padding, origin=self.origin, **self._initial())
        return layers.Conv(features or self.width, size, name=name, **(options | changes))

    def _initial(self) -> dict:
        if self.origin == "torch":
            return {}
        return dict(kernel_init=nn.initializers.glorot_uniform(),
                    bias_init=nn.initializers.zeros_init())


class DecomNet(_Net):
    """Decom-Net: reflectance and illumination of one picture.

    Attributes:
      depth: 3 x 3 layers with ReLU between the first and the last layer.
    """

    depth: int = 5

    @nn.compact
    def __call__(self, image: Array) -> tuple[Array, Array]:
        """[B, H, W, 3] in [0, 1] -> (reflectance [B, H, W, 3], illumination [B, H, W, 1])."""
        x = jnp.concatenate([image.max(-1, keepdims=True), image], -1)
        x = self.conv("conv0", 9)(x)  # no activation
        for i in range(1, self.depth + 1):
            x = nn.relu(self.conv(f"conv{i}")(x))
        x = nn.sigmoid(self.conv("recon", features=4)(x))
        return x[..., :3], x[..., 3:]


class RelightNet(_Net):
    """Enhance-Net: the illumination that the enhanced picture should have.

    Attributes:
      upsampling: "resize" (nearest, then a convolution) or "transposed" (a transposed convolution
        in place of the resize; with added skips it also is the convolution).
      skips: "add" to the up-sampled features after their ReLU, or "concat" before a convolution.
    """

    upsampling: str = "resize"
    skips: str = "add"

    @nn.compact
    def __call__(self, reflectance: Array, illumination: Array) -> Array:
        """[B, H, W, 3], [B, H, W, 1] -> adjusted illumination [B, H, W, 1], unbounded."""
        x = self.conv("conv0")(jnp.concatenate([reflectance, illumination], -1))  # no activation
        passed = []
        for i in (1, 2, 3):
            passed.insert(0, x)
            x = nn.relu(self.conv(f"conv{i}", stride=2)(x))
        scales = []
        for i, skip in enumerate(passed, 1):
            x = self._up(i, x, skip)
            scales.append(x)
        size = x.shape[1:3]
        if self.skips == "add":
            return self.conv("output", features=1)(
                _Fusion(self.width, **self._initial(), name="fusion")(scales, size))
        fused = _Fusion(self.width, border=self.padding, name="fusion", **self._initial())
        return self.conv("output", features=1, padding="valid")(fused(scales, size))

    def _up(self, i: int, x: Array, skip: Array) -> Array:
        height, width = skip.shape[1:3]
        if self.upsampling == "resize":
            x = layers.resize_nearest(x, height, width)
        else:
            x = layers.ConvTranspose(self.width, **self._initial(), name=f"up{i}")(x)
            x = x[:, :height, :width]
        if self.skips == "concat":
            return nn.relu(self.conv(f"deconv{i}")(x, skip))
        if self.upsampling == "resize":
            x = self.conv(f"deconv{i}")(x)
        return nn.relu(x) + skip


class _Fusion(nn.Module):
    """A 1 x 1 convolution of feature maps of several scales, brought to one size.

    Each is convolved at its own size and enlarged afterwards, which is the same and cheaper.

    Attributes:
      features: output channels.
      border: None; or the padding by one pixel that the PyTorch port gives this convolution.
    """

    features: int
    border: str | None = None
    kernel_init: Callable | None = None
    bias_init: Callable | None = None

    @nn.compact
    def __call__(self, scales: list[Array], size: tuple[int, int]) -> Array:
        """[B, h_i, w_i, C] each -> [B, *size, features], 2 px more a side with a border."""
        channels = sum(x.shape[-1] for x in scales)
        default = layers.torch_uniform(channels)
        kernel = self.param("kernel", self.kernel_init or default, (1, 1, channels, self.features))
        bias = self.param("bias", self.bias_init or default, (self.features,))
        parts = jnp.split(kernel, len(scales), axis=2)
        x = sum(layers.resize_nearest(layers.convolve(x, part), *size)
                for x, part in zip(scales, parts, strict=True))
        if self.border:
            mode = "edge" if self.border == "replicate" else "constant"
            x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode)
        return x + bias


class Method(base.Method):
    """Retinex-Net.

    Networks: `decom` (Decom-Net) and `relight` (Enhance-Net), the latter not with
    `config.model.adjust = "ones"`. What a phase trains says which losses it has: the two networks
    together are trained end to end.
    """

    multiple = 8  # three strides of 2
    steady = ("adjusted_illumination",)
    unroll = False  # layers.Conv is fast in compiled loops

    def __init__(self, config: ConfigDict):
        """Builds the networks.

        Raises:
          InputError: an unknown choice, or sizes under 1.
        """
        super().__init__(config)
        model = config.model
        for knob, known in (("upsampling", UPSAMPLINGS), ("skips", SKIPS), ("padding", PADDINGS),
                            ("origin", ORIGINS), ("adjust", ADJUSTS)):
            if model[knob] not in known:
                raise unknown(f"config.model.{knob}", model[knob], known)
        for knob in ("depth", "width"):
            if model[knob] < 1:
                raise InputError(f"config.model.{knob} is {model[knob]}; it must be 1 or more")
        for name, term in config.loss.items():
            if "edge" in term and term.edge < 0:
                raise InputError(f"config.loss.{name}.edge is {term.edge}; it must be 0 or more")
        for phase in config.phases if model.adjust == "ones" else ():
            if "relight" in config.phase[phase].optim:
                raise InputError(f"phase {phase!r} trains Enhance-Net (relight), which a model "
                                 "with config.model.adjust=ones does not have")
        denoise.check(config.denoise)
        self.decom = DecomNet(model.width, model.padding, model.origin, model.depth)
        self.relight = None
        after = denoise.halo(config.denoise)  # what follows Decom-Net sees so far
        self.staged = after is None  # only the denoiser sees the whole picture
        after = after or 0
        if model.adjust == "relight":
            after = max(after, _RELIGHT_RADIUS)
            self.relight = RelightNet(model.width, model.padding, model.origin, model.upsampling,
                                      model.skips)
        self.halo = _DECOM_RADIUS + model.depth + after

    def init(self, key: Array, batch: base.Batch) -> dict[str, base.Variables]:
        """Initial variables."""
        keys, low = jax.random.split(key), batch["low"][:1]
        nets = {"decom": dict(self.decom.init(keys[0], low))}
        if self.relight:
            nets["relight"] = dict(self.relight.init(keys[1], low, low[..., :1]))
        return nets

    def needs(self, phase: str) -> tuple[str, ...]:
        """Enhance-Net alone is trained on a finished Decom-Net; `finetune` on both."""
        if phase == "finetune":
            return self.nets_of(phase)
        return ("decom",) if self.nets_of(phase) == ("relight",) else ()

    def paired(self, phase: str) -> bool:
        """Every loss compares a dark picture with its reference."""
        del phase
        return True

    def train_step(self, state: base.State, batch: base.Batch, weights: dict[str, Array], *,
                   phase: str) -> tuple[base.State, base.Scalars]:
        """One gradient step on the phase's networks; two of them are trained end to end."""
        trained = self.nets_of(phase)

        def loss_fn(params, part):
            nets = state.nets | {net: {"params": params[net]} for net in trained}
            return self.terms(nets, part, trained), None

        state, scalars, _ = self.update(state, trained, loss_fn, batch, weights, phase=phase)
        return state, scalars

    def terms(self, nets: dict[str, base.Variables], batch: base.Batch,
              trained: Collection[str]) -> dict[str, Array]:
        """The enabled loss terms of the trained networks, raw, [B] each.

        Args:
          nets: the networks.
          batch: pairs, `low` and `high` [B, H, W, 3] in [0, 1].
          trained: "decom", "relight" or both.

        Raises:
          InputError: a batch without references.
        """
        if "high" not in batch:
            raise InputError("Retinex-Net is trained on pairs, and this data has no references; "
                             "use config.data.source=pairs with data.low and data.high")
        loss, low, high = self.config.loss, batch["low"], batch["high"]
        r_low, i_low = self.decom.apply(nets["decom"], low)
        every = {}
        if "decom" in trained:
            r_high, i_high = self.decom.apply(nets["decom"], high)
            every |= {
                "reconstruction_low": lambda c: losses.reconstruction(r_low, i_low, low),
                "reconstruction_high": lambda c: losses.reconstruction(r_high, i_high, high),
                "mutual_low": lambda c: losses.reconstruction(r_high, i_low, low),
                "mutual_high": lambda c: losses.reconstruction(r_low, i_high, high),
                "reflectance": lambda c: losses.reflectance_consistency(
                    r_low, jax.lax.stop_gradient(r_high) if c.fix_high else r_high),
                "smoothness_low": lambda c: losses.structure_smoothness(
                    i_low, r_low, c.edge, c.form),
                "smoothness_high": lambda c: losses.structure_smoothness(
                    i_high, r_high, c.edge, c.form),
            }
        if "relight" in trained:
            adjusted = self.relight.apply(nets["relight"], r_low, i_low)
            every |= {
                "enhancement": lambda c: losses.reconstruction(r_low, adjusted, high),
                "smoothness_enhanced": lambda c: losses.structure_smoothness(
                    adjusted, r_low, c.edge, c.form),
            }
        return {name: term(loss[name]) for name, term in every.items() if loss[name].enabled}

    def condense(self, nets: dict[str, base.Variables], low: Array) -> dict[str, Array]:
        """Reflectance [B, H, W, 3] and illumination [B, H, W, 1] in [0, 1], and the adjusted
        illumination [B, H, W, 1], which has no bounds."""
        reflectance, illumination = self.decom.apply(nets["decom"], low)
        adjusted = (self.relight.apply(nets["relight"], reflectance, illumination)
                    if self.relight else jnp.ones_like(illumination))
        return {"reflectance": reflectance, "illumination": illumination,
                "adjusted_illumination": adjusted}

    def solve(self, nets: dict[str, base.Variables], small: dict[str, Array],
              key: Array) -> dict[str, Array]:
        """The same maps, the reflectance denoised if `config.denoise` says so; Enhance-Net has
        seen it as it was."""
        del nets, key  # nothing is drawn
        return {**small, "reflectance": denoise.denoise(
            self.config.denoise, small["reflectance"], small["illumination"])}

    def apply(self, nets: dict[str, base.Variables], low: Array, maps: dict[str, Array]) -> Array:
        """Reflectance times adjusted illumination: [B, H, W, 3], unclipped."""
        del nets, low  # the maps say everything
        return maps["reflectance"] * maps["adjusted_illumination"]

    @classmethod
    def official_presets(cls, names: Collection[str]) -> str:
        """The PyTorch port's files are known by `net1_`, the official ones by `DecomNet/`."""
        port = any(name.startswith(("net1_", "net2_")) for name in names)
        relight = "net2_output.weight" if port else "RelightNet/conv2d_8/kernel"
        return ",".join(["torch_port" if port else "official_code,released"]
                        + ([] if relight in names else ["decom_only"]))

    @classmethod
    def official_unused(cls, names: Collection[str]) -> set[str]:
        """The official Decom-Net file also holds networks that were tried and left."""
        return {name for name in names if name.startswith(("DenoiseNet/", "RelightNet/"))
                and "DecomNet/recon_layer/kernel" in names}

    def official_keys(self) -> dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]]:
        """Names in the official TensorFlow checkpoints, or in the PyTorch port's files."""
        if self.config.model.origin == "torch":
            names, weight, transform = self._torch_names(), ".weight", layers.kernel_from_torch
            bias = ".bias"
        else:
            names, weight, transform = self._tensorflow_names(), "/kernel", np.asarray
            bias = "/bias"
        keys = {}
        for theirs, (net, layer) in names.items():
            keys[theirs + weight] = (f"{net}/params/{layer}/kernel", transform)
            keys[theirs + bias] = (f"{net}/params/{layer}/bias", np.asarray)
        return keys

    def _tensorflow_names(self) -> dict[str, tuple[str, str]]:
        names = {"DecomNet/shallow_feature_extraction": ("decom", "conv0"),
                 "DecomNet/recon_layer": ("decom", "recon")}
        for i in range(self.config.model.depth):
            names[f"DecomNet/activated_layer_{i}"] = ("decom", f"conv{i + 1}")
        if self.relight:
            ours = ("conv0", "conv1", "conv2", "conv3", "deconv1", "deconv2", "deconv3", "fusion",
                    "output")
            for i, layer in enumerate(ours):
                names["RelightNet/conv2d" + (f"_{i}" if i else "")] = ("relight", layer)
        return names

    def _torch_names(self) -> dict[str, tuple[str, str]]:
        names = {"net1_conv0": ("decom", "conv0"), "net1_recon": ("decom", "recon")}
        for i in range(self.config.model.depth):
            names[f"net1_convs.{2 * i}"] = ("decom", f"conv{i + 1}")
        if self.relight:
            names |= {"net2_conv0_1": ("relight", "conv0"), "net2_fusion": ("relight", "fusion"),
                      "net2_output": ("relight", "output")}
            for i in (1, 2, 3):
                names[f"net2_conv1_{i}"] = ("relight", f"conv{i}")
                names[f"net2_deconv1_{i}"] = ("relight", f"deconv{i}")
        return names
