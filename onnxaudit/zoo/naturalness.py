"""Simple tests of whether an input looks as natural ones do, as a server may put before it answers; NumPy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def roughness(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """High-frequency energy of images (n, H, W, C), (n,): the mean square of each pixel's difference from the mean of its four
    neighbours, pixels in [0, 1] and edges repeated. Gradient attacks and mixtures of images raise it."""
    pixels = np.pad(images.astype(np.float64) / 255, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    around = (pixels[:, :-2, 1:-1] + pixels[:, 2:, 1:-1] + pixels[:, 1:-1, :-2] + pixels[:, 1:-1, 2:]) / 4
    energy: NDArray[np.float64] = np.square(pixels[:, 1:-1, 1:-1] - around).mean(axis=(1, 2, 3))
    return energy
