"""Retinex-Net: its own networks, phases and files, and the recorded outputs of both programs."""

import functools
import json
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lljax import config as configs
from lljax import convert, method, parallel, tensors
from lljax.checkpoint import load_nets
from lljax.data import pipeline
from lljax.errors import InputError
from lljax.inference import enhancer
from lljax.training import start
from lljax.training.loop import fit

KEY = jax.random.key(0)
PAIRS = ["pair_3_5", "pair_481_484"]


@pytest.fixture(autouse=True)
def highest_precision():
    """On a GPU TF32 would cost three digits; on a CPU this changes nothing."""
    with jax.default_matmul_precision("highest"):
        yield


@functools.cache
def build(presets="", **model):
    config = configs.default("retinexnet", presets)
    with config.unlocked():
        config.model.update(model)
    return method.load(config)


def ramp(h, w):
    c, i, j = np.meshgrid(np.arange(3), np.arange(h), np.arange(w), indexing="ij")
    picture = 0.02 + 0.38 * ((3 * i + 5 * j + 7 * c) % 64) / 63
    return jnp.asarray(picture.transpose(1, 2, 0)[None], jnp.float32)


def named(model, values):
    """Networks from official names -> arrays."""
    nets = {}
    for name, (path, transform) in model.official_keys().items():
        net, _, layer, leaf = path.split("/")
        params = nets.setdefault(net, {"params": {}})["params"]
        params.setdefault(layer, {})[leaf] = jnp.asarray(transform(values[name]), jnp.float32)
    return nets


def formula(shapes):
    """Weights by the rule of the recorded outputs: crc32 of the name seeds them."""
    values = {}
    for name, shape in shapes.items():
        z = np.random.RandomState(zlib.crc32(name.encode()) % 2**31).standard_normal(shape)
        values[name] = z * (2 / np.prod(shape[:-1])) ** 0.5 if len(shape) > 1 else 0.1 * z
    return values


def tensorflow_shapes():
    widths = [(3, 4, 64)] + [(3, 64, 64)] * 6 + [(1, 192, 64), (3, 64, 1)]
    shapes = {}
    for i, (side, channels, features) in enumerate(widths):
        name = "RelightNet/conv2d" + (f"_{i}" if i else "")
        shapes |= {f"{name}/kernel": (side, side, channels, features), f"{name}/bias": (features,)}
    return shapes


@functools.cache
def official(folder, origin):
    """Model and networks: the TensorFlow program, or the port with "zero" or "replicate"."""
    weights = folder / "data/weights"
    if origin == "tensorflow":
        model = build()
        values = tensors.read(str(weights / "retinexnet_tf/Decom/RetinexNet-tensorflow.index"))
        unused = model.official_unused(values)
        values = {k: v for k, v in values.items() if k not in unused}
        return model, named(model, values | formula(tensorflow_shapes()))
    pytest.importorskip("torch", reason="the port's weights are PyTorch files")
    model = build("torch_port", padding=origin)
    values = {}
    for part in ("Decom", "Relight"):
        values |= tensors.read(str(weights / f"retinexnet_torch/{part}/9200.tar"))
    return model, named(model, values)


def recorded(shared, origin, picture):
    kind = "tf" if origin == "tensorflow" else "torch_" + origin.replace("zero", "zeros")
    return np.load(shared / f"reference/retinexnet_{kind}_{picture}.npz")


# ---- recorded outputs ----


@pytest.mark.parametrize("origin", ["tensorflow", "zero", "replicate"])
@pytest.mark.parametrize("picture", ["lol1", *PAIRS])
def test_maps_and_pictures(shared, origin, picture):
    model, nets = official(shared, origin)
    reference = recorded(shared, origin, picture)
    maps = model.explain(nets, reference["input_low"], KEY)
    for ours, theirs in (("reflectance", "R_low"), ("illumination", "I_low"),
                         ("adjusted_illumination", "I_delta"), ("enhanced", "S")):
        limit = 2e-5
        if origin == "tensorflow" and theirs in ("I_delta", "S"):  # formula weights: large values
            limit = 1e-4 * np.abs(reference[theirs]).max()
        error = np.abs(np.asarray(maps[ours]) - reference[theirs]).max()
        print(f"{origin} {picture} {theirs}: max abs {error:.1e}")
        assert error < limit


NAMES = {"reconstruction_low": "recon_loss_low", "reconstruction_high": "recon_loss_high",
         "mutual_low": "recon_loss_mutal_low", "mutual_high": "recon_loss_mutal_high",
         "reflectance": "equal_R_loss", "enhancement": "relight_loss",
         "smoothness_low": "Ismooth_loss_low", "smoothness_high": "Ismooth_loss_high",
         "smoothness_enhanced": "Ismooth_loss_delta", "total/decom": "loss_Decom",
         "total/relight": "loss_Relight"}


