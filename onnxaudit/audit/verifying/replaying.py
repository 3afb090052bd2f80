"""Whether a report follows from its transcript and its bundle: worked out anew, offline, without the suspect."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxaudit import __version__
from onnxaudit.audit.calibrating import control_accuracy, with_models
from onnxaudit.audit.checking import UNKNOWN, without_references
from onnxaudit.audit.concluding import Heard, conclude
from onnxaudit.audit.repeating import check_repeats
from onnxaudit.audit.verifying.records import read_json, read_transcript
from onnxaudit.audit.wiring import searched_again
from onnxaudit.bundle import ModelEntry, QueryBundle, load
from onnxaudit.decode import canonical, decode
from onnxaudit.errors import ArtefactError, UsageError
from onnxaudit.interview import assemble
from onnxaudit.report.model import INCONCLUSIVE, Controls, Report, seal, written
from onnxaudit.suspect import InputSpec, SuspectCard
from onnxaudit.transcript import SCHEMA, Record, Run, check_kept

NOT_RECOMPUTED = ("seconds", "digest")
"""Keys of a report that no transcript can give: the seal alone covers them."""
OF_NO_END = (
    "status",
    "error",
    "reasons",
    "p_floor",
    "alpha",
    "bundle",
    "suspect",
    "queries",
    "seconds",
    "tool",
    "transcript_sha256",
    "digest",
)
"""Keys that the report of a run that did not end may fill in."""
NAMED = 4
"""Differences that a message names at most."""
ROUNDING = 1e-9
"""By so much two processors, or two builds of NumPy, may differ in a number that takes thousands of additions."""
MISSING = "nothing"


@dataclass(frozen=True, slots=True)
class _Facts:
    """What a run was called with, as ``checking`` writes it."""

    tool: str
    alpha: float | None
    runtime: Mapping[str, str]
    pool_notes: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class _Asked:
    """Whom a transcript asked."""

    source: str
    sha256: str | None
    kind: str
    files: Mapping[str, str]
    target: str | None


@dataclass(frozen=True, slots=True)
class _Header:
    """The first line of a transcript."""

    schema: str
    bundle: str
    suspect: _Asked
    input: InputSpec
    access: str | None
    looks: tuple[int, ...] | None = None
    label_space: str | None = None
    autofix: bool | None = None


def verify_report(path: Path, evidence: Path | None, find_bundle: Callable[[], Path]) -> Iterator[str]:
    """What holds of a report, line by line as it is found out.

    Raises ArtefactError for the first thing that does not hold, UsageError where something to verify it by is not given.
    """
    report = sealed_report(path)
    yield "its digest is that of what it says"
    finding = report.get("finding")
    if report.get("status") != "complete":
        _check_found_nothing(path, report)
        yield f"the run did not end ({report.get('status')}): it found nothing, and there is nothing to recompute"
        return
    if evidence is None:
        raise _no_evidence(path, report)
    if report.get("transcript_sha256") is None:
        raise ArtefactError(f"{path.name} names no transcript: its check kept none", "So none can be the one it follows from.")
    bundle_path = find_bundle()
    bundle = load(bundle_path)
    named = report.get("bundle")
    if not isinstance(named, dict) or named.get("id") != bundle.id:
        raise ArtefactError(
            f"{path.name} is of another bundle than {bundle_path.name}, whose id is {bundle.id[:16]}", "Choose it with --bundle."
        )
    yield f"{bundle_path.name} is the bundle it names, and intact"
    record, left = read_transcript(evidence, report.get("transcript_sha256"))
    yield f"{evidence.name} is the transcript it names, and its lines follow each other"
    rounded = compare(path, report, replay(bundle, record, evidence.name), evidence)
    same = "the same words, and numbers up to rounding" if rounded else "the same words and numbers, to the last bit"
    yield f"recomputed from these two: {finding}, {same} (seconds are only sealed)"
    if rounded:
        yield f"{len(rounded)} numbers differ by rounding: made on another machine, or with other versions; {rounded[0]}"
    if (tool := record.runs[-1].facts["tool"]) != __version__:
        yield f"it was made by onnxaudit {tool}, and recomputed by {__version__}"
    if left:
        yield f"the transcript goes on for {left} lines, which this report does not seal; ask for the later report"


def _check_found_nothing(path: Path, report: Mapping[str, Any]) -> None:
    """Raise ArtefactError where the report of a run that did not end says anything but what, whom, and why it did not."""
    blank = json.loads(Report(INCONCLUSIVE, None, 0.0, 0.0, None, (), {}, {}, Controls(), (), {}, {}).to_json())
    for name, value in report.items():
        if name not in OF_NO_END and canonical(value) != canonical(blank.get(name, MISSING)):
            words = f"{path.name} says {name}: {_short(value)} of a run that did not end"
            raise ArtefactError(words, "It was not written by onnxaudit.")


def verify_transcript(path: Path) -> Iterator[str]:
    """What holds of a transcript alone. Raises ArtefactError if a line does not follow the one before, or is cut off."""
    record, _ = read_transcript(path)
    header = decode(_Header, record.header, f"{path.name} line 1")
    answered = sum(len(rows) for rows, _ in record.kept)
    yield f"its lines follow each other: {answered} answers of {header.suspect.source} to bundle {header.bundle[:16]}"
    yield f"its last line has the digest {record.digest}: only a report, or a commitment, that names it seals that line"


def sealed_report(path: Path) -> dict[str, Any]:
    """A report's JSON values. Raises ArtefactError if it is not as onnxaudit wrote it, to the byte."""
    text, report = read_json(path)
    if "scan" in report:
        raise UsageError(
            f"{path.name} is a line of a scan, whose finding holds among all its tests", "verify takes the report of a check."
        )
    if report.get("digest") != seal(report):
        raise ArtefactError(f"{path.name} does not match its own digest", "It was changed after it was written.")
    if text not in (written(report), written(report) + "\n"):
        raise ArtefactError(
            f"{path.name} is written otherwise than onnxaudit writes it, though it says the same",
            "Give the file as check wrote it.",
        )
    return report


