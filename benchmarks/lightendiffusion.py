"""LightenDiffusion: its tasks, and the networks and losses in PyTorch, written for the benchmarks.

The default config but for `CHANGES`, with which the comparison of the two sides sees what is
sampled; they cost no time. For the gradient through the sampler (the consistency term) both sides
keep what goes into each step and compute the step again.

Memory is looked at with a narrow U-Net. For the whole one, which compiles for half an hour:

    python benchmarks/lightendiffusion.py --width 64 --side 128
"""

import argparse
import functools
import math
import os

import common
import peer
import torch
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

PRESETS = ""
LAST = 0.005  # with 0.02 and random weights nearly all that is sampled lies beyond [0, 1]
CHANGES = ("sample.noise=zero", f"diffusion.last={LAST}", "loss.consistency.weight=1.0")
COMMAND = False
PIPELINE = common.Pipeline("pairs", "autoencoder", 2, 400, 600, ".png")  # as LOL
SIZE = (512, 512)  # width, height
LATENT = 64  # their latent's side
BATCH, SIDE = 2, 128
UNET = f"U-Net {LATENT}x{LATENT}"
STAGE_1, STAGE_2 = f"autoencoder step {BATCH}x{SIDE}", f"denoiser step {BATCH}x{SIDE}"
THROUGH = f"consistency step 1x{SIDE}"
STEPS = 20  # of the sampler
# What memory is looked at for: sides in px, and channels of the U-Net.
MEMORY_SIDES, MEMORY_WIDTH = (128, 512), 16


def lljax_tasks(config, nets):
    from lljax import config as config_lib
    config = config_lib.change(config, CHANGES)
    tasks = {UNET: _lljax_unet(config, nets), **common.lljax_enhance(config, nets, *SIZE)}
    tasks[STAGE_1] = common.lljax_train(config, nets, "autoencoder", **_pictures(BATCH))
    without = config_lib.change(config, ["loss.consistency.enabled=false"])
    tasks[STAGE_2] = common.lljax_train(without, nets, "denoiser", **_pictures(BATCH))
    tasks[THROUGH] = common.lljax_train(config, nets, "denoiser", **_pictures(1))
    return tasks


def _lljax_unet(config, nets):
    import jax

    from lljax import method as method_lib
    forward = jax.jit(method_lib.load(config).denoiser.apply)
    arguments = jax.device_put((nets["denoiser"], *_latents()))
    return lambda: forward(*arguments).block_until_ready()


def lljax_memory(config, nets):
    del nets  # these have another width
    from lljax import config as config_lib
    narrow = config_lib.change(config, [f"model.unet_width={MEMORY_WIDTH}"])
    return {what: mib for side in MEMORY_SIDES for what, mib in _memory(narrow, side)}


def _memory(config, side):
    """Yields (what, MiB) for a picture of `side` px: the step of stage 2 without the consistency
    loss and with it, each step of the sampler computed again and not; and of the sampler alone."""
    from lljax import config as config_lib
    nets, label = common.initial(config), f"U-Net of width {config.model.unet_width}"
    for how, setting in (("without the consistency loss", "enabled=false"),
                         ("with it", "remat=true"), ("with it, remat off", "remat=false")):
        changed = config_lib.change(config, [f"loss.consistency.{setting}"])
        yield (f"step 1x{side}, {label}, {how}",
               common.step_memory(changed, nets, "denoiser", **_pictures(1, side)))
    latent = side // 2 ** config.model.levels
    for how, steps, again in (("one call", 1, False), (f"{STEPS} steps", STEPS, True),
                              (f"{STEPS} steps, remat off", STEPS, False)):
        yield (f"gradient through the sampler alone, latent {latent}x{latent}, {label}, {how}",
               _sampler_memory(config, nets, latent, steps, again))


def _sampler_memory(config, nets, side, steps, again):
    """MiB of the compiled gradient of so many steps; of one, the U-Net's alone. The gradient that
    is its result is not in it."""
    import jax
    import jax.numpy as jnp

    from lljax import diffusion
    from lljax import method as method_lib
    method = method_lib.load(config)

    def total(params, condition_pm1, start):
        predict = functools.partial(method.denoiser.apply, {"params": params}, condition_pm1)
        if steps == 1:
            x = predict(start, jnp.full(1, 500))
        else:
            x, _ = diffusion.ddim_sample(predict, start, method.alpha_bars, steps,
                                         checkpoint=again)
        return jnp.square(x).mean()

    latent = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    return common.program_memory(jax.jit(jax.grad(total)), nets["denoiser"]["params"], latent,
                                 latent)


