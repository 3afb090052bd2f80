"""The error rate itself: simulated innocents are accused at most as often as alpha says, and the parts that this rests on."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxaudit.answers import Access
from onnxaudit.audit.judging.comparing import FEWEST_CONTROLS, FEWEST_QUERIES, compare
from onnxaudit.audit.judging.sides import least_spread
from onnxaudit.evidence.calibration import (
    COVARIATE_MODELS,
    TOLERANCE,
    WIDE_TOLERANCE,
    Floats,
    combined,
    mean_agreement,
    p_floor,
    p_value,
    standardise,
    studentised,
    usable,
)
from onnxaudit.evidence.multiple import holm
from onnxaudit.schemes.detectors import DETECTORS
from onnxaudit.schemes.representations import REPRESENTATIONS
from tests.bundles import simulated_bundle

DRAWS = 2000
ALPHAS = (0.05, 0.1, 0.2)
Draw = Callable[[np.random.Generator, int], tuple[list[Floats], Floats | None]]
"""From a generator and a number of models to the scores of each scheme, and a covariate."""


def lower_limit(hits: int, draws: int) -> float:
    """Clopper-Pearson's lower limit of a share, at 99.9 %."""
    from scipy.stats import beta

    return 0.0 if hits == 0 else float(beta.ppf(0.001, hits, draws - hits + 1))


def upper_limit(hits: int, draws: int) -> float:
    """Clopper-Pearson's upper limit of a share, at 99.9 %."""
    return 1 - lower_limit(draws - hits, draws)


def heavy(rng: np.random.Generator, models: int) -> tuple[list[Floats], Floats | None]:
    """Four schemes with tails so heavy that they have no variance, on scales far apart."""
    return [rng.standard_t(1.3, models) * scale for scale in (1e-3, 1.0, 5.0, 1e4)], None


def correlated(rng: np.random.Generator, models: int) -> tuple[list[Floats], Floats | None]:
    """Schemes that share most of what makes them vary, as schemes on one model do; skewed."""
    common = rng.lognormal(0, 1.5, models)
    return [common + 0.3 * rng.standard_t(2, models) for _ in range(3)], None


def tied(rng: np.random.Generator, models: int) -> tuple[list[Floats], Floats | None]:
    """Matching rates of 20 queries near zero, most of them equal, each model with a rate of its own."""
    return [rng.binomial(20, rng.beta(0.5, 8, models)) / 20 for _ in range(2)], None


def with_covariate(rng: np.random.Generator, models: int) -> tuple[list[Floats], Floats | None]:
    """Scores that follow accuracy, in heavy-tailed noise; accuracies themselves are skewed."""
    accuracy = 0.9 - rng.exponential(0.03, models)
    return [slope * accuracy + 0.02 * rng.standard_t(2, models) for slope in (1.0, -2.0, 8.0)], accuracy


def with_tied_covariate(rng: np.random.Generator, models: int) -> tuple[list[Floats], Floats | None]:
    """Rates and covariate on a grid, one model in ten far from all others in the covariate."""
    accuracy: Floats = np.round(0.85 + 0.02 * rng.standard_normal(models) - np.where(rng.random(models) < 0.1, 0.5, 0.0), 2)
    return [rng.binomial(25, np.clip(accuracy - offset, 0, 1)) / 25 for offset in (0.1, 0.8)], accuracy


def statistics(scores: list[Floats], covariate: Floats | None) -> Floats:
    return combined([standardise(score, covariate, 1e-6) for score in scores])


@pytest.mark.parametrize("references", [19, 39])
@pytest.mark.parametrize("draw", [heavy, correlated, tied, with_covariate, with_tied_covariate])
def test_exchangeable_innocents_are_accused_at_most_as_often_as_alpha_says(draw: Draw, references: int) -> None:
    rng = np.random.default_rng([references, 1])
    exact, tolerant = np.empty(DRAWS), np.empty(DRAWS)
    for i in range(DRAWS):
        scores, covariate = draw(rng, references + 1)
        found = statistics(scores, covariate)
        exact[i], tolerant[i] = p_value(found), p_value(found, TOLERANCE, len(scores))
    for alpha in ALPHAS:
        hits = int((exact <= alpha).sum())
        assert lower_limit(hits, DRAWS) <= alpha, f"{hits / DRAWS:.1%} of innocents have p <= {alpha}"
        if draw in (heavy, correlated, with_covariate):  # without ties, p is uniform: the test is not merely timid
            assert upper_limit(hits, DRAWS) >= alpha
    assert (tolerant >= exact).all()


