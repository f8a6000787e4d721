"""Zero-DCE: network, curve, knobs, the optional VGG16 term, training steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from lljax import config as configs
from lljax import layers, method, parallel
from lljax import tensors as tensors_lib
from lljax.errors import InputError

KEY = jax.random.key(0)


def build(**changes):
    """The default config with changes such as `model__depth=3`, and its method."""
    config = configs.default("zerodce")
    with config.unlocked():
        for name, value in changes.items():
            *folders, leaf = name.split("__")
            node = functools.reduce(lambda node, key: node[key], folders, config)
            node[leaf] = value
    return method.load(config)


def noise(*shape, seed=0):
    return jnp.asarray(np.random.RandomState(seed).uniform(size=shape), jnp.float32)


def batch(size=32, count=None):
    count = count or jax.local_device_count()
    return {"low": noise(count, size, size, 3), "mask": jnp.ones(count),
            "key": jax.random.split(KEY, count)}


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@functools.cache
def initial(model):
    return model.init(KEY, batch())


# ---- network ----


def test_parameter_count_and_halo():
    model = build()
    assert count(initial(model)) == 79_416
    assert (model.halo, model.multiple) == (7, 1)


@pytest.mark.parametrize("depth, width, iterations, expected", [
    (3, 32, 8, (27 * 32 + 32) + (9 * 32 * 32 + 32) + (9 * 64 * 24 + 24)),
    (5, 16, 1, (27 * 16 + 16) + 2 * (9 * 16 * 16 + 16) + (9 * 32 * 16 + 16) + (9 * 32 * 3 + 3)),
])
def test_other_sizes(depth, width, iterations, expected):
    model = build(model__depth=depth, model__width=width, model__iterations=iterations)
    assert count(initial(model)) == expected
    maps = model.explain(initial(model), noise(1, 17, 19, 3), KEY)
    assert maps["curves"].shape == (1, 17, 19, 3 * iterations)
    assert maps["enhanced"].shape == (1, 17, 19, 3)


@pytest.mark.parametrize("knob, value, word", [
    ("depth", 6, "odd"), ("depth", 1, "3 or more"), ("iterations", 0, "1 or more"),
    ("width", 0, "1 or more")])
def test_impossible_sizes_are_refused(knob, value, word):
    with pytest.raises(InputError, match=f"config.model.{knob} is {value}.*{word}"):
        build(**{f"model__{knob}": value})


def test_concatenations_mirror_the_first_half():
    """With depth 7 the last three convolutions take (x3, x4), (x2, x5) and (x1, x6)."""
    model, x = build(), noise(1, 9, 11, 3)
    params = initial(model)["curve"]["params"]

    def conv(i, x):
        return jax.lax.conv_general_dilated(
            x, params[f"conv{i}"]["kernel"], (1, 1), ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC")) + params[f"conv{i}"]["bias"]

    f = {0: x}
    for i in range(1, 5):
        f[i] = jax.nn.relu(conv(i, f[i - 1]))
    f[5] = jax.nn.relu(conv(5, jnp.concatenate([f[3], f[4]], -1)))
    f[6] = jax.nn.relu(conv(6, jnp.concatenate([f[2], f[5]], -1)))
    expected = jnp.tanh(conv(7, jnp.concatenate([f[1], f[6]], -1)))
    curves = model.estimate(initial(model), x, KEY)["curves"]
    np.testing.assert_allclose(curves, expected, atol=1e-6)


def test_initial_values():
    params = initial(build())["curve"]["params"]
    for name, fan_in in (("conv1", 27), ("conv2", 288), ("conv5", 576), ("conv7", 576)):
        kernel, bias = params[name]["kernel"], params[name]["bias"]
        np.testing.assert_allclose(kernel.std(), 0.02, rtol=0.1)
        bound = fan_in ** -0.5
        assert 0.7 * bound < np.abs(bias).max() <= bound


@pytest.mark.parametrize("depth", [3, 7])
def test_halo_is_the_receptive_field(depth):
    model = build(model__depth=depth)
    size = 2 * depth + 5
    nets, x, at = initial(model), noise(1, size, size, 3), size // 2
    gradient = jax.grad(lambda x: model.estimate(nets, x, KEY)["curves"][0, at, at].sum())(x)
    rows = np.flatnonzero(np.abs(gradient).sum((0, 2, 3)))
    columns = np.flatnonzero(np.abs(gradient).sum((0, 1, 3)))
    expected = np.arange(at - model.halo, at + model.halo + 1)
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(columns, expected)


@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (2, 45, 61, 3), (1, 3, 50, 3)])
def test_any_picture_size(shape):
    model = build()
    enhanced = model.enhance(initial(model), noise(*shape), KEY)
    assert enhanced.shape == shape and np.isfinite(enhanced).all()


def test_the_picture_of_the_curves():
    curves = np.zeros((4, 5, 24), np.float32)
    curves[0] = -1  # every map brightens all it can
    curves[1, :, 1::3] = np.float32([1, 1, -1, 1, 1, 1, 1, 1])  # green, 0.75 on average
    expected = np.full((4, 5, 3), 0.5)
    expected[0], expected[1, :, 1] = 1, 0.125
    drawn = build().draw({"curves": curves})
    assert set(drawn) == {"curves"}
    np.testing.assert_allclose(drawn["curves"], expected, atol=1e-7)


# ---- curve ----


def test_curve_identities():
    x = noise(1, 8, 9, 3)
    zeros = jnp.zeros((1, 8, 9, 24))
    np.testing.assert_array_equal(layers.light_curve(x, zeros, 8), x)
    # r = -1: 1 - x is squared each time; r = 1: x is
    np.testing.assert_allclose(layers.light_curve(x, zeros[..., :9] - 1, 3), 1 - (1 - x) ** 8,
                               atol=1e-6)
    np.testing.assert_allclose(layers.light_curve(x, zeros[..., :9] + 1, 3), x ** 8, atol=1e-6)
    ends = jnp.stack([jnp.zeros((1, 8, 9)), jnp.ones((1, 8, 9)), jnp.ones((1, 8, 9))], -1)
    np.testing.assert_array_equal(layers.light_curve(ends, 2 * noise(1, 8, 9, 24) - 1, 8), ends)


def test_curve_keeps_the_range():
    for seed in range(5):
        curves = jnp.sign(noise(1, 16, 16, 24, seed=seed) - 0.5)  # the extremes -1 and 1
        y = layers.light_curve(noise(1, 16, 16, 3, seed=seed + 9), curves, 8)
        assert y.min() >= -1e-6 and y.max() <= 1 + 1e-6


def test_one_map_may_serve_all_iterations():
    x, one = noise(1, 8, 9, 3), 2 * noise(1, 8, 9, 3, seed=1) - 1
    np.testing.assert_array_equal(layers.light_curve(x, one, 8),
                                  layers.light_curve(x, jnp.tile(one, 8), 8))


@pytest.mark.parametrize("shape", [(1, 4, 4, 24), (1, 8, 9, 21)])
def test_maps_of_another_size_are_refused(shape):
    model = build()
    with pytest.raises(ValueError, match=r"\(1, 8, 9, 3\)"):
        model.apply({}, noise(1, 8, 9, 3), {"curves": jnp.zeros(shape)})


# ---- knobs ----


@pytest.fixture(scope="module")
def vgg16_files(tmp_path_factory):
    """Two files with torchvision's names and random weights: a test wants no good features."""
    paths = []
    for seed in range(2):
        random, tensors, channels = np.random.RandomState(seed), {}, 3
        for name, i in layers.VGG16_CONVS.items():
            width = {1: 64, 2: 128, 3: 256}.get(int(name[4]), 512)
            scale = (2 / (9 * channels)) ** 0.5
            weight = random.standard_normal((width, channels, 3, 3)).astype(np.float32) * scale
            tensors[f"features.{i}.weight"] = weight.astype(np.float32)
            tensors[f"features.{i}.bias"] = np.zeros(width, np.float32) + np.float32(0.01)
            channels = width
        paths.append(str(tmp_path_factory.mktemp("vgg16") / "vgg16.safetensors"))
        save_file(tensors, paths[-1])
    return paths


