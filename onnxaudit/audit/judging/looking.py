"""Looks: in which order a suspect is asked, when its answers are judged, and when enough is known."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Answers
from onnxaudit.audit.insights import askable
from onnxaudit.audit.judging.comparing import Comparison
from onnxaudit.bundle import QueryBundle
from onnxaudit.evidence.sequential import Glance, Standing, futile, order_of_entry

TOGETHER = {"pair", "group", "view"}
"""Columns whose equal neighbours are worth little when asked alone."""
FIRST_CONTROLS = 12
"""Controls before the first look."""
Compare = Callable[[Answers], Comparison]


@dataclass(frozen=True, slots=True, eq=False)
class Schedule:
    """order: all rows worth asking, as they are asked. stops: so many of them are asked before each look, the last: all.

    queries: of the schemes at each look.
    """

    order: NDArray[np.int64]
    stops: tuple[int, ...]
    queries: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What the looks show so far. answers: those up to the last look; comparison: of them. queries, scores: at each look.

    standings: after each look in ``judged``, by number: where a scheme could run, up to where p was known. kin: the same among
    the siblings in turn, and of the victim in the line-up, where these count. decided: asking on cannot change the finding, or is
    not worth it; futile: the latter. final: all was asked.
    """

    answers: Answers
    comparison: Comparison
    queries: tuple[int, ...]
    scores: tuple[float | None, ...]
    judged: tuple[int, ...]
    standings: tuple[Standing, ...]
    kin: tuple[tuple[Standing, ...], ...]
    decided: bool
    futile: bool
    final: bool = False

    @property
    def p(self) -> float | None:
        """The p-value; 1 where asking on was not worth it; None while it is not known."""
        return 1.0 if self.futile else _greatest(self.standings, *self.kin, final=self.final)


def _greatest(standings: Sequence[Standing], *kin: Sequence[Standing], final: bool) -> float | None:
    """The greatest p-value; None while one of them is not known. Among kin one that never could be worked out is 1 at the end."""
    never = 1.0 if final else None
    found = [standings[-1].p if standings else None, *(order[-1].p if order else never for order in kin)]
    known = [p for p in found if p is not None]
    return max(known) if len(known) == len(found) else None


def asking_order(bundle: QueryBundle) -> NDArray[np.int64]:
    """All rows worth asking in a random order fixed by the bundle; pairs, groups and views of one scheme stay together."""
    units = _units(bundle)
    place = np.random.default_rng(bundle.manifest.seed).permutation(len(units))
    order = np.argsort(place[units], kind="stable")
    return order[askable(bundle)[order]]


def _units(bundle: QueryBundle) -> NDArray[np.int64]:
    """For each row the first of those that it is asked with, (n,)."""
    units = np.arange(len(bundle.queries))
    for entry in bundle.manifest.schemes:
        start, stop = entry.rows
        for name in TOGETHER & set(entry.columns):
            values = bundle.columns[entry.column(name)]
            first = np.flatnonzero(np.r_[True, values[1:] != values[:-1]])
            units[start:stop] = start + np.repeat(first, np.diff(np.r_[first, stop - start]))
    return units


def schedule(bundle: QueryBundle, looks: Sequence[int], easy: NDArray[np.bool_]) -> Schedule:
    """Looks after so many queries of the schemes, and at the end.

    Every scheme's queries come in the random order of ``asking_order``, and at every look in proportion to how many it has. At
    least as many controls come with them, the easy ones first. easy: which controls the victim gets right, (c,).
    """
    order = asking_order(bundle)
    begin, end = bundle.manifest.controls
    control = (order >= begin) & (order < end)
    controls, others = order[control], order[~control]
    controls = controls[np.argsort(~easy[controls - begin], kind="stable")]
    part = np.full(len(bundle.queries), -1)
    for number, entry in enumerate(bundle.manifest.schemes):
        part[slice(*entry.rows)] = number
    share = np.empty(len(others))
    for number in np.unique(part[others]):
        mine = np.flatnonzero(part[others] == number)
        share[mine] = (np.arange(len(mine)) + 0.5) / len(mine)
    # queries that are asked together stay together: all have the place of the first
    units = _units(bundle)[others]
    first = {unit: share[i] for i, unit in reversed(list(enumerate(units.tolist())))}
    others = others[np.argsort([first[unit] for unit in units.tolist()], kind="stable")]
    stops, queries, parts, asked, controlled = [], [], [], 0, 0
    for look in [*sorted({look for look in looks if 0 < look < len(others)}), len(others)]:
        wanted = len(controls) if look == len(others) else min(len(controls), max(FIRST_CONTROLS, look))
        wanted = max(wanted, controlled)
        parts += [controls[controlled:wanted], others[asked:look]]
        asked, controlled = look, wanted
        stops.append(asked + controlled)
        queries.append(look)
    return Schedule(np.concatenate(parts), tuple(stops), tuple(queries))


