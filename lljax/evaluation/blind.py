"""Quality without a reference: NIQE, written from the paper, and BRISQUE, which OpenCV computes.

For following one system, not for ranking several: both prefer some bad pictures (a CLAHE that
brings out noise, say) to good ones, and published values differ by program and version.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import os
import zipfile

import numpy as np
import scipy.io
from scipy.ndimage import correlate1d
from scipy.special import gamma

from lljax.errors import InputError

BLOCK = 96  # px, side of NIQE's blocks, which do not overlap
_SHAPES = np.arange(0.2, 10.0005, 0.001)  # searched for the generalised Gaussian's shape
_RATIOS = gamma(2 / _SHAPES) ** 2 / (gamma(1 / _SHAPES) * gamma(3 / _SHAPES))
_NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))  # right, below, and the two diagonals
_NAMES = {"mean": ("mu_pris_param", "mu_prisparam"), "covariance": ("cov_pris_param",
                                                                    "cov_prisparam")}
_BRISQUE = "BRISQUE needs OpenCV with its quality module: pip install 'lljax[brisque]'"


class Niqe:
    """Natural image quality evaluator; lower is better, photographs have 2 to 5.

    Luma (BT.601, 16 to 235, rounded) is normalised by local mean and deviation (7 x 7 Gaussian);
    36 features of each block of 96 x 96 px, 18 a scale, describe the distribution of the values
    and of neighbours' products. The value is a distance of their mean and covariance from those
    of good photographs. What is left over at the right and bottom border is not looked at. Blocks
    without any texture have no features and are left out; with fewer than two blocks left there
    is no covariance, and the value is inf.

    Source: Mittal et al. 2013, "Making a completely blind image quality analyzer"; what the paper
    leaves open is as in the authors' program (not as in MATLAB's `niqe`, another model).

    Args:
      path: a .npz or .mat file with the authors' parameters: a mean of 36 and a covariance of
        36 x 36, named mu_pris_param and cov_pris_param, or mu_prisparam and cov_prisparam.

    Raises:
      InputError: no such file, an unreadable one, or one without these parameters.
    """

    def __init__(self, path: str):
        arrays = _arrays(path)
        shapes = {"mean": (36,), "covariance": (36, 36)}
        for part, names in _NAMES.items():
            found = next((arrays[name] for name in names if name in arrays), None)
            found = np.squeeze(found) if found is not None else None
            if found is None or found.shape != shapes[part] or found.dtype.kind not in "fiu":
                what = "is absent" if found is None else f"is {found.dtype} {found.shape}"
                raise InputError(f"{path} does not hold NIQE's parameters: {' or '.join(names)} "
                                 f"{what}, expected numbers {shapes[part]}")
            setattr(self, part, found.astype(np.float64))

    def __call__(self, picture: np.ndarray) -> float:
        """NIQE of uint8 RGB [H, W, 3] with at least two blocks of 96 x 96 px."""
        # 32 bits at this scale and 64 at the next, as in BasicSR: the local deviation of nearly
        # flat parts depends on it, and a picture with many of them scores 0.002 more or less.
        plane = np.round(luma(picture.astype(np.float64)).astype(np.float32))
        rows, columns = plane.shape[0] // BLOCK, plane.shape[1] // BLOCK
        plane = plane[:rows * BLOCK, :columns * BLOCK]
        scales = []
        for side in (BLOCK, BLOCK // 2):
            blocks = _normalised(plane).reshape(rows, side, columns, side).swapaxes(1, 2)
            scales.append([_features(block) for block in blocks.reshape(-1, side, side)])
            plane = _halved(plane.astype(np.float64))
        features = np.concatenate(scales, axis=1)
        whole = features[np.isfinite(features).all(1)]
        if len(whole) < 2:
            return math.inf
        counted = np.isfinite(features)  # the mean takes what a block has, as the authors' does
        mean = np.where(counted, features, 0).sum(0) / counted.sum(0)
        away = self.mean - mean
        spread = (self.covariance + np.cov(whole, rowvar=False)) / 2
        return math.sqrt(max(0.0, float(away @ np.linalg.pinv(spread) @ away)))


def luma(rgb: np.ndarray) -> np.ndarray:
    """BT.601 studio luma of RGB float64 [H, W, 3], 0 to 255: [H, W], 16 to 235."""
    return rgb @ (np.array([65.481, 128.553, 24.966]) / 255) + 16


def _arrays(path: str) -> dict[str, np.ndarray]:
    if not os.path.isfile(path):
        raise InputError(f"no file {path!r} of NIQE's parameters")
    try:
        if path.endswith(".mat"):
            return scipy.io.loadmat(path)
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (ValueError, TypeError, OSError, EOFError, NotImplementedError, zipfile.BadZipFile,
            scipy.io.matlab.MatReadError) as error:
        raise InputError(f"{path} is no .npz or .mat file of NIQE's parameters") from error


def _normalised(plane: np.ndarray) -> np.ndarray:
    taps = np.exp(-0.5 * (np.arange(-3, 4) / (7 / 6)) ** 2)
    taps /= taps.sum()

    def blurred(x: np.ndarray) -> np.ndarray:
        for axis in (0, 1):
            x = correlate1d(x, taps, axis=axis, mode="nearest")
        return x

    mean = blurred(plane)
    return (plane - mean) / (np.sqrt(np.abs(blurred(plane**2) - mean**2)) + 1)


def _halved(plane: np.ndarray) -> np.ndarray:
    """Half the size, as MATLAB's imresize: a cubic (a = -1/2) stretched over 8 px."""
    x = np.abs(np.arange(-3.5, 4)) / 2
    taps = np.where(x <= 1, 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2)
    taps /= taps.sum()
    for axis in (0, 1):
        # Eight taps have no middle: the filter's is the fifth, so the 2nd, 4th ... fit.
        plane = correlate1d(plane, taps, axis=axis, mode="reflect")
        plane = plane.take(np.arange(1, plane.shape[axis], 2), axis=axis)
    return plane