@functools.cache
def objective(model, net, differentiate):
    """(total, terms) of a phase's own objective, compiled; with the gradient for the network."""
    def total(params, nets, batch):
        terms = model.terms({**nets, net: {"params": params}}, batch, (net,))
        terms = {name: value.mean() for name, value in terms.items()}
        return sum(model.weights()[name] * value for name, value in terms.items()), terms

    return jax.jit(jax.value_and_grad(total, has_aux=True) if differentiate else total)


def check_terms(terms, value, net, reference):
    for name, ours in {**terms, f"total/{net}": value}.items():
        np.testing.assert_allclose(ours, reference["loss__" + NAMES[name]], rtol=2e-5,
                                   err_msg=name)


def pictures(reference):
    return {"low": jnp.asarray(reference["input_low"]), "high": jnp.asarray(
        reference["input_high"])}


@pytest.mark.parametrize("origin", ["tensorflow", "zero", "replicate"])
def test_terms(shared, origin):
    """End to end from the pictures, through the training step's own objective."""
    model, nets = official(shared, origin)
    reference = recorded(shared, origin, "pair_481_484")
    for net in ("decom", "relight"):
        value, terms = objective(model, net, False)(nets[net]["params"], nets, pictures(reference))
        check_terms(terms, value, net, reference)


@pytest.mark.parametrize("origin", ["tensorflow", "zero", "replicate"])
def test_terms_and_gradients(shared, origin):
    """The same on another picture, with the gradients that were recorded."""
    model, nets = official(shared, origin)
    reference = recorded(shared, origin, "pair_3_5")
    checked = set()
    for net, word in (("decom", "Decom"), ("relight", "Relight")):
        (value, terms), gradient = objective(model, net, True)(
            nets[net]["params"], nets, pictures(reference))
        check_terms(terms, value, net, reference)
        for theirs, (path, transform) in model.official_keys().items():
            key = f"grad{word}__" + theirs.replace("/", ".")
            if origin != "tensorflow":
                key = key.replace(".", "_")
            if key not in reference:
                continue
            _, _, layer, leaf = path.split("/")
            expected = transform(reference[key])
            error = (np.linalg.norm(gradient[layer][leaf] - expected) / np.linalg.norm(expected))
            print(f"{origin} {key}: relative L2 {error:.1e}")
            assert error < 3e-3, key
            checked.add(key)
    assert len(checked) == sum(name.startswith("grad") for name in reference.files) >= 5


def test_official_numbers(shared):
    """Numbers of the official weights on the ramp picture, noted from both programs."""
    model, nets = official(shared, "tensorflow")
    maps = model.explain(nets, ramp(48, 64), KEY)
    np.testing.assert_allclose(maps["reflectance"].mean(), 0.4344878, atol=1e-6)
    np.testing.assert_allclose(maps["illumination"].mean(), 0.4770193, atol=1e-6)
    np.testing.assert_allclose(maps["reflectance"][0, 10, 20], [0.0800, 0.1181, 0.2168], atol=6e-5)
    for origin, size, expected in (
            ("zero", (48, 64), (.5694218, .3600674, .9661445, .5498438)),
            ("zero", (45, 61), (.5696981, .3598760, .9543264, .5429124)),
            ("replicate", (48, 64), (.5633502, .3651595, .9674914, .5446658))):
        model, nets = official(shared, origin)
        maps = model.explain(nets, ramp(*size), KEY)
        np.testing.assert_allclose(
            [maps[name].mean() for name in ("reflectance", "illumination", "adjusted_illumination",
                                            "enhanced")], expected, atol=2e-6)
    np.testing.assert_allclose(maps["enhanced"][0, 0, 0], [.3183627, .5470564, .7710503], atol=1e-5)


@pytest.mark.parametrize("size, mean, std, corner", [
    ((48, 64), -.0060639, .2160287, .3359640), ((45, 61), .0044788, .1937411, .1624930)])
def test_additive_relight_network(size, mean, std, corner):
    """The official Enhance-Net on weights by a formula, noted from a run of it."""
    widths = [(3, 4, 64)] + [(3, 64, 64)] * 6 + [(1, 192, 64), (3, 64, 1)]
    layers = ["conv0", "conv1", "conv2", "conv3", "deconv1", "deconv2", "deconv3", "fusion",
              "output"]
    params = {}
    for i, ((side, channels, features), layer) in enumerate(zip(widths, layers, strict=True)):
        random = np.random.RandomState(2000 + i)
        kernel = random.standard_normal((features, channels, side, side))
        kernel = kernel * (1.5 / (channels * side * side)) ** 0.5
        params[layer] = {"kernel": jnp.asarray(kernel.transpose(2, 3, 1, 0), jnp.float32),
                         "bias": jnp.asarray(random.standard_normal(features) * 0.05, jnp.float32)}
    x = ramp(*size)
    out = build().relight.apply({"params": params}, x, x.max(-1, keepdims=True))
    np.testing.assert_allclose([out.mean(), out.std(ddof=1), out[0, 0, 0, 0]], [mean, std, corner],
                               atol=2e-6)


