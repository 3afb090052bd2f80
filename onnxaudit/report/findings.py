"""The lines of a scan: reports whose findings hold for all tests of the scan together, and the file that they are kept in."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from io import RawIOBase
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from onnxaudit.decode import canonical, parse
from onnxaudit.errors import ArtefactError, UsageError
from onnxaudit.report.model import DERIVED, EXIT_CODES, INCONCLUSIVE, SCHEMA, Report, SchemeResult

BEGINNING = b'{"schema":"onnxaudit.report/1"'
BONFERRONI, HOLM = "bonferroni", "holm"
NAMES = tuple(field.name for field in dataclasses.fields(Report) if field.name not in ("code", "exhibits", "wiring"))
SCHEME_NAMES = tuple(field.name for field in dataclasses.fields(SchemeResult))
Line = dict[str, Any]
"""A report as JSON, with ``p_adjusted``, ``tests`` and ``scan``: what a scan adds to it."""


def references_needed(tests: int, alpha: float) -> int:
    """So many references it takes for a p-value that is small enough after correction for so many tests."""
    return math.ceil(tests / alpha - 1e-9) - 1


def line_of(report: Report, source: str, content: str | None, settings: str) -> Line:
    """A report as a line that is not adjusted yet.

    content: what identifies the suspect, see ``content_of``; None where it could not be read. settings: a digest of how it was
    asked. What is known of each reference is left out: thousands of lines would repeat it.
    """
    value = {name: getattr(report, name) for name in NAMES}
    value["controls"] = dataclasses.asdict(dataclasses.replace(report.controls, reference_accuracy=()))
    value["references"] = []
    value["looks"] = [dataclasses.asdict(look) for look in report.looks]
    value["line_up"] = report.line_up and dataclasses.asdict(report.line_up)
    value["exports"] = [dataclasses.asdict(export) for export in report.exports]
    if not report.exports:
        del value["exports"]
    value["schemes"] = [{name: getattr(scheme, name) for name in SCHEME_NAMES} for scheme in report.schemes]
    value["suspect"] = {**report.suspect, "source": source}
    alone = {"finding": report.finding, "reasons": list(report.reasons)}
    first = ("schema", "status", "finding", "p_value")
    value |= {"p_adjusted": None, "tests": 0, "scan": {"content": content, "settings": settings, "alone": alone}}
    names = dict.fromkeys((*first, "p_adjusted", "tests", *value))
    return {name: value[name] for name in names}


def content_of(suspect: Mapping[str, Any]) -> str | None:
    """One digest of a suspect's file and of those that its weights lie in, from a report; None where it has no file."""
    others = {name: value for name, value in suspect["runtime"].items() if name.startswith("external:")}
    return digest_of(suspect["sha256"], {name.removeprefix("external:"): value for name, value in others.items()})


def digest_of(sha256: str | None, others: Mapping[str, str]) -> str | None:
    """The digest of a file alone, or together with other files' by name ("sha256:…")."""
    return sha256 if sha256 is None or not others else hashlib.sha256(canonical([sha256, dict(others)]).encode()).hexdigest()


def adjust(line: Line, p_adjusted: float | None, tests: int, method: str, alpha: float = 1.0) -> Line:
    """The line with the finding that holds among so many tests: derived only where the adjusted p-value allows it.

    alpha: of the scan, where that is less than the line's own, which was judged in an earlier one.
    What was inconclusive or not shown alone stays so. Idempotent, and the same whatever the line was adjusted for before.
    """
    alone, alpha = line["scan"]["alone"], min(line["alpha"], alpha)
    finding, reasons = alone["finding"], list(alone["reasons"])
    if finding == DERIVED and (p_adjusted is None or p_adjusted > alpha + 1e-12):
        finding = INCONCLUSIVE
        reasons.append(
            f"alone it would be derived (p = {line['p_value']:.3g}), but it is one of {tests} tests: adjusted, p is "
            f"{p_adjusted:.3g}; alpha {alpha:g} among so many needs at least {references_needed(tests, alpha)} references; "
            "to check it again alone, now that it is known to be near, would be selection"
        )
    changed = {"finding": finding, "p_adjusted": p_adjusted, "tests": tests, "reasons": reasons}
    return line | changed | {"scan": line["scan"] | {"adjustment": method}}


def bonferroni(p_value: float | None, tests: int) -> float | None:
    """What holds among so many tests, whatever the others find."""
    return None if p_value is None else min(1.0, tests * p_value)


def dumped(line: Line) -> bytes:
    """One line of JSON. ASCII only: names of files may have bytes that are no text."""
    return json.dumps(line, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def _line(text: bytes) -> Line:
    """A line of a scan as it was written; {} if it is something else."""
    try:
        line = parse(text, "a line")
        sound = line["schema"] == SCHEMA and line["status"] in ("complete", "failed", "interrupted") and 0 < line["alpha"] < 1
        alone, content, p = line["scan"]["alone"], line["scan"]["content"], line["p_value"]
        sound &= alone["finding"] in EXIT_CODES and isinstance(alone["reasons"], list) and (p is None or 0 < p <= 1)
        sound &= isinstance(line["suspect"]["source"], str) and isinstance(line["bundle"]["id"], str)
        sound &= isinstance(line["scan"]["settings"], str) and (content is None or isinstance(content, str))
    except (ArtefactError, LookupError, TypeError):
        return {}
    return dict(line) if sound else {}


class Findings:
    """The file of a scan: lines are appended as suspects finish, and rewritten in one step when all are known.

    A last line that a crash cut off is dropped when the file is opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: RawIOBase | None = None
        self._end = 0

    def lines(self) -> Iterator[tuple[int, Line]]:
        """Offset and value of every whole line. Raises UsageError for one that is not of a scan."""
        if not self.path.exists():
            return
        if not self.path.is_file():
            raise UsageError(f"-o {self.path} is not a file", "Give it another name.")
        with self.path.open("rb") as file:
            offset = 0
            for number, text in enumerate(file, 1):
                line = _line(text) if text.endswith(b"\n") else None
                if (line is None and number == 1 and not text.startswith(BEGINNING[: len(text)])) or line == {}:
                    raise UsageError(f"{self.path} is not the output of a scan (line {number})", "Give -o another name.")
                if line is not None:
                    yield offset, line
                offset += len(text)

    def rewrite(self, lines: Iterator[Line]) -> None:
        """Replace the file in one step by these lines, which may be read from it meanwhile. Raises UsageError if that fails."""
        temporary = self.path.with_name(self.path.name + ".tmp")
        self.close()
        try:
            with temporary.open("wb") as file:
                file.writelines(dumped(line) for line in lines)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)  # noqa: PTH105 - the atomic one
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise UsageError(f"{self.path} cannot be written: {error.strerror}", "What was written before is kept.") from None

    def append(self, line: bytes) -> int:
        """Write one line, at once; its offset. Raises UsageError if the disk does not take it."""
        try:
            if self._file is None:
                self._file = self.path.open("ab", buffering=0)
                self._end = self.path.stat().st_size
            offset = self._end
            self._end += self._file.write(line) or 0
            if self._end - offset < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise UsageError(f"{self.path} cannot be written: {error.strerror}", "What was written before is kept.") from None
        return offset

    def at(self, offset: int) -> Line:
        """The line at an offset."""
        with self.path.open("rb") as file:
            file.seek(offset)
            line: Line = json.loads(file.readline())
        return line

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
