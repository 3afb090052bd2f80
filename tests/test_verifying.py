"""verify: a report follows from its transcript and its bundle, or is told apart from one that does, to the byte."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxaudit.answers import Access, Answers
from onnxaudit.audit.checking import CheckOptions, check
from onnxaudit.audit.progress import Silent
from onnxaudit.audit.running import failed
from onnxaudit.audit.verifying.verifying import VerifyOptions, verify_file
from onnxaudit.bundle import QueryBundle, SchemeEntry, load
from onnxaudit.decode import canonical
from onnxaudit.errors import ArtefactError, OnnxauditError, SuspectError, UsageError
from onnxaudit.report.model import Controls, Report, seal, written
from onnxaudit.suspect import Queries
from tests.bundles import QUERIES, Recorded, save_linear, simulated_bundle
from tests.simulated import INNOCENT, VICTIM, with_references

SAME = "the same words and numbers, to the last bit"


@dataclass(frozen=True)
class Files:
    """The files of one check."""

    report: Path
    transcript: Path
    bundle: Path

    def verify(self, evidence: bool = True) -> list[str]:
        options = VerifyOptions(lambda: self.bundle, self.transcript if evidence else None)
        return list(verify_file(self.report, options))


def saved(bundle: QueryBundle, folder: Path) -> QueryBundle:
    """The bundle as it comes from a file, which is there."""
    path = folder / "b.oab"
    if not path.exists():
        bundle.save(path)
    return load(path)


def write(report: Report, path: Path) -> None:
    path.write_text(report.to_json() + "\n", encoding="utf-8")


def made(
    folder: Path,
    answers: Answers = VICTIM,
    bundle: QueryBundle | None = None,
    suspect: Callable[[QueryBundle], Recorded] | None = None,
    **options: Any,
) -> Files:
    """A check with its report, transcript and bundle in a folder."""
    known = saved(bundle or with_references(39), folder)
    files = Files(folder / "r.json", folder / "t.jsonl", folder / "b.oab")
    asked = suspect(known) if suspect else Recorded(known, answers, batch=10)
    write(check(known, asked, CheckOptions(evidence=files.transcript, **options), Silent()), files.report)
    return files


class Wavering(Recorded):
    """Gives other labels when it is asked a second time."""

    def _ask(self, queries: Queries) -> Answers:
        again = len(self.rows) >= QUERIES
        answers = super()._ask(queries)
        return Answers.from_scores(-answers.dense(), Access.LOGITS) if again else answers


class Retrying(Recorded):
    """Every query takes two attempts."""

    @property
    def queries_sent(self) -> int:
        return 2 * len(self.rows)


class Open(Recorded):
    """Shows its inside, in single precision or double."""

    seen: NDArray[Any]

    def inside(self, kind: str, queries: Queries, **parameters: Any) -> NDArray[Any] | None:  # noqa: ARG002
        return self.seen if kind == "gradients" else None


def with_inside() -> QueryBundle:
    """A bundle with a scheme that looks inside."""
    bundle, rng = with_references(39), np.random.default_rng(5)
    entry = SchemeEntry("modelgif", "gif-points", "gradient-field", "cosine", (0, 24))
    manifest = dataclasses.replace(bundle.manifest, schemes=(*bundle.manifest.schemes, entry))
    shown = {f"insights/{m.id}/gradients/0-24": rng.normal(size=(24, 2, 3)).astype(np.float32) for m in manifest.models}
    return dataclasses.replace(bundle, manifest=manifest, insights=shown, id="")


def opened(bundle: QueryBundle, dtype: str) -> Open:
    suspect = Open(bundle, INNOCENT, batch=10)
    suspect.seen = np.random.default_rng(6).normal(size=(24, 2, 3)).astype(dtype)
    return suspect


def gone_on(folder: Path) -> Files:
    """Budgets that grow: three looks."""
    made(folder, budget=20)
    made(folder, budget=40, resume=True)
    return made(folder, resume=True)


def told_again(folder: Path) -> Files:
    """A budget that is spent, twice: the second time nothing is sent."""
    made(folder, budget=30, repeat=4)
    return made(folder, budget=30, repeat=4, resume=True)


def crashed(folder: Path) -> Files:
    with pytest.raises(SuspectError):
        made(folder, suspect=lambda bundle: Recorded(bundle, VICTIM, fails_after=45, batch=10))
    return made(folder, resume=True)


def with_pool(folder: Path) -> Files:
    """A judge's own references: small real models."""
    pool = folder / "pool"
    pool.mkdir()
    for seed in range(20):
        save_linear(pool / f"m{seed:02d}.onnx", classes=5, seed=seed, size=4)
    return made(folder, bundle=simulated_bundle(20, labelled=False), references=pool)


