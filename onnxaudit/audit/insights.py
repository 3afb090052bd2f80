"""What schemes see inside of a model, where its format lets them: recorded once, then judged as answers are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxaudit.bundle import QueryBundle, SchemeEntry
from onnxaudit.schemes.representations import REPRESENTATIONS
from onnxaudit.suspect import Queries

Insights: TypeAlias = Mapping[str, NDArray[Any]]
"""What a model shows to the queries of a scheme, by ``insight_key``, one row a query."""


def insight_key(entry: SchemeEntry) -> str:
    """The name of what a scheme sees inside: its kind and the rows. "" for a scheme that only compares answers."""
    part = REPRESENTATIONS.get(entry.representation)
    return f"{part.inside}/{entry.rows[0]}-{entry.rows[1]}" if part is not None and part.inside else ""


def askable(bundle: QueryBundle) -> NDArray[np.bool_]:
    """Which rows are worth an answer, (n,): not those that only serve to look inside of a model."""
    wanted = np.zeros(len(bundle.queries), np.bool_)
    for entry in bundle.manifest.schemes:
        wanted[slice(*entry.rows)] |= not insight_key(entry)
    wanted[slice(*bundle.manifest.controls)] = True
    return wanted


def look_inside(
    bundle: QueryBundle, look: Callable[[str, Queries], NDArray[np.float32] | None]
) -> dict[str, NDArray[np.float32]]:
    """What a model shows to the schemes of a bundle; nothing for what its format does not let them see."""
    found: dict[str, NDArray[np.float32]] = {}
    for key, kind, rows in _wanted(bundle):
        if key not in found and (seen := look(kind, bundle.queries[rows])) is not None:
            found[key] = seen
    return found


def _wanted(bundle: QueryBundle) -> Iterator[tuple[str, str, slice]]:
    for entry in bundle.manifest.schemes:
        if key := insight_key(entry):
            yield key, REPRESENTATIONS[entry.representation].inside, slice(*entry.rows)


def insights_of(bundle: QueryBundle, model: str) -> dict[str, NDArray[Any]]:
    """What a model in the bundle showed when it was asked."""
    prefix = f"insights/{model}/"
    return {name.removeprefix(prefix): seen for name, seen in bundle.insights.items() if name.startswith(prefix)}


def named(model: str, insights: Insights) -> dict[str, NDArray[Any]]:
    """Insights under the names that a bundle keeps them by."""
    return {f"insights/{model}/{key}": seen for key, seen in insights.items()}
