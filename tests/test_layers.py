"""Shared blocks: convolutions and resizing against torch, gradients against XLA's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lljax import layers


def plain(x, kernel, stride=1, pads="SAME"):
    return lax.conv_general_dilated(x, kernel, (stride, stride), pads,
                                    dimension_numbers=("NHWC", "HWIO", "NHWC"))


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def close(ours, theirs):
    theirs = np.asarray(theirs)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-5 * np.abs(theirs).max())


def pulled(function, *inputs):
    """The function's output and the gradients that random numbers as the output's give."""
    def run(*inputs):
        out, pull = jax.vjp(function, *inputs)
        return out, *pull(normal(*out.shape, seed=2))
    return jax.jit(run)(*inputs)


def nchw(x):
    torch = pytest.importorskip("torch")
    return torch.tensor(np.asarray(x).transpose(0, 3, 1, 2))


def nhwc(x):
    return x.detach().numpy().transpose(0, 2, 3, 1)


@pytest.mark.parametrize("height, width, h, w, c, o", [
    (8, 8, 3, 3, 2, 4), (37, 23, 3, 3, 3, 5), (1, 1, 3, 3, 2, 2), (2, 300, 3, 3, 1, 2),
    (300, 2, 3, 3, 2, 1), (19, 21, 9, 9, 4, 3), (11, 13, 1, 1, 6, 2), (12, 9, 5, 3, 2, 2),
    (45, 61, 9, 9, 4, 64), (45, 61, 3, 3, 32, 1)])
def test_convolution_and_its_gradients_equal_xlas(height, width, h, w, c, o):
    x, kernel = normal(2, height, width, c), normal(h, w, c, o, seed=1)
    ours, theirs = pulled(layers.convolve, x, kernel), pulled(plain, x, kernel)
    np.testing.assert_array_equal(ours[0], theirs[0])
    for mine, wanted in zip(ours, theirs, strict=True):
        close(mine, wanted)


@pytest.mark.parametrize("stride, pads", [
    (1, ((0, 0), (0, 0))), (1, ((4, 0), (1, 5))), (2, ((0, 1), (0, 1))), (2, ((1, 1), (1, 1))),
    (2, ((2, 2), (2, 2))), (2, ((0, 0), (3, 0))), (3, ((1, 1), (1, 1)))])
@pytest.mark.parametrize("height, width, h, w, c, o", [
    (45, 61, 3, 3, 5, 6), (13, 10, 4, 4, 3, 5), (40, 30, 9, 9, 2, 8), (9, 12, 1, 1, 4, 3),
    (11, 8, 3, 3, 1, 16), (11, 8, 3, 3, 16, 1)])
def test_convolution_of_any_stride_and_pads(height, width, h, w, c, o, pads, stride):
    x, kernel = normal(2, height, width, c), normal(h, w, c, o, seed=1)
    ours = pulled(lambda x, k: layers.convolve(x, k, stride=stride, pads=pads), x, kernel)
    theirs = pulled(lambda x, k: plain(x, k, stride, pads), x, kernel)
    for mine, wanted in zip(ours, theirs, strict=True):
        close(mine, wanted)


@pytest.mark.parametrize("height, width", [(1, 9), (1, 1), (2, 3)])
def test_convolution_of_stride_two_over_hardly_any_rows(height, width):
    x, kernel, pads = normal(2, height, width, 5), normal(3, 3, 5, 6, seed=1), ((1, 1), (1, 1))
    ours = pulled(lambda x, k: layers.convolve(x, k, stride=2, pads=pads), x, kernel)
    theirs = pulled(lambda x, k: plain(x, k, 2, pads), x, kernel)
    for mine, wanted in zip(ours, theirs, strict=True):
        close(mine, wanted)


@pytest.mark.parametrize("padding", ["zero", "replicate", "valid"])
@pytest.mark.parametrize("size, stride, height, width", [
    (3, 1, 12, 16), (3, 2, 12, 16), (3, 2, 45, 61), (9, 1, 45, 61), (4, 2, 13, 16), (1, 1, 5, 4)])
def test_conv_equals_torch(size, stride, height, width, padding):
    torch = pytest.importorskip("torch")
    conv = layers.Conv(6, size, stride=stride, padding=padding)
    x = normal(2, height, width, 5)
    params = conv.init(jax.random.key(0), x)["params"]
    assert params["kernel"].shape == (size, size, 5, 6) and params["bias"].shape == (6,)
    theirs = torch.nn.Conv2d(5, 6, size, stride, 0 if padding == "valid" else size // 2,
                             padding_mode="replicate" if padding == "replicate" else "zeros")
    with torch.no_grad():
        theirs.bias.copy_(torch.tensor(np.array(params["bias"])))
        theirs.weight.copy_(torch.tensor(np.array(params["kernel"])).permute(3, 2, 0, 1))
    np.testing.assert_array_equal(layers.kernel_from_torch(theirs.weight.detach().numpy()),
                                  params["kernel"])
    image = nchw(x).requires_grad_()
    ours, to_params, to_x = pulled(lambda p, x: conv.apply({"params": p}, x), params, x)
    wanted = theirs(image)
    close(ours, nhwc(wanted))
    wanted.backward(nchw(normal(*ours.shape, seed=2)))
    close(to_params["kernel"], layers.kernel_from_torch(theirs.weight.grad.numpy()))
    close(to_params["bias"], theirs.bias.grad.numpy())
    close(to_x, nhwc(image.grad))


def tensorflow_same(x, kernel, stride):
    """TensorFlow's SAME by its definition, one output value at a time."""
    size = kernel.shape[0]
    outs = [-(-side // stride) for side in x.shape[1:3]]
    pads = [max(0, (out - 1) * stride + size - side)
            for out, side in zip(outs, x.shape[1:3], strict=True)]
    x = np.pad(x, ((0, 0), *((total // 2, total - total // 2) for total in pads), (0, 0)))
    out = np.zeros((len(x), *outs, kernel.shape[-1]), np.float32)
    for i in range(outs[0]):
        for j in range(outs[1]):
            window = x[:, i * stride:i * stride + size, j * stride:j * stride + size]
            out[:, i, j] = np.einsum("bhwc,hwco->bo", window, kernel)
    return out


@pytest.mark.parametrize("size, stride, height, width, pads", [
    (3, 2, 12, 16, ((0, 1), (0, 1))), (3, 2, 45, 61, ((1, 1), (1, 1))),
    (3, 2, 11, 14, ((1, 1), (0, 1))), (3, 1, 7, 8, ((1, 1), (1, 1))),
    (9, 1, 11, 12, ((4, 4), (4, 4))), (2, 1, 5, 6, ((0, 1), (0, 1)))])
def test_conv_with_tensorflows_padding(size, stride, height, width, pads):
    conv = layers.Conv(4, size, stride=stride, origin="tensorflow",
                       bias_init=lambda key, shape: jnp.full(shape, 0.5))
    x = normal(1, height, width, 3)
    params = conv.init(jax.random.key(0), x)["params"]
    expected = tensorflow_same(np.asarray(x), np.asarray(params["kernel"]), stride) + 0.5
    close(conv.apply({"params": params}, x), expected)
    # replicated pixels come in the same widths
    edge = layers.Conv(4, size, stride=stride, origin="tensorflow", padding="replicate")
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)), mode="edge")
    close(edge.apply({"params": params}, x),
          plain(padded, params["kernel"], stride, "VALID") + 0.5)


@pytest.mark.parametrize("wrong, words", [
    ({"padding": "zeros"}, ["padding", "zeros", "replicate"]),
    ({"origin": "tensorflw"}, ["origin", "tensorflw", "torch"])])
def test_conv_refuses_unknown_words(wrong, words):
    with pytest.raises(ValueError) as error:
        layers.Conv(4, **wrong).init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)))
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("padding", layers.PADDINGS)
def test_conv_of_several_inputs_is_the_conv_of_their_concatenation(padding):
    conv = layers.Conv(4, stride=2, padding=padding)
    a, b = normal(2, 9, 8, 3), normal(2, 9, 8, 5, seed=1)
    params = conv.init(jax.random.key(0), a, b)
    close(conv.apply(params, a, b), conv.apply(params, jnp.concatenate([a, b], -1)))


