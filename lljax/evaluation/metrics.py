"""Metrics: a card for each, so that a number is never shown without what it means.

Every function takes the pixels a user gets: uint8 RGB [H, W, 3], enhanced and reference of one
size. Sums run in float64 on the host: values do not depend on the device, nothing is compiled for
a new picture size, and SSIM equals scikit-image's to 1e-12. (float32 SSIM, as on an accelerator,
is off by up to 1.3e-4 where a picture is flat and bright: a variance is a difference of squares.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import correlate1d

from lljax.errors import InputError

GREY = np.array([0.299, 0.587, 0.114])  # BT.601 luma of RGB, in this order
PEAK = 255.0
WINDOW = 11  # px, side of the SSIM window
SIGMA = 1.5  # px, standard deviation of the SSIM window
C1 = (0.01 * PEAK) ** 2
C2 = (0.03 * PEAK) ** 2


@dataclass(frozen=True)
class Metric:
    """What a metric is.

    Attributes:
      key: name in results files, e.g. "psnr".
      title: heading of its column.
      unit: "dB", "grey levels" or "" (a pure number).
      better: "up" or "down".
      range: smallest and largest possible value.
      colour: colour space it is computed in.
      reference: the program that it is to equal.
      tolerance: largest absolute difference from that program.
      gt_mean: whether the output first gets the reference's mean grey. Such a value uses the
        reference twice and is not comparable with one that does not.
      protocol: all of this in short; printed beside every number.
      digits: decimals shown in tables.
      min_side: shortest picture side it is defined for, px.
      function: (enhanced, reference), uint8 [H, W, 3] each -> float; raises InputError.
    """

    key: str
    title: str
    unit: str
    better: str
    range: tuple[float, float]
    colour: str
    reference: str
    tolerance: float
    gt_mean: bool
    protocol: str
    digits: int
    min_side: int
    function: Callable[[np.ndarray, np.ndarray], float]

    @property
    def heading(self) -> str:
        """Title, unit and direction, e.g. "PSNR dB (up)"."""
        return " ".join(filter(None, (self.title, self.unit, f"({self.better})")))


def check(enhanced: np.ndarray, reference: np.ndarray, min_side: int = 1) -> None:
    """Refuses what cannot be compared pixel by pixel; nothing is ever resized or rescaled.

    Args:
      enhanced: meant to be uint8 [H, W, 3], RGB.
      reference: the same.
      min_side: shortest allowed side in px.

    Raises:
      InputError: another type or shape, two sizes, or a picture that is too small.
    """
    for what, picture in (("enhanced", enhanced), ("reference", reference)):
        kind = getattr(picture, "dtype", type(picture).__name__)
        if kind != np.uint8:
            raise InputError(f"the {what} picture is {kind}; metrics take uint8, 0 to 255: clip, "
                             "scale and round it first")
        if picture.ndim != 3 or picture.shape[2] != 3:
            raise InputError(f"the {what} picture has shape {tuple(picture.shape)}; "
                             "metrics take RGB [height, width, 3]")
    if enhanced.shape != reference.shape:
        raise InputError(f"sizes differ: enhanced is {_size(enhanced)} and reference is "
                         f"{_size(reference)} (width x height); metrics never resize")
    if min(enhanced.shape[:2]) < min_side:
        raise InputError(f"the picture is {_size(enhanced)} (width x height); it needs at least "
                         f"{min_side} px a side (SSIM's window is {WINDOW} px)")


def _size(picture: np.ndarray) -> str:
    return f"{picture.shape[1]}x{picture.shape[0]}"


def psnr(enhanced: np.ndarray, reference: np.ndarray) -> float:
    """Peak signal-to-noise ratio over all pixels and channels, in dB; inf for equal pictures.

    Args:
      enhanced: uint8 [H, W, 3], RGB.
      reference: the same size.

    Raises:
      InputError: see `check`.
    """
    check(enhanced, reference)
    return _psnr(enhanced.astype(np.float64), reference.astype(np.float64))


def ssim(enhanced: np.ndarray, reference: np.ndarray) -> float:
    """Structural similarity, mean over channels and over the windows inside the picture; <= 1.

    Gaussian window of 11 px, sigma 1.5 px, population covariance, K1 = 0.01, K2 = 0.03: BasicSR's
    and MATLAB's, and scikit-image's with `gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False, channel_axis=2, data_range=255`. SSIM of the grey picture, which
    some papers report, is 0.1 to 0.2 higher.

    Source: Wang et al. 2004, "Image quality assessment: from error visibility to structural
    similarity", equation 13.

    Args:
      enhanced: uint8 [H, W, 3], RGB, each side at least 11 px.
      reference: the same size.

    Raises:
      InputError: see `check`.
    """
    check(enhanced, reference, WINDOW)
    return _ssim(enhanced.astype(np.float64), reference.astype(np.float64))


def mae(enhanced: np.ndarray, reference: np.ndarray) -> float:
    """Mean absolute difference over all pixels and channels, in grey levels, 0 to 255.

    Args:
      enhanced: uint8 [H, W, 3], RGB.
      reference: the same size.

    Raises:
      InputError: see `check`.
    """
    check(enhanced, reference)
    return _mae(enhanced.astype(np.float64), reference.astype(np.float64))


def gt_mean(enhanced: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The output scaled to the reference's mean grey and clipped: float64 [H, W, 3], 0 to 255.

    Papers have at least four "gt-mean" corrections. This one weights RGB by 0.299, 0.587, 0.114
    and does not round after scaling (HVI-CIDNet's; Retinexformer's has the weights of red and blue
    swapped). Protocols call it gtmean601. A black output has no scale and stays black.

    Args:
      enhanced: uint8 [H, W, 3], RGB.
      reference: the same size.

    Raises:
      InputError: see `check`.
    """
    check(enhanced, reference)
    grey = (enhanced.mean((0, 1), dtype=np.float64) * GREY).sum()
    target = (reference.mean((0, 1), dtype=np.float64) * GREY).sum()
    if grey == 0:
        return enhanced.astype(np.float64)
    return np.clip(enhanced * (target / grey), 0, PEAK)


