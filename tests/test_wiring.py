"""--autofix: wrong wiring is found from control queries, costs little, survives breaks, and accuses nobody."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from benchmarks.wiring import Meant, by_hand, in_colour, miswired, scaled
from onnxaudit.answers import Access, Answers
from onnxaudit.audit.checking import REPEATS, CheckOptions, check
from onnxaudit.audit.judging.controls import easy_controls
from onnxaudit.audit.progress import Silent
from onnxaudit.audit.rewired import Rewired, renamed
from onnxaudit.audit.running import run_check
from onnxaudit.audit.verifying.records import read_transcript
from onnxaudit.audit.verifying.replaying import replay
from onnxaudit.audit.verifying.verifying import VerifyOptions, verify_file
from onnxaudit.audit.wiring import control_rows, order_by_names, search_of, wire
from onnxaudit.bundle import QueryBundle
from onnxaudit.errors import ArtefactError, SuspectError, Unreachable, UsageError
from onnxaudit.registry import open_suspect, reduce_access
from onnxaudit.report.model import Report
from onnxaudit.suspect import InputSpec, Queries, Suspect, SuspectCard, Target
from onnxaudit.wiring.conventions import FITS, SCALINGS, Wiring, wirings
from onnxaudit.wiring.labelling import best_labelling
from onnxaudit.wiring.search import MOST, WiringSearch
from onnxaudit_adapters.http.loopback import serve_onnx
from onnxaudit_adapters.naming import named_in
from tests.bundles import Recorded, save_linear
from tests.conftest import ZOO
from tests.simulated import POOL

PLAIN = InputSpec((28, 28, 1))
SHUFFLED = (3, 7, 0, 9, 1, 5, 8, 2, 6, 4)
SWAPPED = (0, 1, 4, 3, 2, 5, 6, 7, 8, 9)
INNOCENTS = sorted(entry["file"] for entry in json.loads((ZOO / "zoo.json").read_text()) if entry["kind"] == "negative")


class Heard(Suspect):
    """Another suspect, of which is known what it was asked: (how it was wired, the query). It breaks after ``breaks`` queries."""

    def __init__(self, suspect: Suspect, breaks: int | None = None) -> None:
        self._suspect, self._breaks = suspect, breaks
        self.asked: list[tuple[InputSpec, bytes]] = []

    @property
    def card(self) -> SuspectCard:  # type: ignore[override]
        return self._suspect.card

    def rewire(self, spec: InputSpec) -> None:
        self._suspect.rewire(spec)

    def _ask(self, queries: Queries) -> Answers:
        if self._breaks is not None and len(self.asked) + len(queries) > self._breaks:
            raise KeyboardInterrupt
        self.asked += [(self.card.input, query.tobytes()) for query in queries]
        return self._suspect.ask_once(queries)


def suspect_of(path: Path, bundle: QueryBundle, access: Access | None = None, **said: Any) -> Suspect:
    target = Target(str(path), bundle.manifest.input, 10, "cpu", options={"threads": 1}, **said)
    suspect = open_suspect(target)
    return suspect if access is None else reduce_access(suspect, access, 3)


def wanting(tmp_path: Path, meant: Meant, model: str = "suspects/copy.onnx") -> Path:
    """A model of the zoo that wants to be wired so."""
    path = tmp_path / Path(model).name
    onnx.save(miswired(onnx.load(ZOO / model), meant), path)
    return path


def fixed(suspect: Suspect, bundle: QueryBundle, **options: Any) -> Report:
    return check(bundle, suspect, CheckOptions(autofix=True, **options), Silent())


def found(report: Report) -> dict[str, Any]:
    assert report.wiring is not None
    return dict(report.wiring)


def figures(report: Report) -> tuple[Any, ...]:
    """What a report says but for how the suspect was asked; scores up to what the size of a batch does to them."""
    scores = [None if scheme.score is None else round(scheme.score, 4) for scheme in report.schemes]
    return report.finding, report.p_value, scores, dataclasses.asdict(report.controls), report.reasons


def asked_twice(bundle: QueryBundle, asked: list[tuple[InputSpec, bytes]]) -> int:
    """How many queries were asked more often under one wiring than they are in the bundle."""
    known = Counter(query.tobytes() for query in bundle.queries)
    return sum(max(0, count - max(1, known[query])) for (_, query), count in Counter(asked).items())


# ------------------------------------------------------------------------------------------------------------- what it mends


@pytest.mark.parametrize(
    ("meant", "access"),
    [
        (Meant("scale", scaled("pixels in [0, 255]")), None),
        (Meant("mean and std", scaled("MNIST mean and std")), Access.LABEL),
        (Meant("inverted", dataclasses.replace(PLAIN, scale=-1 / 255, mean=(-1.0,))), None),
        (Meant("silent", InputSpec((28, 28, 1), "NHWC"), silent=True), None),
        (Meant("turned", PLAIN, "turned"), Access.TOPK),
        (Meant("labels", PLAIN, labels=SHUFFLED), Access.LABEL),
        (Meant("labels", PLAIN, labels=SHUFFLED), Access.TOPK),
        (Meant("labels", PLAIN, labels=SHUFFLED), None),
        (Meant("two labels", PLAIN, labels=SWAPPED), Access.LABEL),
        (Meant("size", InputSpec((32, 32, 1)), "padded"), None),
        (Meant("both", scaled("pixels in [-1, 1]"), labels=SHUFFLED), Access.LABEL),
    ],
    ids=lambda value: value.name if isinstance(value, Meant) else None if value is None else value.word,
)
def test_a_copy_that_is_wired_wrong_is_found_as_if_it_were_wired_right(
    crafted: QueryBundle, tmp_path: Path, meant: Meant, access: Access | None
) -> None:
    path = wanting(tmp_path, meant)
    report = fixed(suspect_of(path, crafted, access), crafted)
    wiring = found(report)
    assert report.suspect["input"] == dataclasses.asdict(meant.spec)
    assert (wiring["fit"], tuple(wiring["labels"])) == (meant.fit, meant.labels)
    assert wiring["found"] is True
    assert wiring["after"]["right"] == wiring["after"]["of"] >= 5
    assert wiring["before"]["right"] < wiring["before"]["of"] or meant.silent or meant.fit == "padded"
    assert 0 < wiring["queries"] <= MOST
    word = None if access is None else "topk:3" if access == Access.TOPK else access.word
    right = by_hand(path, crafted, word, meant)
    assert (report.finding, right.finding) == ("derived", "derived")
    assert (report.p_value, report.controls.agreement) == (right.p_value, 1.0)
    assert any("--autofix wired the suspect otherwise" in condition for condition in report.conditions)


@pytest.mark.parametrize("lies", [False, True])
def test_names_in_the_file_say_the_order_and_controls_say_whether_they_do(
    crafted: QueryBundle, tmp_path: Path, lies: bool
) -> None:
    names = crafted.manifest.class_names
    path, evidence = wanting(tmp_path, Meant("named", PLAIN, labels=() if lies else SHUFFLED)), tmp_path / "e.jsonl"
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {"names": str({number: names[label].upper() for number, label in enumerate(SHUFFLED)})})
    onnx.save(model, path)
    report = fixed(suspect_of(path, crafted, Access.LABEL), crafted, evidence=evidence, access="label")
    assert tuple(found(report)["labels"]) == (() if lies else SHUFFLED)
    assert found(report)["queries"] == (found(report)["queries"] if lies else 10)  # names are believed as soon as controls agree
    assert report.finding == "derived"
    assert replay(crafted, read_transcript(evidence, None)[0], "e.jsonl").wiring == report.wiring


def test_names_are_an_order_or_nothing() -> None:
    assert order_by_names(("b", " A"), ("a", "B")) == (1, 0)
    assert order_by_names(("a", "b"), ("a", "b")) == order_by_names(("a", "c"), ("a", "b")) == order_by_names((), ("a",)) == ()
    assert named_in({"names": "{0: 'x', 1: 'y'}"}) == named_in({"id2label": '{"1": "y", "0": "x"}'}) == ("x", "y")
    assert named_in({"classes": '["x", "y"]'}) == ("x", "y")
    for text in ("x,y", "{1: 'x'}", "[1, 2]", "['x', 'x']", "(" * 5000, "__import__('os')", ""):
        assert named_in({"names": text}) == ()


@pytest.mark.parametrize(
    "meant",
    [
        Meant("BGR", InputSpec((28, 28, 3), channels="BGR")),
        Meant("ImageNet", scaled("ImageNet mean and std", (28, 28, 3))),
        Meant("all", scaled("pixels in [0, 255]", (28, 28, 3), layout="NHWC", channels="BGR"), silent=True),
    ],
    ids=lambda meant: meant.name,
)
def test_channels_are_found_in_colour(crafted: QueryBundle, tmp_path: Path, meant: Meant) -> None:
    bundle = in_colour(crafted)
    report = fixed(suspect_of(wanting(tmp_path, meant), bundle), bundle)
    assert report.suspect["input"] == dataclasses.asdict(meant.spec)
    assert report.finding == "derived"


def test_what_is_wired_right_stays_as_it_is_and_costs_nothing(crafted: QueryBundle) -> None:
    plain = check(crafted, suspect_of(ZOO / "suspects/copy.onnx", crafted), CheckOptions(), Silent())
    heard = Heard(suspect_of(ZOO / "suspects/copy.onnx", crafted))
    report = fixed(heard, crafted)
    assert figures(report) == figures(plain)
    assert (found(report)["changed"], report.suspect["input"]) == (None, plain.suspect["input"])
    assert report.queries == plain.queries == {"sent": len(heard.asked), "reused": 0, "failed": 0}
    assert asked_twice(crafted, heard.asked) == 0  # what the search asked is not asked again
    assert plain.wiring is None
    assert "wiring" not in json.loads(plain.to_json())


def test_where_nothing_helps_nothing_is_changed_and_that_is_said(crafted: QueryBundle, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(size=(784, 10)).astype(np.float32)
    path = save_linear(tmp_path / "noise.onnx", 10, weights=noise)
    plain = check(crafted, suspect_of(path, crafted), CheckOptions(), Silent())
    report = fixed(suspect_of(path, crafted), crafted)
    assert (report.finding, plain.finding) == ("inconclusive", "inconclusive")
    assert (found(report)["changed"], found(report)["found"], found(report)["queries"]) == (None, False, MOST)
    assert figures(report) == figures(plain)
    assert any("found none" in condition for condition in report.conditions)


def test_a_suspect_that_takes_its_inputs_under_no_wiring_is_the_error_that_it_was(crafted: QueryBundle, tmp_path: Path) -> None:
    path = tmp_path / "picky.onnx"
    model = onnx.load(ZOO / "suspects/copy.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "a"
    wrong = Meant("five", InputSpec((28, 28, 3)), silent=True)
    onnx.save(miswired(onnx.load(ZOO / "suspects/copy.onnx"), wrong), path)
    heard = Heard(suspect_of(path, crafted))
    with pytest.raises(SuspectError) as caught:
        fixed(heard, crafted)
    with pytest.raises(SuspectError) as before:
        check(crafted, suspect_of(path, crafted), CheckOptions(), Silent())
    assert str(caught.value) == str(before.value)


class Away(Heard):
    """Raises ``error`` instead of an answer, whatever it is asked."""

    def __init__(self, suspect: Suspect, error: SuspectError) -> None:
        super().__init__(suspect)
        self._error = error

    def _ask(self, queries: Queries) -> Answers:
        self.asked += [(self.card.input, query.tobytes()) for query in queries]
        raise self._error


def test_a_suspect_that_is_not_there_is_not_one_that_refuses(crafted: QueryBundle, tmp_path: Path) -> None:
    """What it takes is found when it is back: nothing of the search is settled by a lost connection or a missing key."""
    path, evidence = wanting(tmp_path, Meant("[-1, 1]", scaled("pixels in [-1, 1]"))), tmp_path / "e.jsonl"
    away = Away(suspect_of(path, crafted), Unreachable("nobody is there"))
    with pytest.raises(Unreachable, match="nobody is there"):
        fixed(away, crafted, evidence=evidence)
    assert len(away.asked) == 1
    report = fixed(suspect_of(path, crafted), crafted, evidence=evidence, resume=True)
    assert report.finding == "derived"
    assert found(report)["changed"] == "pixels in [-1, 1]"


def test_a_run_in_which_all_was_refused_is_not_gone_on_with_as_if_nothing_had_to_be_wired(
    crafted: QueryBundle, tmp_path: Path
) -> None:
    path, evidence = wanting(tmp_path, Meant("[-1, 1]", scaled("pixels in [-1, 1]"))), tmp_path / "e.jsonl"
    with pytest.raises(SuspectError, match="busy"):
        fixed(Away(suspect_of(path, crafted), SuspectError("it is busy")), crafted, evidence=evidence)
    back = Heard(suspect_of(path, crafted))
    with pytest.raises(SuspectError, match="under no wiring in the run that this one goes on with"):
        fixed(back, crafted, evidence=evidence, resume=True)
    assert back.asked == []


def test_without_it_one_line_says_what_might_help(crafted: QueryBundle, tmp_path: Path) -> None:
    scale = check(crafted, suspect_of(ZOO / "suspects/copy.onnx", crafted, scale=1.0), CheckOptions(), Silent())
    assert sum("check --autofix looks for another scale" in condition for condition in scale.conditions) == 1
    path = wanting(tmp_path, Meant("labels", PLAIN, labels=SHUFFLED))
    labels = check(crafted, suspect_of(path, crafted), CheckOptions(), Silent())
    assert any("check --autofix finds the order" in condition for condition in labels.conditions)
    right = check(crafted, suspect_of(ZOO / "suspects/twin.onnx", crafted), CheckOptions(), Silent())
    assert not any("autofix" in condition for condition in right.conditions)


# ------------------------------------------------------------------------------------------------------- innocents stay innocent


@pytest.mark.parametrize("file", INNOCENTS, ids=lambda file: Path(file).stem)
def test_no_innocent_is_accused_and_each_is_judged_as_if_it_had_been_wired_right(
    crafted: QueryBundle, tmp_path: Path, file: str
) -> None:
    right = check(crafted, suspect_of(ZOO / file, crafted), CheckOptions(), Silent())
    for meant in (
        Meant("scale", scaled("pixels in [0, 255]")),
        Meant("labels", PLAIN, labels=SHUFFLED),
        Meant("turned", PLAIN, "turned"),
    ):
        report = fixed(suspect_of(wanting(tmp_path, meant, file), crafted), crafted)
        assert report.finding == right.finding == "not-shown"
        if found(report)["found"] and report.suspect["input"] == dataclasses.asdict(meant.spec):
            assert report.p_value == right.p_value


class Guessing(Recorded):
    """Knows its answers by heart, and guesses what it was never asked: turned images."""

    def _ask(self, queries: Queries) -> Answers:
        known = [query.tobytes() in self._rows for query in queries]
        if all(known):
            return super()._ask(queries)
        return Answers.from_scores(np.stack([np.bincount(query.ravel() % 5, minlength=5) for query in queries]))


def test_simulated_innocents_are_derived_no_more_often_than_alpha_says() -> None:
    """Every reference in turn as a suspect whose labels have another order, against the 39 others."""
    accused = mended = 0
    for number, suspect in enumerate(POOL.manifest.of_role("reference")):
        others = tuple(model for model in POOL.manifest.models if model.id != suspect.id)
        bundle = dataclasses.replace(POOL, manifest=dataclasses.replace(POOL.manifest, models=others))
        order = np.random.default_rng([9, number]).permutation(5)
        answers = POOL.answers[suspect.id]
        names = renamed(answers, tuple(order.tolist()))
        report = fixed(Guessing(bundle, names, batch=10), bundle)
        plain = check(bundle, Recorded(bundle, answers, batch=10), CheckOptions(), Silent())
        accused += report.finding == "derived"
        mended += found(report)["found"]
        if renamed(names, tuple(found(report)["labels"])).labels.tolist() == answers.labels.tolist():
            assert (report.finding, report.p_value) == (plain.finding, plain.p_value)
    assert accused <= 2
    assert mended >= 10


def test_the_search_asks_nothing_but_controls_and_knows_nothing_but_their_labels(crafted: QueryBundle, tmp_path: Path) -> None:
    path = wanting(tmp_path, Meant("both", scaled("pixels in [0, 255]"), labels=SWAPPED))
    heard = Heard(suspect_of(path, crafted))
    wired = wire(crafted, heard, None, None, Silent())
    rows = control_rows(crafted)
    turned = FITS["turned"](crafted.queries[rows].astype(np.uint8), 28, 28)
    controls = {query.tobytes() for query in (*crafted.queries[rows], *turned)}
    start, stop = crafted.manifest.controls
    assert rows.min() >= start
    assert rows.max() < stop
    assert len(rows) == easy_controls(crafted).sum()
    assert {query for _, query in heard.asked} <= controls
    assert len(heard.asked) == wired.asked <= MOST
    # the schemes' queries, and what the victim and the references say to them, are of no consequence
    rng = np.random.default_rng(1)
    queries = crafted.queries.copy()
    queries[:start] = rng.integers(0, 256, queries[:start].shape)
    answers = {
        name: Answers.from_scores(np.concatenate([rng.normal(size=(start, 10)), said.dense()[start:]]), said.access)
        for name, said in crafted.answers.items()
    }
    other = dataclasses.replace(crafted, queries=queries, answers=answers, id="0" * 64)
    again = wire(other, suspect_of(path, crafted), None, None, Silent())
    assert dataclasses.asdict(again.searched) == dataclasses.asdict(wired.searched)


# ---------------------------------------------------------------------------------------------------- budget, breaks, evidence


def test_the_search_counts_against_the_budget(crafted: QueryBundle, tmp_path: Path) -> None:
    path = wanting(tmp_path, Meant("scale", scaled("pixels in [0, 255]")))
    for budget in (1, 7, 40, 300):
        heard = Heard(suspect_of(path, crafted))
        report = fixed(heard, crafted, budget=budget)
        assert len(heard.asked) == report.queries["sent"] <= budget
        assert found(report)["queries"] <= min(MOST, budget // 2)
        assert report.queries["failed"] == 0
    full = Heard(suspect_of(path, crafted))
    report = fixed(full, crafted)
    assert len(full.asked) == report.queries["sent"]


@pytest.mark.parametrize("breaks", [0, 1, 3, 4, 5, 9, 14, 15, 16, 130, 200, 330])
def test_a_check_that_broke_goes_on_and_asks_nothing_twice(crafted: QueryBundle, tmp_path: Path, breaks: int) -> None:
    path, evidence = wanting(tmp_path, Meant("scale", scaled("pixels in [0, 255]"), labels=SWAPPED)), tmp_path / "e.jsonl"
    whole = fixed(suspect_of(path, crafted), crafted)
    first, second = Heard(suspect_of(path, crafted), breaks), Heard(suspect_of(path, crafted))
    with pytest.raises(KeyboardInterrupt):
        fixed(first, crafted, evidence=evidence)
    report = fixed(second, crafted, evidence=evidence, resume=True)
    assert figures(report) == figures(whole)
    assert report.wiring == whole.wiring
    assert report.conditions == whole.conditions
    repeats = len(second.asked) - (report.queries["sent"] - REPEATS) if len(first.asked) > 128 else 0
    assert asked_twice(crafted, first.asked + second.asked) == repeats
    assert report.queries["sent"] == len(second.asked)
    assert report.queries["failed"] == 0


@pytest.mark.parametrize("breaks", [3, 12, 40, 150])
def test_a_check_with_a_budget_that_broke_ends_with_the_same_answers(crafted: QueryBundle, tmp_path: Path, breaks: int) -> None:
    path, evidence = wanting(tmp_path, Meant("scale", scaled("pixels in [0, 255]"))), tmp_path / "e.jsonl"
    whole = fixed(suspect_of(path, crafted), crafted, budget=250, repeat=4)
    first, second = Heard(suspect_of(path, crafted), breaks), Heard(suspect_of(path, crafted))
    with pytest.raises(KeyboardInterrupt):
        fixed(first, crafted, evidence=evidence, budget=250, repeat=4)
    report = fixed(second, crafted, evidence=evidence, budget=250, repeat=4, resume=True)
    assert report.wiring == whole.wiring
    assert figures(report) == figures(whole)
    assert len(first.asked) + len(second.asked) <= 250 + (REPEATS if len(first.asked) > 128 else 0)


def test_verify_works_the_wiring_out_again_and_notices_what_was_changed(
    crafted_path: Path, crafted: QueryBundle, tmp_path: Path
) -> None:
    path, evidence, written = wanting(tmp_path, Meant("l", PLAIN, labels=SHUFFLED)), tmp_path / "e.jsonl", tmp_path / "r.json"
    report = fixed(suspect_of(path, crafted, Access.LABEL), crafted, evidence=evidence, access="label")
    written.write_text(report.to_json() + "\n", encoding="utf-8")
    options = VerifyOptions(lambda: crafted_path, evidence)
    assert any("to the last bit" in line for line in verify_file(written, options))
    for change in (
        lambda entry: entry.update(labels=list(SWAPPED)) if "labels" in entry else None,
        lambda entry: entry["spec"].update(scale=1.0) if "spec" in entry else None,
    ):
        forged = tmp_path / "forged.jsonl"
        digest = rewritten(evidence, forged, change)
        value = json.loads(written.read_text())
        other = dataclasses.replace(report, transcript_sha256=digest)
        (tmp_path / "forged.json").write_text(other.to_json() + "\n", encoding="utf-8")
        assert value["finding"] == "derived"
        with pytest.raises(ArtefactError, match="wiring is not the one"):
            list(verify_file(tmp_path / "forged.json", VerifyOptions(lambda: crafted_path, forged)))


@pytest.mark.parametrize("wanted", ["--autofix", "--label-space=same"])
def test_verify_knows_which_controls_were_easy_for_the_references_that_were_given(
    crafted_path: Path, tmp_path: Path, wanted: str
) -> None:
    (tmp_path / "few").mkdir()
    for name in ("03-mobilenet", "05-mlp", "09-mobilenet", "11-mlp"):
        (file,) = (ZOO / "references").glob(f"{name}*.onnx")
        (tmp_path / "few" / file.name).symlink_to(file)
    report, evidence = str(tmp_path / "r.json"), str(tmp_path / "e.jsonl")
    given = ["--bundle", str(crafted_path), "--references", str(tmp_path / "few"), "--scale", "1", wanted]
    run = partial(subprocess.run, capture_output=True, text=True, check=False)
    begin = [sys.executable, "-m", "onnxaudit"]
    asked = run([*begin, "check", str(ZOO / "suspects/copy.onnx"), *given, "--evidence", evidence, "-o", report])
    assert asked.returncode == 11, asked.stderr
    again = run([*begin, "verify", report, "--evidence", evidence, "--bundle", str(crafted_path)])
    assert again.returncode == 0, again.stderr


def test_without_labels_of_the_owners_nothing_is_searched(crafted: QueryBundle) -> None:
    bundle = dataclasses.replace(crafted, manifest=dataclasses.replace(crafted.manifest, labelled=False))
    with suspect_of(ZOO / "suspects/copy.onnx", bundle) as suspect, pytest.raises(UsageError, match="whose labels are known"):
        check(bundle, suspect, CheckOptions(autofix=True), Silent())


def rewritten(source: Path, target: Path, change: Any) -> str:
    """A transcript with what it says of the wiring that was chosen changed, and digests that fit again; the last of them."""
    import hashlib

    from onnxaudit.decode import canonical

    previous, lines = "", []
    for line in source.read_bytes().splitlines():
        entry = json.loads(line)
        if "wired" in entry:
            change(entry["wired"])
        text = (canonical({**entry, "previous": previous}) + "\n").encode()
        previous = hashlib.sha256(text).hexdigest()
        lines.append(text)
    target.write_bytes(b"".join(lines))
    return previous


def test_over_http_with_labels_only_from_the_command(crafted: QueryBundle, tmp_path: Path) -> None:
    path = wanting(tmp_path, Meant("both", scaled("pixels in [0, 255]"), labels=SWAPPED))
    options = CheckOptions(autofix=True, evidence=tmp_path / "e.jsonl", repeat=4, looks=(20, 50))
    with serve_onnx(str(path), labels_only=True) as url:
        report = run_check(crafted, url, None, options, {}, {"batch": 16, "timeout": 20.0}, Silent(), 0.0)
    assert (report.status, report.finding) == ("complete", "derived")
    assert found(report)["changed"] == "pixels in [0, 255], the labels in another order"
    assert report.queries["failed"] == 0
    lines = [json.loads(line) for line in (tmp_path / "e.jsonl").read_bytes().splitlines()]
    probes = [row for line in lines if line.get("wiring", {}).get("spec", {}).get("scale") == 1.0 for row in line["rows"]]
    kept = [row for line in lines if "rows" in line and "wiring" not in line for row in line["rows"]]
    assert found(report)["queries"] <= MOST
    assert set(kept) & set(probes)
    assert report.queries["sent"] == found(report)["queries"] + len(set(kept) - set(probes)) + 4


# ------------------------------------------------------------------------------------------------------------------- the parts


def test_the_conventions_are_those_that_craft_tries() -> None:
    from onnxaudit.craft import conventions

    assert conventions.SCALINGS is SCALINGS  # type: ignore[attr-defined]


def test_the_wiring_as_it_is_comes_first_and_none_comes_twice() -> None:
    for spec, images in (
        (PLAIN, (28, 28, 1)),
        (InputSpec((32, 32, 3)), (28, 28, 1)),
        (InputSpec((32, 32, 3), dtype="uint8"), (32, 32, 3)),
        (InputSpec((3072,), "NC"), (32, 32, 3)),
        (InputSpec((7,), "NC"), (7,)),
    ):
        known = wirings(spec, images)
        assert (known[0].spec, known[0].fit) == (spec, "")
        assert len({(wiring.spec, wiring.fit) for wiring in known}) == len(known)
        assert all(wiring.spec.problem() is None for wiring in known)
        assert [wiring.penalty for wiring in known] == sorted(wiring.penalty for wiring in known)
    assert len(wirings(InputSpec((7,), "NC"), (7,))) == 1
    assert all(wiring.spec.scale == 1 / 255 for wiring in wirings(InputSpec((32, 32, 3), dtype="uint8"), (32, 32, 3)))


def test_fits_bring_images_to_the_size_on_the_grid() -> None:
    images: NDArray[np.uint8] = np.random.default_rng(2).integers(0, 256, (3, 6, 6, 3), dtype=np.uint8)
    padded = FITS["padded"](images, 8, 8)
    assert (padded[:, 1:7, 1:7] == images).all()
    assert padded.sum(dtype=int) == images.sum(dtype=int)
    assert (FITS["cropped"](images, 4, 4) == images[:, 1:5, 1:5]).all()
    assert (FITS["nearest"](images, 12, 12) == images.repeat(2, axis=1).repeat(2, axis=2)).all()
    assert (FITS["turned"](images, 6, 6) == images.transpose(0, 2, 1, 3)).all()
    flat = InputSpec((108,), "NC", scale=1.0).encode(FITS["planes"](images, 6, 6))
    assert (flat == images.transpose(0, 3, 1, 2).reshape(3, -1)).all()
    whole = FITS["resized and cropped"](np.full((1, 6, 6, 1), 7, np.uint8), 7, 7)
    assert whole.shape == (1, 7, 7, 1)
    assert (whole == 7).all()
    for name, size in (("padded", 8), ("cropped", 4), ("nearest", 9), ("resized and cropped", 9)):
        assert FITS[name](images, size, size).shape == (3, size, size, 3)
        assert FITS[name](images, size, size).dtype == np.uint8


@pytest.mark.parametrize("access", list(Access))
def test_labels_are_renamed_at_every_access(access: Access) -> None:
    rows = np.random.default_rng(3).normal(size=(20, 5)).astype(np.float32)
    order = (2, 0, 4, 1, 3)
    permuted = np.empty_like(rows)
    permuted[:, list(order)] = rows  # its label j is called order[j]
    said = renamed(Answers.from_scores(rows, Access.LOGITS).degrade(access, 3), order)
    expected = Answers.from_scores(permuted, Access.LOGITS).degrade(access, 3)
    assert said.classes.tolist() == expected.classes.tolist()
    assert (said.scores is None) == (expected.scores is None)
    assert said.scores is None or (expected.scores is not None and np.allclose(said.scores, expected.scores))
    gap = dataclasses.replace(said, classes=np.where(np.arange(20)[:, None] == 4, -1, said.classes).astype(np.int32))
    assert (renamed(gap, order).classes[4] == -1).all()


def test_an_order_of_labels_is_determined_or_none() -> None:
    seen = [(truth, (truth + 1) % 4) for truth in range(4)] * 2
    order = best_labelling(seen, 4)
    assert order is not None
    assert (order.classes, order.right, order.of) == ((3, 0, 1, 2), 8, 8)
    last = best_labelling([pair for pair in seen if pair[0] != 2], 4)  # one label left for one class
    assert last is not None
    assert last.classes == (3, 0, 1, 2)
    assert best_labelling([(0, 1), (2, 3)], 4) is None
    assert best_labelling([(0, 1), (1, 0)], 1_000_000) is None
    same = best_labelling([(0, 0), (1, 1), (2, 2), (2, 1)], 4)
    assert same is not None
    assert same.classes == ()


def test_the_same_answers_lead_to_the_same_questions(crafted: QueryBundle) -> None:
    def asked(seed: int) -> list[tuple[int, tuple[int, ...]]]:
        rng, search, spent, found = np.random.default_rng(seed), search_of(crafted, PLAIN), 0, []
        while (question := search.question(MOST - spent)) is not None:
            search.tell(question, Answers.from_labels(rng.integers(0, 10, len(question.probes)), 10))
            spent += len(question.probes)
            found.append((question.hypothesis, question.probes))
        assert spent <= MOST
        assert search.choice().wiring is None
        return found

    assert asked(1) == asked(1)
    assert len({str(asked(seed)) for seed in range(3)}) == 3


def test_random_answers_hardly_ever_look_like_a_wiring(crafted: QueryBundle) -> None:
    """Models that guess: each wiring is a new guess, with the frequencies of a few classes."""
    hits = 0
    for seed in range(100):
        rng, search, spent = np.random.default_rng([4, seed]), search_of(crafted, PLAIN), 0
        while (question := search.question(MOST - spent)) is not None:
            search.tell(question, Answers.from_labels(rng.integers(0, 10, len(question.probes)), 10))
            spent += len(question.probes)
        hits += search.choice().wiring is not None
    assert hits <= 2


def test_a_wrapper_answers_by_heart_once(crafted: QueryBundle) -> None:
    heard = Heard(suspect_of(ZOO / "suspects/copy.onnx", crafted))
    expected = heard.ask(crafted.queries[:6])
    heard.asked.clear()
    wrapped = Rewired(heard, Wiring(PLAIN), SWAPPED, sent=3)
    assert [wrapped.learn(crafted.queries[row], expected.take(np.array([row]))) for row in (1, 4, 4)] == [True, True, False]
    for count in (4, 10):  # once by heart, then asked
        said = wrapped.ask(crafted.queries[:6])
        assert said.labels.tolist() == renamed(expected, SWAPPED).labels.tolist()
        assert len(heard.asked) == count
        assert wrapped.queries_sent == 3 + count
    assert WiringSearch(wirings(PLAIN, (28, 28, 1)), np.array([1, 2]), 10).hopeless