def _features(block: np.ndarray) -> list[float]:
    """18 numbers of one block of normalised luma; some are NaN if it has no texture."""
    shape, left, right = _fitted(block)
    features = [shape, (left + right) / 2]
    for shift in _NEIGHBOURS:
        shape, left, right = _fitted(block * np.roll(block, shift, axis=(0, 1)))
        features += [shape, (right - left) * gamma(2 / shape) / gamma(1 / shape), left, right]
    return features


def _fitted(values: np.ndarray) -> tuple[float, float, float]:
    """Shape, left and right scale of an asymmetric generalised Gaussian, by its moments."""
    negative, positive = values[values < 0], values[values > 0]
    if not (negative.size and positive.size):
        return math.nan, math.nan, math.nan
    left, right = math.sqrt(np.mean(negative**2)), math.sqrt(np.mean(positive**2))
    ratio = left / right
    wanted = (np.mean(np.abs(values)) ** 2 / np.mean(values**2)
              * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2)
    at = int(np.argmin((_RATIOS - wanted) ** 2))
    scale = _scales()[at]
    return float(_SHAPES[at]), left * scale, right * scale


@functools.cache
def _scales() -> np.ndarray:
    return np.sqrt(gamma(1 / _SHAPES) / gamma(3 / _SHAPES))


class Brisque:
    """Blind spatial quality evaluator as OpenCV's contributed quality module computes it.

    0 to 100, lower is better. It differs from the authors' MATLAB program in shrinking and
    rounding, so values of papers are no match.

    Source: Mittal et al. 2012, "No-reference image quality assessment in the spatial domain".

    Args:
      model: brisque_model_live.yml, of the samples of that module.
      scaling: brisque_range_live.yml, likewise.

    Raises:
      InputError: OpenCV's quality module is not installed, or a file is missing or unreadable.
    """

    def __init__(self, model: str, scaling: str):
        if reason := brisque_absent():
            raise InputError(reason)
        import cv2  # optional, and slow to import

        for path in (model, scaling):
            if not os.path.isfile(path):
                raise InputError(f"no file {path!r} for BRISQUE")
        try:
            self._quality = cv2.quality.QualityBRISQUE_create(model, scaling)
        except cv2.error as error:
            raise InputError(f"{model} and {scaling} are not BRISQUE's model and range: "
                             f"{error.err}") from error

    def __call__(self, picture: np.ndarray) -> float:
        """BRISQUE of uint8 RGB [H, W, 3]."""
        return float(self._quality.compute(np.ascontiguousarray(picture[..., ::-1]))[0])


def brisque_absent() -> str:
    """Why BRISQUE cannot be computed here; "" if it can, given its files."""
    if importlib.util.find_spec("cv2") is None:
        return _BRISQUE
    import cv2  # optional, and slow to import

    return "" if hasattr(cv2, "quality") else _BRISQUE
