"""LightenDiffusion: what is its own; what holds for every method is in test_methods."""

import argparse
import csv
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from PIL import Image

from lljax import checkpoint, cli, convert, diffusion, method, parallel, weights
from lljax import config as configs
from lljax.errors import InputError
from lljax.evaluation import evaluate
from lljax.inference.enhancer import Enhancer
from lljax.training import loop, start
from lljax.training.shared import Shared

KEY = jax.random.key(0)
SIDE = 8


# The smallest that has all parts but the denoiser's levels.
TINY = dict(model__levels=1, model__unet_mult=(1,), model__unet_attention=(), sample__steps=2,
            loss__consistency__steps=2)


@functools.cache
def build(presets="smoke", tiny=True, **changes):
    config = configs.default("lightendiffusion", presets)
    with config.unlocked():
        for knob, value in ((TINY if tiny else {}) | changes).items():
            *folders, leaf = knob.split("__")
            functools.reduce(lambda node, key: node[key], folders, config)[leaf] = value
    return method.load(config)


@functools.cache
def initial(model):
    return jax.jit(lambda: model.init(KEY, {}))()


def noise(*shape, seed=0):
    return jnp.asarray(np.random.RandomState(seed).uniform(size=shape), jnp.float32)


def batch(count=4, side=SIDE):
    return {"low": 0.3 * noise(count, side, side, 3), "high": noise(count, side, side, 3, seed=1),
            "mask": jnp.ones(count), "key": jax.random.split(KEY, count),
            "step_key": jnp.broadcast_to(KEY, count), "index": jnp.arange(count)}


def picture(height, width, seed=0):
    return np.random.RandomState(seed).uniform(size=(height, width, 3)).astype(np.float32)


@functools.cache
def enhancer(seed=0, **changes):
    """One of a model that has seen nothing; its last layer is small, so that sampling stays in
    bounds."""
    model = build(**changes)
    nets = dict(initial(model))
    last = {name: 0.01 * value for name, value in nets["denoiser"]["params"]["conv_out"].items()}
    nets["denoiser"] = {"params": {**nets["denoiser"]["params"], "conv_out": last}}
    return Enhancer(model, nets, seed)


# ---- networks ----


def test_initial_values_are_torchs():
    """All of them are drawn at once; the bound is that of the layer's inputs."""
    params = {name: net["params"] for name, net in initial(build()).items()}
    for path, inputs in (("autoencoder/encoder/stem0", 75), ("autoencoder/encoder/down0", 72),
                         ("autoencoder/decoder/up0", 72), ("autoencoder/decoder/out", 8),
                         ("autoencoder/retinex/self_attention/qkv_depth", 9),
                         ("denoiser/conv_in", 54), ("denoiser/mid_block1/time", 32),
                         ("denoiser/up0_block0/conv1", 144)):
        layer = functools.reduce(lambda node, key: node[key], path.split("/"), params)
        values = np.concatenate([layer["kernel"].ravel(), layer["bias"].ravel()])
        most = np.abs(values).max() * inputs ** 0.5
        assert 0.8 < most <= 1 + 1e-6, path
        assert abs(values.mean()) * inputs ** 0.5 < 0.3 and layer["bias"].any()
    norm = params["denoiser"]["norm_out"]
    assert (norm["scale"] == 1).all() and not norm["bias"].any()
    for net, module, inputs in (
            ("autoencoder", build().autoencoder, [jnp.zeros((1, 2, 2, 3))]),
            ("denoiser", build().denoiser, [jnp.zeros((1, 1, 1, 3))] * 2 + [jnp.zeros(1)])):
        assert not method.shape_differences(
            {"params": params[net]}, jax.eval_shape(module.init, KEY, *inputs))


def test_black_pictures_have_finite_terms_and_gradients():
    """The latent may be the picture itself, and its brightest channel 0."""
    model = build("smoke,image_space", model__levels=0)
    black = {name: jnp.zeros((1, 8, 8, 3)) for name in ("low", "high")}

    def total(params):
        return sum(term.sum() for term in model.autoencoder_terms(
            {"autoencoder": {"params": params}}, black).values())

    value, gradient = jax.jit(jax.value_and_grad(total))(
        initial(model)["autoencoder"]["params"])
    assert np.isfinite(value) and all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))


