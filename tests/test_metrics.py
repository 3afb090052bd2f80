"""AUC, TPR at 5 % FPR and ARUC, against scikit-learn, vectors worked out by hand, and properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxaudit.evidence.metrics import aruc, auc, clopper_pearson, roc, tpr_at_fpr

# few distinct values, so that ties are common
scores = st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.5, 0.9, 1.0]) | st.floats(-2, 2), min_size=1, max_size=40)
counts = st.lists(st.tuples(st.integers(0, 100), st.just(100)), min_size=1, max_size=12)


def labelled(positives: list[float], negatives: list[float]) -> tuple[list[int], list[float]]:
    return [1] * len(positives) + [0] * len(negatives), positives + negatives


@given(scores, scores)
def test_auc_is_that_of_scikit_learn(positives: list[float], negatives: list[float]) -> None:
    from sklearn.metrics import roc_auc_score

    assert auc(positives, negatives) == pytest.approx(roc_auc_score(*labelled(positives, negatives)), abs=1e-12)


@given(scores, scores, st.sampled_from([0.0, 0.05, 0.1, 0.5, 1.0]))
def test_roc_and_tpr_are_those_of_scikit_learn_with_all_points_kept(
    positives: list[float], negatives: list[float], limit: float
) -> None:
    from sklearn.metrics import roc_curve

    false, true, _ = roc_curve(*labelled(positives, negatives), drop_intermediate=False)
    ours = roc(positives, negatives)
    assert np.allclose(ours[0], false)
    assert np.allclose(ours[1], true)
    assert tpr_at_fpr(positives, negatives, limit) == pytest.approx(float(true[false <= limit].max()))


def test_tpr_with_ties() -> None:
    """Levels .9, .8, .7, .6 holding (2, 2), (2, 2), (2, 2), (4, 94): an FPR of .04 admits the first two."""
    positives = [0.9] * 2 + [0.8] * 2 + [0.7] * 2 + [0.6] * 4
    negatives = [0.9] * 2 + [0.8] * 2 + [0.7] * 2 + [0.6] * 94
    assert tpr_at_fpr(positives, negatives) == pytest.approx(0.4)
    assert tpr_at_fpr(positives, negatives, 0.06) == pytest.approx(0.6)
    assert tpr_at_fpr(positives, negatives, 0.0) == 0


def test_auc_of_separated_tied_and_swapped_scores() -> None:
    assert auc([2, 3], [0, 1]) == 1
    assert auc([0, 1], [2, 3]) == 0
    assert auc([1, 1], [1]) == 0.5
    assert auc([1, 3], [1, 2]) == pytest.approx((0.5 + 0 + 1 + 1) / 4)


@given(scores, scores)
def test_auc_of_the_two_sides_swapped_adds_up_to_one(positives: list[float], negatives: list[float]) -> None:
    assert auc(positives, negatives) + auc(negatives, positives) == pytest.approx(1)


@given(scores, scores)
def test_tpr_grows_with_the_limit(positives: list[float], negatives: list[float]) -> None:
    found = [tpr_at_fpr(positives, negatives, limit) for limit in (0.0, 0.02, 0.05, 0.2, 0.7, 1.0)]
    assert found == sorted(found)
    assert found[-1] == 1


@pytest.mark.parametrize(("positives", "negatives"), [([], [1.0]), ([1.0], []), ([], [])])
def test_an_empty_side_has_no_figure(positives: list[float], negatives: list[float]) -> None:
    assert math.isnan(auc(positives, negatives))
    assert math.isnan(tpr_at_fpr(positives, negatives))
    assert math.isnan(aruc([(1, 1) for _ in positives], [(0, 1) for _ in negatives]))


@pytest.mark.parametrize(
    ("positives", "negatives", "expected"),
    [
        ([100, 100], [0, 0, 0], 1.0),
        ([50, 50], [0, 0], 0.5),
        ([100, 99, 94, 85, 71], [9, 3], 0.838),
        ([0], [100], 0.0),
        ([100], [1], 0.99),
    ],
)
def test_aruc_of_vectors_worked_out_by_hand(positives: list[int], negatives: list[int], expected: float) -> None:
    assert aruc([(p, 100) for p in positives], [(n, 100) for n in negatives]) == pytest.approx(expected, abs=1e-12)


def test_aruc_is_exact_where_rates_fall_on_a_threshold() -> None:
    """29/100 >= .29 is false in floats if computed as 29 >= .29 * 100; integers cannot go wrong."""
    for matched in range(101):
        assert aruc([(matched, 100)], [(0, 100)]) == pytest.approx(matched / 100, abs=1e-12)
        assert aruc([(3 * matched, 300)], [(0, 300)]) == pytest.approx(matched / 100, abs=1e-12)


@given(counts, counts)
def test_aruc_is_the_mean_of_the_lower_curve(positives: list[tuple[int, int]], negatives: list[tuple[int, int]]) -> None:
    lower = []
    for t in range(1, 101):
        robust = sum(matched >= t for matched, _ in positives) / len(positives)
        unique = sum(matched < t for matched, _ in negatives) / len(negatives)
        lower.append(min(robust, unique))
    assert aruc(positives, negatives) == pytest.approx(sum(lower) / 100)


@given(st.integers(0, 80), st.integers(0, 80), st.sampled_from([0.9, 0.95, 0.999]))
def test_limits_of_a_rate_are_those_of_scipys_exact_test(hits: int, misses: int, confidence: float) -> None:
    from scipy.stats import binomtest

    found = clopper_pearson(hits, hits + misses, confidence)
    if hits + misses == 0:
        assert found == (0.0, 1.0)
    else:
        assert found == pytest.approx(tuple(binomtest(hits, hits + misses).proportion_ci(confidence, "exact")), abs=1e-9)


def test_limits_at_the_ends() -> None:
    assert clopper_pearson(3, 3)[1] == 1.0
    assert clopper_pearson(0, 12) == pytest.approx((0.0, 0.26), abs=5e-3)
