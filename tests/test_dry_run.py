"""check --dry-run and --target, as a user types them, against a small server on loopback."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxaudit.audit.checking import REPEATED
from tests.bundles import CLASSES, QUERIES, simulated_bundle
from tests.http_script import Answer, Script, as_json, served

TOKEN = "s3cr3t-token-of-a-test"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a bundle of five classes, which is where the command runs."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("SUSPECT_TOKEN", TOKEN)
    monkeypatch.chdir(tmp_path)
    simulated_bundle().save(tmp_path / "victim.oab")
    return tmp_path


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in the current folder and environment."""
    command = [sys.executable, "-m", "onnxaudit", "check", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def scores_of(_: int, body: bytes) -> Answer:
    """The scores of a linear model; it echoes its request's beginning, secrets and all."""
    rows = np.array(json.loads(body)["input"], np.float64).reshape(-1, 16)
    return as_json({"output": (rows @ np.arange(80).reshape(16, 5) / 80).tolist(), "seen": body[:40].decode()})


@pytest.fixture
def server() -> Iterator[tuple[str, Script]]:
    script = Script(scores_of, {})
    with served(script) as url:
        yield url + "/predict", script


def test_a_dry_run_sends_one_query_and_shows_what_a_check_costs(here: Path, server: tuple[str, Script]) -> None:
    url, script = server
    arguments = ["--url", url, "--header", "Authorization: Bearer $SUSPECT_TOKEN", "--dry-run", "--rate", "2", "--looks", "none"]
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    shown = done.stdout
    assert len(script.posts) == 1
    assert len(json.loads(script.posts[0])["input"]) == 1
    assert script.headers[-1]["Authorization"] == f"Bearer {TOKEN}"
    assert TOKEN not in shown
    assert "Authorization: ***" in shown
    assert "logits: 4 (ü)" in shown
    assert "plain" in shown
    repeats = max(4, math.ceil(REPEATED * QUERIES))
    assert f"at most {QUERIES + repeats} queries, {repeats} of them repeats" in shown
    assert f"at this rate {(QUERIES + repeats) // 2} s" in shown
    assert sorted(path.name for path in here.iterdir()) == ["victim.oab"]


def test_a_dry_run_as_json(here: Path, server: tuple[str, Script]) -> None:
    url, script = server
    document: dict[str, Any] = json.loads(run("--url", url, "--dry-run", "--json", "--budget", "30", "--batch", "8").stdout)
    assert document["schema"] == "onnxaudit.dry-run/1"
    assert document["plan"]["queries"] == 30
    assert (document["plan"]["batch"], document["plan"]["requests"]) == (8, 4)
    assert document["plan"]["spent"] == len(script.posts) == 1
    assert document["exchange"]["request"] == f"POST {url}"


def test_a_dry_run_that_fails_says_why(here: Path) -> None:
    with served(Script(lambda *_: (400, {}, f"no {TOKEN}".encode()), {})) as url:
        done = run("--url", f"{url}/predict", "--header", "X-Key: $SUSPECT_TOKEN", "--dry-run")
    assert (done.returncode, done.stdout) == (4, "")
    assert "to the first request" in done.stderr
    assert TOKEN not in done.stderr


def target(folder: Path, url: str, more: str = "") -> Path:
    path = folder / "target.toml"
    lines = [f'url = "{url}"', more, "[request]", 'headers = { Authorization = "Bearer ${SUSPECT_TOKEN}" }']
    path.write_text("\n".join(lines))
    return path


def test_a_target_file_is_checked_like_a_url(here: Path, server: tuple[str, Script]) -> None:
    url, script = server
    path = target(here, url, "limits = { batch = 8, timeout = 5, rate = 100000 }")
    done = run("--target", str(path), "--looks", "none", "--json")
    report = json.loads(done.stdout)
    assert report["status"] == "complete"
    assert report["suspect"]["source"] == url
    assert {headers["Authorization"] for headers in script.headers if "Content-Length" in headers} == {f"Bearer {TOKEN}"}
    assert max(len(json.loads(body)["input"]) for body in script.posts) == 8
    assert TOKEN not in next(here.glob("*.jsonl")).read_text()
    sent = len(script.posts)
    again = run("--target", str(path), "--looks", "none", "--json", "--resume", "--batch", "4")
    assert (again.returncode, json.loads(again.stdout)["finding"]) == (done.returncode, report["finding"])
    assert max(len(json.loads(body)["input"]) for body in script.posts[sent:]) == 4


def test_the_budget_of_a_target_file_is_kept(here: Path, server: tuple[str, Script]) -> None:
    url, script = server
    done = run("--target", str(target(here, url, "limits = { budget = 20 }")), "--looks", "none", "--json")
    assert json.loads(done.stdout)["queries"]["sent"] == 20
    assert sum(len(json.loads(body)["input"]) for body in script.posts) == 20


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("limits = { rat = 5 }", "Did you mean rate"),
        ('input_name = "${X}', "is not TOML"),
        ('reply = { label = "x" }', "[request]"),
    ],
)
def test_a_target_file_that_makes_no_sense_ends_before_any_request(
    here: Path, server: tuple[str, Script], more: str, message: str
) -> None:
    url, script = server
    done = run("--target", str(target(here, url, more)))
    assert done.returncode in (2, 3)
    assert message in done.stderr
    assert (script.posts, script.gets) == ([], [])


def test_an_unset_variable_ends_before_any_request(
    here: Path, server: tuple[str, Script], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, script = server
    monkeypatch.delenv("SUSPECT_TOKEN")
    done = run("--target", str(target(here, url)))
    assert done.returncode == 2
    assert "SUSPECT_TOKEN}, which is not set" in done.stderr
    assert (script.posts, script.gets) == ([], [])


def test_a_suspect_is_given_once(here: Path, server: tuple[str, Script]) -> None:
    url, _ = server
    done = run("--target", str(target(here, url)), "--url", url)
    assert done.returncode == 2
    assert "either" in done.stderr


def test_a_ranking_of_the_bundles_own_names_is_understood(here: Path) -> None:
    names = simulated_bundle().manifest.class_names
    assert len(names) == CLASSES
    ranking = [
        {"label": name, "score": score} for name, score in zip(reversed(names), (0.5, 0.25, 0.125, 0.0625, 0.0625), strict=True)
    ]
    with served(Script(lambda *_: as_json(ranking), {})) as url:
        done = run("--url", f"{url}/predict", "--dry-run")
    assert "probs: 4 (ü) 0.5, 3 (d) 0.25" in done.stdout


def test_an_unknown_access_is_refused_before_anything_is_asked(here: Path, server: tuple[str, Script]) -> None:
    url, script = server
    done = run("--url", url, "--access", "nonsense", "--dry-run")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--access 'nonsense' is not known" in done.stderr
    assert not script.posts
    assert not script.gets