def _no_evidence(path: Path, report: Mapping[str, Any]) -> UsageError:
    if report.get("transcript_sha256") is None:
        return UsageError(
            f"{path.name} matches its digest, but the check kept no transcript to recompute it from",
            "Check again with: onnxaudit check SUSPECT --evidence F.jsonl -o report.json",
        )
    return UsageError(
        f"{path.name} matches its digest; its finding is recomputed from the transcript", "Give it with --evidence F.jsonl."
    )


def replay(bundle: QueryBundle, record: Record, where: str) -> Report:
    """The report that a check made of these answers, but for its seconds. Raises ArtefactError for a record that cannot be."""
    header, facts = _read(bundle, record, where)
    label_free = header.label_space == UNKNOWN
    run, asked = record.runs[-1], header.suspect
    classes = None if label_free else bundle.manifest.victim.num_classes
    check_kept(record.kept, len(bundle.queries), classes)
    answers = assemble(record.kept, len(bundle.queries))
    repeats = [batch for run in record.runs for batch in run.again]
    check_repeats(repeats, answers, where)
    given = facts.pool_notes is not None
    used = _with_references(bundle, run, facts.pool_notes or (), where, label_free=label_free) if given else bundle
    searched = searched_again(used, header.input, record.probes, record.wired) if header.autofix else None
    spec = searched.spec if searched else header.input
    report = conclude(
        used,
        bundle,
        SuspectCard(asked.source, asked.kind, spec, classes, asked.sha256, runtime=facts.runtime),
        Heard(
            answers,
            tuple(repeats),
            run.refused,
            bool(run.again) or (run.vouched and run.known == int(answers.answered.sum())),
            run.known,
            max(1, len(record.looks)),
            {kind: seen for model, kind, seen in run.shown if model == "suspect"},
            (header.input, searched),
            len(record.pools),
        ),
        alpha=facts.alpha,
        planned=header.looks,
        label_free=label_free,
    )
    queries = {"sent": run.sent or 0, "reused": run.known, "failed": run.failed or 0}
    return dataclasses.replace(report, queries=queries, tool=facts.tool, transcript_sha256=record.digest)


