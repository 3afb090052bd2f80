"""Queries that are asked twice: noise is noticed, not judged by, and said the same way by whoever recomputes the report."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from onnxaudit.answers import Access, Answers
from onnxaudit.audit.checking import CheckOptions, check
from onnxaudit.audit.judging.judging import planned_order
from onnxaudit.audit.progress import Silent
from onnxaudit.audit.repeating import STEADY, repeatable, steady, wavering
from onnxaudit.audit.verifying.verifying import VerifyOptions, verify_file
from onnxaudit.bundle import QueryBundle, load
from onnxaudit.decode import canonical
from onnxaudit.errors import ArtefactError, Nonsense, OtherClasses, SuspectError, Unreachable
from onnxaudit.suspect import Queries
from tests.bundles import CONTROLS, QUERIES, Noisy, Recorded, simulated_bundle
from tests.simulated import BUNDLE, VICTIM

LOOKS = (10, 20, 30)
ROOT = Path(__file__).parents[1]
ROWS = np.arange(4)
LOGITS = np.random.default_rng(5).normal(0, 2, (20, 5)).astype(np.float32)


def said(scores: NDArray[np.float32], access: Access) -> Answers:
    return Answers.from_scores(scores, Access.LOGITS).degrade(access, 3)


@pytest.mark.parametrize("access", [Access.LOGITS, Access.PROBS, Access.TOPK])
def test_the_same_answers_are_trusted_whatever_is_shown_of_them(access: Access) -> None:
    first = said(LOGITS, access)
    again = first.take(ROWS)
    assert repeatable(first, [(ROWS, again)]) is first
    assert steady(first, [(ROWS, again)])
    assert wavering(first, [(ROWS, again)]) == ()
    unknown = Answers(first.classes, first.scores, access, None)
    assert repeatable(unknown, [(ROWS, unknown.take(ROWS))]) is unknown
    assert repeatable(first, []) is first


@pytest.mark.parametrize("access", [Access.LOGITS, Access.PROBS, Access.TOPK])
@pytest.mark.parametrize("classes", [5, None])
def test_scores_that_differ_by_more_than_batches_do_leave_the_labels(access: Access, classes: int | None) -> None:
    first = said(LOGITS, access)
    first = Answers(first.classes, first.scores, access, classes)
    for share, holds in ((0.999, True), (0.5, False)):
        again = said(LOGITS[ROWS] * share, access)
        assert steady(first, [(ROWS, again)])
        trusted = repeatable(first, [(ROWS, again)])
        assert trusted.access == (access if holds else Access.LABEL)
        assert (trusted.labels == first.labels).all()
        (words,) = wavering(first, [(ROWS[:0], again.take(ROWS[:0])), (ROWS, again)])
        assert ("labels alone" in words) == (not holds)


def test_how_far_apart_is_the_difference_in_probability() -> None:
    first = Answers.from_scores([[0.6, 0.3, 0.1], [0.5, 0.3, 0.2]], Access.PROBS)
    again = Answers.from_scores([[0.6, 0.3, 0.1], [0.5, 0.2, 0.3]], Access.PROBS)
    assert wavering(first, [(np.arange(2), again)]) == (
        f"of 2 queries asked twice, 1 got other scores, by up to 0.1 in probability: more than {STEADY:g}, so that labels alone "
        "are compared",
    )
    logits = Answers.from_scores(np.log(first.dense()) + 7, Access.LOGITS)
    assert wavering(logits, [(np.arange(2), logits)]) == ()


def test_a_repeat_that_looks_like_probabilities_by_chance_is_read_as_all_others_are() -> None:
    rows = np.array([[0.7, 0.3, 0.0], [3.0, -1.0, 0.5]], np.float32)
    again = Answers.from_scores(rows[:1])
    assert again.access == Access.PROBS
    assert wavering(Answers.from_scores(rows), [(np.arange(1), again)]) == ()


def test_scores_that_do_not_come_again_are_not_judged_by() -> None:
    first = said(LOGITS, Access.PROBS)
    assert repeatable(first, [(ROWS, first.take(ROWS).degrade(Access.LABEL))]).access == Access.LABEL


@pytest.mark.parametrize("looks", [None, (10, 20, 30)])
@pytest.mark.parametrize("noise", [0.001, 0.5])
def test_a_report_of_a_noisy_suspect_follows_from_its_transcript(
    tmp_path: Path, looks: tuple[int, ...] | None, noise: float
) -> None:
    simulated_bundle(39).save(tmp_path / "b.oab")
    bundle = load(tmp_path / "b.oab")
    options = CheckOptions(repeat=4, looks=looks, evidence=tmp_path / "e.jsonl")
    report = check(bundle, Noisy(bundle, bundle.answers["victim"], noise), options, Silent())
    (tmp_path / "r.json").write_text(report.to_json() + "\n", encoding="utf-8")
    lines = verify_file(tmp_path / "r.json", VerifyOptions(lambda: tmp_path / "b.oab", tmp_path / "e.jsonl"))
    assert any("to the last bit" in line for line in lines)
    assert report.suspect["access"] == ("logits" if noise < 0.1 else "label")


def alike_in_labels(bundle: QueryBundle) -> QueryBundle:
    """The bundle with references that say nothing like the victim but its labels, and those on the queries of the first look."""
    rng, answers, first = np.random.default_rng(4), dict(bundle.answers), planned_order(bundle, LOOKS)
    for model in bundle.manifest.of_role("reference"):
        rows = answers[model.id].dense().copy()
        rows[: CONTROLS[0]] = rng.normal(0, 2, (CONTROLS[0], rows.shape[1]))
        for row in first.order[: first.stops[0]]:
            best, label = rows[row].argmax(), VICTIM.labels[row]
            rows[row, [best, label]] = rows[row, [label, best]]
        answers[model.id] = Answers.from_scores(rows, Access.LOGITS)
    return dataclasses.replace(bundle, answers=answers)


def asked(bundle: QueryBundle, noise: float) -> tuple[Noisy, str, int]:
    suspect = Noisy(bundle, VICTIM, noise)
    report = check(bundle, suspect, CheckOptions(looks=LOOKS, repeat=4), Silent())
    assert report.queries["sent"] == len(suspect.rows)
    assert report.queries["failed"] == 0
    return suspect, report.finding, len(set(suspect.rows))


def test_looks_go_on_where_labels_alone_do_not_decide() -> None:
    """Scores decide at the first look; where they turn out to be noise, the check goes on until labels do, or to the end."""
    bundle = alike_in_labels(BUNDLE)
    quiet, finding, few = asked(bundle, 0.001)
    assert finding == "derived"
    loud, _, more = asked(bundle, 0.5)
    assert few < more <= QUERIES
    assert len(quiet.rows) == few + 4
    assert len(loud.rows) == more + 4  # asked again once, not at every look


def test_dynamic_quantisation_in_other_batches_is_no_noise() -> None:
    with np.load(ROOT / "fixtures" / "fashion" / "test.npz") as data:
        images = np.ascontiguousarray(data["x"][:128].transpose(0, 3, 1, 2), np.float32) / 255
    session = onnxruntime.InferenceSession(ROOT / "fixtures" / "zoo" / "suspects" / "int8-dynamic.onnx")
    (name,) = (value.name for value in session.get_inputs())

    def answers(batch: int) -> Answers:
        parts = [session.run(None, {name: images[i : i + batch]})[0] for i in range(0, len(images), batch)]
        return Answers.from_scores(np.concatenate(parts), Access.LOGITS)

    alone = answers(1)
    for batch in (4, 64):
        repeats = [(np.arange(len(images)), answers(batch))]
        assert repeatable(alone, repeats) is alone
        assert wavering(alone, repeats) != ()


def test_the_end_of_a_list_of_the_best_is_no_noise() -> None:
    """Two classes that are nearly as likely change places there; that one is not named does not make it unlikely."""
    first = Answers(np.array([[0, 1], [2, 3]], np.int32), np.array([[0.6, 0.2], [0.9, 0.05]], np.float32), Access.TOPK, 100)
    again = Answers(np.array([[0, 2], [2, 3]], np.int32), np.array([[0.6, 0.19999], [0.9, 0.05]], np.float32), Access.TOPK, 100)
    rows = np.arange(2)
    assert repeatable(first, [(rows, again)]) is first
    gone = Answers(np.array([[0, 2], [2, 3]], np.int32), np.array([[0.6, 0.1], [0.9, 0.05]], np.float32), Access.TOPK, 100)
    assert repeatable(first, [(rows, gone)]).access == Access.LABEL  # class 1 had 0.2, and now at most 0.1


def test_names_are_numbers_of_any_size_and_cost_no_more_memory() -> None:
    first = Answers(np.array([[2**31 - 2, 5]], np.int32), np.array([[0.6, 0.2]], np.float32), Access.TOPK, None)
    assert wavering(first, [(np.arange(1), first)]) == ()


class AskedBefore(Recorded):
    """Says ``error`` to a query that it has answered."""

    def __init__(self, bundle: QueryBundle, error: SuspectError, spared: int = 0) -> None:
        super().__init__(bundle, bundle.answers["victim"], batch=1)
        self._error, self._spared = error, spared

    def _ask(self, queries: Queries) -> Answers:
        if len(self.rows) >= QUERIES + self._spared:
            raise self._error
        return super()._ask(queries)


@pytest.mark.parametrize(
    ("error", "spared", "finding"),
    [
        (OtherClasses("it names class 6"), 0, "inconclusive"),
        (OtherClasses("it names class 6"), 2, "inconclusive"),
        (Nonsense("it says NaN"), 2, "inconclusive"),
        (SuspectError("it answers no query twice"), 0, "inconclusive"),
        (SuspectError("the line went dead"), 2, "derived"),
    ],
)
def test_nonsense_to_a_query_that_was_answered_before_is_no_steady_answer(
    tmp_path: Path, error: SuspectError, spared: int, finding: str
) -> None:
    simulated_bundle(39).save(tmp_path / "b.oab")
    bundle = load(tmp_path / "b.oab")
    options = CheckOptions(repeat=4, evidence=tmp_path / "e.jsonl")
    report = check(bundle, AskedBefore(bundle, error, spared), options, Silent())
    assert report.finding == finding
    assert any("could not be asked again" in reason for reason in report.reasons) == (finding == "inconclusive")
    (tmp_path / "r.json").write_text(report.to_json() + "\n", encoding="utf-8")
    lines = verify_file(tmp_path / "r.json", VerifyOptions(lambda: tmp_path / "b.oab", tmp_path / "e.jsonl"))
    assert any("to the last bit" in line for line in lines)
    resumed = check(
        bundle, AskedBefore(bundle, error, QUERIES), CheckOptions(repeat=4, evidence=tmp_path / "e.jsonl", resume=True), Silent()
    )
    assert resumed.finding == "derived"  # it was a bad moment


def test_a_suspect_that_is_gone_before_anything_was_asked_again_ends_the_run(tmp_path: Path) -> None:
    bundle = simulated_bundle(39)
    with pytest.raises(Unreachable):
        check(bundle, AskedBefore(bundle, Unreachable("it is down")), CheckOptions(repeat=4, evidence=tmp_path / "e"), Silent())


@pytest.mark.parametrize("change", [{"again": [10**6]}, {"again": [-1]}, {"num_classes": 400}])
def test_repeats_of_a_transcript_that_was_changed_are_not_gone_on_with(tmp_path: Path, change: dict[str, object]) -> None:
    path, bundle = tmp_path / "e.jsonl", simulated_bundle(39)
    check(bundle, Recorded(bundle, bundle.answers["victim"], batch=1), CheckOptions(repeat=4, evidence=path), Silent())
    lines, previous = [], ""
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        entry = {**entry, **(change if "again" in entry else {}), "previous": previous}
        lines.append(canonical(entry) + "\n")
        previous = hashlib.sha256(lines[-1].encode()).hexdigest()
    path.write_text("".join(lines))
    suspect = Recorded(bundle, bundle.answers["victim"], batch=1)
    with pytest.raises(ArtefactError):
        check(bundle, suspect, CheckOptions(repeat=4, evidence=path, resume=True), Silent())
    assert suspect.rows == []


class Counting(AskedBefore):
    """Counts what it is sent, and needs two tries for each query that it answered before."""

    def __init__(self, bundle: QueryBundle) -> None:
        super().__init__(bundle, SuspectError(""), QUERIES)
        self.queries_sent = 0

    def _ask(self, queries: Queries) -> Answers:
        self.queries_sent += len(queries) * (2 if len(self.rows) >= QUERIES else 1)
        return super()._ask(queries)


def test_what_came_to_nothing_among_repeats_is_counted() -> None:
    bundle = simulated_bundle(39)
    report = check(bundle, Counting(bundle), CheckOptions(repeat=4), Silent())
    assert report.queries == {"sent": QUERIES + 8, "reused": 0, "failed": 4}


def test_a_budget_holds_where_queries_are_asked_again_at_a_look(tmp_path: Path) -> None:
    for budget in range(40, 96):
        suspect = Noisy(BUNDLE, VICTIM, 0.5)
        check(BUNDLE, suspect, CheckOptions(looks=LOOKS, repeat=4, budget=budget), Silent())
        assert len(suspect.rows) <= budget
