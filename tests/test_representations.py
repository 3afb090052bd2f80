"""Representations: reference vectors of the papers, the formulas written out, every level of access, and what changes nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from onnxaudit.answers import Access, Answers
from onnxaudit.schemes.correlation import correlation, hard_correlation
from onnxaudit.schemes.detectors import l1, matching_rate
from onnxaudit.schemes.pairs import decision_distances, label_distances
from onnxaudit.schemes.representations import REPRESENTATIONS, Kind, correct, labels, logits, probabilities, ranks, topk, views

Rows = NDArray[np.float32]
NONE: dict[str, NDArray[Any]] = {}
OF_ANSWERS = sorted(name for name, representation in REPRESENTATIONS.items() if not representation.inside)


def rows_of(seed: int, n: int = 12, classes: int = 6) -> Rows:
    return np.random.default_rng(seed).normal(0, 2, (n, classes)).astype(np.float32)


def softmax(rows: NDArray[Any]) -> Rows:
    shifted = np.exp(rows - rows.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True), np.float32)


def as_outputs(rows: Any) -> Answers:
    """Rows that are fed to the kernels as they are (declared as probabilities, they are not softmaxed)."""
    return Answers.from_scores(rows, Access.PROBS)


def at(rows: Rows, access: Access, k: int = 3) -> Answers:
    return Answers.from_scores(rows, Access.LOGITS).degrade(access, k)


def columns_for(n: int, classes: int) -> dict[str, NDArray[Any]]:
    """What samplers would know of n queries: pairs, images of four views and three segments, two views, weights."""
    rng = np.random.default_rng(1)
    mask = rng.integers(0, 2, (n, 3)).astype(np.uint8)
    mask[::4] = 1
    halves = np.arange(n) * 2 // max(2, n)
    return {
        "truth": rng.integers(0, classes, n),
        "pair": np.arange(n) // 2,
        "group": np.arange(n) // 4,
        "mask": mask,
        "view": halves,
        "said": rng.integers(0, classes, n),
        "share": rng.uniform(0.1, 0.9, n),
        "share_weight": rng.normal(size=n),
        "margin": rng.uniform(-0.5, 0.5, n),
        "margin_weight": rng.normal(size=n),
        "margin_spread": rng.uniform(0.1, 1, n),
    }


def cosine_matrix(rows: NDArray[Any]) -> NDArray[np.float64]:
    """SAC eq. 2, written out."""
    exact = rows.astype(np.float64)
    return np.array([[a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for b in exact] for a in exact])


# --- every representation, at every access


@pytest.mark.parametrize("name", OF_ANSWERS)
@pytest.mark.parametrize("access", list(Access))
@pytest.mark.parametrize(("n", "classes"), [(12, 6), (12, 2), (1, 6), (8, 1000)])
def test_each_is_defined_at_every_access_with_one_shape_for_all_models(name: str, access: Access, n: int, classes: int) -> None:
    representation, columns = REPRESENTATIONS[name], columns_for(n, classes)
    constant = np.tile(rows_of(1, 1, classes), (n, 1))
    found = [representation.function(at(rows, access), columns) for rows in (rows_of(0, n, classes), constant, constant * 0)]
    assert {vector.shape for vector in found} == {found[0].shape}
    assert all(vector.dtype == np.float64 and np.isfinite(vector).all() for vector in found)
    if name not in ("ddv", "hard-ddv") or n > 1:
        assert found[0].size
    if representation.kind is Kind.INDICATORS:
        assert set(found[0].ravel().tolist()) <= {0.0, 1.0}
    if representation.kind is Kind.DISTRIBUTIONS:
        assert found[0].min() >= 0
        assert np.allclose(found[0].sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("name", OF_ANSWERS)
@given(rows=st.sets(st.integers(0, 23), min_size=1), access=st.sampled_from(list(Access)))
def test_of_part_of_the_queries_it_is_the_same_for_all_models_in_shape(name: str, rows: set[int], access: Access) -> None:
    kept = np.array(sorted(rows))
    columns = {key: column[kept] for key, column in columns_for(24, 6).items()}
    one, two = (REPRESENTATIONS[name].function(at(rows_of(s, 24), access).take(kept), columns) for s in (0, 1))
    assert one.shape == two.shape
    assert np.isfinite(one).all()


@pytest.mark.parametrize("name", ["labels", "topk", "probabilities", "logits", "ranks", "correct"])
def test_of_part_of_the_queries_it_has_the_rows_of_the_whole(name: str) -> None:
    kept, columns = np.array([1, 2, 5, 11]), columns_for(12, 6)
    part = REPRESENTATIONS[name].function(at(rows_of(2), Access.PROBS).take(kept), {k: c[kept] for k, c in columns.items()})
    assert np.array_equal(part, REPRESENTATIONS[name].function(at(rows_of(2), Access.PROBS), columns)[kept])


# --- rows by query


def test_labels_lists_and_places_of_the_truth() -> None:
    answers = Answers.from_scores(np.array([[0.1, 0.6, 0.3], [0.5, 0.2, 0.3], [0.2, 0.2, 0.6]], np.float32))
    columns = {"truth": np.array([2, 0, 1])}
    assert labels(answers, NONE).tolist() == [1, 0, 2]
    assert topk(answers, NONE, k=2).tolist() == [[1, 2], [0, 2], [2, 0]]
    assert topk(answers.degrade(Access.LABEL), NONE, k=2).tolist() == [[1], [0], [2]]
    assert ranks(answers, columns, k=3).tolist() == [1, 0, 2]
    assert ranks(answers, columns, k=2).tolist() == [1, 0, 2]  # 2: not among the two best
    assert ranks(answers.degrade(Access.LABEL), columns).tolist() == [1, 0, 1]
    assert correct(answers, columns).tolist() == [0, 1, 0]
    for function in (topk, ranks):
        with pytest.raises(ValueError, match="k must be at least 1"):
            function(answers, columns, k=0)


def test_logits_are_raw_where_they_are_known_and_else_up_to_a_constant() -> None:
    rows = np.random.default_rng(3).uniform(-2, 2, (12, 6)).astype(np.float32)
    assert np.array_equal(logits(at(rows, Access.LOGITS), NONE), rows)
    assert np.allclose(logits(at(rows, Access.PROBS), NONE), rows - rows.mean(axis=1, keepdims=True), atol=1e-5)
    assert np.allclose(probabilities(at(rows, Access.LOGITS), NONE), softmax(rows), atol=1e-6)


def test_the_mass_that_top_k_leaves_out_is_spread_evenly() -> None:
    answers = Answers.from_scores(np.array([[0.1, 0.6, 0.25, 0.05]], np.float32)).degrade(Access.TOPK, 2)
    assert probabilities(answers, NONE)[0] == pytest.approx([0.075, 0.6, 0.25, 0.075])


def test_views_are_in_the_order_asked_and_those_cut_short_are_left_out() -> None:
    answers, view = as_outputs(softmax(rows_of(4, 6, 3))), np.array([7, 7, 2, 2, 5, 5])
    dense = answers.dense().astype(np.float64)
    assert np.array_equal(views(answers, {"view": view}), dense.reshape(3, 6))
    assert np.array_equal(views(answers.take(slice(5)), {"view": view[:5]}), dense[:4].reshape(2, 6))
    assert views(answers.take(slice(1)), {"view": view[:1]}).shape == (1, 3)


# --- correlation


def test_sac_reference_vector() -> None:
    """Distances of 100 random rows from the same with noise: .11251 by eq. 4, exactly half by the authors' (1 - cos) / 2."""
    import torch

    generator = torch.Generator().manual_seed(0)  # draws what torch.manual_seed(0) would
    one = torch.randn(100, 10, generator=generator) * 3
    two = one + torch.randn(100, 10, generator=generator)
    ours = [correlation(as_outputs(rows.numpy()), NONE) for rows in (one, two)]
    assert -l1(*ours) == pytest.approx(0.11251, abs=5e-6)
    code = [(1 - cosine_matrix(rows.numpy())) / 2 for rows in (one, two)]
    assert np.abs(code[0] - code[1]).mean() == pytest.approx(0.05626, abs=5e-6)
    assert -l1(*ours) / 2 == pytest.approx(np.abs(code[0] - code[1]).mean(), rel=1e-9)


