"""Retinex-Net's loss terms against recorded outputs of the official program and of its port."""

import jax.numpy as jnp
import numpy as np
import pytest

from lljax import losses

RECORDS = [f"{program}_{picture}" for program in ("tf", "torch_zeros", "torch_replicate")
           for picture in ("lol1", "pair_3_5", "pair_481_484")]
WITH_LOSSES = [name for name in RECORDS if "pair" in name or name.startswith("tf")]
DECOM = {"recon_loss_low": 1.0, "recon_loss_high": 1.0, "recon_loss_mutal_low": 0.001,
         "recon_loss_mutal_high": 0.001, "Ismooth_loss_low": 0.1, "Ismooth_loss_high": 0.1,
         "equal_R_loss": 0.01}
RELIGHT = {"relight_loss": 1.0, "Ismooth_loss_delta": 3.0}


def load(shared, name):
    with np.load(shared / f"reference/retinexnet_{name}.npz") as file:
        return {key: jnp.asarray(file[key]) for key in file.files}


@pytest.mark.parametrize("name", WITH_LOSSES)
def test_loss_terms(name, shared):
    arrays = load(shared, name)
    recorded = {key.removeprefix("loss__"): value for key, value in arrays.items()
                if key.startswith("loss__")}
    low, high = arrays["input_low"], arrays["input_high"]
    r_low, r_high = arrays["R_low"], arrays["R_high"]
    i_low, i_high, i_delta = arrays["I_low"], arrays["I_high"], arrays["I_delta"]
    form = "code" if name.startswith("tf") else "port"

    ours = {
        "recon_loss_low": losses.reconstruction(r_low, i_low, low),
        "recon_loss_high": losses.reconstruction(r_high, i_high, high),
        "recon_loss_mutal_low": losses.reconstruction(r_high, i_low, low),
        "recon_loss_mutal_high": losses.reconstruction(r_low, i_high, high),
        "equal_R_loss": losses.reflectance_consistency(r_low, r_high),
        "relight_loss": losses.reconstruction(r_low, i_delta, high),
        "Ismooth_loss_low": losses.structure_smoothness(i_low, r_low, form=form),
        "Ismooth_loss_high": losses.structure_smoothness(i_high, r_high, form=form),
        "Ismooth_loss_delta": losses.structure_smoothness(i_delta, r_low, form=form),
    }
    for total, weights in (("loss_Decom", DECOM), ("loss_Relight", RELIGHT)):
        ours[total] = sum(weight * ours[term] for term, weight in weights.items())
    assert ours.keys() == recorded.keys()
    for term, value in recorded.items():
        print(f"{term}: off by {abs(float(ours[term][0] - value)):.1e} of {float(value):.6g}")
        np.testing.assert_allclose(ours[term], value[None], rtol=1e-5, err_msg=term)


@pytest.mark.parametrize("name", RECORDS)
def test_the_recorded_picture_is_reflectance_times_adjusted_illumination(name, shared):
    arrays = load(shared, name)
    np.testing.assert_allclose(
        losses.reconstruction(arrays["R_low"], arrays["I_delta"], arrays["S"]), [0], atol=1e-7)
