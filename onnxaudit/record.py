"""What the lines of a transcript say: batches, probes, runs; read with suspicion, as files of evidence come from others."""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Access, Answers
from onnxaudit.decode import canonical, decode, parse
from onnxaudit.errors import ArtefactError
from onnxaudit.suspect import InputSpec

MOST_SEEN = 1 << 28
"""Numbers that one model may show of its inside."""
FLOATS = ("<f2", "<f4", "<f8")
Batch: TypeAlias = tuple[NDArray[np.int64], Answers]
"""Rows of the bundle's queries, and the answers to them."""


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """Control queries asked to find how a suspect is wired. spec, fit: the wiring they were asked under. answers: as the suspect
    gave them, its labels called what it calls them; None: it refused inputs of this form.
    """

    spec: InputSpec
    fit: str
    rows: NDArray[np.int64]
    answers: Answers | None

    def under(self, wired: Mapping[str, Any] | None) -> bool:
        """Whether it was answered under the wiring that a search came to, as a transcript has it."""
        if wired is None or self.answers is None or wired.get("fit") != self.fit:
            return False
        return canonical(wired.get("spec")) == canonical(self.spec)


@dataclass(slots=True)
class Run:
    """What one call of check added to a transcript.

    facts: what it was called with. known: answers that were there before. again: answers to queries asked twice. references:
    (entry as JSON, answers) of models that calibrated instead of the bundle's. shown: (model, kind, what it showed of its
    inside), model "suspect" or a reference's id. sent, failed: queries, retries included; None where it did not come to an end.
    lost: queries that came to nothing so far; None in a transcript that does not say. vouched: as of the record when it began.
    probed: queries of a search for a wiring that were asked before. refused: those asked again got no answer of use.
    """

    facts: Mapping[str, Any]
    known: int
    again: list[Batch] = field(default_factory=list)
    references: list[tuple[dict[str, Any], Answers]] = field(default_factory=list)
    shown: list[tuple[str, str, NDArray[Any]]] = field(default_factory=list)
    sent: int | None = None
    failed: int | None = None
    probed: int = 0
    lost: int | None = None
    vouched: bool = False
    refused: bool = False

    @property
    def pool(self) -> frozenset[str]:
        """By which models it calibrated, as their digests; none of them where those were the bundle's own."""
        return frozenset(str(entry.get("sha256")) for entry, _ in self.references)


@dataclass(slots=True)
class Record:
    """What the lines of a transcript say, each checked to follow the one before. digest: of the last line.

    kept: batches in the order they were answered. looks: so many answers were judged. runs: empty in a transcript of before
    runs were recorded. probes: queries that the search for a wiring asked; wired: what it came to, once it ended.
    """

    header: dict[str, Any] = field(default_factory=dict)
    kept: list[Batch] = field(default_factory=list)
    looks: set[int] = field(default_factory=set)
    runs: list[Run] = field(default_factory=list)
    probes: list[Probe] = field(default_factory=list)
    wired: dict[str, Any] | None = None
    digest: str = ""

    def add(self, line: bytes, where: str) -> None:
        """Take in one line, its newline included. Raises ArtefactError if it does not follow the line before, or is damaged."""
        entry = parse(line, where)
        if not isinstance(entry, dict) or entry.pop("previous", None) != self.digest:
            raise ArtefactError(f"{where} does not follow the line before", "The file was changed.")
        if not self.digest:
            self.header = entry
        elif "look" in entry:
            self.looks.add(_count(entry["look"], where, least=1))
        elif "run" in entry:
            known, probed = sum(len(rows) for rows, _ in self.kept), sum(len(probe.rows) for probe in self.probes)
            self.runs.append(Run(_facts(entry["run"], where), known, probed=probed, vouched=self.vouched))
        elif "again" in entry and entry.get("refused") is True:
            self._run(where).refused = True
        elif "again" in entry:
            self._run(where).again.append(from_entry({"rows": entry.pop("again"), **entry}, where))
        elif "reference" in entry:
            _, answers = from_entry({"rows": [], **entry}, where, rowless=True)
            self._run(where).references.append((_facts(entry["reference"], where), answers))
        elif "inside" in entry:
            if self.runs:  # before runs were recorded it was looked at again, and never read
                self.runs[-1].shown.append((str(entry.get("of")), str(entry["inside"]), _seen(entry, where)))
        elif "wiring" in entry:
            self.probes.append(_probe(entry, where))
        elif "wired" in entry:
            self.wired = _facts(entry["wired"], where)
        elif "sent" in entry:
            run = self._run(where)
            run.sent, run.failed = _count(entry["sent"], where), _count(entry.get("failed"), where)
        elif "lost" in entry:
            run = self._run(where)
            run.lost = max(run.lost or 0, _count(entry["lost"], where))  # threads may have said it in another order
        else:
            self.kept.append(from_entry(entry, where))
        self.digest = hashlib.sha256(line).hexdigest()

    @property
    def ended(self) -> bool:
        """Whether the last run came to its end."""
        return bool(self.runs) and self.runs[-1].sent is not None

    @property
    def ended_once(self) -> bool:
        """Whether any run came to its end."""
        return any(run.sent is not None for run in self.runs)

    @property
    def pools(self) -> set[frozenset[str]]:
        """By which pools of references answers were judged, see ``Run.pool``."""
        return {run.pool for run in self.runs if run.sent is not None}

    @property
    def spent(self) -> int:
        """Queries that all runs sent, retries and repeats included.

        Of a run that did not come to its end, those that were answered and those that came to nothing; not what was on its way
        when it was killed, of which nothing is known. Those that a search for a wiring was given are counted once, where it was
        given them.
        """
        rows = [row for rows, _ in self.kept for row in rows.tolist()]
        refused = [probe.answers is None for probe in self.probes for _ in probe.rows]
        by_heart = {row for probe in self.probes if probe.under(self.wired) for row in probe.rows.tolist()}
        count = 0
        for run, after in zip(self.runs, [*self.runs[1:], None], strict=False):
            if run.sent is not None:
                count += run.sent
                continue
            answered = rows[run.known : after.known if after else None]
            probed = refused[run.probed : after.probed if after else None]
            count += sum(row not in by_heart for row in answered) + sum(len(again) for again, _ in run.again)
            count += sum(run.lost is None or not none for none in probed) + (run.lost or 0)
        return count

    @property
    def repeated(self) -> int:
        """Queries that were asked again since a run came to its end."""
        ends = [number for number, run in enumerate(self.runs) if run.sent is not None]
        return sum(len(again) for run in self.runs[ends[-1] + 1 if ends else 0 :] for again, _ in run.again)

    @property
    def vouched(self) -> bool:
        """Whether all answers are one suspect's, as far as can be known, so that a run that adds none need ask none again.

        They are if one run gave them all, or the last that added to others' asked some of those again.
        """
        if not self.runs or (last := self.runs[-1]).refused:
            return False
        added = last.known < sum(len(rows) for rows, _ in self.kept)
        return bool(last.again) or last.known == 0 or (last.vouched and not added)

    def _run(self, where: str) -> Run:
        if not self.runs:
            raise ArtefactError(f"{where} belongs to no run", "The file was changed.")
        return self.runs[-1]


