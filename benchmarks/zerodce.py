"""Zero-DCE: its tasks, and the network and losses in PyTorch, written for the benchmarks."""

import common
import peer
import torch
import torch.nn.functional as F

PRESETS = "official"
COMMAND = True
PIPELINE = common.Pipeline("folder", "train", 8, 512, 512, ".jpg")  # as the official training set
SIZES = ((640, 480), (1200, 900))  # width, height
BATCH, SIDE = 8, 256


def lljax_tasks(config, nets):
    tasks = {}
    for width, height in SIZES:
        tasks |= common.lljax_enhance(config, nets, width, height)
    tasks[f"train step {BATCH}x{SIDE}"] = common.lljax_train(
        config, nets, "train", low=common.picture(SIDE, SIDE, BATCH))
    return tasks


def torch_tasks(nets, device, compiled):
    def built():
        return peer.place(peer.load(DCENet(), nets["curve"]["params"]), device)

    def called(function):
        return torch.compile(function) if compiled else function

    net, trained = built(), built()
    network = called(lambda low: net(low)[0])
    tasks = {}
    for width, height in SIZES:
        tasks |= peer.torch_enhance(network, device, width, height)
    optimizer = torch.optim.Adam(trained.parameters(), 1e-4, weight_decay=1e-4)
    tasks[f"train step {BATCH}x{SIDE}"] = peer.torch_train(
        called(lambda low: loss(low, *trained(low))), trained.parameters(), optimizer, device,
        clip=0.1, low=common.picture(SIDE, SIDE, BATCH))
    return tasks


class DCENet(torch.nn.Module):
    """Seven 3x3 convolutions with symmetric concatenation; 79,416 parameters."""

    def __init__(self):
        super().__init__()
        widths = [(3, 32), (32, 32), (32, 32), (32, 32), (64, 32), (64, 32), (64, 24)]
        for i, (before, after) in enumerate(widths, 1):
            setattr(self, f"conv{i}", torch.nn.Conv2d(before, after, 3, padding=1))

    def forward(self, x):
        f1 = F.relu(self.conv1(x))
        f2 = F.relu(self.conv2(f1))
        f3 = F.relu(self.conv3(f2))
        f4 = F.relu(self.conv4(f3))
        f5 = F.relu(self.conv5(torch.cat([f3, f4], 1)))
        f6 = F.relu(self.conv6(torch.cat([f2, f5], 1)))
        curves = torch.tanh(self.conv7(torch.cat([f1, f6], 1)))
        for r in curves.split(3, 1):
            x = x + r * (x * x - x)
        return x, curves


def loss(x, y, curves):
    """The official weighted total: 200 smoothness + spatial + 5 colour + 10 exposure."""
    (b, _, h, w) = curves.shape
    tv = 2 * ((curves[:, :, 1:] - curves[:, :, :-1]).square().sum() / ((h - 1) * w)
              + (curves[:, :, :, 1:] - curves[:, :, :, :-1]).square().sum() / (h * (w - 1))) / b
    means = [F.avg_pool2d(t.mean(1, keepdim=True), 4) for t in (x, y)]
    padded = [F.pad(m, (1, 1, 1, 1)) for m in means]
    shifts = [(slice(1, -1), slice(None, -2)), (slice(1, -1), slice(2, None)),
              (slice(None, -2), slice(1, -1)), (slice(2, None), slice(1, -1))]
    spatial = sum(((means[0] - padded[0][:, :, i, j]) - (means[1] - padded[1][:, :, i, j])).square()
                  for i, j in shifts).mean()
    exposure = (F.avg_pool2d(y.mean(1, keepdim=True), 16) - 0.6).square().mean()
    r, g, blue = y.mean((2, 3)).unbind(1)
    color = ((r - g) ** 4 + (r - blue) ** 4 + (blue - g) ** 4).sqrt().mean()
    return 200 * tv + spatial + 5 * color + 10 * exposure