# for every knob of a loss term but `enabled` and `weight`, a value unlike the default
OTHER = {
    "spatial.region": 8, "spatial.form": "paper", "exposure.region": 8, "exposure.level": 0.5,
    "exposure.form": "paper", "color.form": "paper", "smoothness.form": "paper",
    "perceptual.vgg16": None, "perceptual.layer": "relu1_2", "perceptual.normalize": True,
}


def test_every_knob_is_tested_below():
    config = configs.default("zerodce")
    knobs = {f"{term}.{knob}" for term, entry in config.loss.items() for knob in entry}
    assert knobs == OTHER.keys() | {f"{t}.{k}" for t in config.loss for k in ("enabled", "weight")}
    assert set(config.model) == {"iterations", "depth", "width"}  # test_other_sizes


@pytest.mark.parametrize("knob", OTHER)
def test_each_loss_knob_changes_its_term(knob, vgg16_files):
    term, name = knob.split(".")
    changes = {f"loss__{term}__enabled": True}
    if term == "perceptual":
        changes |= {"loss__perceptual__vgg16": vgg16_files[0], "loss__perceptual__layer": "relu2_1"}
    value = vgg16_files[1] if name == "vgg16" else OTHER[knob]
    results = []
    for change in ({}, {f"loss__{term}__{name}": value}):
        model = build(**changes | change)
        results.append(model.terms(model.init(KEY, batch()), batch()["low"])[term])
    assert not np.allclose(*results, rtol=1e-3)