def test_the_simulation_would_notice_a_statistic_that_is_not_symmetric() -> None:
    """Standardising by the references alone leaves the suspect out of its own mean and deviation: more than 5 % accused."""
    rng = np.random.default_rng(5)
    draws, models = 20_000, 20
    scores = rng.standard_t(1.3, (draws, 4, models))
    references = scores[..., :-1]
    skewed = ((scores - references.mean(-1, keepdims=True)) / references.std(-1, ddof=1, keepdims=True)).mean(axis=1)
    p = (1 + (skewed[:, :-1] >= skewed[:, -1:]).sum(axis=1)) / models
    assert lower_limit(int((p <= 0.05).sum()), draws) > 0.05


def test_innocents_that_are_better_than_all_references_are_not_accused_where_the_score_follows_accuracy() -> None:
    rng = np.random.default_rng(8)
    references, adjusted, plain, tolerant = 39, 0, 0, 0
    for _ in range(DRAWS):
        accuracy = np.append(rng.uniform(0.80, 0.86, references), rng.uniform(0.89, 0.92))
        scores = [slope * accuracy + rng.normal(0, 0.02, references + 1) for slope in (1.0, 2.0)]
        adjusted += p_value(combined([studentised(score, accuracy, 1e-6) for score in scores])) <= 0.05
        plain += p_value(statistics(scores, None)) <= 0.05
        tolerant += p_value(statistics(scores, accuracy), TOLERANCE, len(scores)) <= 0.05
    assert plain > 0.8 * DRAWS  # the danger is real
    assert lower_limit(adjusted, DRAWS) <= 0.05
    assert lower_limit(tolerant, DRAWS) <= 0.05  # as check judges: the lesser of both scores, and the tolerance


def test_a_thief_is_found_through_tolerance_and_covariate() -> None:
    rng = np.random.default_rng(9)
    scores, accuracy = with_covariate(rng, 40)
    for score in scores:
        score[-1] = score[:-1].max() + 1.0
    assert p_value(statistics(scores, accuracy), WIDE_TOLERANCE, len(scores)) == p_floor(39)


@pytest.mark.parametrize("models", [COVARIATE_MODELS + 1, 20, 43])
def test_studentised_residuals_are_those_of_the_hat_matrix(models: int) -> None:
    rng = np.random.default_rng(models)
    covariate, scores = rng.normal(0.8, 0.1, models), rng.standard_t(3, models) * 7
    design = np.column_stack([np.ones(models), covariate])
    hat = design @ np.linalg.inv(design.T @ design) @ design.T
    slope, intercept = np.polyfit(covariate, scores, 1)
    residual = scores - (slope * covariate + intercept)
    assert np.allclose(residual, scores - hat @ scores)
    expected = residual / np.sqrt(residual @ residual / (models - 2) * (1 - np.diag(hat)))
    assert np.allclose(studentised(scores, covariate, 1e-9), expected, rtol=1e-8)
    shifted = studentised(3 * scores + 100, covariate * 1e3 - 5, 1e-9)
    assert np.allclose(shifted, expected, rtol=1e-6)


@pytest.mark.parametrize(("models", "covariate"), [(20, None), (20, "constant"), (COVARIATE_MODELS, "varied"), (2, None)])
def test_without_a_usable_covariate_they_are_z_scores(models: int, covariate: str | None) -> None:
    rng = np.random.default_rng(3)
    scores = rng.normal(size=models)
    given_covariate = {None: None, "constant": np.full(models, 0.8), "varied": rng.normal(size=models)}[covariate]
    expected = (scores - scores.mean()) / (scores.std(ddof=1) * math.sqrt(1 - 1 / models))
    assert np.allclose(studentised(scores, given_covariate, 1e-9), expected)


def test_a_spread_below_the_floor_is_not_taken_seriously() -> None:
    scores = np.array([0.50, 0.50, 0.50, 0.51])
    found = studentised(scores, None, 0.1)
    assert found == pytest.approx((scores - scores.mean()) / (0.1 * math.sqrt(3 / 4)))
    assert (studentised(np.full(20, 0.3), np.linspace(0, 1, 20), 1e-6) == pytest.approx(0, abs=1e-8)) is True


def test_equal_scores_give_no_evidence_whatever_the_covariate() -> None:
    covariate = np.append(np.linspace(0.8, 0.9, 39), 5.0)
    for value in (0.0, 0.1, 1 / 3, 1e6):
        assert p_value(studentised(np.full(40, value), covariate, 1e-6)) == 1


