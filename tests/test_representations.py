"""Representations and detectors: reference vectors of the papers, the formulas written out, and what must not change a score."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from onnxaudit.answers import Access, Answers
from onnxaudit.errors import UsageError
from onnxaudit.schemes.catalogue import ALIASES, CATALOGUE, Need, portfolio, scheme
from onnxaudit.schemes.detectors import DETECTORS, l1, matching_rate
from onnxaudit.schemes.representations import REPRESENTATIONS, correlation, labels

Rows = NDArray[np.float32]


def rows_of(seed: int, n: int = 12, classes: int = 6) -> Rows:
    return np.random.default_rng(seed).normal(0, 2, (n, classes)).astype(np.float32)


def as_outputs(rows: Any) -> Answers:
    """Rows that are fed to the kernels as they are (declared as probabilities, they are not softmaxed)."""
    return Answers.from_scores(rows, Access.PROBS)


def softmax(rows: Rows) -> Rows:
    shifted = np.exp(rows - rows.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True), np.float32)


def cosine_matrix(rows: NDArray[Any]) -> NDArray[np.float64]:
    """SAC eq. 2, written out."""
    n = len(rows)
    found = np.empty((n, n))
    for a in range(n):
        for b in range(n):
            found[a, b] = rows[a] @ rows[b] / (np.linalg.norm(rows[a]) * np.linalg.norm(rows[b]))
    return found


def test_sac_reference_vector() -> None:
    """Distances of 100 random rows from the same with noise: .11251 by eq. 4, exactly half by the authors' (1 - cos) / 2."""
    import torch

    torch.manual_seed(0)
    one = torch.randn(100, 10) * 3
    two = one + torch.randn(100, 10)
    score = l1(correlation(as_outputs(one.numpy())), correlation(as_outputs(two.numpy())))
    assert -float(score) == pytest.approx(0.11251, abs=5e-6)
    assert -float(score) / 2 == pytest.approx(0.05626, abs=5e-6)


@pytest.mark.parametrize("n", [2, 3, 25])
def test_l1_is_normalised_by_all_n_squared_pairs(n: int) -> None:
    victim, suspect = softmax(rows_of(1, n)), softmax(rows_of(2, n))
    expected = np.abs(cosine_matrix(victim) - cosine_matrix(suspect)).sum() / n**2
    assert -float(l1(correlation(as_outputs(victim)), correlation(as_outputs(suspect)))) == pytest.approx(expected, abs=1e-6)


def test_rbf_is_of_rows_scaled_to_unit_length() -> None:
    rows = rows_of(3)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    squared = ((unit[:, None] - unit[None]) ** 2).sum(axis=2)
    upper = np.triu_indices(len(rows), 1)
    assert np.allclose(correlation(as_outputs(rows), kernel="rbf"), np.exp(-squared)[upper], atol=1e-6)
    wide = correlation(as_outputs(rows), kernel="rbf", two_delta_squared=4.0)
    assert np.allclose(wide, np.exp(-squared / 4)[upper], atol=1e-6)


def test_logits_are_fed_as_probabilities() -> None:
    rows = rows_of(4)
    found = correlation(Answers.from_scores(rows, Access.LOGITS))
    assert found.dtype == np.float64
    assert np.allclose(found, cosine_matrix(softmax(rows))[np.triu_indices(12, 1)], atol=1e-6)


@pytest.mark.parametrize(("epsilon", "expected"), [(0.8553, 0.8239), (0.1, 0.02292)])
def test_smooth_labels_of_ten_classes(epsilon: float, expected: float) -> None:
    """Queries with equal labels correlate by 1, others by kappa = (2ab + 8b^2) / (a^2 + 9b^2)."""
    found = correlation(Answers.from_labels([3, 7, 3], 10), epsilon=epsilon)
    a, b = 1 - epsilon + epsilon / 10, epsilon / 10
    kappa = (2 * a * b + 8 * b**2) / (a**2 + 9 * b**2)
    assert found == pytest.approx([kappa, 1.0, kappa])
    assert kappa == pytest.approx(expected, abs=1e-4)


def test_the_authors_smooth_label_is_one_of_ours() -> None:
    """0.01 everywhere, 1 at the prediction, then softmax: .2302 and .0855 for ten classes, which is epsilon .8553."""
    vectors = np.full((2, 10), 0.01, np.float32)
    vectors[0, 4] = vectors[1, 6] = 1
    smooth = softmax(vectors)
    assert (float(smooth[0, 4]), float(smooth[0, 0])) == pytest.approx((0.2302, 0.0855), abs=5e-5)
    ours = correlation(Answers.from_labels([4, 6], 10), epsilon=float(1 - (smooth[0, 4] - smooth[0, 0])))
    assert ours == pytest.approx(cosine_matrix(smooth)[0, 1], abs=1e-6)


@given(arrays(np.int32, 9, elements=st.integers(0, 3)), arrays(np.int32, 9, elements=st.integers(0, 3)))
def test_label_only_sac_is_the_pattern_of_agreement(one: NDArray[np.int32], two: NDArray[np.int32]) -> None:
    found = l1(correlation(Answers.from_labels(one, 4)), correlation(Answers.from_labels(two, 4)))
    kappa = float(correlation(Answers.from_labels([0, 1], 4))[0])
    pattern = np.abs((one[:, None] == one).astype(float) - (two[:, None] == two).astype(float)).mean()
    assert -float(found) == pytest.approx((1 - kappa) * pattern)


