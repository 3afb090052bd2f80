"""The report page: complete, true to the report, the same in every browser, and closed to what comes from outside."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markdown_it import MarkdownIt
from PIL import Image

from onnxaudit.answers import Access, Answers
from onnxaudit.audit.checking import CheckOptions
from onnxaudit.audit.exhibiting import SHOWN, exhibits_of
from onnxaudit.audit.running import failed
from onnxaudit.bundle import QueryBundle
from onnxaudit.errors import SuspectError
from onnxaudit.report.drawings import strip
from onnxaudit.report.exhibits import pictures, png
from onnxaudit.report.markdown import markdown
from onnxaudit.report.model import Controls, LineUp, Look, Report
from onnxaudit.report.page import FORMATS, LONGEST, MOST_REFERENCES, page, visible
from onnxaudit.report.text import propositions, sentence
from onnxaudit.report.writing import write_all
from tests.bundles import CONTROLS, QUERIES, SPANS, simulated_bundle
from tests.chromium import BINARY, Browser, chromium
from tests.simulated import BUNDLE, INNOCENT, VICTIM, checked, judged, with_references

VOID = {"meta", "img", "br", "wbr", "link", "input", "hr"}
ADDRESSES = ("href", "src", "srcset", "action", "data", "xlink:href", "poster", "background", "content")
BEYOND = """[...document.querySelectorAll('main *:not(svg *)')]
    .filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"""
FULL: dict[str, Any] = {
    "line_up": LineUp(0.91, (0.7, 0.72, 0.74, 0.71), 0.2, 3.25, False, 0.6),
    "looks": (Look(10, 1.25, 9, None), Look(20, 2.5, 0, 0.025)),
    "needed": 20,
    "own_pool": {"references": 30, "finding": "not-shown", "p_value": 0.125, "p_floor": 0.03125, "reasons": []},
}


def shown(answers: Answers, bundle: QueryBundle = BUNDLE, **more: Any) -> Report:
    """A report as ``check`` makes it, exhibits included."""
    return dataclasses.replace(judged(answers, bundle), exhibits=exhibits_of(bundle, answers), seconds={"open": 0.25}, **more)


REPORTS: dict[str, Callable[[], Report]] = {
    "derived": lambda: shown(VICTIM),
    "not shown": lambda: shown(INNOCENT),
    "labels": lambda: shown(INNOCENT.degrade(Access.LABEL)),
    "budget": lambda: checked(INNOCENT, budget=3),
    "no references": lambda: shown(VICTIM, with_references(0)),
    "one reference": lambda: shown(VICTIM, with_references(1)),
    "no labels": lambda: shown(VICTIM, simulated_bundle(20, labelled=False)),
    "constant": lambda: shown(Answers.from_labels(np.zeros(QUERIES), 5)),
    "given up": lambda: shown(INNOCENT, looks=(Look(10, 0.5, 30, None), Look(20, 0.25, 33, None))),
    "everything": lambda: shown(VICTIM, transcript_sha256="7" * 64, **FULL),
    "failed": lambda: failed(BUNDLE, "x.onnx", CheckOptions(), SuspectError("it hung up", "Try again."), 0),
    "interrupted": lambda: failed(BUNDLE, "x.onnx", CheckOptions(alpha=0.1), KeyboardInterrupt(), 7),
}


class Page(HTMLParser):
    """A page taken apart. tags: every element begun, with its attributes. data: numbers by key, exact and as shown. words: the
    text; drawn: that of plots. Fails unless balanced.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.drawn: list[str] = []
        self.style = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag == "data":
            known = dict(attributes)
            self.data.append((known["data-key"] or "", known["value"] or "", ""))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        inside = self._open[-1] if self._open else ""
        if inside == "style":
            self.style += data
        elif inside == "data":
            key, value, _ = self.data[-1]
            self.data[-1] = (key, value, data)
        elif inside in ("text", "title") and "svg" in self._open:
            self.drawn.append(data)
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def addresses(taken: Page) -> Iterator[str]:
    """Everything on a page that a browser could fetch or follow."""
    for tag, attributes in taken.tags:
        for name in ADDRESSES:
            if name in attributes and not (name == "content" and attributes.get("http-equiv") != "refresh"):
                yield f"{tag} {attributes[name]}"


