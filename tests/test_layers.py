"""Shared blocks: the convolution's own gradient against XLA's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lljax import layers


def plain(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME",
                                    dimension_numbers=("NHWC", "HWIO", "NHWC"))


@pytest.mark.parametrize("height, width, h, w, c, o", [
    (8, 8, 3, 3, 2, 4), (37, 23, 3, 3, 3, 5), (1, 1, 3, 3, 2, 2), (2, 300, 3, 3, 1, 2),
    (300, 2, 3, 3, 2, 1), (19, 21, 9, 9, 4, 3), (11, 13, 1, 1, 6, 2), (12, 9, 5, 3, 2, 2)])
def test_convolution_and_its_gradients_equal_xlas(height, width, h, w, c, o):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, height, width, c)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(h, w, c, o)), jnp.float32)
    gradient = jnp.asarray(rng.normal(size=(2, height, width, o)), jnp.float32)
    ours, pull = jax.vjp(layers.convolve, x, kernel)
    theirs, reference = jax.vjp(plain, x, kernel)
    np.testing.assert_array_equal(ours, theirs)
    for mine, wanted in zip(pull(gradient), reference(gradient), strict=True):
        scale = float(jnp.abs(wanted).max())
        np.testing.assert_allclose(mine, wanted, rtol=1e-5, atol=2e-5 * scale)
