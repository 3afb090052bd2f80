"""A zoo's contents as a table."""

from __future__ import annotations

from collections.abc import Sequence

from onnxaudit.report.text import table
from onnxaudit.zoo.manifest import KINDS, ZooEntry


def zoo_table(entries: Sequence[ZooEntry]) -> str:
    """One line a kind and task: how many models, of how many architectures, and their accuracy."""
    groups: dict[tuple[str, str, bool], list[ZooEntry]] = {}
    for entry in sorted(entries, key=lambda entry: KINDS.index(entry.kind)):
        groups.setdefault((entry.kind, entry.task, bool(entry.deployed)), []).append(entry)
    rows = []
    for (kind, task, deployed), mine in groups.items():
        known = [entry.accuracy for entry in mine if entry.accuracy is not None]
        span = f"{min(known):.1%} - {max(known):.1%}" if known else "-"
        rows.append((kind, f"{task}, behind a server" if deployed else task, str(len(mine)), span))
    return table(("kind", "task", "models", "accuracy"), rows)
