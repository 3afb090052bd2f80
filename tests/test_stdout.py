"""A reader that goes away, or a disk that is full, is no bug, no finding, and does not cost the report file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SUSPECT = Path(__file__).resolve().parent.parent / "fixtures/zoo/suspects/copy.onnx"
COMMANDS = ("check", "show", "verify")


def arguments(command: str, bundle: Path) -> list[str]:
    """The command line of one command that prints."""
    given = [str(SUSPECT), "--bundle", str(bundle)] if command == "check" else [str(bundle)]
    return [sys.executable, "-m", "onnxaudit", command, *given]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_closed_pipe_is_an_interruption(command: str, crafted_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(arguments(command, crafted_path), stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (130, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the device that is always full is Linux's")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_is_one_line_and_the_report_is_written_all_the_same(command: str, crafted_path: Path, tmp_path: Path) -> None:
    extra = ["-o", str(tmp_path / "r.json")] if command == "check" else []
    with Path("/dev/full").open("w") as full:
        line = [*arguments(command, crafted_path), *extra]
        done = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: reading or writing failed: No space left on device")
    assert done.stderr.count("\n") == 1
    if extra:
        assert json.loads((tmp_path / "r.json").read_text())["finding"] == "derived"


@pytest.mark.parametrize("code", [0, 10])
def test_a_suspect_cannot_choose_the_exit_code(code: int, crafted_path: Path, tmp_path: Path) -> None:
    (tmp_path / "leaver.py").write_text(f"import sys\n\ndef answer(batch):\n    sys.exit({code})\n")
    command = [sys.executable, "-m", "onnxaudit", "check", "leaver:answer", "--bundle", str(crafted_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert done.stdout == ""
    assert done.stderr == f"error: foreign code ended the program by sys.exit({code}). Nothing was found out.\n"


@pytest.mark.skipif(os.name != "posix", reason="shells that close streams")
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_stream_that_was_closed_is_no_bug_and_its_number_is_no_transcript_s(
    closed: str, crafted_path: Path, tmp_path: Path
) -> None:
    """What a library prints would go into whatever file came to have the number of the stream."""
    (tmp_path / "loud.py").write_text(
        "import os\nimport numpy as np\n\n"
        "def answer(batch):\n"
        "    for number in range(1, 3):\n        os.write(number, b'a warning')\n"
        "    return np.zeros((len(batch), 10), np.float32) + np.arange(10)\n"
    )
    line = f"{sys.executable} -m onnxaudit check loud:answer --bundle {crafted_path} --evidence t.jsonl -o r.json {closed}"
    done = subprocess.run(["sh", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 11), done
    assert "bug" not in done.stdout + done.stderr
    assert b"a warning" not in (tmp_path / "t.jsonl").read_bytes()
    command = ["verify", "r.json", "--evidence", "t.jsonl", "--bundle", str(crafted_path)]
    assert subprocess.run([sys.executable, "-m", "onnxaudit", *command], cwd=tmp_path, check=False).returncode == 0
