"""LIME's neighbourhoods: images of which some segments are hidden (Ribeiro et al. 2016; ZestOfLIME, Jia et al. 2022)."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from numpy.typing import NDArray

from onnxaudit.craft.sample import Material, Sample
from onnxaudit.craft.samplers.natural import errors_of
from onnxaudit.errors import UsageError, missing_extra

KERNEL_SIZE, RATIO, MAX_DISTANCE = 4, 0.2, 200
"""Of quickshift, as in LIME, Zest and QuRD."""


def sample_subsample(
    material: Material,
    n: int,
    rng: np.random.Generator,
    progress: Callable[[int], None],
    *,
    views: int = 10,
    fill: str = "mean",
) -> Sample:
    """n / views images of the data at random, each shown ``views`` times with segments hidden at random (Zest section 3).

    The first view of an image is the image; in the others each segment is hidden with probability 1/2. fill: what hidden pixels
    become, the "mean" of the data in each channel (Zest) or "zero" (QuRD). Zest has 128 images (the first, not random ones) and
    1000 views, QuRD 10 or 100 views. Columns: "group", the image's number, and "mask", (n, segments), 1 where a segment is
    shown, padded with zeros to the most segments of any image. Raises UsageError for vectors.
    """
    images = material.images()
    return _subsample(images, rng.permutation(len(images)), "images", n, rng, progress, views, fill)


def sample_negative_subsample(
    material: Material,
    n: int,
    rng: np.random.Generator,
    progress: Callable[[int], None],
    *,
    views: int = 10,
    fill: str = "mean",
) -> Sample:
    """As ``sample_subsample``, of images that the victim gets wrong (QuRD's NegativeSubsample).

    Raises UsageError for vectors, without labels, or with fewer than two errors.
    """
    images = material.images()
    data, _ = material.labelled()
    return _subsample(images, errors_of(material.victim, data, rng), "errors", n, rng, progress, views, fill)


def segments_of(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The number of the quickshift segment of each pixel of images (n, H, W, C), from 0, (n, H, W).

    As in Zest's code the levels 0 to 255 stay as they are where the algorithm expects 0 to 1, which makes segments small enough.
    """
    try:
        from skimage import segmentation
    except ImportError:
        raise missing_extra("scikit-image", "torch") from None
    quickshift: Callable[..., NDArray[np.int64]] = segmentation.quickshift
    cut = partial(quickshift, kernel_size=KERNEL_SIZE, ratio=RATIO, max_dist=MAX_DISTANCE)
    colours = np.broadcast_to(images, (*images.shape[:3], 3)).astype(np.float64)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # the library takes one image at a time, and releases the lock
        return np.stack(list(pool.map(cut, colours)))


def hide(
    images: NDArray[np.uint8], segments: NDArray[np.int64], shown: NDArray[np.uint8], fill: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Views of images (g, H, W, C), with ``fill`` (C,) where ``shown`` (g, views, segments) is 0, (g * views, H, W, C)."""
    g, views, _ = shown.shape
    visible = shown[np.arange(g)[:, None, None, None], np.arange(views)[None, :, None, None], segments[:, None]]
    return np.where(visible[..., None], images[:, None], fill).reshape(g * views, *images.shape[1:])


def _subsample(
    images: NDArray[np.uint8],
    rows: NDArray[np.int64],
    what: str,
    n: int,
    rng: np.random.Generator,
    progress: Callable[[int], None],
    views: int,
    fill: str,
) -> Sample:
    if fill not in ("mean", "zero"):
        raise UsageError(f"fill={fill!r} is not known", "Use mean or zero.")
    if views < 2:
        raise UsageError(f"views={views} is too few", "An image must be shown at least twice.")
    views = min(views, n)
    seeds = images[rows[: n // views]]
    segments = segments_of(seeds)
    counts = segments.max(axis=(1, 2)) + 1
    shown = rng.integers(0, 2, (len(seeds), views, int(counts.max())), dtype=np.uint8)
    shown[:, 0] = 1
    shown *= (np.arange(shown.shape[2]) < counts[:, None])[:, None].astype(np.uint8)
    colour = images.mean(axis=(0, 1, 2)).round().astype(np.uint8) if fill == "mean" else np.zeros(images.shape[3], np.uint8)
    queries = hide(seeds, segments, shown, colour)
    progress(len(queries))
    note = f"{len(queries)} queries instead of {n}: {views} views of each of {len(seeds)} {what}"
    return Sample(
        queries,
        (note,) if len(queries) < n else (),
        {"views": views},
        {"group": np.repeat(np.arange(len(seeds), dtype=np.int32), views), "mask": shown.reshape(len(queries), -1)},
    )