@pytest.mark.parametrize("levels", [0, 1, 2])
def test_the_latent_may_lie_at_any_level(levels):
    model = build(model__levels=levels)
    side = 2 * model.multiple
    assert model.multiple == 2 ** levels
    nets = jax.eval_shape(model.init, KEY, {})
    shapes = jax.eval_shape(model.explain, nets, jnp.zeros((2, side, 2 * side, 3)), KEY)
    assert shapes["latent"].shape == (2, 2, 4, 3) and shapes["enhanced"].shape == (
        2, side, 2 * side, 3)
    if not levels:
        assert set(nets["autoencoder"]["params"]) == {"retinex"}


def test_without_content_transfer_there_is_no_attention():
    with_, without = (
        set(jax.eval_shape(build(presets).init, KEY, {})["autoencoder"]["params"]["retinex"])
        for presets in ("smoke", "smoke,no_content_transfer"))
    assert with_ - without == {"cross_attention", "self_attention"} and without < with_


def test_the_number_of_heads_matters_to_the_decomposition():
    found = []
    for heads in (2, 4):
        model = build(model__heads=heads)
        net = jax.tree.map(lambda x: 3 * x, initial(model)["autoencoder"])
        found.append(jax.jit(functools.partial(model.autoencoder.apply, method="decompose"))(
            net, noise(1, 4, 6, 3)))
    assert all(np.abs(one - other).max() > 1e-4 for one, other in zip(*found, strict=True))


def test_without_a_denoiser_a_picture_is_encoded_and_decoded():
    model = build("smoke,autoencoder_only")
    nets = initial(model)
    assert set(nets) == {"autoencoder"}
    low = noise(1, 16, 24, 3)
    maps = jax.jit(model.explain)(nets, low, KEY)
    assert "trajectory" not in maps
    decoded, _ = jax.jit(model.autoencoder.apply)(nets["autoencoder"], low)
    np.testing.assert_allclose(maps["enhanced"], decoded, atol=1e-6)


# ---- stage 1 ----


def test_reconstruction_and_content_have_cross_terms():
    """Against the four terms of each written out, and the picture decoded without features."""
    model = build(loss__reconstruction__cross=0.5, loss__content__cross=0.25,
                  loss__content__bare=0.125, loss__content__norm="l1")
    nets, data = initial(model), batch(2)
    found = jax.jit(model.autoencoder_terms)(nets, data)

    @jax.jit
    def parts(image):
        latent, _ = model.encode(nets, image)
        return latent, *model.autoencoder.apply(nets["autoencoder"], latent, method="decompose")

    f, r, l = ({name: parts(data[name])[i] for name in ("low", "high")} for i in range(3))
    expected = sum((1.0 if i == j else 0.5) * jnp.abs(r[i] * l[j] - f[j]).mean((1, 2, 3))
                   for i in f for j in f)
    np.testing.assert_allclose(found["reconstruction"], expected, rtol=1e-5)

    def error(latent_of, features_of):
        latent, skips = model.encode(nets, data[latent_of])[0], model.encode(
            nets, data[features_of or latent_of])[1]
        if features_of is None:
            skips = [0 * features for features in skips]
        return jnp.abs(model.autoencoder.apply(nets["autoencoder"], latent, skips, method="decode")
                       - data[latent_of]).mean((1, 2, 3))

    expected = sum((1.0 if i == j else 0.25) * error(i, j) for i in f for j in f)
    expected += sum(0.125 * error(i, None) for i in f)
    np.testing.assert_allclose(found["content"], expected, rtol=1e-5)
    np.testing.assert_allclose(found["reflectance"],
                               jnp.abs(r["low"] - r["high"]).mean((1, 2, 3)), atol=1e-7)
    assert all(term.shape == (2,) for term in found.values())


