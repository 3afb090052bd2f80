"""How use cases tell what they are doing, without printing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Progress(Protocol):
    """What a use case reports to; the command line shows it on stderr."""

    def task(self, words: str, total: int) -> Callable[[int], None]:
        """Begin a step of ``total`` units; the result is called with the number done so far."""

    def note(self, words: str) -> None:
        """Something the user should know."""


class Silent:
    """Progress that nobody watches. notes: what was said."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def task(self, words: str, total: int) -> Callable[[int], None]:  # noqa: ARG002 - the protocol's signature
        """Nothing to show."""
        return lambda done: None  # noqa: ARG005

    def note(self, words: str) -> None:
        """Keep it."""
        self.notes.append(words)
