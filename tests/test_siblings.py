"""The line-up's guarantees, over draws of the victim."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from onnxaudit.evidence.siblings import e_value, line_up_p, typical

AGREEMENTS = st.lists(st.integers(0, 8).map(lambda n: n / 8), min_size=2, max_size=25)


@given(AGREEMENTS)
def test_over_all_draws_of_the_victim_the_rank_is_a_p_value(agreements: list[float]) -> None:
    """Whatever the suspect agrees with: each of K models drawn in turn, at most k of them give p <= k / K."""
    k = len(agreements)
    p_values = [line_up_p(agreements[i], agreements[:i] + agreements[i + 1 :]) for i in range(k)]
    for count in range(1, k + 1):
        assert sum(p <= count / k + 1e-9 for p in p_values) <= count


@given(AGREEMENTS)
def test_over_all_draws_of_the_victim_e_values_have_mean_one(agreements: list[float]) -> None:
    e_values = [e_value(agreements[i], agreements[:i] + agreements[i + 1 :]) for i in range(len(agreements))]
    assert np.mean(e_values) == pytest.approx(1.0)


def test_products_of_independent_e_values_reject_as_rarely_as_they_should() -> None:
    rng = np.random.default_rng(0)
    trials, rejected = 4000, 0
    for _ in range(trials):
        product = 1.0
        for _ in range(3):
            agreements = rng.beta(8, 8, 20)
            product *= e_value(agreements[0], list(agreements[1:]))
        rejected += product >= 20
    assert rejected <= binom.ppf(0.999, trials, 0.05)


def test_a_central_sibling_is_first_for_most_honest_suspects() -> None:
    """Why the rank alone is no ground for a finding: for one given line-up innocents rank the siblings alike."""
    rng = np.random.default_rng(1)
    central = np.zeros(20)
    central[0] = 1.0
    p_values = []
    for _ in range(200):
        agreements = 0.6 + 0.03 * (central + 0.3 * rng.standard_normal(20))
        p_values.append(line_up_p(agreements[0], list(agreements[1:])))
    assert np.mean(np.array(p_values) <= 0.05) > 0.5


def test_the_closest_of_twenty() -> None:
    siblings = list(np.linspace(0.5, 0.7, 19))
    assert line_up_p(0.8, siblings) == 1 / 20
    assert line_up_p(0.7, siblings) == 2 / 20
    assert line_up_p(float("nan"), siblings) == 1.0
    assert e_value(0.8, siblings) == pytest.approx(20 / sum(1 / n for n in range(1, 21)))


def test_a_victim_that_is_not_like_its_siblings_is_seen() -> None:
    centrality = np.linspace(0.6, 0.7, 20)
    assert typical(np.r_[0.8, centrality[:-1]]) == pytest.approx(0.1)
    assert typical(np.r_[0.5, centrality[:-1]]) == pytest.approx(0.1)
    assert typical(np.r_[0.65, centrality]) > 0.8
