"""A suspect that gives less away: what passes, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxaudit.answers import Access, Answers
from onnxaudit.errors import UsageError
from onnxaudit.suspect import InputSpec, Queries, Suspect, SuspectCard
from onnxaudit.testing import assert_same, check_adapter
from onnxaudit_adapters.access import Reduced
from onnxaudit_adapters.callable import CallableSuspect

QUERIES = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
CARD = SuspectCard("f", "python", InputSpec((4,), layout="NC"), 4, max_batch=4)


def softmax(rows: Any) -> Any:
    shifted = np.exp(rows - rows.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


LOGITS = CallableSuspect(lambda batch: batch, CARD)
PROBS = CallableSuspect(softmax, CARD)
LABELS = CallableSuspect(lambda batch: batch.argmax(axis=1), CARD)


@pytest.mark.parametrize("inner", [LOGITS, PROBS])
@pytest.mark.parametrize(
    ("access", "k"), [(Access.LABEL, 1), (Access.TOPK, 1), (Access.TOPK, 3), (Access.TOPK, 9), (Access.PROBS, 1)]
)
def test_less_is_passed_on(inner: Suspect, access: Access, k: int) -> None:
    expected = Answers.from_scores(softmax(QUERIES)).degrade(access, k)
    check_adapter(lambda: Reduced(inner, access, k), QUERIES, expected)
    answers = Reduced(inner, access, k).ask(QUERIES)
    assert answers.access == access
    assert answers.classes.shape[1] == expected.classes.shape[1]


def test_all_of_it_is_passed_on() -> None:
    answers = Reduced(LOGITS, Access.LOGITS).ask(QUERIES)
    assert answers.access == Access.LOGITS
    assert_same(answers, Answers.from_scores(QUERIES))


@pytest.mark.parametrize(
    ("inner", "access", "k", "gives"),
    [
        (PROBS, Access.LOGITS, 1, "gives probs only"),
        (LABELS, Access.PROBS, 1, "gives label only"),
        (LABELS, Access.TOPK, 2, "--access topk:2: f gives label only"),
        (Reduced(PROBS, Access.TOPK, 2), Access.TOPK, 3, "gives topk:2 only"),
        (Reduced(PROBS, Access.TOPK, 2), Access.PROBS, 1, "gives topk:2 only"),
    ],
)
def test_more_than_there_is_is_refused(inner: Suspect, access: Access, k: int, gives: str) -> None:
    with pytest.raises(UsageError, match=gives):
        Reduced(inner, access, k).ask(QUERIES)


class Counting(Suspect):
    """A suspect that counts its queries, and whether it is open."""

    def __init__(self) -> None:
        self.card = CARD
        self.queries_sent = 0
        self.open = True

    def _ask(self, queries: Queries) -> Answers:
        self.queries_sent += len(queries)
        return Answers.from_scores(queries)

    def close(self) -> None:
        self.open = False


def test_what_it_wraps_is_counted_and_closed() -> None:
    inner = Counting()
    with Reduced(inner, Access.LABEL) as reduced:
        reduced.ask(QUERIES)
        assert reduced.queries_sent == inner.queries_sent == len(QUERIES)
        assert reduced.card == inner.card
    assert not inner.open
    assert not hasattr(Reduced(LOGITS, Access.LABEL), "queries_sent")
