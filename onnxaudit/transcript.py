"""The transcript of an interview: every answer on disk before the next query is paid for."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import json
import os
import threading
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxaudit.alone import locked
from onnxaudit.answers import Answers
from onnxaudit.decode import canonical
from onnxaudit.errors import UsageError
from onnxaudit.header import differences, said
from onnxaudit.record import Batch, Probe, Record, Run, check_kept, to_entry

__all__ = [
    "CHECK",
    "SCHEMA",
    "Batch",
    "Probe",
    "Record",
    "Run",
    "Transcript",
    "Wording",
    "as_line",
    "check_kept",
    "discard",
    "write_whole",
]

SCHEMA = "onnxaudit.transcript/1"


@dataclass(frozen=True, slots=True)
class Wording:
    """What a user may do about a transcript, as the command says it that keeps one."""

    another: str = "give --evidence another name"
    place: str = "Choose another place with --evidence."
    further: str = "go on with --resume"


CHECK = Wording()


class Transcript:
    """An append-only JSONL file: a header, then one line a batch, each carrying the digest of the line before.

    Answers are stored as base64 of little-endian arrays. A last line cut off by a crash is dropped when resuming.
    """

    def __init__(self, path: Path, header: dict[str, Any], *, resume: bool, wording: Wording = CHECK) -> None:
        self.path, self.wording = path, wording
        self._record = Record()
        self._turn = threading.Lock()  # queries come to nothing in threads of their own
        descriptor = _opened(path, as_line({**header, "previous": ""}), resume, wording)
        try:
            lines = list(self._read(header, _whole(descriptor)))
            if not lines:
                raise UsageError(f"{path} is not a transcript", _sentence(wording.another))
            os.ftruncate(descriptor, sum(map(len, lines)))
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor: int | None = descriptor
        self._previous = self._record.digest
        self.kept = self._record.kept
        self.looks = self._record.looks
        self.probes, self.wired = self._record.probes, self._record.wired
        self.repeats = [batch for run in self._record.runs for batch in run.again]
        self.header_sha256 = hashlib.sha256(lines[0]).hexdigest()

    def _read(self, header: dict[str, Any], data: bytes) -> Iterator[bytes]:
        *lines, _ = data.split(b"\n")  # what follows the last newline was cut off, and is asked again
        for number, text in enumerate(lines):
            self._record.add(text + b"\n", f"{self.path.name} line {number + 1}")
            if number == 0:
                self._check_header(json.loads(canonical(header)))
            yield text + b"\n"

    def _check_header(self, now: dict[str, Any]) -> None:
        then = self._record.header
        if said(then) != said(now):
            words = "is of another bundle or suspect, or of one that was asked otherwise"
            raise UsageError(
                f"{self.path.name} {words}: {differences(then, now)}", f"Give what was given then, or {self.wording.another}."
            )

    @property
    def ended(self) -> bool:
        """Whether the last run on it came to its end."""
        return self._record.ended

    @property
    def ended_once(self) -> bool:
        """Whether any run on it came to its end."""
        return self._record.ended_once

    @property
    def pools(self) -> set[frozenset[str]]:
        """By which pools of references its answers were judged before, see ``Record.pools``."""
        return self._record.pools

    @property
    def spent(self) -> int:
        """Queries of the budget that are gone: see ``Record.spent``."""
        return self._record.spent

    @property
    def repeated(self) -> int:
        """Queries asked again since a run came to its end."""
        return self._record.repeated

    @property
    def vouched(self) -> bool:
        """Whether a run that adds no answer need ask none again: see ``Record.vouched``."""
        return self._record.vouched

    def begin(self, facts: Mapping[str, Any]) -> None:
        """Note that a check begins, and what it was called with that may be otherwise in the next one on this transcript."""
        self._write({"run": dict(facts)})

    def record(self, rows: NDArray[np.int64], answers: Answers, *, sync: bool = True) -> None:
        """Append one batch and force it to disk. sync False: more follow at once, the last of which forces all."""
        self._write({"rows": rows.tolist(), **to_entry(answers)}, sync=sync)

    def probe(self, probe: Probe) -> None:
        """Append what the search for a wiring asked, and was told, before it asks on."""
        said = {"refused": True} if probe.answers is None else to_entry(probe.answers)
        self._write({"wiring": {"spec": dataclasses.asdict(probe.spec), "fit": probe.fit}, "rows": probe.rows.tolist(), **said})

    def settle(self, wired: Mapping[str, Any]) -> None:
        """Append what that search came to: all answers after it are to queries under this wiring."""
        self.wired = dict(wired)
        self._write({"wired": self.wired})

    def refuse_repeat(self) -> None:
        """Append that queries which were answered before got no answer of use when they were asked again."""
        self._write({"again": [], "refused": True})

    def repeat(self, rows: NDArray[np.int64], answers: Answers) -> None:
        """Append answers to queries that were answered before: whether the suspect is stable is judged by them."""
        self.repeats.append((rows, answers))
        self._write({"again": rows.tolist(), **to_entry(answers)})

    def refer(self, entry: object, answers: Answers) -> None:
        """Append what a model answered, to all queries, that calibrates instead of the bundle's references."""
        self._write({"reference": entry, **to_entry(answers)})

    def look(self, answered: int) -> None:
        """Note that a p-value was computed on so many answers: every further one on more of them must be paid for."""
        if answered not in self.looks:
            self.looks.add(answered)
            self._write({"look": answered})

    def show(self, inside: Mapping[str, NDArray[Any]], of: str = "suspect") -> None:
        """Keep what a model showed of its inside, for others to judge; after resuming it is looked at again."""
        for name, seen in inside.items():
            dtype = seen.dtype.newbyteorder("<")
            data = base64.b64encode(zlib.compress(seen.astype(dtype).tobytes())).decode()
            self._write({"inside": name, "of": of, "dtype": dtype.str, "shape": list(seen.shape), "data": data})

    def lose(self, queries: int) -> None:
        """Note that so many queries of this run came to nothing so far; from any thread, and of no effect once it is closed."""
        with self._turn:
            if self._descriptor is not None:
                self._append({"lost": queries}, sync=False)

    def end(self, sent: int, failed: int) -> None:
        """Note that all was asked, and how many queries that took, retries included."""
        self._write({"sent": sent, "failed": failed})

    def _write(self, entry: dict[str, Any], *, sync: bool = True) -> None:
        with self._turn:
            self._append(entry, sync=sync)

    def _append(self, entry: dict[str, Any], *, sync: bool) -> None:
        assert self._descriptor is not None
        line = as_line({**entry, "previous": self._previous})
        try:
            write_whole(self._descriptor, line, sync=sync)
        except OSError as error:
            hint = f"What was answered before is kept. Make room, and {self.wording.further}."
            raise UsageError(f"{self.path} cannot be written: {error.strerror}", hint) from None
        self._previous = hashlib.sha256(line).hexdigest()

    @property
    def sha256(self) -> str:
        """Digest of the last line, which seals all lines before it."""
        return self._previous

    def close(self) -> None:
        """Close the file."""
        with self._turn:
            if self._descriptor is not None:
                os.close(self._descriptor)
            self._descriptor = None


