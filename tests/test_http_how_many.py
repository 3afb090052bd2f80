"""How many queries a request may hold is found out by asking, and no ranking of one query is taken for labels of several."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from onnxaudit.answers import Access
from onnxaudit.asking import ask_at_once
from onnxaudit.errors import OnnxauditError
from onnxaudit.suspect import Target
from onnxaudit_adapters.http import open_http
from onnxaudit_adapters.http.dialects import OneAnswerError
from onnxaudit_adapters.http.names import ClassNames
from onnxaudit_adapters.http.reading import Reader
from tests.http_script import EXPECTED, QUERIES, SPEC, Answer, Script, Time, as_json, opened, served

NAMES = ("cat", "dog", "fish", "owl")
NUMBERS = ClassNames(discover=True)
BEST = [NUMBERS.index(NAMES[label]) for label in EXPECTED.argmax(axis=1)]
Form = Callable[[np.ndarray[Any, Any]], list[Any]]


def softmax(row: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    powers = np.exp(row - row.max())
    share: np.ndarray[Any, Any] = powers / powers.sum()
    return share


def ranked(row: np.ndarray[Any, Any], k: int) -> list[tuple[str, float]]:
    return [(NAMES[label], float(row[label])) for label in np.argsort(-row)[:k]]


def first_only(body: bytes, field: str) -> np.ndarray[Any, Any]:
    from tests.http_script import WEIGHTS

    rows = np.array(json.loads(body)[field], np.float32)
    scores: np.ndarray[Any, Any] = rows @ WEIGHTS
    return scores


def listed(pairs: list[tuple[str, float]]) -> list[dict[str, Any]]:
    return [{"label": label, "score": score} for label, score in pairs]


def columns(pairs: list[tuple[str, float]]) -> dict[str, Any]:
    return {"labels": [label for label, _ in pairs], "scores": [score for _, score in pairs]}


FORMS: dict[str, tuple[int, Callable[[Any], Any]]] = {
    "two probabilities": (2, lambda row: listed(ranked(softmax(row), 2))),
    "two logits": (2, lambda row: listed(ranked(row, 2))),
    "two logits in columns": (2, lambda row: columns(ranked(row, 2))),
    "three": (3, lambda row: listed(ranked(softmax(row), 3))),
    "four in columns": (4, lambda row: columns(ranked(softmax(row), 4))),
}


@pytest.mark.parametrize("dialect", ["plain", "invocations", "tfserving"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batch", [2, 3, 4, 16])
def test_a_ranking_of_one_query_is_never_labels_of_several(dialect: str, form: str, batch: int) -> None:
    """The server answers the first query of a request and leaves the others alone; nobody knows how many classes there are."""
    field = {"plain": "input", "invocations": "inputs", "tfserving": "instances"}[dialect]

    def answer(_: int, body: bytes) -> Answer:
        return as_json({"predictions": FORMS[form][1](first_only(body, field)[0])})

    path = "/v1/models/m" if dialect == "tfserving" else "/x"
    with served(Script(answer, {})) as url:
        target = Target(url + path, SPEC, num_classes=None, options={"dialect": dialect, "batch": batch})
        with open_http(target) as suspect:
            answers = suspect.ask(QUERIES)
            assert suspect.card.max_batch == 1
    assert answers.labels.tolist() == BEST


def test_two_labels_to_one_query_are_enough_to_know_and_cost_nothing_more() -> None:
    script = Script(lambda _, body: as_json(listed(ranked(first_only(body, "input")[0], 2))), {})
    with served(script) as url, open_http(Target(url + "/x", SPEC, options={"dialect": "plain"})) as suspect:
        assert suspect.ask(QUERIES[:5]).labels.tolist() == BEST[:5]
    assert [len(json.loads(body)["input"]) for body in script.posts] == [1] * 5


@pytest.mark.parametrize(
    "form",
    [
        lambda rows: [{"label": NAMES[row.argmax()], "score": float(softmax(row).max())} for row in rows],
        lambda rows: {"labels": [NAMES[row.argmax()] for row in rows], "scores": [float(row.max()) for row in rows]},
        lambda rows: [listed(ranked(softmax(row), 2)) for row in rows],
        lambda rows: {"label": [NAMES[row.argmax()] for row in rows]},
    ],
)
def test_an_honest_server_is_asked_several_at_once(form: Any) -> None:
    script = Script(lambda _, body: as_json(form(first_only(body, "input"))), {})
    with served(script) as url, open_http(Target(url + "/x", SPEC, options={"dialect": "plain"})) as suspect:
        assert suspect.ask(QUERIES).labels.tolist() == BEST
    assert [len(json.loads(body)["input"]) for body in script.posts] == [1, 2, 16, 1]


def test_the_best_two_classes_of_one_query_by_number_are_no_labels_of_two() -> None:
    """Nothing in such a reply says that it is a ranking: what may hold it has to be declared, and nothing is guessed."""

    def answer(_: int, body: bytes) -> Answer:
        return as_json({"classes": np.argsort(-first_only(body, "input")[0])[:2].tolist()})

    script = Script(answer, {})
    with served(script) as url, opened(url + "/x", dialect="plain") as suspect, pytest.raises(OnnxauditError) as caught:
        suspect.ask(QUERIES)
    assert "2 answers to 1 query" in str(caught.value)
    assert "--target" in caught.value.hint
    assert len(script.posts) == 1


@pytest.mark.parametrize(
    "refusal", [(500, {}, b"boom"), (503, {}, b""), (400, {}, b"shape"), (422, {}, b""), (413, {}, b""), (0, {}, b"")]
)
def test_a_server_that_fails_on_two_is_asked_one_by_one_and_two_are_tried_once(refusal: Answer) -> None:
    def answer(_: int, body: bytes) -> Answer:
        rows = first_only(body, "input")
        return as_json({"output": rows.tolist()}) if len(rows) == 1 else refusal

    time = Time()
    script = Script(answer, {})
    with served(script) as url, opened(url + "/x", time, dialect="plain") as suspect:
        answers = suspect.ask(QUERIES)
        assert suspect.queries_sent == len(QUERIES) + 2
    np.testing.assert_array_equal(answers.dense(), EXPECTED)
    assert answers.access == Access.LOGITS
    assert time.slept == []


@pytest.mark.parametrize("refusal", [(401, {}, b"who"), (403, {}, b"no"), (302, {"Location": "/y"}, b""), (404, {}, b"gone")])
def test_what_does_not_speak_of_their_number_still_stops(refusal: Answer) -> None:
    script = Script(lambda n, body: as_json({"output": first_only(body, "input").tolist()}) if n == 1 else refusal, {})
    with served(script) as url, opened(url + "/x", dialect="plain") as suspect, pytest.raises(OnnxauditError):
        suspect.ask(QUERIES)
    assert len(script.posts) == 2


def test_a_server_that_is_busy_at_that_moment_is_waited_for() -> None:
    script = Script(lambda n, body: (429, {}, b"") if n == 2 else as_json({"output": first_only(body, "input").tolist()}), {})
    with served(script) as url, opened(url + "/x", dialect="plain") as suspect:
        suspect.ask(QUERIES)
    assert [len(json.loads(body)["input"]) for body in script.posts] == [1, 2, 2, 16, 1]


def test_of_several_lanes_one_finds_it_out() -> None:
    def answer(_: int, body: bytes) -> Answer:
        rows = first_only(body, "input")
        return as_json({"output": rows.tolist()}) if len(rows) == 1 else (500, {}, b"one at a time")

    script, kept = Script(answer, {}), []
    with served(script) as url, opened(url + "/x", dialect="plain", concurrency=6) as suspect:
        ask_at_once(suspect, QUERIES, np.arange(20), 6, lambda rows, a, _: kept.append((rows, a)), None, proven=False)
    assert sorted(len(json.loads(body)["input"]) for body in script.posts) == [1] * 20 + [2]
    assert np.concatenate([rows for rows, _ in kept]).tolist() == list(range(20))
    np.testing.assert_array_equal(np.concatenate([a.dense() for _, a in kept]), EXPECTED)


def ranking(*pairs: tuple[str, float]) -> object:
    return listed(list(pairs))


TWO, THREE = ("cat", "dog"), ("cat", "dog", "fish")


@pytest.mark.parametrize(
    ("names", "document"),
    [
        (TWO, ranking(("cat", 0.9), ("dog", 0.1))),
        (TWO, ranking(("dog", 0.505), ("cat", 0.495))),
        (TWO, ranking(("1", 0.9), ("0", 0.1))),
        (TWO, {"predictions": {"labels": ["cat", "dog"], "scores": [0.9, 0.1]}}),
        (TWO, {"labels": ["cat", "dog"], "scores": [0.9, 0.1]}),
        (THREE, ranking(("fish", 0.5), ("cat", 0.3), ("dog", 0.2))),
    ],
)
@pytest.mark.parametrize("counted", [True, False])
def test_one_ranking_of_all_classes_is_no_label_of_each_of_as_many_queries(
    names: tuple[str, ...], document: object, counted: bool
) -> None:
    reader = Reader(None, len(names) if counted else None, ClassNames(names))
    with pytest.raises(OneAnswerError):
        reader.answers(document, len(names))
    assert reader.answers(document, 1).classes.shape == (1, len(names))


@pytest.mark.parametrize(
    "document",
    [
        ranking(("cat", 0.9), ("dog", 0.8)),
        ranking(("cat", 0.51), ("dog", 0.51)),  # the best of two classes has half or more: these are two best ones
        ranking(("cat", 0.6), ("cat", 0.4)),
        {"labels": ["cat", "dog"], "scores": [0.9, 0.8]},
    ],
)
def test_the_best_label_of_each_query_is_still_one(document: object) -> None:
    answers = Reader(None, 2, ClassNames(TWO)).answers(document, 2)
    assert len(answers) == 2
    assert answers.labels[0] == 0
