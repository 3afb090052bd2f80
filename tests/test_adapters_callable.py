"""Python functions as suspects, and every shape in which a model may answer."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxaudit.answers import Access, Answers
from onnxaudit.errors import SuspectError, UsageError
from onnxaudit.registry import open_suspect
from onnxaudit.suspect import InputSpec, SuspectCard, Target
from onnxaudit.testing import assert_same, check_adapter
from onnxaudit_adapters.callable import CallableSuspect

QUERIES = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
SPEC = InputSpec((3,), layout="NC")
EXPECTED = Answers.from_scores(QUERIES)
PROGRAM = """
import numpy as np

answer = 42

def scores(batch):
    return batch

def names(batch):
    return {"features": np.zeros((len(batch), 7)), "scores": batch}

def broken(batch):
    raise RuntimeError("out of\\ncheese")
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module in the current folder, by a name of this test's own."""
    name = f"program_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(PROGRAM)
    (tmp_path / f"{name}_bad.py").write_text("import nothing_of_this_name\n")
    (tmp_path / f"{name}_worse.py").write_text("raise ValueError('no')\n")
    monkeypatch.chdir(tmp_path)
    yield name
    for module in [module for module in sys.modules if module.startswith(name)]:
        del sys.modules[module]


def target(source: str, **options: Any) -> Target:
    return Target(source, SPEC, 3, options=options)


@pytest.mark.parametrize("function", ["scores", "names"])
def test_a_function_keeps_the_contract(here: str, function: str) -> None:
    path = list(sys.path)
    check_adapter(lambda: open_suspect(target(f"{here}:{function}")), QUERIES, EXPECTED)
    assert sys.path == path


def test_images_arrive_as_the_spec_says(here: str) -> None:
    seen: list[Any] = []

    def function(batch: Any) -> Any:
        seen.append(batch)
        return np.zeros((len(batch), 3))

    spec = InputSpec((4, 4, 3), layout="NCHW", mean=(0.5,), std=(0.5,))
    CallableSuspect(function, SuspectCard("f", "python", spec)).ask(np.full((2, 4, 4, 3), 255, np.uint8))
    assert (seen[0].shape, seen[0].dtype, seen[0].max()) == ((2, 3, 4, 4), np.float32, 1.0)
    with open_suspect(Target(f"{here}:scores", spec, shape=(8, 8, 3))) as suspect:
        assert suspect.card.input.shape == (8, 8, 3)


def test_an_exception_inside_is_the_suspects_error(here: str) -> None:
    with open_suspect(target(f"{here}:broken")) as suspect, pytest.raises(SuspectError, match="RuntimeError: out of cheese"):
        suspect.ask(QUERIES)