def to_entry(answers: Answers) -> dict[str, Any]:
    def text(array: NDArray[Any], dtype: str) -> str:
        return base64.b64encode(array.astype(dtype).tobytes()).decode()

    return {
        "classes": text(answers.classes, "<i4"),
        "scores": None if answers.scores is None else text(answers.scores, "<f4"),
        "access": answers.access.word,
        "num_classes": answers.num_classes,
    }


def _count(value: object, where: str, least: int = 0) -> int:
    if type(value) is not int or value < least:
        raise ArtefactError(f"{where} is damaged: {str(value)[:20]!r} is no number of answers", "The file was changed.")
    return value


def _facts(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ArtefactError(f"{where} is damaged: it is of another kind than it says", "The file was changed.")
    return value


@dataclass(frozen=True, slots=True)
class _Wiring:
    """As a probe's line names it."""

    spec: InputSpec
    fit: str


def _probe(entry: dict[str, Any], where: str) -> Probe:
    """One question of a search for a wiring. Raises ArtefactError where it is none."""
    wiring = decode(_Wiring, entry["wiring"], where)
    if (problem := wiring.spec.problem()) is not None:
        raise ArtefactError(f"{where}: {problem}")
    if "refused" not in entry:
        return Probe(wiring.spec, wiring.fit, *from_entry(entry, where))
    rows = entry.get("rows")
    if not isinstance(rows, list) or not all(type(row) is int and 0 <= row < 1 << 31 for row in rows):
        raise ArtefactError(f"{where} is damaged: it names no queries", "The file was changed.")
    return Probe(wiring.spec, wiring.fit, np.array(rows, np.int64), None)


def _seen(entry: dict[str, Any], where: str) -> NDArray[Any]:
    """What a model showed of its inside; it may not unpack to more than its shape says. Raises ArtefactError."""
    try:
        if entry["dtype"] not in FLOATS:  # np.dtype reads a small language, in which a small text can stand for much
            raise ValueError("it is of no known type")
        dtype, shape = np.dtype(entry["dtype"]), [_count(size, where) for size in entry["shape"]]
        size = dtype.itemsize * min(int(np.prod(shape, dtype=np.float64)), MOST_SEEN)
        data = zlib.decompressobj().decompress(base64.b64decode(entry["data"], validate=True), size + 1)
        seen = np.frombuffer(data, dtype).reshape(shape)
    except (KeyError, TypeError, ValueError, OverflowError, zlib.error) as error:
        raise ArtefactError(f"{where} is damaged: {error}") from None
    if dtype.kind != "f" or not np.isfinite(seen).all():
        raise ArtefactError(f"{where} is damaged: what a model showed is not finite", "The file was changed.")
    return seen.astype(dtype.newbyteorder("="))


def from_entry(entry: dict[str, Any], where: str, *, rowless: bool = False) -> Batch:
    """Rows and answers of one line; nothing in it is trusted. rowless: answers to all queries. Raises ArtefactError."""
    try:
        rows, count = np.array(entry["rows"]), entry["num_classes"]
        access = Access[str(entry["access"]).upper()]
        classes = np.frombuffer(base64.b64decode(entry["classes"], validate=True), "<i4")
        if rowless:
            width = 1 if access == Access.LABEL else int(count)
            rows = np.arange(len(classes) // width)
        classes = classes.reshape(len(rows), -1)
        scores = entry["scores"]
        decoded = None if scores is None else np.frombuffer(base64.b64decode(scores, validate=True), "<f4").reshape(classes.shape)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ArtefactError(f"{where} is damaged: {error}") from None
    sound = (
        rows.ndim == 1
        and rows.dtype.kind == "i"
        and classes.shape[1] > 0
        and (decoded is None) == (access == Access.LABEL)
        and (decoded is None or bool(np.isfinite(decoded).all()))
        and (count is None or (type(count) is int and classes.shape[1] <= count))
    )
    if not sound:
        raise ArtefactError(f"{where} is damaged: its answers contradict themselves", "The file was changed.")
    return rows.astype(np.int64), Answers(classes, decoded, access, count)


def check_kept(kept: Sequence[Batch], queries: int, classes: int | None) -> None:
    """Raise ArtefactError unless these answers are to different ones of so many queries, and name classes that exist."""
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
