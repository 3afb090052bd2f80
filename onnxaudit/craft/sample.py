"""What a sampler gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from onnxaudit.suspect import Queries


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Canonical queries, what the user should know of them, and parameters that were settled while sampling."""

    queries: Queries
    notes: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)


Sampler: TypeAlias = Callable[..., Sample]
"""(victim, data or None, n, rng, progress, and the scheme's parameters by name) to a sample of about n queries."""
