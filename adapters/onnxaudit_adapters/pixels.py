"""What servers do to images before a model sees them: uint8 (n, H, W, C) in, the same out, C being 1 or 3.

Every function stays on the 8-bit grid, on which images are sent. Those that draw numbers draw them for each image from what it
holds, so that an image is always changed in the same way.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from onnxaudit_adapters.chance import generators

Images: TypeAlias = NDArray[np.uint8]


def jpeg(images: Images, *, quality: int = 75) -> Images:
    """Compressed as JPEG with this quality and read again."""
    return _each(images, lambda picture: _recompressed(picture, quality))


def equalise(images: Images) -> Images:
    """Each channel's histogram flattened, over the image's own pixels."""
    return _each(images, ImageOps.equalize)


def posterise(images: Images, *, bits: int = 4) -> Images:
    """Only the highest bits of each pixel kept."""
    return images & np.uint8(256 - (1 << (8 - bits)))


def blur(images: Images, *, sigma: float = 0.5) -> Images:
    """Gaussian blur with this standard deviation in pixels; the edge is repeated outwards."""
    from scipy.ndimage import gaussian_filter

    return _grid(gaussian_filter(images.astype(np.float32), (0, sigma, sigma, 0), mode="nearest"))


def resize(images: Images, *, scale: float = 0.9) -> Images:
    """Scaled by this factor and back, bilinear, with antialiasing where it gets smaller."""
    height, width = images.shape[1:3]
    middle = (max(1, round(width * scale)), max(1, round(height * scale)))
    return _each(images, lambda picture: _bilinear(_bilinear(picture, middle), (width, height)))


def noise(images: Images, *, sigma: float = 0.01, seed: int = 0) -> Images:
    """Gaussian noise with this standard deviation, pixels being in [0, 1]."""
    draws = [chance.standard_normal(images.shape[1:], np.float32) for chance in generators(images, f"noise {seed}")]
    return _grid(images + np.float32(255 * sigma) * np.stack(draws))


def flip(images: Images) -> Images:
    """Left and right exchanged."""
    return np.ascontiguousarray(images[:, :, ::-1])


def crop(images: Images, *, share: float = 0.95) -> Images:
    """The middle of this share of height and width, brought back to the full size, bilinear."""
    height, width = images.shape[1:3]
    left, top = width * (1 - share) / 2, height * (1 - share) / 2
    box = (left, top, width - left, height - top)
    return _each(images, lambda picture: picture.resize((width, height), Image.Resampling.BILINEAR, box))


def shift(images: Images, *, right: int = 1, down: int = 1) -> Images:
    """Moved by so many pixels (negative: left, up); the edge is repeated."""
    height, width = images.shape[1:3]
    rows = np.clip(np.arange(height) - down, 0, height - 1)
    columns = np.clip(np.arange(width) - right, 0, width - 1)
    return images[:, rows[:, None], columns]


def smooth(images: Images, *, sigma: float = 0.02, copies: int = 100, seed: int = 0) -> Images:
    """The mean logits of so many noisy copies, pixels being in [0, 1]; of a model that gives labels or top-k, the majority."""
    noisy = np.empty((len(images) * copies, *images.shape[1:]), np.uint8)
    size = np.float32(255 * sigma)
    for place, chance in enumerate(generators(images, f"smooth {seed}")):
        for copy in range(place * copies, (place + 1) * copies):  # one by one: floats of all copies may be gigabytes
            noisy[copy] = _grid(images[place] + size * chance.standard_normal(images.shape[1:], np.float32))
    return noisy


def _each(images: Images, change: Callable[[Image.Image], Image.Image]) -> Images:
    """Images changed one by one as pictures."""
    grey = images.shape[3] == 1
    changed = [np.asarray(change(Image.fromarray(image[..., 0] if grey else image))) for image in images]
    stacked = np.stack(changed)
    return stacked[..., None] if grey else stacked


def _recompressed(picture: Image.Image, quality: int) -> Image.Image:
    written = io.BytesIO()
    picture.save(written, "JPEG", quality=quality)
    return Image.open(written)


def _bilinear(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    return picture.resize(size, Image.Resampling.BILINEAR)


def _grid(values: NDArray[np.float32]) -> Images:
    """Values brought back to the 8-bit grid."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
