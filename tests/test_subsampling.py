"""Queries with hidden segments: pixel by pixel what their masks say."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import nn

from onnxaudit.answers import Access, Answers
from onnxaudit.craft.data import Data
from onnxaudit.craft.sample import Material, Sample
from onnxaudit.craft.samplers.subsampling import hide, sample_negative_subsample, sample_subsample, segments_of
from onnxaudit.schemes.representations import REPRESENTATIONS
from onnxaudit.suspect import InputSpec
from tests.material import SHAPE, as_victim, sampled, shipped


@pytest.fixture
def material() -> Material:
    return shipped()


def pixels(sample: Sample) -> NDArray[np.uint8]:
    """The queries, which are images."""
    assert sample.queries.dtype == np.uint8
    return sample.queries.astype(np.uint8)


@pytest.mark.parametrize("function", [sample_subsample, sample_negative_subsample])
@pytest.mark.parametrize(("fill", "colour"), [("mean", None), ("zero", 0)])
def test_a_view_shows_the_segments_that_its_mask_says(
    function: Callable[..., Sample], fill: str, colour: int | None, material: Material
) -> None:
    sample = sampled(function, material, 40, views=8, fill=fill)
    group, mask = sample.columns["group"], sample.columns["mask"]
    assert group.tolist() == [i // 8 for i in range(40)]
    assert sample.parameters == {"views": 8}
    grey = round(float(material.inputs().x.mean())) if colour is None else colour
    seeds = pixels(sample)[::8]
    counts = segments_of(seeds).max(axis=(1, 2)) + 1
    assert mask.shape == (40, counts.max())
    for row in range(40):  # pixel by pixel what the sampler does by indexing
        image, segments = seeds[row // 8], segments_of(seeds[row // 8][None])[0]
        assert not mask[row, counts[row // 8] :].any()
        for number in range(counts[row // 8]):
            inside = segments == number
            assert (sample.queries[row][inside] == (image[inside] if mask[row, number] else grey)).all()
    assert all(mask[row, : counts[row // 8]].all() for row in range(0, 40, 8))  # the first view is the image


def test_segments_are_hidden_half_of_the_time(material: Material) -> None:
    sample = sampled(sample_subsample, material, 2000, views=500)
    counts = segments_of(pixels(sample)[::500]).max(axis=(1, 2)) + 1
    shown = [sample.columns["mask"][1 + i * 500 : (i + 1) * 500, :count].mean(axis=0) for i, count in enumerate(counts)]
    assert np.abs(np.concatenate(shown) - 0.5).max() < 0.1


def test_segments_are_those_of_scikit_image_in_three_channels() -> None:
    from skimage import segmentation

    quickshift: Callable[..., NDArray[np.int64]] = segmentation.quickshift

    rng = np.random.default_rng(2)
    colour = rng.integers(0, 256, (2, 4, 4, 3)).astype(np.uint8).repeat(6, axis=1).repeat(6, axis=2)
    grey = colour[..., :1]
    for images in (colour, grey):
        rgb = np.concatenate([images] * 3, axis=3) if images.shape[3] == 1 else images
        expected = [quickshift(image.astype(float), kernel_size=4, ratio=0.2, max_dist=200) for image in rgb]
        found = segments_of(images)
        assert np.array_equal(found, np.stack(expected))
        assert found.max() >= 5  # there is something to hide


def test_hiding_in_colour() -> None:
    images = np.arange(2 * 2 * 2 * 3, dtype=np.uint8).reshape(2, 2, 2, 3)
    segments = np.array([[[0, 0], [1, 1]], [[0, 1], [2, 2]]])
    shown = np.array([[[1, 1, 0], [0, 1, 0]], [[1, 0, 1], [0, 0, 0]]], np.uint8)
    fill = np.array([100, 101, 102], np.uint8)
    found = hide(images, segments, shown, fill)
    assert found.shape == (4, 2, 2, 3)
    assert np.array_equal(found[0], images[0])
    assert np.array_equal(found[1], np.array([[fill, fill], images[0, 1]]))
    assert np.array_equal(found[2], np.array([[images[1, 0, 0], fill], images[1, 1]]))
    assert np.array_equal(found[3], np.broadcast_to(fill, (2, 2, 3)))


@pytest.mark.parametrize(("n", "views", "sent", "each"), [(35, 10, 30, 10), (7, 10, 7, 7), (500, 100, 300, 100)])
def test_budgets_that_views_do_not_divide(n: int, views: int, sent: int, each: int, material: Material) -> None:
    few = Material(material.victim, Data(material.inputs().x[:3], None, (), ""))
    sample = sampled(sample_subsample, few, n, views=views)
    assert len(sample.queries) == sent
    assert sample.parameters == {"views": each}
    assert sample.notes == (
        (f"{sent} queries instead of {n}: {each} views of each of {sent // each} images",) if sent < n else ()
    )


def test_the_images_of_negative_subsampling_are_errors(material: Material) -> None:
    seeds = sampled(sample_negative_subsample, material, 100, views=10).queries[::10]
    rows = [int(np.flatnonzero((material.inputs().x == seed).all(axis=(1, 2, 3)))[0]) for seed in seeds]
    assert len(set(rows)) == 10
    assert (material.victim.answer(seeds).argmax(1) != material.labelled()[1][rows]).all()


def test_lime_explains_a_victim_that_counts_light(material: Material) -> None:
    """For a linear victim the weight of a segment is what hiding it takes from the outputs, exactly."""
    linear = nn.Sequential(nn.Flatten(), nn.Linear(784, 3, bias=False))
    victim = as_victim(linear, InputSpec(SHAPE))
    sample = sampled(sample_subsample, Material(victim, material.inputs()), 120, views=60, fill="zero")
    found = REPRESENTATIONS["lime"].function(
        Answers.from_scores(victim.answer(sample.queries), Access.LOGITS), sample.columns, feed="logits"
    )
    seeds = pixels(sample)[::60]
    parts = [
        victim.answer(seed[None] * (segments == k)[None, ..., None])
        for seed, segments in zip(seeds, segments_of(seeds), strict=True)
        for k in range(segments.max() + 1)
    ]
    assert np.allclose(found, np.concatenate(parts), atol=1e-4)
