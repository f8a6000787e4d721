"""Noise schedule, sampler against a plain loop in float64, tiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lljax import diffusion, layers
from lljax.errors import InputError

ALPHA_BARS = diffusion.alpha_bars(diffusion.linear_betas())


def normal(seed, *shape):
    return np.random.RandomState(seed).normal(size=shape).astype(np.float32)


# ---- schedule ----


def test_schedule_of_the_official_program(shared):
    with np.load(shared / "reference" / "lightendiffusion_schedule.npz") as file:
        recorded = dict(file)
    np.testing.assert_array_equal(diffusion.linear_betas(), recorded["betas_float32"])
    np.testing.assert_array_equal(ALPHA_BARS, recorded["alpha_bar_from_minus1"][1:])
    times, following = diffusion.ddim_times(1000, 20)
    np.testing.assert_array_equal(times, recorded["seq_t"])
    np.testing.assert_array_equal(following, recorded["seq_t_next"])
    # sines of angles up to 999, rounded to 6e-5
    np.testing.assert_allclose(
        diffusion.timestep_embedding(recorded["timestep_embedding_t"], 64),
        recorded["timestep_embedding_64_for_t"], atol=6e-5)


def test_alpha_bars_by_hand():
    found = ALPHA_BARS[[0, 50, 100, 500, 900, 950, 999]]
    np.testing.assert_allclose(found, [.9999, .969951, .895141, .0777967, 2.70244e-4, 1.060418e-4,
                                       4.03583e-5], rtol=4e-6)
    assert diffusion.linear_betas().dtype == ALPHA_BARS.dtype == np.float32
    np.testing.assert_allclose(diffusion.alpha_bars(np.float32([0.5, 0.2, 0.1])), [.5, .4, .36])


@pytest.mark.parametrize("total, first, last", [(0, 1e-4, .02), (10, 0, .02), (10, .1, 1)])
def test_schedules_that_are_none(total, first, last):
    with pytest.raises(InputError, match=f"{total} steps"):
        diffusion.linear_betas(total, first, last)


def test_ddim_times_by_hand():
    times, following = diffusion.ddim_times(1000, 20)
    assert times.tolist() == list(range(950, -1, -50))
    assert following.tolist() == [*range(900, -1, -50), -1]
    assert times.dtype == following.dtype == np.int32
    assert [t.tolist() for t in diffusion.ddim_times(10, 4)] == [[7, 5, 2, 0], [5, 2, 0, -1]]
    assert [t.tolist() for t in diffusion.ddim_times(10, 1)] == [[0], [-1]]


@pytest.mark.parametrize("total", [1, 7, 1000])
def test_any_number_of_steps_is_spread_evenly(total):
    for steps in range(1, total + 1):
        times, following = diffusion.ddim_times(total, steps)
        assert len(times) == len(following) == steps and times[-1] == 0 and times[0] < total
        gaps = times - following
        assert gaps.min() > 0 and (steps == 1 or np.ptp(gaps[:-1]) <= 1)


@pytest.mark.parametrize("steps", [-1, 0, 1001])
def test_impossible_steps(steps):
    with pytest.raises(InputError, match=f"{steps} sampling steps.* 1 to 1000"):
        diffusion.ddim_times(1000, steps)


# ---- noise and times ----


def test_q_sample_by_hand():
    x0, noise = np.full((2, 1, 1, 3), 0.5, np.float32), np.full((2, 1, 1, 3), -1, np.float32)
    found = diffusion.q_sample(x0, noise, np.float32([0.64, 0.36]))
    np.testing.assert_allclose(found[:, 0, 0, 0], [0.8 * 0.5 - 0.6, 0.6 * 0.5 - 0.8], rtol=1e-5)
    np.testing.assert_allclose(diffusion.q_sample(x0, noise, np.float32(0.64))[1], found[0])
    for wrong in (dict(noise=noise[:1]), dict(alpha_bar=np.ones(3))):
        with pytest.raises(ValueError, match="q_sample"):
            diffusion.q_sample(**{"x0": x0, "noise": noise, "alpha_bar": np.ones(2)} | wrong)


@pytest.mark.parametrize("count", [1, 3, 12])
def test_antithetic_times(count):
    key = jax.random.key(3)
    whole = diffusion.antithetic_times(key, jnp.arange(count), count, 1000)
    draws = count // 2 + 1  # the official program's
    assert whole.dtype == jnp.int32 and (whole >= 0).all() and (whole < 1000).all()
    np.testing.assert_array_equal(whole[draws:], 999 - whole[:count - draws])
    # any part of the batch, in any order
    for part in np.array_split(np.random.RandomState(0).permutation(count), 3):
        found = diffusion.antithetic_times(key, jnp.asarray(part), count, 1000)
        np.testing.assert_array_equal(found, whole[part])


def test_antithetic_times_cover_the_schedule():
    times = np.concatenate([diffusion.antithetic_times(jax.random.key(seed), jnp.arange(8), 8, 10)
                            for seed in range(60)])
    shares = np.bincount(times, minlength=10) / len(times)
    assert len(shares) == 10 and shares.min() > 0.04 and shares.max() < 0.18
    assert len({tuple(times[i:i + 8]) for i in range(0, 480, 8)}) == 60


def test_timestep_embedding_by_hand():
    found = diffusion.timestep_embedding(jnp.array([0, 500]), 64)
    np.testing.assert_allclose(found[0], [0] * 32 + [1] * 32)
    np.testing.assert_allclose(found[1, :3], [-.4677718, .6990453, -.4461079], atol=6e-5)
    np.testing.assert_allclose(found[1, 32:35], [-.8838493, .7150774, .8949792], atol=6e-5)
    np.testing.assert_allclose(found[1, 31], np.sin(0.05), rtol=1e-5)  # the last: 500 / 10000
    for dim in (2, 7):
        with pytest.raises(InputError, match=f"{dim} numbers"):
            diffusion.timestep_embedding(jnp.array([0]), dim)


# ---- sampler ----


def predict(x, t):
    return jnp.tanh(x[:, ::-1]) * jnp.cos(t / 300.0)[:, None, None, None] + 0.1 * x


def loop(noise, steps, total=1000, eta=0.0, draws=None):
    """The sampler, by its formula in float64: (sample, foreseen pictures)."""
    alphas = np.cumprod(1 - np.linspace(1e-4, 0.02, total))
    x, x0s = noise.astype(np.float64), []
    times = [i * total // steps for i in range(steps)]
    for i, t in enumerate(reversed(times)):
        a = alphas[t]
        after = alphas[times[-i - 2]] if i < steps - 1 else 1.0
        e = np.tanh(x[:, ::-1]) * np.cos(t / 300) + 0.1 * x
        x0s.append((x - np.sqrt(1 - a) * e) / np.sqrt(a))
        sigma = eta * np.sqrt((1 - after) / (1 - a)) * np.sqrt(1 - a / after)
        x = np.sqrt(after) * x0s[-1] + np.sqrt(1 - after - sigma ** 2) * e
        x = x + (sigma * draws[i] if eta else 0)
    return x, np.stack(x0s)


@pytest.mark.parametrize("steps, total", [(1, 1000), (7, 1000), (20, 1000), (10, 10)])
def test_ddim_sample_by_its_formula(steps, total):
    noise = normal(0, 2, 4, 6, 3)
    alphas = diffusion.alpha_bars(diffusion.linear_betas(total))
    x, x0s = jax.jit(lambda n: diffusion.ddim_sample(predict, n, alphas, steps))(noise)
    expected, foreseen = loop(noise, steps, total)
    np.testing.assert_allclose(x, expected, rtol=2e-4, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_allclose(x0s, foreseen, rtol=2e-4, atol=1e-4 * np.abs(foreseen).max())
    np.testing.assert_allclose(x, x0s[-1], rtol=1e-5, atol=1e-4)


def test_ddim_sample_of_the_official_program(shared):
    with np.load(shared / "reference" / "lightendiffusion_sampling.npz") as file:
        noise, found = file["init_noise"], jnp.asarray(file["eps_sequence"])
        expected, seen = file["final_sample"], file["x_t_sequence"]
    x, x0s = diffusion.ddim_sample(lambda x, t: found[(950 - t[0]) // 50][None], noise,
                                   ALPHA_BARS, 20)
    np.testing.assert_allclose(x, expected, atol=5e-6)
    times, following = diffusion.ddim_times(1000, 20)
    x0s, after = np.asarray(x0s)[:-1, 0], ALPHA_BARS[following[:-1], None, None, None]
    np.testing.assert_allclose(np.sqrt(after) * x0s + np.sqrt(1 - after) * found[:-1], seen[1:],
                               atol=5e-6)


def test_ddim_sample_shows_each_step_to_the_network():
    seen = []

    def watch(x, t):
        jax.debug.callback(lambda t: seen.append(t.tolist()), t, ordered=True)
        return x * 0

    diffusion.ddim_sample(watch, normal(0, 3, 2, 2, 3), ALPHA_BARS, 4)
    jax.effects_barrier()
    assert seen == [[t] * 3 for t in (750, 500, 250, 0)]


def test_a_perfect_network_gives_back_the_picture():
    """Of a known picture every step foresees it, whatever eta: nothing is lost or clipped."""
    picture = 3 * normal(1, 2, 4, 4, 3)

    def perfect(x, t):
        a = jnp.asarray(ALPHA_BARS)[t][:, None, None, None]
        return (x - jnp.sqrt(a) * picture) / jnp.sqrt(1 - a)

    for eta in (0.0, 1.0):
        x, x0s = diffusion.ddim_sample(perfect, normal(2, 2, 4, 4, 3), ALPHA_BARS, 10, eta=eta,
                                       key=jax.random.key(0))
        np.testing.assert_allclose(x, picture, atol=1e-3)
        np.testing.assert_allclose(x0s[-3:], np.stack([picture] * 3), atol=1e-3)


def test_eta_adds_noise_of_the_stated_spread():
    noise, keys = normal(0, 2, 4, 6, 3), jax.random.split(jax.random.key(5), 2)
    draws = [np.stack([jax.random.normal(jax.random.fold_in(key, i), (4, 6, 3)) for key in keys])
             for i in range(5)]
    x, _ = diffusion.ddim_sample(predict, noise, ALPHA_BARS, 5, eta=0.7, key=keys)
    expected, _ = loop(noise, 5, eta=0.7, draws=draws)
    np.testing.assert_allclose(x, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    # an image's draws do not depend on its batch
    alone, _ = diffusion.ddim_sample(predict, noise[1:], ALPHA_BARS, 5, eta=0.7, key=keys[1:])
    np.testing.assert_allclose(alone, x[1:], rtol=1e-5)
    # one key: every image has draws of its own
    same = np.repeat(noise[:1], 2, 0)
    one, _ = diffusion.ddim_sample(predict, same, ALPHA_BARS, 5, eta=0.7, key=jax.random.key(5))
    assert not np.allclose(one[0], one[1])


def test_eta_that_cannot_be():
    with pytest.raises(ValueError, match="needs a key"):
        diffusion.ddim_sample(predict, normal(0, 1, 2, 2, 3), ALPHA_BARS, 5, eta=0.5)
    for eta in (-0.1, 1.1):
        with pytest.raises(InputError, match=f"eta {eta}"):
            diffusion.ddim_sample(predict, normal(0, 1, 2, 2, 3), ALPHA_BARS, 5, eta=eta,
                                  key=jax.random.key(0))


class Convs(layers.nn.Module):
    @layers.nn.compact
    def __call__(self, x, t):
        for _ in range(3):
            x = jnp.tanh(layers.Conv(24)(x) + t[:, None, None, None] / 1000)
        return layers.Conv(3)(x)


def test_checkpoint_takes_the_memory_of_one_step_and_changes_no_gradient():
    noise, net = normal(0, 2, 24, 24, 3), Convs()
    params = net.init(jax.random.key(0), noise, jnp.zeros(2))

    def gradient(steps, checkpoint):
        def total(params):
            x, _ = diffusion.ddim_sample(lambda x, t: net.apply(params, x, t), noise, ALPHA_BARS,
                                         steps, checkpoint=checkpoint)
            return jnp.square(x / 100).mean()
        return jax.jit(jax.grad(total)).lower(params).compile()

    def memory(program):
        return program.memory_analysis().temp_size_in_bytes

    kept, computed_again = gradient(12, False), gradient(12, True)
    one = memory(gradient(1, False))
    # 1.18 and 7.1: what goes into each step is kept in any case, and the gradients are summed
    assert memory(computed_again) < 1.4 * one and memory(kept) > 5 * one
    plain, again = kept(params), computed_again(params)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        assert np.abs(a).max() > 0
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * np.abs(a).max())


# ---- tiles ----


@pytest.mark.parametrize("size, tile, overlap", [
    ((40, 40), 16, 8), ((41, 37), 16, 6), ((16, 50), 16, 8), ((9, 40), 16, 0), ((50, 17), 16, 8),
    ((33, 64), 7, 3), ((24, 24), 16, 5), ((30, 41), 9, 8)])
def test_a_pointwise_function_is_unchanged(size, tile, overlap):
    a, b = normal(0, 2, *size, 3), normal(1, 2, *size, 1)
    found = jax.jit(lambda *arrays: diffusion.blended(
        lambda a, b: jnp.sin(a) * b, arrays, tile, overlap))(a, b)
    np.testing.assert_allclose(found, np.sin(a) * b, rtol=1e-5, atol=1e-6)


def test_arrays_that_fit_are_computed_at_once():
    seen = []

    def function(x):
        seen.append(x.shape)
        return x[..., :1]

    x = normal(0, 2, 12, 16, 3)
    np.testing.assert_array_equal(diffusion.blended(function, [x], 16, 8), x[..., :1])
    assert seen == [(2, 12, 16, 3)]
    # one body for all tiles, of their side or the picture's
    del seen[:]
    diffusion.blended(function, [np.zeros((1, 12, 90, 3), np.float32)], 16, 8)
    assert set(seen) == {(1, 12, 16, 3)} and len(seen) <= 2


def test_a_bias_that_depends_on_the_place_in_the_tile_leaves_no_seam():
    i, j = np.meshgrid(np.arange(100), np.arange(84), indexing="ij")
    smooth = (0.002 * i + 0.003 * j).astype(np.float32)[None, ..., None]

    def biased(x):  # 0.1 from the tile's first to its last row, and 0.1 across
        rows, columns = (jnp.linspace(-0.05, 0.05, side) for side in x.shape[1:3])
        return x + (rows[:, None] + columns)[..., None]

    def steps(x):
        return max(np.abs(np.diff(x, axis=axis)).max() for axis in (1, 2))

    def tone(x):  # how far off, where every pixel lies in two tiles of a row and of a column
        return np.abs(x - smooth)[:, 16:-16, 16:-16].max()

    found = diffusion.blended(biased, [smooth], 32, 16)
    hard = diffusion.blended(biased, [smooth], 32, 0)
    assert steps(found) < 0.016 and steps(hard) > 0.045
    # neighbours' errors are of opposite sign: a quarter of the bias is left, in hard tiles all
    assert tone(found) < 0.03 and tone(hard) > 0.09


def test_weights_sum_to_one_and_tiles_are_on_a_raster():
    for side in range(1, 90):
        for tile in (1, 2, 5, 8, 12, 16, 24):
            raster = np.gcd(tile, 8)
            for overlap in range(tile - raster + 1):
                begins, weights = diffusion._tiles(side, tile, overlap)
                total = np.zeros(side)
                for begin, weight in zip(begins, weights, strict=True):
                    assert begin + len(weight) <= side
                    total[begin:begin + len(weight)] += weight
                np.testing.assert_allclose(total, 1, rtol=1e-12)
                assert weights.min() > 0 and not (begins[:-1] % raster).any()
                assert side % raster or not begins[-1] % raster
                assert all(a + tile - b >= overlap for a, b in zip(begins, begins[1:],
                                                                   strict=False))


def test_the_tiles_memory_does_not_grow_with_the_picture():
    net, x = Convs(), jnp.zeros((1, 16, 16, 3))
    params = net.init(jax.random.key(0), x, jnp.zeros(1))

    def memory(width):
        x = jax.ShapeDtypeStruct((1, 32, width, 3), jnp.float32)
        compiled = jax.jit(lambda x: diffusion.blended(
            lambda x: net.apply(params, x, jnp.zeros(1)), [x], 32, 16)).lower(x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert memory(256) - memory(64) < 3 * 32 * 192 * 3 * 4  # copies of the result


@pytest.mark.parametrize("call, words", [
    (lambda x: diffusion.blended(jnp.sin, [x], 16, 9), ["16", "9", "0 to 8"]),
    (lambda x: diffusion.blended(jnp.sin, [x], 0, 0), ["tiles of 0"]),
    (lambda x: diffusion.blended(jnp.sin, [x], 16, -1), ["-1"]),
    (lambda x: diffusion.blended(jnp.add, [x, x[:, 1:]], 16, 8), ["(1, 20, 40, 3)", "19, 40"]),
    (lambda x: diffusion.blended(lambda x: x[:, ::2], [x], 16, 8), ["(16, 16)", "(1, 8, 16, 3)"]),
])
def test_errors_name_the_numbers(call, words):
    with pytest.raises(ValueError) as error:
        call(jnp.zeros((1, 20, 40, 3)))
    for word in words:
        assert word in str(error.value)
