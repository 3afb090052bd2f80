"""The line-up: the deployed model among its siblings, models by the same recipe that never left the house."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxaudit.evidence.calibration import Floats

STATISTIC = "sibling-z/1"
"""The pre-registered statistic of a bundle with siblings: ``combined`` of scores less their mean over the siblings."""
FEWEST = 3
"""With fewer siblings than this their mean is no measure of what models by one recipe share."""


def line_up_p(victim: float, siblings: Sequence[float]) -> float:
    """#{k : T_k >= T_victim} / K over all K in the line-up, the victim too; ties count against the claim.

    Exact over the draw of the victim, if the suspect was made without knowledge of which one was deployed, whatever the
    suspect is. Not exact for one given victim: honest models rank the siblings alike.
    """
    return (1 + sum(not agreement < victim - 1e-12 for agreement in siblings)) / (1 + len(siblings))


def e_value(victim: float, siblings: Sequence[float]) -> float:
    """E = K g(T_victim) / sum_k g(T_k) with g = 1 / rank, ties at their worst rank: its mean over the draw of the victim is 1.

    E-values of independent bundles multiply; E >= 1 / alpha happens with a probability of at most alpha.
    """
    agreements = np.array([victim, *siblings])
    weights = 1 / (agreements[None, :] >= agreements[:, None] - 1e-12).sum(axis=1)
    return float(len(agreements) * weights[0] / weights.sum())


def typical(centrality: Floats) -> float:
    """How ordinary the first of K models is among all, two-sided, as a p-value: small for an outlier.

    centrality: each one's mean agreement with the others, (K,). A victim that was not drawn at random may be better, or trained
    for longer, than its siblings; then it is nearer to, or further from, everybody.
    """
    others = centrality[1:]
    above, below = int((others >= centrality[0] - 1e-12).sum()), int((others <= centrality[0] + 1e-12).sum())
    return min(1.0, 2 * (1 + min(above, below)) / len(centrality))
