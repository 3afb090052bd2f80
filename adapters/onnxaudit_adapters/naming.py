"""What a model file calls its classes, where an exporter wrote it into the metadata."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping

KEYS = ("names", "class_names", "classes", "labels", "id2label")
"""Of the metadata, as exporters name them."""
LONGEST = 1 << 20
"""Characters of such a text that are read."""


def named_in(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The class names in their order: a list, or a map from number to name, as JSON or as Python writes it; () for none."""
    for key in KEYS:
        text = metadata.get(key, "")
        names = _names(_parsed(text)) if 0 < len(text) <= LONGEST else ()
        if names:
            return names
    return ()


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text)  # literals only: nothing is run
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _names(value: object) -> tuple[str, ...]:
    if isinstance(value, dict):
        known = {str(number): name for number, name in value.items()}
        value = [known.get(str(number)) for number in range(len(known))]
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) and name for name in value):
        return ()
    return tuple(value) if len(set(value)) == len(value) else ()
