"""Detectors: SciPy's distances, the definitions of QuRD composed of our parts, and what no detector may do."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.spatial import distance

from onnxaudit.answers import Access, Answers
from onnxaudit.schemes.detectors import DETECTORS, cosine, l1, l2, matching_rate, robustness
from onnxaudit.schemes.representations import REPRESENTATIONS

N, CLASSES = 24, 5
COLUMNS: dict[str, NDArray[Any]] = {
    "truth": np.random.default_rng(1).integers(0, CLASSES, N),
    "pair": np.arange(N) // 2,
    "group": np.arange(N) // 8,
    "mask": np.vstack([np.ones((1, 4), np.uint8), np.random.default_rng(2).integers(0, 2, (N - 1, 4), dtype=np.uint8)]),
    "view": np.arange(N) // 6,
}
PAIRS = [
    (name, detector)
    for name, representation in REPRESENTATIONS.items()
    for detector, by in DETECTORS.items()
    if not (by.trainer or by.victim_only or representation.inside)
    and representation.kind in by.kinds
    and (not by.representations or name in by.representations)
]
tables = arrays(np.float64, (2, 7, 3), elements=st.floats(-9, 9))


def scores_of(seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 2, (N, CLASSES)).astype(np.float32)


def represented(name: str, seed: int, access: Access = Access.LOGITS) -> NDArray[np.float64]:
    found: NDArray[np.float64] = REPRESENTATIONS[name].function(
        Answers.from_scores(scores_of(seed), Access.LOGITS).degrade(access, 3), COLUMNS
    )
    return found


# --- what holds of all


@pytest.mark.parametrize(("name", "detector"), PAIRS)
@pytest.mark.parametrize("access", list(Access))
def test_nothing_is_closer_to_the_victim_than_its_copy(name: str, detector: str, access: Access) -> None:
    compare, victim = DETECTORS[detector].function, represented(name, 0, access)
    own = compare(victim, victim.copy())
    assert own == pytest.approx(1 if detector in ("matching-rate", "hamming", "cosine", "mutual-information") else 0, abs=1e-6)
    others = [compare(victim, represented(name, seed, access)) for seed in range(1, 6)]
    assert np.isfinite(others).all()
    assert max(others) <= own + 1e-12
    assert detector == "robd" or np.mean(others) < own - 1e-4


@pytest.mark.parametrize(("name", "detector"), PAIRS)
def test_closeness_has_no_direction(name: str, detector: str) -> None:
    one, two = represented(name, 3), represented(name, 4)
    compare = DETECTORS[detector].function
    assert compare(one, two) == pytest.approx(compare(two, one), abs=1e-12)


@pytest.mark.parametrize("detector", ["matching-rate", "cosine", "l1", "l2", "robd"])
def test_of_no_queries_nothing_is_said(detector: str) -> None:
    assert np.isnan(DETECTORS[detector].function(np.zeros(0), np.zeros(0)))


# --- each of them


@given(arrays(np.float64, (2, 11), elements=st.integers(0, 3).map(float)))
def test_matching_rate_is_one_minus_hamming(two: NDArray[np.float64]) -> None:
    assert matching_rate(*two) == pytest.approx(1 - distance.hamming(*two))


@given(tables)
def test_cosine_is_scipys_by_rows(two: NDArray[np.float64]) -> None:
    assume(np.linalg.norm(two, axis=2).min() > 1e-3)
    assert cosine(*two) == pytest.approx(np.mean([1 - distance.cosine(a, b) for a, b in zip(*two, strict=True)]), abs=1e-9)
    assert cosine(*two, whole=True) == pytest.approx(1 - distance.cosine(two[0].ravel(), two[1].ravel()), abs=1e-9)
    assert cosine(two[0, 0], two[1, 0]) == pytest.approx(1 - distance.cosine(two[0, 0], two[1, 0]), abs=1e-9)


def test_cosine_of_what_has_no_direction() -> None:
    table = np.array([[1.0, 0], [0, 2]])
    assert cosine(table, np.array([[3.0, 0], [0, 0]])) == 0.5  # a row of zeros is like nothing
    assert cosine(table, table * 0) == 0
    assert np.isnan(cosine(table * 0, table))  # a victim that never moved has nothing to compare with
    assert np.isnan(cosine(table * 0, table * 0))


@given(tables)
def test_l1_and_l2_are_means(two: NDArray[np.float64]) -> None:
    flat = two.reshape(2, -1)
    assert l1(*two) == pytest.approx(-distance.cityblock(*flat) / 21)
    assert l2(*two) == pytest.approx(-distance.euclidean(*flat) / 21**0.5)


@given(arrays(np.float64, (2, 13), elements=st.sampled_from([0.0, 1.0])))
def test_robd_is_the_difference_of_two_shares(two: NDArray[np.float64]) -> None:
    assert robustness(*two) == pytest.approx(-abs(two[0].sum() - two[1].sum()) / 13)
    assert robustness(two[0], two[0][::-1]) == 0  # which tests are right does not matter


# --- QuRD's representations and distances (its sections 4 and 5), written out


def test_qurds_hamming_distance_of_labels() -> None:
    one, two = scores_of(1).argmax(1), scores_of(2).argmax(1)
    assert 1 - matching_rate(represented("labels", 1), represented("labels", 2)) == pytest.approx((one != two).mean())


def test_qurds_cosine_distance_of_logits_is_the_mean_over_samples() -> None:
    expected = np.mean([abs(distance.cosine(a, b)) for a, b in zip(scores_of(1), scores_of(2), strict=True)])
    assert 1 - cosine(represented("logits", 1), represented("logits", 2)) == pytest.approx(expected, abs=1e-6)


def test_qurds_modeldiff_is_one_cosine_of_the_whole_ddv() -> None:
    def ddv(scores: NDArray[np.float32]) -> list[float]:
        return [distance.cosine(scores[i], scores[i + 1]) for i in range(0, N, 2)]

    function = REPRESENTATIONS["ddv"].function
    one, two = (function(Answers.from_scores(scores_of(s), Access.LOGITS), COLUMNS, feed="logits") for s in (1, 2))
    assert 1 - cosine(one, two) == pytest.approx(abs(distance.cosine(ddv(scores_of(1)), ddv(scores_of(2)))), abs=1e-6)


def test_qurds_hard_ddv_is_a_difference_modulo_the_classes() -> None:
    def hard(scores: NDArray[np.float32]) -> NDArray[np.int64]:
        y = scores.argmax(axis=1)
        return np.asarray((y[1::2] - y[::2]) % CLASSES)

    found = 1 - matching_rate(represented("hard-ddv", 1), represented("hard-ddv", 2))
    assert found == pytest.approx((hard(scores_of(1)) != hard(scores_of(2))).mean())


def test_qurds_sac_is_the_root_mean_square_of_cosine_matrices_of_logits() -> None:
    def gram(scores: NDArray[np.float32]) -> NDArray[np.float64]:
        return 1 - distance.squareform(distance.pdist(scores.astype(np.float64), "cosine"))

    function = REPRESENTATIONS["correlation"].function
    one, two = (function(Answers.from_scores(scores_of(s), Access.LOGITS), COLUMNS, feed="logits") for s in (1, 2))
    assert -l2(one, two) == pytest.approx(np.sqrt(np.mean((gram(scores_of(1)) - gram(scores_of(2))) ** 2)), abs=1e-6)


def test_qurds_hard_sac_is_which_labels_are_equal() -> None:
    one, two = (y[:, None] == y for y in (scores_of(1).argmax(1), scores_of(2).argmax(1)))
    found = represented("hard-correlation", 1), represented("hard-correlation", 2)
    assert 1 - matching_rate(*found) == pytest.approx((one != two).mean())
    assert l2(*found) ** 2 == pytest.approx((one != two).mean())


def test_qurds_zest_differs_by_the_padding_only() -> None:
    """It pads every image's weights to the most segments: the same squares, divided by more."""
    mask = COLUMNS["mask"].copy()
    mask[8:16, 3] = mask[16:, 2:] = 0  # images of 4, 3 and 2 segments

    def padded(scores: NDArray[np.float32]) -> NDArray[np.float64]:
        found = np.zeros((3, 4, CLASSES))
        for image, count in enumerate((4, 3, 2)):
            rows = slice(8 * image, 8 * image + 8)
            found[image, :count] = np.linalg.pinv(mask[rows, :count].astype(float)) @ scores[rows]
        return found

    function, columns = REPRESENTATIONS["lime"].function, {**COLUMNS, "mask": mask}
    one, two = (function(Answers.from_scores(scores_of(s), Access.LOGITS), columns, feed="logits") for s in (1, 2))
    expected = np.sqrt(np.mean((padded(scores_of(1)) - padded(scores_of(2))) ** 2))
    assert -l2(one, two) * np.sqrt(9 / 12) == pytest.approx(expected, abs=1e-6)