def torch_tasks(nets, device, compiled):
    def built():
        return [peer.place(peer.load(net, nets[name]["params"]), device)
                for name, net in (("autoencoder", Autoencoder()), ("denoiser", Denoiser()))]

    def called(function):
        # it fails to compile the U-Net once for all tasks' sizes
        return torch.compile(function, dynamic=False) if compiled else function

    autoencoder, denoiser = built()
    tasks = {UNET: _torch_unet(called(denoiser), device), **peer.torch_enhance(
        Enhance(autoencoder, denoiser, called), device, *SIZE)}
    autoencoder, _ = built()
    optimizer = torch.optim.Adam(autoencoder.parameters(), 1e-4)
    tasks[STAGE_1] = peer.torch_train(
        called(AutoencoderLoss(autoencoder)), autoencoder.parameters(), optimizer, device,
        **_pictures(BATCH))
    for task, batch in ((STAGE_2, BATCH), (THROUGH, 1)):
        autoencoder, denoiser = built()
        loss = DenoiserLoss(autoencoder, denoiser, called, task == THROUGH, batch, device)
        optimizer = torch.optim.Adam(denoiser.parameters(), 2e-5)
        _average(denoiser, optimizer)
        tasks[task] = peer.torch_train(loss, denoiser.parameters(), optimizer, device,
                                       **_pictures(batch))
    return tasks


def _torch_unet(denoiser, device):
    condition, noisy, t = (torch.from_numpy(x).to(device) for x in _latents())
    condition, noisy = (x.permute(0, 3, 1, 2) for x in (condition, noisy))

    def forward():
        with torch.no_grad():
            y = denoiser(condition, noisy, t)
            peer.wait(device)
            return y.permute(0, 2, 3, 1)
    return forward


def _average(net, optimizer):
    """Each step of the optimiser updates a moving average of the parameters, which nothing uses."""
    averaged = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9999))
    optimizer.register_step_post_hook(lambda *_: averaged.update_parameters(net))


def _pictures(batch, side=SIDE):
    return {"low": common.picture(side, side, batch),
            "high": common.picture(side, side, batch, bright=True)}


def _latents():
    """What the U-Net is called with alone: two latents and a time."""
    import numpy as np
    shape = (1, LATENT, LATENT, 3)
    return common.noise(shape), common.noise(shape, 1), np.full(1, 500, np.int32)


