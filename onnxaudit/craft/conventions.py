"""What the victim wants as input: found by trying the common conventions on labelled data."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxaudit.craft.data import Data
from onnxaudit.craft.victim import Victim
from onnxaudit.errors import UsageError
from onnxaudit.suspect import InputSpec
from onnxaudit.wiring.conventions import SCALINGS

PROBE = 1000
"""Labelled inputs on which conventions are compared."""
HEAT, BEHIND = 100, 0.25
"""So many of them tell which conventions are not worth the others: those less accurate than the best by so much."""
PART = 256
"""Inputs copied from the data at a time."""


@dataclass(frozen=True, slots=True)
class Convention:
    """A way to prepare inputs, in words and as a spec."""

    words: str
    spec: InputSpec
    accuracy: float = 0.0


def conventions(base: InputSpec, *, scaling: bool, layout: bool, order: bool) -> Iterator[Convention]:
    """The common ways, likeliest first; what is not to be varied stays as in ``base``."""
    channels = base.shape[2] if len(base.shape) == 3 else 0
    scalings = SCALINGS if scaling else (("the given scale", base.scale, base.mean, base.std),)
    for words, scale, mean, std in scalings:
        if len(mean) not in (0, 1, channels):
            continue
        for axes in ("NCHW", "NHWC") if layout else (base.layout,):
            for channel_order in ("RGB", "BGR") if order and channels == 3 else (base.channels,):
                name = f"{words}, {axes}" + (f", {channel_order}" if channels == 3 else "")
                yield Convention(
                    name, dataclasses.replace(base, scale=scale, mean=mean, std=std, layout=axes, channels=channel_order)
                )


def find_convention(victim: Victim, data: Data, candidates: Iterator[Convention]) -> tuple[Victim, Convention]:
    """The victim under the convention in which it is most accurate on the labelled data; the earlier one on ties.

    Those that are far behind on a few inputs are not tried on more. Raises UsageError if the victim takes none of them, or is at
    chance under all of them.
    """
    assert data.y is not None
    rows = np.random.default_rng(0).permutation(len(data))[:PROBE]
    y = data.y[rows]
    entered: list[tuple[Victim, Convention, NDArray[np.bool_]]] = []
    refused: UsageError | None = None
    for candidate in candidates:
        try:
            tried = dataclasses.replace(victim, spec=candidate.spec).probed()
        except UsageError as error:  # this layout does not fit the victim
            refused = refused or error
            continue
        entered.append((tried, candidate, _right(tried, data, rows[:HEAT])))
    if not entered:
        assert refused is not None
        raise refused
    leading = max(right.mean() for _, _, right in entered)
    best: tuple[Victim, Convention] | None = None
    for tried, candidate, right in entered:
        if right.mean() < leading - BEHIND:
            continue
        accuracy = float(np.concatenate([right, _right(tried, data, rows[HEAT:])]).mean())
        if best is None or accuracy > best[1].accuracy:
            best = tried, dataclasses.replace(candidate, accuracy=accuracy)
    assert best is not None
    if data.y.max(initial=0) >= best[0].num_classes:
        raise UsageError(
            f"the data has the label {int(data.y.max())}, the victim has {best[0].num_classes} classes", "Labels count from 0."
        )
    chance = float(np.bincount(y).max() / len(y))
    if best[1].accuracy <= chance + 3 * np.sqrt(chance * (1 - chance) / len(y)):
        raise UsageError(
            f"the victim is at chance under every common input convention, at best {best[1].accuracy:.1%} ({best[1].words})",
            "Check that --data has the victim's task and label order, or give --scale, --mean, --std, --layout, --channel-order.",
        )
    return best


def _right(victim: Victim, data: Data, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of these rows the victim gets right, (n,)."""
    assert data.y is not None
    parts = [rows[start : start + PART] for start in range(0, len(rows), PART)]
    right = [victim.answer(data.x[part]).argmax(1) == data.y[part] for part in parts]
    return np.concatenate(right) if right else np.zeros(0, np.bool_)


def first_that_runs(victim: Victim, candidates: Iterator[Convention]) -> tuple[Victim, Convention]:
    """The victim under the first convention whose layout it takes. Raises its UsageError if it takes none."""
    refused: UsageError | None = None
    for candidate in candidates:
        try:
            return dataclasses.replace(victim, spec=candidate.spec).probed(), candidate
        except UsageError as error:
            refused = refused or error
    assert refused is not None
    raise refused
