"""Optimisers against formulas worked out by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from lljax import optim
from lljax.errors import InputError


def first_update(config, gradient=3.0, parameter=2.0, value=1.0):
    tx = optim.build(config)
    params = {"w": jnp.array([parameter])}
    state = tx.init(params)
    changes, _ = tx.update({"w": jnp.array([gradient])}, state, params, value=jnp.array(value))
    return float(changes["w"][0])


def test_sgd_with_clip_and_l2_in_torchs_order():
    # clip 3 -> 1, then + 0.1 * 2, then -lr
    config = optim.default(name="sgd", b1=0.0, lr=0.5, clip=1.0, weight_decay=0.1)
    assert first_update(config) == pytest.approx(-0.5 * (1.0 + 0.1 * 2.0))


def test_adams_first_step_is_lr_whatever_the_gradient():
    config = optim.default(lr=0.01, eps=1e-8)
    assert first_update(config) == pytest.approx(-0.01, rel=1e-5)
    assert first_update(optim.default(lr=0.01, eps=3.0)) == pytest.approx(-0.005, rel=1e-5)


def test_schedules():
    steps = optim.schedule(optim.default(lr=1.0, schedule="steps", milestones=(3, 5), factor=0.1))
    np.testing.assert_allclose([steps(i) for i in (0, 2, 3, 4, 5)], [1, 1, .1, .1, .01], rtol=1e-6)
    linear = optim.schedule(optim.default(lr=1.0, schedule="linear", decay_start=2, decay_end=6))
    np.testing.assert_allclose([linear(i) for i in (0, 2, 4, 6, 9)], [1, 1, .5, 0, 0], atol=1e-7)


def test_plateau_lowers_the_rate_when_the_total_stops_falling():
    config = optim.default(name="sgd", b1=0.0, lr=1.0, schedule="plateau", patience=2, window=1,
                           factor=0.5, min_lr=0.2)
    tx = optim.build(config)
    params = {"w": jnp.zeros(1)}
    state, seen = tx.init(params), []
    for value in [5.0, 4.0] + [4.0] * 12:
        changes, state = tx.update({"w": jnp.ones(1)}, state, params, value=jnp.array(value))
        seen.append(-float(changes["w"][0]))
    assert seen[1] == 1.0 and 0.5 in seen and min(seen) == pytest.approx(0.2)


@pytest.mark.parametrize("change, message", [(dict(name="adm"), 'Did you mean "adam"'),
                                             (dict(schedule="step"), 'Did you mean "steps"')])
def test_unknown_names_are_refused_with_the_nearest(change, message):
    with pytest.raises(InputError, match=message):
        optim.build(optim.default(**change))


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_an_average_that_cannot_be_is_refused(value):
    with pytest.raises(InputError, match=f"moving average with ema={value}"):
        optim.build(optim.default(ema=value))


@pytest.mark.parametrize("knob, value", [("patience", 0), ("window", 0), ("factor", 1.0),
                                         ("factor", 0.0), ("min_lr", 1.0)])
def test_a_plateau_that_would_turn_round_is_refused(knob, value):
    with pytest.raises(InputError, match=f"plateau schedule with {knob}={value}"):
        optim.build(optim.default(schedule="plateau", **{knob: value}))