# ---- stage 2 ----


def prepared(model, data, devices):
    """`prepare` on so many devices, the images as the pipeline deals them."""
    split = jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), data)
    found = jax.vmap(model.prepare, axis_name=parallel.AXIS)(split)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), found)


def test_draws_do_not_depend_on_devices_or_micro_batches():
    model, data = build(), batch(8)
    whole = prepared(model, data, 1)
    for name in ("t", "noise", "start"):
        np.testing.assert_array_equal(whole[name], prepared(model, data, 4)[name])
    # two processes take every second image each
    order = np.array([0, 2, 4, 6, 1, 3, 5, 7])
    dealt = prepared(model, jax.tree.map(lambda x: x[order], data), 4)
    np.testing.assert_array_equal(whole["t"][order], dealt["t"])
    # antithetic: 8 // 2 + 1 draws, and their mirror images
    np.testing.assert_array_equal(whole["t"][5:], 999 - whole["t"][:3])
    assert len(set(np.asarray(whole["t"]).tolist())) > 4
    assert np.abs(whole["noise"] - whole["start"]).min() > 0
    assert not np.array_equal(whole["noise"][0], whole["noise"][1])
    another = data | {"step_key": jnp.broadcast_to(jax.random.fold_in(KEY, 1), 8)}
    assert not np.array_equal(prepared(model, another, 1)["t"], whole["t"])


@pytest.mark.parametrize("preset", ["no_consistency", "no_content_transfer", "image_space",
                                    "living_latent"])
def test_the_ablations_have_steps_of_both_stages(preset):
    """By shapes: compiling each takes long, and test_methods looks at what the knobs change."""
    model = build(f"smoke,{preset}", tiny=False)
    nets = jax.eval_shape(lambda: model.init(KEY, {}))
    for phase, terms in (("autoencoder", {"reconstruction", "reflectance", "smoothness"}),
                         ("denoiser", {"noise"})):
        state = jax.eval_shape(functools.partial(model.start_phase, step=0, phase=phase), nets)
        step = functools.partial(model.train_step, phase=phase)
        after, scalars = jax.eval_shape(
            jax.vmap(step, in_axes=(None, 0, None), out_axes=(None, 0), axis_name=parallel.AXIS),
            state, jax.tree.map(lambda x: x[None], batch(side=16)), model.weights())
        assert jax.tree.structure(after) == jax.tree.structure(state)
        assert jax.tree.leaves(after) == jax.tree.leaves(state)
        found = {name.removeprefix("loss/") for name in scalars if name.startswith("loss/")}
        assert terms <= found
        assert ("content" in found) == (phase == "autoencoder" and preset != "image_space")
        assert ("consistency" in found) == (phase == "denoiser" and preset != "no_consistency")


def test_one_micro_batch_equals_several():
    """Terms and the length of the gradient."""
    count = jax.local_device_count()
    found = []
    for micro in (1, 4):
        model = build(phase__denoiser__microbatch=micro, loss__consistency__weight=1.0)
        state = parallel.place(model.start_phase(initial(model), 0, "denoiser"))
        step = parallel.pmap(functools.partial(model.train_step, phase="denoiser"))
        found.append(step(state, parallel.split(batch(4 * count)), model.weights())[1])
    for name in found[0]:
        np.testing.assert_allclose(found[0][name], found[1][name], rtol=1e-4, err_msg=name)