def look_up(report: Any, key: str) -> Any:
    value = report
    for name in key.split("."):
        value = value[int(name)] if isinstance(value, list | tuple) else value[name]
    return value


@pytest.mark.parametrize("what", REPORTS)
def test_the_page_stands_alone(what: str) -> None:
    taken = Page(page(REPORTS[what](), BUNDLE))
    names = {tag for tag, _ in taken.tags}
    assert not names & {"script", "iframe", "object", "embed", "link", "form", "base", "audio", "video", "foreignobject"}
    assert all(re.fullmatch(r"a #\w+|img data:image/png;base64,[\w+/=]+", address) for address in addresses(taken))
    assert not [name for _, attributes in taken.tags for name in attributes if name.startswith("on") or name == "style"]
    assert "url(" not in taken.style
    assert "@import" not in taken.style
    anchors = {attributes.get("id") for _, attributes in taken.tags}
    assert {address[3:] for address in addresses(taken) if address.startswith("a ")} <= anchors


@pytest.mark.parametrize("what", REPORTS)
def test_the_policy_allows_the_page_s_own_style_and_nothing_else(what: str) -> None:
    taken = Page(page(REPORTS[what](), BUNDLE))
    policy = next(a["content"] for tag, a in taken.tags if a.get("http-equiv") == "Content-Security-Policy") or ""
    digest = base64.b64encode(hashlib.sha256(taken.style.encode()).digest()).decode()
    assert policy == f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


@pytest.mark.parametrize("what", REPORTS)
def test_every_number_is_the_report_s(what: str) -> None:
    report = REPORTS[what]()
    taken, whole = Page(page(report, BUNDLE)), dataclasses.asdict(report)
    for key, value, words in taken.data:
        if key == "closer":
            assert report.margin is not None
            assert report.score is not None
            scores = np.array([other.score for other in report.references])
            assert int(value) == (scores + report.margin >= report.score - 1e-9).sum()
            continue
        actual = look_up(whole, key)
        assert value == repr(actual), key
        assert words.lstrip("-") in {form(actual).lstrip("-") for form in FORMATS.values()}, key
        if re.fullmatch(r"[\d.e-]+", words) and float(words):
            assert float(words) == pytest.approx(actual, rel=0.01, abs=0.0005), key
    keys = {key for key, _, _ in taken.data}
    assert {"alpha", "p_floor", "queries.sent"} <= keys
    assert ("p_value" in keys) == (report.p_value is not None)
    assert {f"references.{i}.score" for i in range(len(report.references))} <= keys
    ran = [i for i, scheme in enumerate(report.schemes) if scheme.score is not None]
    assert {f"schemes.{i}.score" for i in ran} <= keys


@pytest.mark.parametrize("what", REPORTS)
def test_numbers_in_running_text_are_those_of_its_sentences(what: str) -> None:
    report = REPORTS[what]()
    taken = Page(page(report, BUNDLE))
    said = " ".join([report.to_json(), sentence(report), *propositions(report), BUNDLE.manifest.tool])
    assert [number for number in re.findall(r"\d+\.\d+", taken.text) if number not in said] == []
    marks = [words for words in taken.drawn if words.startswith("suspect")]
    if report.score is not None and report.references:
        assert marks[0] == f"suspect {report.score:.3f}"
        assert f"reference {report.references[0].id}: reference-000.onnx, {report.references[0].score:.3f}" in taken.drawn


