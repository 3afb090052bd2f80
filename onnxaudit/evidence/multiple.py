"""Several tests at once."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values that hold family-wise under any dependence (Holm 1979), in the order given.

    p_(i) becomes max over j <= i of min(1, (M - j + 1) p_(j)).
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def rank_e(p_value: float | None, floor: float) -> float:
    """E = 1 / floor where a conformal p-value stands at its floor, else 0.

    P(p <= floor) <= floor for an independent suspect, so E has a mean of at most 1. Over the suspect, too: of several bundles
    these may be averaged, never multiplied, for a suspect that is close to the victim by chance is so by all of them.
    """
    return 1 / floor if p_value is not None and p_value <= floor + 1e-12 else 0.0


def e_combined(e_values: Sequence[float], groups: Sequence[int]) -> float:
    """One e-value of several about one hypothesis: the mean within each group, and the product of independent groups.

    A mean of e-values is one under any dependence; a product only where each has mean 1 whatever the others are, as those of
    line-ups with different models have, over their draws, for any given suspect.
    """
    found: dict[int, list[float]] = {}
    for value, group in zip(e_values, groups, strict=True):
        found.setdefault(group, []).append(value)
    return prod(sum(values) / len(values) for values in found.values())


def e_bh(e_values: Sequence[float], alpha: float) -> list[bool]:
    """Which of M hypotheses are discovered with a false discovery rate of at most alpha under any dependence, in the order given.

    Those with e >= M / (alpha k), for the largest k at which k of them reach that (e-BH; Wang and Ramdas 2022).
    """
    count = len(e_values)
    ranked = sorted(e_values, reverse=True)
    reached = [k for k, value in enumerate(ranked, 1) if k * value >= count / alpha - 1e-9]
    least = count / (alpha * reached[-1]) - 1e-9 if reached else float("inf")
    return [value >= least for value in e_values]
