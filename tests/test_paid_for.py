"""What was paid for is not lost, not mixed with another suspect's, and never more than the budget."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from onnxaudit.audit.checking import REPEATS, CheckOptions, check
from onnxaudit.audit.progress import Silent
from onnxaudit.audit.running import target_digest
from onnxaudit.errors import BudgetSpent, SuspectError, UsageError
from onnxaudit.suspect import Target
from onnxaudit_adapters.http import open_http
from onnxaudit_adapters.http.names import ClassNames
from tests.bundles import QUERIES, Recorded
from tests.http_script import PATH, Script, scores, served
from tests.http_script import QUERIES as ROWS
from tests.http_script import SPEC as VECTORS
from tests.simulated import BUNDLE, INNOCENT, VICTIM, checked


@pytest.mark.parametrize("resume", [False, True])
def test_early_answers_of_a_run_that_is_not_gone_on_with_are_not_taken(tmp_path: Path, resume: bool) -> None:
    """They may be another suspect's, which stood behind the same address before."""
    path = tmp_path / "e.jsonl"
    path.with_name("e.jsonl.early").write_text('{"rows":[1]}\n')
    suspect = Recorded(BUNDLE, INNOCENT, batch=10)
    with pytest.raises(UsageError, match="answers of an earlier run"):
        check(BUNDLE, suspect, CheckOptions(evidence=path, resume=resume), Silent())
    assert suspect.rows == []
    assert not path.exists()


def test_repeats_that_were_answered_are_kept_where_the_suspect_fails_among_them(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    suspect = Recorded(BUNDLE, VICTIM, batch=1, fails_after=QUERIES + 3, failure=SuspectError)
    report = check(BUNDLE, suspect, CheckOptions(evidence=path, repeat=REPEATS), Silent())
    again = [line for line in map(json.loads, path.read_text().splitlines()) if "again" in line]
    assert len(again) == 3
    assert report.finding == checked(VICTIM).finding == "derived"


def test_the_budget_holds_over_what_an_earlier_run_sent() -> None:
    script = Script(lambda _, body: scores(body))
    with served(script) as origin:
        target = Target(origin + PATH, VECTORS, 4, options={"budget": 10, "batch": 4})
        with open_http(target) as suspect:
            suspect.spent(4)
            assert len(suspect.ask(ROWS[:4])) == 4
            with pytest.raises(BudgetSpent, match="8 of the 10 queries"):
                suspect.ask(ROWS[4:8])
    assert len(script.posts) == 1


def test_another_list_of_labels_or_another_input_is_another_suspect() -> None:
    """Else answers that were read by a wrong list are mixed with those read by the right one."""
    given: list[dict[str, Any]] = [{}, {"labels": ("a", "b")}, {"labels": ("b", "a")}, {"input_name": "x"}]
    assert len({target_digest(BUNDLE, "http://h/p", http) for http in given}) == 4


def test_names_have_the_same_number_in_every_run() -> None:
    first, second = ClassNames(discover=True), ClassNames(discover=True)
    assert [first.index(word) for word in ("cat", "dog", "cat")] == [second.index(word) for word in ("cat", "dog", "cat")]
    assert second.index("dog") == first.index("dog") != first.index("cat")
