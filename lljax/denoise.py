"""Denoising of a reflectance, stronger where the illumination is low.

Retinex-Net (Wei et al., BMVC 2018) runs BM3D on the reflectance "with an illumination-related
strategy"; no program for it was published. Here the strategy is R + (1 - I)^power (filtered R -
R), and the filter is a library's. Candidates, their licences as their packages or package pages
state them, and PSNR in dB on scikit-image's `camera` (grey, 512 x 512) and noise of sigma 25 /
255, 20.2 dB:

| library                | licence             | PSNR | here                                       |
|------------------------|---------------------|------|--------------------------------------------|
| scikit-image 0.26      | BSD-3-Clause        | 29.1 | `nlm`: non-local means                     |
| - total variation      |                     | 28.4 | no: below `nlm`                            |
| - wavelets, BayesShrink|                     | 27.0 | no: below `nlm`; needs PyWavelets          |
| bm3dornl 0.12.1        | MIT                 | 29.4 | `bm3d`: for Python >= 3.12 on Linux x86-64 |
|                        |                     |      | and macOS arm64; for grey, see `_bm3d`     |
| bm3d 4.0, bm4d 4.2     | non-commercial      |      | no: the authors' own                       |
| pybm3d 0.2.1           | GPL-3               |      | no                                         |
| OpenCV xphoto          | Apache-2.0, nonfree |      | no: its BM3D is left out of the wheels; its|
|                        |                     |      | NLM is for 8 bits                          |
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.buffer_callback import buffer_callback
from ml_collections import ConfigDict

from lljax.errors import InputError, unknown

Array = jax.Array
NAMES = ("none", "nlm", "bm3d")
_PACKAGES = {"nlm": ("skimage", "scikit-image"), "bm3d": ("bm3dornl", "bm3dornl")}

# Rows: grey, red minus blue, green minus both. Orthonormal: white noise stays as strong.
_OPPONENT = np.array([[3 ** -0.5] * 3, [2 ** -0.5, 0, -(2 ** -0.5)],
                      [-(6 ** -0.5), 2 * 6 ** -0.5, -(6 ** -0.5)]], np.float32)


def default(**changes) -> ConfigDict:
    """Every knob of the denoiser."""
    config = ConfigDict(dict(
        name="none",  # none | nlm (non-local means) | bm3d (slower; needs Python 3.12 or later)
        sigma=0.05,  # noise of the reflectance in [0, 1], its standard deviation; 0.0 = estimated
        #              from each picture, which then runs whole, not in tiles
        strength=1.0,  # the filter takes the noise for so many times stronger, > 0
        power=1.0,  # how soon it fades with illumination I: its share is (1 - I)^power; 0.0 = not
        patch=5,  # nlm: side of the patches compared, px, odd, 3 or more
        search=6,  # nlm: how far away patches are looked for, px
    ))
    config.update(changes)
    return config


def check(config: ConfigDict) -> None:
    """Refuses settings that cannot work, before anything is computed.

    Args:
      config: as `default()`.

    Raises:
      InputError: an unknown filter, one whose library is not installed, or a value out of range.
    """
    if config.name not in NAMES:
        raise unknown("denoiser", config.name, NAMES)
    for knob, least in (("sigma", 0), ("power", 0), ("patch", 3), ("search", 1)):
        if not config[knob] >= least:
            raise InputError(f"denoise.{knob} is {config[knob]}; it must be {least} or more")
    if not config.strength > 0:
        raise InputError(f"denoise.strength is {config.strength}; it must be above 0 (no "
                         "denoising: denoise.name=none)")
    if config.patch % 2 == 0:
        raise InputError(f"denoise.patch is {config.patch}; it must be odd")
    if config.name == "none":
        return
    module, package = _PACKAGES[config.name]
    if importlib.util.find_spec(module) is None:
        hint = (", which exists for Python 3.12 and later on Linux x86-64 and macOS arm64 (the "
                "authors' own is for non-commercial use only); elsewhere use denoise.name=nlm, "
                "there " if config.name == "bm3d" else ": ")
        raise InputError(f"denoise.name={config.name} needs {package}{hint}"
                         "pip install 'lljax[denoise]'")


def halo(config: ConfigDict) -> int | None:
    """How many pixels around a pixel the result depends on; None if on the whole picture."""
    if config.name == "none":
        return 0
    if config.name == "nlm" and config.sigma:
        return config.search + config.patch // 2
    return None


def denoise(config: ConfigDict, reflectance: Array, illumination: Array) -> Array:
    """The reflectance with less noise where it is dark. Callable inside jit; has no gradient.

    The filter runs on the host, in 64 bit (`nlm`) or 32 bit (`bm3d`).

    Args:
      config: as `default()`, checked by `check`.
      reflectance: [B, H, W, 3] in [0, 1].
      illumination: [B, H, W, 1]; what is outside [0, 1] counts as its nearest end.

    Returns:
      [B, H, W, 3] in [0, 1].

    Raises:
      ValueError: the two do not belong together.

    Source: Wei et al., BMVC 2018: the strategy depends on the illumination; how is left unsaid.
    """
    if config.name == "none":
        return reflectance
    if reflectance.shape[-1] != 3 or illumination.shape != (*reflectance.shape[:-1], 1):
        raise ValueError(f"denoise: reflectance {reflectance.shape} must be [B, H, W, 3] and "
                         f"illumination {illumination.shape} the same with one channel")
    smooth = _on_host(functools.partial(filtered, config), reflectance)
    share = (1 - illumination.clip(0, 1)) ** config.power
    return reflectance + share * (smooth - reflectance)


def filtered(config: ConfigDict, picture: np.ndarray) -> np.ndarray:
    """A picture filtered everywhere alike, on the host.

    Args:
      config: as `default()`, checked by `check`; not "none".
      picture: float [H, W, 3] in [0, 1].

    Returns:
      Float of 32 or 64 bit, [H, W, 3].
    """
    return {"nlm": _nlm, "bm3d": _bm3d}[config.name](config, picture)


def noise(picture: np.ndarray) -> float:
    """Estimated standard deviation of the noise of a picture, float [H, W, 3] in [0, 1].

    Source: Donoho and Johnstone, 1994: the median of the finest diagonal (here Haar) wavelet
      coefficients over that of a standard normal one.
    """
    x = picture[:picture.shape[0] // 2 * 2, :picture.shape[1] // 2 * 2]
    finest = (x[::2, ::2] - x[1::2, ::2] - x[::2, 1::2] + x[1::2, 1::2]) / 2
    return float(np.median(np.abs(finest))) / 0.6745 if finest.size else 0.0


def _on_host(function: Callable[[np.ndarray], np.ndarray], pictures: Array) -> Array:
    """`function`, numpy [H, W, 3] -> the same, of every picture of [B, H, W, 3]."""
    result = jax.ShapeDtypeStruct(pictures.shape, jnp.float32)

    def every(batch):
        batch = np.asarray(batch).reshape(-1, *pictures.shape[1:])
        return np.stack([function(one) for one in batch]).astype(np.float32)

    def fill(context, out, batch):
        del context  # of a GPU's stream
        out = np.asarray(out)
        out[...] = every(batch).reshape(out.shape)

    def on_cpu(x):
        return buffer_callback(fill, result, vmap_method="broadcast_all")(x)

    def elsewhere(x):
        return jax.pure_callback(lambda x: every(x).reshape(np.shape(x)), result, x,
                                 vmap_method="broadcast_all")

    # On a CPU, pure_callback copies its arguments by the very threads that wait for it: with one
    # core, or from several threads as the enhancer's, it hangs (seen with JAX 0.10).
    return lax.platform_dependent(pictures.astype(jnp.float32), cpu=on_cpu, default=elsewhere)


def _nlm(config: ConfigDict, picture: np.ndarray) -> np.ndarray:
    from skimage.restoration import denoise_nl_means  # slow to import, and of an extra

    sigma = _sigma(config, picture)
    # In 32 bit the filter's running sums make a tile's result differ from the whole picture's.
    return denoise_nl_means(picture.astype(np.float64), config.patch, config.search,
                            h=0.8 * sigma, sigma=sigma, fast_mode=True, channel_axis=-1)


def _bm3d(config: ConfigDict, picture: np.ndarray) -> np.ndarray:
    """BM3D of each opponent channel by itself: the library is for grey pictures.

    The authors' CBM3D looks for similar blocks in the grey channel alone and groups them so in all.
    """
    from bm3dornl import bm3d_ring_artifact_removal

    sigma = _sigma(config, picture)
    channels = []
    for channel in np.moveaxis(picture @ _OPPONENT.T, -1, 0):
        spread = float(np.ptp(channel))  # the library scales it to 1, and wants sigma after that
        channels.append(bm3d_ring_artifact_removal(
            channel, mode="generic", sigma_random=sigma / spread) if spread else channel)
    return (np.stack(channels, -1) @ _OPPONENT).clip(0, 1)


def _sigma(config: ConfigDict, picture: np.ndarray) -> float:
    """The noise that the filter is told."""
    # A noiseless picture is left as it is, rather than divided by zero.
    return max(config.strength * (config.sigma or noise(picture)), 1e-6)
