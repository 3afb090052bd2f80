"""The part of JSONPath that says where an answer is: ``$``, ``.name``, ``['name']``, ``[i]`` and ``[*]``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from onnxaudit.errors import UsageError
from onnxaudit_adapters.http.strict_json import ReplyError

Step: TypeAlias = str | int | None
"""A name, a place in a list, or None for all of a list."""

_STEP = re.compile(r"""\.(?P<name>[^\s.\[\]'"*$@?()]+)|\['(?P<quoted>[^']*)'\]|\[(?P<place>-?\d{1,6})\]|\[(?P<all>\*)\]""")


@dataclass(frozen=True, slots=True)
class JsonPath:
    """A path as it was written, and its steps."""

    text: str
    steps: tuple[Step, ...]

    @classmethod
    def read(cls, text: str, where: str) -> JsonPath:
        """The path in a text; a bare name is that field. where: for the error. Raises UsageError outside the subset."""
        written = text if text.startswith(("$", ".", "[")) else f".{text}"
        rest = written.removeprefix("$")
        steps: list[Step] = []
        while rest:
            match = _STEP.match(rest)
            if match is None:
                raise UsageError(
                    f"{where}: the path {text[:80]!r} cannot be read from {rest[:20]!r} on",
                    "Known are $, .name, ['name'], [0] and [*].",
                )
            name = match["name"] if match["name"] is not None else match["quoted"]
            steps.append(name if name is not None else int(match["place"]) if match["place"] else None)
            rest = rest[match.end() :]
        return cls(text, tuple(steps))

    @property
    def many(self) -> bool:
        """Whether the path leads to a list of values."""
        return None in self.steps

    def find(self, document: object) -> Any:
        """The value in a document, or the list of values. Raises ReplyError where the document has none there."""
        found = [document]
        for number, step in enumerate(self.steps):
            found = [value for parent in found for value in self._follow(parent, step, self.steps[:number])]
        return found if self.many else found[0]

    def _follow(self, parent: Any, step: Step, before: Sequence[Step]) -> list[Any]:
        if isinstance(step, str) and isinstance(parent, dict) and step in parent:
            return [parent[step]]
        if isinstance(step, int) and isinstance(parent, list) and -len(parent) <= step < len(parent):
            return [parent[step]]
        if step is None and isinstance(parent, list):
            return parent
        has = (
            "fields " + ", ".join(f"'{name}'" for name in list(parent)[:8]) if isinstance(parent, dict) else type(parent).__name__
        )
        raise ReplyError(f"the reply has nothing at {self.text}: after {len(before)} steps it has {has}")
