"""A suspect seen through a narrower window: what an API that gives less away would have answered."""

from __future__ import annotations

from collections.abc import Callable

from onnxaudit.answers import Access, Answers
from onnxaudit.errors import UsageError
from onnxaudit.suspect import InputSpec, Queries, Suspect, SuspectCard


class Reduced(Suspect):
    """Another suspect, of whose answers only ``access`` (and of top-k the best ``k``) is passed on; closes what it wraps."""

    def __init__(self, suspect: Suspect, access: Access, k: int = 1) -> None:
        self._suspect = suspect
        self._access = access
        self._k = k

    @property
    def card(self) -> SuspectCard:  # type: ignore[override]  # an HTTP suspect's largest batch shrinks as it is asked
        """The wrapped suspect's card, as it is now."""
        return self._suspect.card

    @property
    def queries_sent(self) -> int:
        """The wrapped suspect's own count. AttributeError, and so absent, where it keeps none."""
        count: int = self._suspect.queries_sent  # type: ignore[attr-defined]
        return count

    def _ask(self, queries: Queries) -> Answers:
        """The narrowed answers to one batch. Raises UsageError if the suspect gives less than is to be passed on."""
        answers = self._suspect.ask_once(queries)  # one batch of the suspect is one of this, so what was answered can be kept
        given = answers.classes.shape[1]
        short = self._access == answers.access == Access.TOPK and given < self._k != answers.num_classes
        if answers.access < self._access or short:
            self.lose(len(queries))
            gives = f"topk:{given}" if answers.access == Access.TOPK else answers.access.word
            asked = f"topk:{self._k}" if self._access == Access.TOPK else self._access.word
            raise UsageError(f"--access {asked}: {self.card.source} gives {gives} only", f"Use --access {gives} or less.")
        return answers.degrade(self._access, self._k)

    def stop(self) -> None:
        """Stop the wrapped suspect."""
        self._suspect.stop()

    def spent(self, queries: int) -> None:
        """As of the wrapped suspect."""
        self._suspect.spent(queries)

    def tell_lost(self, note: Callable[[int], None]) -> None:
        """As of the wrapped suspect."""
        self._suspect.tell_lost(note)

    def lose(self, queries: int) -> None:
        """As of the wrapped suspect."""
        self._suspect.lose(queries)

    def rewire(self, spec: InputSpec) -> None:
        """Have the wrapped suspect encode queries so."""
        self._suspect.rewire(spec)

    def close(self) -> None:
        """Close the wrapped suspect."""
        self._suspect.close()
