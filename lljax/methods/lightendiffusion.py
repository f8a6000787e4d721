"""LightenDiffusion: Retinex decomposition in a latent, and diffusion of what it gives.

Source: Jiang, Luo, Liu, Zhu, Xue, Liu: LightenDiffusion: Unsupervised Low-Light Image Enhancement
with Latent-Retinex Diffusion Models. ECCV 2024, arXiv:2407.08939. Official program (PyTorch):
github.com/JianghaiSCU/LightenDiffusion, which lacks stage 1's training.

|                   | paper               | official code             | lljax (knob)             |
|-------------------|---------------------|---------------------------|--------------------------|
| stage 1 losses    | four terms, sketchy | none (weights only)       | paper (`loss`, `norm`)   |
| stage 1 data      | two low exposures   | -                         | pairs                    |
| content           | of a picture's own  | -                         | paper; knobs, 0 unless   |
|                   | latent and features |                           | set: the other's latent  |
|                   |                     |                           | (`cross`), no features   |
|                   |                     |                           | (`bare`)                 |
| cross-attention   | content transfer    | of channels, row by row   | code                     |
| R = z / max z     | not stated          | no bound on max z         | max z is 1e-4 or more    |
| time steps        | uniform             | t and 999 - t in one draw | code, over all devices   |
| consistency loss  | through the sampler | same, activations kept    | same, computed again     |
|                   |                     |                           | (`remat`)                |
| start of sampling | T = 1000            | t = 950, pure noise       | code (`sample.steps`)    |
| initial noise     | random              | random, no seed           | the seed's, or zero      |
|                   |                     |                           | (`sample.noise`)         |
| moving average    | not stated          | saved, never used; counts | used (`ema`), without    |
|                   |                     | the initial values        | the initial values       |
| flips             | not stated          | a pair alike, p 0.5       | alike for true pairs     |
| borders           | not stated          | mirrored to a multiple of | same; the edge repeated  |
|                   |                     | 64, fails below 64 px     | where it is too near     |
| large pictures    | -                   | at once                   | tiles, of the latent too |
|                   |                     |                           | (`sample.tile`)          |

`config` selects the official program's side where there is one.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Collection

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax
from ml_collections import ConfigDict

from lljax import diffusion, layers, losses, parallel
from lljax import method as base
from lljax.errors import InputError, unknown

Array = jax.Array

NOISES = ("gaussian", "zero")
_LEAST = 1e-4  # of a latent's brightest channel; a sigmoid gives more, a black pixel does not


# ---- stage 1: autoencoder and decomposition ----


class ResBlock(nn.Module):
    """Two convolutions with a LeakyReLU between, and a 1 x 1 convolution around them.

    Attributes:
      features: output channels.
    """

    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, h, w, C] -> [B, h, w, features]."""
        y = nn.leaky_relu(layers.Conv(self.features, name="conv1")(x))
        y = layers.Conv(self.features, name="conv2")(y)
        return y + layers.Conv(self.features, 1, name="shortcut")(x)


class Encoder(nn.Module):
    """Picture -> latent of three channels, and the features on the way.

    Attributes:
      width: channels of the first level; they double at each further one.
      levels: how often the sides are halved, 1 or more.
    """

    width: int
    levels: int

    @nn.compact
    def __call__(self, image: Array) -> tuple[Array, list[Array]]:
        """[B, H, W, 3] in [0, 1] -> (latent [B, H / 2^levels, W / 2^levels, 3] in (0, 1),
        features of every level after its halving)."""
        x = layers.Conv(self.width, 5, name="stem0")(image)
        x = layers.Conv(self.width, 5, name="stem1")(x)  # no activation before or after
        skips = []
        for i in range(self.levels):
            x = ResBlock(self.width * 2 ** i, name=f"block{i}")(x)
            x = layers.Conv(x.shape[-1], stride=2, name=f"down{i}")(x)
            skips.append(x)
        for i, features in enumerate((2 * self.width, self.width)):
            x = nn.leaky_relu(layers.Conv(features, name=f"squeeze{i}")(x))
        return nn.sigmoid(layers.Conv(3, name="squeeze2")(x)), skips


