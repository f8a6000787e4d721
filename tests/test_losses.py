"""Loss terms: values worked out by hand, minima, gradients at the edges, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lljax import losses


def pictures(seed=0, shape=(2, 33, 37, 3)):
    return np.random.RandomState(seed).uniform(size=shape).astype(np.float32)


def blocks(values, region):
    """A grey picture [1, h r, w r, 3] whose regions have the given means."""
    grey = np.kron(np.asarray(values, np.float32), np.ones((region, region), np.float32))
    return np.repeat(grey[None, :, :, None], 3, -1)


def test_spatial_by_hand():
    enhanced, low = blocks([[0.5, 0.7]], 4), blocks([[0.1, 0.2]], 4)
    # rises 0.4 and 0.5; sides: left and right neighbour differ by 0.1, five others are outside
    code = (3 * 0.4 ** 2 + 0.1 ** 2 + 3 * 0.5 ** 2 + 0.1 ** 2) / 2
    np.testing.assert_allclose(losses.spatial(enhanced, low), [code], rtol=1e-5)
    # one pair of neighbours, |0.2| against |0.1|, seen from both
    np.testing.assert_allclose(losses.spatial(enhanced, low, form="paper"), [0.01], rtol=1e-5)


def test_spatial_paper_form_ignores_the_sign():
    low = blocks([[0.1, 0.3], [0.6, 0.2]], 4)
    flipped = 0.9 - low
    np.testing.assert_allclose(losses.spatial(flipped, low, form="paper"), [0], atol=1e-12)
    assert losses.spatial(flipped, low)[0] > 0.1


def test_spatial_regions_drop_the_remainder():
    enhanced, low = pictures(1), pictures(2)
    whole = losses.spatial(enhanced, low, region=8)
    np.testing.assert_allclose(whole, losses.spatial(enhanced[:, :32, :32], low[:, :32, :32], 8),
                               rtol=1e-6)
    assert not np.allclose(whole, losses.spatial(enhanced, low, region=4))


@pytest.mark.parametrize("form, values", [("code", 0.1 ** 2 + 0.3 ** 2), ("paper", 0.4)])
def test_exposure_by_hand(form, values):
    enhanced = blocks([[0.5, 0.9]], 16)
    np.testing.assert_allclose(losses.exposure(enhanced, form=form), [values / 2], rtol=1e-5)


def test_exposure_region_is_a_mean_of_colours_and_pixels():
    enhanced = pictures(3, (1, 16, 16, 3))
    expected = (enhanced.mean(dtype=np.float64) - 0.4) ** 2
    np.testing.assert_allclose(losses.exposure(enhanced, level=0.4), [expected], rtol=1e-4)


def test_color_by_hand():
    enhanced = np.broadcast_to(np.float32([0.2, 0.5, 0.9]), (1, 5, 7, 3))
    squares = np.array([0.3, 0.4, 0.7]) ** 2
    np.testing.assert_allclose(losses.color(enhanced), [np.sqrt((squares ** 2).sum())], rtol=1e-5)
    np.testing.assert_allclose(losses.color(enhanced, "paper"), [squares.sum()], rtol=1e-5)


def test_smoothness_by_hand():
    curves = np.zeros((1, 2, 3, 6), np.float32)
    curves[0, :, :, 4] = [[0.0, 0.1, 0.3], [0.4, 0.4, 0.4]]
    down, right = np.array([0.4, 0.3, 0.1]), np.array([0.1, 0.2, 0.0, 0.0])
    code = 2 * ((down ** 2).mean() + (right ** 2).mean())
    np.testing.assert_allclose(losses.smoothness(curves), [code], rtol=1e-5)
    # pixels (0, 0) and (0, 1) have both neighbours; two maps
    paper = ((0.1 + 0.4) ** 2 + (0.2 + 0.3) ** 2) / 2 / 2
    np.testing.assert_allclose(losses.smoothness(curves, "paper"), [paper], rtol=1e-5)


def test_saturation_by_hand():
    enhanced = np.float32([[[[0.1, 0.2, 0.3], [0.5, 0.2, 0.0]]]])  # both 0.25 from the mean
    np.testing.assert_allclose(losses.saturation(enhanced), [np.hypot(0.2, 0.15)], rtol=1e-5)


def test_perceptual_by_hand():
    a, b = np.zeros((2, 1, 2, 2), np.float32), np.zeros((2, 1, 2, 2), np.float32)
    a[0, 0, 1, 1] = 3.0
    np.testing.assert_allclose(losses.perceptual(a, b), [9 / 4, 0])


FORMS = losses.FORMS
GREY = np.float32(0.6)
TERMS = {
    **{f"spatial {f}": functools.partial(losses.spatial, low=None, form=f) for f in FORMS},
    **{f"exposure {f}": functools.partial(losses.exposure, form=f) for f in FORMS},
    **{f"color {f}": functools.partial(losses.color, form=f) for f in FORMS},
    "saturation": losses.saturation,
}


def bind(name, low):
    term = TERMS[name]
    return functools.partial(term, low=low) if name.startswith("spatial") else term


@pytest.mark.parametrize("name", TERMS)
def test_zero_at_the_stated_minimum(name):
    best = jnp.full((2, 32, 32, 3), GREY)
    np.testing.assert_allclose(bind(name, best)(best), [0, 0], atol=2e-7)
    assert (bind(name, best)(jnp.asarray(pictures(4, (2, 32, 32, 3)))) > 1e-5).all()


@pytest.mark.parametrize("form", FORMS)
def test_smoothness_is_zero_for_constant_maps(form):
    np.testing.assert_array_equal(losses.smoothness(jnp.full((2, 8, 8, 24), -0.3), form), [0, 0])


EDGES = {
    "black": np.zeros((2, 32, 32, 3), np.float32),
    "white": np.ones((2, 32, 32, 3), np.float32),
    "grey": np.full((2, 32, 32, 3), GREY),
    "grey noise": np.repeat(pictures(5, (2, 32, 32, 1)), 3, -1),
    "one colour": np.broadcast_to(np.float32([0.9, 0.1, 0.4]), (2, 32, 32, 3)),
    "nearly grey": np.full((2, 32, 32, 3), GREY) + np.float32([0, 6e-8, 2e-7]),
    "tiny": np.float32([0, 1e-12, 1e-20]) * np.ones((2, 32, 32, 3), np.float32),
}


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("name", TERMS)
def test_values_and_gradients_are_finite_at_the_edges(name, edge):
    x = jnp.asarray(EDGES[edge])
    values, gradient = jax.jit(jax.value_and_grad(lambda x: bind(name, x)(x).sum()))(x)
    assert np.isfinite(values) and np.isfinite(gradient).all()


@pytest.mark.parametrize("form", FORMS)
def test_smoothness_gradient_is_finite_for_constant_maps(form):
    gradient = jax.grad(lambda x: losses.smoothness(x, form).sum())(jnp.zeros((1, 4, 4, 24)))
    np.testing.assert_array_equal(gradient, 0)


def test_color_gradient_is_zero_on_grey():
    grey = jnp.asarray(EDGES["grey"])
    np.testing.assert_array_equal(jax.grad(lambda x: losses.color(x).sum())(grey), 0)


@pytest.mark.parametrize("name", TERMS)
def test_one_value_an_image(name):
    x, low = pictures(6), pictures(7)
    together = bind(name, low)(x)
    assert together.shape == (2,)
    alone = [bind(name, low[i:i + 1])(x[i:i + 1])[0] for i in range(2)]
    np.testing.assert_allclose(together, alone, rtol=1e-5)


@pytest.mark.parametrize("call, words", [
    (lambda: losses.spatial(pictures(), pictures(shape=(2, 33, 36, 3))), ["33, 37", "33, 36"]),
    (lambda: losses.spatial(pictures()[0], pictures()[0]), ["(33, 37, 3)", "[B, H, W, 3]"]),
    (lambda: losses.exposure(pictures(shape=(1, 40, 15, 3))), ["40 x 15", "16 x 16"]),
    (lambda: losses.exposure(pictures(), region=0), ["0 x 0"]),
    (lambda: losses.color(pictures(shape=(1, 8, 8, 4))), ["(1, 8, 8, 4)"]),
    (lambda: losses.color(pictures(), form="papre"), ["papre", "paper"]),
    (lambda: losses.saturation(pictures(shape=(1, 8, 8, 1))), ["(1, 8, 8, 1)"]),
    (lambda: losses.smoothness(pictures(shape=(1, 1, 8, 3))), ["(1, 1, 8, 3)", "2 px"]),
    (lambda: losses.smoothness(pictures(shape=(1, 8, 8, 4))), ["(1, 8, 8, 4)"]),
    (lambda: losses.perceptual(pictures(), pictures()[:, :9]), ["33, 37", "9, 37"]),
])
def test_errors_name_the_shapes(call, words):
    with pytest.raises(ValueError) as error:
        call()
    for word in words:
        assert word in str(error.value)
