"""Several requests at once: whatever order replies come in, answers are kept in the order of the queries, and none is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Answers
from onnxaudit.early import Early
from onnxaudit.errors import BudgetSpent, Stopped
from onnxaudit.suspect import Queries, Suspect

BATCH = 128
"""Queries asked and recorded together at most; a suspect may want fewer."""
AHEAD = 1024
"""Batches that may be asked after the first missing one: a request that hangs until its time is up does not stop the others."""
GRACE = 2.0
"""Seconds that replies on their way still have when the user interrupts."""

Keep: TypeAlias = Callable[[NDArray[np.int64], Answers, bool], None]
"""Takes rows and their answers, to record them for good; True: no more follow at once."""


@dataclass(slots=True)
class _Work:
    """What the threads share, under ``change``. position: rows given out. head: rows kept. waiting: by place, what came early.

    proven: a request of this suspect was answered, so more than one may be on its way. failures: by place.
    """

    rows: NDArray[np.int64]
    proven: bool
    position: int = 0
    head: int = 0
    active: int = 0
    over: bool = False
    closed: bool = False
    waiting: dict[int, tuple[NDArray[np.int64], Answers]] = field(default_factory=dict)
    failures: dict[int, BaseException] = field(default_factory=dict)
    change: threading.Condition = field(default_factory=threading.Condition)


def ask_at_once(
    suspect: Suspect,
    queries: Queries,
    rows: NDArray[np.int64],
    width: int,
    keep: Keep,
    early: Early | None,
    *,
    proven: bool = True,
) -> bool:
    """Ask these rows, with up to ``width`` requests on their way; False where the budget ended before all were asked.

    keep is called by one thread at a time, in the order of rows; after a failure, an interruption or the end of the budget also
    for what came in after the gap. It runs in threads of its own, which no Ctrl-C can stop halfway. What comes early is in
    ``early`` until then. proven False: the first request goes alone. Raises what the suspect raises, of several failures that of
    the first row, and Stopped only where there is no other: it follows from another.
    """
    work = _Work(rows, proven)
    ahead = AHEAD if width > 1 else 1
    threads = [
        threading.Thread(target=_lane, args=(work, suspect, queries, ahead, keep, early), daemon=True) for _ in range(width)
    ]
    try:
        work.active = len(threads)
        for thread in threads:
            thread.start()
        _wait(work, None)
    except BaseException:  # an interruption: short, because the user waits
        with work.change:
            work.over = True
            work.change.notify_all()
        suspect.stop()
        _wait(work, GRACE)
        _flush(work, keep, early)
        raise
    _flush(work, keep, early)
    failed = [work.failures[place] for place in sorted(work.failures)]
    errors = [error for error in failed if not isinstance(error, BudgetSpent)]
    if errors:
        raise min(errors, key=lambda error: isinstance(error, Stopped))
    return not failed


def _wait(work: _Work, seconds: float | None) -> None:
    """Until no thread is at work, or so many seconds."""
    end = None if seconds is None else time.monotonic() + seconds
    with work.change:
        while work.active and (end is None or time.monotonic() < end):
            work.change.wait(1.0 if end is None else 0.05)


def _lane(work: _Work, suspect: Suspect, queries: Queries, ahead: int, keep: Keep, early: Early | None) -> None:
    """One thread: batch after batch, until there are none or something failed."""
    place = 0
    try:
        while (batch := _next(work, suspect, ahead)) is not None:
            place, rows = batch
            for answers in suspect.parts(queries[rows]):
                _arrived(work, place, rows[: len(answers)], answers, keep, early)
                place, rows = place + len(answers), rows[len(answers) :]
    except BaseException as error:  # raised again by the thread that waits for this one
        with work.change:
            work.failures[place] = error
            work.over = True
        if not isinstance(error, BudgetSpent):
            suspect.stop()
    finally:
        with work.change:
            work.active -= 1
            work.change.notify_all()


def _next(work: _Work, suspect: Suspect, ahead: int) -> tuple[int, NDArray[np.int64]] | None:
    """Place and rows of the next batch; None where there are none."""
    with work.change:
        while True:
            if work.over or work.position >= len(work.rows):
                return None
            size = min(BATCH, suspect.card.batch or suspect.card.max_batch or BATCH)
            if work.position == work.head or (work.proven and work.position - work.head < ahead * size):
                break
            work.change.wait()
        begin, work.position = work.position, min(work.position + size, len(work.rows))
        return begin, work.rows[begin : work.position]


def _arrived(work: _Work, place: int, rows: NDArray[np.int64], answers: Answers, keep: Keep, early: Early | None) -> None:
    """Keep answers for good if nothing before them is missing, with those that waited for them; else until then."""
    with work.change:
        if work.closed:  # the user did not wait for it
            return
        work.waiting[place] = rows, answers
        if place != work.head:
            if early:
                early.put(rows, answers)
            return
        while work.head in work.waiting:
            rows, answers = work.waiting[work.head]
            keep(rows, answers, work.head + len(rows) not in work.waiting)
            del work.waiting[work.head]
            work.head += len(rows)
            work.proven = True
        if early and not work.waiting:
            early.clear()
        work.change.notify_all()


def _flush(work: _Work, keep: Keep, early: Early | None) -> None:
    """Keep what came in after a gap that will not be filled now."""
    with work.change:
        work.closed = True
        for place in sorted(work.waiting):
            keep(*work.waiting[place], True)
            del work.waiting[place]
        if early:
            early.clear()
