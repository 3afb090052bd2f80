"""A suspect seen through a narrower window: what an API that gives less away would have answered."""

from __future__ import annotations

from onnxaudit.answers import Access, Answers
from onnxaudit.errors import UsageError
from onnxaudit.suspect import Queries, Suspect, Wrapped


class Reduced(Wrapped):
    """Another suspect, of whose answers only ``access`` (and of top-k the best ``k``) is passed on."""

    def __init__(self, suspect: Suspect, access: Access, k: int = 1) -> None:
        super().__init__(suspect)
        self._access = access
        self._k = k

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
