"""PyTorch's side of the tasks of common.py.

The networks are modules with lljax's names of layers, so that `load` can copy its weights over.
"""

import torch
from common import noise, picture


def load(module, params):
    """Copies lljax's parameters into a module with the same names of layers.

    A `kernel` [..., C, O] becomes a `weight` [O, C, ...], of a transposed convolution [C, O, ...]
    and turned by 180 degrees; a `scale` one as it is; a `bias` stays. For other layers add what
    they need.
    """
    with torch.no_grad():
        for layer, values in params.items():
            for name, value in values.items():
                if isinstance(value, dict):
                    load(getattr(module, layer), {name: value})
                    continue
                value = torch.tensor(value)
                if name == "kernel" and isinstance(getattr(module, layer),
                                                   torch.nn.ConvTranspose2d):
                    name, value = "weight", value.flip(0, 1).permute(2, 3, 0, 1)
                if name == "kernel":
                    name, value = "weight", value.permute(-1, -2, *range(value.ndim - 2))
                if name == "scale":
                    name = "weight"
                parameter = getattr(getattr(module, layer), name)
                if parameter.shape != value.shape:
                    raise ValueError(f"{layer}.{name}: {parameter.shape} is not {value.shape}")
                parameter.copy_(value)
    return module


def place(module, device):
    """A module where and as PyTorch is fastest."""
    return module.to(device, memory_format=torch.channels_last)


def tensor(pictures, device):
    """uint8 [B, H, W, 3] -> float [B, 3, H, W] in [0, 1], channels_last."""
    x = torch.from_numpy(pictures).to(device).permute(0, 3, 1, 2).float().div(255)
    return x.contiguous(memory_format=torch.channels_last)


def wait(device):
    """Until a GPU is done."""
    if device == "cuda":
        torch.cuda.synchronize()


def torch_enhance(network, device, width, height):
    """The peer of `common.lljax_enhance`.

    Args:
      network: [B, 3, H, W] in [0, 1] -> the enhanced picture, unclipped.
      device: "cpu" or "cuda".
      width: px.
      height: px.
    """
    low = picture(height, width)
    x = tensor(low[None], device)

    def enhance():
        with torch.no_grad():
            y = network(tensor(low[None], device))[0]
            return (y.permute(1, 2, 0).clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()

    def alone():
        with torch.no_grad():
            y = network(x)
            wait(device)
            return y.permute(0, 2, 3, 1)
    return {f"enhance {width}x{height}": enhance, f"network {width}x{height}": alone}


def torch_train(loss, parameters, optimizer, device, clip=0.0, **pictures):
    """The peer of `common.lljax_train`, on the whole batch.

    Args:
      loss: (low, high?) -> the weighted total.
      parameters: those that are trained.
      optimizer: of these.
      device: "cpu" or "cuda".
      clip: bound on the norm of the gradient; 0 for none.
      **pictures: as there.
    """
    pictures = {role: tensor(value, device) for role, value in pictures.items()}
    parameters = list(parameters)

    def train():
        optimizer.zero_grad()
        result = loss(**pictures)
        result.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        return result.item()
    return train


def torch_layer(name, layer, x, device, to_input=True):
    """The peer of `common.lljax_layer`; the layer is a module with `weight` and `bias`."""
    x = torch.from_numpy(x).to(device).permute(0, 3, 1, 2)
    with torch.no_grad():
        shape = layer(x).permute(0, 2, 3, 1).shape
    gradient = torch.from_numpy(noise(shape, 1)).to(device).permute(0, 3, 1, 2)
    wanted = (layer.weight, layer.bias) + ((x.requires_grad_(),) if to_input else ())

    def forward():
        with torch.no_grad():
            y = layer(x)
            wait(device)
            return y.permute(0, 2, 3, 1)

    def both():
        y = layer(x)
        to_weight, to_bias, *to_x = torch.autograd.grad(y, wanted, gradient)
        wait(device)
        return (y.detach().permute(0, 2, 3, 1), to_weight.permute(2, 3, 1, 0), to_bias,
                *(t.permute(0, 2, 3, 1) for t in to_x))
    return {f"{name} forward": forward, f"{name} and back": both}
