"""Zero-DCE against recorded outputs of the official program, and against known numbers of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lljax import config as configs
from lljax import layers, losses, method, parallel
from lljax import tensors as tensors_lib

WEIGHTS = {"smoothness": 200.0, "spatial": 1.0, "color": 5.0, "exposure": 10.0}


@pytest.fixture(autouse=True)
def highest_precision():
    """On a GPU TF32 would cost three digits; on a CPU this changes nothing."""
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def model():
    return method.load(configs.default("zerodce"))


@pytest.fixture(scope="module")
def nets(model, shared):
    pytest.importorskip("torch", reason="the official weights are a PyTorch file")
    tensors = tensors_lib.read(str(shared / "data/weights/zero_dce/Epoch99.pth"))
    params = {}
    for name, (path, transform) in model.official_keys().items():
        _, _, conv, leaf = path.split("/")
        params.setdefault(conv, {})[leaf] = jnp.asarray(transform(tensors[name]))
    return {"curve": {"params": params}}


def close(name, ours, theirs, atol=0.0, rtol=0.0):
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, name
    print(f"{name}: max abs {np.abs(ours - theirs).max():.2e}")
    np.testing.assert_allclose(ours, theirs, atol=atol, rtol=rtol, err_msg=name)


def close_l2(name, ours, theirs, limit=1e-4):
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, name
    error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
    print(f"{name}: relative L2 {error:.2e}")
    assert error < limit, name


def ramp(h, w):
    c, i, j = np.meshgrid(np.arange(3), np.arange(h), np.arange(w), indexing="ij")
    picture = 0.02 + 0.38 * ((3 * i + 5 * j + 7 * c) % 64) / 63
    return jnp.asarray(picture.transpose(1, 2, 0)[None], jnp.float32)


@pytest.mark.parametrize("picture", ["LOL_1", "LOL_22", "DICM_01"])
def test_curves_and_pictures(picture, shared, model, nets):
    reference = np.load(shared / f"reference/zero_dce_{picture}.npz")
    low = jnp.asarray(reference["input"])
    maps = model.explain(nets, low, jax.random.key(0))
    close("curve_maps", maps["curves"], reference["curve_maps"], atol=5e-6)
    close("enhanced", maps["enhanced"], reference["enhanced"], atol=5e-6)
    half = layers.light_curve(low, maps["curves"][..., :12], 4)
    close("enhanced_iter4", half, reference["enhanced_iter4"], atol=5e-6)


TERMS = {
    "L_spa": lambda enhanced, low, curves: losses.spatial(enhanced, low),
    "L_exp": lambda enhanced, low, curves: losses.exposure(enhanced),
    "L_color": lambda enhanced, low, curves: losses.color(enhanced),
    "L_TV": lambda enhanced, low, curves: losses.smoothness(curves),
    "Sa_Loss": lambda enhanced, low, curves: losses.saturation(enhanced),
}


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("term", sorted(TERMS))
def test_loss_and_its_gradient(term, number, shared):
    reference = np.load(shared / f"reference/zero_dce_losses_{number}.npz")
    arrays = [jnp.asarray(reference[k]) for k in ("enhanced", "input", "curve_maps")]
    of, key = (2, f"gradR__{term}") if term == "L_TV" else (0, f"gradE__{term}")
    value, gradient = jax.value_and_grad(lambda *a: TERMS[term](*a).mean(), of)(*arrays)
    close(term, value, reference[term], rtol=1e-5)
    close_l2(key, gradient, reference[key])


@pytest.mark.parametrize("number", [1, 2])
def test_values_per_image(number, shared):
    reference = np.load(shared / f"reference/zero_dce_losses_{number}.npz")
    enhanced, low = jnp.asarray(reference["enhanced"]), jnp.asarray(reference["input"])
    close("L_color_per_image", losses.color(enhanced), reference["L_color_per_image"],
          rtol=1e-5, atol=1e-9)
    close("L_spa_map", losses.spatial(enhanced, low),
          reference["L_spa_map"].astype(np.float64).mean((1, 2, 3)), rtol=1e-5)


@pytest.mark.parametrize("number", [1, 2])
def test_total_and_parameter_gradients(number, shared, model, nets):
    reference = np.load(shared / f"reference/zero_dce_losses_{number}.npz")
    low = jnp.asarray(reference["input"])

    def total(params):
        terms = model.terms({"curve": {"params": params}}, low)
        return sum(WEIGHTS[name] * value.mean() for name, value in terms.items())

    assert model.weights() == WEIGHTS
    value, gradient = jax.jit(jax.value_and_grad(total))(nets["curve"]["params"])
    close("total", value, reference["total"], rtol=1e-5)
    keys = [key for key in reference.files if key.startswith("gradP__")]
    assert len(keys) == 5
    for key in keys:
        close_l2(key, torch_layout(gradient, key), reference[key])


@pytest.mark.parametrize("microbatch", [0, 1])
@pytest.mark.parametrize("number", [1, 2])
def test_one_optimiser_step(number, microbatch, shared, nets):
    reference = np.load(shared / f"reference/zero_dce_losses_{number}.npz")
    config = configs.default("zerodce")
    config.phase.train.microbatch = microbatch
    model = method.load(config)
    batch = padded(reference["input"])
    copied = jax.tree.map(jnp.copy, nets)  # the step donates its state
    state = parallel.place(model.start_phase(copied, 0, "train"))
    step = parallel.pmap(functools.partial(model.train_step, phase="train"))
    state, scalars = step(state, batch, model.weights())

    close("total", scalars["total/curve"], reference["total"], rtol=1e-5)
    close("grad_norm", scalars["grad_norm/curve"], reference["grad_norm"], rtol=1e-4)
    for term, key in (("spatial", "L_spa"), ("exposure", "L_exp"), ("smoothness", "L_TV"),
                      ("color", "L_color")):
        close(f"loss/{term}", scalars[f"loss/{term}"], reference[key], rtol=1e-4)
    keys = [key for key in reference.files if key.startswith("step1__")]
    assert len(keys) == 2
    for key in keys:
        ours, theirs = torch_layout(state.nets["curve"]["params"], key), reference[key]
        before = torch_layout(nets["curve"]["params"], key)
        # a first Adam step moves by about lr = 1e-4: the motion itself must agree
        close_l2(f"{key} motion", ours - before, theirs - before, limit=1e-3)


def torch_layout(params, key):
    """The array that a key such as gradP__e_conv1_weight means, in torch's layout."""
    conv, leaf = key.split("__e_")[1].split("_")
    if leaf == "bias":
        return np.asarray(params[conv]["bias"])
    return np.asarray(params[conv]["kernel"]).transpose(3, 2, 0, 1)