@pytest.mark.parametrize("n", [1, 2, 25])
def test_eq_4_is_normalised_by_all_n_squared_pairs(n: int) -> None:
    victim, suspect = softmax(rows_of(1, n)), softmax(rows_of(2, n))
    expected = np.abs(cosine_matrix(victim) - cosine_matrix(suspect)).sum() / n**2
    assert -l1(correlation(as_outputs(victim), NONE), correlation(as_outputs(suspect), NONE)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("width", [1.0, 4.0])
def test_rbf_is_equation_3(normalise: bool, width: float) -> None:
    rows = rows_of(3).astype(np.float64)
    found = correlation(as_outputs(rows), NONE, kernel="rbf", normalise=normalise, two_delta_squared=width)
    used = rows / np.linalg.norm(rows, axis=1, keepdims=True) if normalise else rows
    assert np.allclose(found, np.exp(-((used[:, None] - used[None]) ** 2).sum(axis=2) / width), atol=1e-6)


def test_feeds_are_probabilities_raw_logits_or_logarithms() -> None:
    rows = np.random.default_rng(4).uniform(-2, 2, (12, 6)).astype(np.float32)
    answers = at(rows, Access.LOGITS)
    assert np.allclose(correlation(answers, NONE), cosine_matrix(softmax(rows)), atol=1e-6)
    assert np.allclose(correlation(answers, NONE, feed="logits"), cosine_matrix(rows), atol=1e-6)
    centred = cosine_matrix(rows - rows.mean(axis=1, keepdims=True))
    assert np.allclose(correlation(answers, NONE, feed="centred"), centred, atol=1e-5)


@pytest.mark.parametrize(("epsilon", "expected"), [(0.8553, 0.8239), (0.1, 0.02292)])
def test_smooth_labels_of_ten_classes(epsilon: float, expected: float) -> None:
    """Queries with equal labels correlate by 1, others by kappa = (2ab + 8b^2) / (a^2 + 9b^2)."""
    found = correlation(Answers.from_labels([3, 7, 3], 10), NONE, epsilon=epsilon)
    a, b = 1 - epsilon + epsilon / 10, epsilon / 10
    kappa = (2 * a * b + 8 * b**2) / (a**2 + 9 * b**2)
    assert found == pytest.approx(np.array([[1, kappa, 1], [kappa, 1, kappa], [1, kappa, 1]]))
    assert kappa == pytest.approx(expected, abs=1e-4)


def test_the_authors_smooth_label_is_one_of_ours() -> None:
    """0.01 everywhere, 1 at the prediction, then softmax: .2302 and .0855 for ten classes, which is epsilon .8553."""
    vectors = np.full((2, 10), 0.01)
    vectors[0, 4] = vectors[1, 6] = 1
    smooth = softmax(vectors)
    assert (float(smooth[0, 4]), float(smooth[0, 0])) == pytest.approx((0.2302, 0.0855), abs=5e-5)
    answers = Answers.from_labels([4, 6], 10)
    code = correlation(answers, NONE, smooth="softmax")
    assert code[0, 1] == pytest.approx(cosine_matrix(smooth)[0, 1], abs=1e-6) == pytest.approx(0.8239, abs=1e-4)
    assert code == pytest.approx(correlation(answers, NONE, epsilon=float(1 - (smooth[0, 4] - smooth[0, 0]))), abs=1e-6)


@pytest.mark.parametrize("kernel", ["cosine", "rbf"])
@pytest.mark.parametrize("classes", [2, 5, 1000])
def test_smooth_labels_written_out(kernel: str, classes: int) -> None:
    given_labels = np.array([0, 1, 0, 1, 1])
    smooth = 0.7 * np.eye(classes)[given_labels] + 0.3 / classes
    found = correlation(Answers.from_labels(given_labels, classes), NONE, kernel=kernel, epsilon=0.3)
    assert found == pytest.approx(correlation(as_outputs(smooth), NONE, kernel=kernel), abs=1e-6)


@given(arrays(np.int32, 9, elements=st.integers(0, 3)), arrays(np.int32, 9, elements=st.integers(0, 3)))
def test_label_only_sac_is_the_pattern_of_agreement(one: NDArray[np.int32], two: NDArray[np.int32]) -> None:
    answers = [Answers.from_labels(row, 4) for row in (one, two)]
    kappa = float(correlation(Answers.from_labels([0, 1], 4), NONE)[0, 1])
    hard = l1(*(hard_correlation(each, NONE) for each in answers))
    assert l1(*(correlation(each, NONE) for each in answers)) == pytest.approx((1 - kappa) * hard)
    pattern = np.abs((one[:, None] == one).astype(float) - (two[:, None] == two).astype(float)).mean()
    assert -hard == pytest.approx(pattern)


@pytest.mark.parametrize("feed", ["probs", "centred"])
@pytest.mark.parametrize("kernel", ["cosine", "rbf"])
@pytest.mark.parametrize("access", list(Access))
def test_renaming_the_classes_changes_no_correlation(access: Access, kernel: str, feed: str) -> None:
    rows, order = rows_of(6), np.random.default_rng(0).permutation(6)
    one, two = at(rows, access), at(rows[:, order], access)
    renamed = correlation(two, NONE, kernel=kernel, feed=feed)
    assert np.allclose(correlation(one, NONE, kernel=kernel, feed=feed), renamed, atol=1e-6)
    assert matching_rate(labels(one, NONE), labels(two, NONE)) < 1


@pytest.mark.parametrize("name", ["correlation", "ddv", "lime"])
@given(seed=st.integers(0, 99), temperature=st.floats(0.05, 3), offset=st.floats(-50, 50))
def test_centred_feed_ignores_offset_and_scales_with_temperature(name: str, seed: int, temperature: float, offset: float) -> None:
    rows = np.random.default_rng(seed).uniform(-2, 2, (12, 6)).astype(np.float32)  # no probability is too small to count
    moved = rows * np.float32(temperature) + np.float32(offset)
    function, columns = REPRESENTATIONS[name].function, columns_for(12, 6)
    one, two = (function(at(each, Access.LOGITS), columns, feed="centred") for each in (rows, moved))
    assert np.allclose(one * (temperature if name == "lime" else 1), two, atol=5e-3)


@given(seed=st.integers(0, 99), scale=st.floats(0.01, 100))
def test_cosine_of_raw_logits_ignores_their_scale(seed: int, scale: float) -> None:
    rows = rows_of(seed)
    one, two = (correlation(at(each, Access.LOGITS), NONE, feed="logits") for each in (rows, rows * np.float32(scale)))
    assert np.allclose(one, two, atol=1e-5)


@pytest.mark.parametrize("name", ["labels", "hard-correlation", "hard-ddv", "correct"])
@given(seed=st.integers(0, 99), temperature=st.floats(0.2, 5), k=st.integers(1, 6))
def test_what_is_made_of_labels_ignores_temperature_rounding_and_truncation(
    name: str, seed: int, temperature: float, k: int
) -> None:
    rows, columns = rows_of(seed), columns_for(12, 6)
    function = REPRESENTATIONS[name].function
    expected = function(at(rows, Access.LABEL), columns)
    assert np.array_equal(function(at(rows * np.float32(temperature), Access.TOPK, k), columns), expected)
    rounded = softmax(rows).round(3)
    best = np.sort(rounded, axis=1)
    if (best[:, -1] > best[:, -2]).all():
        assert np.array_equal(function(as_outputs(rounded), columns), expected)


@pytest.mark.parametrize("feed", ["probs", "centred"])
def test_a_softmax_at_the_end_of_the_model_changes_nothing(feed: str) -> None:
    probs = Answers.from_scores(softmax(rows_of(7)))
    assert probs.access == Access.PROBS
    for name in ("correlation", "ddv", "lime"):
        one, two = (
            REPRESENTATIONS[name].function(a, columns_for(12, 6), feed=feed) for a in (at(rows_of(7), Access.LOGITS), probs)
        )
        assert np.allclose(one, two, atol=1e-4)


def test_probabilities_of_zero_are_harmless() -> None:
    hard = as_outputs([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    for feed in ("probs", "centred", "logits"):
        for kernel in ("cosine", "rbf"):
            assert np.isfinite(correlation(hard, NONE, kernel=kernel, feed=feed)).all()


@pytest.mark.parametrize(
    "parameters",
    [{"kernel": "cubic"}, {"feed": "raw"}, {"smooth": "much"}, {"epsilon": 1.5}, {"kernel": "rbf", "two_delta_squared": 0.0}],
)
def test_unknown_parameters_are_named(parameters: dict[str, Any]) -> None:
    answers = at(rows_of(8), Access.PROBS if "feed" in parameters else Access.LABEL)
    value = str(next(iter(parameters.values()))) if "two_delta_squared" not in parameters else "0.0"
    with pytest.raises(ValueError, match=value):
        correlation(answers, NONE, **parameters)


@pytest.mark.parametrize("function", [correlation, label_distances, probabilities])
def test_labels_need_the_number_of_classes(function: Any) -> None:
    with pytest.raises(ValueError, match="number of classes"):
        function(Answers.from_labels([0, 1], None), {"pair": np.array([0, 0])})


# --- pairs


def test_decision_distances_are_scipys_cosine_distances() -> None:
    from scipy.spatial.distance import cosine as reference

    rows = rows_of(9, 20)
    found = decision_distances(at(rows, Access.LOGITS), {"pair": np.arange(20) // 2}, feed="logits")
    assert found == pytest.approx([reference(rows[2 * i], rows[2 * i + 1]) for i in range(10)], abs=1e-6)
    same = decision_distances(at(rows, Access.LABEL), {"pair": np.arange(20) // 2})
    assert same.tolist() == (rows[::2].argmax(1) != rows[1::2].argmax(1)).astype(float).tolist()


def test_label_distances_are_modulo_the_classes() -> None:
    answers = Answers.from_labels([0, 2, 4, 1, 3, 3], 5)
    assert label_distances(answers, {"pair": np.array([0, 0, 1, 1, 2, 2])}).tolist() == [2, 2, 0]


def test_a_pair_that_was_cut_is_left_out_wherever_its_rows_are() -> None:
    answers = Answers.from_labels([0, 1, 2, 3, 4], 5)
    assert label_distances(answers, {"pair": np.array([6, 2, 6, 9, 2])}).tolist() == [3, 2]  # 1 to 4, 0 to 2; 9 is alone
    assert decision_distances(answers.take(slice(1)), {"pair": np.array([0])}).shape == (0,)


def test_equal_answers_to_both_members_are_no_distance_even_without_a_direction() -> None:
    flat = as_outputs(np.full((4, 5), 0.2))
    assert decision_distances(flat, {"pair": np.array([0, 0, 1, 1])}).tolist() == [0, 0]
