"""What holds for every method and each of its variants: sizes, gradients, knobs, phases."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lljax import config as configs
from lljax import method, parallel
from lljax.errors import InputError

KEY = jax.random.key(0)
SIZE = 32

# (method, presets) -> parameters of each network, those of the official programs
COUNTS = {
    ("zerodce", ""): {"curve": 79_416},
    ("zerodce", "paper"): {"curve": 79_416},
    ("zerodcepp", ""): {"curve": 10_561},
    ("retinexnet", ""): {"decom": 207_748, "relight": 236_865},
    ("retinexnet", "paper"): {"decom": 207_748, "relight": 236_865},
    ("retinexnet", "torch_port"): {"decom": 207_748, "relight": 347_457},
    ("retinexnet", "torch_port,replicate,released"): {"decom": 207_748, "relight": 347_457},
    ("retinexnet", "notes_transposed"): {"decom": 207_748, "relight": 347_457 + 3 * 36_928},
    ("retinexnet", "joint"): {"decom": 207_748, "relight": 236_865},
    ("retinexnet", "decom_only"): {"decom": 207_748},
    ("enlightengan", ""): {"generator": 8_636_675, "global_disc": 11_154_369,
                           "local_disc": 6_959_553},
    ("enlightengan", "no_local,no_attention"): {"generator": 8_636_675 - 9 * 32,
                                                "global_disc": 11_154_369},
    ("lightendiffusion", ""): {"autoencoder": 7_069_322, "denoiser": 20_763_651},
    ("lightendiffusion", "autoencoder_only"): {"autoencoder": 7_069_322},
    ("lightendiffusion", "image_space"): {"autoencoder": 505_796, "denoiser": 20_763_651},
}

# what is set, but where parameters are counted: a wide network's step takes long, a deep one's a
# minute to compile, and a 32 px picture is no multiple of 12
SMALL = {
    "zerodce": {"model.width": 8},
    "zerodcepp": {"model.width": 8, "model.scale": 4},
    "retinexnet": {"model.width": 16},
    "enlightengan": {"model.width": 8, "model.disc_width": 16},
    "lightendiffusion": {
        "model.width": 8, "model.heads": 2, "model.levels": 1, "model.unet_width": 8,
        "model.unet_mult": (1,), "model.unet_blocks": 1, "model.unet_attention": (),
        "sample.steps": 2, "loss.consistency.steps": 2},
}

# those that differ in what is computed: the others are their parts
VARIANTS = [("zerodce", ""), ("zerodcepp", ""), ("retinexnet", "paper"),
            ("retinexnet", "notes_transposed"), ("retinexnet", "torch_port,replicate,released"),
            ("retinexnet", "joint"), ("retinexnet", "decom_only"), ("enlightengan", ""),
            ("lightendiffusion", "")]

# what is set where a receptive field of hundreds of pixels is looked at
NARROW = {"enlightengan": ("model.width", 4)}

# for every knob of `model` and `loss` but enabled and weight, a value unlike the default
OTHER = {
    "zerodce": {
        "model.iterations": 4, "model.depth": 5, "model.width": 16,
        "loss.spatial.region": 8, "loss.spatial.form": "paper", "loss.exposure.region": 8,
        "loss.exposure.level": 0.5, "loss.exposure.form": "paper", "loss.color.form": "paper",
        "loss.smoothness.form": "paper",
    },
    "zerodcepp": {
        "model.iterations": 4, "model.depth": 5, "model.width": 16, "model.scale": 2,
        "loss.spatial.region": 8, "loss.spatial.form": "paper", "loss.exposure.region": 8,
        "loss.exposure.level": 0.5, "loss.exposure.form": "paper", "loss.color.form": "paper",
        "loss.smoothness.form": "paper",
    },
    "retinexnet": {
        "model.width": 32, "model.depth": 4, "model.upsampling": "transposed",
        "model.skips": "concat", "model.padding": "replicate", "model.origin": "torch",
        "model.adjust": "ones", "loss.reflectance.fix_high": True,
        **{f"loss.smoothness_{where}.{knob}": value
           for where in ("low", "high", "enhanced")
           for knob, value in (("edge", 5.0), ("form", "port"))},
    },
    "enlightengan": {
        "model.width": 16, "model.attention": False, "model.times_residual": False,
        "model.align_corners": False, "model.disc_width": 32, "model.global_depth": 4,
        "model.local_depth": 3,
    },
    "lightendiffusion": {
        "model.width": 16, "model.levels": 2, "model.content_transfer": False,
        "model.diffusion": False, "model.unet_width": 16, "model.unet_mult": (1, 2),
        "model.unet_blocks": 2, "model.unet_attention": (0,),
        "loss.content.norm": "l1", "loss.content.cross": 1.0, "loss.content.bare": 1.0,
        "loss.reconstruction.cross": 0.5, "loss.reconstruction.norm": "mse",
        "loss.reflectance.norm": "l2",
        "loss.smoothness.edge": 1.0, "loss.smoothness.norm": "mse",
        "loss.consistency.gamma": 0.5, "loss.consistency.steps": 3,
    },
}
# those that need a file, or that change no number: tested where the method is
ELSEWHERE = {"zerodce": {"loss.perceptual.vgg16", "loss.perceptual.layer",
                         "loss.perceptual.normalize"},
             "zerodcepp": {"model.train_scale", "loss.perceptual.vgg16", "loss.perceptual.layer",
                           "loss.perceptual.normalize"},
             "enlightengan": {"model.remat"},
             "lightendiffusion": {"model.heads", "loss.consistency.remat"}}
# those that take a preset
PRESET = {"model.adjust": "decom_only", "model.diffusion": "autoencoder_only"}
# those whose networks take no other sides than multiples of `multiple`
PADDED = {"lightendiffusion", "zerodcepp"}
# parameters whose gradient is 0: scores of this discriminator enter as differences only
UNMOVED = {("enlightengan", "global_disc", "['conv6']['bias']")}
# the only term of a network: to disable it takes a preset
ONLY = {"disc_global", "disc_local"}


@functools.cache
def build(name, presets="", knob=None, value=None, small=True):
    config = configs.default(name, presets)
    changes = SMALL.get(name, {}) if small else {}
    with config.unlocked():
        for path, new in {**changes, **({knob: value} if knob else {})}.items():
            *folders, leaf = path.split(".")
            functools.reduce(lambda node, key: node[key], folders, config)[leaf] = new
    return method.load(config)


def noise(*shape, seed=0):
    return jnp.asarray(np.random.RandomState(seed).uniform(size=shape), jnp.float32)


def batch():
    count = jax.local_device_count()
    return {"low": 0.3 * noise(count, SIZE, SIZE, 3), "high": noise(count, SIZE, SIZE, 3, seed=1),
            "mask": jnp.ones(count), "key": jax.random.split(KEY, count),
            "step_key": jnp.broadcast_to(KEY, count), "index": jnp.arange(count)}


@functools.cache
def initial(model):
    # without optimisation: it draws numbers once, and takes long to compile
    draw = jax.jit(lambda: model.init(KEY, batch()),
                   compiler_options={"xla_backend_optimization_level": 0})
    return draw()


def step(model, phase, nets):
    state = parallel.place(model.start_phase(jax.tree.map(jnp.copy, nets), 0, phase))
    one = parallel.pmap(functools.partial(model.train_step, phase=phase))
    return one(state, parallel.split(batch()), model.weights())


@functools.cache
def terms_of(model, phase):
    """The loss terms that a training step reports; its gradients are not in the program."""
    def terms(state, batch, weights):
        scalars = model.train_step(state, batch, weights, phase=phase)[1]
        return (), {name: value for name, value in scalars.items() if name.startswith("loss/")}

    nets = jax.tree.map(jnp.copy, initial(model))  # the mapped step may take the state's buffers
    state = parallel.place(model.start_phase(nets, 0, phase))
    found = parallel.pmap(terms)(state, parallel.split(batch()), model.weights())[1]
    return {name: float(value) for name, value in found.items()}


@functools.cache
def enhanced_by(model):
    return np.asarray(jax.jit(model.enhance)(initial(model), batch()["low"], KEY))


def test_all_methods_are_here():
    assert {name for name, _ in COUNTS} == set(method.list_methods()) == set(OTHER)


@pytest.mark.parametrize("case", COUNTS, ids="-".join)
def test_parameter_counts(case):
    nets = jax.eval_shape(build(*case, small=False).init, KEY, batch())
    assert {name: sum(x.size for x in jax.tree.leaves(net["params"]))
            for name, net in nets.items()} == COUNTS[case]


@pytest.mark.parametrize("case", VARIANTS, ids="-".join)
@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (2, 45, 61, 3)], ids=str)
def test_any_picture_size(case, shape):
    model = build(*case)
    step = model.multiple if case[0] in PADDED else 1
    shape = (shape[0], *(-(-side // step) * step for side in shape[1:3]), 3)
    enhanced = jax.jit(model.enhance)(initial(model), noise(*shape), KEY)
    assert enhanced.shape == shape and np.isfinite(enhanced).all()


@pytest.mark.parametrize("case", VARIANTS, ids="-".join)
def test_phases_train_their_networks_and_return_their_terms(case):
    model = build(*case)
    nets, returned = initial(model), set()
    for phase in model.config.phases:
        state, scalars = step(model, phase, nets)
        trained = model.nets_of(phase)
        assert set(state.opt) == set(trained)
        for net in nets:
            before, after = nets[net]["params"], state.nets[net]["params"]
            for path, leaf in jax.tree_util.tree_leaves_with_path(before):
                new = functools.reduce(lambda node, key: node[key.key], path, after)
                assert np.isfinite(new).all()
                changed = not np.array_equal(leaf, new)
                name = jax.tree_util.keystr(path)
                moves = net in trained and (case[0], net, name) not in UNMOVED
                assert changed == moves, (phase, net, name)
        returned |= {name.removeprefix("loss/") for name in scalars if name.startswith("loss/")}
        total = sum(model.weights()[name.removeprefix("loss/")] * value
                    for name, value in scalars.items() if name.startswith("loss/"))
        if len(totals := [v for k, v in scalars.items() if k.startswith("total/")]) == 1:
            np.testing.assert_allclose(totals[0], total, rtol=1e-5)
    assert returned == set(model.weights())


@pytest.mark.parametrize("case", VARIANTS, ids="-".join)
def test_halo_holds_the_receptive_field(case):
    model = build(*case, *NARROW.get(case[0], ()))
    if model.halo is None or model.staged:
        pytest.skip("sees the whole picture")
    size = 2 * model.halo + 17
    size += -size % model.multiple
    nets, x = initial(model), noise(1, size, size, 3)

    @jax.jit
    def reach(at):
        return jax.grad(lambda x: jax.lax.dynamic_slice(
            model.enhance(nets, x, KEY), (0, at, at, 0), (1, 1, 1, 3)).sum())(x)

    widest = 0
    for at in range(size // 2, size // 2 + model.multiple):
        seen = np.flatnonzero(np.abs(reach(at)).sum((0, 2, 3)))
        widest = max(widest, at - seen[0], seen[-1] - at)
    assert widest <= model.halo
    assert widest > model.halo - 8  # nor is work thrown away


@pytest.mark.parametrize("name", OTHER)
def test_every_knob_is_tested_below(name):
    config = configs.default(name)
    knobs = {f"model.{knob}" for knob in config.model}
    knobs |= {f"loss.{term}.{knob}" for term, entry in config.loss.items() for knob in entry
              if knob not in ("enabled", "weight")}
    assert knobs == OTHER[name].keys() | ELSEWHERE.get(name, set())


@pytest.mark.parametrize("name, knob", [(name, knob) for name in OTHER for knob in OTHER[name]])
def test_each_knob_changes_something(name, knob):
    one = build(name)
    if knob in PRESET:
        other = build(name, PRESET[knob])
    else:
        other = build(name, "", knob, OTHER[name][knob])
    shapes = [jax.eval_shape(model.init, KEY, batch()) for model in (one, other)]
    if method.shape_differences(*shapes):
        return
    if knob.startswith("model."):
        assert not np.allclose(enhanced_by(one), enhanced_by(other), rtol=1e-4)
        return
    term = "loss/" + knob.split(".")[1]
    phase = next(phase for phase in one.config.phases if term in terms_of(one, phase))
    before, after = terms_of(one, phase), terms_of(other, phase)
    if before == after:  # a knob of the gradient alone
        before, after = (step(model, phase, initial(model))[1] for model in (one, other))
    assert any(not np.allclose(before[key], after[key], rtol=1e-4) for key in before)


@pytest.mark.parametrize("name, term", [
    (name, term) for name in OTHER for term, entry in configs.default(name).loss.items()
    if entry.enabled])
def test_a_disabled_term_is_not_in_the_program(name, term):
    model = build(name, "", f"loss.{term}.enabled", False)
    if term in ONLY:
        with pytest.raises(InputError, match="every loss term of network .* is disabled"):
            step(model, "train", initial(model))
        return
    returned = set()
    for phase in model.config.phases:
        state = jax.eval_shape(
            lambda phase=phase: model.start_phase(model.init(KEY, batch()), 0, phase))
        one = parallel.pmap(functools.partial(model.train_step, phase=phase)).compiled
        returned |= set(jax.eval_shape(one, state, parallel.split(batch()), model.weights())[1])
    assert f"loss/{term}" not in returned and term not in model.weights()