CHECKS: dict[str, tuple[str, Callable[[Path], Files]]] = {
    "derived": ("derived", made),
    "not shown": ("not-shown", partial(made, answers=INNOCENT)),
    "labels": ("derived", partial(made, answers=VICTIM.degrade(Access.LABEL), access="label")),
    "top 3": ("derived", partial(made, answers=VICTIM.degrade(Access.TOPK, 3))),
    "probabilities": ("not-shown", partial(made, answers=INNOCENT.degrade(Access.PROBS))),
    "another alpha": ("inconclusive", partial(made, alpha=0.01)),
    "no references": ("inconclusive", partial(made, bundle=with_references(0))),
    "budget": ("inconclusive", partial(made, answers=INNOCENT, budget=30)),
    "repeats": ("derived", partial(made, repeat=4)),
    "unstable": ("inconclusive", partial(made, suspect=lambda b: Wavering(b, VICTIM, batch=10), repeat=4)),
    "retries": ("derived", partial(made, suspect=lambda b: Retrying(b, VICTIM, batch=10), repeat=4)),
    "a name of many letters": ("derived", partial(made, suspect=lambda b: Recorded(b, VICTIM, "modèle ß 模型.onnx", batch=10))),
    "three looks": ("inconclusive", gone_on),
    "nothing sent": ("inconclusive", told_again),
    "after a crash": ("derived", crashed),
    "a judge's references": ("derived", with_pool),
    "planned looks": ("derived", partial(made, looks=(20, 30, 40))),
    "planned looks at an innocent": ("not-shown", partial(made, answers=INNOCENT, looks=(20, 30, 40))),
    "inside": ("not-shown", lambda folder: made(folder, bundle=with_inside(), suspect=partial(opened, dtype="f4"))),
    "inside, doubles": ("not-shown", lambda folder: made(folder, bundle=with_inside(), suspect=partial(opened, dtype="f8"))),
}


@pytest.mark.parametrize("what", CHECKS)
def test_every_finding_is_recomputed_from_the_transcript_bit_for_bit(tmp_path: Path, what: str) -> None:
    finding, make = CHECKS[what]
    files = make(tmp_path)
    assert json.loads(files.report.read_text(encoding="utf-8"))["finding"] == finding
    said = files.verify()
    assert said[4] == f"recomputed from these two: {finding}, {SAME} (seconds are only sealed)"
    assert len(said) == 5


