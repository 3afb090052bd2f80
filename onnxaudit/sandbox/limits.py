"""What a confined process may use, and how that is said in reports. Standard library only: the child reads it before all else."""

from __future__ import annotations

from dataclasses import dataclass

from onnxaudit.errors import UsageError

MOST = 1 << 20
"""No limit may be larger, in the unit that it is given in."""


@dataclass(frozen=True, slots=True)
class Limits:
    """memory: GiB; cpu: seconds of all cores together; wall: seconds that the suspect may be waited for, all in all."""

    memory: int = 8
    cpu: int = 3600
    wall: int = 600

    @property
    def bytes(self) -> int:
        """The memory limit in bytes."""
        return self.memory << 30


def parse_limits(text: str | None) -> Limits:
    """Limits from ``memory=8,cpu=3600,wall=600``; what is left out keeps its default. Raises UsageError for anything else."""
    given: dict[str, int] = {}
    for part in text.split(",") if text else ():
        name, _, value = part.strip().partition("=")
        if name not in ("memory", "cpu", "wall") or name in given or not (value.isascii() and value.isdecimal() and value):
            raise UsageError(f"--sandbox-limits {part!r} is not known", "For example memory=8,cpu=3600,wall=600 (GiB, s, s).")
        given[name] = int(value[:20])
        if not 0 < given[name] <= MOST:
            raise UsageError(f"--sandbox-limits {part!r} must lie between 1 and {MOST}")
    return Limits(**given)