@pytest.mark.parametrize("height, width, c", [(1, 1, 2), (2, 300, 3), (37, 23, 5)])
def test_depthwise_and_its_gradients_equal_xlas_grouped_convolution(height, width, c):
    x, kernel = normal(2, height, width, c), normal(3, 3, 1, c, seed=1)

    def grouped(x, kernel):
        return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", feature_group_count=c,
                                        dimension_numbers=("NHWC", "HWIO", "NHWC"))

    for ours, theirs in zip(pulled(layers.depthwise, x, kernel), pulled(grouped, x, kernel),
                            strict=True):
        close(ours, theirs)


@pytest.mark.parametrize("height, width, c, o", [
    (12, 16, 5, 6), (23, 31, 3, 2), (1, 1, 2, 3), (1, 7, 16, 1)])
def test_transposed_conv_equals_torch(height, width, c, o):
    torch = pytest.importorskip("torch")
    theirs = torch.nn.ConvTranspose2d(c, o, 3, 2, 1, output_padding=1)
    x = normal(2, height, width, c)
    params = {"kernel": layers.kernel_from_torch_transposed(theirs.weight.detach().numpy()),
              "bias": theirs.bias.detach().numpy()}
    conv = layers.ConvTranspose(o)
    start = conv.init(jax.random.key(0), x)["params"]
    assert jax.tree.map(jnp.shape, start) == jax.tree.map(np.shape, params)
    image = nchw(x).requires_grad_()
    ours, to_params, to_x = pulled(lambda p, x: conv.apply({"params": p}, x), params, x)
    assert ours.shape == (2, 2 * height, 2 * width, o)
    wanted = theirs(image)
    close(ours, nhwc(wanted))
    wanted.backward(nchw(normal(*ours.shape, seed=2)))
    close(to_params["kernel"], layers.kernel_from_torch_transposed(theirs.weight.grad.numpy()))
    close(to_params["bias"], theirs.bias.grad.numpy())
    close(to_x, nhwc(image.grad))