def edited(files: Files, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a report as a forger would: with a digest that fits again."""
    report = json.loads(files.report.read_text(encoding="utf-8"))
    change(report)
    report["digest"] = seal(report)
    files.report.write_text(written(report) + "\n", encoding="utf-8")


def test_evidence_of_what_has_none_is_refused(tmp_path: Path) -> None:
    files = made(tmp_path, INNOCENT)
    for path, kind in ((files.bundle, "a bundle"), (files.transcript, "a transcript")):
        with pytest.raises(UsageError, match=f"--evidence means nothing for {kind}"):
            list(verify_file(path, VerifyOptions(lambda: files.bundle, files.transcript)))


def failing(**said: object) -> Callable[[dict[str, Any]], object]:
    """Call a report one of a run that did not end, with no finding in it."""
    nothing = {"status": "failed", "finding": "inconclusive", "p_value": None, "score": None}
    if said:
        blank = json.loads(Report("inconclusive", None, 0.0, 0.0, None, (), {}, {}, Controls(), (), {}, {}).to_json())
        kept = ("bundle", "suspect", "reasons", "p_floor", "alpha", "digest")
        return lambda r: r.update({**{name: blank[name] for name in blank if name not in kept}, **nothing, **said})
    return lambda r: r.update(nothing)


FORGED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "finding": (lambda r: r.update(finding="derived"), 'finding: the report says "derived", the transcript gives "not-shown"'),
    "p": (lambda r: r.update(p_value=0.025), r"p_value: the report says 0\.025, the transcript gives 0\.\d+"),
    "no p": (lambda r: r.update(p_value=None), "p_value: the report says null"),
    "score": (lambda r: r.update(score=r["score"] + 1e-6), "score: the report says"),
    "alpha": (lambda r: r.update(alpha=0.5), r"alpha: the report says 0\.5, the transcript gives 0\.05"),
    "a reason": (lambda r: r["reasons"].append("x"), r'reasons: the report says \["x"\], the transcript gives \[\]'),
    "a condition left out": (lambda r: r["conditions"].pop(), "conditions: the report says"),
    "a scheme": (lambda r: r["schemes"][1].update(p_value=0.01), r"schemes\[1\]\.p_value: the report says 0\.01"),
    "a scheme left out": (lambda r: r["schemes"].pop(), "schemes: the report says"),
    "a reference": (lambda r: r["references"][3].update(score=-9.0), r"references\[3\]\.score: the report says -9\.0"),
    "controls": (lambda r: r["controls"].update(agreement=1.0), r"controls\.agreement: the report says 1\.0"),
    "queries": (lambda r: r["queries"].update(sent=1), r"queries\.sent: the report says 1, the transcript gives 84"),
    "the suspect": (lambda r: r["suspect"].update(sha256="b" * 64), r"suspect\.sha256: the report says"),
    "what it ran on": (lambda r: r["suspect"]["runtime"].update(cpu="x"), r"suspect\.runtime\.cpu: the report says"),
    "the pool": (lambda r: r["bundle"].update(references=99), r"bundle\.references: the report says 99"),
    "the tool": (lambda r: r.update(tool="9"), 'tool: the report says "9"'),
    "a key too many": (lambda r: r.update(more=1), r'more: the report says 1, the transcript gives "nothing"'),
    "a key less": (lambda r: r.pop("statistic"), r'statistic: the report says "nothing"'),
    "another bundle": (lambda r: r["bundle"].update(id="0" * 64), "is of another bundle than b.oab"),
    "another transcript": (lambda r: r.update(transcript_sha256="0" * 64), "no line of t.jsonl has the digest"),
    "a failure": (lambda r: r.update(status="failed", finding="derived"), 'says finding: "derived" of a run that did not end'),
    "a failure's pool": (
        failing(own_pool={"finding": "derived", "p_value": 0.001}),
        "says own_pool: .* of a run that did not end",
    ),
    "a failure's schemes": (failing(), "says controls: .* of a run that did not end"),
    "a failure's key": (failing(more=1), "says more: 1 of a run that did not end"),
}


@pytest.mark.parametrize("what", FORGED)
def test_what_a_report_says_otherwise_is_named(tmp_path: Path, what: str) -> None:
    files = made(tmp_path, INNOCENT)
    change, words = FORGED[what]
    edited(files, change)
    with pytest.raises(ArtefactError, match=words):
        files.verify()


def test_numbers_that_another_machine_rounds_otherwise_are_no_forgery_but_are_told(tmp_path: Path) -> None:
    files = made(tmp_path, INNOCENT)
    edited(files, lambda r: r.update(score=r["score"] * (1 + 1e-13)))
    said = files.verify()
    assert "the same words, and numbers up to rounding" in said[4]
    assert said[5].startswith("1 numbers differ by rounding: made on another machine, or with other versions; score: ")


def rechained(lines: list[dict[str, Any]]) -> tuple[bytes, str]:
    """Lines with a chain that fits again, and the digest of the last."""
    previous, text = "", b""
    for line in lines:
        whole = (canonical({**line, "previous": previous}) + "\n").encode()
        previous, text = hashlib.sha256(whole).hexdigest(), text + whole
    return text, previous


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_a_chain_that_was_made_anew_gives_what_its_answers_give(tmp_path: Path) -> None:
    """Whoever holds a transcript can chain other answers: then the finding is theirs, and the report has to say that."""
    honest, other = tmp_path / "a", tmp_path / "b"
    honest.mkdir()
    other.mkdir()
    files, thief = made(honest, INNOCENT), made(other, VICTIM)
    text, digest = rechained(lines_of(thief.transcript))
    files.transcript.write_bytes(text)
    with pytest.raises(ArtefactError, match="has the digest that the report names"):
        files.verify()
    edited(files, lambda r: r.update(transcript_sha256=digest))
    with pytest.raises(ArtefactError, match='finding: the report says "not-shown", the transcript gives "derived"'):
        files.verify()


def last_run(lines: list[dict[str, Any]]) -> int:
    return max(number for number, line in enumerate(lines) if "run" in line)


TAMPERED: dict[str, tuple[Callable[[list[dict[str, Any]]], object], str]] = {
    "the first run left out": (lambda lines: lines.pop(1), "belongs to no run"),
    "the last run left out": (lambda lines: lines.pop(last_run(lines)), "does not follow from t.jsonl: queries"),
    "the end left out": (lambda lines: lines.pop(), "its last check did not end"),
    "other alpha": (
        lambda lines: lines[last_run(lines)]["run"].update(alpha=0.5),
        r"alpha: the report says 0\.05, the transcript gives 0\.5",
    ),
    "alpha no number": (lambda lines: lines[last_run(lines)]["run"].update(alpha="x"), "alpha must be float"),
    "unknown fact": (lambda lines: lines[last_run(lines)]["run"].update(x=1), "unknown field 'x'"),
    "a look left out": (
        lambda lines: lines.pop(next(i for i, x in enumerate(lines) if "look" in x)),
        "does not follow from t.jsonl: p_value",
    ),
    "answers left out": (lambda lines: lines.pop(2), "a query was asked again that was not answered before"),
    "a query that does not exist": (lambda lines: lines[-2].update(again=[*range(77, 85)]), "does not fit the bundle"),
    "a query asked again twice": (lambda lines: lines[-2].update(again=[0, *range(7)]), "does not fit the bundle"),
    "wider than the classes": (lambda lines: lines[-2].update(again=[3]), "answers contradict themselves"),
    "repeats left out": (lambda lines: lines.pop(-2), "different labels"),
    "another suspect": (lambda lines: lines[0]["suspect"].update(source="x"), r"suspect\.source: the report says"),
    "another bundle": (lambda lines: lines[0].update(bundle="0" * 64), "is of another bundle"),
    "impossible input": (lambda lines: lines[0]["input"].update(scale=0.0), "suspect's input"),
    "another schema": (lambda lines: lines[0].update(schema=7), "schema must be str"),
    "sent": (lambda lines: lines[-1].update(sent=7), r"queries\.sent: the report says"),
    "sent no number": (lambda lines: lines[-1].update(sent=-7), "no number of answers"),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_a_transcript_made_to_fit_is_judged_by_what_it_says(tmp_path: Path, what: str) -> None:
    made(tmp_path, INNOCENT, budget=70)
    files = made(tmp_path, INNOCENT, resume=True)
    lines = lines_of(files.transcript)
    assert "again" in lines[-2]
    change, words = TAMPERED[what]
    change(lines)
    text, digest = rechained(lines)
    files.transcript.write_bytes(text)
    edited(files, lambda r: r.update(transcript_sha256=digest))
    with pytest.raises(ArtefactError, match=words):
        files.verify()


@cache
def _places(size: int, seed: int, count: int) -> list[tuple[int, int]]:
    """Places in a file, and which bit to turn there: the ends, and drawn at random."""
    rng = np.random.default_rng(seed)
    drawn = rng.choice(size, min(count, size), replace=False).tolist()
    return [(place, int(rng.integers(8))) for place in sorted({*range(12), *range(size - 12, size), *drawn})]


@pytest.mark.parametrize(("what", "count"), [("report", 800), ("transcript", 300), ("bundle", 200)])
def test_one_turned_bit_anywhere_is_found(tmp_path: Path, what: str, count: int) -> None:
    files = made(tmp_path, repeat=4)
    files.verify()
    path: Path = getattr(files, what)
    whole = path.read_bytes()
    for place, bit in _places(len(whole), 1, count):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << bit
        path.write_bytes(damaged)
        with pytest.raises(OnnxauditError) as caught:
            files.verify()
        assert caught.value.exit_code == 3, (place, bit, str(caught.value))
    path.write_bytes(whole)
    files.verify()


@pytest.mark.parametrize("what", ["report", "transcript", "bundle"])
def test_a_byte_more_or_less_is_found(tmp_path: Path, what: str) -> None:
    files = made(tmp_path)
    path: Path = getattr(files, what)
    whole = path.read_bytes()
    for changed in (whole[:-1], whole[:-2], whole + b"\n", whole + b" ", b" " + whole, b"\xef\xbb\xbf" + whole, whole[1:], b""):
        path.write_bytes(changed)
        if what == "report" and changed == whole[:-1]:
            files.verify()  # as it comes from --json through a shell, which strips the last line's end
            continue
        with pytest.raises(ArtefactError):
            files.verify()


def test_white_space_and_other_spellings_of_the_same_are_found(tmp_path: Path) -> None:
    files = made(tmp_path)
    text = files.report.read_text(encoding="utf-8")
    others = [
        json.dumps(json.loads(text)),
        text.replace('\n "', '\n\t"', 1),
        text.replace("0.05,", "0.050,"),
        text.replace("/", "\\/"),
    ]
    for other in others:
        assert other != text
        files.report.write_text(other, encoding="utf-8")
        with pytest.raises(ArtefactError, match="written otherwise than onnxaudit writes it, though it says the same"):
            files.verify()


def test_a_transcript_cut_off_is_told_and_can_be_gone_on_with(tmp_path: Path) -> None:
    files = made(tmp_path)
    whole = files.transcript.read_bytes()
    for length in (len(whole) - 1, len(whole) - 40, 700):
        files.transcript.write_bytes(whole[:length])
        with pytest.raises(ArtefactError, match=r"t\.jsonl is cut off in line \d+\. check --resume drops that line"):
            files.verify()
    files.transcript.write_bytes(whole.rpartition(b"\n")[0].rpartition(b"\n")[0] + b"\n")  # a whole line less
    with pytest.raises(ArtefactError, match="changed or shortened"):
        files.verify()
    again = made(tmp_path, resume=True)
    assert again.verify()[4].startswith("recomputed from these two: derived")


def test_a_report_holds_when_its_transcript_went_on_and_that_is_said(tmp_path: Path) -> None:
    files = made(tmp_path, INNOCENT, budget=60)
    first = files.report.read_bytes()
    lines = files.transcript.read_bytes().count(b"\n")
    made(tmp_path, INNOCENT, resume=True)
    more = files.transcript.read_bytes().count(b"\n") - lines
    assert len(files.verify()) == 5
    files.report.write_bytes(first)
    assert files.verify()[5] == (
        f"the transcript goes on for {more} lines, which this report does not seal; ask for the later report"
    )


def test_files_of_different_checks_are_told_apart(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    one = made(folders[0], bundle=simulated_bundle(39))
    two = made(folders[1], bundle=simulated_bundle(39, seed=3), suspect=lambda b: Recorded(b, b.answers["victim"], batch=10))
    for mixed in itertools.product((one, two), repeat=3):
        files = Files(mixed[0].report, mixed[1].transcript, mixed[2].bundle)
        if len(set(mixed)) == 1:
            files.verify()
        else:
            with pytest.raises(ArtefactError):
                files.verify()


def test_without_a_transcript_the_seal_is_looked_at_and_the_rest_is_said(tmp_path: Path) -> None:
    files = made(tmp_path)
    with pytest.raises(UsageError, match=r"matches its digest; its finding is recomputed from the transcript.*--evidence"):
        files.verify(evidence=False)
    bundle = saved(with_references(39), tmp_path)
    write(check(bundle, Recorded(bundle, VICTIM), CheckOptions(), Silent()), files.report)
    for evidence in (True, False):
        with pytest.raises(OnnxauditError, match=r"kept no transcript|no line of t\.jsonl|names no transcript") as caught:
            files.verify(evidence=evidence)
        assert caught.value.exit_code == (3 if evidence else 2)
    files.report.write_bytes(files.report.read_bytes().replace(b'"derived"', b'"not-shown"'))
    with pytest.raises(ArtefactError, match="does not match its own digest"):
        files.verify(evidence=False)


@pytest.mark.parametrize("error", [SuspectError("it hung up"), KeyboardInterrupt()])
def test_a_run_that_did_not_end_found_nothing_and_holds(tmp_path: Path, error: BaseException) -> None:
    bundle = saved(with_references(39), tmp_path)
    path = tmp_path / "r.json"
    write(failed(bundle, "x.onnx", CheckOptions(), error, 7), path)
    said = list(verify_file(path, VerifyOptions(lambda: tmp_path / "b.oab")))
    assert said[2].endswith("it found nothing, and there is nothing to recompute")


def run(*arguments: str | Path, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "onnxaudit", *map(str, arguments)], capture_output=True, text=True, check=False, cwd=cwd
    )
    assert done.returncode == code, done.stderr
    return done


def test_the_command_finds_the_bundle_and_says_what_holds(tmp_path: Path) -> None:
    made(tmp_path)
    done = run("verify", "r.json", "--evidence", "t.jsonl", cwd=tmp_path)
    assert done.stdout.splitlines() == [
        "r.json: holds (a report)",
        "  its digest is that of what it says",
        "  b.oab is the bundle it names, and intact",
        "  t.jsonl is the transcript it names, and its lines follow each other",
        f"  recomputed from these two: derived, {SAME} (seconds are only sealed)",
    ]
    assert "its lines follow each other: 84 answers of recorded" in run("verify", "t.jsonl", cwd=tmp_path).stdout
    assert "intact" in run("verify", "b.oab", cwd=tmp_path).stdout
    assert "Give it with --evidence" in run("verify", "r.json", cwd=tmp_path, code=2).stderr
    assert "cannot be read" in run("verify", "r.json", "--evidence", "none", cwd=tmp_path, code=2).stderr
    (tmp_path / "notes.json").write_text('{"a": 1}')
    assert "nothing that onnxaudit writes" in run("verify", "notes.json", cwd=tmp_path, code=3).stderr
    (tmp_path / "b2.oab").write_bytes((tmp_path / "b.oab").read_bytes())
    assert "several bundles here" in run("verify", "r.json", "--evidence", "t.jsonl", cwd=tmp_path, code=2).stderr
    run("verify", "r.json", "--evidence", "t.jsonl", "--bundle", "b.oab", cwd=tmp_path)
    line = json.loads((tmp_path / "r.json").read_text()) | {"scan": {}}
    (tmp_path / "line.json").write_text(json.dumps(line))
    assert "a line of a scan" in run("verify", "line.json", cwd=tmp_path, code=2).stderr


def test_verifying_needs_neither_runtime_nor_torch_nor_network(tmp_path: Path) -> None:
    made(tmp_path)
    code = "import sys; sys.argv[1:] = ['verify', 'r.json', '--evidence', 't.jsonl']\n"
    code += "import onnxaudit.cli\ntry:\n onnxaudit.cli.main()\nfinally:\n print(sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    heavy = {
        "torch",
        "onnxruntime",
        "onnx",
        "scipy",
        "sklearn",
        "matplotlib",
        "jinja2",
        "cryptography",
        "requests",
        "rfc3161_client",
    }
    assert not heavy & {name.strip("'") for name in done.stderr.strip("[]\n").split(", ")}
