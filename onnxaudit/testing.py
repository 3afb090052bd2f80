"""The contract suite of adapters: what every Suspect, ours or a third party's, must do. Plain assertions, any test runner."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import cast

import numpy as np

from onnxaudit.answers import Access, Answers
from onnxaudit.errors import UsageError
from onnxaudit.suspect import Queries, Suspect, SuspectCard

TOLERANCE = 1e-4
"""How far scores may move between two ways of asking the same; float32 kernels differ with the size of a batch."""


def check_adapter(
    open_suspect: Callable[[], Suspect], queries: Queries, expected: Answers | None = None, tolerance: float = TOLERANCE
) -> None:
    """Assert that the suspects that ``open_suspect`` opens keep the contract of onnxaudit.suspect.Suspect.

    queries: at least five canonical queries that the suspect takes, (n, H, W, C) uint8 or (n, d) float32. expected: the answers
    to them, if known; compared with as much access as both have, scores within ``tolerance``. Raises AssertionError with what
    is wrong. Every suspect is closed again.
    """
    assert len(queries) >= 5, "give check_adapter at least five queries"
    with open_suspect() as suspect:
        _check_card(suspect.card)
        answers = suspect.ask(queries)
        _check_answers(answers, suspect.card, len(queries))
        if expected is not None:
            assert_same(answers, expected, tolerance, "the answers are not the expected ones")
        _check_repeats(suspect, queries, answers, tolerance)
        _check_batches(suspect, queries, answers, tolerance)
        _check_degrade(answers)
        _check_foreign_sizes(suspect, queries)
        assert_same(suspect.ask(queries), answers, tolerance, "after a refused batch the answers are others")
    suspect.close()  # a second time: must do nothing
    with open_suspect() as again:
        assert_same(again.ask(queries), answers, tolerance, "opened again, the suspect gives other answers")


def assert_same(found: Answers, expected: Answers, tolerance: float = TOLERANCE, what: str = "answers differ") -> None:
    """Assert that two sets of answers agree in as much as both tell: labels, and scores by class within ``tolerance``.

    A label may differ only where the scores of the two classes are within ``tolerance`` of each other.
    """
    assert len(found) == len(expected), f"{what}: {len(found)} answers, not {len(expected)}"
    access = min(found.access, expected.access)
    width = min(found.classes.shape[1], expected.classes.shape[1])
    one, other = found.degrade(access, width), expected.degrade(access, width)
    if one.scores is None or other.scores is None:
        assert (one.labels == other.labels).all(), f"{what}: labels differ at {np.flatnonzero(one.labels != other.labels)}"
        return
    apart = np.abs(one.scores[:, :width] - other.scores[:, :width]).max(initial=0)
    assert apart <= tolerance, f"{what}: ranked scores differ by {apart:.3g}, more than {tolerance:.3g}"
    if width > 1:
        tied = other.scores[:, 0] - other.scores[:, 1] <= 2 * tolerance
        wrong = (one.labels != other.labels) & ~tied
        assert not wrong.any(), f"{what}: labels differ at {np.flatnonzero(wrong)}"
    if one.num_classes is not None and one.num_classes == other.num_classes and access >= Access.PROBS:
        apart = np.abs(one.dense() - other.dense()).max(initial=0)
        assert apart <= tolerance, f"{what}: scores by class differ by {apart:.3g}, more than {tolerance:.3g}"


def _check_card(card: SuspectCard) -> None:
    assert card.source, "card.source is empty: say what was opened"
    assert card.kind, "card.kind is empty: say what kind of suspect it is"
    assert all(size > 0 for size in card.input.shape or (0,)), f"card.input.shape is {card.input.shape}"
    assert card.input.layout in ("NCHW", "NHWC", "NC"), f"card.input.layout is {card.input.layout!r}"
    assert card.batch is None or card.batch > 0, f"card.batch is {card.batch}"
    assert card.max_batch is None or card.max_batch > 0, f"card.max_batch is {card.max_batch}"
    assert card.sha256 is None or re.fullmatch("[0-9a-f]{64}", card.sha256), f"card.sha256 is {card.sha256!r}"
    texts = all(isinstance(part, str) for item in card.runtime.items() for part in item)
    assert texts, f"card.runtime is written into reports and must map text to text: {card.runtime}"


def _check_answers(answers: Answers, card: SuspectCard, n: int) -> None:
    assert len(answers) == n, f"{n} queries, {len(answers)} answers"
    assert answers.classes.ndim == 2, f"classes must be (n, k), not {answers.classes.shape}"
    assert answers.classes.dtype == np.int32, f"classes are {answers.classes.dtype}, not int32"
    assert answers.answered.all(), "every query must have an answer; what fails is a SuspectError"
    limit = answers.num_classes or card.num_classes
    assert limit is None or answers.classes.max() < limit, f"class {answers.classes.max()} of {limit} classes"
    assert (answers.scores is None) == (answers.access == Access.LABEL), "scores and access do not fit: labels have no scores"
    if answers.scores is None:
        assert answers.classes.shape[1] == 1, "label access is one class a query"
        return
    assert answers.scores.shape == answers.classes.shape, "scores and classes must have one shape"
    assert answers.scores.dtype == np.float32, f"scores are {answers.scores.dtype}, not float32"
    assert (np.diff(answers.scores, axis=1) <= 0).all(), "scores must be ranked, best first"
    distinct = np.sort(answers.classes, axis=1)
    assert (np.diff(distinct, axis=1) > 0).all(), "a class is named twice in one answer"
    if answers.access in (Access.TOPK, Access.PROBS):
        impossible = answers.scores.min() < 0 or answers.scores.sum(axis=1).max() > 1.05
        assert not impossible, "these scores are not probabilities"


def _check_repeats(suspect: Suspect, queries: Queries, answers: Answers, tolerance: float) -> None:
    """The same question has the same answer, and asking leaves the queries as they are, even read-only ones."""
    kept = queries.copy()
    frozen = queries.copy()
    frozen.flags.writeable = False
    assert_same(suspect.ask(frozen), answers, tolerance, "asked twice, the suspect gives other answers")
    suspect.ask(queries)
    assert (queries == kept).all(), "asking changed the queries"


def _check_batches(suspect: Suspect, queries: Queries, answers: Answers, tolerance: float) -> None:
    """An answer depends on its query alone: not on its neighbours, its place or the size of the batch."""
    n = len(queries)
    for size in (1, 2, n // 2 + 1):
        parts = [suspect.ask(queries[i : i + size]) for i in range(0, n, size)]
        assert_same(Answers.concatenate(parts), answers, tolerance, f"in batches of {size} the answers are others")
    order = np.arange(n)[::-1]
    assert_same(suspect.ask(queries[order]), answers.take(order), tolerance, "in reverse order the answers are others")


def _check_degrade(answers: Answers) -> None:
    """Less access never tells more, and its best class stays the same."""
    for access in sorted(Access, reverse=True):
        less = answers.degrade(access, 2)
        assert less.access <= min(access, answers.access), f"{access.word} was asked for, {less.access.word} came out"
        assert (less.labels == answers.labels).all(), f"with access {access.word} the labels are others"


def _check_foreign_sizes(suspect: Suspect, queries: Queries) -> None:
    """Queries of a size that cannot be fitted are the user's mistake, and said to be."""
    wider = np.concatenate([queries[:2]] * 7, axis=-1)
    deeper = [queries[:2, ..., None]] if queries.ndim == 4 else []
    for wrong in (wider, *deeper):
        try:
            suspect.ask(cast("Queries", wrong))
        except UsageError:
            continue
        raise AssertionError(f"queries of shape {wrong.shape} must raise UsageError")