@pytest.mark.parametrize("what", REPORTS)
def test_the_finding_is_said_in_words(what: str) -> None:
    report = REPORTS[what]()
    taken = Page(page(report, BUNDLE))
    words = {"derived": "Derived", "not-shown": "Not shown", "inconclusive": "Inconclusive"}[report.finding]
    words = words if report.status == "complete" else "No finding"
    assert f" {words} " in taken.text
    assert next(a["class"] for tag, a in taken.tags if tag == "body") == (
        report.finding if report.status == "complete" else "none"
    )
    for said in (*report.conditions, *report.reasons, report.bundle["id"], report.bundle["victim_sha256"]):
        assert " ".join(said.split()) in taken.text
    assert "H1: derived" in taken.text
    assert "H0: independent" in taken.text
    assert not re.search("stolen|thief|guilty|infring", taken.text, re.IGNORECASE)


def test_a_report_with_everything_has_every_part() -> None:
    text = Page(page(REPORTS["everything"](), BUNDLE)).text
    parts = (
        "Where the suspect falls",
        "Two pools of references",
        "Scheme by scheme",
        "Line-up",
        "Looks",
        "Controls",
        "Conditions",
    )
    assert all(part in text for part in (*parts, "The queries", "Facts of the run", "Digests", "The references", "7" * 64))
    assert "not drawn at random among its siblings" in text
    assert "Looks" not in Page(page(REPORTS["derived"](), BUNDLE)).text
    given_up = Page(page(REPORTS["given up"](), BUNDLE))
    assert "asking ended after queries: see the looks and the conditions ." in given_up.text
    assert ("looks.1.queries", "20", "20") in given_up.data


def test_a_page_without_its_bundle_has_no_pictures_but_all_numbers() -> None:
    report = REPORTS["everything"]()
    bare, full = Page(page(report)), Page(page(report, BUNDLE))
    assert not [tag for tag, _ in bare.tags if tag == "img"]
    assert len([tag for tag, _ in full.tags if tag == "img"]) == 3 * SHOWN
    assert bare.data == full.data


def test_the_closest_of_very_many_references_are_listed() -> None:
    report = REPORTS["derived"]()
    many = tuple(dataclasses.replace(report.references[0], id=f"r{i}", score=i / 1000) for i in range(MOST_REFERENCES + 50))
    taken = Page(page(dataclasses.replace(report, references=many), BUNDLE))
    rows = [int(key.split(".")[1]) for key, _, _ in taken.data if re.fullmatch(r"references\.\d+\.score", key)]
    assert rows == list(range(MOST_REFERENCES + 49, 49, -1))


# --------------------------------------------------------------------------------------------------------------- hostile

PAYLOAD = (
    """</style></title><script>alert(1)</script><img src=x onerror="alert(2)">'"`|[a](javascript:alert(3)){{ 7*7 }}{% x %}"""
)
FIXED = {"finding", "status", "data-key"}


