"""e-values of suspects: their mean, what may be multiplied, and the false discovery rate of e-BH."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxaudit.audit.scan.record import dependent
from onnxaudit.evidence.calibration import p_floor, p_value
from onnxaudit.evidence.multiple import e_bh, e_combined, rank_e
from onnxaudit.evidence.siblings import e_value


def test_a_rank_e_value_has_mean_one_for_exchangeable_models() -> None:
    rng = np.random.default_rng(0)
    e_values = [rank_e(p_value(rng.standard_normal(20)), p_floor(19)) for _ in range(20_000)]
    assert np.mean(e_values) == pytest.approx(1.0, abs=4 * np.std(e_values) / 20_000**0.5)


def test_no_p_value_is_no_evidence() -> None:
    assert rank_e(None, 0.05) == rank_e(0.1, 0.05) == 0.0
    assert rank_e(0.05, 0.05) == pytest.approx(20)


def test_what_shares_models_is_averaged_and_what_does_not_is_multiplied() -> None:
    assert e_combined([20, 0], [0, 0]) == 10
    assert e_combined([20, 40], [0, 1]) == 800
    assert e_combined([20, 10, 40], [0, 0, 1]) == 600
    assert dependent([{"a", "b"}, {"c"}, {"b", "d"}, {"d"}, set()]) == [0, 1, 0, 0, 4]


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=30), st.floats(0.01, 0.5))
def test_e_bh_takes_the_largest_set_that_supports_itself(e_values: list[float], alpha: float) -> None:
    taken = e_bh(e_values, alpha)
    count, k = len(e_values), sum(taken)
    assert all(value * k * alpha >= count - 1e-3 for value, is_in in zip(e_values, taken, strict=True) if is_in)
    for larger in range(k + 1, count + 1):
        assert sum(value >= count / (alpha * larger) for value in e_values) < larger


@pytest.mark.parametrize("shared", [True, False])
def test_the_false_discovery_rate_holds_also_when_all_suspects_share_the_references(shared: bool) -> None:
    """Twenty suspects, four of them derived, against 199 references that are the same for all, as in a scan."""
    rng = np.random.default_rng(int(shared))
    rates, found = [], 0
    for _ in range(400):
        pool = rng.standard_normal(199)
        e_values = []
        for suspect in range(20):
            references = pool if shared else rng.standard_normal(199)
            score = rng.standard_normal() + 8 * (suspect < 4)
            e_values.append(rank_e(p_value(np.r_[references, score]), p_floor(199)))
        taken = e_bh(e_values, 0.1)
        found += sum(taken[:4])
        rates.append(sum(taken[4:]) / max(1, sum(taken)))
    assert np.mean(rates) <= 0.1 + 3 * np.std(rates) / 400**0.5
    assert found > 0.9 * 4 * 400  # Holm needs p <= 0.1 / 20 as well, but e-BH gains with every one that is found


def test_rank_e_values_of_one_suspect_must_not_be_multiplied() -> None:
    """Not even with references that have nothing in common: the suspect is the same. A mean is an e-value."""
    rng = np.random.default_rng(3)
    products, means = [], []
    for _ in range(20_000):
        suspect = rng.standard_normal()
        one, two = (rank_e(p_value(np.append(rng.standard_normal(9), suspect)), p_floor(9)) for _ in range(2))
        products.append(one * two)
        means.append((one + two) / 2)
    assert np.mean(products) > 3
    assert np.mean(means) == pytest.approx(1.0, abs=4 * np.std(means) / 20_000**0.5)


def test_line_ups_drawn_apart_multiply_for_any_given_suspect() -> None:
    """Whatever the suspect agrees with, over the draws of both victims the product has mean 1."""
    rng = np.random.default_rng(4)
    first, second = rng.random(7), rng.random(9)
    products = [
        e_value(first[i], list(np.delete(first, i))) * e_value(second[j], list(np.delete(second, j)))
        for i in range(7)
        for j in range(9)
    ]
    assert np.mean(products) == pytest.approx(1.0)
