"""The command line as users and scripts meet it, in real processes: exit codes, one-line errors, clean stdout, light imports."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxaudit.bundle import QueryBundle, load
from onnxaudit.cli import COMMANDS
from onnxaudit.cli.console import parse_headers
from onnxaudit.errors import UsageError
from onnxaudit_adapters.http.loopback import serve_onnx
from tests.bundles import rewrite, save_linear, simulated_bundle
from tests.conftest import ZOO
from tests.models import assemble
from tests.tabular_zoo import save_tabular_zoo

COPY, TWIN = ZOO / "suspects/copy.onnx", ZOO / "suspects/twin.onnx"
HEAVY = ("torch", "scipy.stats", "sklearn", "matplotlib", "skimage")


def run(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return python("-m", "onnxaudit", *arguments, cwd=cwd, **environment)


def python(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ONNXAUDIT")}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env={**kept, **environment}, capture_output=True, text=True, check=False, timeout=120)


def assert_error(done: subprocess.CompletedProcess[str], code: int, said: str) -> None:
    """One line on stderr, nothing on stdout, and the exit code of the contract."""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: "), done.stderr
    assert re.search(said, done.stderr), done.stderr
    assert done.returncode == code, done.stderr
    assert done.stdout == ""


def document(done: subprocess.CompletedProcess[str]) -> Any:
    """The only thing on stdout: one JSON document."""
    assert done.stdout, (done.returncode, done.stderr)
    value, end = json.JSONDecoder(parse_constant=refuse_constant).raw_decode(done.stdout)
    assert done.stdout[end:] == "\n"
    return value


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} in a report")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder with one small simulated bundle of 4x4 images and 5 classes."""
    simulated_bundle(19).save(tmp_path / "small.oab")
    return tmp_path


# ---------------------------------------------------------------------------------------------------------------- findings


@pytest.mark.parametrize(
    ("arguments", "finding", "code"),
    [
        ([COPY], "derived", 10),
        ([TWIN], "not-shown", 0),
        ([COPY, "--alpha", "0.01"], "inconclusive", 11),
        ([TWIN, "--budget", "200"], "inconclusive", 11),
        ([COPY, "--budget", "200"], "derived", 10),
    ],
    ids=["copy", "twin", "too few references", "spent budget", "budget enough"],
)
def test_exit_codes_follow_the_finding(
    crafted_path: Path, tmp_path: Path, arguments: list[str | Path], finding: str, code: int
) -> None:
    done = run("check", *arguments, "--bundle", crafted_path, "--json", cwd=tmp_path)
    assert (document(done)["finding"], document(done)["status"]) == (finding, "complete")
    assert done.returncode == code
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("access", "word"), [("label", "label"), ("topk:3", "topk")])
def test_access_cuts_what_is_used(crafted_path: Path, tmp_path: Path, access: str, word: str) -> None:
    done = run("check", COPY, "--access", access, "--bundle", crafted_path, "--json", cwd=tmp_path)
    assert (done.returncode, document(done)["suspect"]["access"]) == (10, word)


def test_the_text_says_finding_numbers_and_conditions_without_colours(crafted_path: Path, tmp_path: Path) -> None:
    done = run("check", COPY, "--bundle", crafted_path, cwd=tmp_path, COLORTERM="truecolor")
    assert done.returncode == 10
    assert done.stderr == ""
    assert done.stdout.splitlines()[0] == f"{COPY}: derived"
    assert "Evidence that the suspect is derived from the victim (p = 0.0233, alpha 0.05)." in done.stdout
    for word in ("ipguard-tl", "sac-m", "akh", "controls", "H0:", "42 references", "Conditions:"):
        assert word in done.stdout
    assert "\033" not in done.stdout
    assert "stolen" not in done.stdout


