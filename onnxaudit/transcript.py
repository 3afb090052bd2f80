"""The transcript of an interview: every answer on disk before the next query is paid for."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Access, Answers
from onnxaudit.decode import canonical, parse
from onnxaudit.errors import ArtefactError, UsageError


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
        if resume and not lines and path.exists() and path.stat().st_size:
            raise UsageError(f"{path} is not a transcript", "Give --evidence another name.")
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
        *lines, _ = self.path.read_bytes().split(b"\n")  # what follows the last newline was cut off, and is asked again
        for number, text in enumerate(lines):
            where = f"{self.path.name} line {number + 1}"
            entry = parse(text, where)
            if not isinstance(entry, dict) or entry.pop("previous", None) != self._previous:
                raise ArtefactError(f"{where} does not follow the line before", "The file was changed.")
            if number == 0 and entry != json.loads(canonical(header)):
                raise UsageError(f"{self.path.name} is of another bundle or suspect", "Give --evidence another name.")
            if "look" in entry:
                self.looks.add(_look(entry["look"], where))
            elif number and "inside" not in entry:
                self.kept.append(_from_entry(entry, where))
            self._previous = hashlib.sha256(text + b"\n").hexdigest()
            yield text + b"\n"

    def record(self, rows: NDArray[np.int64], answers: Answers) -> None:
        """Append one batch and force it to disk."""
        self._write(_to_entry(rows, answers))

    def look(self, answered: int) -> None:
        """Note that a p-value was computed on so many answers: every further one on more of them must be paid for."""
        if answered not in self.looks:
            self.looks.add(answered)
            self._write({"look": answered})

    def show(self, inside: Mapping[str, NDArray[Any]]) -> None:
        """Keep what a suspect showed of its inside, for others to judge; after resuming it is looked at again."""
        for name, seen in inside.items():
            data = base64.b64encode(zlib.compress(seen.astype("<f4").tobytes())).decode()
            self._write({"inside": name, "shape": list(seen.shape), "data": data})

    def _write(self, entry: dict[str, Any]) -> None:
        line = (canonical({**entry, "previous": self._previous}) + "\n").encode()
        self._file.write(line)
        self._file.flush()
        os.fsync(self._file.fileno())
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


def _look(value: object, where: str) -> int:
    if type(value) is not int or value < 1:
        raise ArtefactError(f"{where} is damaged: {str(value)[:20]!r} is no number of answers", "The file was changed.")
    return value


def _from_entry(entry: dict[str, Any], where: str) -> tuple[NDArray[np.int64], Answers]:
    """Rows and answers of one line; nothing in it is trusted. Raises ArtefactError."""
    try:
        rows, count = np.array(entry["rows"]), entry["num_classes"]
        access = Access[str(entry["access"]).upper()]
        classes = np.frombuffer(base64.b64decode(entry["classes"], validate=True), "<i4").reshape(len(rows), -1)
        scores = entry["scores"]
        decoded = None if scores is None else np.frombuffer(base64.b64decode(scores, validate=True), "<f4").reshape(classes.shape)
    except (KeyError, TypeError, ValueError) as error:
        raise ArtefactError(f"{where} is damaged: {error}") from None
    sound = (
        rows.ndim == 1
        and rows.dtype.kind == "i"
        and classes.shape[1] > 0
        and (decoded is None) == (access == Access.LABEL)
        and (decoded is None or bool(np.isfinite(decoded).all()))
        and (count is None or type(count) is int)
    )
    if not sound:
        raise ArtefactError(f"{where} is damaged: its answers contradict themselves", "The file was changed.")
    return rows.astype(np.int64), Answers(classes, decoded, access, count)


def check_kept(kept: list[tuple[NDArray[np.int64], Answers]], queries: int, classes: int | None) -> None:
    """Raise ArtefactError unless the kept answers are to different ones of so many queries, and name classes that exist."""
    rows = np.concatenate([rows for rows, _ in kept])
    limit = np.iinfo(np.int32).max if classes is None else classes
    named = [answers.classes for _, answers in kept]
    counts = {answers.num_classes for _, answers in kept} - {None, classes}
    if (
        len(np.unique(rows)) != len(rows)
        or rows.min() < 0
        or rows.max() >= queries
        or any(part.min() < 0 or part.max() >= limit for part in named)
        or (classes is not None and counts)
    ):
        raise ArtefactError("the transcript does not fit the bundle: a query or a class in it does not exist", "It was changed.")
