"""Zero-DCE++ against recorded outputs of the official program, and against known numbers of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lljax import config as configs
from lljax import convert, layers, losses, method, weights
from tests.parity import close, close_l2
from tests.test_parity_zerodce import ramp

WEIGHTS = {"smoothness": 1600.0, "spatial": 1.0, "color": 5.0, "exposure": 10.0}
TERMS = {"L_TV": "smoothness", "L_spa": "spatial", "L_color": "color", "L_exp": "exposure"}


@pytest.fixture(autouse=True)
def highest_precision():
    """On a GPU TF32 would cost three digits; on a CPU this changes nothing."""
    with jax.default_matmul_precision("highest"):
        yield


@functools.cache
def build(scale):
    config = configs.default("zerodcepp")
    config.model.scale = scale
    return method.load(config)


@functools.cache
def explain(scale):
    return jax.jit(build(scale).explain)


@pytest.fixture(scope="module")
def nets(shared, tmp_path_factory):
    """The official weights, through `lljax convert`'s function."""
    out = tmp_path_factory.mktemp("official") / "out.safetensors"
    convert.convert("zerodcepp", [str(shared / "data/weights/zero_dce_pp/Epoch99.pth")], str(out))
    config, nets, _ = weights.load(out)
    assert configs.differences(config, configs.default("zerodcepp")) == []
    return nets


@pytest.mark.parametrize("scale", [1, 12])
@pytest.mark.parametrize("picture", ["LOL_1", "LOL_22", "DICM_01"])
def test_curves_and_pictures(picture, scale, shared, nets):
    reference = np.load(shared / f"reference/zero_dcepp_s{scale}_{picture}.npz")
    low = jnp.asarray(reference["input"])
    if scale > 1:
        close("input_down", layers.shrink(low, scale), reference["input_down"], atol=5e-7)
    maps = explain(scale)(nets, low, jax.random.key(0))
    close("curve_map", layers.enlarge(maps["curves"], scale), reference["curve_map"], atol=5e-6)
    close("enhanced", maps["enhanced"], reference["enhanced"], atol=5e-6)


@pytest.mark.parametrize("number", [1, 2])
def test_losses(number, shared):
    reference = np.load(shared / f"reference/zero_dcepp_losses_{number}.npz")
    enhanced, low, curves = (jnp.asarray(reference[k]) for k in ("enhanced", "input", "curve_map"))
    for name, value in (("L_TV", losses.smoothness(curves)), ("L_color", losses.color(enhanced)),
                        ("L_spa", losses.spatial(enhanced, low)),
                        ("L_exp", losses.exposure(enhanced))):
        close(name, value.mean(), reference[name], rtol=1e-5)


@pytest.mark.parametrize("number", [1, 2])
def test_total_and_parameter_gradients(number, shared, nets):
    reference = np.load(shared / f"reference/zero_dcepp_losses_{number}.npz")
    low, model = jnp.asarray(reference["input"]), build(12)

    def total(params):
        terms = model.terms({"curve": {"params": params}}, low)
        return sum(WEIGHTS[name] * value.mean() for name, value in terms.items()), terms

    assert model.weights() == WEIGHTS
    (value, terms), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(
        jax.tree.map(jnp.asarray, nets["curve"]["params"]))
    close("total", value, reference["total"], rtol=1e-5)
    for theirs, ours in TERMS.items():
        close(theirs, terms[ours].mean(), reference[theirs], rtol=1e-4)
    norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(gradient)))
    close("grad_norm", norm, reference["grad_norm"], rtol=1e-4)
    keys = [key for key in reference.files if key.startswith("gradP__")]
    assert len(keys) == 4
    for key in keys:  # such as gradP__e_conv1_depth_conv_weight
        conv, part, _, leaf = key.removeprefix("gradP__e_").split("_")
        ours = np.asarray(gradient[conv][part]["bias" if leaf == "bias" else "kernel"])
        close_l2(key, ours if leaf == "bias" else ours.transpose(3, 2, 0, 1), reference[key], 1e-4)


def test_known_numbers_of_the_official_weights(nets):
    for scale, width, mean, curve, pixel in (
            (1, 64, .5241764, -.2056344, [.1160075, .2515234, .4341054]),
            (12, 60, .5570909, -.2255363, [.1413228, .2897523, .4742267])):
        maps = explain(scale)(nets, ramp(48, 64)[:, :, :width], jax.random.key(0))
        enhanced = np.asarray(maps["enhanced"])
        close("mean", enhanced.mean(), mean, atol=1e-6)
        close("mean curve", layers.enlarge(maps["curves"], scale).mean(), curve, atol=1e-6)
        close("pixel 10 20", enhanced[0, 10, 20], pixel, atol=1e-6)
