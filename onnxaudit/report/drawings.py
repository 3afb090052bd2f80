"""Where values fall among others, as the geometry of an inline SVG: x in per cent of the width, y in pixels, so that letters and
dots keep their size on every screen."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEFT, RIGHT = 3.0, 97.0
"""Per cent of the width between which all values lie."""
BIN = 1.8
"""Dots less than so many per cent apart are stacked."""
STEP, TALLEST = 7.0, 150.0
"""Pixels from dot to dot in a stack, and of the tallest stack."""
ROW = 18
"""Pixels of one line of labels."""
TICKS = 5


@dataclass(frozen=True, slots=True)
class Dot:
    """One of the others."""

    x: float
    y: float
    title: str


@dataclass(frozen=True, slots=True)
class Mark:
    """A value that stands out. y: of its label's baseline. anchor: of its label, "start", "middle" or "end"."""

    name: str
    x: float
    y: int
    words: str
    anchor: str


@dataclass(frozen=True, slots=True)
class Strip:
    """Values on one axis. axis: its y. ticks: x and words. band: from x to the right end, or None."""

    dots: tuple[Dot, ...]
    marks: tuple[Mark, ...]
    ticks: tuple[tuple[float, str], ...]
    axis: float
    height: float
    top: int
    band: float | None = None


def strip(
    others: Sequence[tuple[float, str]],
    marks: Sequence[tuple[str, float, str]],
    *,
    band: float | None = None,
    share: bool = False,
) -> Strip:
    """Others (value, title) as dots, stacked where they meet; marks (name, value, words) as lines with labels.

    band: the value from which on others are set off. share: whether values are shares, to be shown in per cent.
    """
    values = [value for value, _ in others] + [value for _, value, _ in marks] + ([] if band is None else [band])
    low, high = min(values), max(values)
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    steps = _ticks(low, high)
    low, high = min(low, steps[0]), max(high, steps[-1])

    def x(value: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * (value - low) / (high - low), 2)

    stacks: Counter[int] = Counter(int(x(value) / BIN) for value, _ in others)
    step = min(STEP, TALLEST / max(stacks.values(), default=1))
    top = ROW * len(marks) + 8
    axis = top + step * max(max(stacks.values(), default=1), 4) + 6
    placed: Counter[int] = Counter()
    dots = []
    for value, title in sorted(others):
        column = int(x(value) / BIN)
        dots.append(Dot(x(value), round(axis - 6 - step * placed[column], 1), title))
        placed[column] += 1
    labels = tuple(
        Mark(name, x(value), ROW * i + 13, words, "start" if x(value) < 30 else "end" if x(value) > 70 else "middle")
        for i, (name, value, words) in enumerate(marks)
    )
    decimals = max(0, -math.floor(math.log10(steps[1] - steps[0]) + 1e-9))
    form = f".{max(0, decimals - 2)}%" if share else f".{decimals}f"
    ticks = tuple((x(value), format(value, form)) for value in steps)
    return Strip(tuple(dots), labels, ticks, axis, axis + 24, top, None if band is None else x(band))


def _ticks(low: float, high: float) -> list[float]:
    """About ``TICKS`` round values that enclose low and high."""
    rough = (high - low) / TICKS
    unit = 10 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= rough - 1e-12)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(np.round(i * step, 12)) + 0.0 for i in range(first, last + 1)]
