"""The zoo manifest: which models there are to judge on, and what each of them is."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

from onnxaudit.decode import canonical, decode, parse
from onnxaudit.errors import ArtefactError, UsageError
from onnxaudit.registry import check_deployment

KINDS = ("positive", "negative", "reference", "sibling")
MOST_BYTES = 64 << 20
NAMED = ("file", "kind", "task", "arch", "accuracy")
"""What every line of a manifest says."""


@dataclass(frozen=True, slots=True)
class ZooEntry:
    """One model. task: how it was derived ("extract_label", …) or "independent". accuracy: on its own task's test inputs.

    deployed: what its server does to inputs and outputs, in order ("jpeg:quality=50"); several entries may share a file and
    differ in this. labels: the label set it was made for, "" for the victim's own; models of different label sets are not
    compared with each other. recipe: every parameter that it was made with; seed, data_sha256: of its training; parent: the
    name of the model that it was made from.
    """

    file: str
    kind: str
    task: str = ""
    arch: str = ""
    accuracy: float | None = None
    name: str = ""
    deployed: tuple[str, ...] = ()
    labels: str = ""
    parent: str = ""
    seed: int | None = None
    data_sha256: str | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)


def write_zoo(path: Path, entries: Sequence[ZooEntry]) -> None:
    """Write a manifest in one step, one line a model; files of the entries are relative to it. What says nothing is left out."""
    rows = [{name: value for name, value in dataclasses.asdict(entry).items() if value or name in NAMED} for entry in entries]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("[\n" + ",\n".join(map(canonical, rows)) + "\n]\n", encoding="utf-8")
    temporary.replace(path)


def load_zoo(path: Path) -> list[ZooEntry]:
    """The entries of a manifest, their files as paths that open from here.

    Raises UsageError for a missing manifest or file, or a model listed twice; ArtefactError for a malformed one.
    """
    if not path.is_file():
        raise UsageError(f"{path} is not a file", "Give a zoo manifest, a JSON list of models.")
    if path.stat().st_size > MOST_BYTES:
        raise ArtefactError(f"{path.name} is larger than {MOST_BYTES} bytes", "It is no list of models.")
    value = parse(path.read_bytes(), path.name)
    if not isinstance(value, list) or not value:
        raise ArtefactError(f"{path.name} must be a list of models")
    found = []
    for number, item in enumerate(value):
        entry = decode(ZooEntry, item, f"{path.name}[{number}]")
        if entry.kind not in KINDS:
            raise ArtefactError(f"{path.name}[{number}]: unknown kind {entry.kind!r}", f"Use {', '.join(KINDS)}.")
        check_deployment(entry.deployed)
        file = path.parent / entry.file
        if not _inside(entry.file, path.parent):
            raise ArtefactError(
                f"{path.name}[{number}]: {entry.file[:80]!r} leads out of the manifest's folder", "Keep models in it."
            )
        if not _is_file(file):
            raise UsageError(f"{path.name}[{number}]: {entry.file[:200]} is not there", "Files are relative to the manifest.")
        found.append(dataclasses.replace(entry, file=str(file)))
    _check_distinct(found, path.name)
    return found


def _is_file(file: Path) -> bool:
    try:
        return file.is_file()
    except OSError:  # a name longer than names can be
        return False


def _inside(file: str, folder: Path) -> bool:
    """Whether a file lies in a folder, links followed; a manifest may come from anyone, and its models are opened."""
    if not file or "\0" in file or PureWindowsPath(file).anchor or ".." in PureWindowsPath(file).parts:
        return False
    try:
        return (folder / file).resolve().is_relative_to(folder.resolve())
    except ValueError:  # a name that no file can have
        return False


def _check_distinct(entries: list[ZooEntry], where: str) -> None:
    """Each model has one role: what is in a file is listed once for each way of being deployed, always as the same kind."""
    seen: dict[tuple[str, tuple[str, ...]], str] = {}
    kinds: dict[str, str] = {}
    digests: dict[str, str] = {}
    twice: set[str] = set()
    for entry in entries:
        if entry.file not in digests:
            with Path(entry.file).open("rb") as file:
                digests[entry.file] = hashlib.file_digest(file, "sha256").hexdigest()
        digest = digests[entry.file]
        if (digest, entry.deployed) in seen or kinds.setdefault(digest, entry.kind) != entry.kind:
            twice |= {entry.file, *(file for (other, _), file in seen.items() if other == digest)}
        seen.setdefault((digest, entry.deployed), entry.file)
    if twice:
        raise UsageError(f"{where} lists a model twice: {', '.join(sorted(twice))}", "Each model has one role.")
