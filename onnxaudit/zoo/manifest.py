"""The zoo manifest: which models there are to judge on, and what each of them is."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path

from onnxaudit.decode import decode, parse
from onnxaudit.errors import ArtefactError, UsageError

KINDS = ("positive", "negative", "reference", "sibling")


@dataclass(frozen=True, slots=True)
class ZooEntry:
    """One model. task: how it was derived ("extract_label", …) or "independent"."""

    file: str
    kind: str
    task: str = ""
    arch: str = ""
    accuracy: float | None = None


def load_zoo(path: Path) -> list[ZooEntry]:
    """The entries of a manifest, their files as paths that open from here.

    Raises UsageError for a missing manifest or file, or a model listed twice; ArtefactError for a malformed one.
    """
    if not path.is_file():
        raise UsageError(f"{path} is not a file", "Give a zoo manifest, a JSON list of models.")
    value = parse(path.read_bytes(), path.name)
    if not isinstance(value, list) or not value:
        raise ArtefactError(f"{path.name} must be a list of models")
    found = []
    for number, item in enumerate(value):
        entry = decode(ZooEntry, item, f"{path.name}[{number}]")
        if entry.kind not in KINDS:
            raise ArtefactError(f"{path.name}[{number}]: unknown kind {entry.kind!r}", f"Use {', '.join(KINDS)}.")
        file = path.parent / entry.file
        if not file.is_file():
            raise UsageError(f"{path.name}[{number}]: {entry.file} is not there", "Files are relative to the manifest.")
        found.append(dataclasses.replace(entry, file=str(file)))
    twice = {entry.file for entry in found if sum(other.file == entry.file for other in found) > 1}
    digests: dict[str, str] = {}
    for entry in found:
        digest = hashlib.sha256(Path(entry.file).read_bytes()).hexdigest()
        if digests.setdefault(digest, entry.file) != entry.file:
            twice |= {entry.file, digests[digest]}
    if twice:
        raise UsageError(f"{path.name} lists a model twice: {', '.join(sorted(twice))}", "Each model has one role.")
    return found
