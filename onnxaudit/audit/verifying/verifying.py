"""verify(): what a file says, checked against all that it can be checked against, offline."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxaudit.audit.progress import Progress, Silent
from onnxaudit.audit.verifying.attesting import verify_commitment, verify_envelope, verify_opening, verify_stamp
from onnxaudit.audit.verifying.records import kind_of
from onnxaudit.audit.verifying.replaying import verify_report, verify_transcript
from onnxaudit.bundle import QueryBundle, load
from onnxaudit.errors import UsageError, missing_extra


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """What a file is to be checked against; the names are those of the command line. None: not given.

    bundle: called only where a bundle is needed. reproduce: what to craft a bundle again from, by the fields of Ingredients.
    """

    bundle: Callable[[], Path]
    evidence: Path | None = None
    of: Path | None = None
    commitment: Path | None = None
    public_key: Path | None = None
    timestamp: Path | None = None
    tsa_cert: Path | None = None
    reproduce: Mapping[str, Any] | None = None


TAKES: Mapping[str, tuple[str, ...]] = {
    "bundle": ("reproduce",),
    "report": ("evidence",),
    "transcript": (),
    "commitment": ("of",),
    "envelope": ("of", "public_key"),
    "opening": ("commitment", "public_key"),
}
"""Options that mean something for each kind of file; a time-stamp may be of any."""
NAMES: Mapping[str, str] = {
    "bundle": "a bundle",
    "report": "a report",
    "transcript": "a transcript",
    "commitment": "a commitment",
    "envelope": "a signed commitment",
    "opening": "opened queries",
}


def verify_file(path: Path, options: VerifyOptions, progress: Progress | None = None) -> Iterator[str]:
    """What holds of a file, line by line as it is found out; the first line is about the file itself.

    Raises ArtefactError for the first thing that does not hold, UsageError where something to check it against is missing.
    """
    kind = kind_of(path)
    bundle = load(path) if kind == "bundle" else None  # first, for all that is no JSON counts as a bundle, damaged or not
    for name in ("evidence", "of", "commitment", "public_key", "reproduce"):
        if getattr(options, name) is not None and name not in TAKES[kind]:
            raise UsageError(f"--{name.replace('_', '-')} means nothing for {NAMES[kind]}", "See: onnxaudit verify --help")
    if bundle is not None:
        yield f"{path}: intact. {len(bundle.manifest.tensors)} tensors match their digests; id {bundle.id}"
        if options.reproduce is not None:
            yield from _reproduced(bundle, options.reproduce, path.name, progress or Silent())
    else:
        lines = {
            "report": lambda: verify_report(path, options.evidence, options.bundle),
            "transcript": lambda: verify_transcript(path),
            "commitment": lambda: verify_commitment(path, options.of),
            "envelope": lambda: verify_envelope(path, options.public_key, options.of),
            "opening": lambda: verify_opening(path, options.commitment, options.public_key),
        }[kind]()
        yield f"{path}: holds ({NAMES[kind]})"
        yield from lines
    if options.timestamp is not None:
        yield from verify_stamp(path, options.timestamp, options.tsa_cert)


def _reproduced(bundle: QueryBundle, given: Mapping[str, Any], where: str, progress: Progress) -> Iterator[str]:
    try:
        from onnxaudit.audit.verifying.reproducing import Ingredients, verify_reproduced
    except ModuleNotFoundError as error:
        raise missing_extra(error.name or "PyTorch", "torch") from None
    yield from verify_reproduced(bundle, Ingredients(**given), where, progress)
