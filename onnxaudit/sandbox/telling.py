"""What a confined process tells besides answers: the suspect's card, and errors. Both sides are here: nothing is left out."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from onnxaudit.decode import canonical, decode
from onnxaudit.errors import (
    MOST,
    ArtefactError,
    Nonsense,
    OnnxauditError,
    OtherClasses,
    Stopped,
    SuspectError,
    Unreachable,
    UsageError,
)
from onnxaudit.sandbox.limits import Limits
from onnxaudit.suspect import SuspectCard, Target

MAX_CLASSES = 1_000_000
MAX_BATCH = 1 << 16
MAX_FACTS = 1 << 16
"""Of the runtime: a model may have its weights in as many files."""
LONGEST = 4096
"""Characters of a text of a card; none that is meant is longer."""
CROSSING: Mapping[str, type[OnnxauditError]] = {
    kind.__name__: kind for kind in (UsageError, ArtefactError, SuspectError, Nonsense, OtherClasses, Unreachable, Stopped)
}
"""Errors that stay what they are. The others only steer an interview (BudgetSpent, SmallerBatch): a suspect must not."""


def tell_error(error: Exception) -> dict[str, Any]:
    """An error as a message; of foreign code, which can raise anything, as a SuspectError."""
    if isinstance(error, OnnxauditError):
        kind = next((known.__name__ for known in type(error).__mro__ if CROSSING.get(known.__name__) is known), "SuspectError")
        what, hint = error.uncut
    else:
        kind, what, hint = "SuspectError", f"{type(error).__name__}: {error}", ""
    return {"error": kind, "what": what[: 2 * MOST], "hint": hint[: 2 * MOST], "memory": _lacks_memory(error)}


def raise_error(head: Mapping[str, Any], source: str, limits: Limits) -> None:
    """Raise the error that a message tells of, if it does; its text is somebody else's, and is cleaned as that of all errors."""
    if "error" not in head:
        return
    if head.get("memory") is True:
        raise SuspectError(f"the runtime of {source} needs more than {limits.memory} GiB of memory", "See --sandbox-limits.")
    kind, what, hint = (text if isinstance(text := head.get(name), str) else "" for name in ("error", "what", "hint"))
    raise CROSSING.get(kind, SuspectError)(what or f"{source} failed", hint)


def _lacks_memory(error: BaseException | None) -> bool:
    """Whether an error comes of memory that could not be had; each runtime says it in its own words."""
    words = ("bad_alloc", "failed to allocate", "can't allocate memory", "cannot allocate memory", "out of memory")
    while error is not None:
        text: Any = str(error).lower()
        if isinstance(error, MemoryError) or any(word in text for word in words):
            return True
        error = error.__cause__ or error.__context__
    return False


def tell_card(card: SuspectCard) -> dict[str, Any]:
    """Every field of a card as JSON, but for the source: that is known."""
    plain: dict[str, Any] = json.loads(canonical(card))
    del plain["source"]
    return plain


def read_card(value: object, target: Target, digest: str | None) -> SuspectCard:
    """The suspect's card as the confined process tells it. digest: the file's sha256, where there is a file.

    Raises SuspectError where it says what cannot be, or is of another file.
    """
    try:
        card = decode(SuspectCard, {**value, "source": target.source} if isinstance(value, dict) else value, "its card")
    except ArtefactError as error:
        raise SuspectError(f"the runtime of {target.source} sent nonsense from the sandbox: {error.what[:120]}") from None
    sizes = [size for size in (card.batch, card.max_batch) if size is not None]
    sound = (
        card.input.problem() is None
        and math.prod(card.input.shape) <= 1 << 28
        and all(0 < size <= MAX_BATCH for size in sizes)
        and card.num_classes in (None, target.num_classes)
        and len(card.runtime) <= MAX_FACTS
        and len(card.class_names) <= MAX_CLASSES
    )
    if not sound or (card.sha256 is not None and card.sha256 != digest):
        raise SuspectError(f"the runtime of {target.source} describes another model than the file", "Nothing was found out.")
    texts = {field.name: _clean(getattr(card, field.name)) for field in dataclasses.fields(card) if field.name != "source"}
    return dataclasses.replace(card, **texts)


def _clean(value: Any) -> Any:
    """Texts, and those in lists and maps, printable, of bounded length and on one line; all else as it is."""
    if isinstance(value, str):
        return "".join(letter if letter.isprintable() else " " for letter in value[:LONGEST])
    if isinstance(value, tuple):
        return tuple(map(_clean, value))
    if isinstance(value, Mapping):
        return {_clean(name): _clean(text) for name, text in value.items()}
    return value