def padded(low):
    """A batch split over the devices; pictures that only fill it up do not count."""
    devices = jax.local_device_count()
    size = -(-len(low) // devices) * devices
    batch = {"low": np.resize(low, (size, *low.shape[1:])),
             "mask": (np.arange(size) < len(low)).astype(np.float32),
             "key": jax.random.split(jax.random.key(0), size)}
    return parallel.split(batch)


def test_known_numbers_of_the_official_weights(model, nets):
    maps = model.explain(nets, ramp(48, 64), jax.random.key(0))
    enhanced, curves = np.asarray(maps["enhanced"]), np.asarray(maps["curves"])
    half = layers.light_curve(ramp(48, 64), maps["curves"][..., :12], 4)
    close("mean after 4", half.mean(), .3302192, atol=1e-6)
    close("mean after 8", enhanced.mean(), .4687477, atol=1e-6)
    close("mean curve", curves.mean(), -.1722853, atol=1e-6)
    close("pixel 10 20", enhanced[0, 10, 20], [.1016232, .2254941, .3508994], atol=1e-6)
    close("pixel 0 0", enhanced[0, 0, 0], [.0599763, .1760675, .3045604], atol=1e-6)
    close("curve 10 20", curves[0, 10, 20, :3], [-.1679349, -.1765554, -.2036353], atol=1e-6)


def test_known_losses_of_the_official_weights(model, nets):
    terms = {name: float(value[0]) for name, value in model.terms(nets, ramp(64, 64)).items()}
    known = {"smoothness": .00024560, "spatial": .03135605, "color": .00140578,
             "exposure": .01719682}
    assert terms.keys() == known.keys()
    for name, value in known.items():
        close(name, terms[name], value, atol=1e-8, rtol=1e-5)
    close("total", sum(WEIGHTS[k] * v for k, v in terms.items()), .2594741, rtol=1e-5)
