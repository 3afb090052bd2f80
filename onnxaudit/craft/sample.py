"""What a sampler gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from onnxaudit.craft.data import Data
from onnxaudit.craft.victim import Victim
from onnxaudit.suspect import Queries


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Canonical queries, what the user should know of them, and parameters that were settled while sampling."""

    queries: Queries
    notes: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)


class Sampler(Protocol):
    """Draws about n queries; ``progress`` is called with the number done. Keyword parameters are the scheme's."""

    def __call__(
        self,
        victim: Victim,
        data: Data | None,
        n: int,
        rng: np.random.Generator,
        progress: Callable[[int], None],
        /,
        **parameters: Any,
    ) -> Sample: ...