def test_a_suspect_alone_in_the_covariate_gets_no_credit_for_it() -> None:
    """With leverage near one its own score sets the line: the residual, and with it the evidence, is bounded by its noise."""
    rng = np.random.default_rng(4)
    covariate = np.append(rng.normal(0.8, 0.01, 39), 100.0)
    scores = np.append(rng.normal(0, 1, 39), 1e6)
    assert abs(studentised(scores, covariate, 1e-6)[-1]) <= math.sqrt(38)
    assert np.isfinite(studentised(scores, covariate, 1e-6)).all()


@given(st.integers(0, 10_000), st.integers(3, 45), st.booleans())
def test_no_model_is_special(seed: int, models: int, covariate: bool) -> None:
    """Permuting the models permutes their statistics: which of them is the suspect makes no difference."""
    rng = np.random.default_rng(seed)
    scores = [np.round(rng.standard_t(2, models), 2), rng.binomial(10, 0.2, models) / 10]
    nuisance = np.round(rng.normal(size=models), 2) if covariate else None
    order = rng.permutation(models)
    before = statistics(scores, nuisance)
    after = statistics([score[order] for score in scores], None if nuisance is None else nuisance[order])
    assert np.allclose(after, before[order], atol=1e-8)


@pytest.mark.parametrize("access", [Access.LOGITS, Access.LABEL])
def test_comparison_treats_the_suspect_as_one_of_the_models(access: Access) -> None:
    """From recorded answers on: swapping the suspect with any reference swaps their statistics, and nothing else."""
    bundle = simulated_bundle(references=20)
    models = [bundle.answers[model.id].degrade(access) for model in bundle.manifest.of_role("reference")]
    base = compare(bundle, models[:-1], models[-1])
    assert base.statistics is not None
    assert len(base.schemes) == 2
    for i in (0, 7, 18):
        order = [*range(20)]
        order[i], order[-1] = order[-1], order[i]
        swapped = [models[place] for place in order]
        again = compare(bundle, swapped[:-1], swapped[-1])
        assert again.statistics is not None
        assert np.allclose(again.statistics, base.statistics[order], atol=1e-8)


def test_one_model_with_less_access_cuts_all_of_them() -> None:
    bundle = simulated_bundle(references=20)
    models = [bundle.answers[model.id] for model in bundle.manifest.of_role("reference")]
    labels = [model.degrade(Access.LABEL) for model in models]
    low = compare(bundle, labels[:-1], labels[-1]).statistics
    for mixed in ([labels[0], *models[1:]], [*models[:-1], labels[-1]]):
        found = compare(bundle, mixed[:-1], mixed[-1])
        assert found.statistics is not None
        assert low is not None
        assert np.array_equal(found.statistics, low)
        assert {scheme.access for scheme in found.schemes} == {"label"}


def test_combined_is_the_plain_mean() -> None:
    assert combined([np.array([1.0, 2.0]), np.array([3.0, 8.0])]).tolist() == [2.0, 5.0]


def test_mean_agreement_counts_pairs() -> None:
    labels = np.random.default_rng(0).integers(0, 3, (6, 17)).astype(np.int32)
    expected = [np.mean([(labels[i] == labels[j]).mean() for j in range(6) if j != i]) for i in range(6)]
    assert mean_agreement(labels) == pytest.approx(np.array(expected))
    assert mean_agreement(labels[:1]).tolist() == [0.0]


@pytest.mark.parametrize(
    ("found", "p"),
    [
        ([1.0, 2.0, 3.0, 4.0], 0.25),
        ([1.0, 2.0, 5.0, 4.0], 0.5),
        ([4.0, 4.0, 1.0, 4.0], 0.75),  # ties count against the claim
        ([9.0, 9.0, 9.0, 4.0], 1.0),
        ([1.0], 1.0),
        ([0.1 + 0.2, 0.0, 0.3], 2 / 3),  # a tie but for the order of summation
    ],
)
def test_p_is_the_rank_of_the_last(found: list[float], p: float) -> None:
    assert p_value(np.array(found)) == pytest.approx(p)


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=30), st.floats(0, 5), st.floats(0, 5))
def test_tolerance_only_raises_p(found: list[float], one: float, two: float) -> None:
    values, (low, high) = np.array(found), sorted((one, two))
    m = len(found) - 1
    p = [p_value(values, tolerance) for tolerance in (0.0, low, high)]
    assert p == sorted(p)
    assert p_floor(m) <= p[0]
    assert p[-1] <= 1
    assert p[0] * (m + 1) == pytest.approx(round(p[0] * (m + 1)))