def test_consistency_pulls_the_sample_towards_its_reference():
    """The gradient through the sampler: against a difference quotient, and with every activation
    kept."""
    nets = initial(build())  # in float32, which the other tests share
    with jax.enable_x64(True):
        nets = jax.tree.map(lambda x: x.astype(jnp.float64), nets)
        data = jax.tree.map(lambda x: x.astype(jnp.float64), {
            k: v for k, v in batch(1).items() if k in ("low", "high")})
        data |= {"t": jnp.array([500]), "noise": noise(1, 4, 4, 3).astype(jnp.float64) - 0.5,
                 "start": noise(1, 4, 4, 3, seed=1).astype(jnp.float64) - 0.5}
        bias = nets["denoiser"]["params"]["conv_out"]["bias"]

        def term(model, bias):
            params = nets["denoiser"]["params"]
            params = {**params, "conv_out": {**params["conv_out"], "bias": bias}}
            return model.denoiser_terms(nets | {"denoiser": {"params": params}}, data)[
                "consistency"][0]

        kept = build(loss__consistency__remat=False)
        slope = jax.jit(jax.grad(functools.partial(term, build())))(bias)
        assert slope.all()
        np.testing.assert_allclose(
            slope, jax.jit(jax.grad(functools.partial(term, kept)))(bias), rtol=1e-6)
        value = jax.jit(functools.partial(term, kept))
        e = 1e-5 * np.eye(3)[1]
        np.testing.assert_allclose((value(bias + e) - value(bias - e)) / 2e-5, slope[1], rtol=1e-3)


def test_the_average_is_what_is_used():
    model = build()
    state = model.start_phase(initial(model), 0, "denoiser")
    assert set(state.ema) == {"denoiser"}
    state = state.replace(ema={"denoiser": jax.tree.map(lambda x: x + 1, state.ema["denoiser"])})
    used = state.averaged()
    for name, change in (("denoiser", 1), ("autoencoder", 0)):
        for before, after in zip(*(jax.tree.leaves(nets[name]["params"])
                                   for nets in (state.nets, used)), strict=True):
            np.testing.assert_allclose(after, before + change, rtol=1e-6)


def test_an_average_longer_than_the_phase_is_told():
    assert build().notes() == ()
    note, = build(phase__denoiser__optim__denoiser__ema=0.99).notes()
    assert "of denoiser, which is what is used, reaches back to the first of 2 steps" in note
    assert "--config.phase.denoiser.optim.denoiser.ema=0.0" in note
    assert build("", tiny=False).notes() == ()


def test_the_denoiser_needs_an_autoencoder():
    model = build("smoke,denoiser_only")
    with pytest.raises(InputError, match="on the network 'autoencoder'.*config.init.autoencoder"):
        start._check_needs(model.config, model)


def unpaired(tmp_path):
    """Flags of two folders whose pictures show different scenes, 32 px."""
    for role in ("low", "high"):
        (tmp_path / role).mkdir()
        for i in range(2):
            Image.fromarray((255 * picture(32, 32, i)).astype(np.uint8)).save(
                tmp_path / role / f"{role}{i}.png")
    return {"data__source": "unpaired", **{f"data__{role}": str(tmp_path / role)
                                           for role in ("low", "high")}}


def test_only_stage_2_takes_unpaired_pictures(tmp_path):
    """The refusal names phase and source, and leaves nothing behind."""
    flags = unpaired(tmp_path)
    match = "phase 'autoencoder'.*source=unpaired.*source=pairs"
    with pytest.raises(InputError, match=match):
        loop.fit(build("smoke,autoencoder_only", **flags).config, str(tmp_path / "run"))
    assert not (tmp_path / "run" / "config.json").exists()
    both = build("smoke", **flags)
    with pytest.raises(InputError, match=match):
        start.check_pairs(both.config, both, both.config.phases, unpaired=True)
    # what has been trained needs no pairs any more
    start.check_pairs(both.config, both, ("denoiser",), unpaired=True)