def test_initial_values_have_torchs_range():
    torch = pytest.importorskip("torch")
    x = jnp.zeros((1, 4, 4, 40))
    for ours, theirs in ((layers.Conv(20), torch.nn.Conv2d(40, 20, 3)),
                         (layers.ConvTranspose(20), torch.nn.ConvTranspose2d(40, 20, 3, 2))):
        params = ours.init(jax.random.key(0), x)["params"]
        for leaf, name in (("kernel", "weight"), ("bias", "bias")):
            bound = getattr(theirs, name).abs().max().item()
            np.testing.assert_allclose(np.abs(params[leaf]).max(), bound, rtol=0.2)


@pytest.mark.parametrize("old, new", [
    ((12, 16), (24, 32)), ((23, 31), (45, 61)), ((12, 16), (23, 31)), ((6, 8), (12, 15)),
    ((2, 3), (82, 123)), ((45, 61), (23, 31)), ((8, 6), (8, 6)), ((3, 5), (2, 15)),
    ((1, 1), (3, 4))])
def test_resize_nearest_equals_torch(old, new):
    torch = pytest.importorskip("torch")
    x = normal(2, *old, 3)
    image = nchw(x).requires_grad_()
    wanted = torch.nn.functional.interpolate(image, size=new)
    ours, to_x = pulled(lambda x: layers.resize_nearest(x, *new), x)
    np.testing.assert_array_equal(ours, nhwc(wanted))
    wanted.backward(nchw(normal(*ours.shape, seed=2)))
    close(to_x, nhwc(image.grad))


def test_resize_nearest_picks_torchs_pixels_for_any_sizes():
    torch = pytest.importorskip("torch")
    for old in range(1, 40):
        line = torch.arange(old, dtype=torch.float32)[None, None, :, None]
        for new in range(1, 130):
            wanted = torch.nn.functional.interpolate(line, size=(new, 1))[0, 0, :, 0].numpy()
            np.testing.assert_array_equal(layers._nearest(old, new), wanted)


@pytest.mark.parametrize("factor", [1, 2, 12])
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (7, 23)])
def test_enlarge_equals_resize_bilinear(factor, size):
    x = normal(2, *size, 3)
    np.testing.assert_allclose(
        layers.enlarge(x, factor), layers.resize_bilinear(x, factor * size[0], factor * size[1]),
        atol=1e-5)


@pytest.mark.parametrize("factor", [1, 2, 3, 12])
def test_shrink_equals_resize_bilinear(factor):
    x = normal(2, 3 * factor, 2 * factor, 3)
    np.testing.assert_allclose(layers.shrink(x, factor),
                               layers.resize_bilinear(x, 3, 2, align_corners=False), atol=1e-6)


def test_shrink_wants_whole_cells():
    with pytest.raises(ValueError, match=r"\(1, 24, 25, 3\) must be multiples of 12"):
        layers.shrink(normal(1, 24, 25, 3), 12)


def test_a_tile_is_enlarged_as_the_whole_picture_is():
    x = normal(1, 40, 700, 2)
    whole, tile = layers.enlarge(x, 12), layers.Window(12 * 20, 12 * 600, 12 * 40, 12 * 700)
    found = jax.jit(layers.enlarge, static_argnums=1)(x[:, 20:30, 600:], 12, tile.smaller(12))
    # the tile's first rows and columns and its last rows would need their neighbours
    np.testing.assert_allclose(found[:, 12:-12, 12:], whole[:, 252:348, 7212:], atol=1e-5)