# ---- ways of training ----


def noise(*shape, seed=0):
    return jnp.asarray(np.random.RandomState(seed).uniform(size=shape), jnp.float32)


def batch(side=16):
    count = jax.local_device_count()
    return {"low": 0.3 * noise(count, side, side, 3), "high": noise(count, side, side, 3, seed=1),
            "mask": jnp.ones(count), "key": jax.random.split(KEY, count)}


def test_end_to_end_reaches_decom_through_the_enhanced_picture():
    """Together, the enhancement loss alone moves Decom-Net; in phases it never does."""
    model = build("joint")
    nets = model.init(KEY, batch())
    only = {name: np.float32(name == "enhancement") for name in model.weights()}
    state = parallel.place(model.start_phase(jax.tree.map(jnp.copy, nets), 0, "joint"))
    step = parallel.pmap(functools.partial(model.train_step, phase="joint"))
    state, scalars = step(state, parallel.split(batch()), only)
    assert scalars["grad_norm/decom"] > 0 and scalars["grad_norm/relight"] > 0
    np.testing.assert_allclose(scalars["total/decom+relight"], scalars["loss/enhancement"])


def test_illumination_of_one_gives_the_reflectance():
    model = build("decom_only")
    nets = model.init(KEY, batch())
    assert set(nets) == {"decom"}
    maps = model.explain(nets, batch()["low"], KEY)
    np.testing.assert_array_equal(maps["enhanced"], maps["reflectance"])


def test_phases_and_what_they_build_on():
    model = build("finetune")
    assert [model.nets_of(phase) for phase in model.config.phases] == [
        ("decom",), ("relight",), ("decom", "relight")]
    assert [model.needs(phase) for phase in (*model.config.phases, "joint")] == [
        (), ("decom",), ("decom", "relight"), ()]
    sgd = model.config.phase.finetune.optim
    assert {sgd.decom.name, sgd.relight.name} == {"sgd"}


@pytest.mark.parametrize("preset, upsampling, phases, adjust", [
    ("notes_resize", "resize", ("decom", "relight"), "relight"),
    ("notes_transposed", "transposed", ("decom", "relight"), "relight"),
    ("notes_joint", "resize", ("joint",), "relight"),
    ("notes_no_enhance", "resize", ("decom",), "ones")])
def test_runs_of_the_notes(preset, upsampling, phases, adjust):
    config = configs.default("retinexnet", preset)
    assert (config.model.upsampling, tuple(config.phases), config.model.adjust) == (
        upsampling, phases, adjust)
    for phase in phases:
        assert config.phase[phase].steps == 200 * 92
        for net in config.phase[phase].optim.values():
            assert (net.lr, net.schedule) == (1e-4, "constant")


def test_presets_of_others():
    default = configs.default("retinexnet")
    assert configs.differences(default, configs.default("retinexnet", "official_code")) == []
    paper = configs.default("retinexnet", "paper")
    assert (paper.data.crop, paper.loss.reflectance.weight, tuple(paper.phases)) == (
        96, 0.001, ("decom", "relight", "finetune"))
    plateau = configs.default("retinexnet", "plateau")
    assert plateau.phase.decom.optim.decom.schedule == "plateau"
    method.load(plateau).optimizer("decom", "decom")


@pytest.mark.parametrize("knob, value", [
    ("upsampling", "nearest"), ("skips", "sum"), ("padding", "reflect"), ("origin", "keras"),
    ("adjust", "one"), ("width", 0), ("depth", 0)])
def test_impossible_choices_are_refused(knob, value):
    config = configs.default("retinexnet")
    config.model[knob] = value
    with pytest.raises(InputError, match=f"model.{knob}"):
        method.load(config)


def test_data_without_references_is_refused():
    model = build()
    with pytest.raises(InputError, match="no references.*source=pairs"):
        model.terms(model.init(KEY, batch()), {"low": batch()["low"]}, ("decom",))


def test_unpaired_data_is_refused():
    for presets in ("", "joint", "finetune", "relight_only"):
        model = method.load(configs.default("retinexnet", presets))
        model.config.data.source = "unpaired"  # without folders the demo set serves
        data = pipeline.Data(model.config.data)
        with pytest.raises(InputError, match="of one scene.*source=unpaired.*source=pairs"):
            start.check_pairs(model.config, model, model.config.phases, data.unpaired)
        model.config.data.source = "demo"
        start.check_pairs(model.config, model, model.config.phases,
                          pipeline.Data(model.config.data).unpaired)


