"""EnlightenGAN against recorded outputs of the official program, and against known numbers."""

import functools
import json
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lljax import config as configs
from lljax import layers, losses, method, parallel
from tests.parity import close, close_l2

KEY = jax.random.key(0)
CORNERS = {"acT": True, "acF": False}  # how the up-sampling was meant
PREFIX = {"generator": "", "global_disc": "D_A.", "local_disc": "D_P."}


@pytest.fixture(autouse=True)
def highest_precision():
    """On a GPU TF32 would cost three digits; on a CPU this changes nothing."""
    with jax.default_matmul_precision("highest"):
        yield


@functools.cache
def build(**model):
    """The method, its features enabled (their weights are put in by hand)."""
    config = configs.default("enlightengan", "official")
    config.model.update(model)
    return method.load(config)


@functools.cache
def shapes(folder):
    return json.loads((folder / "reference/state_dict_shapes.json").read_text())


def formula(names, gain=2.0):
    """Weights by the rule of the recorded outputs: crc32 of the name seeds them."""
    values = {}
    for name, shape in names.items():
        z = np.random.RandomState(zlib.crc32(name.encode()) % 2**31).standard_normal(shape)
        if name.endswith("running_mean"):
            z = 0.1 * z
        elif name.endswith("running_var"):
            z = 1 + 0.1 * np.abs(z)
        elif len(shape) > 1:
            z = z * (gain / np.prod(shape[1:])) ** 0.5
        else:
            z = 0.1 * z if name.endswith("bias") else 1 + 0.1 * z
        values[name] = z.astype(np.float32)
    return values


def ordered(names):
    """Weights by the rule of the known numbers: the place in the sorted list seeds them."""
    values = {}
    for k, (name, shape) in enumerate(sorted(names.items())):
        z = np.random.RandomState(1000 + k).standard_normal(shape)
        if name.endswith("running_mean"):
            z = 0.1 * z
        elif name.endswith("running_var"):
            z = 1 + 0.5 * np.abs(z)
        elif len(shape) > 1:
            z = z * (1.5 / np.prod(shape[1:])) ** 0.5
        else:
            z = 1 + 0.1 * z if name.endswith("weight") else 0.05 * z
        values[name] = z.astype(np.float32)
    return values


def networks(shared, rule):
    """Every network with weights by a rule for the official names."""
    nets = {}
    keys = build().official_keys()
    tables = {"generator": "G", "global_disc": "D_A", "local_disc": "D_P"}
    for net, table in tables.items():
        names = {name: shape for name, shape in shapes(shared)[f"enlightengan_{table}"].items()
                 if not name.endswith("num_batches_tracked")}
        for name, value in rule(names).items():
            path, transform = keys[PREFIX[net] + name]
            node = nets
            *folders, leaf = path.split("/")
            for folder in folders:
                node = node.setdefault(folder, {})
            node[leaf] = jnp.asarray(transform(value))
    vgg = rule(shapes(shared)["enlightengan_VGG16"])
    nets["vgg16"] = {"params": {
        name: {"kernel": jnp.asarray(layers.kernel_from_torch(vgg[f"{name}.weight"])),
               "bias": jnp.asarray(vgg[f"{name}.bias"])} for name in layers.VGG16_CONVS}}
    return nets


@functools.cache
def formula_networks(shared):
    return networks(shared, formula)


def alone(function, *inputs):
    """Runs what is meant for a mapped step on one device; its results as they are."""
    mapped = jax.vmap(function, axis_name=parallel.AXIS)
    batched = jax.tree.map(lambda x: jnp.asarray(x)[None], inputs)
    return jax.tree.map(lambda x: x[0], jax.jit(mapped)(*batched))


# ---- recorded outputs ----


