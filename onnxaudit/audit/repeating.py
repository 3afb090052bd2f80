"""Queries that were asked twice: what of a suspect's answers is the same each time, and may be judged by."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Access, Answers
from onnxaudit.errors import BudgetSpent, SuspectError
from onnxaudit.interview import Interview
from onnxaudit.suspect import Queries, Suspect
from onnxaudit.transcript import Batch, Transcript

STEADY = 0.05
"""Probabilities that differ by more when asked again are noise; dynamic INT8 in other batches moves them by less."""


def steady(answers: Answers, repeats: Sequence[Batch]) -> bool:
    """Whether all queries that were asked twice got the same label again, in whichever run."""
    return all(bool((again.labels == answers.labels[rows]).all()) for rows, again in repeats)


def repeatable(answers: Answers, repeats: Sequence[Batch]) -> Answers:
    """As much of the answers as came the same way again: their labels alone where scores differ by more than ``STEADY``.

    Noise must not be averaged away, nor be judged by as if it were what the model says.
    """
    return answers if _apart(answers, repeats).max(initial=0.0) <= STEADY else answers.degrade(Access.LABEL)


def wavering(answers: Answers, repeats: Sequence[Batch]) -> tuple[str, ...]:
    """What to say of queries that were asked twice and got other scores, in whichever run; nothing where none did."""
    apart = _apart(answers, repeats)
    other, most = int((apart > 0).sum()), float(apart.max(initial=0.0))
    if not other:
        return ()
    kept = f": more than {STEADY:g}, so that labels alone are compared" if most > STEADY else ""
    return (f"of {len(apart)} queries asked twice, {other} got other scores, by up to {most:.2g} in probability{kept}",)


def _apart(answers: Answers, repeats: Sequence[Batch]) -> NDArray[np.float64]:
    """The greatest difference of a class's probability, for each query that was asked twice, (r,); 0 without scores."""
    found = [np.zeros(0)]
    for rows, again in repeats:
        both = Answers.concatenate([answers.take(rows), again])
        if both.scores is None:
            found.append(np.full(len(rows), 0.0 if answers.scores is None else 1.0))  # scores that do not come again do not hold
            continue
        probabilities = both.degrade(Access.PROBS) if both.access > Access.PROBS else both
        classes = int(both.classes.max(initial=0)) + 1 if both.num_classes is None else both.num_classes
        first, second = np.split(Answers(probabilities.classes, probabilities.scores, both.access, classes).dense(), 2)
        found.append(np.abs(first.astype(np.float64) - second).max(axis=1, initial=0.0))
    return np.concatenate(found)


class Repeats:
    """Asks some of the queries that were answered once more, in a run at most once.

    most: so many of them. budget: queries that the run may send in all, or None. batches: what came of it, earlier runs of the
    transcript included; asked: queries in those of this run.
    """

    def __init__(self, queries: Queries, suspect: Suspect, most: int, budget: int | None, transcript: Transcript | None) -> None:
        self._queries, self._suspect, self._most, self._budget, self._transcript = queries, suspect, most, budget, transcript
        self._kept = sum(len(rows) for rows, _ in transcript.kept) if transcript else 0
        self.batches: list[Batch] = list(transcript.repeats) if transcript else []
        self.asked = 0

    def ask(self, answers: Answers) -> None:
        """Ask the first of the answered queries again; none where the budget does not allow it. Raises SuspectError."""
        if self.asked:
            return
        sent = getattr(self._suspect, "queries_sent", int(answers.answered.sum()) - self._kept)
        most = self._most if self._budget is None else min(self._most, max(0, self._budget - sent))
        rows = np.flatnonzero(answers.answered)[:most]
        if not len(rows):
            return
        try:
            for again in self._suspect.parts(self._queries[rows]):
                part = rows[self.asked : self.asked + len(again)]
                self.asked += len(part)
                if self._transcript:
                    self._transcript.repeat(part, again)
                self.batches.append((part, again))
        except BudgetSpent:  # retries used up what was kept for this
            pass
        except SuspectError:
            if not self.asked:
                raise

    def counted(self, result: Interview) -> Interview:
        """What came of asking, once some of it was asked again, and with these queries among those sent."""
        early = self.asked  # those asked before it ended are among what it sent only where the suspect counts itself
        self.ask(result.answers)
        count = getattr(self._suspect, "queries_sent", None)
        if count is None:
            return dataclasses.replace(result, sent=result.sent + self.asked)
        return dataclasses.replace(result, sent=count, failed=result.failed - early)
