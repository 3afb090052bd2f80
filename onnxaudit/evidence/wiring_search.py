"""A sequential search for the wiring of a suspect: what to ask next, and what the answers come to. Pure.

Every hypothesis carries log odds that it is the right one; the one with the most is asked next. A wrong wiring is dropped after
an answer or two, because it makes a model repeat a few classes, and the right one gathers what is left of the queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from onnxaudit.evidence.labelling import Labelling, best_labelling, log_odds, log_odds_permuted
from onnxaudit.evidence.wiring import AS_IT_WAS, Wiring

MOST = 30
"""Queries that a search spends at most."""
FIRST = 4
"""Queries that the wiring as it is gets at once, before it is compared with others."""
SURE = 4.0
"""Log odds that a wiring needs to be taken for the right one."""
SHARE = 0.8
"""It must get so many of the controls right that it was asked."""
FEWEST = 6
"""It must have been asked so many controls."""
COVERED = 12
"""Up to so many classes each is seen before a wiring is settled: two exchanged labels show in their own classes only."""


@dataclass(frozen=True, slots=True)
class Question:
    """Ask the probes (numbers) under a hypothesis (its number)."""

    hypothesis: int
    probes: tuple[int, ...]


@dataclass(slots=True)
class _Tried:
    """What is known of one hypothesis. refused: the model does not take inputs of this form."""

    wiring: Wiring
    probes: list[int] = field(default_factory=list)
    seen: list[tuple[int, int]] = field(default_factory=list)
    refused: bool = False

    @property
    def plain(self) -> float:
        return log_odds(self.seen) - self.wiring.penalty

    @property
    def permuted(self) -> float:
        return log_odds_permuted(self.seen) - self.wiring.penalty

    @property
    def total(self) -> float:
        return max(self.plain, self.permuted)


@dataclass(frozen=True, slots=True)
class Choice:
    """What a search came to. wiring None: nothing makes the suspect get the controls right; it stays as it was.

    before, after: (right, asked) of the controls, as it was and under what was chosen with its labels. tried: how many wirings
    were asked. labels: as ``Labelling.classes``. refused: the model does not take its inputs as it was wired.
    """

    wiring: Wiring | None
    labels: tuple[int, ...]
    before: tuple[int, int]
    after: tuple[int, int]
    tried: int
    refused: bool = False

    @property
    def changed(self) -> bool:
        """Whether anything is to be wired otherwise."""
        return bool(self.labels) or (self.wiring is not None and self.wiring.words != AS_IT_WAS)


class WiringSearch:
    """Among ``hypotheses``, of which the first is how the suspect is wired now, on probes whose true classes are ``truth`` (p,).

    Call ``question``, then ``tell`` or ``refuse``, until there is no question. The same answers always lead to the same ones.
    """

    def __init__(self, hypotheses: Sequence[Wiring], truth: NDArray[np.int64], classes: int) -> None:
        self._tried = [_Tried(wiring) for wiring in hypotheses]
        self._truth = truth.tolist()
        self._classes = classes
        present = len(set(self._truth))
        self._enough = min(len(self._truth), max(FEWEST, present if present <= COVERED else COVERED))

    @property
    def hopeless(self) -> bool:
        """Whether there are too few controls to tell anything by."""
        return len(self._truth) < FEWEST

    def takes(self, wiring: Wiring) -> bool:
        """Whether the suspect has answered inputs of this form."""
        return any(tried.seen for tried in self._tried if tried.wiring.form == wiring.form)

    def wiring(self, question: Question) -> Wiring:
        """The wiring that a question is to be asked under."""
        return self._tried[question.hypothesis].wiring

    def question(self, left: int, size: int = 1) -> Question | None:
        """What to ask next, with ``left`` queries to spend; None once enough is known. size: probes that cost as much as one."""
        open_ = [number for number, tried in enumerate(self._tried) if not tried.refused]
        if left < 1 or not open_:
            return None
        leader = max(open_, key=lambda number: (self._tried[number].total, -number))
        if self._settled(self._tried[leader]):
            return None
        wanted = [number for number in open_ if len(self._tried[number].probes) < len(self._truth)]
        if not wanted:
            return None
        number = max(wanted, key=lambda number: (self._tried[number].total, -number))
        first = FIRST if number == 0 and not self._tried[0].probes else 1
        return Question(number, tuple(self._next(self._tried[number], min(max(size, first), max(left, size)))))

    def tell(self, question: Question, labels: Sequence[int]) -> None:
        """The suspect's labels to a question, in its order."""
        tried = self._tried[question.hypothesis]
        tried.probes += question.probes
        tried.seen += [(self._truth[probe], int(label)) for probe, label in zip(question.probes, labels, strict=True)]

    def refuse(self, question: Question) -> bool:
        """The suspect does not take inputs of this form. False if no other form is left to try."""
        form = self._tried[question.hypothesis].wiring.form
        for tried in self._tried:
            tried.refused |= tried.wiring.form == form
        return any(not tried.refused for tried in self._tried)

    def choice(self) -> Choice:
        """What the answers so far come to."""
        now = self._tried[0]
        before = (sum(truth == label for truth, label in now.seen), len(now.seen))
        asked = sum(1 for tried in self._tried if tried.seen)
        best = max((t for t in self._tried if not t.refused), key=lambda tried: tried.total, default=now)
        labelling = self._labelling(best)
        if labelling is None or best.total < SURE or len(best.seen) < FEWEST or labelling.right < SHARE * labelling.of:
            return Choice(None, (), before, before, asked, now.refused)
        return Choice(best.wiring, labelling.classes, before, (labelling.right, labelling.of), asked, now.refused)

    def _labelling(self, tried: _Tried) -> Labelling | None:
        if tried.plain >= tried.permuted:
            return Labelling((), sum(truth == label for truth, label in tried.seen), len(tried.seen))
        return best_labelling(tried.seen, self._classes)

    def _settled(self, tried: _Tried) -> bool:
        """Whether a leader needs no more controls: all classes seen, twice where the labels have another order."""
        rounds = 1 if tried.plain >= tried.permuted else 2
        return tried.total >= SURE and len(tried.seen) >= min(len(self._truth), rounds * self._enough)

    def _next(self, tried: _Tried, count: int) -> list[int]:
        """Controls that a hypothesis is asked next: one of each class in turn, sooner where its answers contradict each other."""
        times = [truth for truth, _ in tried.seen]
        doubted = {truth for truth, label in tried.seen if self._contradicted(tried, truth, label)}
        chosen: list[int] = []
        for _ in range(count):
            free = [probe for probe in range(len(self._truth)) if probe not in tried.probes and probe not in chosen]
            if not free:
                break
            drawn = [self._truth[probe] for probe in chosen]

            def order(probe: int, drawn: list[int] = drawn) -> tuple[int, int]:
                truth = self._truth[probe]
                asked = times.count(truth) + drawn.count(truth)
                return (asked - (1 if truth in doubted and asked < 3 else 0), probe)

            chosen.append(min(free, key=order))
        return chosen

    @staticmethod
    def _contradicted(tried: _Tried, truth: int, label: int) -> bool:
        """Whether a label is wrong by the victim's order, or shared with another class by any."""
        if tried.plain >= tried.permuted:
            return truth != label
        return any((other == truth) != (given == label) for other, given in tried.seen)