def test_tolerance_is_in_deviations_of_the_references() -> None:
    references = np.array([0.0, 1.0, 2.0, 3.0, 4.0])  # deviation 1.58
    assert p_value(np.append(references, 5.5), 1.0) == pytest.approx(2 / 6)
    assert p_value(np.append(references, 5.6), 1.0) == pytest.approx(1 / 6)
    assert p_value(np.append(references, 5.6), 2.0) == pytest.approx(3 / 6)


@pytest.mark.parametrize("found", [[0.0, 1.0, 2.0, math.nan], [math.nan, 1.0, 2.0, 30.0], [math.nan] * 4])
def test_what_is_not_a_number_never_accuses(found: list[float]) -> None:
    """A NaN compares as false with everything; it must fail towards p = 1, never towards the floor."""
    for tolerance in (TOLERANCE, WIDE_TOLERANCE):
        assert p_value(np.array(found), tolerance) == 1
    assert p_value(np.array(found)) > p_floor(3)


def test_references_that_all_score_alike_do_not_make_a_small_difference_large() -> None:
    """A mean of k unrelated z-scores has deviation 1 / sqrt(k): references closer together than that are a coincidence."""
    alike = np.full(19, 0.1) + 1e-3 * np.arange(19)
    for schemes in (1, 4, 9):
        least = 1 / math.sqrt(schemes)
        assert p_value(np.append(alike, alike.max() + 0.98 * least), 1.0, schemes) > p_floor(19)
        assert p_value(np.append(alike, alike.max() + 1.02 * least), 1.0, schemes) == p_floor(19)
        assert p_value(np.append(alike, alike.max() + 1.02 * least), 2.0, schemes) == 1
    assert p_value(np.append(alike, alike.max() + 0.01)) == p_floor(19)  # without tolerance the spread plays no part
    wide = 10 * np.arange(19.0)
    for schemes in (1, 9):  # references that differ more have their own deviation
        assert p_value(np.append(wide, wide.max() + 1.0), 1.0, schemes) > p_value(np.append(wide, wide.max() + 1.0))


def test_the_adjustment_can_only_acquit() -> None:
    """A suspect with another label order agrees with no other model; its place far from the line is no evidence."""
    rng = np.random.default_rng(6)
    accuracy = np.append(rng.uniform(0.8, 0.9, 39), 0.1)
    scores = np.append(4 * accuracy[:-1] + rng.normal(0, 0.01, 39), 3.0)  # 3.0 is less than any reference has
    alone = studentised(scores, accuracy, 1e-6)
    assert p_value(alone, TOLERANCE) == p_floor(39)  # the danger is real
    found = standardise(scores, accuracy, 1e-6)
    assert p_value(found, TOLERANCE) == 1
    assert found.tolist() == np.minimum(studentised(scores, None, 1e-6), alone).tolist()
    assert standardise(scores, None, 1e-6).tolist() == studentised(scores, None, 1e-6).tolist()


def test_a_covariate_is_usable_with_enough_models_that_differ() -> None:
    varied = np.linspace(0.8, 0.9, COVARIATE_MODELS + 1)
    assert usable(varied)
    assert not usable(varied[1:])
    assert not usable(np.full(40, 0.8))
    assert not usable(None)


def test_floor_says_how_many_references_an_alpha_needs() -> None:
    assert [p_floor(m) for m in (0, 19, 99, 999)] == [1, 0.05, 0.01, 0.001]


@pytest.mark.parametrize(
    ("p", "adjusted"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.02, 0.02, 0.02], [0.06, 0.06, 0.06]),
        ([0.6, 0.01, 0.9], [1.0, 0.03, 1.0]),
        ([0.05], [0.05]),
        ([], []),
        ([0.0001, 0.0134, 0.0062, 0.0482, 0.0250], [0.0005, 0.0402, 0.0248, 0.05, 0.05]),
    ],
)
def test_holm_of_numbers_worked_out_by_hand(p: list[float], adjusted: list[float]) -> None:
    assert holm(p) == pytest.approx(adjusted)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_the_p_values_and_bonferroni_and_keeps_their_order(p: list[float]) -> None:
    adjusted = holm(p)
    for (p_one, one), (p_two, two) in itertools.permutations(zip(p, adjusted, strict=True), 2):
        assert p_one > p_two or one <= two
    assert all(a <= b <= min(1, len(p) * a) + 1e-12 for a, b in zip(p, adjusted, strict=True))
    assert min(adjusted) == pytest.approx(min(1, len(p) * min(p)))


