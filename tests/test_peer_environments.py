"""Environments of real servers: whole or made again, waited for, and one clear line where one cannot be had."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.peers import environments, schemas
from tests.peers.__main__ import make
from tests.peers.environments import CannotInstallError, filling


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Environments go here."""
    monkeypatch.setattr(environments, "HOME", tmp_path / "peers")
    return tmp_path / "peers"


def fill(name: str, contents: str) -> bool:
    """Whether the place had to be filled."""
    with filling(name, contents) as place:
        if place:
            assert not list(place.folder.iterdir())
            (place.folder / "part").write_text(contents)
    return place is not None


def test_a_place_is_filled_once(home: Path) -> None:
    assert [fill("a", "x"), fill("a", "x")] == [True, False]
    assert (home / "a" / "part").read_text() == "x"


def test_other_contents_are_filled_again(home: Path) -> None:
    assert [fill("a", "x"), fill("a", "y"), fill("a", "y")] == [True, True, False]


def test_a_moved_place_is_filled_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs of an environment name its folder in their first line."""
    fill("a", "x")
    home.rename(home.with_name("elsewhere"))
    monkeypatch.setattr(environments, "HOME", home.with_name("elsewhere"))
    assert fill("a", "x")


@pytest.mark.parametrize("end", [KeyboardInterrupt, CannotInstallError("no")])
def test_an_interrupted_filling_is_not_taken_for_whole(home: Path, end: type[BaseException] | BaseException) -> None:
    def fill_half() -> None:
        with filling("a", "x") as place:
            assert place is not None
            (place.folder / "half").write_text("half")
            raise end

    with pytest.raises((KeyboardInterrupt, CannotInstallError)):
        fill_half()
    assert fill("a", "x")
    assert not (home / "a" / "half").exists()


def test_a_step_that_outlives_its_killed_parent_keeps_others_out(home: Path, tmp_path: Path) -> None:
    """Killed at any moment: what pip still writes goes into no environment that somebody else is making."""
    go_on = tmp_path / "go-on"
    os.mkfifo(go_on)
    code = (
        "from pathlib import Path; from tests.peers import environments\n"
        f"environments.HOME = Path({str(home)!r})\n"
        "with environments.filling('a', 'x') as place:\n"
        f"    place.run({sys.executable!r}, '-c', \"import os; print(open('{go_on}').read())\")\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=environments.ROOT)
    with go_on.open("w"):  # opens when the step reads: it runs
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        with (home / "a.lock").open("w") as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert fill("a", "x")  # once the step has ended


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("WARNING: slow\nERROR: no such version\nERROR: no match\n[notice] a new pip", "ERROR: no such version"),
        ("E: no such package", "E: no such package"),
        ("one\ntwo\n\n", "two"),
        ("", "nothing"),
    ],
)
def test_the_reason_is_what_the_program_called_an_error(home: Path, said: str, reason: str) -> None:
    def fail() -> None:
        with filling("a", "x") as place:
            assert place is not None
            place.run(sys.executable, "-c", f"import sys; print({said!r}, file=sys.stderr); sys.exit(1)")

    with pytest.raises(CannotInstallError, match=f"^a cannot be installed here: python.* said {reason}$"):
        fail()


@pytest.mark.peers
def test_what_cannot_be_installed_ends_with_one_line_and_a_code(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(environments.PINS, "bentoml", ("onnxaudit-no-such-server==1",))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(home))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    assert make(["bentoml"]) == 1
    last = capsys.readouterr().err
    assert last.count("\n") == 1
    assert "bentoml cannot be installed here: python said ERROR:" in last
    assert "onnxaudit-no-such-server" in last
    assert not (home / "bentoml" / "finished.txt").exists()


def test_a_server_without_java_is_named(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", str(home))
    assert make(["torchserve"]) == 1
    assert "needs Java" in capsys.readouterr().err


def test_schemas_are_left_out_without_npm(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(home))
    assert make(["schemas"]) == 0
    assert "there is no npm" in capsys.readouterr().out
    with pytest.raises(CannotInstallError, match="no npm"):
        schemas.schemas()


def test_make_runs_no_test_where_an_environment_is_missing() -> None:
    """The recipe's first line decides: make stops at a line that fails."""
    lines = (environments.ROOT / "Makefile").read_text().partition("\npeers:")[2].splitlines()[1:3]
    assert [line.strip() for line in lines] == ["$(BIN)/python -m tests.peers", "$(BIN)/pytest -m 'peers or servers'"]


def test_another_package_under_the_same_name_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.tgz"
    other.write_bytes(b"not what was meant")
    with pytest.raises(CannotInstallError, match="is not what it was") as caught:
        schemas.check_integrity(other)
    assert schemas.INTEGRITY in str(caught.value)
