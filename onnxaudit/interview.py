"""Asking a suspect: batches, budget, a transcript that survives a crash, and resuming from it."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Access, Answers
from onnxaudit.decode import canonical, parse
from onnxaudit.errors import ArtefactError, BudgetSpent, UsageError
from onnxaudit.suspect import Queries, Suspect

BATCH = 64
"""Queries asked and recorded together; a suspect may split them further."""


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


class Transcript:
    """An append-only JSONL file: a header, then one line a batch, each carrying the digest of the line before.

    Answers are stored as base64 of little-endian arrays. A last line cut off by a crash is dropped when resuming.
    """

    def __init__(self, path: Path, header: dict[str, Any], *, resume: bool) -> None:
        self.path = path
        self._previous = ""
        self.kept: list[tuple[NDArray[np.int64], Answers]] = []
        self.looks: set[int] = set()
        lines = list(self._read(header)) if resume and path.exists() else []
        if not resume and path.exists() and path.stat().st_size:
            raise UsageError(f"{path} exists already", "Go on with it by --resume, or give --evidence another name.")
        try:
            self._file: IO[bytes] = path.open("wb" if not lines else "r+b")
            if lines:
                self._file.truncate(sum(map(len, lines)))
                self._file.seek(0, 2)
            else:
                self._write(header)
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror}", "Choose another place with --evidence.") from None

    def _read(self, header: dict[str, Any]) -> Iterator[bytes]:
        for number, line in enumerate(self.path.read_bytes().splitlines(keepends=True)):
            if not line.endswith(b"\n"):
                return  # cut off in the middle; these queries are asked again
            entry = parse(line, f"{self.path.name} line {number + 1}")
            if not isinstance(entry, dict) or entry.pop("previous", None) != self._previous:
                raise ArtefactError(
                    f"{self.path.name} line {number + 1} does not follow the line before", "The file was changed."
                )
            if number == 0 and entry != json.loads(canonical(header)):
                raise UsageError(f"{self.path.name} is of another bundle or suspect", "Give --evidence another name.")
            if "look" in entry:
                self.looks.add(int(entry["look"]))
            elif number:
                self.kept.append(_from_entry(entry, f"{self.path.name} line {number + 1}"))
            self._previous = hashlib.sha256(line).hexdigest()
            yield line

    def record(self, rows: NDArray[np.int64], answers: Answers) -> None:
        """Append one batch and force it to disk."""
        self._write(_to_entry(rows, answers))

    def look(self, answered: int) -> None:
        """Note that a p-value was computed on so many answers: every further one on more of them must be paid for."""
        if answered not in self.looks:
            self.looks.add(answered)
            self._write({"look": answered})

    def _write(self, entry: dict[str, Any]) -> None:
        line = (canonical({**entry, "previous": self._previous}) + "\n").encode()
        self._file.write(line)
        self._file.flush()
        self._previous = hashlib.sha256(line).hexdigest()

    @property
    def sha256(self) -> str:
        """Digest of the last line, which seals all lines before it."""
        return self._previous

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _to_entry(rows: NDArray[np.int64], answers: Answers) -> dict[str, Any]:
    def text(array: NDArray[Any], dtype: str) -> str:
        return base64.b64encode(array.astype(dtype).tobytes()).decode()

    scores = None if answers.scores is None else text(answers.scores, "<f4")
    return {
        "rows": rows.tolist(),
        "classes": text(answers.classes, "<i4"),
        "scores": scores,
        "access": answers.access.word,
        "num_classes": answers.num_classes,
    }


def _from_entry(entry: dict[str, Any], where: str) -> tuple[NDArray[np.int64], Answers]:
    try:
        rows = np.array(entry["rows"], np.int64)
        classes = np.frombuffer(base64.b64decode(entry["classes"]), "<i4").reshape(len(rows), -1)
        scores = entry["scores"]
        decoded = None if scores is None else np.frombuffer(base64.b64decode(scores), "<f4").reshape(classes.shape)
        return rows, Answers(classes, decoded, Access[entry["access"].upper()], entry["num_classes"])
    except (KeyError, TypeError, ValueError) as error:
        raise ArtefactError(f"{where} is damaged: {error}") from None


def interview(
    suspect: Suspect,
    queries: Queries,
    *,
    order: NDArray[np.int64] | None = None,
    budget: int | None = None,
    transcript: Transcript | None = None,
    progress: Callable[[int], None] | None = None,
) -> Interview:
    """Ask the suspect all queries, in ``order`` (row numbers), as far as the budget goes; not what a transcript already holds.

    Every batch is recorded before the next is asked. Raises what the suspect raises; the transcript then keeps what was paid for.
    """
    started = time.perf_counter()
    kept = list(transcript.kept) if transcript else []
    known = np.concatenate([rows for rows, _ in kept]) if kept else np.array([], np.int64)
    wanted = np.arange(len(queries)) if order is None else order
    todo = wanted[~np.isin(wanted, known)]
    left = len(todo) if budget is None else min(len(todo), budget)
    start = 0
    while start < left:
        # no more than the suspect takes at once: each reply is recorded before the next is paid for
        size = min(BATCH, suspect.card.batch or suspect.card.max_batch or BATCH)
        rows = todo[start : min(start + size, left)]
        try:
            answers = suspect.ask(queries[rows])
        except BudgetSpent:
            break
        if transcript:
            transcript.record(rows, answers)
        kept.append((rows, answers))
        start += len(rows)
        if progress:
            progress(len(known) + start)
    if not kept:
        raise UsageError("the budget allows no query at all", "Raise --budget.")
    fresh = sum(len(rows) for rows, _ in kept) - len(known)
    sent = getattr(suspect, "queries_sent", fresh)
    answers = _assemble(kept, len(queries))
    if transcript:
        transcript.look(int(answers.answered.sum()))
    return Interview(
        answers,
        sent,
        len(known),
        sent - fresh,
        time.perf_counter() - started,
        transcript.sha256 if transcript else None,
        len(transcript.looks) if transcript else 1,
    )


def _assemble(kept: list[tuple[NDArray[np.int64], Answers]], n: int) -> Answers:
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