@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("old, new", [
    ((12, 16), (24, 32)), ((1, 5), (2, 10)), ((6, 1), (12, 2)), ((2, 3), (24, 36)),
    ((45, 61), (23, 31)), ((8, 6), (8, 6)), ((7, 9), (1, 20)), ((5, 7), (15, 14))])
def test_resize_bilinear_equals_torch(old, new, align_corners):
    torch = pytest.importorskip("torch")
    x = normal(2, *old, 3)
    image = nchw(x).requires_grad_()
    wanted = torch.nn.functional.interpolate(image, size=new, mode="bilinear",
                                             align_corners=align_corners)
    ours, to_x = pulled(lambda x: layers.resize_bilinear(x, *new, align_corners), x)
    close(ours, nhwc(wanted))
    wanted.backward(nchw(normal(*ours.shape, seed=2)))
    close(to_x, nhwc(image.grad))


def test_max_pool_equals_torch():
    torch = pytest.importorskip("torch")
    x = normal(2, 9, 12, 3)
    np.testing.assert_array_equal(layers.max_pool(x),
                                  nhwc(torch.nn.functional.max_pool2d(nchw(x), 2)))


def test_instance_norm_equals_torch():
    torch = pytest.importorskip("torch")
    x = normal(2, 4, 5, 3).at[0, :, :, 1].set(7.0)  # a constant channel
    ours, to_x = pulled(layers.instance_norm, x)
    image = nchw(x).requires_grad_()
    wanted = torch.nn.InstanceNorm2d(3)(image)
    close(ours, nhwc(wanted))
    wanted.backward(nchw(normal(*x.shape, seed=2)))
    # of a constant channel it is the difference of large numbers
    np.testing.assert_allclose(to_x, nhwc(image.grad), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_batch_norm_equals_torch_on_any_number_of_devices(devices):
    """Output, gradients and running statistics, which torch takes from the unbiased variance."""
    torch = pytest.importorskip("torch")
    x = 3 + 2 * normal(4, 2, 3, 5)
    theirs = torch.nn.BatchNorm2d(5)
    norm = layers.BatchNorm("devices", scale_init=lambda key, shape: 1 + 0.1 * jnp.arange(5.0))
    variables = layers.BatchNorm(scale_init=norm.scale_init).init(jax.random.key(0), x)
    with torch.no_grad():
        theirs.weight.copy_(torch.tensor(np.array(variables["params"]["scale"])))

    def one(variables, x, cotangent):
        def run(params, x):
            return norm.apply({**variables, "params": params}, x, True, mutable=["batch_stats"])
        out, pull, new = jax.vjp(run, variables["params"], x, has_aux=True)
        to_params, to_x = pull(cotangent)
        return out, jax.lax.psum(to_params, "devices"), to_x, new["batch_stats"]

    mapped = jax.vmap(one, in_axes=(None, 0, 0), axis_name="devices")
    image = nchw(x).requires_grad_()
    for step in range(2):  # running statistics of running statistics
        cotangent = normal(*x.shape, seed=2 + step)
        parts = [a.reshape(devices, -1, *a.shape[1:]) for a in (x, cotangent)]
        out, to_params, to_x, stats = mapped(variables, *parts)
        variables["batch_stats"] = jax.tree.map(lambda a: a[0], stats)
        image.grad = theirs.weight.grad = theirs.bias.grad = None
        wanted = theirs(image)
        wanted.backward(nchw(cotangent))
        close(out.reshape(x.shape), nhwc(wanted))
        close(to_x.reshape(x.shape), nhwc(image.grad))
        close(to_params["scale"][-1], theirs.weight.grad.numpy())
        close(to_params["bias"][-1], theirs.bias.grad.numpy())
    close(variables["batch_stats"]["mean"], theirs.running_mean.numpy())
    close(variables["batch_stats"]["var"], theirs.running_var.numpy())
    close(norm.apply(variables, x), nhwc(theirs.eval()(nchw(x))))


def test_what_lies_beyond_a_picture_is_not_seen():
    """A tile of 9 x 11 in a picture that ends after its row 6 and column 4."""
    tile = np.random.default_rng(0).random((1, 9, 11, 2), np.float32)
    window = layers.Window(*map(jnp.int32, (8, 16, 15, 21)))
    inside = layers.inside(tile, window)
    np.testing.assert_array_equal(inside[:, :7, :5], tile[:, :7, :5])
    assert not inside[:, 7:].any() and not inside[:, :, 5:].any()
    resized = layers.resize_bilinear(layers.spread(tile, window), 18, 22, False)
    np.testing.assert_array_equal(
        resized[:, :14, :10], layers.resize_bilinear(tile[:, :7, :5], 14, 10, False))
    assert layers.inside(tile, None) is layers.spread(tile, None) is tile
