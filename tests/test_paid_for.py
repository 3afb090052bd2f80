"""What was paid for is not lost, not mixed with another suspect's, and never more than the budget."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxaudit.answers import Answers
from onnxaudit.audit.checking import REPEATS, CheckOptions, check
from onnxaudit.audit.progress import Silent
from onnxaudit.audit.running import run_check, target_digest
from onnxaudit.errors import BudgetSpent, OtherClasses, SuspectError, UsageError
from onnxaudit.suspect import Queries, Target
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


class LateClass(Recorded):
    """Names a class that the victim does not have, but not among its first answers."""

    def _ask(self, queries: Queries) -> Answers:
        answers = super()._ask(queries)
        if len(self.rows) < 40:
            return Answers.from_labels(answers.labels, None)
        return Answers.from_labels(np.full(len(queries), 11), None)


def test_answers_that_came_before_a_foreign_class_are_not_thrown_away(tmp_path: Path) -> None:
    """Asked anew without labels a paid function would be paid twice: that is left to the user."""
    path = tmp_path / "e.jsonl"
    with pytest.raises(SuspectError, match=r"after 30 answers: .* named class 11") as error:
        check(BUNDLE, LateClass(BUNDLE, VICTIM, batch=10), CheckOptions(evidence=path), Silent())
    assert not isinstance(error.value, OtherClasses)
    assert sum(len(json.loads(line).get("rows", [])) for line in path.read_text().splitlines()) == 30
    with pytest.raises(OtherClasses):
        check(BUNDLE, LateClass(BUNDLE, VICTIM, batch=40), CheckOptions(), Silent())  # with the first answers nothing is lost


def test_going_on_with_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"onnxaudit-{BUNDLE.id[:8]}-00000000.jsonl").write_text("{}\n")
    script = Script(lambda _, body: scores(body))
    with (
        served(script) as origin,
        pytest.raises(UsageError, match=r"finds no transcript .* but onnxaudit-ffffffff-00000000.jsonl"),
    ):
        run_check(BUNDLE, origin + PATH, None, CheckOptions(resume=True), {}, {}, Silent(), 0.0)
    assert script.posts == []
    heard = Silent()
    run_check(BUNDLE, str(tmp_path / "none.onnx"), None, CheckOptions(resume=True, evidence=Path("e.jsonl")), {}, {}, heard, 0.0)
    assert heard.notes[0] == "e.jsonl does not exist: there is nothing to go on with, all is asked"


def test_what_cannot_be_found_is_said_before_anything_is_asked() -> None:
    asked: list[int] = []

    class Told(Silent):
        def note(self, words: str) -> None:
            asked.append(len(suspect.rows))
            super().note(words)

    never = "p cannot fall below 0.025, alpha is 0.02: whatever is answered, the finding is inconclusive"
    for alpha, told in ((0.05, []), (0.02, [never])):
        suspect, progress = Recorded(BUNDLE, VICTIM), Told()
        report = check(BUNDLE, suspect, CheckOptions(alpha=alpha), progress)
        assert progress.notes == told
        assert report.finding == ("inconclusive" if told else "derived")
    assert asked == [0]
