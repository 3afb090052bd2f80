"""Suspects around suspects: whatever is told to the outer one reaches the inner one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from onnxaudit.answers import Access, Answers
from onnxaudit.audit.rewired import Rewired
from onnxaudit.errors import BudgetSpent
from onnxaudit.registry import deployed_as, open_suspect, reduce_access
from onnxaudit.suspect import InputSpec, Queries, Suspect, SuspectCard, Target, Wrapped
from onnxaudit.wiring.conventions import Wiring
from tests.http_script import PATH, Script, scores, served
from tests.http_script import SPEC as VECTORS

SPEC = InputSpec((1, 3, 1))
IMAGES = np.arange(24, dtype=np.uint8).reshape(8, 1, 3, 1)
TOLD = [
    name
    for name, member in vars(Suspect).items()
    if callable(member) and not name.startswith("_") and not getattr(member, "__final__", False) and name != "inside"
]
"""All that a suspect can be told; what it shows of its inside is each wrapper's own matter."""


class Plain(Wrapped):
    """Changes nothing."""

    def _ask(self, queries: Queries) -> Answers:
        return self._suspect.ask_once(queries)


WRAPPERS: dict[str, Callable[[Suspect], Suspect]] = {
    "plain": Plain,
    "reduced": lambda suspect: reduce_access(suspect, Access.LABEL, 1),
    "deployed": lambda suspect: deployed_as(suspect, ["flip"]),
    "rewired": lambda suspect: Rewired(suspect, Wiring(SPEC), ()),
    "all": lambda suspect: Rewired(reduce_access(deployed_as(suspect, ["flip"]), Access.LABEL, 1), Wiring(SPEC), ()),
}


class Listening(Suspect):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.card = SuspectCard("listening", "test", SPEC, 4, max_batch=3)
        self.told: list[tuple[str, tuple[Any, ...]]] = []

    def _ask(self, queries: Queries) -> Answers:
        return Answers.from_scores(np.tile(np.arange(4.0), (len(queries), 1)))


def _listen(name: str) -> Callable[..., None]:
    return lambda self, *given: self.told.append((name, given))


for _name in TOLD:
    setattr(Listening, _name, _listen(_name))


def test_there_is_something_to_be_told() -> None:
    assert set(TOLD) >= {"rewire", "close", "stop", "spent", "tell_lost", "lose"}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", TOLD)
def test_what_a_suspect_is_told_reaches_the_one_that_it_wraps(name: str, wrapper: str) -> None:
    inner, notes = Listening(), list[int]()
    count = len(inspect.signature(getattr(Suspect, name)).parameters) - 1
    given = [notes.append if name == "tell_lost" else 7] * count
    getattr(WRAPPERS[wrapper](inner), name)(*given)
    ((called, passed),) = inner.told
    assert called == name
    if name == "tell_lost":
        passed[0](7)
        assert notes == [7]
    else:
        assert list(passed) == given


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_the_card_and_the_count_are_those_of_the_wrapped_suspect_as_they_are_now(wrapper: str) -> None:
    inner = Listening()
    outer = WRAPPERS[wrapper](inner)
    assert (getattr(outer, "queries_sent", None) or None) is None
    inner.card, inner.queries_sent = SuspectCard("other", "test", SPEC, 4, max_batch=2), 5  # type: ignore[attr-defined]
    assert (outer.card.source, outer.card.max_batch, getattr(outer, "queries_sent", None)) == ("other", 2, 5)


def test_where_a_server_makes_copies_they_count_as_one_query() -> None:
    """Of an endpoint with a budget of 12: 2 queries were sent before, as 3 copies each, so 2 more are left."""
    with served(Script(lambda _number, body: scores(body))) as origin:
        target = Target(origin + PATH, VECTORS, 4, options={"budget": 12, "batch": 12})
        with deployed_as(open_suspect(target), ["smooth:copies=3,sigma=0"]) as suspect:
            lost: list[int] = []
            suspect.tell_lost(lost.append)
            suspect.spent(2)
            assert len(suspect.ask(IMAGES[:2])) == 2
            assert getattr(suspect, "queries_sent", None) == 2  # of this run
            suspect.lose(1)
            assert lost[-1] == 1
            with pytest.raises(BudgetSpent):
                suspect.ask(IMAGES[2:3])
