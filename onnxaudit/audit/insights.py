"""What schemes see inside of a model, where its format lets them: recorded once, then judged as answers are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxaudit.bundle import QueryBundle, SchemeEntry
from onnxaudit.schemes.representations import REPRESENTATIONS

Insights: TypeAlias = Mapping[str, NDArray[Any]]
"""What a model shows to the queries of a scheme, by ``insight_key``, one row a query."""


def insight_key(entry: SchemeEntry) -> str:
    """The name of what a scheme sees inside: its kind, the rows and any parameters. "" for one that only compares answers."""
    part = REPRESENTATIONS.get(entry.representation)
    if part is None or not part.inside:
        return ""
    said = [f"{name}={value}" for name, value in sorted(entry.representing.items())]
    return "/".join([part.inside, f"{entry.rows[0]}-{entry.rows[1]}", *said])


def askable(bundle: QueryBundle) -> NDArray[np.bool_]:
    """Which rows are worth an answer, (n,): not those that only serve to look inside of a model."""
    wanted = np.zeros(len(bundle.queries), np.bool_)
    for entry in bundle.manifest.schemes:
        wanted[slice(*entry.rows)] |= not insight_key(entry)
    wanted[slice(*bundle.manifest.controls)] = True
    return wanted


def look_inside(bundle: QueryBundle, look: Callable[..., NDArray[Any] | None]) -> dict[str, NDArray[Any]]:
    """What a model shows to the schemes of a bundle; nothing for what its format does not let them see.

    look: ``Suspect.inside``, or what does the same for the victim: (kind, queries, and parameters by name).
    """
    found: dict[str, NDArray[Any]] = {}
    for entry in bundle.manifest.schemes:
        key = insight_key(entry)
        if not key or key in found:
            continue
        kind, queries = REPRESENTATIONS[entry.representation].inside, bundle.queries[slice(*entry.rows)]
        seen = look(kind, queries, **entry.representing)
        if seen is not None and np.isfinite(seen).all():
            found[key] = seen
    return found


def insights_of(bundle: QueryBundle, model: str) -> dict[str, NDArray[Any]]:
    """What a model in the bundle showed when it was asked."""
    prefix = f"insights/{model}/"
    return {name.removeprefix(prefix): seen for name, seen in bundle.insights.items() if name.startswith(prefix)}


def named(model: str, insights: Insights) -> dict[str, NDArray[Any]]:
    """Insights under the names that a bundle keeps them by."""
    return {f"insights/{model}/{key}": seen for key, seen in insights.items()}
