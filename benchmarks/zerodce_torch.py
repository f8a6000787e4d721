"""Zero-DCE in PyTorch, written for the benchmarks: the peer that lljax is timed against."""

import torch
import torch.nn.functional as F


class DCENet(torch.nn.Module):
    """Seven 3x3 convolutions with symmetric concatenation; 79,416 parameters."""

    def __init__(self):
        super().__init__()
        widths = [(3, 32), (32, 32), (32, 32), (32, 32), (64, 32), (64, 32), (64, 24)]
        self.convs = torch.nn.ModuleList(torch.nn.Conv2d(i, o, 3, padding=1) for i, o in widths)
        for conv in self.convs:
            torch.nn.init.normal_(conv.weight, 0.0, 0.02)

    def forward(self, x):
        c = self.convs
        f1 = F.relu(c[0](x))
        f2 = F.relu(c[1](f1))
        f3 = F.relu(c[2](f2))
        f4 = F.relu(c[3](f3))
        f5 = F.relu(c[4](torch.cat([f3, f4], 1)))
        f6 = F.relu(c[5](torch.cat([f2, f5], 1)))
        curves = torch.tanh(c[6](torch.cat([f1, f6], 1)))
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


def train_step(net, optimizer, x):
    """One official training step."""
    optimizer.zero_grad()
    y, curves = net(x)
    total = loss(x, y, curves)
    total.backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), 0.1)
    optimizer.step()
    return total.item()
