"""SAC-w: inputs that the victim and all its surrogates get wrong (Guan et al. 2022, eq. 7)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from onnxaudit.craft.pools.peers import labels_of, needed_references, needed_surrogates
from onnxaudit.craft.sample import Material, Sample
from onnxaudit.craft.samplers.natural import errors_of
from onnxaudit.errors import UsageError


def sample_shared_negative(
    material: Material,
    n: int,
    rng: np.random.Generator,
    progress: Callable[[int], None],
    *,
    keep_if_references: str = "",
) -> Sample:
    """n labelled inputs that the victim and every surrogate get wrong, in random order: argmax f_i(x) != y for all i (eq. 7).

    keep_if_references: "right" keeps only those that more than half of the references get right (SAC section 3.3, optional). With
    fewer than n, those that the largest number of surrogates get wrong follow, and a note says how many and by how many. Errors
    that no surrogate shares are never taken. Column "truth": the label (n,). Raises UsageError without labels or surrogates, or
    if fewer than two errors are shared by any.
    """
    data, truth = material.labelled()
    if keep_if_references not in ("", "right"):
        raise UsageError(f"keep_if_references={keep_if_references!r} is not known", "Use right, or leave it out.")
    surrogates = needed_surrogates(material)
    errors = errors_of(material.victim, data, rng)
    if keep_if_references:
        right = labels_of(needed_references(material), data.x[errors]) == truth[errors]
        errors = errors[right.mean(axis=0) > 0.5]
        if not len(errors):
            raise UsageError("most references share every error of the victim", "Leave out keep_if_references.")
    wrong = (labels_of(surrogates, data.x[errors]) != truth[errors]).sum(axis=0)
    order = np.argsort(-wrong, kind="stable")
    chosen = order[wrong[order] > 0][:n]
    if len(chosen) < 2:
        raise UsageError(
            f"the victim shares {len(chosen)} of its {len(errors)} errors with a surrogate", "Give more held-out data."
        )
    progress(len(chosen))
    share = wrong[chosen]
    rows = errors[chosen]
    settled = {"shared": int((wrong == len(surrogates)).sum()), "surrogates": len(surrogates)}
    return Sample(data.x[rows], _notes(share, n, len(surrogates)), settled, {"truth": truth[rows]})


def _notes(share: NDArray[np.int64], n: int, surrogates: int) -> tuple[str, ...]:
    """What had to be relaxed. share: by how many surrogates each chosen error is shared, falling."""
    counts = {int(k): int((share == k).sum()) for k in np.unique(share)[::-1]}
    notes: tuple[str, ...] = ()
    if any(k < surrogates for k in counts):
        more = ", ".join(f"{count} by {k}" for k, count in counts.items() if k < surrogates)
        notes = (f"only {counts.get(surrogates, 0)} errors are shared by all {surrogates} surrogates; others fill up: {more}",)
    if len(share) < n:
        notes += (f"only {len(share)} queries: no other error of the victim is shared by a surrogate",)
    return notes