def test_reports_are_written_by_suffix(crafted_path: Path, tmp_path: Path) -> None:
    files = [argument for name in ("r.json", "r.md", "r.txt") for argument in ("-o", name)]
    done = run("check", COPY, "--bundle", crafted_path, "--json", *files, cwd=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.json", "r.md", "r.txt"]
    assert json.loads((tmp_path / "r.json").read_text()) == document(done)
    assert (tmp_path / "r.md").read_text().startswith(f"# {COPY}: derived\n")
    assert (tmp_path / "r.txt").read_text().startswith(f"{COPY}: derived\n")


# ----------------------------------------------------------------------------------------------------------------- bundles


def honest(path: Path) -> Path:
    """A linear model of the simulated bundle's inputs."""
    return save_linear(path, 5, size=4)


def test_the_only_bundle_here_is_found_and_the_environment_counts_before_it(folder: Path, tmp_path_factory: Any) -> None:
    honest(folder / "m.onnx")
    found = run("check", "m.onnx", "--json", cwd=folder)
    assert document(found)["bundle"]["id"] == load(folder / "small.oab").id
    other = tmp_path_factory.mktemp("other") / "other.oab"
    simulated_bundle(2).save(other)
    named = run("check", "m.onnx", "--json", cwd=folder, ONNXAUDIT_BUNDLE=str(other))
    assert document(named)["bundle"]["id"] == load(other).id
    given = run("check", "m.onnx", "--json", "--bundle", "small.oab", cwd=folder, ONNXAUDIT_BUNDLE=str(other))
    assert document(given)["bundle"]["id"] == document(found)["bundle"]["id"]


def test_several_bundles_are_listed(folder: Path) -> None:
    honest(folder / "m.onnx")
    shutil.copyfile(folder / "small.oab", folder / "another.oab")
    assert_error(run("check", "m.onnx", cwd=folder), 2, r"several bundles here: another\.oab, small\.oab.*--bundle")


def test_no_bundle_says_how_to_get_one(tmp_path: Path) -> None:
    honest(tmp_path / "m.onnx")
    assert_error(run("check", "m.onnx", cwd=tmp_path), 2, r"no bundle.*--bundle.*onnxaudit craft")
    assert_error(run("check", "m.onnx", "--bundle", "no.oab", cwd=tmp_path), 2, r"no\.oab cannot be read")
    assert_error(run("check", "m.onnx", cwd=tmp_path, ONNXAUDIT_BUNDLE="gone.oab"), 2, r"gone\.oab cannot be read")


@pytest.mark.parametrize("command", ["check", "show", "verify", "calibrate"])
def test_a_truncated_bundle_is_refused_by_every_command(folder: Path, command: str) -> None:
    honest(folder / "m.onnx")
    (folder / "small.oab").write_bytes((folder / "small.oab").read_bytes()[:-100])
    arguments = {"check": ["m.onnx"], "calibrate": ["m.onnx", "--force"]}.get(command, ["small.oab"])
    assert_error(run(command, *arguments, cwd=folder), 3, r"small\.oab is damaged")


def test_a_bundle_of_another_format_is_refused(folder: Path) -> None:
    rewrite(folder / "small.oab", lambda manifest, _: manifest.update(format=2))
    assert_error(run("show", "small.oab", cwd=folder), 3, "bundle format 2, this version reads 1. Update onnxaudit")


def test_show_verify_and_calibrate(folder: Path) -> None:
    shown = run("show", "small.oab", cwd=folder)
    assert (shown.returncode, shown.stderr) == (0, "")
    for words in (
        "format 1",
        "84 8-bit images of 4x4x1",
        "40 natural inputs, labelled",
        "mean-z/1, alpha 0.05",
        "19: p can fall to 0.05",
    ):
        assert words in shown.stdout
    verified = run("verify", "small.oab", cwd=folder)
    assert (verified.returncode, verified.stderr) == (0, "")
    assert "intact" in verified.stdout
    save_linear(folder / "zero.onnx", 5, weights=np.zeros((16, 5), np.float32), size=4)
    informed(folder / "m.onnx", load(folder / "small.oab"))
    before = (folder / "small.oab").read_bytes()
    assert_error(run("calibrate", "m.onnx", cwd=folder), 2, r"small\.oab exists already.*--force")
    assert_error(
        run("calibrate", "m.onnx", "zero.onnx", "-o", "new.oab", cwd=folder),
        2,
        r"zero\.onnx gets .*the victim 82\.5%: wrong input",
    )
    assert not (folder / "new.oab").exists()
    added = run("calibrate", "m.onnx", "-o", "new.oab", cwd=folder)
    assert (added.returncode, added.stderr) == (0, "")
    assert added.stdout.startswith("new.oab: 20 references, id ")
    assert (folder / "small.oab").read_bytes() == before
    assert [model.source for model in load(folder / "new.oab").manifest.models][-1] == "m.onnx"


def informed(path: Path, bundle: QueryBundle) -> None:
    """A linear model that gets most of the bundle's controls right."""
    pixels = bundle.queries[slice(*bundle.manifest.controls)].reshape(-1, 16) / 255
    weights, *_ = np.linalg.lstsq(pixels, np.eye(5)[bundle.control_labels] * 10, rcond=None)
    save_linear(path, 5, weights=weights.astype(np.float32), size=4)


# ------------------------------------------------------------------------------------------------------------------ errors


def saved(name: str, make: Callable[[Path], object]) -> Callable[[Path], list[str]]:
    def prepare(folder: Path) -> list[str]:
        make(folder / name)
        return [name]

    return prepare


def vector_model(path: Path) -> None:
    weights = numpy_helper.from_array(np.ones((100, 5), np.float32), "weights")
    node = helper.make_node("MatMul", ["x", "weights"], ["logits"])
    inputs, outputs = {"x": (TensorProto.FLOAT, ["n", 100])}, {"logits": (TensorProto.FLOAT, ["n", 5])}
    path.write_bytes(assemble([node], inputs, outputs, [weights]).SerializeToString())


def nan_model(path: Path) -> None:
    save_linear(path, 5, weights=np.full((16, 5), np.nan, np.float32), size=4)


ERRORS: dict[str, tuple[Callable[[Path], list[str]], int, str]] = {
    "missing suspect": (lambda _: ["gone.onnx"], 2, r"gone\.onnx is not a file"),
    "no suspect": (lambda _: [], 2, "SUSPECT, --url or --target"),
    "url of a file": (lambda _: ["--url", "m.onnx"], 2, "--url must begin with http"),
    "url of another kind": (lambda _: ["--url", "ftp://127.0.0.1/m"], 2, "--url must begin with http"),
    "suspect and url": (lambda _: ["m.onnx", "--url", "http://127.0.0.1:9/"], 2, "SUSPECT, --url or --target"),
    "unknown kind": (saved("m.xyz", lambda path: path.write_text("x")), 2, r"nothing here opens 'm\.xyz'.*\.onnx"),
    "folder": (saved("m.onnx", lambda path: path.mkdir()), 2, "not a file"),
    "text as model": (saved("m.onnx", lambda path: path.write_text("just\nsome text\n" * 50)), 3, r"m\.onnx"),
    "empty file": (saved("m.onnx", lambda path: path.touch()), 3, r"m\.onnx"),
    "NaN": (saved("m.onnx", nan_model), 4, "NaN"),
    "wrong size": (saved("m.onnx", vector_model), 2, "100.*4x4x1"),
    "unknown function": (lambda _: ["os:nothing"], 2, "no function 'nothing'"),
    "unknown module": (lambda _: ["no_such_module:f"], 2, "no_such_module cannot be imported"),
    "unknown access": (lambda folder: [honest(folder / "m.onnx").name, "--access", "scores"], 2, "--access 'scores'"),
    "top zero": (lambda folder: [honest(folder / "m.onnx").name, "--access", "topk:0"], 2, "--access 'topk:0'"),
    "alpha of 2": (lambda folder: [honest(folder / "m.onnx").name, "--alpha", "2"], 2, "--alpha 2 must lie between"),
    "no budget": (lambda folder: [honest(folder / "m.onnx").name, "--budget", "0"], 2, "--budget"),
    "unknown report": (lambda folder: [honest(folder / "m.onnx").name, "-o", "r.pdf"], 2, r"no report format '\.pdf'.*\.json"),
    "report in no folder": (lambda folder: [honest(folder / "m.onnx").name, "-o", "no/r.json"], 2, "folder does not exist"),
    "unknown layout": (lambda folder: [honest(folder / "m.onnx").name, "--layout", "CHW"], 2, "--layout 'CHW'.*NCHW"),
    "scale of letters": (lambda folder: [honest(folder / "m.onnx").name, "--scale", "1/0"], 2, "--scale '1/0'"),
    "no references there": (lambda folder: [honest(folder / "m.onnx").name, "--references", "no"], 2, "no is not a folder"),
    "unset variable": (lambda _: ["--url", "http://127.0.0.1:9/", "--header", "Key: $UNSET_X"], 2, r"\$UNSET_X.*not set"),
}


@pytest.mark.parametrize("what", ERRORS)
def test_mistakes_are_told_in_one_line(folder: Path, what: str) -> None:
    prepare, code, said = ERRORS[what]
    arguments = prepare(folder)
    before = sorted(path.name for path in folder.iterdir())
    assert_error(run("check", *arguments, cwd=folder), code, said)
    assert sorted(path.name for path in folder.iterdir()) == before


REPORTED = (
    "missing suspect", "unknown kind", "folder", "text as model", "empty file", "NaN", "wrong size",
    "unknown function", "unknown module", "no references there",
)  # fmt: skip


@pytest.mark.parametrize("what", REPORTED)
def test_whatever_fails_once_the_bundle_is_loaded_is_a_report(folder: Path, what: str) -> None:
    prepare, code, said = ERRORS[what]
    done = run("check", *prepare(folder), "--json", "-o", "r.json", cwd=folder)
    report = document(done)
    assert (done.returncode, done.stderr) == (code, "")
    assert (report["status"], report["finding"], report["p_value"]) == ("failed", "inconclusive", None)
    assert re.search(said, report["error"])
    assert report["bundle"]["id"] == load(folder / "small.oab").id
    assert report["queries"] == {"sent": 0, "reused": 0, "failed": 0}
    assert json.loads((folder / "r.json").read_text()) == report


def test_a_report_is_shown_before_it_is_written(folder: Path) -> None:
    """Answers were paid for: a file that cannot be written must not swallow what they say."""
    honest(folder / "m.onnx")
    name = "r" * 245 + ".json"  # and the name of what is written first is too long
    done = run("check", "m.onnx", "--json", "-o", name, cwd=folder)
    assert document(done)["status"] == "complete"
    assert done.stderr.startswith(f"error: {name} cannot be written")
    assert done.stderr.count("\n") == 1
    assert done.returncode == 2


@pytest.mark.parametrize("arguments", [["frobnicate"], ["check", "--frobnicate"], ["check", "--budget", "many", "m.onnx"]])
def test_misspelt_commands_and_options_are_usage_errors(folder: Path, arguments: list[str]) -> None:
    done = run(*arguments, cwd=folder)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def test_a_server_that_is_down_is_told_in_one_line_and_reported(folder: Path) -> None:
    url = f"http://127.0.0.1:{closed_port()}/v2/models/m"
    assert_error(run("check", "--url", url, cwd=folder), 4, r"127\.0\.0\.1")
    done = run("check", "--url", url, "--json", cwd=folder)
    report = document(done)
    assert (done.returncode, report["status"], report["finding"]) == (4, "failed", "inconclusive")
    assert done.stderr == ""


def test_a_failed_run_is_one_json_document_and_a_report_file(folder: Path) -> None:
    nan_model(folder / "m.onnx")
    done = run("check", "m.onnx", "--json", "-o", "r.json", "-o", "r.md", cwd=folder)
    report = document(done)
    assert (done.returncode, done.stderr) == (4, "")
    assert (report["status"], report["finding"], report["p_value"]) == ("failed", "inconclusive", None)
    assert "NaN or infinity" in report["error"]
    assert json.loads((folder / "r.json").read_text()) == report
    assert "NaN or infinity" in (folder / "r.md").read_text()


def test_an_interrupted_run_is_a_report_with_exit_code_130(folder: Path) -> None:
    (folder / "stopper.py").write_text("def f(batch):\n    raise KeyboardInterrupt\n")
    done = run("check", "stopper:f", "--json", cwd=folder)
    report = document(done)
    assert (done.returncode, report["status"], report["finding"]) == (130, "interrupted", "inconclusive")
    assert "Traceback" not in done.stderr


def test_what_a_function_prints_does_not_spoil_the_json(folder: Path) -> None:
    """stdout carries the result only, also where a suspect's own code is talkative."""
    (folder / "talker.py").write_text(
        "print('importing')\ndef f(batch):\n    print('asked', len(batch))\n    return batch.reshape(len(batch), -1)[:, :5]\n"
    )
    done = run("check", "talker:f", "--json", cwd=folder)
    assert document(done)["status"] == "complete"


def test_an_address_is_asked_alike_with_and_without_url(folder: Path) -> None:
    """Some queries twice, to see whether it says the same again."""
    honest(folder / "m.onnx")
    with serve_onnx(str(folder / "m.onnx")) as url:
        first = document(run("check", "--url", url, "--json", "--evidence", "1.jsonl", cwd=folder))
        second = document(run("check", url, "--json", "--evidence", "2.jsonl", cwd=folder))
    assert first["queries"]["sent"] == 84 + 4
    for changing in ("seconds", "digest", "transcript_sha256"):
        del first[changing], second[changing]
    assert first == second


def test_options_that_would_do_nothing_are_refused(folder: Path) -> None:
    honest(folder / "m.onnx")
    for option, value in (("--timeout", "3"), ("--ca-bundle", "none.pem"), ("--client-cert", "none.pem"), ("--rate", "0")):
        assert_error(run("check", "m.onnx", option, value, cwd=folder), 2, f"{option} can only be used with --url or --target")
    assert_error(run("check", "m.onnx", "--resume", cwd=folder), 2, "none is named.*--evidence")


def test_an_interview_is_resumed_and_not_overwritten(folder: Path) -> None:
    honest(folder / "m.onnx")
    first = document(run("check", "m.onnx", "--json", "--evidence", "e.jsonl", "--budget", "30", cwd=folder))
    assert first["queries"] == {"sent": 30, "reused": 0, "failed": 0}
    assert_error(run("check", "m.onnx", "--evidence", "e.jsonl", cwd=folder), 2, "exists already.*--resume")
    second = document(run("check", "m.onnx", "--json", "--evidence", "e.jsonl", "--resume", cwd=folder))
    assert second["queries"] == {"sent": 54 + 8, "reused": 30, "failed": 0}  # eight are asked again after resuming
    assert "answers were judged 2 times as they came in: p is multiplied by 2" in second["conditions"]
    assert (first["p_floor"], second["p_floor"]) == (0.1, 0.1)
    assert any(reason.startswith("19 references at look 2: ") for reason in second["reasons"])
    for otherwise in (["--access", "label"], ["--scale", "1"], ["--mean", "0.5"]):
        arguments = ["m.onnx", *otherwise, "--evidence", "e.jsonl", "--resume"]
        assert_error(run("check", *arguments, cwd=folder), 2, "another bundle or suspect")
    (folder / "notes.txt").write_text("mine")
    assert_error(run("check", "m.onnx", "--evidence", "notes.txt", "--resume", cwd=folder), 2, "is not a transcript")
    assert (folder / "notes.txt").read_text() == "mine"
    save_linear(folder / "other.onnx", 5, seed=1, size=4)
    assert_error(run("check", "other.onnx", "--evidence", "e.jsonl", "--resume", cwd=folder), 2, "another bundle or suspect")


class Bomb:
    """Unpickled, it leaves a trace in the current folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("command", ["craft", "check"])
def test_a_pickle_is_refused_and_never_run(folder: Path, command: str) -> None:
    (folder / "victim.pt").write_bytes(pickle.dumps(Bomb()))
    more = ["--input", "4x4x1"] if command == "craft" else []
    done = run(command, "victim.pt", *more, cwd=folder)
    assert not (folder / "exploded").exists()
    assert_error(done, 3, r"victim\.pt")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["check", "gone.onnx"], 2),
        (["check", "text.onnx"], 3),
        (["check", "m.onnx", "--bundle", "gone.oab"], 2),
        (["show", "text.onnx"], 3),
        (["calibrate", "gone.onnx", "-o", "new.oab"], 2),
    ],
)
def test_debug_shows_where_it_went_wrong_and_keeps_the_exit_code(folder: Path, arguments: list[str], code: int) -> None:
    (folder / "text.onnx").write_text("just text")
    plain = run(*arguments, cwd=folder)
    assert_error(plain, code, ".")
    done = run(*arguments, "--debug", cwd=folder)
    assert "Traceback" in done.stderr
    assert done.stderr.endswith(plain.stderr)
    assert (done.returncode, done.stdout) == (code, "")


# ----------------------------------------------------------------------------------------------------------- help, imports


@pytest.mark.parametrize("arguments", [[], ["craft"], ["check"], ["bench"]], ids=["all", "craft", "check", "bench"])
def test_help_works_without_the_torch_extra(folder: Path, arguments: list[str]) -> None:
    done = blocked([*arguments, "--help"], folder, "torch", "sklearn", "skimage", "joblib")
    assert done.returncode == 0
    assert done.stderr == ""
    assert "Usage: onnxaudit" in done.stdout
    if not arguments:
        assert all(command in done.stdout for command in COMMANDS)


def test_lists_of_schemes_and_adapters(tmp_path: Path) -> None:
    schemes, adapters = run("schemes", cwd=tmp_path), run("adapters", cwd=tmp_path)
    assert (schemes.returncode, schemes.stderr, adapters.returncode, adapters.stderr) == (0, "", 0, "")
    assert all(word in schemes.stdout for word in ("ipguard-tl", "sac-m", "akh", "matching-rate", "ipguard = ipguard-tl"))
    assert all(word in adapters.stdout for word in (".onnx", ".ort", ".pt2", "https://", "module:function"))


def blocked(arguments: list[str], folder: Path, *modules: str) -> subprocess.CompletedProcess[str]:
    """The command where importing these modules fails, as if they were not installed."""
    code = f"import sys; sys.modules.update(dict.fromkeys({modules!r})); sys.argv = ['onnxaudit', *{arguments!r}]; "
    return python("-c", code + "from onnxaudit.cli import main; main()", cwd=folder)


@pytest.mark.parametrize("command", ["check", "show", "--help"])
def test_light_commands_import_nothing_heavy(crafted_path: Path, tmp_path: Path, command: str) -> None:
    arguments = {
        "check": ["check", str(COPY), "--bundle", str(crafted_path), "-o", "r.md"],
        "show": ["show", str(crafted_path)],
        "--help": ["--help"],
    }[command]
    code = f"""
import os, sys
os._exit = sys.exit  # check leaves the interpreter in a hurry; what it imported is to be told first
sys.argv = ['onnxaudit', *{arguments!r}]
from onnxaudit.cli import main
try:
    main()
finally:
    print('HEAVY', sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)
"""
    done = python("-c", code, cwd=tmp_path)
    assert done.returncode == (10 if command == "check" else 0)
    assert done.stderr == "HEAVY []\n"
    assert done.stdout


def test_check_works_where_the_torch_extra_is_not_installed(crafted_path: Path, tmp_path: Path) -> None:
    done = blocked(["check", str(COPY), "--bundle", str(crafted_path), "--json"], tmp_path, *HEAVY, "joblib")
    assert (done.returncode, document(done)["finding"], done.stderr) == (10, "derived", "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--budgets", "50,100", "--queries", "100"], r"--queries and --budgets say the same"),
        (["--budgets", ""], r"--budgets '' is not a list"),
        (["--seeds", "0"], r"--seeds must be at least 1"),
    ],
)
def test_options_of_bench_that_exclude_each_other_are_refused(folder: Path, arguments: list[str], said: str) -> None:
    honest(folder / "m.onnx")
    kinds = ("positive", "negative", "reference")
    entries = [{"file": "m.onnx", "kind": kind, "task": "any"} for kind in kinds]
    (folder / "zoo.json").write_text(json.dumps(entries))
    assert_error(run("bench", "zoo.json", "--victim", "m.onnx", *arguments, cwd=folder), 2, said)


def test_bench_chooses_schemes_that_suit_vectors_and_data_without_labels(tmp_path: Path) -> None:
    save_tabular_zoo(tmp_path, 5)
    with np.load(tmp_path / "table.npz") as table:
        x = table["x"]
    np.savez(tmp_path / "table.npz", x=x)
    wanted = ["--scheme", "auto", "--scheme", "random", "--queries", "10", "--jobs", "1"]
    done = run("bench", "zoo.json", "--victim", "victim.pt", "--data", "table.npz", *wanted, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "bench/results.json").read_text())
    assert {row["scheme"] for row in results["rows"]} == {"ipguard-tl", "random", "combined"}


@pytest.mark.parametrize("command", ["craft", "bench", "check"])
def test_a_command_without_its_extra_says_what_to_install(folder: Path, command: str) -> None:
    shutil.copyfile(ZOO / "victim.pt", folder / "m.pt")
    (folder / "zoo.json").write_text('[{"file": "m.pt", "kind": "positive"}]')
    arguments = {"craft": ["m.pt"], "bench": ["zoo.json", "--victim", "m.pt"], "check": ["m.pt"]}[command]
    assert_error(
        blocked([command, *arguments], folder, "torch"), 2, r"(?i)torch.*not installed.*pip install 'onnxaudit\[torch\]'"
    )


def test_headers_are_filled_in_and_a_part_of_a_password_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "t0p")
    assert parse_headers(["A: Bearer $TOKEN", "B: ${TOKEN}!", "C: x$$y$$TOKEN"]) == {
        "A": "Bearer t0p",
        "B": "t0p!",
        "C": "x$y$TOKEN",
    }
    with pytest.raises(UsageError, match=r"--header A uses \$UNSET, which is not set"):
        parse_headers(["A: $UNSET"])
    with pytest.raises(UsageError, match=r"--header A uses a variable, which is not set") as error:
        parse_headers(["A: ab$ecret9"])
    assert "ecret" not in str(error.value)
