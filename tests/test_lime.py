"""LIME weights and the alignment of classes: least squares by LAPACK, greedy matching written out, and ZestOfLIME's distance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from onnxaudit.answers import Access, Answers
from onnxaudit.schemes.detectors import DETECTORS, cosine
from onnxaudit.schemes.lime import align_classes, lime_weights, matched


def rows_of(seed: int, n: int, classes: int = 6) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 2, (n, classes)).astype(np.float32)


def masks(seed: int, views: int, segments: list[int]) -> dict[str, NDArray[Any]]:
    """Random masks as the sampler makes them: padded, the first view of each image whole."""
    rng, most = np.random.default_rng(seed), max(segments)
    mask = rng.integers(0, 2, (len(segments), views, most), dtype=np.uint8)
    mask[:, 0] = 1
    for image, count in enumerate(segments):
        mask[image, :, count:] = 0
    return {"group": np.repeat(np.arange(len(segments)), views), "mask": mask.reshape(-1, most)}


def by_image(columns: dict[str, NDArray[Any]], outputs: NDArray[Any]) -> NDArray[np.float64]:
    """Least squares one image at a time, by LAPACK's singular values."""
    parts = []
    for number in range(int(columns["group"].max()) + 1):
        rows = columns["group"] == number
        shown = columns["mask"][rows].astype(np.float64)
        parts.append(np.linalg.lstsq(shown[:, shown.any(axis=0)], outputs[rows].astype(np.float64), rcond=None)[0])
    return np.concatenate(parts)


@pytest.mark.parametrize("views", [4, 10, 40, 200])
def test_lime_weights_are_least_squares_for_each_image(views: int) -> None:
    columns = masks(1, views, [9, 3, 12])
    rows = rows_of(2, 3 * views)
    found = lime_weights(Answers.from_scores(rows, Access.LOGITS), columns, feed="logits")
    assert found.shape == (24, 6)
    assert np.allclose(found, by_image(columns, rows), atol=1e-6)


def test_lime_finds_the_weights_of_a_model_that_is_linear_in_its_segments() -> None:
    columns, weights = masks(3, 30, [7, 5]), np.random.default_rng(3).normal(size=(12, 4))
    rows = np.concatenate([columns["mask"][:30, :7] @ weights[:7], columns["mask"][30:, :5] @ weights[7:]])
    found = lime_weights(Answers.from_scores(rows, Access.LOGITS), columns, feed="logits")
    assert np.allclose(found, weights, atol=1e-5)


@given(st.lists(st.booleans(), min_size=36, max_size=36).filter(any))
def test_lime_of_the_answered_views_only(answered: list[bool]) -> None:
    columns, rows, kept = masks(4, 12, [5, 6, 4]), rows_of(5, 36), np.flatnonzero(answered)
    part = {name: column[kept] for name, column in columns.items()}
    _, part["group"] = np.unique(part["group"], return_inverse=True)
    found = lime_weights(Answers.from_scores(rows, Access.LOGITS).take(kept), part, feed="logits")
    assert np.allclose(found, by_image(part, rows[kept]), atol=1e-6)


def test_greedy_matching_takes_the_least_cost_of_all_first() -> None:
    assert matched(np.array([[3.0, 1, 2], [1, 5, 0], [2, 2, 9]])).tolist() == [1, 2, 0]
    assert matched(np.array([[2.0, 1], [9, 0]])).tolist() == [0, 1]  # row by row it would be 1, 0


@given(st.integers(1, 7).flatmap(lambda n: arrays(np.float64, (n, n), elements=st.integers(0, 9).map(float))))
def test_greedy_matching_written_out(cost: NDArray[np.float64]) -> None:
    left, expected = cost.copy(), np.zeros(len(cost), int)
    for _ in range(len(cost)):
        row, column = np.unravel_index(left.argmin(), left.shape)
        expected[row] = column
        left[row], left[:, column] = np.inf, np.inf
    found = matched(cost)
    assert sorted(found) == list(range(len(cost)))
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("name", ["cosine", "l1", "l2"])
def test_alignment_undoes_another_order_of_classes(name: str) -> None:
    victim, order = rows_of(1, 30, 10).astype(np.float64), np.random.default_rng(2).permutation(10)
    noisy = victim + np.random.default_rng(3).normal(0, 0.1, victim.shape)
    assert np.array_equal(align_classes(victim, noisy[:, order], name), noisy)
    detector = DETECTORS[name].function
    assert detector(victim, noisy[:, order], align=True) == pytest.approx(detector(victim, noisy))
    assert detector(victim, noisy[:, order]) < detector(victim, noisy)
    with pytest.raises(ValueError, match="tables of rows by classes"):
        align_classes(victim[0], victim[0], name)


def test_zest_compares_the_weights_of_all_images_at_once() -> None:
    columns = masks(6, 20, [5, 6])
    one, two = (lime_weights(Answers.from_scores(rows_of(seed, 40), Access.LOGITS), columns) for seed in (1, 2))
    assert cosine(one, two, whole=True) == pytest.approx(
        float(one.ravel() @ two.ravel() / np.linalg.norm(one) / np.linalg.norm(two))
    )
    assert cosine(one, one, whole=True) == pytest.approx(1)
    assert cosine(one, one) == pytest.approx(1)  # nothing is padded, so nothing is far from itself