class Decoder(nn.Module):
    """Latent -> picture, with the help of a picture's features.

    Attributes:
      width: as the encoder's.
      levels: as the encoder's.
    """

    width: int
    levels: int

    @nn.compact
    def __call__(self, latent: Array, skips: list[Array]) -> Array:
        """Latent [B, h, w, 3], the encoder's features -> [B, h 2^levels, w 2^levels, 3],
        unbounded."""
        top = self.width * 2 ** (self.levels - 1)
        x = latent
        for i, features in enumerate((self.width, 2 * self.width)):
            x = nn.leaky_relu(layers.Conv(features, name=f"expand{i}")(x))
        x = layers.Conv(top, name="expand2")(x)
        for i, skip in enumerate(reversed(skips)):
            features = x.shape[-1]
            x = ResBlock(features, name=f"block{2 * i}")(x) + skip
            x = ResBlock(features, name=f"block{2 * i + 1}")(x)
            x = layers.ConvTranspose(max(features // 2, self.width), name=f"up{i}")(x)
            x = nn.leaky_relu(x)
        x = nn.leaky_relu(layers.Conv(self.width, name="conv")(x))
        return layers.Conv(3, 1, name="out")(x)


class CrossAttention(nn.Module):
    """Attention of the channels of one map to those of another, within each row of pixels.

    Attributes:
      heads: sets the scale alone: the channels are not divided.
    """

    heads: int

    @nn.compact
    def __call__(self, asking: Array, asked: Array) -> Array:
        """[B, h, w, C] twice -> [B, h, w, C]. Depends on where a row begins and ends."""
        def project(name, x):
            x = layers.Depthwise(name=f"{name}_depth")(x)
            return layers.Conv(x.shape[-1], 1, name=name)(x)

        query, key, value = project("query", asking), project("key", asked), project("value", asked)
        scores = jnp.einsum("bhwc,bhwd->bhcd", query, key) / (asking.shape[-1] / self.heads) ** 0.5
        return jnp.einsum("bhcd,bhwd->bhwc", nn.softmax(scores), value)


class SelfAttention(nn.Module):
    """Attention of the channels to each other, over the whole map.

    Attributes:
      heads: the channels are divided among so many.
    """

    heads: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, h, w, C] -> [B, h, w, C]."""
        b, h, w, c = x.shape
        mixed = layers.Depthwise(name="qkv_depth")(layers.Conv(3 * c, 1, name="qkv")(x))
        query, key, value = (part.reshape(b, h * w, self.heads, c // self.heads)
                             for part in jnp.split(mixed, 3, -1))
        # no temperature
        scores = jnp.einsum("bnhc,bnhd->bhcd", _unit(query), _unit(key))
        out = jnp.einsum("bhcd,bnhd->bnhc", nn.softmax(scores), value)
        return layers.Conv(c, 1, name="out")(out.reshape(b, h, w, c))


def _unit(x: Array) -> Array:
    """[B, n, heads, c], every channel divided by its length over the pixels."""
    # a bound under the root: the gradient of a channel of zeros is finite
    return x * lax.rsqrt(jnp.maximum(jnp.square(x).sum(1, keepdims=True), 1e-24))


class Retinex(nn.Module):
    """Content-transfer decomposition: reflectance and illumination of a latent.

    Attributes:
      width: channels.
      heads: of both attentions.
      transfer: whether content is moved from the illumination to the reflectance.
    """

    width: int
    heads: int
    transfer: bool

    @nn.compact
    def __call__(self, latent: Array) -> tuple[Array, Array]:
        """[B, h, w, 3] in [0, 1] -> (reflectance [B, h, w, 3], illumination [B, h, w, 1])."""
        brightest = jnp.maximum(latent.max(-1, keepdims=True), _LEAST)
        scene = self._features("r", latent / brightest)
        light = self._features("l", brightest)
        if self.transfer:
            content = SelfAttention(self.heads, name="self_attention")(light)
            scene = CrossAttention(self.heads, name="cross_attention")(light, scene) + content
            light = light - content
        return self._map("r", scene, 3), self._map("l", light, 1)

    def _features(self, name: str, x: Array) -> Array:
        x = layers.Conv(self.width, name=f"{name}_in")(x)
        for i in range(2):
            x = ResBlock(self.width, name=f"{name}_block{i}")(x)
        return x

    def _map(self, name: str, x: Array, features: int) -> Array:
        x = ResBlock(self.width, name=f"{name}_last")(x)
        return nn.sigmoid(layers.Conv(features, name=f"{name}_out")(x))


class Autoencoder(nn.Module):
    """Encoder, decoder and decomposition. Without levels the picture is its own latent.

    Attributes:
      width: channels at full size, and of the decomposition.
      levels: how often the sides are halved.
      heads: of the attentions.
      transfer: see `Retinex`.
    """

    width: int
    levels: int
    heads: int
    transfer: bool

    def setup(self):
        """The parts, see the methods."""
        if self.levels:
            self.encoder = Encoder(self.width, self.levels)
            self.decoder = Decoder(self.width, self.levels)
        self.retinex = Retinex(self.width, self.heads, self.transfer)

    def __call__(self, image: Array) -> tuple[Array, tuple[Array, Array]]:
        """The picture decoded from its own latent, and the latent's decomposition."""
        latent, skips = self.encode(image)
        return self.decode(latent, skips), self.decompose(latent)

    def encode(self, image: Array) -> tuple[Array, list[Array]]:
        """See `Encoder`."""
        return self.encoder(image) if self.levels else (image, [])

    def decode(self, latent: Array, skips: list[Array]) -> Array:
        """See `Decoder`."""
        return self.decoder(latent, skips) if self.levels else latent

    def decompose(self, latent: Array) -> tuple[Array, Array]:
        """See `Retinex`."""
        return self.retinex(latent)


# ---- stage 2: denoiser ----


class TimeBlock(nn.Module):
    """Residual block that is told the time.

    Attributes:
      features: output channels.
    """

    features: int

    @nn.compact
    def __call__(self, x: Array, time: Array) -> Array:
        """[B, h, w, C], embedded time [B, D] -> [B, h, w, features]."""
        y = layers.Conv(self.features, name="conv1")(nn.swish(_norm("norm1", x)))
        y = y + _linear(self.features, "time", nn.swish(time))[:, None, None]
        y = layers.Conv(self.features, name="conv2")(nn.swish(_norm("norm2", y)))
        if x.shape[-1] != self.features:
            x = layers.Conv(self.features, 1, name="shortcut")(x)
        return x + y


class PixelAttention(nn.Module):
    """Residual attention of all pixels to each other, one head."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, h, w, C] -> [B, h, w, C]."""
        b, h, w, c = x.shape
        y = _norm("norm", x)
        query, key, value = (layers.Conv(c, 1, name=name)(y).reshape(b, h * w, c)
                             for name in ("query", "key", "value"))
        scores = jnp.einsum("bnc,bmc->bnm", query, key) * c ** -0.5
        y = jnp.einsum("bnm,bmc->bnc", nn.softmax(scores), value).reshape(b, h, w, c)
        return x + layers.Conv(c, 1, name="out")(y)


def _norm(name: str, x: Array) -> Array:
    """Group normalisation, of 32 groups if the channels allow it, of the module that calls."""
    groups = math.gcd(32, x.shape[-1])
    return nn.GroupNorm(groups, epsilon=1e-6, use_fast_variance=False, name=name)(x)


def _linear(features: int, name: str, x: Array) -> Array:
    """A linear layer with torch's initial values, of the module that calls."""
    start = layers.torch_uniform(x.shape[-1])
    return nn.Dense(features, kernel_init=start, bias_init=start, name=name)(x)


class Denoiser(nn.Module):
    """U-Net that finds the noise in a latent, given another latent.

    Attributes:
      width: channels at full size.
      mult: channels of each level, in widths; there is one halving less.
      blocks: residual blocks of a level on the way down; one more on the way up.
      attention: levels (0 is full size) with attention after each block; there is one in the
        middle in any case.
    """

    width: int
    mult: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]

    @nn.compact
    def __call__(self, condition_pm1: Array, noisy_pm1: Array, t: Array) -> Array:
        """[B, h, w, 3] about [-1, 1] twice, time [B] -> the noise [B, h, w, 3]. The sides are
        multiples of 2^(levels - 1)."""
        time = _linear(4 * self.width, "time0", diffusion.timestep_embedding(t, self.width))
        time = _linear(4 * self.width, "time1", nn.swish(time))
        x = layers.Conv(self.width, name="conv_in")(condition_pm1, noisy_pm1)
        skips, last = [x], len(self.mult) - 1
        for i, mult in enumerate(self.mult):
            for j in range(self.blocks):
                x = self._block(f"down{i}", j, mult, x, time, i in self.attention)
                skips.append(x)
            if i < last:  # zeros below and on the right alone
                x = layers.Conv(x.shape[-1], stride=2, origin="tensorflow", name=f"down{i}_half")(x)
                skips.append(x)
        x = self._block("mid", 1, self.mult[-1], x, time, True)
        x = self._block("mid", 2, self.mult[-1], x, time, False)
        for i in range(last, -1, -1):
            for j in range(self.blocks + 1):
                x = jnp.concatenate([x, skips.pop()], -1)
                x = self._block(f"up{i}", j, self.mult[i], x, time, i in self.attention)
            if i:
                x = layers.resize_nearest(x, 2 * x.shape[1], 2 * x.shape[2])
                x = layers.Conv(x.shape[-1], name=f"up{i}_double")(x)
        return layers.Conv(3, name="conv_out")(nn.swish(_norm("norm_out", x)))

    def _block(self, level: str, j: int, mult: int, x: Array, time: Array, attention: bool):
        x = TimeBlock(self.width * mult, name=f"{level}_block{j}")(x, time)
        return PixelAttention(name=f"{level}_attention{j}")(x) if attention else x


