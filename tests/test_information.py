"""Mutual information and Jensen-Shannon divergence: scikit-learn, SciPy, and the bias that raw labels have."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.spatial.distance import jensenshannon
from sklearn.metrics import mutual_info_score, normalized_mutual_info_score

from onnxaudit.answers import Access, Answers
from onnxaudit.schemes.information import entropy, jensen_shannon, joint_counts, mutual_information, occurrences
from onnxaudit.schemes.representations import ranks

Categories = NDArray[np.float64]
lists = arrays(np.float64, (2, 40), elements=st.integers(-2, 4).map(float))


@given(lists)
def test_information_is_that_of_scikit_learn(two: NDArray[np.float64]) -> None:
    pairs = Counter(zip(*two.tolist(), strict=True))
    counts = joint_counts(two[0], two[1])
    assert counts.tolist() == [pairs[pair] for pair in sorted(pairs)]
    assert occurrences(two).tolist() == [number for _, number in sorted(Counter(two.ravel().tolist()).items())]
    information = entropy(occurrences(two[0])) + entropy(occurrences(two[1])) - entropy(counts)
    assert information == pytest.approx(mutual_info_score(two[0], two[1]), abs=1e-12)


@given(lists)
def test_it_is_normalised_by_the_smaller_entropy(two: NDArray[np.float64]) -> None:
    found = mutual_information(two[0], two[1])
    if min(map(np.ptp, two)) == 0:
        assert np.isnan(found)
    else:
        assert found == pytest.approx(normalized_mutual_info_score(*two.astype(int), average_method="min"), abs=1e-9)
        assert 0 <= found <= 1
        assert found == pytest.approx(mutual_information(two[1], two[0]), abs=1e-12)


def test_it_knows_categories_only_by_what_they_go_with() -> None:
    victim = np.array([0.0, 1, 2, 0, 1, 2, 2])
    assert mutual_information(victim, np.array([5.0, 3, 4, 5, 3, 4, 4])) == pytest.approx(1)
    table = np.stack([victim, victim + 1], axis=1)  # lists of the best classes are compared place by place
    assert mutual_information(table, table) == pytest.approx(1)


def test_memory_does_not_grow_with_the_number_of_classes() -> None:
    """A table of all pairs of 21,000 classes would take 3.5 GB."""
    labels = np.random.default_rng(0).choice(21_000, (2, 100)).astype(float)
    tracemalloc.start()
    found = mutual_information(*labels)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 100_000
    assert found == pytest.approx(normalized_mutual_info_score(*labels.astype(int), average_method="min"), abs=1e-9)


def test_it_imports_no_masked_arrays() -> None:
    """``np.unique`` does, which takes longer than the rest of a check's start."""
    code = (
        "import sys, numpy as np; from onnxaudit.schemes.information import mutual_information as m; "
        "m(np.arange(4.0), np.ones(4)); print('numpy.ma' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_constant_answers_have_no_information_to_share() -> None:
    """Not 0, which would be unrelated, and not 1, which would be the same: two models that always say 3 show nothing."""
    constant = np.full(20, 3.0)
    assert np.isnan(mutual_information(constant, constant))
    assert np.isnan(mutual_information(constant, np.arange(20.0)))
    assert np.isnan(mutual_information(np.zeros(1), np.ones(1)))


@pytest.mark.parametrize(("classes", "distance"), [(10, 0.787), (1000, 0.015)])
def test_raw_labels_of_many_classes_make_strangers_look_related(classes: int, distance: float) -> None:
    """Independent uniform labels of 100 queries (methods: .787 for 10 classes, .015 for 1000)."""
    rng = np.random.default_rng(0)
    found = [1 - mutual_information(*rng.integers(0, classes, (2, 100)).astype(float)) for _ in range(300)]
    assert np.mean(found) == pytest.approx(distance, abs=0.005)


def test_ranks_of_the_truth_do_not() -> None:
    """The alphabet of FBI has k + 1 letters whatever the number of classes."""
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 1000, 100)
    scores = rng.normal(size=(2, 100, 1000)).astype(np.float32)
    scores[:, np.arange(100), truth] += rng.uniform(0, 8, (2, 100)).astype(np.float32)
    one, two = (ranks(Answers.from_scores(each, Access.LOGITS), {"truth": truth}) for each in scores)
    assert mutual_information(one, two) < 0.15
    assert mutual_information(one, one) == pytest.approx(1)


@given(arrays(np.float64, (2, 6, 4), elements=st.sampled_from([0.0, 0.0, 0.1, 1.0, 3.0])).filter(lambda a: a.sum(axis=2).all()))
def test_divergence_is_the_square_of_scipys_distance(raw: NDArray[np.float64]) -> None:
    victim, suspect = raw / raw.sum(axis=2, keepdims=True)
    expected = np.mean([jensenshannon(p, q) ** 2 for p, q in zip(victim, suspect, strict=True)])
    found = jensen_shannon(victim, suspect)
    assert -found == pytest.approx(float(expected), abs=1e-9)
    assert -np.log(2) - 1e-12 <= found <= 1e-12
    assert found == pytest.approx(jensen_shannon(suspect, victim), abs=1e-12)


def test_divergence_of_what_never_agrees_is_the_logarithm_of_two() -> None:
    assert jensen_shannon(np.eye(4), np.roll(np.eye(4), 1, axis=1)) == pytest.approx(-np.log(2))
    assert jensen_shannon(np.eye(4), np.eye(4)) == 0
