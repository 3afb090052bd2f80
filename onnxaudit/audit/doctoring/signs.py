"""What an examination found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

SCHEMA = "onnxaudit.doctor/1"
State: TypeAlias = Literal["ok", "absent", "warning", "broken"]
"""absent: not there, and only needed by some; warning: there, but wants attention; broken: keeps check from working."""


@dataclass(frozen=True, slots=True)
class Sign:
    """One thing that was looked at. part: the heading it belongs under; advice: what to do about it, "" if nothing."""

    part: str
    name: str
    state: State
    found: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Examination:
    """All that was looked at, in the order of looking. full: slow things too."""

    signs: tuple[Sign, ...]
    full: bool = False

    @property
    def works(self) -> bool:
        """Whether check can work on ``.onnx`` files."""
        return all(sign.state != "broken" for sign in self.signs)

    def as_json(self) -> Mapping[str, Any]:
        """The document of ``onnxaudit doctor --json``."""
        return {"schema": SCHEMA, "works": self.works, "full": self.full, "signs": [asdict(sign) for sign in self.signs]}


def one_line(error: BaseException) -> str:
    """An error's type and message, of bounded length."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return text if len(text) <= 160 else f"{text[:160]} …"