def _read(bundle: QueryBundle, record: Record, where: str) -> tuple[_Header, _Facts]:
    """Whom a record asked, and what its last run was called with. Raises ArtefactError where it lacks what judging needs."""
    header = decode(_Header, record.header, f"{where} line 1")
    if header.schema != SCHEMA:
        raise ArtefactError(f"{where} has the schema {header.schema[:40]!r}, this version reads {SCHEMA}", "Update onnxaudit.")
    if header.bundle != bundle.id:
        raise ArtefactError(f"{where} is of another bundle, {header.bundle[:16]}", "All three must be of one check.")
    if (problem := header.input.problem()) is not None:
        raise ArtefactError(f"{where}: the suspect's input: {problem}")
    if not record.runs or record.runs[-1].sent is None:
        raise ArtefactError(
            f"{where} does not hold all that a finding needs: its last check did not end, or an earlier version wrote it",
            "Go on with: onnxaudit check SUSPECT --evidence F.jsonl --resume",
        )
    if not record.kept:
        raise ArtefactError(f"{where} holds no answers")
    return header, decode(_Facts, dict(record.runs[-1].facts), f"{where}: its last run")


def _with_references(bundle: QueryBundle, run: Run, notes: tuple[str, ...], where: str, *, label_free: bool) -> QueryBundle:
    """The bundle as the check had it: with the references that were given with it, in place of its own.

    label_free: they may have any label set, and so have no accuracy.
    """
    models = []
    for value, answers in run.references:
        entry = decode(ModelEntry, value, f"{where}: a reference")
        said = answers.classes
        fits = len(answers) == len(bundle.queries) and entry.num_classes == answers.num_classes
        fits &= label_free or entry.num_classes == bundle.manifest.victim.num_classes
        if not fits or said.min(initial=0) < 0 or said.max(initial=0) >= entry.num_classes or entry.role != "reference":
            raise ArtefactError(f"{where}: what {entry.source} answered does not fit the bundle", "The file was changed.")
        accuracy = None if label_free else control_accuracy(bundle, answers)
        if entry.access != answers.access.word or entry.accuracy != accuracy:
            raise ArtefactError(f"{where}: what {entry.source} answered is not what is said of it", "The file was changed.")
        models.append((entry, answers, {kind: seen for model, kind, seen in run.shown if model == entry.id}))
    if len({entry.id for entry, _, _ in models} | {"suspect"}) != len(models) + 1:
        raise ArtefactError(f"{where}: two references share an id", "The file was changed.")
    filled = with_models(without_references(bundle), models)
    return dataclasses.replace(filled, manifest=dataclasses.replace(filled.manifest, pool_notes=notes), id=bundle.id)


def compare(path: Path, report: Mapping[str, Any], again: Report, evidence: Path) -> list[str]:
    """Where a report and the one that was worked out anew differ by rounding alone, in words.

    Raises ArtefactError that names whatever else the report says otherwise.
    """
    found = list(_differences(dict(report), json.loads(again.to_json()), ""))
    if wrong := [words for words, rounding in found if not rounding]:
        more = f"; and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        raise ArtefactError(f"{path.name} does not follow from {evidence.name}: {'; '.join(wrong[:NAMED])}{more}")
    return [words for words, _ in found]


def _differences(said: Any, given: Any, place: str) -> Iterator[tuple[str, bool]]:
    """What differs, in words, and whether it is only by rounding."""
    if isinstance(said, dict) and isinstance(given, dict):
        for name in dict.fromkeys((*said, *given)):
            if place or name not in NOT_RECOMPUTED:
                inner = f"{place}.{name}" if place else name
                yield from _differences(said.get(name, MISSING), given.get(name, MISSING), inner)
    elif isinstance(said, list) and isinstance(given, list) and len(said) == len(given):
        for number, (one, other) in enumerate(zip(said, given, strict=True)):
            yield from _differences(one, other, f"{place}[{number}]")
    elif canonical(said) != canonical(given):
        numbers = type(said) is float and type(given) is float
        words = f"{place}: the report says {_short(said)}, the transcript gives {_short(given)}"
        yield words, numbers and math.isclose(said, given, rel_tol=ROUNDING, abs_tol=ROUNDING)


def _short(value: Any) -> str:
    text = canonical(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