@pytest.mark.parametrize(
    ("source", "why"), [("{}:nothing", "no function"), ("{}:answer", "no function"), ("no_such_module:f", "no_such_module")]
)
def test_what_is_not_there_is_a_usage_error(here: str, source: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        open_suspect(target(source.format(here)))


@pytest.mark.parametrize(("end", "why"), [("_bad", "nothing_of_this_name"), ("_worse", "ValueError: no")])
def test_a_module_that_cannot_be_imported_is_a_usage_error(here: str, end: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        open_suspect(target(f"{here}{end}:f"))


def ask(function: Callable[[Any], object], num_classes: int | None = 3, n: int = 9, **options: Any) -> Answers:
    return CallableSuspect(function, SuspectCard("f", "python", SPEC, num_classes), **options).ask(QUERIES[:n])


LABELS = EXPECTED.labels


@pytest.mark.parametrize(
    "answer",
    [
        LABELS,
        LABELS.astype(np.int64)[:, None],
        LABELS.astype(np.float32),
        LABELS.tolist(),
        [str(label) for label in LABELS],
        {"label": LABELS},
        (LABELS, np.zeros((9, 50))),
    ],
)
def test_labels(answer: object) -> None:
    answers = ask(lambda _: answer)
    assert answers.access == Access.LABEL
    assert (answers.labels == LABELS).all()


@pytest.mark.parametrize(
    "answer",
    [
        QUERIES,
        QUERIES.astype(np.float64),
        QUERIES[:, :, None, None],
        QUERIES.tolist(),
        [dict(enumerate(row)) for row in QUERIES],
        [{str(key): value for key, value in enumerate(row)} for row in QUERIES],
        [{key + 1: value for key, value in reversed(list(enumerate(row)))} for row in QUERIES],
        (LABELS, QUERIES),
        {"embedding": np.zeros((9, 50)), "label": LABELS, "y": QUERIES},
        {"label": LABELS, "map": [dict(enumerate(row)) for row in QUERIES]},
    ],
)
def test_scores(answer: object) -> None:
    assert_same(ask(lambda _: answer), EXPECTED)


def test_scores_of_a_fully_quantised_model() -> None:
    rows = np.array([[3, 200, 1]] * 9, np.uint8)
    assert ask(lambda _: rows).access == Access.LOGITS


def test_one_query_may_come_back_squeezed() -> None:
    assert_same(ask(lambda batch: batch[0], n=1), EXPECTED.take(slice(0, 1)))


def test_class_names_need_an_order() -> None:
    names = np.array(["cat", "ant", "bee"])
    for answer in (names[LABELS], [dict(zip(names, row, strict=True)) for row in QUERIES]):
        with pytest.raises(SuspectError, match="class_names"):
            ask(lambda _, answer=answer: answer)  # type: ignore[misc]
        found = ask(lambda _, answer=answer: answer, class_names=("cat", "ant", "bee"))  # type: ignore[misc]
        assert (found.labels == LABELS).all()


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (np.zeros((9, 2, 5)), "array"),
        (np.zeros((8, 3)), "array"),
        (np.full((9, 3), np.nan), "NaN"),
        (np.zeros((9, 4)), "4 classes"),
        (np.full(9, 3), "class 3"),
        (np.full(9, 0.5), "array"),
        (None, "array"),
        ([[1, 2], [3]], "array"),
        ([{0: 0.1, 2: 0.2, 5: 0.7}] * 9, "not 0 to 2"),
        ([{0: 0.5, 1: 0.5}] * 9, "2 classes"),
        ([{0: 0.5, 1: 0.2, 2: 0.3}] * 8 + [{0: 0.5, 1: 0.2, 3: 0.3}], "different classes"),
        ({"a": np.zeros((9, 2, 5)), "b": None}, "no output"),
    ],
)
def test_nonsense_is_the_suspects_error(answer: object, why: str) -> None:
    with pytest.raises(SuspectError, match=why):
        ask(lambda _: answer)


def test_the_output_can_be_chosen() -> None:
    answer = {"a": QUERIES, "b": -QUERIES}
    assert_same(ask(lambda _: answer, output="b"), Answers.from_scores(-QUERIES))
    assert_same(ask(lambda _: answer), EXPECTED)
    with pytest.raises(UsageError, match="a, b"):
        ask(lambda _: answer, output="c")
    with pytest.raises(UsageError, match="output_name"):
        ask(lambda _: answer, num_classes=None)


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda batch: batch - batch.mean(axis=0), "batches"),
        (lambda batch: batch + np.random.default_rng().normal(size=batch.shape), "asked twice"),
        (lambda batch: np.multiply(batch, 2, out=batch), "asking changed|read-only|asked twice"),
    ],
)
def test_the_suite_finds_what_breaks_the_contract(function: Callable[[Any], Any], why: str) -> None:
    with pytest.raises((AssertionError, SuspectError), match=why):
        check_adapter(lambda: CallableSuspect(function, SuspectCard("f", "python", SPEC, 3)), QUERIES)
    with pytest.raises(AssertionError, match="not the expected"):
        check_adapter(
            lambda: CallableSuspect(lambda x: x, SuspectCard("f", "python", SPEC, 3)), QUERIES, Answers.from_scores(-QUERIES)
        )