# --- natural errors (AKH)


@given(arrays(np.int32, (3, 30), elements=st.integers(0, 3)))
def test_on_its_errors_the_victim_agrees_with_itself_and_never_with_the_truth(rows: NDArray[np.int32]) -> None:
    victim, suspect, truth = rows
    errors = np.flatnonzero(victim != truth)
    assume(len(errors) > 0)
    mine, other, true = (
        REPRESENTATIONS["labels"].function(Answers.from_labels(r[errors], 4), {}) for r in (victim, suspect, truth)
    )
    assert matching_rate(mine, mine) == 1
    assert matching_rate(mine, true) == 0
    # QuRD's proposition 1: disagreement on errors is at least what disagreement and both accuracies leave for it
    disagreement, wrong, other_wrong = (victim != suspect).mean(), (victim != truth).mean(), (suspect != truth).mean()
    assert 1 - matching_rate(mine, other) >= (disagreement - other_wrong) / wrong - 1e-9


# --- what check pays for


def test_representing_and_comparing_loads_numpy_alone() -> None:
    """check must start fast: not even NumPy's masked arrays, that np.unique and np.median want, are loaded."""
    program = """
import sys
import numpy as np
from onnxaudit.answers import Access, Answers
from onnxaudit.schemes.contrast import COLUMNS
from onnxaudit.schemes.detectors import DETECTORS
from onnxaudit.schemes.representations import REPRESENTATIONS
n = np.arange(12)
columns = {"truth": n % 6, "pair": n // 2, "group": n // 4, "view": n // 6, "mask": np.eye(12, 3, dtype=np.uint8)}
columns |= {"said": n % 6} | {name: np.full(12, 0.5) for name in COLUMNS if name != "said"}
for access in Access:
    answers = Answers.from_scores(np.eye(12, 6, dtype=np.float32), Access.LOGITS).degrade(access, 3)
    for name, representation in REPRESENTATIONS.items():
        if representation.inside:
            continue
        vector = representation.function(answers, columns)
        for detector in DETECTORS.values():
            fits = representation.kind in detector.kinds and (not detector.representations or name in detector.representations)
            if fits and not detector.trainer:
                detector.function(vector, vector)
print(*sorted({"torch", "scipy", "skimage", "sklearn", "numpy.ma", "onnx"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")