# ---- official files ----


@pytest.mark.parametrize("files, variant, nets", [
    (("retinexnet_torch/Decom/9200.tar", "retinexnet_torch/Relight/9200.tar"), "torch_port",
     {"decom", "relight"}),
    (("retinexnet_tf/Decom/RetinexNet-tensorflow.index",), "official_code,released,decom_only",
     {"decom"}),
])
def test_files_are_recognised(shared, tmp_path, files, variant, nets):
    """The variant, and with it the padding, is in the file: the user cannot get it wrong."""
    if "torch_port" in variant:
        pytest.importorskip("torch", reason="the port's weights are PyTorch files")
    out = tmp_path / "rn.safetensors"
    done = convert.convert("retinexnet", [str(shared / "data/weights" / f) for f in files],
                           str(out))
    assert (done.presets, done.recognised, set(done.nets)) == (variant, True, nets)
    enhance = enhancer.load(out)
    model = enhance.method.config.model
    assert model.padding == "zero"
    assert model.origin == ("torch" if "torch_port" in variant else "tensorflow")
    assert enhance(np.full((21, 34, 3), 40, np.uint8)).shape == (21, 34, 3)


def test_one_file_of_two_names_what_is_missing(shared, tmp_path):
    pytest.importorskip("torch", reason="the port's weights are PyTorch files")
    path = shared / "data/weights/retinexnet_torch/Relight/9200.tar"
    with pytest.raises(InputError, match="net1_conv0"):
        convert.convert("retinexnet", [str(path)], str(tmp_path / "rn.safetensors"))


# ---- wrong turns ----


def train(workdir, presets, **changes):
    config = configs.default("retinexnet", f"{presets},smoke")
    config.data.crop, config.log.samples = 16, 0
    for name, value in changes.items():
        node = functools.reduce(lambda node, key: node[key], name.split("__")[:-1], config)
        node[name.split("__")[-1]] = value
    return fit(config, str(workdir))


@pytest.fixture(scope="module")
def decom_run(tmp_path_factory):
    """A tiny training of Decom-Net alone."""
    workdir = tmp_path_factory.mktemp("decom") / "run"
    train(workdir, "decom_only")
    return workdir


def test_enhance_net_alone_needs_a_decom_net(decom_run, tmp_path, capsys):
    with pytest.raises(InputError, match="'relight' builds on.*'decom'.*config.init.decom"):
        train(tmp_path / "none", "relight_only")
    state = train(tmp_path / "one", "relight_only", init__decom=str(decom_run))
    ours = load_nets(str(decom_run))[1]["decom"]["params"]["conv0"]["kernel"]
    np.testing.assert_array_equal(state.nets["decom"]["params"]["conv0"]["kernel"], ours)
    assert set(state.opt) == {"relight"}


def test_networks_of_another_variant_are_named(decom_run, tmp_path, capsys):
    with pytest.raises(InputError, match="init.decom.*another variant.*model.width: 64 -> 32"):
        train(tmp_path / "width", "relight_only", init__decom=str(decom_run), model__width=32)
    train(tmp_path / "border", "relight_only,replicate", init__decom=str(decom_run))
    assert "trained with another config: " in (out := capsys.readouterr().out)
    assert "model.padding: zero -> replicate" in out
    with pytest.raises(InputError, match=r"does not fit.*\(9, 9, 4, 64\).*model.width: 64 -> 32"):
        train(decom_run, "decom_only", model__width=32)


def test_a_finished_run_says_what_had_no_effect(decom_run, tmp_path, capsys):
    train(decom_run, "decom_only", loss__mutual_low__weight=0.5)
    assert "without effect, changed since the checkpoint: loss.mutual_low.weight" in (
        capsys.readouterr().out)
    with pytest.raises(InputError, match="config.resume.*is finished"):
        train(tmp_path / "new", "decom_only", resume=str(decom_run))


def test_a_plateau_lowers_the_rate_that_is_logged(tmp_path):
    train(tmp_path / "run", "decom_only,plateau", phase__decom__steps=6,
          **{f"phase__decom__optim__decom__{knob}": value for knob, value in (
              ("window", 1), ("patience", 1), ("factor", 0.5), ("lr", 0.5))})
    rows = [json.loads(text) for text in (tmp_path / "run" / "metrics.jsonl").open()]
    rates = [row["lr/decom"] for row in rows]
    assert rates[0] == 0.5 and rates[-1] < 0.5 and sorted(rates, reverse=True) == rates


def test_enhance_net_cannot_be_trained_where_there_is_none():
    with pytest.raises(InputError, match="'joint' trains Enhance-Net.*adjust=ones"):
        method.load(configs.default("retinexnet", "decom_only,joint"))
