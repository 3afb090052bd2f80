"""How models are opened: here, or each in a confined process of its own; and what is to be said of that afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from onnxaudit.registry import open_suspect
from onnxaudit.sandbox.limits import Limits
from onnxaudit.suspect import Suspect, Target

Opening: TypeAlias = Callable[[Target], Suspect]
"""Opens a target, as ``registry.open_suspect`` does: the result is a context manager."""


def opened_suspect(target: Target, limits: Limits | None) -> Suspect:
    """The suspect, in a sandbox where there are limits; a context manager."""
    if limits is None:
        return open_suspect(target)
    from onnxaudit.sandbox.suspect import open_confined  # few checks need it

    return open_confined(target, limits)


class Confining:
    """Opens each model in a confined process of its own; an ``Opening``."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._applied: dict[tuple[str, str], None] = {}

    def __call__(self, target: Target) -> Suspect:
        """Raises what ``open_confined`` raises."""
        suspect = opened_suspect(target, self._limits)
        facts = suspect.card.runtime
        self._applied[facts.get("sandbox", ""), facts.get("sandbox lacks", "")] = None
        return suspect

    def words(self, models: str) -> list[str]:
        """What was applied to those that could be opened, and what could not be; models: what they are called."""
        return [
            f"{models} ran confined: {done}{f'; not applied: {not_done}' if not_done else ''}" for done, not_done in self._applied
        ]
