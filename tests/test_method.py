"""The interface: phases, frozen networks, traced weights, micro-batches, devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lljax import method as method_lib
from lljax import optim, parallel
from lljax.data import pipeline
from lljax.errors import InputError
from tests import toy

SIDE = 16


def batch(size=4, seed=0):
    rng = np.random.default_rng(seed)
    pictures = {role: rng.integers(0, 256, (size, SIDE, SIDE, 3), dtype=np.uint8)
                for role in ("low", "high")}
    return parallel.split({**pictures, "mask": np.ones(size, np.float32),
                           "index": np.arange(size, dtype=np.int32)})


def start(config=None, phase="first"):
    method = toy.Method(config or toy.get_config())
    nets = method.init(jax.random.key(0), {"low": jnp.zeros((1, SIDE, SIDE, 3))})
    return method, parallel.place(method.start_phase(nets, 0, phase))


def step_fn(method, phase):
    def step(state, batch, weights):
        batch = pipeline.on_device(batch, 0, state.step)
        state, scalars = method.train_step(state, batch, weights, phase=phase)
        return state.replace(step=state.step + 1), scalars
    return parallel.pmap(step)


def run(method, state, phase, steps=2, **kwargs):
    step = step_fn(method, phase)
    for number in range(steps):
        state, scalars = step(state, batch(seed=number), method.weights() | kwargs)
    return state, scalars


def equal(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: bool((np.asarray(x) == np.asarray(y)).all()),
                                     a, b))


def test_a_phase_changes_every_parameter_of_its_networks_and_nothing_else():
    method, state = start()
    before = jax.device_get(state.nets)
    state, _ = run(method, state, "first")
    assert equal(before["gain"], state.nets["gain"])
    assert equal(before["critic"], state.nets["critic"])
    changed = jax.tree.map(lambda x, y: bool((np.asarray(x) != np.asarray(y)).any()),
                           before["base"], state.nets["base"])
    assert jax.tree.all(changed), changed
    state = parallel.place(method.start_phase(state.nets, state.step, "second"))
    assert set(state.opt) == {"gain", "critic"} and not state.ema
    frozen = jax.device_get(state.nets["base"])
    state, _ = run(method, state, "second")
    assert equal(frozen, state.nets["base"])


def test_ema_is_the_average_and_is_what_is_used():
    """Of the steps alone: with a decay of 0.5 they weigh 1, 1/2, 1/4, ... from the last back."""
    method, state = start()
    step, seen = step_fn(method, "first"), []
    for number in range(3):
        state, _ = step(state, batch(seed=number), method.weights())
        state = state.replace(phase_step=state.phase_step + 1)
        seen.append(np.asarray(state.nets["base"]["params"]["Conv_0"]["kernel"]))
        weights = 0.5 ** np.arange(number, -1, -1)
        np.testing.assert_allclose(state.averaged()["base"]["params"]["Conv_0"]["kernel"],
                                   np.average(seen, axis=0, weights=weights), atol=1e-7)
    assert state.averaged()["base"]["batch_stats"] is state.nets["base"]["batch_stats"]


def test_weights_are_traced_and_terms_are_logged_raw():
    method, state = start(phase="second")
    step = step_fn(method, "second")
    raw = []
    for weight in (1.0, 0.0, 3.0):
        other = parallel.place(jax.tree.map(np.array, state))
        weights = method.weights() | {"match": np.float32(weight)}
        _, scalars = step(other, batch(), weights)
        raw.append(float(scalars["loss/match"]))
        assert float(scalars["total/gain"]) == pytest.approx(weight * raw[-1])
    assert len(set(raw)) == 1


def compilations():
    """A list that grows by one at every compilation from now on."""
    seen = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: seen.append(name) if "backend_compile" in name else None)
    return seen


def test_state_is_equal_on_all_devices_and_one_program_serves_all_steps():
    method, state = start()
    step, compiled = step_fn(method, "first"), compilations()
    state, _ = step(state, batch(), method.weights() | {"l1": np.float32(1)})
    assert compiled
    compiled.clear()
    for number, weight in enumerate((1.0, 0.0, 2.0)):
        weights = method.weights() | {"l1": np.float32(weight)}
        state, _ = step(state, batch(seed=number), weights)
    assert not compiled, "a second compilation: the state was placed differently"
    for leaf in jax.tree.leaves(state):
        shards = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(shards) == jax.local_device_count()
        assert all((shard == shards[0]).all() for shard in shards)


@pytest.mark.parametrize("micro", [1, 2])
def test_micro_batches_compute_the_same_update(micro):
    method, state = start(phase="second")
    whole, _ = run(method, state, "second", steps=3)
    config = toy.get_config()
    config.phase.second.microbatch = micro
    method, state = start(config, "second")
    parts, _ = run(method, state, "second", steps=3)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_masked_images_do_not_count():
    method, state = start(phase="second")
    step = step_fn(method, "second")
    full = batch(4)
    half = jax.tree.map(lambda x: x[:, :2], full) if jax.local_device_count() == 1 else None
    if half is None:
        pytest.skip("needs one device to halve the batch")
    masked = {**full, "mask": np.array([[1, 1, 0, 0]], np.float32)}
    _, a = step(parallel.place(jax.tree.map(np.array, state)), masked, method.weights())
    _, b = step_fn(method, "second")(state, half, method.weights())
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-6)


@pytest.mark.parametrize("micro, message", [(3, "does not divide"), (-2, "does not divide")])
def test_a_micro_batch_that_does_not_divide_is_refused(micro, message):
    config = toy.get_config()
    config.phase.second.microbatch = micro
    method, state = start(config, "second")
    with pytest.raises(InputError, match=message):
        run(method, state, "second")


def test_batch_statistics_refuse_micro_batches():
    config = toy.get_config()
    config.phase.first.microbatch = 2
    method, state = start(config)
    with pytest.raises(InputError, match="whole batch"):
        run(method, state, "first")


def test_a_term_that_is_not_enabled_is_refused():
    config = toy.get_config()
    config.loss.match.enabled = False
    method, state = start(config, "second")
    with pytest.raises(InputError, match="match"):
        run(method, state, "second")


def test_an_optimiser_for_a_network_that_does_not_exist_is_refused():
    config = toy.get_config()
    with config.unlocked():
        config.phase.first.optim.bass = optim.default()
    method = toy.Method(config)
    nets = method.init(jax.random.key(0), {"low": jnp.zeros((1, SIDE, SIDE, 3))})
    with pytest.raises(InputError, match='Did you mean "base"'):
        method.start_phase(nets, 0, "first")


def test_a_batch_of_another_device_count_is_refused():
    method, state = start()
    wrong = jax.tree.map(lambda x: np.repeat(x, 2, 0), batch())
    with pytest.raises(ValueError, match="local devices"):
        step_fn(method, "first")(state, wrong, method.weights())


def test_methods_are_found_by_name():
    assert method_lib.load(toy.get_config()).__class__ is toy.Method
    config = toy.get_config()
    config.method = "zerodec"
    with pytest.raises(InputError, match='Did you mean "zerodce"'):
        method_lib.load(config)


def test_scan_unrolled_equals_lax_scan():
    def body(carry, x):
        return carry + x["a"], carry * x["b"]
    xs = {"a": jnp.arange(4.0), "b": jnp.arange(4.0) + 1}
    mine = parallel.scan(body, jnp.float32(2), xs)
    theirs = jax.lax.scan(body, jnp.float32(2), xs)
    assert equal(mine, theirs)
