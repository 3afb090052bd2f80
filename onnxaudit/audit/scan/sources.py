"""What a scan is to check: files, folders, URLs, and lists of them, as single suspects."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from onnxaudit.errors import UsageError
from onnxaudit.fetching import listed
from onnxaudit.registry import is_endpoint, suffixes

DEEPEST = 100
"""Folders within folders that are looked into."""
MOST_LISTED = 1 << 28
"""Characters of a list, which is held in memory."""


def gathered(paths: Sequence[str], listing: Path | None = None) -> list[str]:
    """Every suspect once, in order: files, the models below folders (by suffix), endpoints, and files behind other URLs.

    listing: a file with one path or URL a line; what is wrong there is for the scan to report, a path of the command line that
    does not exist is a UsageError, as is nothing at all.
    """
    kinds = suffixes()
    for path in paths:
        if "://" not in path and not os.path.exists(path):  # noqa: PTH110 - Path raises where a name is too long
            raise UsageError(f"{path or repr(path)} does not exist", "Check the path; nothing was asked.")
    found = dict.fromkeys(source for path in [*paths, *_lines(listing)] for source in _expanded(path, kinds))
    if not found:
        raise UsageError(
            "there is nothing to scan" if not (paths or listing) else "there are no models in what was given",
            f"Give files, folders or URLs; in folders, {', '.join(sorted(kinds))} are taken.",
        )
    return list(found)


def _lines(listing: Path | None) -> list[str]:
    if listing is None:
        return []
    try:
        with listing.open(encoding="utf-8", errors="surrogateescape") as file:  # which may be a pipe, as /dev/stdin
            text = file.read(MOST_LISTED)
            more = file.read(1)
    except OSError as error:
        raise UsageError(f"--list {listing} cannot be read: {error.strerror}", "Check the path.") from None
    if more:
        raise UsageError(f"--list {listing} has more than {MOST_LISTED} characters", "Give parts of it, one after another.")
    if "\0" in text:
        raise UsageError(f"--list {listing} is no list of paths", "Give a text file with one path or URL a line.")
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _expanded(path: str, kinds: Collection[str]) -> Iterator[str]:
    if "://" in path:
        yield from [path] if is_endpoint(path) else listed(path, kinds)
    elif os.path.isdir(path):  # noqa: PTH112 - as above
        yield from _below(path, kinds)
    else:
        yield path


def _below(folder: str, kinds: Collection[str], depth: int = 0) -> Iterator[str]:
    """Models in a folder and in those below it, in the order of their names. Links to folders are not followed.

    A folder that cannot be looked into, or lies too deep, stands for itself: a suspect that cannot be opened is told of.
    """
    try:
        with os.scandir(folder) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
    except OSError:
        yield folder
        return
    for entry in ordered:
        if entry.is_dir(follow_symlinks=False):
            yield from _below(entry.path, kinds, depth + 1) if depth < DEEPEST else [entry.path]
        elif Path(entry.name).suffix.lower() in kinds and _may_be_file(entry) and not _other_xml(Path(entry.path)):
            yield entry.path


def _may_be_file(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a file, or a link that leads nowhere that can be told: that is for asking to say."""
    try:
        return entry.is_file()
    except OSError:  # a link to itself
        return True


def _other_xml(path: Path) -> bool:
    """Whether a file is XML that nobody means as a model: one of OpenVINO's has its weights beside it."""
    return path.suffix.lower() == ".xml" and not path.with_suffix(".bin").is_file()