def test_stage_2_starts_from_another_run(tmp_path):
    first = build("smoke,autoencoder_only")
    nets = jax.tree.map(lambda x: x + 0.25, initial(first))
    weights.save(tmp_path / "one.safetensors", first.config, nets, {})
    second = build("smoke,denoiser_only", init__autoencoder=str(tmp_path / "one.safetensors"))

    class Saved:
        def latest(self):
            return None

    with Shared() as shared:
        begin = start.find(second.config, second, Saved(), shared)
    assert begin.phases == ("denoiser",) and set(begin.state.opt) == {"denoiser"}
    for ours, theirs in zip(jax.tree.leaves(begin.state.nets["autoencoder"]),
                            jax.tree.leaves(nets["autoencoder"]), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("changes, match", [
    (dict(model__levels=-1), "model.levels is -1; it must be 0 or more"),
    (dict(model__width=9), "model.width is 9; it must be a multiple of config.model.heads, 2"),
    (dict(model__unet_attention=(1,)), "levels from 0 to 0"),
    (dict(model__unet_mult=(1, 1), sample__tile=5), "0 or a multiple of 2"),
    (dict(sample__tile=32), "sample.overlap is 32; it must be 0 to 24 for tiles of 32"),
    (dict(sample__count=0), "sample.count is 0; it must be 1 or more"),
    (dict(sample__overlap=256), "sample.overlap is 256; it must be 0 to 248 for tiles of 256"),
    (dict(sample__steps=0), "sample.steps is 0; it must be 1 to 1000, config.diffusion.total"),
    (dict(sample__steps=1001), "sample.steps is 1001; it must be 1 to 1000"),
    (dict(diffusion__total=2, sample__steps=3), "sample.steps is 3; it must be 1 to 2"),
    (dict(sample__eta=-0.1), "sample.eta is -0.1; it must be 0.0 to 1.0"),
    (dict(sample__eta=1.5), "sample.eta is 1.5; it must be 0.0 to 1.0"),
    (dict(sample__eta=float("nan")), "sample.eta is nan; it must be 0.0 to 1.0"),
    (dict(loss__consistency__steps=0), "loss.consistency.steps is 0; it must be 1 to 1000"),
    (dict(loss__consistency__steps=1001), "loss.consistency.steps is 1001; it must be 1 to 1000"),
    (dict(loss__consistency__gamma=-0.2), "loss.consistency.gamma is -0.2; it must be 0.0 or more"),
    (dict(diffusion__total=0), "diffusion.total is 0; it must be 1 or more"),
    (dict(diffusion__first=0.0), "diffusion.first is 0.0; it must be more than 0.0 and less"),
    (dict(diffusion__last=1.0), "diffusion.last is 1.0; it must be more than 0.0 and less than"),
    (dict(diffusion__first=1e-8), "1000 steps .* 1e-08 to 0.02 leave 1 after .*raise first"),
    (dict(diffusion__last=0.5), "1000 steps .* 0.0001 to 0.5 leave 0.9999 .* 0 after the last"),
    (dict(sample__noise="pink"), "unknown config.sample.noise.*gaussian, zero"),
    (dict(sample__noise="zero", sample__count=2), "all samples are the same"),
    (dict(model__diffusion=False), "trains the denoiser, which a model"),
])
def test_what_cannot_be_is_refused(changes, match):
    with pytest.raises(InputError, match=match):
        build(**changes)


def test_a_batch_must_have_references_and_fit_the_networks():
    model = build()
    state = jax.eval_shape(lambda: model.start_phase(initial(model), 0, "autoencoder"))
    for data, match in ((batch() | {"high": None}, "two pictures at a time"),
                        (batch(side=9), "9 x 9 px; set config.data.crop to a multiple of 2 px")):
        data = {name: value for name, value in data.items() if value is not None}
        with pytest.raises(InputError, match=match):
            model.train_step(state, data, model.weights(), phase="autoencoder")


# ---- sampling ----


def test_seeds_and_zero_noise():
    low = picture(5, 10)
    one = enhancer().explain(low)
    np.testing.assert_array_equal(enhancer()(low), one["enhanced"].clip(0, 1))
    assert np.abs(enhancer(seed=1).explain(low)["latent"] - one["latent"]).max() > 0.01
    zero = [enhancer(seed, sample__noise="zero").explain(low) for seed in (0, 1)]
    np.testing.assert_array_equal(zero[0]["enhanced"], zero[1]["enhanced"])
    assert one["latent"].shape == (3, 5, 3) and one["trajectory"].shape == (2, 3, 5, 3)
    np.testing.assert_array_equal(one["trajectory"][-1].clip(0, 1), one["latent"])


def test_the_command_takes_a_seed(tmp_path):
    model = str(tmp_path / "model.safetensors")
    weights.save(model, build().config, enhancer()._nets, {"licence": "none"})
    Image.fromarray((255 * picture(8, 8)).astype(np.uint8)).save(tmp_path / "low.png")

    def enhanced(name, *flags):
        out = str(tmp_path / name)
        assert cli.main(["lljax", "enhance", str(tmp_path / "low.png"), "-o", out, "--model", model,
                         "--quiet", *flags]) == 0
        return np.asarray(Image.open(out))

    one = enhanced("a.png", "--seed", "1")
    np.testing.assert_array_equal(enhanced("b.png", "--seed", "1"), one)
    assert not np.array_equal(enhanced("c.png"), one)


def test_the_same_seed_gives_the_same_scores(tmp_path, capsys):
    """Of a workdir and both of its parameters, `--average both`: two evaluations differ in their
    date and command alone, and another seed in the scores."""
    model, workdir = build(), tmp_path / "run"
    state = model.start_phase(initial(model), 0, "denoiser")
    state = state.replace(ema={"denoiser": jax.tree.map(lambda x: -x, state.ema["denoiser"])})
    with checkpoint.Checkpoints(str(workdir)) as saved:
        saved.save(state, model.config, "denoiser")
    for role, gain in (("low", 80), ("high", 255)):
        (tmp_path / role).mkdir()
        for i in range(2):
            Image.fromarray((gain * picture(16, 16, i)).astype(np.uint8)).save(
                tmp_path / role / f"{i}.png")

    def files(name, seed, *flags):
        out = tmp_path / name
        assert evaluate.main([
            "evaluate.py", "--workdir", str(workdir), "--low", str(tmp_path / "low"), "--high",
            str(tmp_path / "high"), "--baselines", "none", "--seed", str(seed), "--out", str(out),
            *flags]) == 0
        found = {path.name: path.read_bytes() for path in out.iterdir()}
        info = json.loads(found.pop("results.json"))
        assert info.pop("date") and info["seed"] == seed and str(out) in info.pop("command")
        return found, info

    both = ("--average", "both")
    (one, said), again, (other, _) = files("one", 3, *both), files("again", 3, *both), files(
        "other", 4)
    assert again == (one, said) and {"per_image.csv", "contact_sheet.png"} < set(one)
    assert list(said["systems"]) == ["run", "run without average"]

    def scores(found, system):
        rows = csv.DictReader(found["per_image.csv"].decode().splitlines())
        return [row["psnr"] for row in rows if row["system"] == system]

    averaged, last, drawn = (scores(one, "run"), scores(one, "run without average"),
                             scores(other, "run"))
    assert len(averaged) == len(last) == len(drawn) == 2
    assert len({*averaged, *last, *drawn}) == 6


def test_steps_and_fresh_noise():
    low = picture(16, 16)
    last = [enhancer(**changes).explain(low)["trajectory"][-1] for changes in (
        {}, dict(sample__steps=5), dict(sample__eta=1.0))]
    for i in range(3):
        assert np.abs(last[i] - last[i - 1]).max() > 1e-3


def test_several_samples_are_averaged_as_latents():
    """The spread of the mean of many is smaller than that of one."""
    low = picture(16, 16)
    spread = [np.std([enhancer(seed, sample__count=count).explain(low)["latent"]
                      for seed in range(3)], axis=0).mean() for count in (1, 8)]
    assert spread[1] < 0.7 * spread[0]
    model = build(sample__count=2)
    nets, low = enhancer()._nets, noise(1, 4, 4, 3)

    @jax.jit
    def drawn(number):
        begin = jax.random.normal(jax.random.fold_in(KEY, number), (1, 2, 2, 3))
        condition = 2 * model.encode(nets, low)[0] - 1
        x, _ = diffusion.ddim_sample(
            functools.partial(model.denoiser.apply, nets["denoiser"], condition), begin,
            model.alpha_bars, 2)
        return ((x + 1) / 2).clip(0, 1)

    found = jax.jit(model.estimate)(nets, low, KEY)["latent"]
    np.testing.assert_allclose(found, (drawn(0) + drawn(1)) / 2, atol=1e-5)


def test_pictures_of_a_batch_start_from_the_same_noise():
    model, nets = build(), enhancer()._nets
    low = noise(1, 8, 8, 3)
    latent = jax.jit(model.estimate)(nets, jnp.concatenate([low, low]), KEY)["latent"]
    np.testing.assert_allclose(latent[0], latent[1], atol=1e-6)


def test_tiles_leave_no_seam_and_keep_the_tone():
    """On a smooth gradient, from zero noise. What tiles change in what each step foresees changes
    no faster, from pixel to pixel, than what is foreseen without tiles does. And it is no tone: its
    mean over the picture is a small part of the spread of what is foreseen without tiles, and over
    any eight rows it is less than that spread, though the network, whose values are random, finds
    other statistics in every tile. Tiles that do not overlap are seen by all three."""
    ramp = np.linspace(0.1, 0.8, 40, dtype=np.float32)
    latent = np.repeat((ramp[:, None] + ramp[None, :10])[None, ..., None] / 2, 3, 3)
    nets = initial(build())  # its last layer as it is: what is foreseen goes far beyond [-1, 1]

    def foreseen(tile, overlap):
        model = build(sample__noise="zero", sample__tile=tile, sample__overlap=overlap)
        return jax.jit(model.solve)(nets, {"latent": latent}, KEY)["trajectory"][0]

    def steepest(trajectory):  # without the ends, where zeros lie outside in any case
        return np.abs(np.diff(trajectory, axis=1))[:, 6:-6].max()

    def tone(trajectory):  # in parts of the channel's spread without tiles
        inside = trajectory[:, 6:-6] / whole[:, 6:-6].std((1, 2), keepdims=True)
        eight = [inside[:, i:i + 8].mean((1, 2)) for i in range(inside.shape[1] - 7)]
        return np.abs(inside.mean((1, 2))).max(), np.abs(eight).max()

    whole = np.asarray(foreseen(0, 0))
    soft, hard = (foreseen(24, overlap) - whole for overlap in (16, 0))
    assert steepest(soft) < 2 * steepest(whole) and steepest(hard) > 3 * steepest(whole)
    assert tone(soft)[0] < 0.25 and tone(soft)[1] < 1
    assert tone(hard)[0] > 0.3 and tone(hard)[1] > 2


def test_halo_holds_what_encoder_and_decoder_see():
    """In px of the picture, a latent's pixel being as large as it is there."""
    model = build(model__levels=2, model__diffusion=False, phases=("autoencoder",))
    nets, cell = {"autoencoder": initial(model)["autoencoder"]}, 4
    size = -(-(2 * model.halo + 17) // cell) * cell
    low, at = noise(1, size, size, 3), size // 2 // cell * cell

    @jax.jit
    def reach(low, latent, row):
        def one(low, latent):
            return lax.dynamic_slice_in_dim(
                model.apply(nets, low, {"latent": latent})[0, :, at], row, 1).sum()
        return (*jax.grad(one, (0, 1))(low, latent), jax.grad(
            lambda low: model.condense(nets, low)["latent"][0, at // cell, at // cell].sum())(low))

    def rows(gradient):
        seen = np.flatnonzero(np.abs(gradient).sum((0, 2, 3)))
        return seen[0], seen[-1] + 1

    widest = 0
    for row in range(at, at + cell):
        picture, latent, encoder = map(rows, reach(low, noise(1, size // 4, size // 4, 3), row))
        widest = max(widest, row - picture[0], picture[1] - row - 1, row - cell * latent[0],
                     cell * latent[1] - row - 1, at - encoder[0], encoder[1] - at - cell)
    assert widest == model.halo == 43


# ---- maps ----


def test_costly_maps_are_computed_where_asked_for():
    one = Enhancer(build(), enhancer()._nets)
    low = picture(9, 6)
    enhanced = one(low)
    assert one.programs == 1
    # row by row attention of 8 channels, over 5 rows
    maps = one.explain(low)
    assert one.programs == 2
    texts = {costly: program.as_text() for (_, costly, *_), program in one._compiled.items()}
    assert {costly: "f32[1,5,8,8]" in text for costly, text in texts.items()} == {
        False: False, True: True}
    np.testing.assert_array_equal(maps["enhanced"].clip(0, 1), enhanced)
    assert maps["reflectance"].shape == (5, 3, 3) and maps["illumination"].shape == (5, 3, 1)
    for name in ("reflectance", "illumination"):
        assert 0 < maps[name].min() and maps[name].max() < 1


def test_the_trajectory_is_drawn_as_a_strip():
    """Its frames side by side, without the padding."""
    changes = dict(model__unet_mult=(1, 1))  # sides are padded to 4 px
    one, low = enhancer(**changes), picture(9, 6)
    maps = one.explain(low)
    pixels, drawn = one.draw(low)
    assert sorted(drawn) == one.drawn() == ["illumination", "latent", "reflectance", "trajectory"]
    np.testing.assert_array_equal(pixels, one(low))
    frames = maps["trajectory"]
    assert frames.shape == (2, 5, 3, 3) and drawn["trajectory"].shape == (5, 6, 3)
    for i, frame in enumerate(frames):
        np.testing.assert_array_equal(drawn["trajectory"][:, 3 * i:3 * i + 3],
                                      np.rint(frame.clip(0, 1) * 255).astype(np.uint8))


# ---- conversion ----


def official(nets, model):
    """The networks under the official names, in torch's layout."""
    tensors = {}
    for name, (path, _) in model.official_keys().items():
        value = np.asarray(functools.reduce(lambda node, k: node[k], path.split("/"), nets))
        if value.ndim == 4 and "up_sampling" in name:
            value = value[::-1, ::-1].transpose(2, 3, 0, 1)
        elif value.ndim == 4:
            value = value.transpose(3, 2, 0, 1)
        tensors[name] = np.ascontiguousarray(value.T if value.ndim == 2 else value)
    return tensors


def test_official_files(tmp_path):
    """Both, as the official programs wrap them; what they pickle beside tensors is not run."""
    torch = pytest.importorskip("torch")
    model = build("", tiny=False)
    nets = jax.tree.map(lambda x: np.random.RandomState(x.size).uniform(size=x.shape).astype(
        np.float32), jax.eval_shape(model.init, KEY, {}))
    tensors = {name: torch.from_numpy(value) for name, value in official(nets, model).items()}
    assert len(tensors) == 480
    note = argparse.Namespace(resume="ckpt", data=argparse.Namespace(patch_size=512))
    torch.save({"step": 1, "epoch": 2, "params": note, "config": note, "optimizer": {},
                "ema_helper": {}, "state_dict": {
                    f"module.{name}": value for name, value in tensors.items()}},
               tmp_path / "stage2.pth.tar")
    torch.save({"model": {name.removeprefix("decom."): value for name, value in tensors.items()
                          if name.startswith("decom.")}}, tmp_path / "stage1.pth.tar")
    done = convert.convert("lightendiffusion", [str(tmp_path / "stage2.pth.tar")],
                           str(tmp_path / "both.safetensors"))
    assert done.presets == "" and set(done.nets) == {"autoencoder", "denoiser"}
    _, found = weights.load(tmp_path / "both.safetensors")[:2]
    assert jax.tree.structure(found) == jax.tree.structure(nets)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(nets), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    done = convert.convert("lightendiffusion", [str(tmp_path / "stage1.pth.tar")],
                           str(tmp_path / "one.safetensors"))
    assert (done.presets, done.nets) == ("autoencoder_only", ("autoencoder",))
    with pytest.raises(InputError, match="holds 'decom.*earlier file"):
        convert.convert("lightendiffusion", [str(tmp_path / f"stage{i}.pth.tar") for i in (2, 1)],
                        str(tmp_path / "twice.safetensors"))