@pytest.mark.parametrize("corners", CORNERS)
@pytest.mark.parametrize("file", ["odd", "odd2"])
def test_enhanced_pictures(shared, file, corners):
    reference = np.load(shared / f"reference/enlightengan_G_eval_{file}.npz")
    model = build(align_corners=CORNERS[corners])
    maps = jax.jit(model.explain)(formula_networks(shared), reference["input_01"], KEY)
    close("attention", maps["attention"], reference["attention"], atol=1e-6)
    close("latent", maps["latent"], reference[f"latent_eval_{corners}"], atol=1e-4)
    close("output", 2 * maps["enhanced"] - 1, reference[f"output_eval_{corners}"], atol=1e-4)
    if corners == "acT":
        uint8 = (np.asarray(maps["enhanced"]).clip(0, 1) * 255).astype(np.uint8)
        assert np.abs(uint8.astype(int) - reference["saved_uint8_acT"]).max() <= 1


def test_activations(shared):
    reference = np.load(shared / "reference/enlightengan_G_eval_odd.npz")
    model = build(align_corners=True)
    _, seen = model.generator.apply(
        formula_networks(shared)["generator"], reference["input"], reference["attention"],
        capture_intermediates=lambda module, _: isinstance(module, layers.BatchNorm | layers.Conv))
    seen, checked = seen["intermediates"], 0
    for key in reference.files:
        if not key.startswith("mid_acT__"):
            continue
        layer = key.removeprefix("mid_acT__").removesuffix("_ch0_7")
        if layer == "deconv5":
            node = seen["level6"]["deconv"]
        else:
            node = seen[f"level{layer[2]}"][f"block{layer[4]}"]["bn"]
        close(layer, node["__call__"][0][..., :8], reference[key], atol=1e-4)
        checked += 1
    assert checked == 6


def test_vgg_features_and_their_loss(shared):
    reference = np.load(shared / "reference/enlightengan_vgg.npz")
    model, nets = build(align_corners=True), formula_networks(shared)
    close("scaled", layers.caffe_scale(reference["input"]), reference["preprocessed"], atol=1e-4)
    features = model.features(nets, jnp.asarray(reference["input"]))
    assert features.shape == (2, 12, 12, 512)  # pool4 is left out
    close("relu5_1", features[..., :64], reference["relu5_1_ch0_63"], atol=6e-4)
    close("means", features.mean((1, 2)), reference["relu5_1_channel_mean"], atol=6e-4)
    close("normalised", layers.instance_norm(features)[..., :64],
          reference["relu5_1_instnorm_ch0_63"], atol=1e-3)
    other = model.features(nets, jnp.asarray(reference["input_other"]))
    close("loss", losses.self_feature(other, features).mean(),
          reference["vgg_loss_other_vs_input"], rtol=1e-4)


@functools.cache
def training(shared, corners):
    """(model, networks, recorded arrays, the batch as the step has it after its draws)."""
    reference = np.load(shared / f"reference/enlightengan_train_{corners}.npz")
    low = jnp.asarray(reference["real_A"] + 1) / 2
    rows_columns = np.asarray(reference["patch_offsets_wh"])[:, ::-1]
    batch = {"low": low, "high": jnp.asarray(reference["real_B"] + 1) / 2, "mask": jnp.ones(2),
             "dark": jnp.asarray(reference["input_img"] + 1) / 2,
             "fake": jnp.asarray(reference["fake_B"]),
             "offsets": jnp.asarray(np.broadcast_to(rows_columns, (2, 6, 2)))}
    return build(align_corners=CORNERS[corners]), formula_networks(shared), reference, batch


@pytest.mark.parametrize("corners", CORNERS)
def test_training_forward_and_running_statistics(shared, corners):
    model, nets, reference, batch = training(shared, corners)
    np.testing.assert_allclose(batch["dark"], batch["low"] / 2.5, atol=1e-6)
    fake, stats = alone(model.fake, nets["generator"], batch["dark"])
    close("fake_B", fake, reference["fake_B"], atol=2e-3)
    close("latent", fake - reference["input_img"], reference["latent"], atol=2e-3)
    for layer, level in (("1_1", "level1"), ("5_1", "level5")):
        for ours, theirs in (("mean", "running_mean"), ("var", "running_var")):
            close(f"bn{layer} {theirs}", stats[level]["block1"]["bn"][ours],
                  reference[f"after_fwd__bn{layer}_{theirs}"], atol=1e-5)


