"""LPIPS against its definition in torch, on random weights in the layout of the users' files."""

import numpy as np
import pytest
from PIL import Image

from lljax.errors import InputError
from lljax.evaluation.lpips import Lpips
from lljax.evaluation.metrics import Files, choose, gt_mean

torch = pytest.importorskip("torch")


def convolutions(net):
    """torchvision's features: (index, in, out, side, stride, padding), and indices of poolings."""
    if net == "alex":
        return [(0, 3, 64, 11, 4, 2), (3, 64, 192, 5, 1, 2), (6, 192, 384, 3, 1, 1),
                (8, 384, 256, 3, 1, 1), (10, 256, 256, 3, 1, 1)], {2: 3, 5: 3}
    widths, made, index, channels, pools = [64, 64, 0, 128, 128, 0] + [256] * 3 + [0] + [512] * 3 \
        + [0] + [512] * 3, [], 0, 3, {}
    for width in widths:
        if width:
            made.append((index, channels, width, 3, 1, 1))
            index, channels = index + 2, width
        else:
            pools[index] = 2
            index += 1
    return made, pools


TAPS = {"alex": (0, 3, 6, 8, 10), "vgg": (2, 7, 14, 21, 28)}  # convolutions before what is compared


@pytest.fixture(scope="module", params=["alex", "vgg"])
def files(request, tmp_path_factory):
    """(net, backbone file, heads file, their tensors) of random weights."""
    net, generator = request.param, torch.Generator().manual_seed(0)
    folder, backbone, heads = tmp_path_factory.mktemp(net), {}, {}
    made, _ = convolutions(net)
    for index, channels, width, side, _, _ in made:
        shape = (width, channels, side, side)
        scale = (2 / (channels * side * side)) ** 0.5
        backbone[f"features.{index}.weight"] = torch.randn(shape, generator=generator) * scale
        backbone[f"features.{index}.bias"] = torch.randn(width, generator=generator) * 0.1
    widths = [width for index, _, width, *_ in made if index in TAPS[net]]
    for k, width in enumerate(widths):
        heads[f"lin{k}.model.1.weight"] = torch.rand((1, width, 1, 1), generator=generator)
    paths = [str(folder / name) for name in ("backbone.pth", "heads.pth")]
    torch.save({**backbone, "classifier.1.weight": torch.zeros(2, 2)}, paths[0])
    torch.save(heads, paths[1])
    return net, paths, {**backbone, **heads}


def by_torch(net, tensors, a, b):
    functional = torch.nn.functional
    made, pools = convolutions(net)
    x = torch.tensor(np.stack([a, b]).astype(np.float32)).permute(0, 3, 1, 2) / 127.5 - 1
    shift = torch.tensor([-0.030, -0.088, -0.188])[None, :, None, None]
    x = (x - shift) / torch.tensor([0.458, 0.448, 0.450])[None, :, None, None]
    total, k = 0.0, 0
    for index, _, _, _, stride, padding in made:
        if index - 1 in pools:
            x = functional.max_pool2d(x, pools[index - 1], 2)
        x = functional.relu(functional.conv2d(
            x, tensors[f"features.{index}.weight"], tensors[f"features.{index}.bias"], stride,
            padding))
        if index in TAPS[net]:
            unit = x / (torch.sqrt(torch.sum(x**2, 1, keepdim=True)) + 1e-10)
            squares = (unit[:1] - unit[1:]) ** 2
            total += functional.conv2d(squares, tensors[f"lin{k}.model.1.weight"]).mean().item()
            k += 1
    return total


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def test_it_is_the_definition(files):
    net, paths, tensors = files
    reference = picture(45, 61)
    enhanced = (reference * 0.6 + picture(45, 61, 1) * 0.2).astype(np.uint8)
    expected = by_torch(net, tensors, enhanced, reference)
    key = f"lpips_{net}"
    plain, corrected = choose([key, f"{key}_gtm"], files=Files(**{key: paths}))[0]
    found = plain.function(enhanced, reference, enhanced)
    assert found == pytest.approx(expected, rel=0, abs=plain.tolerance) and found > 0.01
    assert plain.function(reference, reference, enhanced) == pytest.approx(0, abs=1e-9)
    expected = by_torch(net, tensors, gt_mean(enhanced, reference), reference)
    assert corrected.function(enhanced, reference, enhanced) == pytest.approx(
        expected, rel=0, abs=corrected.tolerance)
    assert corrected.gt_mean and not plain.gt_mean and plain.protocol == f"lpips[{net},v0.1,rgb,u8]"
    side = {"alex": 31, "vgg": 16}[net]
    smallest, other = picture(side, side), picture(side, side, 1)
    assert plain.function(smallest, other, other) == pytest.approx(
        by_torch(net, tensors, smallest, other), rel=0, abs=plain.tolerance)
    for small in (picture(side - 1, 61), picture(61, side - 1)):
        with pytest.raises(InputError, match=f"LPIPS-{net} needs at least {side} px a side"):
            plain.function(small, small, small)
    assert [card.key for card in choose(files=Files(**{key: paths}))[0]][-1] == key


def test_files_of_something_else_are_refused(files):
    net, (backbone, heads), _ = files
    other = {"alex": "vgg", "vgg": "alex"}[net]
    for args, message in ((("squeeze", backbone, heads), "unknown network of LPIPS"),
                          ((net, heads, heads), "is not .*features.0.weight is absent"),
                          ((net, backbone, backbone), f"heads for {net}: lin0.model.1.weight is"),
                          ((net, "no/such.pth", heads), "no file 'no/such.pth'"),
                          ((other, backbone, heads), r"features\.\d+.weight")):
        with pytest.raises(InputError, match=message) as caught:
            Lpips(*args)
        assert "\n" not in str(caught.value)


def test_the_authors_heads_are_read(files, shared):
    net, (backbone, _), _ = files
    heads = shared / "data" / "weights" / "lpips" / "v0.1" / f"{net}.pth"
    if not heads.exists():
        pytest.skip("LPIPS's heads are not here")
    measure = Lpips(net, backbone, str(heads))
    assert all((head >= 0).all() for head in measure._heads)


def test_the_authors_example(shared):
    # what their program prints for the pictures of its repository, in three digits
    weights, pictures = shared / "data" / "weights" / "lpips", shared / "data" / "lpips_example"
    backbone, heads = weights / "alexnet.pth", weights / "v0.1" / "alex.pth"
    if not (backbone.exists() and heads.exists() and pictures.is_dir()):
        pytest.skip("AlexNet, LPIPS's heads or the authors' example pictures are not here")
    reference, *others = (np.asarray(Image.open(pictures / f"ex_{name}.png").convert("RGB"))
                          for name in ("ref", "p0", "p1"))
    card = choose(["lpips_alex"], files=Files(lpips_alex=(str(backbone), str(heads))))[0][0]
    tensors = {**torch.load(backbone, map_location="cpu"), **torch.load(heads, map_location="cpu")}
    for enhanced, printed in zip(others, (0.722, 0.138), strict=True):
        found = card.function(enhanced, reference, enhanced)
        assert round(found, 3) == printed
        assert found == pytest.approx(by_torch("alex", tensors, enhanced, reference), rel=0,
                                      abs=card.tolerance)
