"""Retinex-Net: its tasks, and the networks and losses in PyTorch, written for the benchmarks.

The official program's side of everything: added skips, TensorFlow's padding, its loss weights.
"""

import itertools

import common
import peer
import torch
import torch.nn.functional as F

PRESETS = "official_code"
COMMAND = False
PIPELINE = common.Pipeline("pairs", "decom", 16, 400, 600, ".png")  # as LOL
SIZE = (600, 400)  # width, height
BATCH, SIDES = 16, (48, 96)  # the official patch and the paper's
LAYER_SIDE = 96
FIRST, STRIDED = "9x9 4->64", "3x3/2 64->64"


def lljax_tasks(config, nets):
    from lljax import layers
    tasks = common.lljax_enhance(config, nets, *SIZE)
    for side, phase in itertools.product(SIDES, config.phases):
        tasks[f"{phase} step {BATCH}x{side}"] = common.lljax_train(
            config, nets, phase, **_pair(side))
    first, strided = _layers(nets)
    tasks |= common.lljax_layer(FIRST, layers.Conv(64, 9, origin="tensorflow"), *first, False)
    tasks |= common.lljax_layer(STRIDED, layers.Conv(64, stride=2, origin="tensorflow"), *strided)
    return tasks


def torch_tasks(nets, device, compiled):
    def built():
        return [peer.place(peer.load(net, nets[name]["params"]), device)
                for name, net in (("decom", DecomNet()), ("relight", RelightNet()))]

    def called(function):
        return torch.compile(function) if compiled else function

    tasks = peer.torch_enhance(called(Enhance(*built())), device, *SIZE)
    for side, (phase, loss) in itertools.product(SIDES, LOSSES.items()):
        parts = dict(zip(LOSSES, built(), strict=True))
        for name, net in parts.items():
            net.requires_grad_(name == phase)
        optimizer = torch.optim.Adam(parts[phase].parameters(), 1e-3)
        tasks[f"{phase} step {BATCH}x{side}"] = peer.torch_train(
            called(loss(*parts.values())), parts[phase].parameters(), optimizer, device,
            **_pair(side))
    decom, relight = built()
    (_, first), (_, strided) = _layers(nets)
    tasks |= peer.torch_layer(FIRST, decom.conv0, first, device, False)
    tasks |= peer.torch_layer(STRIDED, relight.conv1, strided, device)
    return tasks


def _pair(side):
    return {"low": common.picture(side, side, BATCH),
            "high": common.picture(side, side, BATCH, bright=True)}


def _layers(nets):
    """Parameters and input of the two layers that are timed alone."""
    return [(nets[net]["params"][name], common.noise((BATCH, LAYER_SIDE, LAYER_SIDE, channels)))
            for net, name, channels in (("decom", "conv0", 4), ("relight", "conv1", 64))]


class Down(torch.nn.Conv2d):
    """3x3 convolution of stride 2, padded as TensorFlow's SAME: (0, 1) on even sides."""

    def __init__(self, channels):
        super().__init__(channels, channels, 3, stride=2)

    def forward(self, x):
        height, width = (n % 2 for n in x.shape[2:])
        return super().forward(F.pad(x, (width, 1, height, 1)))


class DecomNet(torch.nn.Module):
    """Decom-Net; 207,748 parameters."""

    def __init__(self):
        super().__init__()
        self.conv0 = torch.nn.Conv2d(4, 64, 9, padding=4)
        for i in range(1, 6):
            setattr(self, f"conv{i}", torch.nn.Conv2d(64, 64, 3, padding=1))
        self.recon = torch.nn.Conv2d(64, 4, 3, padding=1)

    def forward(self, image):
        x = self.conv0(torch.cat([image.amax(1, keepdim=True), image], 1))
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4, self.conv5):
            x = F.relu(conv(x))
        x = torch.sigmoid(self.recon(x))
        return x[:, :3], x[:, 3:]


class RelightNet(torch.nn.Module):
    """Enhance-Net with added skips; 236,865 parameters."""

    def __init__(self):
        super().__init__()
        self.conv0 = torch.nn.Conv2d(4, 64, 3, padding=1)
        for i in (1, 2, 3):
            setattr(self, f"conv{i}", Down(64))
            setattr(self, f"deconv{i}", torch.nn.Conv2d(64, 64, 3, padding=1))
        self.fusion = torch.nn.Conv2d(192, 64, 1)
        self.output = torch.nn.Conv2d(64, 1, 3, padding=1)

    def forward(self, reflectance, illumination):
        x0 = self.conv0(torch.cat([reflectance, illumination], 1))
        x1 = F.relu(self.conv1(x0))
        x2 = F.relu(self.conv2(x1))
        x3 = F.relu(self.conv3(x2))
        up1 = F.relu(self.deconv1(F.interpolate(x3, x2.shape[2:]))) + x2
        up2 = F.relu(self.deconv2(F.interpolate(up1, x1.shape[2:]))) + x1
        up3 = F.relu(self.deconv3(F.interpolate(up2, x0.shape[2:]))) + x0
        size = up3.shape[2:]
        scales = [F.interpolate(up1, size), F.interpolate(up2, size), up3]
        return self.output(self.fusion(torch.cat(scales, 1)))


class Enhance(torch.nn.Module):
    """Both networks; the enhanced picture."""

    def __init__(self, decom, relight):
        super().__init__()
        self.decom, self.relight = decom, relight

    def forward(self, low):
        reflectance, illumination = self.decom(low)
        return reflectance * self.relight(reflectance, illumination)


class DecomLoss(Enhance):
    """Weighted total of the phase that trains Decom-Net."""

    def forward(self, low, high):
        r_low, i_low = self.decom(low)
        r_high, i_high = self.decom(high)
        return (F.l1_loss(r_low * i_low, low) + F.l1_loss(r_high * i_high, high)
                + 0.001 * F.l1_loss(r_high * i_low, low) + 0.001 * F.l1_loss(r_low * i_high, high)
                + 0.01 * F.l1_loss(r_low, r_high)
                + 0.1 * smoothness(i_low, r_low) + 0.1 * smoothness(i_high, r_high))


class RelightLoss(Enhance):
    """Weighted total of the phase that trains Enhance-Net on a finished Decom-Net."""

    def forward(self, low, high):
        with torch.no_grad():
            r_low, i_low = self.decom(low)
        adjusted = self.relight(r_low, i_low)
        return F.l1_loss(r_low * adjusted, high) + 3 * smoothness(adjusted, r_low)


LOSSES = {"decom": DecomLoss, "relight": RelightLoss}


def smoothness(illumination, reflectance):
    """Changes of the illumination, excused where the reflectance changes."""
    red, green, blue = reflectance.unbind(1)
    grey = (0.2989 * red + 0.587 * green + 0.114 * blue)[:, None]
    return sum((light * torch.exp(-10 * F.avg_pool2d(structure, 3, 1, 1, count_include_pad=False)))
               .mean() for light, structure in zip(_edges(illumination), _edges(grey), strict=True))


def _edges(x):
    """Magnitudes of the differences across and down, black beyond the right and lower edges."""
    x = F.pad(x, (0, 1, 0, 1))
    return ((x[..., 1:, 1:] - x[..., 1:, :-1]).abs(), (x[..., 1:, 1:] - x[..., :-1, 1:]).abs())
