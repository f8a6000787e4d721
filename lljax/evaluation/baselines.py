"""What a system has to beat: doing nothing, and brightening by one fixed curve."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def identity(picture: np.ndarray) -> np.ndarray:
    """The picture as it is: uint8 [H, W, 3] -> the same."""
    return picture


def gamma(exponent: float) -> Callable[[np.ndarray], np.ndarray]:
    """A function uint8 [H, W, 3] -> uint8, rounded 255 (x / 255)^exponent; below 1 brightens."""
    table = np.round(255 * (np.arange(256) / 255) ** exponent).astype(np.uint8)
    return lambda picture: table[picture]


BASELINES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "identity": identity,
    "gamma 0.4": gamma(0.4),
    "gamma 0.5": gamma(0.5),
}