def _drawn(batch):
    """The times, the noises and the starts of sampling that lljax draws, as NumPy arrays."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # the GPU's memory is PyTorch's
    import jax
    import numpy as np

    from lljax import config as config_lib
    from lljax import method as method_lib
    from lljax import parallel
    from lljax.data import pipeline
    method = method_lib.load(config_lib.default("lightendiffusion", PRESETS))
    step = np.int32(0)
    drawn = jax.vmap(lambda b: method.prepare(pipeline.on_device(b, 0, step)),
                     axis_name=parallel.AXIS)(common.batch_of(_pictures(batch)))
    return [np.array(drawn[name][0]) for name in ("t", "noise", "start")]


def conv(before, after, size=3, **knobs):
    """A convolution that keeps the sides, at stride 1."""
    return torch.nn.Conv2d(before, after, size, padding=size // 2, **knobs)


class ResBlock(torch.nn.Module):
    """Two convolutions with a LeakyReLU between, and a 1x1 convolution around them."""

    def __init__(self, before, after):
        super().__init__()
        self.conv1, self.conv2 = conv(before, after), conv(after, after)
        self.shortcut = conv(before, after, 1)

    def forward(self, x):
        return self.conv2(F.leaky_relu(self.conv1(x))) + self.shortcut(x)


class Encoder(torch.nn.Module):
    """Picture -> latent, and the features of every level."""

    def __init__(self, width, levels):
        super().__init__()
        self.levels = levels
        self.stem0, self.stem1 = conv(3, width, 5), conv(width, width, 5)
        before = width
        for i in range(levels):
            after = width * 2 ** i
            setattr(self, f"block{i}", ResBlock(before, after))
            setattr(self, f"down{i}", conv(after, after, stride=2))
            before = after
        self.squeeze0, self.squeeze1 = conv(before, 2 * width), conv(2 * width, width)
        self.squeeze2 = conv(width, 3)

    def forward(self, x):
        x, skips = self.stem1(self.stem0(x)), []
        for i in range(self.levels):
            x = getattr(self, f"down{i}")(getattr(self, f"block{i}")(x))
            skips.append(x)
        x = F.leaky_relu(self.squeeze1(F.leaky_relu(self.squeeze0(x))))
        return torch.sigmoid(self.squeeze2(x)), skips


class Decoder(torch.nn.Module):
    """Latent and the encoder's features -> picture."""

    def __init__(self, width, levels):
        super().__init__()
        before = width * 2 ** (levels - 1)
        self.expand0, self.expand1 = conv(3, width), conv(width, 2 * width)
        self.expand2 = conv(2 * width, before)
        for i in range(levels):
            after = max(before // 2, width)
            setattr(self, f"block{2 * i}", ResBlock(before, before))
            setattr(self, f"block{2 * i + 1}", ResBlock(before, before))
            setattr(self, f"up{i}", torch.nn.ConvTranspose2d(
                before, after, 3, stride=2, padding=1, output_padding=1))
            before = after
        self.conv, self.out = conv(width, width), conv(width, 3, 1)

    def forward(self, latent, skips):
        x = F.leaky_relu(self.expand1(F.leaky_relu(self.expand0(latent))))
        x = self.expand2(x)
        for i, skip in enumerate(reversed(skips)):
            x = getattr(self, f"block{2 * i}")(x) + skip
            x = F.leaky_relu(getattr(self, f"up{i}")(getattr(self, f"block{2 * i + 1}")(x)))
        return self.out(F.leaky_relu(self.conv(x)))


class CrossAttention(torch.nn.Module):
    """Attention of the channels of one map to those of another, within each row of pixels."""

    def __init__(self, width, heads):
        super().__init__()
        self.scale = (width / heads) ** -0.5
        for name in ("query", "key", "value"):
            setattr(self, f"{name}_depth", conv(width, width, groups=width))
            setattr(self, name, conv(width, width, 1))

    def forward(self, asking, asked):
        query, key, value = (
            getattr(self, name)(getattr(self, f"{name}_depth")(x)).transpose(1, 2)
            for name, x in (("query", asking), ("key", asked), ("value", asked)))
        # torch.compile gets the product of the three written out wrong
        return F.scaled_dot_product_attention(query, key, value, scale=self.scale).transpose(1, 2)


class SelfAttention(torch.nn.Module):
    """Attention of the channels of each head to each other, over the whole map."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = conv(width, 3 * width, 1)
        self.qkv_depth = conv(3 * width, 3 * width, groups=3 * width)
        self.out = conv(width, width, 1)

    def forward(self, x):
        b, c, h, w = x.shape
        query, key, value = self.qkv_depth(self.qkv(x)).reshape(
            b, 3, self.heads, c // self.heads, h * w).unbind(1)
        scores = F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).transpose(2, 3)
        return self.out((scores.softmax(-1) @ value).reshape(b, c, h, w))


class Retinex(torch.nn.Module):
    """Reflectance and illumination of a latent."""

    def __init__(self, width, heads):
        super().__init__()
        for name, channels in (("r", 3), ("l", 1)):
            setattr(self, f"{name}_in", conv(channels, width))
            for part in ("block0", "block1", "last"):
                setattr(self, f"{name}_{part}", ResBlock(width, width))
            setattr(self, f"{name}_out", conv(width, channels))
        self.self_attention = SelfAttention(width, heads)
        self.cross_attention = CrossAttention(width, heads)

    def forward(self, latent):
        brightest = latent.amax(1, keepdim=True).clamp(min=1e-4)
        scene = self.r_block1(self.r_block0(self.r_in(latent / brightest)))
        light = self.l_block1(self.l_block0(self.l_in(brightest)))
        content = self.self_attention(light)
        scene, light = self.cross_attention(light, scene) + content, light - content
        return (torch.sigmoid(self.r_out(self.r_last(scene))),
                torch.sigmoid(self.l_out(self.l_last(light))))


class Autoencoder(torch.nn.Module):
    """Encoder, decoder and decomposition."""

    def __init__(self, width=64, levels=3, heads=8):
        super().__init__()
        self.encoder, self.decoder = Encoder(width, levels), Decoder(width, levels)
        self.retinex = Retinex(width, heads)


def norm(channels):
    return torch.nn.GroupNorm(math.gcd(32, channels), channels, eps=1e-6)


class TimeBlock(torch.nn.Module):
    """Residual block that is told the time."""

    def __init__(self, before, after, embedding):
        super().__init__()
        self.norm1, self.norm2 = norm(before), norm(after)
        self.conv1, self.conv2 = conv(before, after), conv(after, after)
        self.time = torch.nn.Linear(embedding, after)
        if before != after:
            self.shortcut = conv(before, after, 1)

    def forward(self, x, time):
        y = self.conv1(F.silu(self.norm1(x))) + self.time(F.silu(time))[:, :, None, None]
        y = self.conv2(F.silu(self.norm2(y)))
        return y + (self.shortcut(x) if hasattr(self, "shortcut") else x)


class PixelAttention(torch.nn.Module):
    """Residual attention of all pixels to each other."""

    def __init__(self, channels):
        super().__init__()
        self.norm = norm(channels)
        for name in ("query", "key", "value", "out"):
            setattr(self, name, conv(channels, channels, 1))

    def forward(self, x):
        b, c, h, w = x.shape
        y = self.norm(x)
        query, key, value = (layer(y).flatten(2).transpose(1, 2)[:, None]
                             for layer in (self.query, self.key, self.value))
        y = F.scaled_dot_product_attention(query, key, value)[:, 0]
        return x + self.out(y.transpose(1, 2).reshape(b, c, h, w))


class Denoiser(torch.nn.Module):
    """U-Net that finds the noise in a latent, given another latent."""

    def __init__(self, width=64, mult=(1, 2, 3, 4), blocks=2, attention=(2,)):
        super().__init__()
        self.width, self.levels, self.blocks = width, len(mult), blocks
        self.time0 = torch.nn.Linear(width, 4 * width)
        self.time1 = torch.nn.Linear(4 * width, 4 * width)
        self.conv_in = conv(6, width)
        before, skips = width, [width]
        for i in range(self.levels):
            for j in range(blocks):
                self._add(f"down{i}", j, before, width * mult[i], i in attention)
                before = width * mult[i]
                skips.append(before)
            if i < self.levels - 1:
                setattr(self, f"down{i}_half", torch.nn.Conv2d(before, before, 3, stride=2))
                skips.append(before)
        self._add("mid", 1, before, before, True)
        self._add("mid", 2, before, before, False)
        for i in reversed(range(self.levels)):
            for j in range(blocks + 1):
                self._add(f"up{i}", j, before + skips.pop(), width * mult[i], i in attention)
                before = width * mult[i]
            if i:
                setattr(self, f"up{i}_double", conv(before, before))
        self.norm_out, self.conv_out = norm(width), conv(width, 3)

    def _add(self, level, j, before, after, attention):
        setattr(self, f"{level}_block{j}", TimeBlock(before, after, 4 * self.width))
        if attention:
            setattr(self, f"{level}_attention{j}", PixelAttention(after))

    def _block(self, level, j, x, time):
        x = getattr(self, f"{level}_block{j}")(x, time)
        attention = getattr(self, f"{level}_attention{j}", None)
        return attention(x) if attention else x

    def forward(self, condition_pm1, noisy_pm1, t):
        time = self.time1(F.silu(self.time0(embedding(t, self.width))))
        x = self.conv_in(torch.cat([condition_pm1, noisy_pm1], 1))
        skips = [x]
        for i in range(self.levels):
            for j in range(self.blocks):
                x = self._block(f"down{i}", j, x, time)
                skips.append(x)
            if i < self.levels - 1:
                x = getattr(self, f"down{i}_half")(F.pad(x, (0, 1, 0, 1)))
                skips.append(x)
        x = self._block("mid", 2, self._block("mid", 1, x, time), time)
        for i in reversed(range(self.levels)):
            for j in range(self.blocks + 1):
                x = self._block(f"up{i}", j, torch.cat([x, skips.pop()], 1), time)
            if i:
                x = getattr(self, f"up{i}_double")(F.interpolate(x, scale_factor=2))
        return self.conv_out(F.silu(self.norm_out(x)))


def embedding(t, width):
    """Sines, then cosines of the times [B] at frequencies from 1 down to 1/10000: [B, width]."""
    powers = torch.linspace(0, 1, width // 2, dtype=torch.float64, device=t.device)
    angles = t[:, None] * (1e4 ** -powers).float()
    return torch.cat([angles.sin(), angles.cos()], 1)


def alpha_bars():
    """Share of the picture's variance left at each of 1000 times, float64."""
    return (1 - torch.linspace(1e-4, LAST, 1000, dtype=torch.float64)).cumprod(0)


def sample(denoise, condition_pm1, x, again=False):
    """DDIM without fresh noise; `again` keeps what goes into each step for the gradient, and
    computes the step again. Gives a latent, in [0, 1]."""
    kept = alpha_bars().tolist()
    times = [i * len(kept) // STEPS for i in reversed(range(STEPS))]

    def step(x, t, now, after):
        found = denoise(condition_pm1, x, t)
        x0 = (x - (1 - now) ** 0.5 * found) / now ** 0.5
        return after ** 0.5 * x0 + (1 - after) ** 0.5 * found

    for time, following in zip(times, [*times[1:], None], strict=True):
        t = torch.full((len(x),), time, device=x.device)
        after = 1.0 if following is None else kept[following]
        arguments = x, t, kept[time], after
        x = checkpoint(step, *arguments, use_reentrant=False) if again else step(*arguments)
    return ((x + 1) / 2).clamp(0, 1)


class Enhance(torch.nn.Module):
    """The enhanced picture; only the networks are compiled, not the sampler's loop."""

    def __init__(self, autoencoder, denoiser, called):
        super().__init__()
        self.encode, self.decode = called(autoencoder.encoder), called(autoencoder.decoder)
        self.denoise = called(denoiser)

    def forward(self, low):
        latent, skips = self.encode(low)
        sampled = sample(self.denoise, 2 * latent - 1, torch.zeros_like(latent))
        return self.decode(sampled, skips)


class AutoencoderLoss(torch.nn.Module):
    """Weighted total of stage 1. Terms of a picture are summed over a pair's two."""

    def __init__(self, autoencoder):
        super().__init__()
        self.net = autoencoder

    def forward(self, low, high):
        images = torch.cat([low, high])
        latents, skips = self.net.encoder(images)
        decoded = self.net.decoder(latents, skips)
        r, light = self.net.retinex(latents)
        swapped, other = (x.roll(len(low), 0) for x in (light, latents))
        content = (decoded - images).square().mean((1, 2, 3)).sqrt().mean()
        reconstruction = F.l1_loss(r * light, latents) + F.l1_loss(r * swapped, other)
        smoothness = sum((light.diff(dim=axis) * (-10 * r.diff(dim=axis).abs()).exp()).abs().mean()
                         for axis in (2, 3))
        return (2 * (content + reconstruction + 0.01 * smoothness)
                + 0.1 * F.l1_loss(*r.chunk(2)))


class DenoiserLoss(torch.nn.Module):
    """Weighted total of stage 2 on a finished autoencoder, with or without the consistency."""

    def __init__(self, autoencoder, denoiser, called, consistency, batch, device):
        super().__init__()
        self.autoencoder, self.consistency = autoencoder, consistency
        self.decompose, self.denoise = called(self._decompose), called(denoiser)
        t, noise, start = (torch.from_numpy(x).to(device) for x in _drawn(batch))
        self.t, self.noise, self.start = t, *(x.permute(0, 3, 1, 2) for x in (noise, start))
        kept = alpha_bars().float().to(device)[t.long()][:, None, None, None]
        self.signal, self.spread = kept.sqrt(), (1 - kept).sqrt()

    def _decompose(self, images):
        latents, _ = self.autoencoder.encoder(images)
        return latents, *self.autoencoder.retinex(latents)

    def forward(self, low, high):
        with torch.no_grad():
            latents, r, light = self.decompose(torch.cat([low, high]))
            condition_pm1, r_low = 2 * latents.chunk(2)[0] - 1, r.chunk(2)[0]
            l_low, l_high = light.chunk(2)
            noisy = self.signal * (2 * r_low * l_high - 1) + self.spread * self.noise
        total = F.mse_loss(self.denoise(condition_pm1, noisy, self.t), self.noise)
        if not self.consistency:
            return total
        sampled = sample(self.denoise, condition_pm1, self.start, again=True)
        return total + F.l1_loss(sampled, r_low * l_low ** 0.2)


def main():
    """Prints the memory of compiled programs for a U-Net of any width, as each is compiled."""
    from lljax import config as config_lib
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--width", type=int, default=64, help="channels of the U-Net")
    parser.add_argument("--side", type=int, default=128, help="of the picture, px")
    args = parser.parse_args()
    config = config_lib.change(config_lib.default("lightendiffusion", PRESETS),
                               [f"model.unet_width={args.width}"])
    for what, mib in _memory(config, args.side):
        print(f"{mib:8.1f} MiB  {what}", flush=True)


if __name__ == "__main__":
    main()
