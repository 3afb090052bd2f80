"""Queries that were asked twice: what of a suspect's answers is the same each time, and may be judged by."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Access, Answers
from onnxaudit.errors import ArtefactError, BudgetSpent, Nonsense, Stopped, SuspectError, Unreachable
from onnxaudit.interview import Interview
from onnxaudit.suspect import Queries, Suspect
from onnxaudit.transcript import Batch, Transcript, check_kept

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
        said = both.degrade(Access.PROBS) if both.access > Access.PROBS else both
        first, second = said.take(slice(len(rows))), said.take(slice(len(rows), None))
        found.append(np.array([_moved(first, second, row) for row in range(len(rows))]))
    return np.concatenate(found)


def _moved(first: Answers, second: Answers, row: int) -> float:
    """The greatest difference of a class's probability between two rankings, of which each may end before a class of the other:
    then it has at most the last probability there."""
    assert first.scores is not None
    assert second.scores is not None
    one, two = first.scores[row].astype(np.float64), second.scores[row].astype(np.float64)
    _, i, j = np.intersect1d(first.classes[row], second.classes[row], assume_unique=True, return_indices=True)
    alone = np.concatenate([np.delete(one, i) - two.min(), np.delete(two, j) - one.min()])
    return float(max(np.abs(one[i] - two[j]).max(initial=0.0), alone.max(initial=0.0)))


def check_repeats(repeats: Sequence[Batch], answers: Answers, where: str) -> None:
    """Raise ArtefactError unless these are answers to queries that were answered before."""
    for rows, again in repeats:
        check_kept([(rows, again)], len(answers), answers.num_classes)
        if not answers.answered[rows].all():
            raise ArtefactError(f"{where}: a query was asked again that was not answered before", "The file was changed.")


class Repeats:
    """Asks some of the queries that were answered once more, in a run at most once.

    most: so many of them, ``early`` before all are answered. budget: queries that the run may send in all, or None. batches: what
    came of it, earlier runs of the transcript included; asked: queries in those of this run. refused: what the suspect said to
    them was nonsense, or it did not answer what it had answered before.
    """

    def __init__(
        self,
        queries: Queries,
        suspect: Suspect,
        most: int,
        early: int,
        budget: int | None,
        transcript: Transcript | None,
    ) -> None:
        self._queries, self._suspect, self._budget, self._transcript = queries, suspect, budget, transcript
        self._most, self._early = most, min(most, early)
        self._kept = sum(len(rows) for rows, _ in transcript.kept) if transcript else 0
        self.batches: list[Batch] = list(transcript.repeats) if transcript else []
        self.asked = 0
        self.refused = False

    def ask(self, answers: Answers) -> None:
        """Ask the first of the answered queries again while there are others to ask. Raises SuspectError where it is gone."""
        if not self.asked:
            self._ask(answers, self._early)

    def _ask(self, answers: Answers, most: int) -> None:
        sent = getattr(self._suspect, "queries_sent", int(answers.answered.sum()) - self._kept + self.asked)
        left = most if self._budget is None else min(most, max(0, self._budget - sent))
        rows = np.flatnonzero(answers.answered)[self.asked : self.asked + left]
        if not len(rows) or self.refused:
            return
        done = 0
        try:
            for again in self._suspect.parts(self._queries[rows]):
                part = rows[done : done + len(again)]
                done += len(part)
                self.asked += len(part)
                if self._transcript:
                    self._transcript.repeat(part, again)
                self.batches.append((part, again))
        except BudgetSpent:  # retries used up what was kept for this
            pass
        except (Stopped, Unreachable):
            if not self.asked:
                raise
        except SuspectError as error:
            if isinstance(error, Nonsense) or not self.asked:
                self.refused = True
                if self._transcript:
                    self._transcript.refuse_repeat()

    def counted(self, result: Interview) -> Interview:
        """What came of asking, once some of it was asked again, and with these queries among those sent."""
        self._ask(result.answers, self._most - self.asked)
        count = getattr(self._suspect, "queries_sent", None)
        if count is None:
            return dataclasses.replace(result, sent=result.sent + self.asked)
        return dataclasses.replace(result, sent=count, failed=count - (result.sent - result.failed) - self.asked)
