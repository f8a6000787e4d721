"""LightenDiffusion against recorded outputs of the official program, and against known numbers."""

import functools
import json
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lljax import config as configs
from lljax import diffusion, images, method
from tests.parity import close, close_l2

KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def highest_precision():
    """On a GPU TF32 would cost three digits; on a CPU this changes nothing."""
    with jax.default_matmul_precision("highest"):
        yield


@functools.cache
def build():
    return method.load(configs.default("lightendiffusion"))


@functools.cache
def read(shared, name):
    return dict(np.load(shared / f"reference/lightendiffusion_{name}.npz"))


def formula(names):
    """Weights by the rule of the recorded outputs: crc32 of the name seeds them."""
    values = {}
    for name, shape in names.items():
        z = np.random.RandomState(zlib.crc32(name.encode()) % 2**31).standard_normal(shape)
        if len(shape) > 1:
            z = z * (1 / np.prod(shape[1:])) ** 0.5
        else:
            z = 0.1 * z if name.endswith("bias") else 1 + 0.1 * z
        values[name] = z.astype(np.float32)
    return values


def ordered(names):
    """Weights by the rule of the known numbers: the place in a network's sorted list seeds them."""
    values = {}
    for prefix in ("Unet.", "decom."):
        for k, name in enumerate(sorted(name for name in names if name.startswith(prefix))):
            z = np.random.RandomState(1000 + k).standard_normal(names[name])
            if z.ndim > 1:
                z = z * (1.5 / np.prod(z.shape[1:])) ** 0.5
            else:
                z = 1 + 0.1 * z if name.endswith("weight") else 0.05 * z
            values[name] = z.astype(np.float32)
    return values


def networks(rule, last=1.0):
    """Both networks with weights by a rule for the official names; `last` scales the denoiser's
    last layer."""
    nets, keys = {}, build().official_keys()
    values = rule(official_shapes())
    for name, (path, transform) in keys.items():
        value = values[name] * np.float32(last) if "Unet.conv_out" in name else values[name]
        *folders, leaf = path.split("/")
        node = nets
        for folder in folders:
            node = node.setdefault(folder, {})
        node[leaf] = jnp.asarray(transform(value))
    return nets


@functools.cache
def official_shapes():
    """The official names with torch's shapes, found by undoing what conversion does."""
    model = build()
    ours = {"/".join(key.key for key in path): leaf.shape for path, leaf in
            jax.tree_util.tree_leaves_with_path(jax.eval_shape(model.init, KEY, {}))}
    shapes = {}
    for name, (path, _) in model.official_keys().items():
        shape = ours[path]
        if len(shape) == 4:
            h, w, i, o = shape
            shape = (i, o, h, w) if "up_sampling" in name else (o, i, h, w)
        shapes[name] = shape[::-1] if len(shape) == 2 else shape
    return shapes


@functools.cache
def formula_networks(last=1.0):
    return networks(formula, last)


def noise_in(model, nets, condition_pm1, x, t):
    return jax.jit(model.denoiser.apply)(nets["denoiser"], condition_pm1, x, jnp.asarray(t))


@jax.jit
def encode(nets, image):
    return build().encode(nets, image)


@jax.jit
def decompose(nets, latent):
    return build().autoencoder.apply(nets["autoencoder"], latent, method="decompose")


# ---- recorded outputs ----


def test_names_and_shapes(shared):
    theirs = json.loads((shared / "reference/state_dict_shapes.json").read_text())
    theirs = theirs["lightendiffusion_Net"]
    assert {name: tuple(shape) for name, shape in theirs.items()} == official_shapes()


def test_schedule(shared):
    reference = read(shared, "schedule")
    betas = diffusion.linear_betas()
    np.testing.assert_array_equal(betas, reference["betas_float32"])
    close("alpha_bar", build().alpha_bars, reference["alpha_bar_from_minus1"][1:], rtol=1e-5)
    times, following = diffusion.ddim_times(1000, 20)
    assert sorted(times) == sorted(reference["seq_t"])
    assert sorted(following) == sorted(reference["seq_t_next"])
    close("embedding", diffusion.timestep_embedding(
        jnp.asarray(reference["timestep_embedding_t"]), 64),
        reference["timestep_embedding_64_for_t"], atol=2e-4)