@pytest.mark.parametrize("corners", CORNERS)
def test_generator_terms_and_their_gradient(shared, corners):
    """From the stored pictures of the generator, as their gradient's leaf."""
    model, nets, reference, batch = training(shared, corners)

    def total(fake, nets, batch):
        terms = {k: v.mean() for k, v in model.generator_terms(nets, fake, batch).items()}
        return sum(terms.values()), terms

    (value, terms), gradient = alone(jax.value_and_grad(total, has_aux=True), batch["fake"], nets,
                                     batch)
    expected = {"adversarial_global": reference["loss__G_global"],
                "adversarial_local": reference["loss__G_patch_each"].mean(),
                "feature_global": reference["loss__vgg_global"],
                "feature_local": reference["loss__vgg_patch_each"].mean()}
    assert terms.keys() == expected.keys()
    for name, term in terms.items():
        close(name, term, expected[name], rtol=1e-4)
    close("adversarial", terms["adversarial_global"] + terms["adversarial_local"],
          reference["loss__G_A_total"], rtol=1e-4)
    close("total", value, reference["loss__G"], rtol=1e-4)
    close_l2("grad_fake_B", gradient, reference["grad_fake_B"], limit=2e-2)


def test_generator_gradient(shared):
    """The stored gradient of the pictures, carried back to the parameters."""
    model, nets, reference, batch = training(shared, "acT")

    def pull(net, dark, cotangent):
        def picture(params):
            return model.fake({**net, "params": params}, dark)[0]
        return jax.vjp(picture, net["params"])[1](cotangent)[0]

    gradient = alone(pull, nets["generator"], batch["dark"], reference["grad_fake_B"])
    keys, checked = model.official_keys(), 0
    for key in reference.files:
        if key.startswith("gradG__"):
            layer, leaf = key.removeprefix("gradG__").rsplit("_", 1)
            path, transform = keys[f"{layer}.{leaf}"]
            ours = functools.reduce(lambda node, k: node[k], path.split("/")[2:], gradient)
            limit = {"conv10": 1e-3, "conv9_2": 1e-2}.get(layer, 1e-1)
            close_l2(key, ours, transform(reference[key]), limit)
            checked += 1
    assert checked == 7


def test_discriminator_terms_and_gradients(shared):
    model, nets, reference, batch = training(shared, "acT")
    keys = model.official_keys()
    for side, net, letter in (("global", "global_disc", "A"), ("local", "local_disc", "P")):
        def total(params, batch, side=side, net=net):
            terms, scores = model.disc_terms({net: params}, batch, side)
            return terms[f"disc_{side}"].mean(), scores

        (value, scores), gradient = alone(jax.value_and_grad(total, has_aux=True),
                                          nets[net]["params"], batch)
        close(f"disc_{side}", value, reference[f"loss__D_{letter}"], rtol=1e-4)
        if side == "global":
            for kind in ("fake", "real"):
                close(f"score {kind}", scores[f"global_{kind}"],
                      reference[f"D_A_{kind}"].mean((1, 2, 3)), atol=1e-4)
        checked = 0
        for key in reference.files:
            if key.startswith(f"gradD{letter}__"):
                _, number, leaf = key.removeprefix(f"gradD{letter}__").split("_")
                path, transform = keys[f"{PREFIX[net]}model.{number}.{leaf}"]
                _, _, conv, leaf = path.split("/")
                if (side, leaf) == ("global", "bias"):  # exactly 0; the official one is rounding
                    np.testing.assert_array_equal(gradient[conv][leaf], 0)
                    close(key, reference[key], 0, atol=1e-6)
                else:
                    close_l2(key, gradient[conv][leaf], transform(reference[key]), limit=1e-2)
                checked += 1
        assert checked == 2


