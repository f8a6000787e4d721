"""Zero-DCE++: separable convolutions, the smaller copy, tiles, knobs, conversion."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from safetensors.numpy import save_file

from lljax import config as configs
from lljax import convert, layers, method, weights
from lljax.errors import InputError
from lljax.inference.enhancer import Enhancer
from lljax.methods import zerodcepp

KEY = jax.random.key(0)


@functools.cache
def build(**model):
    """The default config with changes of its `model`, and its method."""
    config = configs.default("zerodcepp")
    config.model.update(model)
    return method.load(config)


def noise(*shape, seed=0):
    return jnp.asarray(np.random.RandomState(seed).uniform(size=shape), jnp.float32)


@functools.cache
def initial(model):
    return jax.jit(lambda: model.init(KEY, {"low": jnp.zeros((1, 16, 16, 3))}))()


def test_size_halo_and_multiple():
    model = build()
    assert sum(leaf.size for leaf in jax.tree.leaves(initial(model))) == 10_561
    assert (model.multiple, model.halo) == (12, 96)  # 7 small pixels and the enlarging's one
    assert (build(scale=1).multiple, build(scale=1).halo) == (1, 7)
    assert (build(scale=4, depth=3).multiple, build(scale=4, depth=3).halo) == (4, 16)


@pytest.mark.parametrize("knob", ["scale", "train_scale"])
def test_impossible_scales_are_refused(knob):
    with pytest.raises(InputError, match=f"config.model.{knob} is 0; it must be 1 or more"):
        build(**{knob: 0})


def test_separable_convolution():
    a, b = noise(1, 9, 8, 2), noise(1, 9, 8, 3, seed=1)
    conv = zerodcepp.SeparableConv(4)

    @jax.jit
    def run(a, b):
        params = conv.init(KEY, a, b)["params"]

        def plain(x, layer, groups):
            return params[layer]["bias"] + lax.conv_general_dilated(
                x, params[layer]["kernel"], (1, 1), "SAME", feature_group_count=groups,
                dimension_numbers=("NHWC", "HWIO", "NHWC"))

        expected = plain(plain(jnp.concatenate([a, b], -1), "depth", 5), "point", 1)
        return conv.apply({"params": params}, a, b), expected

    np.testing.assert_allclose(*run(a, b), atol=1e-6)


def test_what_the_network_sees_and_what_is_applied():
    """For 12: the mean of the middle four pixels of each cell; and the curve at full size."""
    model, low = build(), noise(1, 48, 60, 3)
    nets = initial(model)
    cells = np.asarray(low).reshape(1, 4, 12, 5, 12, 3)[:, :, 5:7, :, 5:7].mean((2, 4))

    @jax.jit
    def run(low, cells):
        curves = model.curve.apply(nets["curve"], cells)
        enhanced = layers.light_curve(low, layers.resize_bilinear(curves, 48, 60), 8)
        return model.explain(nets, low, KEY), {"curves": curves, "enhanced": enhanced}

    maps, expected = run(low, cells)
    assert maps["curves"].shape == (1, 4, 5, 3)
    for name in maps:
        np.testing.assert_allclose(maps[name], expected[name], atol=1e-6)


@functools.cache
def placed(model):
    return jax.jit(lambda nets, low, window: model.apply(
        nets, low, model.estimate(nets, low, KEY, window), window))


@pytest.mark.parametrize("top, left, height, width", [
    (12, 24, 228, 228), (0, 36, 228, 228), (72, 72, 228, 228)])
def test_a_tile_is_enhanced_as_the_whole_picture_is(top, left, height, width):
    model, low = build(), noise(1, 300, 300, 3)
    nets = {"curve": jax.tree.map(lambda x: 2 * np.asarray(x), initial(model)["curve"])}
    run = placed(model)
    whole = run(nets, low, layers.Window(0, 0, 300, 300))
    window = layers.Window(*map(jnp.int32, (top, left, 300, 300)))
    rows, columns = slice(top, top + height), slice(left, left + width)
    tile = run(nets, low[:, rows, columns], window)
    # the halo is lost where the picture goes on
    inside = tuple(slice(start and model.halo, size if start + size == 300 else size - model.halo)
                   for start, size in ((top, height), (left, width)))
    wanted = whole[:, rows, columns][:, *inside]
    assert min(wanted.shape[1:3]) >= 24
    np.testing.assert_allclose(tile[:, *inside], wanted, atol=1e-6)
    alone = run(nets, low[:, rows, columns], layers.Window(0, 0, height, width))
    assert np.abs(alone[:, *inside] - wanted).max() > 1e-4  # its place matters


@pytest.mark.parametrize("size", [(1, 1), (50, 61)])
def test_any_picture_size(size):
    """The enhancer mirrors the sides up to a multiple and crops them back."""
    model = build()
    picture = np.random.default_rng(0).integers(0, 99, (*size, 3), np.uint8)
    maps = Enhancer(model, initial(model)).explain(picture)
    assert maps["enhanced"].shape == (*size, 3)
    assert maps["curves"].shape == (-(-size[0] // 12), -(-size[1] // 12), 3)


def test_maps_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 36, 24, 3\) must be the picture's \(1, 24, 24, 3"):
        jax.eval_shape(build().apply, {}, noise(1, 24, 24, 3), {"curves": jnp.zeros((1, 3, 2, 3))})


def test_training_has_a_scale_of_its_own():
    low = noise(2, 32, 32, 3)
    nets = initial(build())

    @jax.jit
    def run(nets, low):
        small = build(scale=4).estimate(nets, low, KEY)["curves"]
        return (build().training_curves(nets, low), build().curve.apply(nets["curve"], low),
                build(train_scale=4).training_curves(nets, low), layers.enlarge(small, 4))

    full, expected, quarter, expected_quarter = run(nets, low)
    np.testing.assert_allclose(full, expected, atol=1e-6)
    np.testing.assert_allclose(quarter, expected_quarter, atol=1e-6)
    assert np.abs(full - quarter).max() > 0.01
    with pytest.raises(InputError, match="train_scale is 12.* 32 x 32 px: set config.data.resize"):
        build(train_scale=12).terms(nets, low)


def test_the_picture_of_the_curves():
    curves = np.zeros((4, 5, 3), np.float32)
    curves[0], curves[1, :, 1] = -1, 0.75
    expected = np.full((4, 5, 3), 0.5)
    expected[0], expected[1, :, 1] = 1, 0.125
    np.testing.assert_allclose(build().draw({"curves": curves})["curves"], expected, atol=1e-7)


def test_presets():
    default = configs.default("zerodcepp")
    assert configs.differences(default, configs.default("zerodcepp", "official")) == []
    assert default.loss.smoothness.weight == 8 * configs.default("zerodce").loss.smoothness.weight
    assert configs.default("zerodcepp", "shipped,smoke").data.resize == 64


def test_conversion(tmp_path):
    """Names and layouts of the official file; the recorded outputs need the official weights."""
    random = np.random.RandomState(0)
    inputs, outputs = (3, 32, 32, 32, 64, 64, 64), (*[32] * 6, 3)
    tensors = {}
    for i, (cin, cout) in enumerate(zip(inputs, outputs, strict=True), 1):
        for part, shape in (("depth", (cin, 1, 3, 3)), ("point", (cout, cin, 1, 1))):
            for leaf, size in (("weight", shape), ("bias", shape[:1])):
                tensors[f"e_conv{i}.{part}_conv.{leaf}"] = random.normal(size=size).astype("f4")
    save_file(tensors, tmp_path / "in.safetensors")
    convert.convert("zerodcepp", [str(tmp_path / "in.safetensors")],
                    str(tmp_path / "out.safetensors"))
    config, nets, _ = weights.load(tmp_path / "out.safetensors")
    assert config.method == "zerodcepp"
    layer = nets["curve"]["params"]["conv5"]
    np.testing.assert_array_equal(layer["depth"]["kernel"][:, :, 0],
                                  tensors["e_conv5.depth_conv.weight"][:, 0].transpose(1, 2, 0))
    np.testing.assert_array_equal(layer["point"]["kernel"][0, 0],
                                  tensors["e_conv5.point_conv.weight"][..., 0, 0].T)