def as_line(entry: Mapping[str, Any]) -> bytes:
    """One line of JSON; what is no text in the name of a file is an escape in it."""
    return (canonical(entry) + "\n").encode(errors="backslashreplace")


def write_whole(descriptor: int, line: bytes, *, sync: bool = True) -> None:
    """Append a line and, with sync, force it to disk; where there is no room for it, leave none of it behind. Raises OSError."""
    begin = os.lseek(descriptor, 0, os.SEEK_END)
    try:
        rest = memoryview(line)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        if sync:
            os.fsync(descriptor)
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, begin)
        raise


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def _whole(descriptor: int) -> bytes:
    """All that an open file holds."""
    with os.fdopen(os.dup(descriptor), "rb") as file:
        file.seek(0)
        return file.read()


def discard(path: Path) -> None:
    """Remove a transcript that holds no answer. Raises UsageError where another process writes it by now, or it cannot be."""
    try:
        descriptor = os.open(path, os.O_RDWR)
        try:
            if not locked(descriptor):
                raise _busy(path, CHECK)
            if _is(path, descriptor):
                path.unlink()
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"{path} cannot be removed: {error.strerror}", CHECK.place) from None


def _opened(path: Path, first: bytes, resume: bool, wording: Wording) -> int:
    """A descriptor of a transcript that is this process's alone, made with its first line where there was none.

    Raises UsageError for one that is there already, unless it is to be gone on with, or that another process writes.
    """
    place = Path(os.path.realpath(path))
    try:
        for _ in range(_TRIES):
            if place.is_symlink() or (place.exists() and not place.is_file()):  # a link that was followed leads to itself
                raise UsageError(f"{path} is no file that a transcript could be kept in", wording.place)
            descriptor = _taken(path, place, first, resume, wording) if place.exists() else _made(place, first)
            if descriptor is not None:
                return descriptor
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}", wording.place) from None
    raise _busy(path, wording)