def test_score_maps(shared):
    model, nets, reference, batch = training(shared, "acT")
    offsets = batch["offsets"][:, :1]
    for kind, images in (("fake", batch["fake"]), ("real", 2 * batch["high"] - 1)):
        scores = model.discs["global_disc"].apply(nets["global_disc"], images)
        close(f"D_A {kind}", scores, reference[f"D_A_{kind}"], atol=1e-4)
        y, x = np.asarray(offsets[0, 0])
        scores = model.discs["local_disc"].apply(nets["local_disc"],
                                                 images[:, y:y + 32, x:x + 32])
        close(f"D_P {kind}", scores, reference[f"D_P_{kind}_patch0"], atol=1e-4)


def test_end_to_end_losses(shared):
    """From the pictures, through the generator, to every term."""
    model, nets, reference, batch = training(shared, "acT")

    def everything(nets, batch):
        fake, _ = model.fake(nets["generator"], batch["dark"])
        terms = model.generator_terms(nets, fake, batch)
        for side, net in (("global", "global_disc"), ("local", "local_disc")):
            terms |= model.disc_terms({net: nets[net]["params"]}, {**batch, "fake": fake}, side)[0]
        return {name: value.mean() for name, value in terms.items()}

    terms = alone(everything, nets, batch)
    for name, key in (("adversarial_global", "G_global"), ("feature_global", "vgg_global"),
                      ("disc_global", "D_A"), ("disc_local", "D_P")):
        close(name, terms[name], reference[f"loss__{key}"], rtol=1e-3)
    for name, key in (("adversarial_local", "G_patch_each"), ("feature_local", "vgg_patch_each")):
        close(name, terms[name], reference[f"loss__{key}"].mean(), rtol=1e-3)


# ---- known numbers ----


def ramp(h, w):
    c, i, j = np.meshgrid(np.arange(3), np.arange(h), np.arange(w), indexing="ij")
    picture = 0.02 + 0.38 * ((3 * i + 5 * j + 7 * c) % 64) / 63
    return jnp.asarray(picture.transpose(1, 2, 0)[None], jnp.float32)


def test_known_numbers(shared):
    """Noted from runs of the official program with weights by another rule."""
    nets = networks(shared, ordered)
    for corners, mean, std, first in ((True, -.5445246, .2868978, -1.2227740),
                                      (False, -.5434675, .2872433, -1.2188296)):
        maps = jax.jit(build(align_corners=corners).explain)(nets, ramp(50, 70), KEY)
        out = 2 * maps["enhanced"] - 1
        close("output", [out.mean(), out.std(ddof=1), out[0, 0, 0, 0]], [mean, std, first],
              atol=2e-5)
        if corners:
            latent, attention = maps["latent"], maps["attention"]
            close("maps", [latent.mean(), latent.std(ddof=1), attention.mean()],
                  [.0358545, .1948770, .7902878], atol=2e-5)
    discs = build().discs
    for net, side, expected in (("global_disc", 64, (.0440858, .0798489, .0878931)),
                                ("local_disc", 32, (-.0132270, .1092284, .1207475))):
        scores = discs[net].apply(nets[net], 2 * ramp(side, side) - 1)
        assert scores.shape == (1, 5, 5, 1)
        close(net, [scores.mean(), scores.std(ddof=1), scores[0, 0, 0, 0]], expected, atol=2e-6)
    x = 2 * ramp(64, 64) - 1
    value = losses.self_feature(*(build().features(nets, y) for y in (x, x[:, :, ::-1])))
    close("self feature", value, [.2348658], rtol=1e-4)


def test_map_sizes():
    """320 px and 32 px patches, as the official program trains."""
    discs = build().discs
    for net, side, out in (("global_disc", 320, 13), ("local_disc", 32, 5)):
        variables = jax.eval_shape(discs[net].init, KEY, jnp.zeros((1, 32, 32, 3)))
        assert jax.eval_shape(discs[net].apply, variables,
                              jnp.zeros((1, side, side, 3))).shape == (1, out, out, 1)
