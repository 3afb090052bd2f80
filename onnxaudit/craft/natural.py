"""Natural queries: random inputs (the baseline), the victim's own errors (AKH), and controls."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from onnxaudit.craft.cutmix import cutmix
from onnxaudit.craft.data import Data
from onnxaudit.craft.sample import Sample
from onnxaudit.craft.victim import Victim
from onnxaudit.errors import UsageError
from onnxaudit.suspect import Queries


def sample_natural(
    victim: Victim, data: Data | None, n: int, rng: np.random.Generator, progress: Callable[[int], None]
) -> Sample:
    """n inputs drawn from the data without replacement (QuRD's Random sampling)."""
    data = _required(data, "random")
    if len(data) < n:
        raise UsageError(f"{n} queries asked for, the data has {len(data)} inputs", "Lower --queries or give more data.")
    progress(n)
    return Sample(data.x[np.sort(rng.choice(len(data), n, replace=False))])


def sample_errors(victim: Victim, data: Data | None, n: int, rng: np.random.Generator, progress: Callable[[int], None]) -> Sample:
    """n inputs that the victim gets wrong (AKH; QuRD section 4, "negative" sampling), in random order.

    With fewer errors than n, the rest are CutMix mixtures of pairs of errors, and a note says so. Raises UsageError
    without labels or with fewer than two errors.
    """
    data = _required(data, "akh")
    if data.y is None:
        raise UsageError("akh needs labelled data", "Give y with the data, or leave akh out.")
    labels = victim.answer(data.x).argmax(1)
    errors = rng.permutation(np.flatnonzero(labels != data.y))
    if len(errors) < 2:
        raise UsageError(f"the victim makes {len(errors)} errors on {len(data)} inputs; akh needs some", "Give held-out data.")
    natural = data.x[errors[:n]]
    progress(len(natural))
    missing = n - len(natural)
    if not missing:
        return Sample(natural)
    if data.x.ndim != 4:
        return Sample(
            natural, (f"only {len(natural)} natural errors in {len(data)} inputs; vectors cannot be mixed, so no more",)
        )
    mixed = np.concatenate([cutmix(natural, rng) for _ in range(-(-missing // len(natural)))])[:missing]
    progress(n)
    note = f"only {len(natural)} natural errors in {len(data)} inputs; {missing} CutMix mixtures of errors fill up"
    return Sample(np.concatenate([natural, mixed]), (note,))


def draw_controls(victim: Victim, data: Data, n: int, rng: np.random.Generator) -> tuple[Queries, NDArray[np.int64]]:
    """Up to n inputs at random and their labels (n,): the truth where there is one, else the victim's own answer."""
    rows = np.sort(rng.choice(len(data), min(n, len(data)), replace=False))
    queries = data.x[rows]
    return queries, data.y[rows] if data.y is not None else victim.answer(queries).argmax(1).astype(np.int64)


def _required(data: Data | None, scheme: str) -> Data:
    if data is None:
        raise UsageError(f"{scheme} needs data", "Give --data, or take another scheme.")
    return data
