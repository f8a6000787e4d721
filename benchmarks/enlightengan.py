"""EnlightenGAN: its tasks, and the networks and losses in PyTorch, written for the benchmarks.

The default config: without the VGG16 terms, for which no weights are at hand.
"""

import os

import common
import peer
import torch
import torch.nn.functional as F

PRESETS = ""
COMMAND = False
PIPELINE = common.Pipeline("unpaired", "train", 4, 400, 600, ".png")  # as the official training set
SIZE = (600, 400)  # width, height
BATCH, SIDE = 4, 160
STEP = f"train step {BATCH}x{SIDE}"
REMAT = "the same, model.remat"


def lljax_tasks(config, nets):
    tasks = common.lljax_enhance(config, nets, *SIZE)
    tasks[STEP] = common.lljax_train(config, nets, "train", **_pictures())
    with config.unlocked():
        config.model.remat = True
    tasks[REMAT] = common.lljax_train(config, nets, "train", **_pictures())
    return tasks


def lljax_memory(config, nets):
    found = {}
    for remat in (False, True):
        with config.unlocked():
            config.model.remat = remat
        few, many = (common.step_memory(config, nets, "train", **{
            role: value[:count] for role, value in _pictures().items()}) for count in (2, BATCH))
        suffix = ", model.remat" if remat else ""
        found[f"{STEP}{suffix}"] = many
        found[f"each further image{suffix}"] = (many - few) / (BATCH - 2)
    return found


def torch_tasks(nets, device, compiled):
    def built():
        return {name: peer.place(peer.load(net, nets[name]["params"]), device)
                for name, net in (("generator", Generator()), ("global_disc", Discriminator(5)),
                                  ("local_disc", Discriminator(4)))}

    def called(function):
        return torch.compile(function) if compiled else function

    generator = built()["generator"].eval()
    tasks = peer.torch_enhance(called(lambda low: enhance(generator, low)), device, *SIZE)
    step = Step(built(), called, device)
    tasks[STEP] = step
    return tasks


def _pictures():
    return {"low": common.picture(SIDE, SIDE, BATCH),
            "high": common.picture(SIDE, SIDE, BATCH, bright=True)}


