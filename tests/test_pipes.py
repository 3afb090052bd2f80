"""Pipes and devices under the names of files: a pipe that nobody writes to never ends, nor does /dev/zero. Each is one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from onnxaudit.archives import sha256_of
from onnxaudit.errors import ArtefactError
from onnxaudit.regular import open_regular
from tests.linear_scan import save_bundle, save_suspect, weights_of

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="has no such files")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound bundle and suspect, and pipes and links to devices beside them."""
    found = tmp_path_factory.mktemp("pipes")
    save_bundle(found / "v.oab", 19)
    save_suspect(found / "s.onnx", weights_of(7))
    for suffix in ("onnx", "oab", "toml", "json", "jsonl"):
        os.mkfifo(found / f"pipe.{suffix}")
        (found / f"zero.{suffix}").symlink_to("/dev/zero")
    (found / "models").mkdir()
    os.mkfifo(found / "models/m.onnx")
    save_suspect(found / "models/s.onnx", weights_of(8))
    return found


COMMANDS = (
    ("check", "{}.onnx", "--bundle", "v.oab"),
    ("check", "{}.onnx", "--bundle", "v.oab", "--sandbox"),
    ("check", "s.onnx", "--bundle", "{}.oab"),
    ("check", "s.onnx", "--bundle", "v.oab", "--evidence", "{}.jsonl"),
    ("check", "--target", "{}.toml", "--bundle", "v.oab"),
    ("verify", "{}.json"),
    ("show", "{}.oab"),
    ("commit", "{}.oab"),
)


@pytest.mark.parametrize("what", ["pipe", "zero"])
def test_no_command_waits_or_fills_memory(folder: Path, what: str) -> None:
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "onnxaudit", *(word.format(what) for word in command)],
            *(-1, None, subprocess.DEVNULL, subprocess.DEVNULL, subprocess.PIPE),
            cwd=folder,
            text=True,
        )
        for command in COMMANDS
    ]
    for command, process in zip(COMMANDS, running, strict=True):
        try:
            _, said = process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        assert process.returncode in (2, 3), (command, said)
        assert "bug" not in said
        assert "error: " in said


def test_a_scan_names_them_and_goes_on(folder: Path, tmp_path: Path) -> None:
    """Named on the command line they are lines of their own; in a folder they are no models."""
    command = [sys.executable, "-m", "onnxaudit", "scan", "pipe.onnx", "zero.onnx", "models", "--bundle", "v.oab", "--jobs", "1"]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "f.jsonl")], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "f.jsonl").read_text().splitlines()
    assert sum('"status":"failed"' in line.replace(" ", "") for line in lines) == 2
    assert len(lines) == 3


def test_a_list_without_end_is_refused(folder: Path) -> None:
    command = [sys.executable, "-m", "onnxaudit", "scan", "--list", "/dev/zero", "--bundle", "v.oab"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "has more than" in done.stderr


def test_regular_files_and_links_to_them_are_opened(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder / "s.onnx")
    with open_regular(tmp_path / "link") as file:
        assert file.read() == (folder / "s.onnx").read_bytes()
    assert sha256_of(tmp_path / "link") == sha256_of(folder / "s.onnx")
    for name in ("pipe.onnx", "zero.onnx"):
        with pytest.raises(ArtefactError, match="pipe or a device"):
            open_regular(folder / name)
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)