def psnr_gt_mean(enhanced: np.ndarray, reference: np.ndarray) -> float:
    """`psnr` in dB after `gt_mean`; same arguments and errors."""
    return _psnr(gt_mean(enhanced, reference), reference.astype(np.float64))


def ssim_gt_mean(enhanced: np.ndarray, reference: np.ndarray) -> float:
    """`ssim` after `gt_mean`; same arguments and errors."""
    check(enhanced, reference, WINDOW)
    return _ssim(gt_mean(enhanced, reference), reference.astype(np.float64))


def mae_gt_mean(enhanced: np.ndarray, reference: np.ndarray) -> float:
    """`mae` in grey levels after `gt_mean`; same arguments and errors."""
    return _mae(gt_mean(enhanced, reference), reference.astype(np.float64))


def _psnr(a: np.ndarray, b: np.ndarray) -> float:
    mse = np.mean((a - b) ** 2)
    return float(10 * np.log10(PEAK**2 / mse)) if mse else math.inf


def _mae(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.mean(np.abs(a - b)))


def _ssim(a: np.ndarray, b: np.ndarray) -> float:
    # One channel at a time: a plane of a usual picture stays in the processor's cache.
    return float(np.mean([_ssim_plane(a[..., c], b[..., c]) for c in range(a.shape[2])]))


def _ssim_plane(a: np.ndarray, b: np.ndarray) -> float:
    mean_a, mean_b = _window(a), _window(b)
    product = mean_a * mean_b
    squares = mean_a**2 + mean_b**2
    covariance = _window(a * b) - product
    variances = _window(a**2 + b**2) - squares  # SSIM needs only their sum: one filter fewer
    # (2 ma mb + C1) (2 sab + C2) / ((ma^2 + mb^2 + C1) (sa^2 + sb^2 + C2))
    values = ((2 * product + C1) * (2 * covariance + C2)) / ((squares + C1) * (variances + C2))
    return float(values.mean())


def _window(plane: np.ndarray) -> np.ndarray:
    """Gaussian mean around every pixel whose window lies inside: [H, W] -> [H - 10, W - 10]."""
    half = WINDOW // 2
    taps = np.exp(-0.5 * (np.arange(-half, half + 1) / SIGMA) ** 2)
    taps /= taps.sum()
    plane = correlate1d(plane, taps, axis=0)[half:-half]
    return correlate1d(plane, taps, axis=1)[:, half:-half]


_SKIMAGE = "scikit-image peak_signal_noise_ratio, data_range=255"
_SKIMAGE_SSIM = ("scikit-image structural_similarity, gaussian_weights=True, sigma=1.5, "
                 "use_sample_covariance=False, channel_axis=2, data_range=255")
_CARDS = (
    Metric("psnr", "PSNR", "dB", "up", (0.0, math.inf), "RGB", _SKIMAGE, 1e-4, False,
           "psnr[rgb,u8]", 2, 1, psnr),
    Metric("ssim", "SSIM", "", "up", (-1.0, 1.0), "RGB, mean over channels", _SKIMAGE_SSIM, 1e-5,
           False, "ssim[rgb,g11,s1.5,valid,u8]", 4, WINDOW, ssim),
    Metric("mae", "MAE", "grey levels", "down", (0.0, PEAK), "RGB", "numpy, mean(abs(a - b))",
           1e-9, False, "mae[rgb,u8,0-255]", 1, 1, mae),
    Metric("psnr_gtm", "PSNR-gtm", "dB", "up", (0.0, math.inf), "RGB", _SKIMAGE, 1e-4, True,
           "psnr[rgb,u8,gtmean601]", 2, 1, psnr_gt_mean),
    Metric("ssim_gtm", "SSIM-gtm", "", "up", (-1.0, 1.0), "RGB, mean over channels",
           _SKIMAGE_SSIM, 1e-5, True, "ssim[rgb,g11,s1.5,valid,u8,gtmean601]", 4,
           WINDOW, ssim_gt_mean),
    Metric("mae_gtm", "MAE-gtm", "grey levels", "down", (0.0, PEAK), "RGB",
           "numpy, mean(abs(a - b))", 1e-9, True, "mae[rgb,u8,0-255,gtmean601]", 1, 1,
           mae_gt_mean),
)
METRICS: dict[str, Metric] = {card.key: card for card in _CARDS}