def walk(
    plan: Schedule,
    answers: Answers,
    compare: Compare,
    doubtful: Callable[[Answers, Comparison], bool],
    references: int,
    alpha: float,
    tolerance: float,
    known: dict[int, Comparison],
    *,
    siblings: int,
    placed: bool,
) -> Seen | None:
    """Look at answers as they came in, up to where enough is known; None before the first look.

    siblings: how many the suspect is also ranked among, each in turn in its place; 0: that does not count. placed: whether the
    victim's place in the line-up counts too. known: comparisons by
    number of queries asked, of the same answers as far as they had come before; new ones are added. doubtful: whether anything
    forbids a finding on these answers and this comparison; then more are looked at, which costs nothing, for p stays what it was.
    """
    seen: list[Comparison] = []
    found = None
    for cut, stop, last in _looks(plan, answers):
        comparison = known[stop] = known.get(stop) or compare(cut)
        seen.append(comparison)
        glances = [Glance(c.statistics, c.unrelated) for c in seen if c.statistics is not None]
        final = last and comparison.statistics is not None
        standings = order_of_entry(glances, final=final, tolerance=tolerance) if glances else []
        kin = _kin(seen, final=final, placed=placed) if siblings else ()
        judged = tuple(i for i, c in enumerate(seen) if c.statistics is not None)
        scores = tuple(None if c.statistics is None else float(c.statistics[-1]) for c in seen)
        p = _greatest(standings, *kin, final=last)
        clear = p is not None and (p > alpha or not doubtful(cut, comparison))
        orders = [(standings, references), *((order, siblings) for order in kin)]
        hopeless = p is None and any(bool(order) and futile(order, others, alpha) for order, others in orders)
        decided = last or clear or hopeless
        queries = plan.queries[: len(seen)]
        found = Seen(cut, comparison, queries, scores, judged, tuple(standings), kin, decided, hopeless and not last, last)
        if decided:
            break
    return found


def _kin(seen: Sequence[Comparison], *, final: bool, placed: bool) -> tuple[tuple[Standing, ...], ...]:
    """How the suspect stands among the siblings, each in turn in its place; and the victim in the line-up, where there is one."""
    ran = [c for c in seen if c.statistics is not None]
    twins = [Glance(c.twins, c.unrelated) for c in ran if c.twins is not None]
    places = [Glance(c.places) for c in ran if c.places is not None]
    orders = (twins, places) if placed else (twins,)
    return tuple(tuple(order_of_entry(glances, final=final)) if glances else () for glances in orders)


def _looks(plan: Schedule, answers: Answers) -> Iterator[tuple[Answers, int, bool]]:
    """The answers cut to what had been asked at each look, while they reach so far; how many that are; whether it is the last."""
    missing = np.flatnonzero(~answers.answered[plan.order])
    reached = int(missing[0]) if len(missing) else len(plan.order)
    for number, stop in enumerate(plan.stops):
        if stop > reached:
            return
        yield only(answers, plan.order[:stop]), stop, number == len(plan.stops) - 1


def only(answers: Answers, rows: NDArray[np.int64]) -> Answers:
    """The answers at these rows, all others as if never asked."""
    kept = np.zeros(len(answers), np.bool_)
    kept[rows] = True
    classes = np.where(kept[:, None], answers.classes, -1).astype(np.int32)
    scores = None if answers.scores is None else np.where(kept[:, None], answers.scores, np.nan).astype(np.float32)
    return dataclasses.replace(answers, classes=classes, scores=scores)