def _drawn():
    """The darkened pictures and the places of the patches that lljax draws, as NumPy arrays."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # the GPU's memory is PyTorch's
    import numpy as np

    from lljax import config as config_lib
    from lljax import method as method_lib
    from lljax.data import pipeline
    method = method_lib.load(config_lib.default("enlightengan", PRESETS))
    batch = {**_pictures(), "mask": np.ones(BATCH, np.float32),
             "index": np.arange(BATCH, dtype=np.int32)}
    batch = method.prepare(pipeline.on_device(batch, 0, np.int32(0)))
    return np.asarray(batch["dark"]), np.asarray(batch["offsets"])


class Block(torch.nn.Module):
    """Convolution, LeakyReLU and, after it, BatchNorm."""

    def __init__(self, before, after, norm=True):
        super().__init__()
        self.conv = torch.nn.Conv2d(before, after, 3, padding=1)
        self.bn = torch.nn.BatchNorm2d(after) if norm else torch.nn.Identity()

    def forward(self, x):
        return self.bn(F.leaky_relu(self.conv(x), 0.2))


class Level(torch.nn.Module):
    """Two blocks; on the way up a bare convolution and the skip before them."""

    def __init__(self, before, after, up=False, norm=True):
        super().__init__()
        if up:
            self.deconv = torch.nn.Conv2d(before, after, 3, padding=1)
        self.block1 = Block(before, after)
        self.block2 = Block(after, after, norm)

    def forward(self, x, attention=1.0, skip=None):
        if skip is None:
            return self.block2(self.block1(x) * attention)
        x = F.interpolate(x, skip.shape[2:], mode="bilinear", align_corners=True)
        return self.block2(self.block1(torch.cat([self.deconv(x), skip * attention], 1)))


class Generator(torch.nn.Module):
    """Attention-guided U-Net; 8,636,675 parameters."""

    def __init__(self):
        super().__init__()
        widths = [4, 32, 64, 128, 256, 512]
        for i in range(1, 6):
            setattr(self, f"level{i}", Level(widths[i - 1], widths[i]))
        for i in range(6, 10):
            width = widths[10 - i]
            setattr(self, f"level{i}", Level(2 * width, width, up=True, norm=i < 9))
        self.conv10 = torch.nn.Conv2d(32, 3, 1)

    def forward(self, image_pm1, attention):
        levels = [attention]
        for _ in range(4):
            levels.append(F.max_pool2d(levels[-1], 2))
        x, skips = torch.cat([image_pm1, attention], 1), []
        for i in range(4):
            skips.append(getattr(self, f"level{i + 1}")(x))
            x = F.max_pool2d(skips[-1], 2)
        x = self.level5(x, levels[4])
        for i in range(3, -1, -1):
            x = getattr(self, f"level{9 - i}")(x, levels[i], skips[i])
        return self.conv10(x) * attention


def attention_of(low):
    """1 minus the luma."""
    red, green, blue = low.unbind(1)
    return 1 - (0.299 * red + 0.587 * green + 0.114 * blue)[:, None]


def enhance(generator, low):
    """A picture of any size, mirrored outwards to multiples of 16 for the network."""
    height, width = (-side % 16 for side in low.shape[2:])
    margins = (width // 2, width - width // 2, height // 2, height - height // 2)
    x, attention = (F.pad(t, margins, "reflect") for t in (low, attention_of(low)))
    latent = generator(2 * x - 1, attention)
    (left, _, top, _), (h, w) = margins, low.shape[2:]
    return low + latent[:, :, top:top + h, left:left + w] / 2


class Discriminator(torch.nn.Module):
    """4 x 4 convolutions: `depth` of stride 2, two of stride 1."""

    def __init__(self, depth):
        super().__init__()
        widths = [3] + [64 * 2 ** min(i, 3) for i in range(depth + 1)]
        self.depth = depth
        for i in range(depth + 1):
            setattr(self, f"conv{i}", torch.nn.Conv2d(
                widths[i], widths[i + 1], 4, stride=2 if i < depth else 1, padding=2))
        setattr(self, f"conv{depth + 1}", torch.nn.Conv2d(widths[-1], 1, 4, padding=2))

    def forward(self, x):
        for i in range(self.depth + 1):
            x = F.leaky_relu(getattr(self, f"conv{i}")(x), 0.2)
        return getattr(self, f"conv{self.depth + 1}")(x)


def relativistic(better, worse):
    """Half of both sides of the relativistic average least-squares loss."""
    return 0.5 * ((better - worse.mean() - 1).square().mean()
                  + (worse - better.mean()).square().mean())


class Step:
    """The generator's update, then both discriminators' on what it had made."""

    def __init__(self, nets, called, device):
        dark, offsets = _drawn()
        self.nets, self.offsets = nets, offsets
        self.dark = torch.from_numpy(dark.copy()).to(device).permute(0, 3, 1, 2).contiguous(
            memory_format=torch.channels_last)
        self.real = 2 * peer.tensor(_pictures()["high"], device) - 1
        self.optimizers = {name: torch.optim.Adam(net.parameters(), 1e-4, (0.5, 0.999))
                           for name, net in nets.items()}
        self.generate, self.judge_global, self.judge_local = (
            called(function) for function in (self._generate, self._judge_global,
                                              self._judge_local))

    def _patches(self, images):
        return torch.cat([image[None, :, row:row + 32, column:column + 32]
                          for image, places in zip(images, self.offsets, strict=True)
                          for row, column in places])

    def _generate(self):
        dark_pm1 = 2 * self.dark - 1
        fake = self.nets["generator"](dark_pm1, attention_of(self.dark)) + dark_pm1
        made, real = (self.nets["global_disc"](x) for x in (fake, self.real))
        local = self.nets["local_disc"](self._patches(fake))
        return relativistic(made, real) + (local - 1).square().mean(), fake

    def _judge_global(self, fake):
        return relativistic(*(self.nets["global_disc"](x) for x in (self.real, fake)))

    def _judge_local(self, fake):
        real, made = (self.nets["local_disc"](self._patches(x)) for x in (self.real, fake))
        return 0.5 * ((real - 1).square().mean() + made.square().mean())

    def _update(self, name, loss):
        loss.backward()
        self.optimizers[name].step()
        return loss.item()

    def __call__(self):
        for name, net in self.nets.items():
            net.requires_grad_(name == "generator")
            net.zero_grad()
        loss, fake = self.generate()
        total = self._update("generator", loss)
        fake = fake.detach()
        for name, judge in (("global_disc", self.judge_global), ("local_disc", self.judge_local)):
            self.nets[name].requires_grad_(True)
            total += self._update(name, judge(fake))
        return total