@pytest.mark.parametrize("term", list(configs.default("zerodce").loss))
def test_enabled_and_weight(term, vgg16_files):
    files = {"loss__perceptual__vgg16": vgg16_files[0], "loss__perceptual__layer": "relu1_1"}
    on = build(**{f"loss__{term}__enabled": True, f"loss__{term}__weight": 7.0}, **files)
    off = build(**{f"loss__{term}__enabled": False}, **files)
    names = {n for n, t in configs.default("zerodce").loss.items() if t.enabled}
    assert on.terms(on.init(KEY, batch()), batch()["low"]).keys() == names | {term}
    assert off.terms(off.init(KEY, batch()), batch()["low"]).keys() == names - {term}
    assert on.weights()[term] == 7.0 and term not in off.weights()


def test_presets():
    default = configs.default("zerodce")
    assert configs.differences(default, configs.default("zerodce", "official")) == []
    paper = configs.default("zerodce", "paper")
    assert (paper.data.resize, paper.loss.color.weight, paper.loss.smoothness.weight) == (
        512, 0.5, 20.0)
    assert configs.default("zerodce", "paper,smoke").data.resize == 64
    with pytest.raises(InputError, match='unknown preset "papr".*"paper"'):
        configs.default("zerodce", "papr")


# ---- training ----


def step_once(model, nets, data):
    state = parallel.place(model.start_phase(jax.tree.map(jnp.copy, nets), 0, "train"))
    step = parallel.pmap(functools.partial(model.train_step, phase="train"))
    return step(state, parallel.split(data), model.weights())


@pytest.mark.parametrize("preset", ["official", "paper"])
def test_every_parameter_gets_a_gradient(preset):
    model = method.load(configs.default("zerodce", preset))
    low = batch()["low"]

    def total(curve):
        terms = model.terms({"curve": curve}, low)
        return sum(model.weights()[name] * value.mean() for name, value in terms.items())

    gradient = jax.grad(total)(initial(model)["curve"])
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, jax.tree_util.keystr(path)


def test_steps_lower_the_total():
    model = method.load(configs.default("zerodce", "smoke"))
    nets = initial(model)
    state = parallel.place(model.start_phase(jax.tree.map(jnp.copy, nets), 0, "train"))
    step = parallel.pmap(functools.partial(model.train_step, phase="train"))
    data = parallel.split(batch(count=2 * jax.local_device_count()))
    totals = []
    for _ in range(5):
        state, scalars = step(state, data, model.weights())
        totals.append(float(scalars["total/curve"]))
    assert all(b < a for a, b in zip(totals, totals[1:], strict=False)), totals
    weighted = sum(w * scalars[f"loss/{name}"] for name, w in model.weights().items())
    np.testing.assert_allclose(weighted, totals[-1], rtol=1e-5)


def test_grey_black_and_white_batches_train():
    model = build()
    for value in (0.0, 0.5, 1.0):
        data = batch() | {"low": jnp.full_like(batch()["low"], value)}
        state, scalars = step_once(model, initial(model), data)
        for leaf in jax.tree.leaves((state.nets, scalars)):
            assert np.isfinite(leaf).all(), value


# ---- the perceptual term ----


