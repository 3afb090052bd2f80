"""Answers that came in before those to earlier queries: kept beside the transcript until their turn comes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Answers
from onnxaudit.decode import canonical, parse
from onnxaudit.errors import ArtefactError, UsageError
from onnxaudit.record import Batch, from_entry, to_entry
from onnxaudit.regular import open_regular
from onnxaudit.transcript import CHECK, Transcript, Wording, write_whole


class Early:
    """A file beside a transcript, of the same lines without their chain. It is gone when nothing in it is early any more.

    Each line carries the digest of the transcript's first line, and one of its own content. A last line cut off by a crash is
    dropped: its reply was not kept.
    """

    def __init__(self, transcript: Transcript) -> None:
        self.path = transcript.path.with_name(transcript.path.name + ".early")
        self._of, self._wording = transcript.header_sha256, transcript.wording
        self._descriptor: int | None = None

    def recover(self) -> Iterator[Batch]:
        """What an earlier run left. Raises ArtefactError for a file that is not of this transcript, or was changed."""
        if not self.path.exists():
            return
        try:
            with open_regular(self.path) as file:
                *lines, _ = file.read().split(b"\n")
        except OSError as error:
            raise UsageError(f"{self.path} cannot be read: {error.strerror}", "It holds answers of an earlier run.") from None
        for number, line in enumerate(lines):
            where = f"{self.path.name} line {number + 1}"
            entry = parse(line, where)
            if not isinstance(entry, dict) or entry.pop("digest", None) != _digest(entry) or entry.pop("of", None) != self._of:
                raise ArtefactError(f"{where} is not of this transcript, or was changed", "Remove it to ask these queries again.")
            yield from_entry(entry, where)

    def put(self, rows: NDArray[np.int64], answers: Answers) -> None:
        """Append one batch: a kill does not lose it. What a power cut may lose of it is asked again."""
        try:
            if self._descriptor is None:
                self._descriptor = os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o644)
            entry = {"rows": rows.tolist(), **to_entry(answers), "of": self._of}
            write_whole(self._descriptor, (canonical({**entry, "digest": _digest(entry)}) + "\n").encode(), sync=False)
        except OSError as error:
            hint = f"What was answered before is kept. Make room, and {self._wording.further}."
            raise UsageError(f"{self.path} cannot be written: {error.strerror}", hint) from None

    def clear(self) -> None:
        """All that was early is in the transcript."""
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)

    def close(self) -> None:
        """Close the file; remove it if nothing is left in it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
            if not self.path.stat().st_size:
                self.path.unlink()


def refuse_leftover(path: Path, wording: Wording = CHECK) -> None:
    """Raise UsageError where early answers lie beside no transcript: they may be another suspect's."""
    early = path.with_name(path.name + ".early")
    if early.exists() and early.stat().st_size and not (path.exists() and path.stat().st_size):
        raise UsageError(
            f"{early} holds answers of an earlier run, whose transcript is gone",
            f"Remove it, or put the transcript back and {wording.further}.",
        )


def recover(transcript: Transcript) -> None:
    """Put into a transcript what came in early before an earlier run broke, and remove the file that kept it."""
    early = Early(transcript)
    known = {row for rows, _ in transcript.kept for row in rows.tolist()}
    for rows, answers in early.recover():
        if not known.issuperset(rows.tolist()):
            transcript.record(rows, answers)
            transcript.kept.append((rows, answers))
            known.update(rows.tolist())
    early.path.unlink(missing_ok=True)


def _digest(entry: dict[str, object]) -> str:
    return hashlib.sha256(canonical(entry).encode()).hexdigest()