# ---- method ----


class Method(base.Method):
    """LightenDiffusion.

    Networks: `autoencoder` (encoder, decoder and decomposition) and `denoiser`, the latter not
    with `config.model.diffusion = False`: then a picture is only encoded and decoded. A phase
    trains one of them. Encoder and decoder are local; the denoiser sees the whole latent.
    """

    staged = True
    unroll = False  # layers.Conv is fast in compiled loops
    costly = ("reflectance", "illumination")
    steady = ("latent",)

    def __init__(self, config: ConfigDict):
        """Builds the networks.

        Raises:
          InputError: sizes out of range, an unknown choice, or a phase that trains other
            networks than one of the two.
        """
        super().__init__(config)
        model = config.model
        _check(config)
        self.autoencoder = Autoencoder(model.width, model.levels, model.heads,
                                       model.content_transfer)
        self.denoiser, self.multiple = None, 2 ** model.levels
        if model.diffusion:
            self.denoiser = Denoiser(model.unet_width, tuple(model.unet_mult), model.unet_blocks,
                                     tuple(model.unet_attention))
            self.multiple *= 2 ** (len(model.unet_mult) - 1)
        self.halo = _halo(model.levels)
        schedule = config.diffusion
        self.alpha_bars = diffusion.alpha_bars(
            diffusion.linear_betas(schedule.total, schedule.first, schedule.last))

    def init(self, key: Array, batch: base.Batch) -> dict[str, base.Variables]:
        """Initial variables."""
        del batch  # no network's shapes depend on the picture's
        keys, side = jax.random.split(key), self.multiple
        nets = {"autoencoder": _initial(self.autoencoder, keys[0], jnp.zeros((1, side, side, 3)))}
        if self.denoiser:
            side = 2 ** (len(self.denoiser.mult) - 1)
            blank = jnp.zeros((1, side, side, 3))
            nets["denoiser"] = _initial(self.denoiser, keys[1], blank, blank, jnp.zeros(1))
        return nets

    def needs(self, phase: str) -> tuple[str, ...]:
        """The denoiser is trained on a finished autoencoder."""
        return ("autoencoder",) if self.nets_of(phase) == ("denoiser",) else ()

    def paired(self, phase: str) -> bool:
        """Stage 1 compares two exposures of one scene; stage 2 takes any dark and bright ones."""
        return "autoencoder" in self.nets_of(phase)

    def frozen_features(self, phase: str) -> Callable[..., dict[str, Array]] | None:
        """What stage 2 sees of a picture: `parts`, of the finished autoencoder."""
        return self.parts if self.nets_of(phase) == ("denoiser",) else None

    def train_step(self, state: base.State, batch: base.Batch, weights: dict[str, Array], *,
                   phase: str) -> tuple[base.State, base.Scalars]:
        """One gradient step on the phase's network."""
        self._check_batch(batch, phase)
        net, = self.nets_of(phase)
        terms = self.autoencoder_terms
        if net == "denoiser":
            terms, batch = self.denoiser_terms, self.prepare(batch)

        def loss_fn(params, part):
            return terms(state.nets | {net: {"params": params[net]}}, part), None

        state, scalars, _ = self.update(state, (net,), loss_fn, batch, weights, phase=phase)
        return state, scalars

    def autoencoder_terms(self, nets: dict[str, base.Variables],
                          batch: base.Batch) -> dict[str, Array]:
        """The enabled loss terms of stage 1, raw, [B] each.

        Terms of a picture are sums over both. The paper gives norms without saying whether they
        are means, and no program of this stage is published; see the norms in `losses`.

        Args:
          nets: `autoencoder`.
          batch: two exposures of one scene, `low` and `high` [B, H, W, 3] in [0, 1].
        """
        net, loss = nets["autoencoder"], self.config.loss
        images = jnp.concatenate([batch["low"], batch["high"]])
        latents, skips = self.encode(nets, images)
        r, light = self.autoencoder.apply(net, latents, method="decompose")
        other_image, other, swapped = (  # those of the other exposure
            jnp.roll(x, len(batch["low"]), 0) for x in (images, latents, light))

        def content(c):
            def error(latent, skips, image):
                decoded = self.autoencoder.apply(net, latent, skips, method="decode")
                return losses.content(decoded, image, c.norm)
            total = error(latents, skips, images)
            if c.cross:
                total += c.cross * error(other, skips, other_image)
            if c.bare:
                total += c.bare * error(latents, [jnp.zeros_like(x) for x in skips], images)
            return total

        every = {
            "content": content,
            "reconstruction": lambda c: losses.reconstruction(r, light, latents, c.norm)
            + c.cross * losses.reconstruction(r, swapped, other, c.norm),
            "reflectance": lambda c: losses.reflectance_consistency(*jnp.split(r, 2), c.norm),
            "smoothness": lambda c: losses.latent_smoothness(light, r, c.edge, c.norm),
        }
        terms = {name: term(loss[name]) for name, term in every.items() if loss[name].enabled}
        # a value a picture becomes one a pair
        return {name: term.reshape(-1, len(batch["low"])).sum(0) for name, term in terms.items()}

    def prepare(self, batch: base.Batch) -> base.Batch:
        """Adds what is drawn: `t` [B] int32 for the whole batch at once, and from every image's
        key `noise` and `start` [B, h, w, 3], where sampling starts. Call it inside the mapped
        step."""
        b, height, width, _ = batch["low"].shape
        count = b * lax.psum(1, parallel.AXIS)
        # an image's key is fold_in(..., its index), and every index is less than `count`
        key = jax.random.fold_in(batch["step_key"][0], count)
        scale = 2 ** self.autoencoder.levels
        drawn = jax.vmap(lambda key: jax.random.normal(
            key, (2, height // scale, width // scale, 3)))(batch["key"])
        return {**batch, "noise": drawn[:, 0], "start": drawn[:, 1],
                "t": diffusion.antithetic_times(key, batch["index"], count, len(self.alpha_bars))}

    def denoiser_terms(self, nets: dict[str, base.Variables],
                       batch: base.Batch) -> dict[str, Array]:
        """The enabled loss terms of stage 2, raw, [B] each.

        Args:
          nets: `denoiser`, and `autoencoder`, which gets no gradient.
          batch: a dark and a well-lit picture, not of one scene, `low` and `high` [B, H, W, 3] in
            [0, 1], and perhaps their `features`; and what `prepare` adds.
        """
        loss = self.config.loss
        if "features" in batch:
            low, high = batch["features"]["low"], batch["features"]["high"]
        else:
            both = self.parts(nets, jnp.concatenate([batch["low"], batch["high"]]))
            low, high = ({name: jnp.split(x, 2)[i] for name, x in both.items()} for i in (0, 1))
        r_low, l_low, l_high = low["reflectance"], low["illumination"], high["illumination"]
        condition_pm1 = 2 * low["latent"] - 1

        def noise(c):
            del c
            noisy = diffusion.q_sample(2 * r_low * l_high - 1, batch["noise"],
                                       jnp.asarray(self.alpha_bars)[batch["t"]])
            found = self.denoiser.apply(nets["denoiser"], condition_pm1, noisy, batch["t"])
            return losses.noise_error(found, batch["noise"])

        def consistency(c):
            sampled, _ = diffusion.ddim_sample(
                functools.partial(self.denoiser.apply, nets["denoiser"], condition_pm1),
                batch["start"], self.alpha_bars, c.steps, checkpoint=c.remat)
            return losses.consistency(_latent(sampled), r_low * l_low ** c.gamma)

        every = {"noise": noise, "consistency": consistency}
        return {name: term(loss[name]) for name, term in every.items() if loss[name].enabled}

    def encode(self, nets: dict[str, base.Variables], image: Array) -> tuple[Array, list[Array]]:
        """[B, H, W, 3] in [0, 1] -> (latent [B, h, w, 3] in [0, 1], features for the decoder)."""
        return self.autoencoder.apply(nets["autoencoder"], image, method="encode")

    def parts(self, nets: dict[str, base.Variables], image: Array) -> dict[str, Array]:
        """Of [B, H, W, 3] in [0, 1] `latent` and `reflectance` [B, h, w, 3] and `illumination`
        [B, h, w, 1], all in [0, 1]."""
        latent, _ = self.encode(nets, image)
        reflectance, illumination = self.autoencoder.apply(
            nets["autoencoder"], latent, method="decompose")
        return {"latent": latent, "reflectance": reflectance, "illumination": illumination}

    def condense(self, nets: dict[str, base.Variables], low: Array) -> dict[str, Array]:
        """`latent` [B, h, w, 3] in [0, 1], that of the dark picture."""
        return {"latent": self.encode(nets, low)[0]}

    def solve(self, nets: dict[str, base.Variables], small: dict[str, Array],
              key: Array) -> dict[str, Array]:
        """`latent` [B, h, w, 3] in [0, 1], the sampled one of the enhanced picture, and
        `trajectory` [B, steps, h, w, 3], what each step takes for it, not cut to [0, 1]. Every
        picture of a batch starts from the same noise. Of several samples both are means. Of the
        dark picture's latent `reflectance` [B, h, w, 3] and `illumination` [B, h, w, 1] in
        [0, 1]."""
        latent = small["latent"]
        reflectance, illumination = self.autoencoder.apply(
            nets["autoencoder"], latent, method="decompose")
        parts = {"reflectance": reflectance, "illumination": illumination}
        if not self.denoiser:
            return {"latent": latent, **parts}
        knobs = self.config.sample
        condition_pm1 = 2 * latent - 1

        def predict(x, t):
            return diffusion.blended(
                lambda *parts: self.denoiser.apply(nets["denoiser"], *parts, t),
                (condition_pm1, x), knobs.tile, knobs.overlap) if knobs.tile else (
                    self.denoiser.apply(nets["denoiser"], condition_pm1, x, t))

        def sample(number):
            own = jax.random.fold_in(key, number)
            noise = (jnp.zeros_like(latent[0]) if knobs.noise == "zero"
                     else jax.random.normal(own, latent.shape[1:]))
            return diffusion.ddim_sample(
                predict, jnp.broadcast_to(noise, latent.shape), self.alpha_bars, knobs.steps,
                eta=knobs.eta, key=jnp.broadcast_to(jax.random.fold_in(own, 0), latent.shape[0]))

        sampled, trajectory = lax.map(sample, jnp.arange(knobs.count))
        return {"latent": _latent(sampled).mean(0),
                "trajectory": jnp.moveaxis((trajectory.mean(0) + 1) / 2, 0, 1), **parts}

    def apply(self, nets: dict[str, base.Variables], low: Array, maps: dict[str, Array]) -> Array:
        """The latent decoded with the features of `low`: [B, H, W, 3], unclipped."""
        _, skips = self.encode(nets, low)
        return self.autoencoder.apply(nets["autoencoder"], maps["latent"], skips, method="decode")

    def draw(self, maps: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The maps cut to [0, 1]; the trajectory as a strip of its frames, from left to right."""
        drawn = super().draw(maps)
        if "trajectory" in maps:
            drawn["trajectory"] = np.concatenate(maps["trajectory"], 1).clip(0, 1)
        return drawn

    @classmethod
    def official_presets(cls, names: Collection[str]) -> str:
        """Stage 1's file alone has no denoiser."""
        return "" if any(name.startswith("Unet.") for name in names) else "autoencoder_only"

    @classmethod
    def official_prefix(cls, names: Collection[str]) -> str:
        """Stage 1's file has the bare names of what stage 2's has under `decom.`."""
        return "decom." if any(name.startswith("ReconNet.") for name in names) else ""

    def official_keys(self) -> dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]]:
        """Names in the official stage-2 file; those of stage 1's get the prefix `decom.`."""
        shapes = jax.eval_shape(self.init, jax.random.key(0), {})
        keys = {}
        for net, (prefix, rules) in _OFFICIAL.items():
            leaves = jax.tree_util.tree_leaves_with_path(shapes.get(net, {}))
            for path, leaf in leaves:
                ours = jax.tree_util.keystr(path, simple=True, separator="/")
                theirs = ours.removeprefix("params/")
                for pattern, replacement in rules:
                    theirs = re.sub(pattern, replacement, theirs)
                keys[prefix + theirs.replace("/", ".")] = (
                    f"{net}/{ours}", _from_torch(ours, len(leaf.shape)))
        return keys

    def _check_batch(self, batch: base.Batch, phase: str) -> None:
        if "high" not in batch:
            raise InputError("LightenDiffusion is trained on two pictures at a time; use "
                             "config.data.source=pairs (both stages) or unpaired (stage 2 alone) "
                             "with data.low and data.high")
        height, width = batch["low"].shape[1:3]
        if height % self.multiple or width % self.multiple:
            raise InputError(f"phase {phase!r}: pictures of {height} x {width} px; set "
                             f"config.data.crop to a multiple of {self.multiple} px")


def _initial(module: nn.Module, key: Array, *inputs: Array) -> base.Variables:
    """A module's initial variables, torch's, all of them drawn at once: the compiler takes a
    minute for a draw a parameter."""
    shapes = jax.eval_shape(module.init, key, *inputs)
    kernels = flatten_dict(shapes["params"])
    places = np.cumsum([leaf.size for leaf in kernels.values()])
    drawn = jnp.split(jax.random.uniform(key, (places[-1],), minval=-1.0), places[:-1])
    params = {}
    for (path, leaf), values in zip(kernels.items(), drawn, strict=True):
        kernel = kernels.get((*path[:-1], "kernel"))
        if kernel is None:  # of a normalisation
            params[path] = (jnp.ones if path[-1] == "scale" else jnp.zeros)(leaf.shape)
            continue
        # torch takes the output channels of a transposed convolution for its inputs
        up = "/".join(path).startswith("decoder/up")
        inputs_of_one = 9 * kernel.shape[-1] if up else math.prod(kernel.shape[:-1])
        params[path] = values.reshape(leaf.shape) * inputs_of_one ** -0.5
    return {"params": unflatten_dict(params)}


def _halo(levels: int) -> int:
    """Radius in px of what a latent's pixel sees of the picture, or a decoded one of a latent and
    of the picture, whichever is larger."""
    if not levels:
        return 0
    first, cell = 2 + 2, 2 ** levels  # both stems; a latent's pixel in px
    # at 1, 2, ... 2^levels / 2 px: a block's two convolutions and the halving
    encoder = first + 3 * (cell - 1) + 3 * cell  # and three convolutions of the latent
    # at 2, 4, ... 2^levels px: two blocks and the doubling; the last convolution, and the latent's
    decoder = 1 + 5 * 2 * (cell - 1) + 3 * cell
    return max(encoder, decoder)


def _latent(sampled_pm1: Array) -> Array:
    """A sample as a latent: from [-1, 1] to [0, 1], what lies outside cut off."""
    return ((sampled_pm1 + 1) / 2).clip(0, 1)


def _check(config: ConfigDict) -> None:
    """Refuses knobs out of range."""
    model, sample, schedule = config.model, config.sample, config.diffusion
    consistency = config.loss.consistency
    tile_step = 2 ** (len(model.unet_mult) - 1)
    most = sample.tile - math.gcd(sample.tile, 8)  # see diffusion.blended
    few = f"1 to {schedule.total}, config.diffusion.total"
    wrong = {
        "model.levels": (model.levels < 0, "0 or more"),
        "model.width": (model.width < 1 or model.width % max(model.heads, 1),
                        f"a multiple of config.model.heads, {model.heads}"),
        "model.heads": (model.heads < 1, "1 or more"),
        "model.unet_width": (model.unet_width < 4 or model.unet_width % 2, "even, 4 or more"),
        "model.unet_mult": (not model.unet_mult or min(model.unet_mult) < 1,
                            "one or more numbers of 1 or more"),
        "model.unet_blocks": (model.unet_blocks < 1, "1 or more"),
        "model.unet_attention": (not set(model.unet_attention) <= set(range(len(model.unet_mult))),
                                 f"levels from 0 to {len(model.unet_mult) - 1}"),
        "diffusion.total": (schedule.total < 1, "1 or more"),
        "diffusion.first": (not 0 < schedule.first < 1, "more than 0.0 and less than 1.0"),
        "diffusion.last": (not 0 < schedule.last < 1, "more than 0.0 and less than 1.0"),
        "sample.steps": (not 1 <= sample.steps <= schedule.total, few),
        "sample.eta": (not 0 <= sample.eta <= 1, "0.0 to 1.0"),
        "sample.count": (sample.count < 1, "1 or more"),
        "sample.tile": (sample.tile < 0 or sample.tile % tile_step,
                        f"0 or a multiple of {tile_step}"),
        "sample.overlap": (sample.tile and not 0 <= sample.overlap <= most,
                           f"0 to {most} for tiles of {sample.tile}"),
    }
    if consistency.enabled:
        wrong["loss.consistency.gamma"] = not 0 <= consistency.gamma < math.inf, "0.0 or more"
        wrong["loss.consistency.steps"] = not 1 <= consistency.steps <= schedule.total, few
    for knob, (bad, limit) in wrong.items():
        if bad:
            value = functools.reduce(lambda node, key: node[key], knob.split("."), config)
            raise InputError(f"config.{knob} is {value}; it must be {limit}")
    kept = diffusion.alpha_bars(
        diffusion.linear_betas(schedule.total, schedule.first, schedule.last))
    if kept[0] == 1 or kept[-1] < np.finfo(np.float32).tiny:
        raise InputError(
            f"config.diffusion: of the picture's variance {schedule.total} steps with variances "
            f"of {schedule.first} to {schedule.last} leave {kept[0]:.7g} after the first and "
            f"{kept[-1]:.2g} after the last, in float32; it must be less than 1 (raise first) and "
            "more than 0 (lower last or total)")
    if sample.noise not in NOISES:
        raise unknown("config.sample.noise", sample.noise, NOISES)
    if sample.count > 1 and sample.noise == "zero" and not sample.eta:
        raise InputError(f"config.sample.count is {sample.count}, but from zero noise with eta 0 "
                         "all samples are the same; set count to 1")
    for phase in config.phases:
        if len(nets := tuple(config.phase[phase].optim)) != 1 or nets[0] not in _OFFICIAL:
            raise InputError(f"phase {phase!r} trains {nets}; it must be one of "
                             f"{', '.join(_OFFICIAL)}")
        if nets == ("denoiser",) and not model.diffusion:
            raise InputError(f"phase {phase!r} trains the denoiser, which a model with "
                             "config.model.diffusion=False does not have")


# network -> (what stands before its official names, our names -> theirs)
_OFFICIAL = {
    "autoencoder": ("decom.", (
        (r"encoder/stem", "ReconNet/pyramid/convs/"),
        (r"encoder/squeeze", "ReconNet/channel_down/conv"),
        (r"encoder/", "ReconNet/pyramid/"),
        (r"decoder/expand", "ReconNet/channel_up/conv"),
        (r"decoder/block", "ReconNet/block_up"),
        (r"decoder/up(\d)", r"ReconNet/up_sampling\1/conv"),
        (r"decoder/conv", "ReconNet/conv2"), (r"decoder/out", "ReconNet/conv3"),
        (r"(\d|_last)/conv1/", r"\1/model/0/"), (r"(\d|_last)/conv2/", r"\1/model/2/"),
        (r"(\d|_last)/shortcut/", r"\1/conv/"),
        (r"r_in", "conv0"), (r"r_block", "blocks0/"),
        (r"r_last", "conv0_1/0"), (r"r_out", "conv0_1/1"),
        (r"l_in", "conv1"), (r"l_block", "blocks1/"),
        (r"l_last", "conv1_1/0"), (r"l_out", "conv1_1/1"),
        (r"cross_attention/(\w+)_depth", r"cross_attention/\1/depth_conv"),
        (r"cross_attention/([a-z]+)/(k|b)", r"cross_attention/\1/point_conv/\2"),
        (r"qkv_depth", "qkv_dwconv"), (r"attention/out", "attention/project_out"),
        (r"kernel$", "weight"))),
    "denoiser": ("Unet.", (
        (r"^time", "temb/dense/"), (r"mid_block", "mid/block_"), (r"mid_attention", "mid/attn_"),
        (r"(\d)_block", r"/\1/block/"), (r"(\d)_attention", r"/\1/attn/"),
        (r"(\d)_half", r"/\1/downsample/conv"), (r"(\d)_double", r"/\1/upsample/conv"),
        (r"/time/", "/temb_proj/"), (r"shortcut", "nin_shortcut"),
        (r"/(q|k|v)(uery|ey|alue)/", r"/\1/"), (r"/out/", "/proj_out/"),
        (r"(kernel|scale)$", "weight"))),
}


def _from_torch(ours: str, rank: int) -> Callable[[np.ndarray], np.ndarray]:
    if rank == 4:
        transposed = "decoder/up" in ours
        return layers.kernel_from_torch_transposed if transposed else layers.kernel_from_torch
    return np.transpose if rank == 2 else np.asarray