_TRIES = 100
"""How often another process may make or remove the file just when this one looks."""


def _busy(path: Path, wording: Wording) -> UsageError:
    return UsageError(f"{path} is being written by another process", f"Wait for it, or {wording.another}.")


def _made(place: Path, first: bytes) -> int | None:
    """Make a transcript in one step, with its first line and locked; None where it has come to be there. Raises OSError."""
    new, descriptor = _prepared(place, first)
    try:
        os.link(new, place)  # not os.replace: that would take the name from a file that another process has just made
    except FileExistsError:
        os.close(descriptor)
        return None
    except (OSError, AttributeError):  # no links here: then an empty file, which one process alone can make, and fill once locked
        os.close(descriptor)
        with contextlib.suppress(FileExistsError):
            os.close(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
        return None
    finally:
        new.unlink(missing_ok=True)
    return descriptor


def _taken(path: Path, place: Path, first: bytes, resume: bool, wording: Wording) -> int | None:
    """Open and lock what is there, begun if it was empty; None where it has gone, or another has its name. Raises OSError."""
    try:
        descriptor = os.open(place, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        if os.fstat(descriptor).st_size and not resume:
            raise UsageError(f"{path} exists already", _sentence(f"{wording.further}, or {wording.another}"))
        if not locked(descriptor):
            raise _busy(path, wording)
        if not _is(place, descriptor):
            os.close(descriptor)
            return None
        if os.fstat(descriptor).st_size:
            return descriptor
        new, begun = _prepared(place, first)
        os.replace(new, place)  # noqa: PTH105 - the atomic one; whoever opened the empty file sees that it has no name any more
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return begun


def _is(place: Path, descriptor: int) -> bool:
    """Whether an open file has this name still: a lock on another is none."""
    try:
        there = place.stat()
    except FileNotFoundError:
        return False
    own = os.fstat(descriptor)
    return (own.st_dev, own.st_ino) == (there.st_dev, there.st_ino)


def _prepared(place: Path, first: bytes) -> tuple[Path, int]:
    """A file of this thread's own beside the place, with the first line in it, on disk, and locked. Raises OSError."""
    new = place.with_name(f"{place.name}.{os.getpid()}-{threading.get_native_id()}.new")
    new.unlink(missing_ok=True)  # never emptied: one left by a process that was killed may be a link to its transcript
    descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        write_whole(descriptor, first)
        locked(descriptor)
    except BaseException:
        os.close(descriptor)
        new.unlink(missing_ok=True)
        raise
    return new, descriptor
