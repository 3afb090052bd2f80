"""A suspect that is wired otherwise than it was opened: images brought to its size, labels named as the victim names them."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Answers
from onnxaudit.suspect import Queries, Suspect, Wrapped
from onnxaudit.wiring.conventions import Wiring


class Rewired(Wrapped):
    """Another suspect under a wiring that it has been given already, of what it is to be asked.

    labels[j]: the victim's class that its label j means; () for the same order. sent: queries that it was sent before. What it
    has learnt by heart it answers once without asking: these queries were paid for.
    """

    def __init__(self, suspect: Suspect, wiring: Wiring, labels: tuple[int, ...], sent: int = 0) -> None:
        super().__init__(suspect)
        self._wiring, self._labels, self._sent = wiring, labels, sent
        self._known: dict[bytes, Answers] = {}
        self._lock = threading.Lock()

    @property
    def queries_sent(self) -> int:
        """The wrapped suspect's own count, else this one's; what was learnt by heart is in it once."""
        count: int = getattr(self._suspect, "queries_sent", self._sent)
        return count

    def forget(self) -> int:
        """Forget what was not needed by heart, and say how much that was: from now on everything is asked."""
        left = len(self._known)
        self._known.clear()
        return left

    def learn(self, query: Queries, answer: Answers) -> bool:
        """Keep what the wrapped suspect answered to one query under this wiring, to be given once; False if it is known."""
        key = query.tobytes()
        return key not in self._known and self._known.setdefault(key, answer) is answer

    def _ask(self, queries: Queries) -> Answers:
        known = {place: said for place, query in enumerate(queries) if (said := self._known.get(query.tobytes())) is not None}
        parts, places = list(known.values()), list(known)
        if len(known) < len(queries):
            rest = np.array([place for place in range(len(queries)) if place not in known])
            parts.append(self._suspect.ask_once(self._wiring.fitted(queries[rest])))
            places += rest.tolist()
            with self._lock:  # several requests may be on their way
                self._sent += len(rest)
        for place in known:
            self._known.pop(queries[place].tobytes(), None)
        return renamed(Answers.concatenate(parts).take(np.argsort(places)), self._labels)

    def inside(self, kind: str, queries: Queries, **parameters: Any) -> NDArray[np.floating[Any]] | None:
        """As the wrapped suspect shows it; None where its inputs or classes are not the victim's any more."""
        if self._labels or self._wiring.fit:
            return None
        return self._suspect.inside(kind, queries, **parameters)


def renamed(answers: Answers, labels: tuple[int, ...]) -> Answers:
    """The answers with every label j called labels[j], in the same ranks; -1 stays. () for the same names."""
    if not labels:
        return answers
    names = np.array([*labels, -1], np.int32)  # the last is what -1 reads
    return dataclasses.replace(answers, classes=names[answers.classes])
