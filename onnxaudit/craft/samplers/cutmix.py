"""SAC-m: CutMix mixtures of natural images, mirrored (Guan et al. 2022, eq. 8; Yun et al. 2019)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from onnxaudit.craft.sample import Material, Sample
from onnxaudit.errors import UsageError


def sample_cutmix(
    material: Material,
    n: int,
    rng: np.random.Generator,
    progress: Callable[[int], None],
    *,
    box: str = "standard",
    flip: str = "horizontal",
) -> Sample:
    """n mixtures of pairs of images from the data, flipped.

    box: "standard" (side sqrt(1 - lambda), lambda uniform, centre uniform) or "corner" (the authors' code: side 0.2 of the
    image, centre in one of the four corner regions, the same box for all). flip: "horizontal", "vertical", "transpose" (the
    authors' code) or "none". Raises UsageError for vectors, too little data, or a value that is none of these.
    """
    images = material.images()
    if len(images) < 2:
        raise UsageError("mixing images takes at least two", "Give more data.")
    progress(n)
    return Sample(flipped(cutmix(material.draw(n, rng).astype(np.uint8), rng, box), flip))


def cutmix(images: NDArray[np.uint8], rng: np.random.Generator, box: str = "standard") -> NDArray[np.uint8]:
    """Each image (n, H, W, C) with a box of it replaced by that of another: x = B * x_0 + (1 - B) * x_1 (SAC eq. 8)."""
    n, height, width, _ = images.shape
    if box == "standard":
        side = np.sqrt(1 - rng.uniform(size=n))
        centre = rng.uniform(size=(2, n))
    elif box == "corner":
        side = np.full(n, 0.2)
        centre = np.repeat([[_corner(height, rng)], [_corner(width, rng)]], n, axis=1)
    else:
        raise UsageError(f"box={box!r} is not known", "Use standard or corner.")
    inside = _band(centre[0], side, height)[:, :, None] & _band(centre[1], side, width)[:, None, :]
    partner = (np.arange(n) + rng.integers(1, max(2, n))) % n  # a shift never pairs an image with itself
    return np.where(inside[..., None], images[partner], images)


def _corner(size: int, rng: np.random.Generator) -> float:
    """A relative position in the outer sixth of ``size`` pixels at either end."""
    pixels = np.arange(size)
    outer = pixels[(pixels < size / 6) | (pixels > size * 5 / 6)]
    return float((rng.choice(outer) + 0.5) / size)


def _band(centre: NDArray[np.float64], side: NDArray[np.float64], size: int) -> NDArray[np.bool_]:
    """Which of ``size`` rows lie within side / 2 of the centre (both relative), for each of n boxes, (n, size)."""
    half = np.floor(side * size / 2)[:, None]
    position = np.arange(size)[None, :]
    middle = np.floor(centre * size)[:, None]
    return np.asarray((position >= middle - half) & (position < middle + half))


def flipped(images: NDArray[np.uint8], flip: str) -> NDArray[np.uint8]:
    """Images (n, H, W, C) mirrored; "transpose" needs square ones and leaves others as they are."""
    if flip == "horizontal":
        images = images[:, :, ::-1]
    elif flip == "vertical":
        images = images[:, ::-1]
    elif flip == "transpose" and images.shape[1] == images.shape[2]:
        images = images.transpose(0, 2, 1, 3)
    elif flip not in ("none", "transpose"):
        raise UsageError(f"flip={flip!r} is not known", "Use horizontal, vertical, transpose or none.")
    return np.ascontiguousarray(images)