def poisoned(value: Any, name: str = "") -> Any:
    """The same value with markup in every text that is not of a fixed vocabulary, names of keys included where they are free."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: poisoned(getattr(value, field.name), field.name) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    if isinstance(value, dict):
        free = name in ("runtime", "seconds")
        return {(key + PAYLOAD.replace(".", "") if free else key): poisoned(part, key) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(poisoned(part) for part in value)
    return value + PAYLOAD if isinstance(value, str) and name not in FIXED else value


def poisoned_bundle() -> QueryBundle:
    """A bundle with markup in the names of its classes, schemes and parts, and of its references."""
    manifest = BUNDLE.manifest
    schemes = tuple(
        dataclasses.replace(s, name=s.name + PAYLOAD, sampler=s.sampler + PAYLOAD, detector=s.detector + PAYLOAD)
        for s in manifest.schemes
    )
    classes = tuple(name + PAYLOAD for name in manifest.class_names)
    changed = dataclasses.replace(manifest, schemes=schemes, class_names=classes, tool=PAYLOAD, data_sha256=PAYLOAD)
    return dataclasses.replace(BUNDLE, manifest=changed)


@pytest.mark.parametrize("what", ["everything", "not shown", "no references", "failed", "interrupted"])
def test_what_comes_from_outside_is_text(what: str) -> None:
    clean = REPORTS[what]()
    runtime = {"server": "uvicorn", "provider": "CPU"}
    clean = dataclasses.replace(clean, suspect={**clean.suspect, "runtime": runtime})
    dirty = poisoned(dataclasses.replace(clean, controls=dataclasses.replace(clean.controls, confused="a")))
    plain = Page(page(dataclasses.replace(clean, controls=dataclasses.replace(clean.controls, confused="a")), BUNDLE))
    taken = Page(page(dirty, poisoned_bundle()))
    kinds, same = ({(tag, *sorted(a)) for tag, a in of.tags if tag != "wbr"} for of in (taken, plain))
    assert kinds == same
    assert all(re.fullmatch(r"a #\w+|img data:image/png;base64,[\w+/=]+", address) for address in addresses(taken))
    assert "<script>alert(1)<" in "".join(taken.words)
    assert "{{ 7*7 }}" in taken.text


@pytest.mark.parametrize("what", ["everything", "failed"])
def test_markdown_has_no_markup_from_outside(what: str) -> None:
    clean, dirty = REPORTS[what](), poisoned(REPORTS[what]())
    parser = MarkdownIt("commonmark").enable("table")

    def kinds(report: Report) -> list[str]:
        return [t.type for token in parser.parse(markdown(report)) for t in (token, *(token.children or ()))]

    assert [kind for kind in kinds(dirty) if kind != "text"] == [kind for kind in kinds(clean) if kind != "text"]
    assert not {"html_block", "html_inline", "link_open", "image", "code_inline"} & set(kinds(dirty))


@pytest.mark.parametrize("name", ["evil\u202egpj.onnx", "a\x00b\x1b[31m", "zero\u200bwidth", "\udcff.onnx", "\u2066x\u2069"])
def test_characters_that_hide_are_shown_by_number(name: str, tmp_path: Path) -> None:
    report = failed(BUNDLE, "x", CheckOptions(), SuspectError(name), 0)
    report = dataclasses.replace(report, suspect={**report.suspect, "source": name})
    for suffix in (".html", ".md", ".json", ".txt"):
        write_all(report, tmp_path / f"r{suffix}", BUNDLE)
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    hidden = next(character for character in name if not character.isprintable())
    assert hidden not in text
    assert f"\\u{ord(hidden):04x}" in text
    assert json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["suspect"]["source"] == name


def test_a_server_that_answers_with_a_book_is_cut_short() -> None:
    report = failed(BUNDLE, "x", CheckOptions(), SuspectError("b" * 1_000_000), 0)
    assert len(page(report, BUNDLE)) < 40_000
    assert visible("b" * (LONGEST + 1)) == "b" * LONGEST + f" … ({LONGEST + 1} characters)"


def test_a_long_name_does_not_push_the_finding_away() -> None:
    report = REPORTS["derived"]()
    text = page(dataclasses.replace(report, suspect={**report.suspect, "source": "w/" * 450 + "end.onnx"}), BUNDLE)
    taken = Page(text)
    assert taken.text.index(" ▲ Derived ") < 800
    assert "w/" * 450 + "end.onnx" in "".join(taken.words)


# --------------------------------------------------------------------------------------------------------------- exhibits


def test_exhibits_are_the_first_queries_whatever_anyone_answers() -> None:
    for answers in (VICTIM, INNOCENT, Answers.from_labels(np.full(QUERIES, 3), 5)):
        groups = exhibits_of(BUNDLE, answers)
        assert [group.names for group in groups] == [("akh",), ("sac-m",), ()]
        rows = [[exhibit.row for exhibit in group.shown] for group in groups]
        assert rows == [list(range(start, start + SHOWN)) for start in (SPANS["akh"][0], SPANS["sac-m"][0], CONTROLS[0])]


def test_exhibits_say_who_answered_what() -> None:
    group = exhibits_of(BUNDLE, INNOCENT)[0]
    span = slice(*SPANS["akh"])
    others = np.array([BUNDLE.answers[m.id].labels[span] for m in BUNDLE.manifest.of_role("reference")])
    expected, given = VICTIM.labels[span], INNOCENT.labels[span]
    rates = (others == expected).mean(axis=1)
    assert (group.total, group.answered, group.agreed) == (24, 24, int((expected == given).sum()))
    assert group.reference_mean == pytest.approx(rates.mean())
    assert (group.reference_lowest, group.reference_highest) == (rates.min(), rates.max())
    names = BUNDLE.manifest.class_names
    probabilities = INNOCENT.degrade(Access.PROBS).dense().max(axis=1)
    for i, exhibit in enumerate(group.shown):
        assert (exhibit.expected, exhibit.given) == (names[expected[i]], names[given[i]])
        assert exhibit.agrees == (expected[i] == given[i])
        assert exhibit.share == pytest.approx((others[:, i] == expected[i]).mean())
        assert exhibit.given_score == pytest.approx(float(probabilities[i]))
    controls = exhibits_of(BUNDLE, INNOCENT)[-1]
    assert [exhibit.expected for exhibit in controls.shown] == [names[label] for label in BUNDLE.control_labels[:SHOWN]]
    assert {exhibit.expected_score for exhibit in controls.shown} == {None}


def test_exhibits_of_little_access_few_answers_and_no_references() -> None:
    labels = exhibits_of(BUNDLE, INNOCENT.degrade(Access.LABEL))
    assert {(e.given_score, e.expected_score) for group in labels for e in group.shown} == {(None, None)}
    top = exhibits_of(BUNDLE, INNOCENT.degrade(Access.TOPK, 2))
    assert all(0 < (e.given_score or 0) <= 1 for e in top[0].shown)
    classes = INNOCENT.labels.copy()
    classes[SPANS["akh"][0] : SPANS["akh"][1]] = -1
    partly = exhibits_of(BUNDLE, Answers(classes[:, None], None, Access.LABEL, 5))
    assert (partly[0].answered, partly[0].agreed, partly[0].reference_mean) == (0, 0, None)
    assert [(e.row, e.given, e.agrees) for e in partly[0].shown] == [(row, None, False) for row in range(SHOWN)]
    assert {e.share for e in partly[0].shown} == {e.share for e in exhibits_of(BUNDLE, INNOCENT)[0].shown}
    assert partly[1].answered == 20
    classes[:] = -1
    some = [3, 7, 8, 11, 30]
    classes[some] = VICTIM.labels[some]
    early = exhibits_of(BUNDLE, Answers(classes[:, None], None, Access.LABEL, 5))
    assert [[e.row for e in group.shown if e.agrees] for group in early] == [[3, 7, 8, 11], [30], []]
    assert [len(group.shown) for group in early] == [4, 1, SHOWN]
    alone = exhibits_of(with_references(0), INNOCENT)
    assert {e.share for group in alone for e in group.shown} == {None}


def test_classes_without_names_have_numbers_and_shared_queries_are_shown_once() -> None:
    first, second = BUNDLE.manifest.schemes
    manifest = dataclasses.replace(
        BUNDLE.manifest, class_names=(), schemes=(first, dataclasses.replace(second, rows=first.rows), second)
    )
    groups = exhibits_of(dataclasses.replace(BUNDLE, manifest=manifest), VICTIM)
    assert [group.names for group in groups] == [("akh", "sac-m"), ("sac-m",), ()]
    assert groups[0].shown[0].expected == f"class {VICTIM.labels[0]}"


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))


@pytest.mark.parametrize("channels", [1, 3])
def test_small_pictures_are_the_queries_pixel_by_pixel(channels: int) -> None:
    queries = np.random.default_rng(0).integers(0, 256, (5, 9, 7, channels), np.uint8)
    drawn = pictures(queries, [3, 1, 3])
    assert list(drawn) == [3, 1]
    for row, uri in drawn.items():
        assert (np.asarray(decoded(uri)).reshape(9, 7, channels) == queries[row]).all()


def test_large_pictures_are_reduced_until_the_page_is_small() -> None:
    queries = np.random.default_rng(0).integers(0, 256, (QUERIES, 224, 224, 3), np.uint8)  # noise: the worst case
    bundle = dataclasses.replace(BUNDLE, queries=queries)
    text = page(shown(VICTIM, bundle), bundle)
    taken = Page(text)
    assert len([tag for tag, _ in taken.tags if tag == "img"]) == 3 * SHOWN
    assert len(text) < 1_500_000
    drawn = pictures(queries, range(QUERIES))
    assert len(drawn) == QUERIES
    assert sum(map(len, drawn.values())) <= 800_000


def test_pictures_keep_their_proportions() -> None:
    assert decoded("data:image/png;base64," + base64.b64encode(png(np.zeros((40, 400, 3), np.uint8), 100)).decode()).size == (
        100,
        10,
    )
    assert decoded("data:image/png;base64," + base64.b64encode(png(np.zeros((1, 900, 1), np.uint8), 32)).decode()).size == (32, 1)


@pytest.mark.parametrize("queries", [np.zeros((QUERIES, 6), np.float32), np.zeros((QUERIES, 8, 8, 4), np.uint8)])
def test_what_is_no_picture_is_listed_without(queries: Any) -> None:
    bundle = dataclasses.replace(BUNDLE, queries=queries)
    assert pictures(queries, [0, 1]) == {}
    taken = Page(page(shown(INNOCENT, bundle), bundle))
    assert not [tag for tag, _ in taken.tags if tag == "img"]
    assert "have no pictures" in taken.text
    assert f"exhibits.0.shown.{SHOWN - 1}.share" in {key for key, _, _ in taken.data}


def test_exhibits_are_not_in_the_json() -> None:
    report = REPORTS["derived"]()
    assert report.exhibits
    assert report.to_json() == dataclasses.replace(report, exhibits=()).to_json()


def test_the_p_value_follows_from_scores_and_margin() -> None:
    for what in ("derived", "not shown", "labels", "one reference", "constant"):
        report = REPORTS[what]()
        assert report.margin is not None
        assert report.score is not None
        closer = sum(other.score + report.margin >= report.score - 1e-9 for other in report.references)
        assert report.p_value == (1 + closer) / (1 + len(report.references))


# --------------------------------------------------------------------------------------------------------------- plots


@pytest.mark.parametrize("seed", range(20))
def test_plots_keep_order_and_stay_on_the_paper(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 10.0 ** rng.integers(-6, 6), rng.integers(1, 400))
    mark, band = float(rng.choice([values.max() * 3, values.mean(), 0.0])), float(values.min())
    drawn = strip([(float(v), f"{v}") for v in values], [("suspect", mark, "s")], band=band)
    assert [dot.title for dot in drawn.dots] == [f"{v}" for v in np.sort(values)]
    across = [dot.x for dot in drawn.dots]
    assert across == sorted(across)
    assert all(3 <= x <= 97 for x in [*across, drawn.marks[0].x, drawn.band or 0, *(x for x, _ in drawn.ticks)])
    assert all(drawn.top - 4 <= dot.y < drawn.axis for dot in drawn.dots)
    assert drawn.height < 220
    assert 2 <= len(drawn.ticks) <= 8
    assert len({words for _, words in drawn.ticks}) == len(drawn.ticks)
    left = sum(v < mark for v in values)
    assert sum(x < drawn.marks[0].x + 0.01 for x in across) >= left
    assert sum(x > drawn.marks[0].x + 0.01 for x in across) <= len(values) - left


def test_plots_of_equal_values_and_of_shares() -> None:
    flat = strip([(0.5, "a"), (0.5, "b")], [("suspect", 0.5, "s")])
    assert len({(dot.x, dot.y) for dot in flat.dots}) == 2
    rates = strip([(0.81, "a"), (0.9, "b")], [("suspect", 0.86, "s")], share=True)
    assert [words for _, words in rates.ticks] == ["80%", "82%", "84%", "86%", "88%", "90%"]


def test_controls_without_a_plot() -> None:
    report = dataclasses.replace(REPORTS["derived"](), controls=Controls(n=5, agreement=0.8, ok=None, answered=9))
    assert "too few to judge" in Page(page(report, BUNDLE)).text


# --------------------------------------------------------------------------------------------------------------- files, browser


def test_a_page_is_written_by_the_command(crafted_path: Path, tmp_path: Path) -> None:
    suspect = Path(__file__).resolve().parent.parent / "fixtures/zoo/suspects/copy.onnx"
    files = [part for name in ("r.html", "r.md", "r.json") for part in ("-o", name)]
    command = [sys.executable, "-m", "onnxaudit", "check", str(suspect), "--bundle", str(crafted_path), *files]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (10, "")
    taken = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    report = json.loads((tmp_path / "r.json").read_text())
    known = {key: value for key, value, _ in taken.data}
    assert known["p_value"] == repr(report["p_value"])
    assert {
        f"references.{i}.score": repr(other["score"]) for i, other in enumerate(report["references"])
    }.items() <= known.items()
    assert len([tag for tag, _ in taken.tags if tag == "img"]) == 4 * SHOWN
    assert "Sneaker" in taken.text
    assert "28-densenet-own.onnx" in (tmp_path / "r.md").read_text()


def test_other_formats_do_not_load_what_the_page_needs() -> None:
    code = "import sys, onnxaudit.report.writing; print(*sorted({'jinja2', 'PIL', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Headless Chromium, once for all tests here."""
    if BINARY is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    with chromium(tmp_path_factory.mktemp("chromium")) as running:
        yield running


