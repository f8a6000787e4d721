"""EnlightenGAN: a generator trained on dark and well-lit pictures that show different scenes.

Source: Jiang, Gong, Liu, Cheng, Fang, Shen, Yang, Zhou, Wang: EnlightenGAN: Deep Light Enhancement
without Paired Supervision. IEEE TIP 2021, arXiv:1906.06972. Official program (PyTorch 0.3.1):
github.com/VITA-Group/EnlightenGAN.

|                | paper               | official code                  | lljax (knob)             |
|----------------|---------------------|--------------------------------|--------------------------|
| up-sampling    | bilinear            | corners aligned (its torch)    | `align_corners`: True    |
| block          | conv, BN, LeakyReLU | conv, LeakyReLU, BN            | code                     |
| statistics     | not stated          | of a GPU's share (about 11)    | of the whole batch       |
| relativistic   | means of the batch  | means of the batch             | same, over all devices   |
| generator loss | sum                 | global one halved, local not   | code                     |
| patches        | 5 random            | 1 + 5, one place for the batch | a place for every image  |
| VGG features   | relu5_1             | pool4 left out, Caffe weights  | code (`vgg16`)           |
| without VGG    | ablation            | -                              | off by default           |
| darkening      | not stated          | p 0.5, divided by 2 to 4; VGG  | code (`darken`)          |
|                |                     | compares with the input before |                          |
| flips          | not stated          | also both pictures alike       | each by itself (`flips`) |
| pairs A, B     | unpaired            | fixed by the index (slip)      | drawn independently      |
| image pool     | -                   | asked, its answer unused       | none                     |
| learning rate  | 100 epochs, then to | by 1e-6 an epoch               | by the step              |
|                | 0 in 100            |                                |                          |
| wide pictures  | -                   | over 2,200 px: at half size    | at full size, in tiles   |

`config` selects the official program's side; without a VGG16 file its two terms are off, and the
training says so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from ml_collections import ConfigDict

from lljax import layers, losses, parallel
from lljax import method as base
from lljax.errors import InputError, unknown

Array = jax.Array

_MULTIPLE = 16  # four poolings
# Radius of what the generator sees, px. From a pixel back: three convolutions a level on the way
# up, each level's start between two pixels of half the size, two convolutions a level on the way
# down. A test finds it by its gradient.
_HALO = 137
_SLOPE = 0.2  # of every LeakyReLU
_KERNEL = nn.initializers.normal(0.02)
_SIDES = {"global": "global_disc", "local": "local_disc"}
# what a discriminator's loss is where it tells all pictures apart: relativistic scores that differ
# by 0.5 everywhere give 0.25
_LEAST_LOSS = {"disc_global": 0.25, "disc_local": 0.0}
# network -> what `official_prefix` puts before its names
_PREFIX = {"generator": "", "global_disc": "D_A.", "local_disc": "D_P."}


class Block(nn.Module):
    """3 x 3 convolution, LeakyReLU, and BatchNorm after it.

    Attributes:
      features: output channels.
      train: whether the batch's own statistics are used, over all devices.
      norm: whether there is a BatchNorm.
    """

    features: int
    train: bool = False
    norm: bool = True

    @nn.compact
    def __call__(self, *inputs: Array, window: layers.Window | None = None) -> Array:
        """[B, H, W, C_i] each -> [B, H, W, features]; window is their place if they are of a
        tile."""
        inputs = [layers.inside(x, window) for x in inputs]
        x = nn.leaky_relu(layers.Conv(self.features, kernel_init=_KERNEL, name="conv")(*inputs),
                          _SLOPE)
        if not self.norm:
            return x
        # torch's N(1, 0.02)
        def scale_init(key, shape):
            return 1 + 0.02 * jax.random.normal(key, shape)
        return layers.BatchNorm(parallel.AXIS if self.train else None, scale_init=scale_init,
                                name="bn")(x, self.train)


class Down(nn.Module):
    """Two blocks on the way down.

    Attributes:
      features: output channels.
      train: see `Block`.
    """

    features: int
    train: bool = False

    @nn.compact
    def __call__(self, x: Array, attention: Array | float = 1.0,
                 window: layers.Window | None = None) -> Array:
        """[B, H, W, C] -> [B, H, W, features]; attention [B, H, W, 1] weighs what is between."""
        x = Block(self.features, self.train, name="block1")(x, window=window)
        return Block(self.features, self.train, name="block2")(x * attention, window=window)


class Up(nn.Module):
    """Up-sampling, a bare convolution, the skip beside it, and two blocks.

    Attributes:
      features: output channels, half of the input's.
      train: see `Block`.
      norm: whether the second block has a BatchNorm.
      align_corners: see `layers.resize_bilinear`.
    """

    features: int
    train: bool = False
    norm: bool = True
    align_corners: bool = True

    @nn.compact
    def __call__(self, x: Array, skip: Array, attention: Array | float,
                 window: layers.Window | None = None) -> Array:
        """[B, h, w, C], skip [B, 2 h, 2 w, C / 2], its weight -> [B, 2 h, 2 w, features]; window
        is the place of `skip` if it is of a tile."""
        small = window and window.smaller(2)
        if window is not None and self.align_corners:
            x = layers.enlarge(x, 2, small)
        else:  # without aligned corners only the picture's end matters
            x = layers.resize_bilinear(layers.spread(x, small), *skip.shape[1:3],
                                       self.align_corners)
        x = layers.Conv(self.features, kernel_init=_KERNEL, name="deconv")(
            layers.inside(x, window))
        x = Block(self.features, self.train, name="block1")(x, skip * attention, window=window)
        return Block(self.features, self.train, self.norm, name="block2")(x, window=window)


class Generator(nn.Module):
    """Attention-guided U-Net of nine levels, four down, four up.

    Attributes:
      width: channels at full size; they double four times.
      attention: whether the attention map is an input and weighs the skips and the bottleneck.
      times_residual: whether it weighs the residual.
      align_corners: how bilinear up-sampling is meant, see `layers.resize_bilinear`.
      remat: whether a level's inside is computed again for the gradient instead of kept.
    """

    width: int = 32
    attention: bool = True
    times_residual: bool = True
    align_corners: bool = True
    remat: bool = False

    @nn.compact
    def __call__(self, image_pm1: Array, attention: Array, train: bool = False,
                 window: layers.Window | None = None) -> Array:
        """Picture [B, H, W, 3] in [-1, 1], attention [B, H, W, 1] in [0, 1] -> what is to be
        added to the picture, [B, H, W, 3]. Any size: sides are padded to multiples of 16. Of a
        tile, window says where in its padded picture it lies, in multiples of 16."""
        down, up = (nn.remat(level) if self.remat else level for level in (Down, Up))
        margins = [_margins(side) for side in image_pm1.shape[1:3]]
        image_pm1, attention = _pad(image_pm1, margins), _pad(attention, margins)
        levels = [attention]
        for _ in range(4):
            levels.append(layers.max_pool(levels[-1]))
        if not self.attention:
            levels = [1.0] * 5

        x = jnp.concatenate([image_pm1, attention], -1) if self.attention else image_pm1
        places = [window and window.smaller(2 ** i) for i in range(5)]
        skips = []
        for i in range(4):
            level = down(self.width * 2 ** i, train, name=f"level{i + 1}")
            skips.append(level(x, window=places[i]))
            x = layers.max_pool(skips[-1])
        x = down(16 * self.width, train, name="level5")(x, levels[4], places[4])
        for i in range(3, -1, -1):
            level = up(self.width * 2 ** i, train, i > 0, self.align_corners, name=f"level{9 - i}")
            x = level(x, skips[i], levels[i], places[i])
        latent = layers.Conv(3, 1, kernel_init=_KERNEL, name="conv10")(x)
        if self.times_residual:
            latent = latent * attention
        (top, bottom), (left, right) = margins
        return latent[:, top:latent.shape[1] - bottom, left:latent.shape[2] - right]


def _margins(side: int) -> tuple[int, int]:
    """How much is added to a side, before and after it."""
    total = -side % _MULTIPLE
    return total // 2, total - total // 2


def _pad(x: Array, margins: list[tuple[int, int]]) -> Array:
    """Mirrors the picture outwards; an axis shorter than its margin repeats its edge instead."""
    for axis, margin in enumerate(margins, 1):
        if any(margin):
            widths = [(0, 0)] * x.ndim
            widths[axis] = margin
            x = jnp.pad(x, widths, "reflect" if max(margin) < x.shape[axis] else "edge")
    return x


class Discriminator(nn.Module):
    """Scores of overlapping regions: 4 x 4 convolutions, no normalisation.

    Attributes:
      depth: layers with stride 2; two without follow.
      width: channels of the first layer; they double up to 8 times as many.
    """

    depth: int
    width: int = 64

    @nn.compact
    def __call__(self, image_pm1: Array) -> Array:
        """[B, H, W, 3] in [-1, 1] -> scores [B, h, w, 1], near 1 for "real"."""
        x = image_pm1
        for i in range(self.depth + 1):
            features = self.width * 2 ** min(i, 3)
            x = layers.Conv(features, 4, stride=2 if i < self.depth else 1, kernel_init=_KERNEL,
                            name=f"conv{i}")(x)
            x = nn.leaky_relu(x, _SLOPE)
        return layers.Conv(1, 4, kernel_init=_KERNEL, name=f"conv{self.depth + 1}")(x)


def attention_of(low: Array) -> Array:
    """[B, H, W, 3] in [0, 1] -> 1 minus the luma, [B, H, W, 1] in [0, 1]."""
    # not a matrix product: a GPU would round it to ten bits
    return 1 - (low * jnp.array([0.299, 0.587, 0.114])).sum(-1, keepdims=True)


def cut(images: Array, offsets: Array, side: int) -> Array:
    """Square patches.

    Args:
      images: [B, H, W, C].
      offsets: [B, P, 2], upper row and left column of P patches an image.
      side: of a patch, px.

    Returns:
      [B * P, side, side, C], those of an image next to each other.
    """
    def one(image, offset):
        start = (offset[0], offset[1], 0)
        return lax.dynamic_slice(image, start, (side, side, image.shape[-1]))

    patches = jax.vmap(lambda image, places: jax.vmap(lambda o: one(image, o))(places))(
        images, offsets)
    return patches.reshape(-1, *patches.shape[2:])


class Method(base.Method):
    """EnlightenGAN.

    Networks: `generator`; `global_disc` and `local_disc`, as far as they have an optimiser; and
    the frozen `vgg16` if a feature term is enabled.
    """

    halo = _HALO
    multiple = _MULTIPLE
    placed = True  # up-sampling with aligned corners depends on the place in the picture
    optional = ("global_disc", "local_disc", "vgg16")
    steady = ("latent",)

    def __init__(self, config: ConfigDict):
        """Builds the networks.

        Raises:
          InputError: sizes under 1, micro-batches, or terms whose discriminator is not trained.
        """
        super().__init__(config)
        model, train = config.model, config.phase.train
        for group, knob in (("model", "width"), ("model", "disc_width"), ("model", "global_depth"),
                            ("model", "local_depth"), ("patches", "size"), ("patches", "count"),
                            ("collapse", "steps")):
            if config[group][knob] < 1:
                raise InputError(f"config.{group}.{knob} is {config[group][knob]}; it must be 1 "
                                 "or more")
        if train.microbatch:
            raise InputError(f"config.phase.train.microbatch is {train.microbatch}; it must be 0, "
                             "because batch statistics and relativistic means need the whole "
                             "batch at once")
        darken = config.darken
        if not (0 <= darken.probability <= 1 and 0 < darken.least <= darken.most):
            raise InputError(f"config.darken has probability {darken.probability} and divisors "
                             f"from {darken.least} to {darken.most}; it must be a probability, "
                             "and 0 < least <= most")
        if config.vgg16.style not in layers.VGG16_STYLES:
            raise unknown("config.vgg16.style", config.vgg16.style, layers.VGG16_STYLES)
        self.generator = Generator(model.width, model.attention, model.times_residual,
                                   model.align_corners, model.remat)
        self.discs = {
            net: Discriminator(model[f"{side}_depth"], model.disc_width)
            for side, net in _SIDES.items() if net in train.optim}
        for side, net in _SIDES.items():
            for term in (f"adversarial_{side}", f"disc_{side}"):
                if config.loss[term].enabled and net not in self.discs:
                    raise InputError(f"config.loss.{term} needs the network {net}, which "
                                     "config.phase.train.optim lacks; disable the term")
        self._feature_terms = [term for term in ("feature_global", "feature_local")
                               if config.loss[term].enabled]
        self._last_step, self._low_since, self._told = 0, {}, set()

    def init(self, key: Array, batch: base.Batch) -> dict[str, base.Variables]:
        """Initial variables; reads the VGG16 file if a feature term is enabled."""
        del batch  # no network's shapes depend on the picture's
        blank = jnp.zeros((1, 32, 32, 3))
        keys = jax.random.split(key, 3)
        nets = {"generator": dict(self.generator.init(keys[0], blank, blank[..., :1]))}
        for net, one in zip(_SIDES.values(), keys[1:], strict=True):
            if net in self.discs:
                nets[net] = dict(self.discs[net].init(one, blank))
        vgg16 = self.config.vgg16
        if self._feature_terms:
            if not vgg16.path:
                raise InputError(f"config.loss.{self._feature_terms[0]}.enabled needs "
                                 "config.vgg16.path, a file of VGG16 weights (.pth or "
                                 ".safetensors) of the kind that config.vgg16.style says")
            nets["vgg16"] = {"params": layers.read_vgg16(vgg16.path, vgg16.layer, vgg16.style)}
        return nets

    def notes(self) -> tuple[str, ...]:
        """Says, too, when the self feature preserving terms are off."""
        if len(self._feature_terms) == 2:
            return super().notes()
        off = " and ".join(term for term in ("feature_global", "feature_local")
                           if term not in self._feature_terms)
        return (*super().notes(),
                f"the self feature preserving loss is off ({off}): it needs a file of VGG16 "
                "weights; to have it, add the preset vgg and --config.vgg16.path=FILE")

    def observe(self, record: Mapping[str, float | int | str]) -> tuple[str, ...]:
        """Reports, once, a discriminator whose loss stays near its least value: the training has
        collapsed."""
        collapse, lines = self.config.collapse, []
        # a resumed training knows nothing of the steps before its first record
        before, self._last_step = self._last_step or record["step"], record["step"]
        for term, least in _LEAST_LOSS.items():
            if record.get(f"loss/{term}", np.inf) >= least + collapse.threshold:
                self._low_since.pop(term, None)
                continue
            since = self._low_since.setdefault(term, before)
            if record["step"] - since >= collapse.steps and term not in self._told:
                self._told.add(term)
                lines.append(f"collapsed? loss/{term} has been under "
                             f"{least + collapse.threshold:g} (its least value is {least:g}) since "
                             f"step {since}: the discriminator tells every picture apart and the "
                             "generator learns little; start anew with another seed, or lower the "
                             f"discriminator's learning rate (config.phase.train.optim."
                             f"{_SIDES[term.removeprefix('disc_')]}.lr)")
        return tuple(lines)

    def margins(self, side: int) -> tuple[int, int]:
        """Those of the generator, which pads by itself what comes without: half on each side."""
        return _margins(side)

    def train_step(self, state: base.State, batch: base.Batch, weights: dict[str, Array], *,
                   phase: str) -> tuple[base.State, base.Scalars]:
        """One step of the generator, then one of each discriminator on what the generator made
        before its step."""
        batch = self.prepare(batch)

        def generate(params, part):
            variables = {**state.nets["generator"], "params": params["generator"]}
            fake, stats = self.fake(variables, part["dark"])
            return self.generator_terms(state.nets, fake, part), {
                "fake": lax.stop_gradient(fake), "batch_stats": {"generator": stats}}

        state, scalars, aux = self.update(state, ("generator",), generate, batch, weights,
                                          phase=phase)
        batch = {**batch, "fake": aux["fake"]}
        for side, net in _SIDES.items():
            if net not in self.discs:
                continue
            state, more, scores = self.update(
                state, (net,), lambda params, part, side=side: self.disc_terms(params, part, side),
                batch, weights, phase=phase)
            scalars |= more | {f"score/{name}": _batch_mean(value, batch["mask"])
                               for name, value in scores.items()}
        return state, scalars

    def prepare(self, batch: base.Batch) -> base.Batch:
        """Adds what is drawn from every image's key: `dark`, the darkened `low` (or as it is),
        and `offsets` [B, P, 2] of the patches.

        Raises:
          InputError: no well-lit pictures, or pictures smaller than a patch.
        """
        if "high" not in batch:
            raise InputError("EnlightenGAN is trained on dark and on well-lit pictures; use "
                             "config.data.source=unpaired with data.low and data.high")
        darken, patches = self.config.darken, self.config.patches
        height, width = batch["low"].shape[1:3]
        if min(height, width) < patches.size:
            raise InputError(f"pictures of {height} x {width} px hold no patch of "
                             f"{patches.size} px; use a larger config.data.crop or smaller "
                             "config.patches.size")
        least, most = (round(100 * value) for value in (darken.least, darken.most))
        # the official program never draws the last place
        ends = jnp.array([max(1, height - patches.size), max(1, width - patches.size)])

        def draw(key):
            chance, divisor, places = jax.random.split(key, 3)
            hundredths = jax.random.randint(divisor, (), least, most + 1)
            divisor = jnp.where(jax.random.bernoulli(chance, darken.probability),
                                hundredths / 100, 1.0)
            return divisor, jax.random.randint(places, (patches.count, 2), 0, ends)

        divisors, offsets = jax.vmap(draw)(batch["key"])
        return {**batch, "dark": batch["low"] / divisors[:, None, None, None], "offsets": offsets}

    def fake(self, variables: base.Variables, dark: Array) -> tuple[Array, base.Params]:
        """The generator's pictures [B, H, W, 3] about [-1, 1], unclipped, of `dark` in [0, 1],
        by the batch's own statistics; and the running statistics after them."""
        dark_pm1 = 2 * dark - 1
        latent, new = self.generator.apply(variables, dark_pm1, attention_of(dark), train=True,
                                           mutable=["batch_stats"])
        return latent + dark_pm1, new["batch_stats"]

    def generator_terms(self, nets: dict[str, base.Variables], fake: Array,
                        batch: base.Batch) -> dict[str, Array]:
        """The generator's enabled loss terms, raw, [B] each; call it inside the mapped step.

        Args:
          nets: discriminators, and `vgg16` if a feature term is enabled.
          fake: the generator's pictures, [B, H, W, 3] about [-1, 1].
          batch: `low` (not darkened) and `high` [B, H, W, 3] in [0, 1], `offsets`, `mask`.
        """
        loss, mask = self.config.loss, batch["mask"]

        def adversarial_global():
            made, real = (self._scores(nets["global_disc"], "global", x, batch)
                          for x in (fake, 2 * batch["high"] - 1))
            return losses.relativistic(made, real, _batch_mean(made, mask),
                                       _batch_mean(real, mask))

        every = {
            "adversarial_global": adversarial_global,
            "adversarial_local": lambda: losses.least_squares(
                self._scores(nets["local_disc"], "local", fake, batch), 1.0),
            "feature_global": lambda: self._feature(nets, fake, 2 * batch["low"] - 1),
            "feature_local": lambda: self._feature(nets, *(
                cut(x, batch["offsets"], self.config.patches.size)
                for x in (fake, 2 * batch["low"] - 1))).reshape(len(fake), -1).mean(1),
        }
        return {name: term() for name, term in every.items() if loss[name].enabled}

    def disc_terms(self, params: dict[str, base.Params], batch: base.Batch,
                   side: str) -> tuple[dict[str, Array], dict[str, Array]]:
        """A discriminator's loss term, raw, [B], if enabled; call it inside the mapped step.

        Args:
          params: of the discriminator, by its network's name.
          batch: `fake` [B, H, W, 3] about [-1, 1], `high` in [0, 1], `offsets`, `mask`.
          side: "global" or "local".

        Returns:
          ({"disc_<side>": [B]}, {"<side>_real": [B], "<side>_fake": [B]}), the second the mean
          scores of every image.
        """
        net = params[_SIDES[side]]
        if side == "global":
            # Only differences of scores count, so the last bias has the gradient 0; Adam would
            # make steps of the learning rate of its rounding errors.
            last = f"conv{self.discs['global_disc'].depth + 1}"
            net = {**net, last: {**net[last], "bias": lax.stop_gradient(net[last]["bias"])}}
        real, made = (self._scores({"params": net}, side, x, batch)
                      for x in (2 * batch["high"] - 1, batch["fake"]))
        mask = batch["mask"]
        if side == "global":
            term = losses.relativistic(real, made, _batch_mean(real, mask),
                                       _batch_mean(made, mask))
        else:
            term = 0.5 * (losses.least_squares(real, 1.0) + losses.least_squares(made, 0.0))
        terms = {f"disc_{side}": term} if self.config.loss[f"disc_{side}"].enabled else {}
        return terms, {f"{side}_real": _image_mean(real), f"{side}_fake": _image_mean(made)}

    def _scores(self, variables: base.Variables, side: str, images_pm1: Array,
                batch: base.Batch) -> Array:
        """[B, h, w, 1] of whole pictures, or [B, P, h, w, 1] of their patches."""
        if side == "global":
            return self.discs["global_disc"].apply(variables, images_pm1)
        patches = cut(images_pm1, batch["offsets"], self.config.patches.size)
        scores = self.discs["local_disc"].apply(variables, patches)
        return scores.reshape(len(images_pm1), -1, *scores.shape[1:])

    def _feature(self, nets: dict[str, base.Variables], fake: Array, low_pm1: Array) -> Array:
        return losses.self_feature(self.features(nets, fake), self.features(nets, low_pm1))

    def features(self, nets: dict[str, base.Variables], images_pm1: Array) -> Array:
        """VGG16 features of pictures [B, H, W, 3] about [-1, 1], scaled as the weights want."""
        vgg16 = self.config.vgg16
        scaled = (layers.caffe_scale(images_pm1) if vgg16.style == "caffe"
                  else layers.imagenet_normalize((images_pm1 + 1) / 2))
        return layers.vgg16_features(nets["vgg16"]["params"], scaled, vgg16.layer, pool4=False)

    def estimate(self, nets: dict[str, base.Variables], low: Array, key: Array,
                 window: layers.Window | None = None) -> dict[str, Array]:
        """`attention` [B, H, W, 1] in [0, 1], bright where the picture is dark, and `latent`
        [B, H, W, 3], what is added to the picture of range [-1, 1]."""
        del key  # nothing is drawn
        attention = attention_of(low)
        latent = self.generator.apply(nets["generator"], 2 * low - 1, attention, window=window)
        return {"attention": attention, "latent": latent}

    def apply(self, nets: dict[str, base.Variables], low: Array, maps: dict[str, Array],
              window: layers.Window | None = None) -> Array:
        """The picture and half of `latent`, because [0, 1] is half as long: [B, H, W, 3]."""
        del nets, window  # the maps say everything
        return low + maps["latent"] / 2

    def draw(self, maps: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The attention, and half of `latent` around 0.5, which is "left as it is"."""
        return {"attention": maps["attention"].clip(0, 1),
                "latent": (maps["latent"] / 2 + 0.5).clip(0, 1)}

    @classmethod
    def official_prefix(cls, names: Collection[str]) -> str:
        """Both discriminators' files begin at `model.0`; the global one has a layer more."""
        if "model.12.weight" in names:
            return _PREFIX["global_disc"]
        return _PREFIX["local_disc"] if "model.0.weight" in names else ""

    def official_keys(self) -> dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]]:
        """Names in the official `200_net_G_A.pth`, `200_net_D_A.pth` and `200_net_D_P.pth`."""
        blocks = {f"{i}_{j}": f"level{i}/block{j}" for i in range(1, 10) for j in (1, 2)}
        convs = {f"conv{theirs}": f"{ours}/conv" for theirs, ours in blocks.items()}
        convs |= {f"deconv{i}": f"level{i + 1}/deconv" for i in range(5, 9)} | {"conv10": "conv10"}
        names = {theirs: f"generator/params/{ours}" for theirs, ours in convs.items()}
        for net, disc in self.discs.items():
            names |= {f"{_PREFIX[net]}model.{2 * i}": f"{net}/params/conv{i}"
                      for i in range(disc.depth + 2)}
        keys = {}
        for theirs, ours in names.items():
            keys[f"{theirs}.weight"] = (f"{ours}/kernel", layers.kernel_from_torch)
            keys[f"{theirs}.bias"] = (f"{ours}/bias", np.asarray)
        del blocks["9_2"]  # has none
        for block, ours in blocks.items():
            params, stats = (f"generator/{kind}/{ours}/bn" for kind in ("params", "batch_stats"))
            keys |= {f"bn{block}.weight": (f"{params}/scale", np.asarray),
                     f"bn{block}.bias": (f"{params}/bias", np.asarray),
                     f"bn{block}.running_mean": (f"{stats}/mean", np.asarray),
                     f"bn{block}.running_var": (f"{stats}/var", np.asarray)}
        return keys


def _image_mean(scores: Array) -> Array:
    return scores.reshape(len(scores), -1).mean(1)


def _batch_mean(scores: Array, mask: Array) -> Array:
    """The mean over the images of all devices that count."""
    return parallel.psum((_image_mean(scores) * mask).sum()) / parallel.psum(mask.sum())
