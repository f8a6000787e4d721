"""EnlightenGAN: the order of its updates, devices, memory, monitoring, files."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from lljax import config as configs
from lljax import convert, layers, losses, method, parallel, weights
from lljax.errors import InputError
from lljax.inference import enhancer
from lljax.methods import enlightengan

KEY = jax.random.key(0)
SIDE = 40


@functools.cache
def build(presets="smoke", **changes):
    config = configs.default("enlightengan", presets)
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return method.load(config)


def noise(*shape, seed=0):
    return jnp.asarray(np.random.RandomState(seed).uniform(size=shape), jnp.float32)


def batch(size=2, side=SIDE):
    return {"low": 0.3 * noise(size, side, side, 3), "high": noise(size, side, side, 3, seed=1),
            "mask": jnp.ones(size), "key": jax.random.split(KEY, size)}


@functools.cache
def initial(model):
    # without optimisation: it draws numbers once, and takes long to compile
    draw = jax.jit(lambda: model.init(KEY, batch()),
                   compiler_options={"xla_backend_optimization_level": 0})
    return draw()


def alone(function):
    """What is meant for a mapped step, on one device."""
    def run(*inputs):
        mapped = jax.vmap(function, axis_name=parallel.AXIS)
        results = mapped(*jax.tree.map(lambda x: x[None], inputs))
        return jax.tree.map(lambda x: x[0], results)
    return run


def step_of(model):
    state = model.start_phase(initial(model), 0, "train")
    return alone(functools.partial(model.train_step, phase="train")), state


# ---- the training step ----


def test_both_discriminators_see_what_was_made_before_the_generators_step():
    model = build()
    step, state = step_of(model)
    new, scalars = jax.jit(step)(state, batch(), model.weights())

    def expected(nets, batch):
        batch = model.prepare(batch)
        fake, stats = model.fake(nets["generator"], batch["dark"])
        terms = model.generator_terms(nets, fake, batch)
        for side, net in (("global", "global_disc"), ("local", "local_disc")):
            found, scores = model.disc_terms({net: nets[net]["params"]}, {**batch, "fake": fake},
                                             side)
            terms |= found | {f"score/{name}": value for name, value in scores.items()}
        return {name: value.mean() for name, value in terms.items()}, stats

    wanted, stats = jax.jit(alone(expected))(state.nets, batch())
    assert len(wanted) == 8
    for name, value in wanted.items():
        name = name if name.startswith("score/") else f"loss/{name}"
        np.testing.assert_allclose(scalars[name], value, rtol=2e-5, atol=1e-6, err_msg=name)
    for a, b in zip(jax.tree.leaves(stats), jax.tree.leaves(
            new.nets["generator"]["batch_stats"]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert {f"grad_norm/{net}" for net in state.opt} <= scalars.keys()
    moved = {net: max(float(jnp.abs(a - b).max()) for a, b in zip(
        jax.tree.leaves(state.nets[net]["params"]), jax.tree.leaves(new.nets[net]["params"]),
        strict=True)) for net in state.opt}
    assert all(value > 1e-5 for value in moved.values()), moved


def flops(function, *inputs):
    return jax.jit(alone(function)).lower(*inputs).cost_analysis()["flops"]


def compiled_flops(function, *inputs):
    # without the passes that take the time and change no count
    return jax.jit(alone(function)).lower(*inputs).compile(
        {"xla_backend_optimization_level": 0}).cost_analysis()["flops"]


def test_the_generator_runs_forward_once(monkeypatch):
    # compiled as for an accelerator: on a CPU kernel gradients are loops, and what a loop does is
    # counted once
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    model = build()
    shapes = jax.eval_shape(lambda: model.init(KEY, batch()))
    state = jax.eval_shape(lambda nets: model.start_phase(nets, 0, "train"), shapes)
    nets, images = state.nets, jax.eval_shape(batch)

    def generator(nets, batch):
        batch = model.prepare(batch)
        return jax.grad(lambda p: sum(x.sum() for x in model.generator_terms(nets, model.fake(
            {**nets["generator"], "params": p}, batch["dark"])[0], batch).values()))(
                nets["generator"]["params"])

    def disc(side, params, batch):
        batch = {**model.prepare(batch), "fake": batch["low"]}
        return jax.grad(lambda p: sum(
            x.sum() for x in model.disc_terms(p, batch, side)[0].values()))(params)

    parts = compiled_flops(generator, nets, images) + sum(
        compiled_flops(functools.partial(disc, side), {net: nets[net]["params"]}, images)
        for side, net in (("global", "global_disc"), ("local", "local_disc")))
    forward = compiled_flops(lambda net, low: model.fake(net, low)[0], nets["generator"],
                             images["low"])
    whole = compiled_flops(functools.partial(model.train_step, phase="train"), state, images,
                           model.weights())
    print(f"step {whole / 1e9:.2f} GFLOP, parts {parts / 1e9:.2f}, forward {forward / 1e9:.2f}")
    # less than the parts: what two of them need is computed once
    assert parts - 0.5 * forward < whole < parts + 0.5 * forward


def test_recomputing_gives_the_same_gradient_for_more_work():
    model, other = build(), build(model__remat=True)
    nets, images = initial(model), batch()
    found, work = [], []
    for one in (model, other):
        def gradient(net, low, one=one):
            return jax.grad(lambda p: jnp.square(one.fake({**net, "params": p}, low)[0]).mean())(
                net["params"])
        work.append(flops(gradient, nets["generator"], images["low"]))
        found.append(jax.jit(alone(gradient))(nets["generator"], images["low"]))
    assert work[1] > 1.15 * work[0]
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_a_bias_that_only_rounding_would_move_stays():
    """Relativistic scores are differences: the last bias of the global discriminator drops out."""
    model = build()
    step, state = step_of(model)
    new, _ = jax.jit(step)(state, batch(), model.weights())
    for net, stays in (("global_disc", True), ("local_disc", False)):
        last = f"conv{model.discs[net].depth + 1}"
        before, after = (nets[net]["params"][last]["bias"] for nets in (state.nets, new.nets))
        assert np.array_equal(before, after) == stays


# ---- draws ----


def test_darkening_and_patches_are_drawn_image_by_image():
    model = build()
    many = batch(400, side=33)
    drawn = model.prepare(many)
    divisors = np.asarray(many["low"] / drawn["dark"])[:, 0, 0, 0]
    darkened = np.abs(divisors - 1) > 1e-3
    assert 0.4 < darkened.mean() < 0.6
    assert 2 - 1e-3 < divisors[darkened].min() < 2.2 and 3.8 < divisors[darkened].max() < 4 + 1e-3
    one = model.prepare(jax.tree.map(lambda x: x[7:8], many))
    np.testing.assert_array_equal(one["dark"][0], drawn["dark"][7])

    offsets = np.asarray(model.prepare(batch(50, side=40))["offsets"])
    assert offsets.shape == (50, 6, 2) and offsets.min() == 0 and offsets.max() == 7
    assert len({tuple(row.ravel()) for row in offsets}) == 50
    patches = enlightengan.cut(many["low"], drawn["offsets"], 32)
    assert patches.shape == (2400, 32, 32, 3)
    y, x = drawn["offsets"][3, 2]
    np.testing.assert_array_equal(patches[3 * 6 + 2], many["low"][3, y:y + 32, x:x + 32])


@pytest.mark.parametrize("knob, value", [
    ("darken.probability", 0.0), ("darken.least", 3.0), ("darken.most", 2.5),
    ("patches.size", 16), ("patches.count", 2)])
def test_knobs_of_the_draws(knob, value):
    other = build(**{knob.replace(".", "__"): value})
    before, after = (model.prepare(batch(16)) for model in (build(), other))
    patches = [enlightengan.cut(drawn["low"], drawn["offsets"], model.config.patches.size)
               for drawn, model in ((before, build()), (after, other))]
    assert (not np.allclose(before["dark"], after["dark"])
            or patches[0].shape != patches[1].shape)


def test_sides_shorter_than_their_margin_repeat_the_edge():
    x = noise(1, 3, 20, 1)
    margins = [enlightengan._margins(side) for side in x.shape[1:3]]
    assert margins == [(6, 7), (6, 6)]
    padded = np.asarray(enlightengan._pad(x, margins))
    wanted = np.pad(np.pad(x, ((0, 0), (6, 7), (0, 0), (0, 0)), "edge"),
                    ((0, 0), (0, 0), (6, 6), (0, 0)), "reflect")
    np.testing.assert_array_equal(padded, wanted)


def test_tiles_are_padded_and_enlarged_as_the_generator_does():
    """Without aligned corners; with them, and where tiles are seen to be placed, in the tests of
    the enhancer."""
    model = build(model__align_corners=False)
    # initial ones do nothing; those of the other build are the same
    nets = {"generator": jax.tree.map(lambda x: 5 * x, initial(build())["generator"])}
    low = np.asarray(0.3 * noise(13, 701, 3))  # one side too short for its margin, one mirrored
    tiled = enhancer.Enhancer(model, nets)
    tiled._candidates = lambda length: [320] if length > 320 else [length]
    assert [len(tiled._cover(length)) for length in (16, 704)] == [1, 13]
    expected = jax.jit(model.explain)(nets, low[None], KEY)
    assert np.abs(expected["latent"]).max() > 0.02
    found = tiled.explain(low)
    for name, value in expected.items():
        scale = max(1, float(jnp.abs(value).max()))  # latent x attention grows without bound
        np.testing.assert_allclose(found[name] / scale, value[0] / scale, atol=1e-5, err_msg=name)


# ---- monitoring ----


def test_a_collapse_is_reported_once():
    model = method.load(configs.default("enlightengan"))

    def seen(*records):
        return [line for step, value in records for line in model.observe(
            {"step": step, "phase": "train", "loss/disc_global": value, "loss/disc_local": 0.2})]

    assert seen((50, 0.3), (100, 0.251), (200, 0.251), (250, 0.5), (400, 0.251)) == []
    (line,) = seen((449, 0.252), (450, 0.251), (900, 0.251))
    assert "disc_global has been under 0.26 (its least value is 0.25) since step 250" in line
    assert "\n" not in line
    # a resumed training does not count the steps that it has not seen
    later = method.load(configs.default("enlightengan"))
    low = {"loss/disc_global": 0.4, "loss/disc_local": 0.001}
    assert not later.observe({"step": 3000, **low}) and not later.observe({"step": 3199, **low})
    (line,) = later.observe({"step": 3200, **low})
    assert "disc_local has been under 0.01 (its least value is 0) since step 3000" in line


def test_the_least_losses_of_the_discriminators():
    """Of scores that tell the sides apart by d, the relativistic loss is least for d = 0.5."""
    def loss(d):
        real, made = jnp.full((2, 3), d), jnp.zeros((2, 3))
        return losses.relativistic(real, made, real.mean(), made.mean())[0]

    distances = np.linspace(0, 2, 41)
    found = [float(loss(d)) for d in distances]
    assert distances[np.argmin(found)] == 0.5
    np.testing.assert_allclose(min(found), 0.25, rtol=1e-6)


def test_devices_change_nothing_but_the_rounding():
    """In float64; in float32 Adam makes whole steps of what rounding leaves of small gradients."""
    code = '''
import sys
import jax, jax.numpy as jnp, numpy as np
from lljax import config, method, parallel
jax.config.update("jax_enable_x64", True)
chosen = config.default("enlightengan", "smoke,no_local")
model = method.load(chosen)
rng = np.random.RandomState(0)
batch = {"low": 0.3 * rng.uniform(size=(4, 48, 48, 3)), "high": rng.uniform(size=(4, 48, 48, 3)),
         "mask": np.ones(4), "key": jax.random.split(jax.random.key(0), 4)}
wide = lambda tree: jax.tree.map(
    lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, tree)
nets = wide(jax.jit(lambda: model.init(jax.random.key(0), None),
                    compiler_options={"xla_backend_optimization_level": 0})())
state = model.start_phase(nets, 0, "train")
state = state.replace(opt=wide(state.opt))
def after(devices):
    """The networks after three steps."""
    step = jax.jit(jax.vmap(lambda s, b: model.train_step(s, b, model.weights(), phase="train")[0],
                            axis_name=parallel.AXIS))
    shared = jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), batch)
    states = jax.tree.map(lambda x: jnp.broadcast_to(x, (devices, *x.shape)), state)
    for _ in range(3):
        states = step(states, shared)
    return jax.tree.leaves(states.nets)
moved = 0
for a, b, start in zip(after(1), after(4), jax.tree.leaves(nets), strict=True):
    assert a.dtype == jnp.float64
    moved += not np.array_equal(a[0], start)
    np.testing.assert_allclose(b, np.broadcast_to(a, b.shape), rtol=0, atol=1e-10)
assert moved > 50, moved
'''
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True,
                          timeout=300)
    assert done.returncode == 0, done.stderr


def test_what_is_off_is_said():
    (line,) = build().notes()
    assert "feature_global and feature_local" in line and "--config.vgg16.path" in line
    assert build("smoke,vgg").notes() == ()


# ---- features ----


@pytest.fixture
def vgg16_file(tmp_path):
    """Random weights under the names of either style."""
    def write(style):
        tensors, channels = {}, 3
        for name, number in layers.VGG16_CONVS.items():
            width = min(64 * 2 ** (int(name[4]) - 1), 512)
            theirs = name if style == "caffe" else f"features.{number}"
            scale = (2 / (9 * channels)) ** 0.5
            tensors[f"{theirs}.weight"] = scale * np.asarray(
                noise(width, channels, 3, 3, seed=number) - 0.5) * 3.4
            tensors[f"{theirs}.bias"] = np.zeros(width, np.float32)
            channels = width
        path = tmp_path / f"{style}.safetensors"
        save_file({k: np.ascontiguousarray(v, np.float32) for k, v in tensors.items()}, path)
        return str(path)
    return write


def test_features_are_scaled_as_their_style_wants(vgg16_file):
    found, images_pm1 = {}, 2 * batch(side=16)["low"] - 1
    for style, layer in (("caffe", "relu5_1"), ("torchvision", "relu5_1"), ("caffe", "relu4_1")):
        model = build("smoke,vgg", vgg16__path=vgg16_file(style), vgg16__style=style,
                      vgg16__layer=layer)
        nets = {"vgg16": {"params": layers.read_vgg16(model.config.vgg16.path, layer, style)}}
        found[style, layer] = model.features(nets, images_pm1)
    assert all(features.shape == (2, 2, 2, 512) for features in found.values())  # no pool4
    for other in (("torchvision", "relu5_1"), ("caffe", "relu4_1")):
        assert not np.allclose(found["caffe", "relu5_1"], found[other])


def test_features_need_a_file_of_their_style(vgg16_file):
    with pytest.raises(InputError, match="config.vgg16.path"):
        jax.eval_shape(build("smoke,vgg").init, KEY, batch())
    path = vgg16_file("torchvision")
    with pytest.raises(InputError, match="torchvision's VGG16.*set the style to torchvision"):
        jax.eval_shape(build("smoke,vgg", vgg16__path=path).init, KEY, batch())


def test_the_target_of_the_features_is_not_darkened(vgg16_file):
    model = build("smoke,vgg,no_local", vgg16__path=vgg16_file("caffe"), darken__probability=1.0)
    nets, images = model.init(KEY, batch()), model.prepare(batch(side=32))
    terms = alone(lambda nets, batch: model.generator_terms(nets, 2 * batch["low"] - 1, batch))(
        nets, images)
    assert not np.allclose(images["low"], images["dark"])
    np.testing.assert_allclose(terms["feature_global"], 0, atol=1e-10)
    np.testing.assert_allclose(terms["feature_local"], 0, atol=1e-10)


# ---- config ----


def test_presets_say_what_the_paper_leaves_out():
    default, official = (configs.default("enlightengan", name) for name in ("", "official"))
    assert configs.differences(default, official) == [
        f"loss.feature_{where}.enabled: False -> True" for where in ("global", "local")]
    assert configs.differences(official, configs.default("enlightengan", "vgg")) == []
    without = configs.default("enlightengan", "official,no_feature")
    assert configs.differences(default, without) == []
    lonely = method.load(configs.default("enlightengan", "no_local"))
    assert set(jax.eval_shape(lambda: lonely.init(KEY, batch()))) == {"generator", "global_disc"}
    assert set(lonely.weights()) == {"adversarial_global", "disc_global"}
    blind = method.load(configs.default("enlightengan", "no_attention"))
    shapes = jax.eval_shape(lambda: blind.init(KEY, batch()))["generator"]["params"]
    assert shapes["level1"]["block1"]["conv"]["kernel"].shape == (3, 3, 3, 32)
    averaged = method.load(configs.default("enlightengan", "smoke,ema"))
    assert set(averaged.start_phase(initial(build()), 0, "train").ema) == {"generator"}
    for net in default.phase.train.optim.values():
        assert (net.b1, net.lr, net.schedule, net.decay_start, net.decay_end) == (
            0.5, 1e-4, "linear", 3200, 6400)


@pytest.mark.parametrize("changes, message", [
    ({"phase.train.microbatch": 1}, "microbatch is 1; it must be 0"),
    ({"model.width": 0}, "model.width"), ({"patches.count": 0}, "patches.count"),
    ({"collapse.steps": 0}, "collapse.steps"), ({"darken.least": 5.0}, "config.darken"),
    ({"vgg16.style": "cafe"}, 'Did you mean "caffe"')])
def test_impossible_choices_are_refused(changes, message):
    config = configs.default("enlightengan")
    config.update_from_flattened_dict(changes)
    with pytest.raises(InputError, match=message):
        method.load(config)


def test_terms_without_their_discriminator_are_refused():
    config = configs.default("enlightengan")
    with config.unlocked():
        del config.phase.train.optim.local_disc
    with pytest.raises(InputError, match="adversarial_local needs the network local_disc"):
        method.load(config)


def test_data_that_does_not_suit_is_refused():
    with pytest.raises(InputError, match="source=unpaired"):
        build().prepare({k: v for k, v in batch().items() if k != "high"})
    with pytest.raises(InputError, match="24 x 24 px hold no patch of 32 px"):
        build().prepare(batch(side=24))


# ---- official files ----


@functools.cache
def official():
    """The three official files' tensors, with random values in torch's layout."""
    model, files = build(""), {"G_A": {}, "D_A": {}, "D_P": {}}
    shapes = jax.eval_shape(lambda: model.init(KEY, batch()))
    random = np.random.default_rng(0)
    for name, (path, _) in model.official_keys().items():
        shape = functools.reduce(lambda node, key: node[key], path.split("/"), shapes).shape
        if len(shape) == 4:
            shape = (shape[3], shape[2], *shape[:2])
        value = random.standard_normal(shape, np.float32) / 50
        file = name[:3] if name.startswith("D_") else "G_A"
        files[file][name.removeprefix(f"{file}.")] = abs(value) if "var" in name else value
    files["G_A"]["bn1_1.num_batches_tracked"] = np.zeros((), np.int64)
    return files


@pytest.fixture
def files(tmp_path):
    for name, tensors in official().items():
        save_file(tensors, tmp_path / f"200_net_{name}.safetensors")
    return {name: str(tmp_path / f"200_net_{name}.safetensors") for name in official()}


def test_the_generator_alone_is_converted(files, tmp_path):
    out = str(tmp_path / "eg.safetensors")
    done = convert.convert("enlightengan", [files["G_A"]], out)
    assert done == convert.Converted("", False, ("generator",))
    enhance = enhancer.load(out)
    picture = np.full((21, 34, 3), 40, np.uint8)
    assert enhance(picture).shape == picture.shape
    assert set(enhance.explain(picture)) == {"attention", "latent", "enhanced"}
    assert enhance.drawn() == ["attention", "latent"]


def test_files_of_one_naming_are_told_apart(files, tmp_path):
    out = str(tmp_path / "eg.safetensors")
    done = convert.convert("enlightengan", [files["D_P"], files["G_A"], files["D_A"]], out)
    assert set(done.nets) == {"generator", "global_disc", "local_disc"}
    _, nets, _ = weights.load(out)
    for net, file in (("global_disc", "D_A"), ("local_disc", "D_P")):
        np.testing.assert_array_equal(nets[net]["params"]["conv1"]["kernel"],
                                      layers.kernel_from_torch(official()[file]["model.2.weight"]))
    np.testing.assert_array_equal(nets["generator"]["batch_stats"]["level5"]["block2"]["bn"]["var"],
                                  official()["G_A"]["bn5_2.running_var"])
    with pytest.raises(InputError, match="nothing of generator: is a file not given"):
        convert.convert("enlightengan", [files["D_A"]], str(tmp_path / "other.safetensors"))
    with pytest.raises(InputError, match="missing keys: bn1_1.bias"):
        save_file({k: v for k, v in official()["G_A"].items() if k != "bn1_1.bias"},
                  tmp_path / "part.safetensors")
        convert.convert("enlightengan", [str(tmp_path / "part.safetensors")],
                        str(tmp_path / "other.safetensors"))
