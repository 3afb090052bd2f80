"""A sequential search for the wiring of a suspect: what to ask next, and what the answers come to. Pure.

Every hypothesis carries log odds that it is the right one; the one with the most is asked next. A wrong wiring is dropped after
an answer or two, because it makes a model repeat a few classes, and the right one gathers what is left of the queries.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Access, Answers
from onnxaudit.wiring.conventions import RESIZING, Wiring
from onnxaudit.wiring.labelling import Labelling, best_labelling, log_odds, log_odds_permuted

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


ROUNDS = 5
"""Hard controls on which ways to resize are compared that all get the easy ones right."""
AHEAD = 0.5
"""By so much (log likelihood) another way must be ahead of the first on these."""
PLAIN = 0.9
"""What a label without a score counts as, in probability, if it is right."""
LEAST = 0.001
"""A right class counts as no less likely than this."""


@dataclass(frozen=True, slots=True)
class Question:
    """Ask the probes (numbers) under a hypothesis (its number). contest: to compare it with others that seem as good."""

    hypothesis: int
    probes: tuple[int, ...]
    contest: bool = False


@dataclass(slots=True, eq=False)
class _Tried:
    """What is known of one hypothesis. refused: the model does not take inputs of this form.

    contest: (probe, log likelihood of its true class, whether it was right) of the comparison of ways to resize.
    """

    wiring: Wiring
    probes: list[int] = field(default_factory=list)
    seen: list[tuple[int, int]] = field(default_factory=list)
    refused: bool = False
    contest: list[tuple[int, float, bool]] = field(default_factory=list)

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
        leader = self._leader(open_)
        if self._settled(self._tried[leader]):
            return self._contest_question(leader, size)
        wanted = [number for number in open_ if len(self._tried[number].probes) < len(self._truth)]
        if not wanted:
            return None
        number, count = self._leader(wanted), 1
        if 0 < len(self._tried[0].probes) < FIRST and 0 in wanted:
            number, count = 0, FIRST - len(self._tried[0].probes)
        probes = self._next(self._tried[number], min(max(size, count), max(left, size)))
        return Question(number, tuple(probes))

    def _leader(self, numbers: Sequence[int]) -> int:
        return max(numbers, key=lambda number: (self._tried[number].total, -number))

    def _contestants(self, leader: int) -> list[int]:
        """The settled hypothesis, then those that differ from it in how images get to the model's size."""
        best = self._tried[leader].wiring
        others = [number for number, tried in enumerate(self._tried) if tried.wiring.spec == best.spec and number != leader]
        resizing = [number for number in others if self._tried[number].wiring.fit in RESIZING]
        return [leader, *resizing] if best.fit in RESIZING and resizing else []

    def _contest_question(self, leader: int, size: int) -> Question | None:
        """The same hard controls for all contestants, in rounds."""
        contestants = self._contestants(leader)
        if not contestants:
            return None
        number = min(contestants, key=lambda number: len(self._tried[number].contest))
        done = len(self._tried[number].contest)
        if done >= ROUNDS:
            return None
        hardest = [probe for probe in reversed(range(len(self._truth))) if probe not in self._tried[leader].probes]
        probes = hardest[done : done + size]
        return Question(number, tuple(probes), contest=True) if probes else None

    def tell(self, question: Question, answers: Answers) -> None:
        """The suspect's answers to a question, in its order, under the names that it has for classes."""
        tried, truth = self._tried[question.hypothesis], [self._truth[probe] for probe in question.probes]
        if not question.contest:
            tried.probes += question.probes
            tried.seen += list(zip(truth, answers.labels.tolist(), strict=True))
            return
        leader = self._leader([number for number, other in enumerate(self._tried) if not other.refused])
        labelling = self._labelling(self._tried[leader])
        classes = np.array((labelling and labelling.classes) or range(self._classes))
        own = np.argsort(classes)[truth]  # what the suspect calls the true classes
        right = answers.labels == own
        chances = np.where(right, PLAIN, 1 - PLAIN)
        if answers.scores is not None:
            rows = dataclasses.replace(answers, num_classes=self._classes).degrade(
                min(answers.access, Access.PROBS), self._classes
            )
            chances = np.maximum(rows.dense()[np.arange(len(truth)), own], LEAST)
        tried.contest += list(zip(question.probes, np.log(chances).tolist(), right.tolist(), strict=True))

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
        asked = sum(1 for tried in self._tried if tried.seen or tried.contest)
        best = max((t for t in self._tried if not t.refused), key=lambda tried: tried.total, default=now)
        labelling = self._labelling(best)
        if labelling is None or best.total < SURE or len(best.seen) < FEWEST or labelling.right < SHARE * labelling.of:
            return Choice(None, (), before, before, asked, now.refused)
        won = self._winner(best)
        right = labelling.right if won is best else sum(truth == label for truth, label in won.seen)
        after = right + sum(hit for _, _, hit in won.contest), len((best if won is best else won).seen) + len(won.contest)
        return Choice(won.wiring, labelling.classes, before, after, asked, now.refused)

    def _winner(self, best: _Tried) -> _Tried:
        """Among ways to resize, the one that makes the hard controls likeliest; the first where none is clearly ahead."""
        numbers = self._contestants(self._tried.index(best))
        rounds = min((len(self._tried[number].contest) for number in numbers), default=0)
        sums = {number: sum(chance for _, chance, _ in self._tried[number].contest[:rounds]) for number in numbers}
        ahead = max(sums, key=lambda number: sums[number], default=None)
        if ahead is None or sums[ahead] < sums[numbers[0]] + AHEAD:
            return best
        return self._tried[ahead]

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