def test_the_feature_network_stays_frozen(vgg16_files):
    model = build(loss__perceptual__enabled=True, loss__perceptual__vgg16=vgg16_files[0],
                  loss__perceptual__layer="relu2_2")
    nets = model.init(KEY, batch())
    state, scalars = step_once(model, nets, batch())
    assert set(state.opt) == {"curve"} and "loss/perceptual" in scalars
    jax.tree.map(np.testing.assert_array_equal, state.nets["vgg16"], nets["vgg16"])
    assert not np.array_equal(state.nets["curve"]["params"]["conv1"]["kernel"],
                              nets["curve"]["params"]["conv1"]["kernel"])


def test_features_are_torchs(vgg16_files):
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    f = torch.nn.functional
    params = layers.read_vgg16(vgg16_files[0])
    picture = noise(1, 37, 51, 3)
    tensors = tensors_lib.read(vgg16_files[0])
    x = torch.from_numpy(np.array(picture)).permute(0, 3, 1, 2)
    for name, i in layers.VGG16_CONVS.items():
        if name.endswith("_1") and i:
            x = f.max_pool2d(x, 2)
        x = f.relu(f.conv2d(x, torch.from_numpy(tensors[f"features.{i}.weight"]),
                            torch.from_numpy(tensors[f"features.{i}.bias"]), padding=1))
        if name in ("conv1_2", "conv4_3", "conv5_1"):
            ours = layers.vgg16_features(params, picture, name.replace("conv", "relu"))
            np.testing.assert_allclose(ours, x.permute(0, 2, 3, 1).numpy(), atol=1e-4, rtol=1e-4)


def test_both_name_styles_are_read(vgg16_files, tmp_path):
    tensors = tensors_lib.read(vgg16_files[0])
    renamed = {f"{name}.{part}": tensors[f"features.{i}.{part}"]
               for name, i in layers.VGG16_CONVS.items() for part in ("weight", "bias")}
    save_file(renamed, tmp_path / "caffe.safetensors")
    jax.tree.map(np.testing.assert_array_equal, layers.read_vgg16(vgg16_files[0], "relu4_3"),
                 layers.read_vgg16(str(tmp_path / "caffe.safetensors"), "relu4_3", "caffe"))
    assert list(layers.read_vgg16(vgg16_files[0], "relu1_2")) == ["conv1_1", "conv1_2"]


@pytest.mark.parametrize("name", ["zerodce", "zerodcepp"])
def test_features_for_another_scaling_are_refused(name, tmp_path):
    """Pictures enter from 0 to 1, so a Caffe file's features would mean nothing."""
    path = tmp_path / "caffe.safetensors"
    save_file({"conv1_1.weight": np.zeros((64, 3, 3, 3), np.float32),
               "conv1_1.bias": np.zeros(64, np.float32)}, path)
    config = configs.default(name)
    config.loss.perceptual.update(dict(enabled=True, vgg16=str(path), layer="relu1_1"))
    with pytest.raises(InputError, match="caffe's VGG16.*give a file of torchvision's"):
        jax.eval_shape(method.load(config).init, KEY, batch())


def test_no_features_without_weights(tmp_path):
    with pytest.raises(InputError, match="config.loss.perceptual.vgg16"):
        build(loss__perceptual__enabled=True).init(KEY, batch())
    with pytest.raises(InputError, match="no file"):
        layers.read_vgg16(str(tmp_path / "absent.pth"))
    (tmp_path / "text.safetensors").write_text("not weights")
    with pytest.raises(InputError, match="not a safetensors file"):
        layers.read_vgg16(str(tmp_path / "text.safetensors"))
    save_file({"features.0.weight": np.zeros((64, 3, 5, 5), np.float32)},
              tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"not a VGG16: features.0.weight has shape \(64, 3, 5, 5"):
        layers.read_vgg16(str(tmp_path / "other.safetensors"))


def test_feature_errors(vgg16_files):
    params = layers.read_vgg16(vgg16_files[0], "relu1_1")
    with pytest.raises(ValueError, match="relu9_9"):
        layers.vgg16_features(params, noise(1, 8, 8, 3), "relu9_9")
    with pytest.raises(ValueError, match=r"\(1, 7, 9, 3\).*8 px"):
        layers.vgg16_features(params, noise(1, 7, 9, 3), "relu4_1")