def test_autoencoder_and_decomposition(shared):
    reference, model, nets = read(shared, "ctdn"), build(), formula_networks()
    for name in ("low", "high"):
        latent, skips = encode(nets, reference[f"input_{name}"])
        close("latent", latent, reference[f"{name}_fea"], atol=5e-5)
        r, l = decompose(nets, latent)
        close("reflectance", r, reference[f"{name}_R"], atol=5e-5)
        close("illumination", l, reference[f"{name}_L"][..., :1], atol=5e-5)
        if name == "low":
            for skip, key in zip(skips, ("down2_ch0_7", "down4_ch0_15", "down8"), strict=True):
                theirs = reference[f"pyramid_{key}"]
                close(key, skip[..., :theirs.shape[-1]], theirs, atol=5e-5)
            decoded = jax.jit(model.apply)(nets, reference["input_low"],
                                           {"latent": reference["pred_fea_in"]})
            close("picture", decoded, reference["pred_img"], atol=5e-5)


def test_denoiser(shared):
    reference, model, nets = read(shared, "unet"), build(), formula_networks()
    for t in (0, 450, 950):
        found = noise_in(model, nets, reference["cond"], reference["x_t"], [t])
        close(f"t {t}", found, reference[f"eps_t{t}"], atol=5e-5)
    both = reference["batch_input_cond_then_xt"]
    found = noise_in(model, nets, both[..., :3], both[..., 3:], reference["batch_t"])
    close("batch", found, reference["batch_eps"], atol=5e-5)


