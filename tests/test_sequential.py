"""Looks: the guarantee itself, over many worlds, and what each look may do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import binom

from onnxaudit.evidence.calibration import Floats, p_value
from onnxaudit.evidence.sequential import Glance, futile, order_of_entry

LOOKS = (10, 20, 50, 100, 200)


def world(rng: np.random.Generator, models: int, *, spread: float = 0.15) -> list[Floats]:
    """Matching rates of exchangeable models at each look: every model has a rate of its own, queries come one after another."""
    rates = np.clip(rng.normal(0.5, spread, models), 0.02, 0.98)
    matched = (rng.random((LOOKS[-1], models)) < rates).cumsum(axis=0)
    return [matched[n - 1] / n for n in LOOKS]


def glances(looks: Sequence[Floats]) -> list[Glance]:
    return [Glance(look) for look in looks]


def standardised(looks: list[Floats]) -> list[Floats]:
    return [(look - look.mean()) / max(look.std(), 0.5 / n**0.5) for n, look in zip(LOOKS, looks, strict=True)]


@pytest.mark.parametrize(("references", "alpha"), [(19, 0.05), (39, 0.05), (99, 0.2)])
def test_stopping_at_the_first_look_that_allows_it_keeps_the_level(references: int, alpha: float) -> None:
    rng = np.random.default_rng([references, int(1000 * alpha)])
    trials, accused = 1500, 0
    for _ in range(trials):
        p = order_of_entry(glances(standardised(world(rng, references + 1))), final=True)[-1].p
        assert p is not None
        accused += p <= alpha + 1e-12
    assert accused <= binom.ppf(0.999, trials, alpha), accused / trials
    if references > 19:
        assert accused >= 0.4 * alpha * trials  # it is not empty either: most of alpha can be spent


def test_the_plain_rank_at_every_look_does_not_keep_it() -> None:
    """Why all this: taking the best of five looks accuses far too many."""
    rng = np.random.default_rng(5)
    accused = sum(min(p_value(look) for look in standardised(world(rng, 40))) <= 0.05 for _ in range(1500))
    assert accused > binom.ppf(0.999, 1500, 0.05)


@pytest.mark.parametrize("shift", [0.5, 1.0])
def test_the_tolerance_keeps_the_level_for_innocents_that_are_closer_than_the_references(shift: float) -> None:
    """Each look's statistic of the suspect is raised by so many standard deviations of the references'."""
    rng = np.random.default_rng([7, int(10 * shift)])
    trials, accused = 1000, 0
    for _ in range(trials):
        looks = standardised(world(rng, 40))
        for look in looks:
            look[-1] += shift * max(1.0, look[:-1].std(ddof=1))
        accused += (order_of_entry(glances(looks), final=True, tolerance=1.0)[-1].p or 1.0) <= 0.05
    assert accused <= binom.ppf(0.999, trials, 0.05), accused / trials


def test_a_suspect_that_stands_out_is_known_at_the_first_look() -> None:
    rng = np.random.default_rng(0)
    looks = standardised(world(rng, 40))
    for look in looks:
        look[-1] = look[:-1].max() + 5
    assert [standing.p for standing in order_of_entry(glances(looks), final=True, tolerance=1.0)] == [1 / 40]


def test_references_that_take_the_lead_first_are_ahead() -> None:
    first, second = np.zeros(20), np.zeros(20)
    first[3], second[4] = 9.0, 9.0
    last = np.zeros(20)
    last[-1] = 9.0
    assert [s.ahead for s in order_of_entry(glances([first, second]), final=False)] == [1, 2]
    standings = order_of_entry(glances([first, second, last]), final=False)
    assert standings[-1].p == 3 / 20
    assert futile(standings[:2], 19, 0.1)
    assert not futile(standings[:1], 19, 0.1)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_the_order_of_entry_is_an_order_of_all_models(data: st.DataObject) -> None:
    """Without tolerance, of m + 1 models taken as the suspect in turn at most k have a p of k / (m + 1) or less."""
    models, looks = data.draw(st.integers(3, 12)), data.draw(st.integers(1, 4))
    table = data.draw(arrays(np.float64, (looks, models), elements=st.integers(-40, 40).map(float)))
    p_values = []
    for suspect in range(models):
        order = [*(i for i in range(models) if i != suspect), suspect]
        standing = order_of_entry([Glance(look[order]) for look in table], final=True)[-1]
        assert standing.p is not None
        p_values.append(standing.p)
    for k in range(1, models + 1):
        assert sum(p <= k / models + 1e-9 for p in p_values) <= k


@settings(max_examples=100, deadline=None)
@given(
    arrays(np.float64, (3, 12), elements=st.floats(-4, 4)),
    st.floats(0, 2),
    st.booleans(),
)
def test_a_tolerance_only_raises_p(table: Floats, tolerance: float, final: bool) -> None:
    plain = order_of_entry(glances(list(table)), final=final)[-1].p
    with_tolerance = order_of_entry(glances(list(table)), final=final, tolerance=tolerance)[-1].p
    assert (1.0 if with_tolerance is None else with_tolerance) >= (1.0 if plain is None else plain)


def test_one_look_at_the_end_is_the_plain_p_value() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        statistics = rng.standard_normal(30)
        assert order_of_entry([Glance(statistics)], final=True, tolerance=1.0)[-1].p == p_value(statistics, 1.0)


def test_a_statistic_that_is_not_a_number_counts_against_the_claim() -> None:
    statistics = np.zeros(20)
    statistics[-1] = np.nan
    assert order_of_entry([Glance(statistics)] * 2, final=True)[-1].p == 1.0


def test_with_too_few_references_nothing_is_futile() -> None:
    statistics = np.linspace(-1, 1, 10)
    standings = order_of_entry([Glance(statistics)] * 2, final=False)
    assert not futile(standings, 9, 0.05)
    assert not futile(standings[:1], 9, 0.2)
    hopeless = order_of_entry([Glance(-statistics)] * 2, final=False)
    assert futile(hopeless, 9, 0.2)
    assert not futile(hopeless, 9, 0.05)