def test_holm_holds_family_wise_whatever_the_dependence() -> None:
    rng = np.random.default_rng(1)
    base = rng.random(DRAWS)
    families: list[NDArray[np.float64]] = [
        rng.random((DRAWS, 3)),
        np.column_stack([base] * 3),
        np.column_stack([base, (base + 1 / 3) % 1, (base + 2 / 3) % 1]),  # the worst dependence for Bonferroni
    ]
    for family in families:
        hits = sum(min(holm(list(row))) <= 0.1 for row in family)
        assert lower_limit(hits, DRAWS) <= 0.1


def test_unanswered_rows_are_left_out_for_all_models_alike() -> None:
    bundle = simulated_bundle(references=20)
    models = [bundle.answers[model.id] for model in bundle.manifest.of_role("reference")]
    classes = models[-1].classes.copy()
    start, stop = bundle.manifest.schemes[0].rows
    classes[start + 12 : stop] = -1
    suspect = dataclasses.replace(models[-1], classes=classes)
    found = compare(bundle, models[:-1], suspect).schemes[0]
    victim = bundle.answers["victim"].labels[start : start + 12]
    assert found.queries == 12
    assert found.scores is not None
    expected = [(model.labels[start : start + 12] == victim).mean() for model in models]
    assert found.scores.tolist() == pytest.approx(expected)


@pytest.mark.parametrize(("answered", "ran"), [(0, 1), (1, 1), (FEWEST_QUERIES - 1, 1), (FEWEST_QUERIES, 2), (24, 2)])
def test_a_scheme_of_which_too_little_was_answered_says_nothing(answered: int, ran: int) -> None:
    bundle = simulated_bundle(references=20)
    models = [bundle.answers[model.id] for model in bundle.manifest.of_role("reference")]
    start, stop = bundle.manifest.schemes[0].rows
    classes = models[-1].classes.copy()
    classes[start + answered : stop] = -1
    comparison = compare(bundle, models[:-1], dataclasses.replace(models[-1], classes=classes))
    first, second = comparison.schemes
    assert comparison.unrelated == ran
    assert comparison.statistics is not None
    assert (first.queries, second.skipped) == (answered, None)
    assert (first.scores is None) == (first.standardised is None) == (ran == 1)
    if ran == 1:
        assert first.skipped == f"only {answered} of its queries were answered"
        assert second.standardised is not None
        assert np.array_equal(comparison.statistics, second.standardised)
    else:
        assert first.skipped is None


@pytest.mark.parametrize(
    ("controls", "references", "adjusted"), [(40, 20, True), (30, 20, True), (29, 20, False), (40, 11, False)]
)
def test_scores_are_adjusted_where_there_is_enough_to_adjust_by(controls: int, references: int, adjusted: bool) -> None:
    bundle = simulated_bundle(references=references + 1)
    models = [bundle.answers[model.id] for model in bundle.manifest.of_role("reference")]
    assert len(models) == references + 1
    start, stop = bundle.manifest.controls
    classes = models[-1].classes.copy()
    classes[start + controls : stop] = -1
    found = compare(bundle, models[:-1], dataclasses.replace(models[-1], classes=classes))
    assert found.adjusted is adjusted
    assert found.unrelated == 2
    rows = slice(start, start + controls)
    covariate = mean_agreement(np.stack([model.labels[rows] for model in models])) if controls >= FEWEST_CONTROLS else None
    for scheme in found.schemes:
        assert scheme.scores is not None
        assert scheme.standardised is not None
        floor = 0.5 / scheme.queries**0.5 if scheme.name == "akh" else 1e-6
        assert scheme.standardised == pytest.approx(standardise(scheme.scores, covariate, floor))


def test_only_what_counts_labels_has_a_sampling_error_below_which_nothing_counts() -> None:
    def least(representation: str, detector: str, entries: int) -> float:
        return least_spread(REPRESENTATIONS[representation], DETECTORS[detector], entries)

    for representation in ("labels", "topk", "ranks", "correct", "hard-ddv", "hard-correlation"):
        assert [least(representation, "matching-rate", n) for n in (100, 25)] == pytest.approx([0.05, 0.1])
    assert least("correlation", "l1", 100) == least("logits", "cosine", 100) == 1e-6
    assert least("labels", "logistic", 100) == least("views", "welch", 5) == 1.0  # in units of its own