def test_sampling(shared):
    """Each step from the recorded one before it, and all of them in one go."""
    reference, model = read(shared, "sampling"), build()
    nets = formula_networks(float(reference["conv_out_scale"]))
    cond = jnp.asarray(reference["cond"])
    every = noise_in(model, nets, jnp.repeat(cond, 20, 0), reference["x_t_sequence"],
                     reference["t_sequence"])
    close("noise", every, reference["eps_sequence"], atol=5e-5)
    seen = []

    def recorded(x, t):
        seen.append(x)
        return jnp.asarray(reference["eps_sequence"])[(950 - t[0]) // 50][None]

    with jax.disable_jit():
        diffusion.ddim_sample(recorded, jnp.asarray(reference["init_noise"]), model.alpha_bars, 20)
    close("x_t", jnp.concatenate(seen), reference["x_t_sequence"], atol=5e-5)

    def run(low, noise):
        latent, _ = model.encode(nets, low)
        predict = functools.partial(model.denoiser.apply, nets["denoiser"], 2 * latent - 1)
        x, _ = diffusion.ddim_sample(predict, noise, model.alpha_bars, 20)
        latent = ((x + 1) / 2).clip(0, 1)
        return x, latent, model.apply(nets, low, {"latent": latent})

    x, latent, enhanced = jax.jit(run)(reference["input"], reference["init_noise"])
    close("sample", x, reference["final_sample"], atol=5e-5)
    close("latent", latent, reference["pred_fea"], atol=5e-5)
    close("picture", enhanced, reference["pred_x"], atol=5e-5)


def test_odd_sizes(shared, monkeypatch):
    """The whole of `enhance`, with the recorded noise in place of ours."""
    reference, model = read(shared, "restore_odd"), build()
    nets = formula_networks(float(reference["conv_out_scale"]))
    low = reference["input"][0]
    height, width = low.shape[:2]
    padded = images.pad(low, -height % 64, -width % 64)[None]
    close("condition", 2 * encode(nets, padded)[0] - 1, reference["cond"], atol=5e-5)
    monkeypatch.setattr(jax.random, "normal", lambda *_: jnp.asarray(reference["init_noise"][0]))
    maps = jax.jit(model.explain)(nets, padded, KEY)
    close("picture", images.crop(np.asarray(maps["enhanced"][0]), height, width),
          reference["pred_x"][0], atol=5e-5)
    assert maps["trajectory"].shape == (1, 20, 16, 16, 3)
    np.testing.assert_array_equal(maps["trajectory"][:, -1].clip(0, 1), maps["latent"])


@functools.cache
def stage_2():
    """(networks, batch) -> ({term: (value, gradient)}, what they are made of); compiled once."""
    model = build()

    def everything(nets, batch):
        def mean(params, term):
            return model.denoiser_terms(nets | {"denoiser": {"params": params}}, batch)[term].mean()

        found = {term: jax.value_and_grad(mean)(nets["denoiser"]["params"], term)
                 for term in ("noise", "consistency")}
        (dark, _), (bright, _) = (model.encode(nets, batch[name]) for name in ("low", "high"))
        (r, l), (_, l_high) = (model.autoencoder.apply(nets["autoencoder"], x, method="decompose")
                               for x in (dark, bright))
        noisy = diffusion.q_sample(2 * r * l_high - 1, batch["noise"],
                                   jnp.asarray(model.alpha_bars)[batch["t"]])
        predict = functools.partial(model.denoiser.apply, nets["denoiser"], 2 * dark - 1)
        x, _ = diffusion.ddim_sample(predict, batch["start"], model.alpha_bars, 20)
        return found, {"condition": 2 * dark - 1, "reference": r * l ** 0.2, "x_t": noisy,
                       "noise": predict(noisy, batch["t"]), "latent": ((x + 1) / 2).clip(0, 1)}

    return jax.jit(everything)


@pytest.mark.parametrize("name, gate", [("stage2", 2e-4), ("stage2_scaled", 5e-5)])
def test_stage_2(shared, name, gate):
    reference, model = read(shared, name), build()
    nets = formula_networks(float(reference["conv_out_scale"]))
    batch = {"low": reference["input_low"], "high": reference["input_high"],
             "t": reference["t_used"].astype(np.int32), "noise": reference["noise_e"],
             "start": reference["sampling_init_noise"]}

    found, latents = stage_2()(nets, batch)
    keys, checked = model.official_keys(), 0
    for term, theirs, weight, kind in (("noise", "noise", 1.0, "gradNoise"),
                                       ("consistency", "scc", 0.001, "gradScc")):
        value, gradient = found[term]
        close(term, weight * value, reference[f"loss__{theirs}"], rtol=1e-5)
        for key in reference:
            if key.startswith(f"{kind}__"):
                layer = next(name for name in keys
                             if name.replace(".", "_") == key.removeprefix(f"{kind}__"))
                path, transform = keys[layer]
                ours = functools.reduce(lambda node, k: node[k], path.split("/")[2:], gradient)
                theirs_ = transform(reference[key])
                close_l2(key, weight * ours[..., :theirs_.shape[-1]], theirs_, limit=1e-4)
                checked += 1
    assert checked == 10

    for name, theirs, atol in (("condition", "cond", 5e-5), ("reference", "reference_fea", 5e-5),
                               ("x_t", "x_t", 5e-5), ("noise", "noise_output", 5e-5),
                               ("latent", "pred_fea", gate)):
        close(name, latents[name], reference[theirs], atol=atol)


# ---- known numbers ----


def ramp(h, w):
    c, i, j = np.meshgrid(np.arange(3), np.arange(h), np.arange(w), indexing="ij")
    picture = 0.02 + 0.38 * ((3 * i + 5 * j + 7 * c) % 64) / 63
    return jnp.asarray(picture.transpose(1, 2, 0)[None], jnp.float32)


def test_known_numbers():
    """Noted from runs of the official program with weights by another rule."""
    model, nets = build(), networks(ordered)
    low = ramp(64, 128)
    high = jnp.minimum(2 * low, 1)
    latent, _ = encode(nets, low)
    close("latent", [latent.mean(), latent.std(ddof=1), latent[0, 0, 0, 0]],
          [.4844890, .3617728, .1675881], atol=2e-5)
    close("latent of high", encode(nets, high)[0].mean(), [.4652161], atol=2e-5)
    r, l = decompose(nets, latent)
    close("reflectance", [r.mean(), r.std(ddof=1), r[0, 0, 0, 0]],
          [.1946981, .2982068, .0799828], atol=2e-5)
    close("illumination", [l.mean(), l[0, 0, 0, 0]], [.0957574, .0001922], atol=2e-5)
    decoded = jax.jit(model.apply)(nets, low, {"latent": latent})
    close("decoded", [decoded.mean(), decoded.std(ddof=1), decoded[0, 0, 0, 0]],
          [.7556070, 2.6812019, .9917713], atol=2e-5)

    z = np.sin(0.9 * np.arange(3 * 8 * 16)).reshape(1, 3, 8, 16).transpose(0, 2, 3, 1)
    z = jnp.asarray(z, jnp.float32)
    found = noise_in(model, nets, 2 * latent - 1, z, [500])
    close("noise", [found.mean(), found.std(ddof=1), found[0, 0, 0, 0]],
          [.1369479, .7559908, -.5989152], atol=2e-5)
    predict = functools.partial(model.denoiser.apply, nets["denoiser"], 2 * latent - 1)
    x = jax.jit(lambda z: diffusion.ddim_sample(predict, z, model.alpha_bars, 20)[0])(z)
    close("sample", [x.mean(), x.std(ddof=1), x[0, 0, 0, 0]], [-10.3151, 91.2657, 48.3955],
          rtol=2e-3)