def hostile() -> Report:
    """Names without a place to break, as long as they come."""
    report: Report = poisoned(REPORTS["everything"]())
    return dataclasses.replace(report, suspect={**report.suspect, "source": "w" * 900, "runtime": {"k" * 200: "v" * 900}})


@pytest.mark.parametrize("what", ["everything", "not shown", "failed", "hostile"])
def test_a_browser_shows_it(what: str, browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_all(hostile() if what == "hostile" else REPORTS[what](), path, poisoned_bundle() if what == "hostile" else BUNDLE)
    grounds = set()
    for width in (390, 1100):
        for dark in (False, True):
            browser.open(path, width, dark=dark)
            assert browser.evaluate("document.documentElement.scrollWidth") <= width
            assert browser.evaluate("document.querySelectorAll('main *').length") > 20
            assert browser.trouble() == []
            grounds.add(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
            assert browser.evaluate(BEYOND) == []
    assert len(grounds) == 2
    printed = browser.pdf()
    assert printed.startswith(b"%PDF-")
    assert re.search(rb"/MediaBox \[0 0 59[45](\.\d+)? 84[12](\.\d+)?\]", printed)


def test_a_browser_runs_nothing_that_comes_from_outside(browser: Browser, tmp_path: Path) -> None:
    """Even markup that got into the page: the policy stands behind the escaping."""
    path = tmp_path / "report.html"
    text = page(REPORTS["derived"](), BUNDLE)
    path.write_text(
        text.replace("</main>", "<script>document.title = 'run'</script><img src='https://example.com/x.png'></main>")
    )
    browser.open(path, 800)
    assert browser.evaluate("document.title") != "run"
    assert any("Content Security Policy" in str(event) for event in browser.trouble())