def test_labels_need_the_number_of_classes() -> None:
    with pytest.raises(ValueError, match="number of classes"):
        correlation(Answers.from_labels([0, 1], None))


def test_topk_is_fed_with_the_missing_mass_spread_evenly() -> None:
    top = Answers.from_scores(rows_of(5), Access.LOGITS).degrade(Access.TOPK, 2)
    assert np.allclose(correlation(top), cosine_matrix(top.dense())[np.triu_indices(12, 1)], atol=1e-6)


@pytest.mark.parametrize("feed", ["probs", "centred"])
@pytest.mark.parametrize("kernel", ["cosine", "rbf"])
@pytest.mark.parametrize("access", list(Access))
def test_renaming_the_classes_changes_no_correlation(access: Access, kernel: str, feed: str) -> None:
    rows, order = rows_of(6), np.random.default_rng(0).permutation(6)
    one, two = (Answers.from_scores(r, Access.LOGITS).degrade(access, 3) for r in (rows, rows[:, order]))
    assert np.allclose(correlation(one, kernel, feed), correlation(two, kernel, feed), atol=1e-6)
    assert matching_rate(labels(one), labels(two)) < 1


@given(st.integers(0, 99), st.floats(0.05, 3), st.floats(-50, 50))
def test_centred_feed_ignores_temperature_and_offset(seed: int, temperature: float, offset: float) -> None:
    rows = np.random.default_rng(seed).uniform(-2, 2, (12, 6)).astype(np.float32)  # no probability is too small to count
    one = correlation(Answers.from_scores(rows, Access.LOGITS), feed="centred")
    two = correlation(Answers.from_scores(rows * np.float32(temperature) + np.float32(offset), Access.LOGITS), feed="centred")
    assert np.allclose(one, two, atol=2e-3)
    centred = rows - rows.mean(axis=1, keepdims=True)
    assert np.allclose(one, cosine_matrix(centred)[np.triu_indices(12, 1)], atol=1e-4)


@pytest.mark.parametrize("feed", ["probs", "centred"])
def test_a_softmax_at_the_end_of_the_model_changes_nothing(feed: str) -> None:
    rows = rows_of(7)
    logits, probs = Answers.from_scores(rows, Access.LOGITS), Answers.from_scores(softmax(rows))
    assert probs.access == Access.PROBS
    assert np.allclose(correlation(logits, feed=feed), correlation(probs, feed=feed), atol=1e-5)


def test_probabilities_of_zero_are_harmless() -> None:
    hard = as_outputs([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    for feed in ("probs", "centred"):
        for kernel in ("cosine", "rbf"):
            assert np.isfinite(correlation(hard, kernel, feed)).all()


def test_unknown_parameters_are_named() -> None:
    answers = as_outputs(rows_of(8))
    with pytest.raises(ValueError, match="unknown kernel 'cubic'"):
        correlation(answers, kernel="cubic")
    with pytest.raises(ValueError, match="unknown feed 'raw'"):
        correlation(answers, feed="raw")


@given(arrays(np.int32, 11, elements=st.integers(0, 3)), arrays(np.int32, (4, 11), elements=st.integers(0, 3)))
def test_matching_rate_is_the_share_of_equal_labels(victim: NDArray[np.int32], suspects: NDArray[np.int32]) -> None:
    represented = np.stack([labels(Answers.from_labels(row, 4)) for row in suspects])
    rates = matching_rate(labels(Answers.from_labels(victim, 4)), represented)
    assert rates.tolist() == pytest.approx([np.equal(victim, row).mean() for row in suspects])


@pytest.mark.parametrize("name", sorted(DETECTORS))
def test_a_detector_finds_nothing_closer_than_the_victim_and_broadcasts(name: str) -> None:
    detector = DETECTORS[name]
    vectors = np.stack([correlation(Answers.from_scores(rows_of(seed))) for seed in range(6)])
    scores = detector(vectors[0], vectors)
    assert scores.shape == (6,)
    assert scores[0] == scores.max()
    assert (scores[1:] < scores[0]).all()
    assert scores.tolist() == pytest.approx([float(detector(vectors[0], vector)) for vector in vectors])
    assert np.allclose(detector(vectors[1:], vectors[0]), scores[1:])  # closeness has no direction


def test_every_scheme_of_the_catalogue_is_made_of_parts_that_exist() -> None:
    from onnxaudit.audit.crafting import SAMPLERS

    answers = Answers.from_scores(rows_of(9))
    for name, item in CATALOGUE.items():
        assert (item.name, scheme(name)) == (name, item)
        assert item.sampler in SAMPLERS
        represented = REPRESENTATIONS[item.representation](answers, **item.representing)
        assert np.isfinite(DETECTORS[item.detector](represented, represented))
        assert item.resolution(100) == (0.05 if item.detector == "matching-rate" else 1e-6)
    assert {alias: scheme(alias).name for alias in ALIASES} == dict(ALIASES)


def test_unknown_schemes_are_answered_with_the_names_there_are() -> None:
    with pytest.raises(UsageError, match=r"no scheme 'sak-m'.*akh.*ipguard"):
        scheme("sak-m")


@pytest.mark.parametrize(("data", "with_labels"), [(False, False), (True, False), (True, True)])
def test_the_automatic_choice_needs_no_more_than_there_is(data: bool, with_labels: bool) -> None:
    names, why = portfolio(data=data, labels=with_labels)
    assert names
    assert why
    has = Need.GRADIENTS | (Need.DATA if data else Need.NOTHING) | (Need.LABELS if with_labels else Need.NOTHING)
    for name in names:
        assert scheme(name).needs in has
