"""Loss terms: values worked out by hand, minima, gradients at the edges, errors."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lljax import config as configs
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


def test_least_squares_by_hand():
    scores = np.float32([[[[1.0], [0.5]]], [[[0.0], [2.0]]]])
    np.testing.assert_allclose(losses.least_squares(scores, 1.0), [0.25 / 2, 1])
    np.testing.assert_allclose(losses.least_squares(scores, 0.0), [1.25 / 2, 2])


def test_relativistic_by_hand():
    better, worse = np.float32([[1.0, 3.0], [2.0, 2.0]]), np.float32([[0.0, 0.5], [1.0, 0.5]])
    means = better.mean(), worse.mean()  # 2, 0.5
    expected = [0.5 * ((0.25 + 2.25) / 2 + (4 + 2.25) / 2), 0.5 * (0.25 + (1 + 2.25) / 2)]
    np.testing.assert_allclose(losses.relativistic(better, worse, *means), expected)
    same = np.ones((2, 3), np.float32)
    np.testing.assert_allclose(losses.relativistic(same, same, 1.0, 1.0), [0.5, 0.5])


def test_self_feature_ignores_brightness_and_contrast():
    features = np.random.RandomState(0).normal(size=(2, 6, 5, 4)).astype(np.float32)
    np.testing.assert_allclose(losses.self_feature(3 * features + 1, features), 0, atol=1e-4)
    # of two values a channel, +-1 after normalisation, all turned round
    two = np.float32([0, 100]).reshape(1, 1, 2, 1)
    np.testing.assert_allclose(losses.self_feature(two, two[:, :, ::-1]), [4], rtol=1e-4)
    gradient = jax.grad(lambda x: losses.self_feature(x, two).sum())(np.zeros_like(two))
    assert np.isfinite(gradient).all()


def test_reconstruction_by_hand():
    reflectance = np.float32([[[[0.5, 1.0, 0.2], [0.0, 0.4, 0.8]]]])
    image = np.float32([[[[0.3, 0.1, 0.1], [0.2, 0.1, 0.4]]]])
    one = np.float32([[[[0.4], [0.5]]]])
    errors = [0.2 - 0.3, 0.4 - 0.1, 0.08 - 0.1, 0.0 - 0.2, 0.2 - 0.1, 0.4 - 0.4]
    expected = [np.abs(errors).mean()]
    np.testing.assert_allclose(losses.reconstruction(reflectance, one, image), expected, rtol=1e-5)
    three = np.repeat(one, 3, -1)
    np.testing.assert_allclose(losses.reconstruction(reflectance, three, image), expected,
                               rtol=1e-5)
    three[0, 0, 0, 0] = 0.6  # 0.5 * 0.6 is the picture's 0.3
    np.testing.assert_allclose(losses.reconstruction(reflectance, three, image),
                               [np.abs(errors[1:]).sum() / 6], rtol=1e-5)


def test_reflectance_consistency_by_hand():
    low, high = np.zeros((2, 1, 2, 3), np.float32), np.zeros((2, 1, 2, 3), np.float32)
    low[1, 0, 0], high[1, 0, 1] = [0.1, 0.2, 0.0], [0.0, 0.0, 0.6]
    np.testing.assert_allclose(losses.reflectance_consistency(low, high), [0, 0.9 / 6], rtol=1e-6)


def correlate(x, kernel, pads):
    x = np.pad(x, pads)
    h, w = x.shape[0] - 1, x.shape[1] - 1
    return np.abs([[(x[i:i + 2, j:j + 2] * kernel).sum() for j in range(w)] for i in range(h)])


def average(x, side, count_outside):
    out, r = np.zeros_like(x), side // 2
    for i, j in np.ndindex(*x.shape):
        window = x[max(0, i - r):i + r + 1, max(0, j - r):j + r + 1]
        out[i, j] = window.sum() / (side * side if count_outside else window.size)
    return out


def smoothness_by_its_definition(illumination, reflectance, edge, form):
    red, pads = (0.299, (1, 1)) if form == "port" else (0.2989, (0, 1))
    grey = reflectance.astype(np.float64) @ [red, 0.587, 0.114]
    along_x = np.array([[0, 0], [-1, 1]])
    total = 0.0
    for kernel in (along_x, along_x.T):
        light, structure = (correlate(x, kernel, pads)
                            for x in (illumination[..., 0].astype(np.float64), grey))
        scales = {3: 1, 5: 0.66, 7: 0.33} if form == "released" else {3: 1}
        soft = sum(weight * average(structure, side, form == "port")
                   for side, weight in scales.items())
        total = total + light * np.exp(-edge * soft)
    return total.mean()


SMOOTHNESS_FORMS = losses.SMOOTHNESS_FORMS


@pytest.mark.parametrize("form", SMOOTHNESS_FORMS)
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (3, 2), (11, 9)])
def test_structure_smoothness_by_its_definition(shape, form):
    light, reflectance = pictures(8, (2, *shape, 1)), pictures(9, (2, *shape, 3))
    expected = [smoothness_by_its_definition(*pair, 3.0, form)
                for pair in zip(light, reflectance, strict=True)]
    np.testing.assert_allclose(losses.structure_smoothness(light, reflectance, 3.0, form),
                               expected, rtol=1e-5)


def test_structure_smoothness_by_hand():
    light, reflectance = np.float32([[[[0.4]]]]), np.float32([[[[0.1, 0.1, 0.1]]]])
    grey = 0.1 * (0.2989 + 0.587 + 0.114)
    # one px: both differences are of the zeros around it
    np.testing.assert_array_equal(losses.structure_smoothness(light, reflectance), [0])
    # zeros on all sides: 2 x 2 differences each way, two of them of the px and a zero, and the
    # 3 x 3 average sees all four
    port = 2 * (2 * 0.4 * np.exp(-10 * 2 * 0.1 / 9)) / 4
    np.testing.assert_allclose(losses.structure_smoothness(light, reflectance, form="port"),
                               [port], rtol=1e-5)
    # two px in a column: d_y is of the zeros right of them, and d_x of the lower px, in the upper
    # row, whose average is over both rows
    light = np.float32([[[[0.4]], [[0.1]]]])
    reflectance = np.full((1, 2, 1, 3), 0.1, np.float32)
    code = 0.1 * np.exp(-10 * grey / 2) / 2
    np.testing.assert_allclose(losses.structure_smoothness(light, reflectance), [code], rtol=1e-5)


def ramp(h, w):
    c, i, j = np.meshgrid(np.arange(3), np.arange(h), np.arange(w), indexing="ij")
    picture = 0.02 + 0.38 * ((3 * i + 5 * j + 7 * c) % 64) / 63
    return picture.transpose(1, 2, 0)[None].astype(np.float32)


@pytest.mark.parametrize("form, value", [("code", .07557522), ("port", .08636323)])
def test_structure_smoothness_of_the_official_programs(form, value):
    i, j = np.meshgrid(np.arange(24), np.arange(32), indexing="ij")
    light = (0.1 + 0.5 * ((5 * i + 2 * j) % 64) / 63).astype(np.float32)[None, ..., None]
    np.testing.assert_allclose(losses.structure_smoothness(light, ramp(24, 32), form=form),
                               [value], rtol=1e-5)


RETINEX = {
    "reconstruction": lambda light, r, image: losses.reconstruction(r, light, image),
    "reflectance_consistency": lambda light, r, image: losses.reflectance_consistency(r, image),
    **{f"structure_smoothness {f}": lambda light, r, image, f=f: losses.structure_smoothness(
        light, r, form=f) for f in SMOOTHNESS_FORMS},
}


@pytest.mark.parametrize("name", RETINEX)
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (32, 32)])
@pytest.mark.parametrize("level", [0.0, 0.6, 1.0])
def test_retinex_terms_are_finite_at_the_edges(level, shape, name):
    light, image = jnp.full((2, *shape, 1), level), jnp.full((2, *shape, 3), level)
    values, gradients = jax.jit(jax.value_and_grad(
        lambda *a: RETINEX[name](*a).sum(), (0, 1, 2)))(light, image, image)
    assert np.isfinite(values)
    for gradient in gradients:
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", RETINEX)
def test_retinex_terms_are_zero_at_the_stated_minimum(name):
    picture = pictures(10, (2, 9, 8, 3))
    light = np.ones((2, 9, 8, 1), np.float32)
    if name.startswith("structure"):
        light *= 0
    np.testing.assert_array_equal(RETINEX[name](light, picture, picture), [0, 0])
    other = RETINEX[name](jnp.asarray(pictures(11, light.shape)), picture,
                          pictures(12, picture.shape))
    assert other.shape == (2,) and (other > 1e-3).all()


@pytest.mark.parametrize("name", RETINEX)
def test_retinex_terms_have_one_value_an_image(name):
    arrays = pictures(1, (2, 9, 8, 1)), pictures(2, (2, 9, 8, 3)), pictures(3, (2, 9, 8, 3))
    alone = [RETINEX[name](*(a[i:i + 1] for a in arrays))[0] for i in range(2)]
    np.testing.assert_allclose(RETINEX[name](*arrays), alone, rtol=1e-5)


@pytest.mark.parametrize("form", SMOOTHNESS_FORMS)
def test_structure_smoothness_gradient_flows_through_the_reflectance(form):
    light, reflectance = pictures(1, (1, 9, 8, 1)), pictures(2, (1, 9, 8, 3))
    gradient = jax.grad(
        lambda r: losses.structure_smoothness(light, r, form=form).sum())(reflectance)
    assert (np.asarray(gradient) != 0).mean() > 0.9


NORMS = losses.NORMS


@pytest.mark.parametrize("norm, expected", [
    ("l1", 1.1 / 6), ("mse", 0.61 / 6), ("l2", np.sqrt(0.61 / 6))])
def test_content_by_hand(norm, expected):
    decoded, image = np.zeros((2, 1, 2, 3), np.float32), np.zeros((2, 1, 2, 3), np.float32)
    decoded[1, 0, 0], image[1, 0, 1] = [0.5, 0.0, 0.0], [0.0, 0.0, 0.6]
    np.testing.assert_allclose(losses.content(decoded, image, norm), [0, expected], rtol=1e-6)


@pytest.mark.parametrize("norm, expected", [("l1", 0.7 / 6), ("mse", 0.29 / 6),
                                            ("l2", np.sqrt(0.29 / 6))])
def test_norms_of_the_latent_retinex_terms_by_hand(norm, expected):
    """Differences of 0.2 and 0.5 among six values; l1 is what is computed without a norm."""
    scene = np.full((1, 1, 2, 3), 0.5, np.float32)
    light = np.full((1, 1, 2, 1), 0.8, np.float32)
    image, other = 0.4 * np.ones_like(scene), scene.copy()
    image[0, 0, 0, 0], other[0, 0, 0, 0] = 0.6, 0.7
    image[0, 0, 1, 2], other[0, 0, 1, 2] = 0.9, 0.0
    for term, arrays in ((losses.reconstruction, (scene, light, image)),
                         (losses.reflectance_consistency, (scene, other))):
        np.testing.assert_allclose(term(*arrays, norm), [expected], rtol=1e-5)
        np.testing.assert_allclose(term(*arrays), term(*arrays, "l1"))


def test_the_norms_without_a_choice_are_the_configs():
    loss = configs.default("lightendiffusion").loss
    for term, function in (("content", losses.content), ("reconstruction", losses.reconstruction),
                           ("reflectance", losses.reflectance_consistency),
                           ("smoothness", losses.latent_smoothness)):
        assert inspect.signature(function).parameters["norm"].default == loss[term].norm, term


@pytest.mark.parametrize("norm, power, root", [("l1", 1, 1), ("mse", 2, 1), ("l2", 2, 2)])
@pytest.mark.parametrize("channels", [1, 3])
def test_latent_smoothness_by_its_definition(channels, norm, power, root):
    light, reflectance = pictures(3, (2, 5, 4, channels)), pictures(4, (2, 5, 4, 3))
    lights = np.broadcast_to(light, reflectance.shape).astype(np.float64)
    expected = []
    for l, r in zip(lights, reflectance.astype(np.float64), strict=True):
        means = [np.mean([(abs(l[i + di, j + dj, c] - l[i, j, c])
                           * np.exp(-7.0 * abs(r[i + di, j + dj, c] - r[i, j, c]))) ** power
                          for i in range(5 - di) for j in range(4 - dj) for c in range(3)])
                 for di, dj in ((1, 0), (0, 1))]
        expected.append(sum(means) ** (1 / root))
    np.testing.assert_allclose(losses.latent_smoothness(light, reflectance, 7.0, norm), expected,
                               rtol=1e-5)


def test_latent_smoothness_by_hand():
    light = np.float32([[0.1, 0.4], [0.1, 0.4]])[None, ..., None]
    reflectance = np.zeros((1, 2, 2, 3), np.float32)
    np.testing.assert_allclose(losses.latent_smoothness(light, reflectance, norm="l1"), [0.3],
                               rtol=1e-6)
    reflectance[0, :, 1, 0] = [0.2, -0.2]  # a fall excuses as a rise does
    one = 0.3 * np.exp(-10 * 0.2)
    np.testing.assert_allclose(losses.latent_smoothness(light, reflectance, norm="l1"),
                               [(one + 0.3 + 0.3) / 3], rtol=1e-6)


def test_noise_error_by_hand():
    noise = np.zeros((2, 1, 2, 3), np.float32)
    predicted = noise.copy()
    predicted[1, 0, 1] = [1.0, -2.0, 0.0]
    np.testing.assert_allclose(losses.noise_error(predicted, noise), [0, 5 / 6], rtol=1e-6)
    np.testing.assert_allclose(losses.consistency(predicted, noise), [0, 3 / 6], rtol=1e-6)


@pytest.mark.parametrize("file", ["lightendiffusion_stage2", "lightendiffusion_stage2_scaled"])
def test_diffusion_terms_of_the_official_program(file, shared):
    with np.load(shared / "reference" / f"{file}.npz") as recorded:
        found = losses.noise_error(recorded["noise_output"], recorded["noise_e"]).mean()
        np.testing.assert_allclose(found, recorded["loss__noise"], rtol=1e-5)
        found = losses.consistency(recorded["pred_fea"], recorded["reference_fea"]).mean()
        np.testing.assert_allclose(1e-3 * found, recorded["loss__scc"], rtol=1e-5)


LATENT = {
    **{f"content {n}": lambda a, b, n=n: losses.content(a, b, n) for n in NORMS},
    **{f"latent_smoothness {n}": lambda a, b, n=n: losses.latent_smoothness(a, b, norm=n)
       for n in NORMS},
    "noise_error": losses.noise_error,
    "consistency": losses.consistency,
    **{f"reconstruction {n}": lambda a, b, n=n: losses.reconstruction(a, b, b, n) for n in NORMS},
    **{f"reflectance {n}": lambda a, b, n=n: losses.reflectance_consistency(a, b, n)
       for n in NORMS},
}


@pytest.mark.parametrize("name", LATENT)
@pytest.mark.parametrize("level", [0.0, 1e-20, 0.6, 1.0])
def test_latent_terms_are_finite_at_the_edges(level, name):
    same = jnp.full((2, 4, 5, 3), level)
    for other in (same, jnp.zeros_like(same), jnp.asarray(pictures(1, (2, 4, 5, 3)))):
        values, gradients = jax.jit(jax.value_and_grad(
            lambda *a: LATENT[name](*a).sum(), (0, 1)))(same, other)
        assert np.isfinite(values)
        for gradient in gradients:
            assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", LATENT)
def test_latent_terms_are_zero_at_the_stated_minimum_and_one_an_image(name):
    a, b = pictures(2, (2, 4, 5, 3)), pictures(3, (2, 4, 5, 3))
    best = np.ones_like(a) if name.startswith(("latent", "recon")) else b
    np.testing.assert_array_equal(LATENT[name](best, b), [0, 0])
    assert (LATENT[name](a, b) > 1e-3).all()
    alone = [LATENT[name](a[i:i + 1], b[i:i + 1])[0] for i in range(2)]
    np.testing.assert_allclose(LATENT[name](a, b), alone, rtol=1e-5)
    gradient = jax.grad(lambda a: LATENT[name](a, b).sum())(best)
    if name != "reconstruction":  # |R I - S| has a corner
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("norm", NORMS)
def test_latent_smoothness_gradient_flows_through_the_reflectance(norm):
    light, reflectance = pictures(1, (1, 9, 8, 3)), pictures(2, (1, 9, 8, 3))
    gradient = jax.grad(
        lambda r: losses.latent_smoothness(light, r, norm=norm).sum())(reflectance)
    assert (np.asarray(gradient) != 0).mean() > 0.9


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
    (lambda: losses.reconstruction(pictures(), pictures()[..., :1], pictures()[:, :9]),
     ["33, 37", "9, 37"]),
    (lambda: losses.reconstruction(pictures(), pictures()[..., :2], pictures()), ["33, 37, 2"]),
    (lambda: losses.reconstruction(pictures()[..., :1], pictures(), pictures()), ["33, 37, 1"]),
    (lambda: losses.reflectance_consistency(pictures(), pictures()[:1]), ["(1, 33", "(2, 33"]),
    (lambda: losses.structure_smoothness(pictures(), pictures()), ["[B, H, W, 1]", "33, 37, 3"]),
    (lambda: losses.structure_smoothness(pictures()[:, :9, :, :1], pictures()), ["9, 37, 1"]),
    (lambda: losses.structure_smoothness(pictures()[..., :1], pictures(), form="prot"),
     ["prot", "port"]),
    (lambda: losses.content(pictures(), pictures()[:, :9]), ["content", "33, 37", "9, 37"]),
    (lambda: losses.content(pictures(), pictures(), "L2"), ["L2", "l2"]),
    (lambda: losses.reconstruction(pictures(), pictures(), pictures(), "l0"), ["l0", "l1, l2"]),
    (lambda: losses.reflectance_consistency(pictures(), pictures(), "l0"), ["l0", "l1, l2"]),
    (lambda: losses.latent_smoothness(pictures()[..., :2], pictures()), ["33, 37, 2"]),
    (lambda: losses.latent_smoothness(pictures()[:, :9], pictures()), ["9, 37", "33, 37"]),
    (lambda: losses.latent_smoothness(*[pictures()[:, :1]] * 2), ["(2, 1, 37, 3)", "2 px"]),
    (lambda: losses.latent_smoothness(pictures(), pictures(), norm="l3"), ["l3", "l1, l2"]),
    (lambda: losses.noise_error(pictures(), pictures()[:1]), ["noise_error", "(1, 33", "(2, 33"]),
    (lambda: losses.consistency(pictures()[0], pictures()[0]), ["(33, 37, 3)"]),
])
def test_errors_name_the_shapes(call, words):
    with pytest.raises(ValueError) as error:
        call()
    for word in words:
        assert word in str(error.value)
