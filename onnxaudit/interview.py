"""Asking a suspect: batches, budget, and going on from a transcript."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Answers
from onnxaudit.asking import BATCH, Keep, ask_at_once
from onnxaudit.early import Early, recover
from onnxaudit.errors import BudgetSpent, OtherClasses, SuspectError, UsageError
from onnxaudit.suspect import Queries, Suspect
from onnxaudit.transcript import Transcript, check_kept

__all__ = ["BATCH", "Interview", "assemble", "interview"]


@dataclass(frozen=True, slots=True, eq=False)
class Interview:
    """What came of asking. answers: (n,) rows, -1 where the budget ended first. sent counts retries too.

    looks: how often answers of this transcript were judged, this time included; more than once only after resuming.
    """

    answers: Answers
    sent: int
    reused: int
    failed: int
    seconds: float
    transcript_sha256: str | None = None
    looks: int = 1


def interview(
    suspect: Suspect,
    queries: Queries,
    *,
    order: NDArray[np.int64] | None = None,
    budget: int | None = None,
    transcript: Transcript | None = None,
    progress: Callable[[int], None] | None = None,
    pauses: Sequence[int] = (),
    enough: Callable[[Answers], bool] | None = None,
    concurrency: int | None = None,
) -> Interview:
    """Ask the suspect all queries, in ``order`` (row numbers), as far as the budget goes; not what a transcript already holds.

    pauses: when so many in that order have been answered, ``enough`` is asked whether to stop; such looks are planned, and none
    must be paid for. Every batch is recorded before the next is asked. concurrency: so many requests may be on their way at
    once, from threads that an interruption does not stop halfway; None: asked in this thread. Raises what the suspect raises;
    the transcript then keeps what was paid for.
    """
    started = time.perf_counter()
    if transcript:
        recover(transcript)
    kept = list(transcript.kept) if transcript else []
    if kept:
        check_kept(kept, len(queries), suspect.card.num_classes)
    known = np.concatenate([rows for rows, _ in kept]) if kept else np.array([], np.int64)
    wanted = np.arange(len(queries)) if order is None else order
    todo = wanted[~np.isin(wanted, known)]
    left = len(todo) if budget is None else min(len(todo), budget)
    done = 0

    def keep(rows: NDArray[np.int64], answers: Answers, last: bool = True) -> None:
        nonlocal done
        if transcript:
            transcript.record(rows, answers, sync=last)
        kept.append((rows, answers))
        done += len(rows)
        if progress:
            progress(len(known) + done)

    ahead = [pause for pause in pauses if pause < len(wanted)]
    while done < left:
        reached = len(wanted) - len(todo) + done
        if enough and ahead and reached >= ahead[0]:
            ahead = [pause for pause in ahead if pause > reached]
            if enough(assemble(kept, len(queries))):
                break
        stop = left if not (enough and ahead) else min(left, done + ahead[0] - reached)
        try:
            if not _ask(suspect, queries, todo[done:stop], keep, concurrency, transcript, proven=done > 0):
                break
        except OtherClasses as error:
            if kept:  # whoever asks anew would pay for these again
                raise SuspectError(f"after {len(known) + done} answers: {error.what}", error.hint) from None
            raise
    if not kept:
        raise UsageError("the budget allows no query at all", "Raise --budget.")
    fresh = sum(len(rows) for rows, _ in kept) - len(known)
    sent = getattr(suspect, "queries_sent", fresh)
    answers = assemble(kept, len(queries))
    if transcript and enough is None:
        transcript.look(int(answers.answered.sum()))
    return Interview(
        answers,
        sent,
        len(known),
        sent - fresh,
        time.perf_counter() - started,
        transcript.sha256 if transcript else None,
        max(1, len(transcript.looks)) if transcript else 1,
    )


def _ask(
    suspect: Suspect,
    queries: Queries,
    rows: NDArray[np.int64],
    keep: Keep,
    concurrency: int | None,
    transcript: Transcript | None,
    *,
    proven: bool,
) -> bool:
    """Ask these rows and keep the answers; False where the budget ended first."""
    if concurrency is not None:
        early = Early(transcript) if transcript and concurrency > 1 else None
        finished = False
        try:
            finished = ask_at_once(suspect, queries, rows, concurrency, keep, early, proven=proven)
        finally:
            if early:
                early.close()
        return finished
    start = 0
    try:
        while start < len(rows):
            # no more than the suspect takes at once: each reply is recorded before the next is paid for
            size = min(BATCH, suspect.card.batch or suspect.card.max_batch or BATCH)
            for answers in suspect.parts(queries[rows[start : start + size]]):
                keep(rows[start : start + len(answers)], answers, True)
                start += len(answers)
    except BudgetSpent:
        return False
    return True


def assemble(kept: list[tuple[NDArray[np.int64], Answers]], n: int) -> Answers:
    """All answers in the order of the queries; rows without one are -1 (and NaN)."""
    asked = np.concatenate([rows for rows, _ in kept])
    answers = Answers.concatenate([answers for _, answers in kept])
    classes = np.full((n, answers.classes.shape[1]), -1, np.int32)
    classes[asked] = answers.classes
    if answers.scores is None:
        return Answers(classes, None, answers.access, answers.num_classes)
    scores = np.full(classes.shape, np.nan, np.float32)
    scores[asked] = answers.scores
    return Answers(classes, scores, answers.access, answers.num_classes)
