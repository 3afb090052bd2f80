"""Answers: ranking with ties, what less access leaves, dense rows, and joining batches of one suspect."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from onnxaudit.answers import Access, Answers, parse_access
from onnxaudit.errors import UsageError

ROWS = np.array([[0.1, 2.0, 2.0, -1.0], [3.0, 3.0, 3.0, 3.0], [-5.0, -6.0, 0.0, -0.0]], np.float32)


def softmax(rows: NDArray[Any]) -> NDArray[np.float64]:
    shifted = np.exp(rows.astype(np.float64) - rows.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


# few distinct values, so that ties are common
coarse = arrays(
    np.float32, st.tuples(st.integers(1, 6), st.integers(2, 7)), elements=st.sampled_from([-3.0, -0.5, 0.0, 0.25, 4.0])
)
steps = st.lists(st.tuples(st.sampled_from(list(Access)), st.integers(1, 8)), max_size=4)


def test_ranking_puts_ties_in_the_order_of_classes() -> None:
    answers = Answers.from_scores(ROWS)
    assert answers.classes.tolist() == [[1, 2, 0, 3], [0, 1, 2, 3], [2, 3, 0, 1]]
    assert answers.classes.dtype == np.int32
    assert answers.scores is not None
    assert answers.scores.dtype == np.float32
    assert answers.scores[0].tolist() == pytest.approx([2.0, 2.0, 0.1, -1.0])
    assert (answers.access, answers.num_classes, len(answers)) == (Access.LOGITS, 4, 3)


@given(coarse)
def test_ranking_keeps_every_score(rows: NDArray[np.float32]) -> None:
    answers = Answers.from_scores(rows)
    assert answers.scores is not None
    assert (np.diff(answers.scores, axis=1) <= 0).all()
    assert (np.sort(answers.classes, axis=1) == np.arange(rows.shape[1])).all()
    assert np.array_equal(answers.dense(), rows)


@given(coarse, steps)
def test_the_label_is_the_first_best_class_whatever_was_taken_away_before(
    rows: NDArray[np.float32], path: list[tuple[Access, int]]
) -> None:
    answers = Answers.from_scores(rows)
    for access, k in path:
        less = answers.degrade(access, k)
        assert less.access <= min(access, answers.access)
        assert less.classes.shape[1] <= answers.classes.shape[1]
        answers = less
    label = answers.degrade(Access.LABEL)
    assert label.scores is None
    assert label.classes.shape == (len(rows), 1)
    assert label.num_classes == rows.shape[1]
    assert np.array_equal(label.labels, rows.argmax(axis=1))


def test_logits_become_probabilities_by_softmax() -> None:
    probs = Answers.from_scores(ROWS).degrade(Access.PROBS)
    assert probs.access == Access.PROBS
    assert np.allclose(probs.dense(), softmax(ROWS), atol=1e-7)


def test_softmax_of_huge_logits_does_not_overflow() -> None:
    rows = np.array([[3e38, -3e38, 0], [1e4, 1e4, -1e4]], np.float32)
    assert Answers.from_scores(rows).degrade(Access.PROBS).dense().tolist() == [[1, 0, 0], [0.5, 0.5, 0]]


def test_topk_cuts_probabilities_and_never_adds() -> None:
    top = Answers.from_scores(ROWS).degrade(Access.TOPK, 2)
    assert top.access == Access.TOPK
    assert top.scores is not None
    assert np.allclose(top.scores, -np.sort(-softmax(ROWS), axis=1)[:, :2])
    assert top.degrade(Access.TOPK, 4).classes.shape == (3, 2)
    assert top.degrade(Access.LOGITS) is top
    assert top.degrade(Access.TOPK, 1).classes.tolist() == [[1], [0], [2]]


def test_labels_cannot_be_made_into_more() -> None:
    labels = Answers.from_labels([2, 0], 3)
    for access in Access:
        again = labels.degrade(access, 3)
        assert (again.access, again.scores) == (Access.LABEL, None)
        assert again.classes.tolist() == [[2], [0]]


@pytest.mark.parametrize(
    ("rows", "access"),
    [
        ([[0.25, 0.75], [1.0, 0.0]], Access.PROBS),
        ([[0.26, 0.76], [1.0, 0.0]], Access.PROBS),  # an 8-bit softmax is this far off
        ([[0.25, 0.70], [1.0, 0.0]], Access.LOGITS),
        ([[1.25, -0.25]], Access.LOGITS),
    ],
)
def test_probabilities_are_recognised(rows: list[list[float]], access: Access) -> None:
    assert Answers.from_scores(rows).access == access


def test_dense_labels_are_one_hot() -> None:
    assert Answers.from_labels([2, 0], 3).dense().tolist() == [[0, 0, 1], [1, 0, 0]]


def test_dense_topk_spreads_the_missing_mass_evenly() -> None:
    classes, scores = np.array([[3, 0], [1, 2]], np.int32), np.array([[0.5, 0.2], [0.7, 0.3]], np.float32)
    dense = Answers(classes, scores, Access.TOPK, 5).dense()
    assert np.allclose(dense, [[0.2, 0.1, 0.1, 0.5, 0.1], [0, 0.7, 0.3, 0, 0]])


def test_dense_topk_of_all_classes_adds_nothing_and_rounded_mass_above_one_is_not_negative() -> None:
    full = Answers(np.array([[1, 0]], np.int32), np.array([[0.6, 0.3]], np.float32), Access.TOPK, 2)
    assert np.allclose(full.dense(), [[0.3, 0.6]])
    over = Answers(np.array([[1, 0]], np.int32), np.array([[0.7, 0.31]], np.float32), Access.TOPK, 4)
    assert np.allclose(over.dense(), [[0.31, 0.7, 0, 0]])


@given(coarse, st.integers(1, 7))
def test_dense_topk_keeps_mass_and_ranking(rows: NDArray[np.float32], k: int) -> None:
    dense = Answers.from_scores(rows).degrade(Access.TOPK, k).dense()
    assert np.allclose(dense.sum(axis=1), 1, atol=1e-5)
    assert np.array_equal(dense[np.arange(len(rows)), rows.argmax(axis=1)], dense.max(axis=1))


def test_dense_needs_the_number_of_classes() -> None:
    with pytest.raises(ValueError, match="number of classes"):
        Answers.from_labels([1], None).dense()


def unanswered(access: Access) -> Answers:
    """Row 1 has no answer, as after a spent budget."""
    answers = Answers.from_scores(ROWS, Access.LOGITS).degrade(access, 2)
    classes = answers.classes.copy()
    classes[1] = -1
    if answers.scores is None:
        return Answers(classes, None, answers.access, 4)
    scores = answers.scores.copy()
    scores[1] = np.nan
    return Answers(classes, scores, answers.access, 4)


@pytest.mark.parametrize("access", list(Access))
def test_rows_without_an_answer_stay_without_one(access: Access) -> None:
    answers = unanswered(access)
    full = Answers.from_scores(ROWS, Access.LOGITS).degrade(access, 2)
    assert answers.answered.tolist() == [True, False, True]
    assert np.isnan(answers.dense()[1]).all()
    assert np.array_equal(answers.dense()[[0, 2]], full.dense()[[0, 2]])
    for less in Access:
        cut = answers.degrade(less, 2)
        assert cut.answered.tolist() == [True, False, True]
        assert cut.labels.tolist() == [1, -1, 2]


def test_take_by_rows_and_by_slice() -> None:
    answers = Answers.from_scores(ROWS)
    picked = answers.take(np.array([2, 0]))
    assert np.array_equal(picked.dense(), ROWS[[2, 0]])
    assert picked.access == Access.LOGITS
    assert np.array_equal(answers.take(slice(1, 3)).dense(), ROWS[1:])
    assert answers.degrade(Access.LABEL).take(np.array([1, 1])).classes.tolist() == [[0], [0]]
    assert len(answers.take(slice(0, 0))) == 0


def test_concatenated_batches_of_one_kind_are_the_whole() -> None:
    for access in Access:
        whole = Answers.from_scores(ROWS, Access.LOGITS).degrade(access, 2)
        joined = Answers.concatenate([whole.take(slice(0, 1)), whole.take(slice(1, 3))])
        assert joined.access == access
        assert np.array_equal(joined.dense(), whole.dense())
        assert joined.num_classes == 4


def test_a_batch_that_happens_to_look_like_probabilities_stays_as_it_was_answered() -> None:
    """A logits model may answer one batch with rows that sum to one; softmax of the others alone would mix two scales."""
    first, second = Answers.from_scores([[0.25, 0.75]]), Answers.from_scores([[-4.0, 9.0]])
    assert (first.access, second.access) == (Access.PROBS, Access.LOGITS)
    for parts in ([first, second], [second, first]):
        joined = Answers.concatenate(parts)
        assert joined.access == Access.LOGITS
        assert np.allclose(joined.dense(), np.concatenate([part.dense() for part in parts]))


def test_concatenation_gives_no_more_than_the_poorest_batch() -> None:
    logits = Answers.from_scores(ROWS)
    top3, top2 = logits.degrade(Access.TOPK, 3), logits.degrade(Access.TOPK, 2)
    joined = Answers.concatenate([logits, top3, top2])
    assert (joined.access, joined.classes.shape) == (Access.TOPK, (9, 2))
    assert joined.scores is not None
    assert np.allclose(joined.scores, np.tile(-np.sort(-softmax(ROWS), axis=1)[:, :2], (3, 1)))
    labels = Answers.concatenate([logits, logits.degrade(Access.LABEL)])
    assert (labels.access, labels.scores) == (Access.LABEL, None)
    assert labels.labels.tolist() == [1, 0, 2, 1, 0, 2]


def test_concatenation_keeps_the_number_of_classes_that_any_batch_knows() -> None:
    known, unknown = Answers.from_labels([1], 3), Answers.from_labels([0], None)
    assert Answers.concatenate([unknown, known]).num_classes == 3
    assert Answers.concatenate([unknown, unknown]).num_classes is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("label", (Access.LABEL, 1)),
        ("topk:3", (Access.TOPK, 3)),
        ("probs", (Access.PROBS, 1)),
        ("logits", (Access.LOGITS, 1)),
    ],
)
def test_access_words(text: str, expected: tuple[Access, int]) -> None:
    assert parse_access(text) == expected
    assert expected[0].word == text.partition(":")[0]


@pytest.mark.parametrize("text", ["", "topk", "topk:", "topk:0", "topk:-1", "topk:x", "label:2", "LABEL", "scores"])
def test_other_access_words_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="Use label, topk:K"):
        parse_access(text)
