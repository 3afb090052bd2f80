"""Names of files and folders that a stranger chose: they steer no terminal, pass for no line of a report, and end no scan."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from onnxaudit.audit.scan.sources import DEEPEST, gathered
from onnxaudit.bundle import load
from onnxaudit.report.contents import contents
from tests.bundles import rewrite
from tests.linear_scan import near, save_bundle, save_suspect, save_suspects, weights_of

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="such names cannot be given")
STEERING = "\x1b[2J\x1b]0;x\x07\u202e"
LIE = "x\n\ns.onnx: derived\n  Evidence that the suspect is derived\n"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "v.oab"
    save_bundle(path, 19)
    return path


def _run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "onnxaudit", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, errors="replace", timeout=60, check=False)


def _clean(done: subprocess.CompletedProcess[str]) -> None:
    for text in (done.stdout, done.stderr):
        assert all(letter.isprintable() or letter == "\n" for letter in text), repr(text)
        assert not [line for line in text.splitlines() if line.startswith("s.onnx: derived")], text


def test_references_and_suspects(tmp_path: Path, bundle: Path) -> None:
    save_suspects(tmp_path / "pool", 3, 0)
    for name in (STEERING, LIE, os.fsdecode(b"\xff")):
        (tmp_path / f"pool/{name}.onnx").write_bytes(b"nothing")
    suspect = save_suspect(tmp_path / f"{LIE}{STEERING}.onnx", weights_of(9))
    common = ("--bundle", str(bundle), "--references", "pool", "--device", "cpu")
    done = _run("check", suspect.name, *common, "-o", "r.html", "-o", "r.md", "-o", "r.json", cwd=tmp_path)
    assert done.returncode in (0, 11), done.stderr
    assert done.stderr.count("left out") == 3
    _clean(done)
    assert not [line for line in (tmp_path / "r.md").read_text().splitlines() if line.startswith("s.onnx")]
    assert json.loads((tmp_path / "r.json").read_bytes())["status"] == "complete"


def test_a_scan(tmp_path: Path, bundle: Path) -> None:
    (tmp_path / "m").mkdir()
    for name in (STEERING, LIE, os.fsdecode(b"\xff")):
        (tmp_path / f"m/{name}.onnx").write_bytes(b"nothing")
    save_suspect(tmp_path / f"m/{LIE}2.onnx", near(1))
    done = _run("scan", "m", "--bundle", str(bundle), "-o", "f.jsonl", "--jobs", "1", cwd=tmp_path)
    _clean(done)
    lines = [json.loads(line) for line in (tmp_path / "f.jsonl").read_bytes().splitlines()]
    assert sorted(line["status"] for line in lines) == ["complete", "failed", "failed", "failed"]


def test_verify(tmp_path: Path, bundle: Path) -> None:
    suspect = save_suspect(tmp_path / f"{LIE}.onnx", weights_of(9))
    _run("check", suspect.name, "--bundle", str(bundle), "--evidence", "e.jsonl", "--device", "cpu", cwd=tmp_path)
    done = _run("verify", "e.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    _clean(done)


def test_what_a_bundle_says_is_one_line_each(tmp_path: Path, bundle: Path) -> None:
    path = tmp_path / "v.oab"
    path.write_bytes(bundle.read_bytes())
    rewrite(path, lambda manifest, _: manifest["models"][0].update(source=f"{LIE}.pt"))
    assert not [line for line in contents(load(path)).splitlines() if line.startswith("s.onnx")]


def test_links_to_themselves_end_no_scan(tmp_path: Path, bundle: Path) -> None:
    save_suspect(tmp_path / "m/s.onnx", weights_of(9))
    (tmp_path / "m/loop.onnx").symlink_to("loop.onnx")
    (tmp_path / "m/loop.xml").symlink_to("loop.xml")
    (tmp_path / "m/nowhere.onnx").symlink_to("gone")
    assert [Path(found).name for found in gathered([str(tmp_path / "m")])] == ["loop.onnx", "s.onnx"]
    done = _run("scan", "m", "--bundle", str(bundle), "-o", "f.jsonl", "--jobs", "1", cwd=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "f.jsonl").read_bytes().splitlines()]
    assert [line["status"] for line in lines] == ["failed", "complete"], done.stderr


def test_folders_within_folders_end_no_scan(tmp_path: Path) -> None:
    """2000 folders deep, what they hold cannot even be named; a link back to the start is not followed."""
    save_suspect(tmp_path / "m/s.onnx", weights_of(9))
    (tmp_path / "m/again").symlink_to(tmp_path / "m")
    here = Path.cwd()
    try:
        os.chdir(tmp_path / "m")
        for _ in range(2000):
            os.mkdir("d")  # noqa: PTH102 - a path that is built up would be too long
            os.chdir("d")
    finally:
        os.chdir(here)
    found = gathered([str(tmp_path / "m")])
    assert found[-1].endswith("/m/s.onnx")
    assert len(found) == 2
    assert found[0].count("/d") == DEEPEST + 1
    (tmp_path / "m/d").rename(tmp_path / "deep")
    subprocess.run(["rm", "-rf", str(tmp_path / "deep")], check=True)  # shutil cannot go so deep


def test_a_suspect_whose_name_is_no_text_has_a_transcript_like_others(tmp_path: Path, bundle: Path) -> None:
    name = os.fsdecode(b"s\xff.onnx")
    save_suspect(tmp_path / name, weights_of(7))
    line = ["check", name, "--bundle", str(bundle), "--evidence", "t.jsonl", "-o", "r.json"]
    assert _run(*line, cwd=tmp_path).returncode in (0, 11)
    assert _run(*line, "--resume", cwd=tmp_path).returncode in (0, 11)
    assert _run("verify", "r.json", "--evidence", "t.jsonl", "--bundle", str(bundle), cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    "option",
    [["--url", "http://127.0.0.1:1/\udcff"], ["--header", "X: \udcff"], ["--dialect", "\udcff"], ["--output-name", "\udcff"]],
)
def test_options_that_are_no_text_are_no_bug(tmp_path: Path, bundle: Path, option: list[str]) -> None:
    url = [] if option[0] == "--url" else ["--url", "http://127.0.0.1:1/x"]
    done = _run("check", *url, *option, "--bundle", str(bundle), cwd=tmp_path)
    assert done.returncode in (2, 4), done
    assert done.stderr.startswith("error: "), done
