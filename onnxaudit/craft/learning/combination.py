"""Fitting the learned combination to surrogates and references that never calibrate, and freezing it (torch)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from onnxaudit.craft.learning.fitting import Frozen, frozen_network
from onnxaudit.errors import UsageError

Floats = NDArray[np.float64]
FEWEST = 4
"""Surrogates; weights learned from fewer say what these happened to be."""
SLOPE = 2.0
"""Of the logistic curve along the plain mean of the scores, from which weights depart."""
STRENGTH = 4.0
"""Of the pull towards equal weights, in models: without any model the mean is what is best known of."""
KEPT = 0.25
"""The least share of its equal weight that a scheme keeps: what few surrogates show nothing of may still be what is done."""


def fit_combination(derived: Sequence[Floats], independent: Sequence[Floats], names: Sequence[str]) -> Frozen:
    """Non-negative weights of schemes for labels and for more, as a linear network (rows, schemes) to (rows, 2).

    derived, independent: standardised scores of surrogates and of references (models, schemes), for labels and for more; NaN
    where a scheme did not run. Raises UsageError for fewer than ``FEWEST`` surrogates.
    """
    if min(map(len, derived)) < FEWEST:
        raise UsageError(
            f"a learned combination needs {FEWEST} surrogates, there are {min(map(len, derived))}", "Give or train more."
        )
    columns = [weights(own, other) for own, other in zip(derived, independent, strict=True)]
    layer = nn.utils.skip_init(nn.Linear, len(names), len(columns), dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(np.stack(columns)))
        layer.bias.zero_()
    said = ("; ".join(f"{name} {share:.0%}" for name, share in zip(names, column, strict=True)) for column in columns)
    kinds = ("labels", "more than labels")
    notes = tuple(f"learned weights for {kind}: {words}" for kind, words in zip(kinds, said, strict=True))
    return Frozen(frozen_network(nn.Sequential(layer)), {}, notes)


def weights(derived: Floats, independent: Floats) -> Floats:
    """Weights that sum to 1, (schemes,): logistic regression, both kinds of models with the same weight.

    A ridge of ``STRENGTH`` pulls towards equal weights, of which each scheme keeps at least ``KEPT``. What a scheme did not say
    counts as 0, the middle, for all.
    """
    from scipy.optimize import minimize

    both = np.nan_to_num(np.concatenate([derived, independent]))
    signs = np.r_[np.ones(len(derived)), -np.ones(len(independent))]
    share = len(both) / 2 / np.r_[np.full(len(derived), len(derived)), np.full(len(independent), len(independent))]
    count = both.shape[1]
    equal = np.full(count, SLOPE / count)

    def loss(values: Floats) -> tuple[float, Floats]:
        found, middle = values[:-1], values[-1]
        margin = signs * (both @ found - middle)
        total = share @ np.logaddexp(0, -margin) + STRENGTH / 2 * ((found - equal) ** 2).sum()
        slope = -share * signs * np.exp(-np.logaddexp(0, margin))
        return float(total), np.r_[both.T @ slope + STRENGTH * (found - equal), -slope.sum()]

    bounds = [*((KEPT * SLOPE / count, None) for _ in range(count)), (None, None)]
    found = minimize(loss, np.r_[equal, 0.0], jac=True, method="L-BFGS-B", bounds=bounds).x[:-1]
    return np.asarray(found / found.sum())
