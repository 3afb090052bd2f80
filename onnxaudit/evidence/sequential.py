"""Looking at the answers while they come in, without paying for it in false accusations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxaudit.evidence.calibration import Floats, spread_of

LOOKS = (10, 15, 20, 30, 50, 75, 100, 150, 200, 300, 500, 1000)
"""Queries of the schemes after which answers are judged, unless a bundle says otherwise."""
LEAD = 1.0
"""Standard deviations by which a model must lead all others to enter before the last look."""


@dataclass(frozen=True, slots=True)
class Standing:
    """The suspect after one look. p: its p-value, None while it is not known. ahead: references that entered before it, and at
    the last look those that rank before it; closer: references as close by this look alone. best: the least p still possible.
    """

    p: float | None
    ahead: int
    closer: int
    best: float


@dataclass(frozen=True, slots=True, eq=False)
class Glance:
    """What one look shows. statistics: of m + 1 models, (m + 1,), the suspect last. schemes: unrelated ones, see ``p_value``."""

    statistics: Floats
    schemes: float = 1.0


def order_of_entry(looks: Sequence[Glance], *, final: bool, tolerance: float = 0.0) -> list[Standing]:
    """How the suspect stands after each look, up to the one at which its p-value is known.

    final: the last of them is the last of the schedule. At each look but that, a model *enters* if it leads all others by
    more than ``LEAD`` standard deviations of theirs; at the last look the others follow by rank. p is the suspect's place in the
    order of entry over m + 1. That is a symmetric function of the m + 1 models, so P(p <= a) <= a for every a if the suspect is
    exchangeable with the references, and since p does not change once it is known, one may stop there. Alpha is spent only where
    a reference takes the lead: looks at which nobody stands out cost nothing.

    tolerance: the suspect must lead, and rank, by so many standard deviations of the references more, see ``p_value``; it only
    raises p.
    """
    entered: set[int] = set()
    standings: list[Standing] = []
    for number, look in enumerate(looks):
        m = len(look.statistics) - 1
        lowered = look.statistics.copy()
        lowered[m] -= tolerance * spread_of(lowered[:-1], look.schemes)
        closer = int((look.statistics[:-1] >= look.statistics[m]).sum())
        p = None
        if final and number == len(looks) - 1:
            # not-less instead of at-least, so that a NaN counts against the claim
            entered |= set(np.flatnonzero(~(lowered[:-1] < lowered[m] - 1e-9)).tolist())
            p = (1 + len(entered)) / (m + 1)
        elif _leader(lowered, look.schemes) == m:
            p = (1 + len(entered)) / (m + 1)
        else:
            leaders = _leader(lowered, look.schemes), _leader(look.statistics, look.schemes)
            entered |= {leader for leader in leaders if leader is not None and leader != m}
        standings.append(Standing(p, len(entered), closer, (1 + len(entered)) / (m + 1)))
        if p is not None:
            break
    return standings


def futile(standings: Sequence[Standing], references: int, alpha: float) -> bool:
    """Whether asking on is not worth it: too many references are ahead, or at two looks running at least half are as close.

    Stopping for it never accuses anybody: the finding then is that derivation is not shown. With too few references for alpha
    from the start nothing is futile, for nothing was to be found: others may be put in their place. A p that is known, and too
    large, is final.
    """
    recent = standings[-2:]
    if recent[-1].p is not None:
        return recent[-1].p > alpha + 1e-12
    if 1 / (references + 1) > alpha + 1e-12:
        return False
    return recent[-1].best > alpha + 1e-12 or (len(recent) == 2 and all(2 * look.closer >= references for look in recent))


def _leader(statistics: Floats, schemes: float) -> int | None:
    """The model that is ahead of all others by more than ``LEAD`` standard deviations of theirs, by number, if one is."""
    if len(statistics) < 2 or not np.isfinite(statistics).all():
        return None
    second, first = np.argsort(statistics, kind="stable")[-2:]
    lead = LEAD * spread_of(np.delete(statistics, first), schemes)
    return int(first) if statistics[first] - statistics[second] > lead + 1e-9 else None
