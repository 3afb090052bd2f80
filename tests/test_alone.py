"""An output is one process's at a time, and nobody's once that process is gone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from onnxaudit.alone import alone
from onnxaudit.errors import UsageError

HOLD = """
import sys
from pathlib import Path
from onnxaudit.alone import alone
with alone(Path(sys.argv[1])):
    print("has it", flush=True)
    sys.stdin.read()
"""


def test_while_another_process_has_it_it_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "has it\n"
        with pytest.raises(UsageError, match="another process"), alone(path):
            pass
        other.kill()
        other.wait()
        with alone(path):  # what was killed has nothing any more
            assert path.exists()
    assert not path.exists()


def test_it_can_be_had_again_and_again(tmp_path: Path) -> None:
    for _ in range(2):
        with alone(tmp_path / "x"), pytest.raises(UsageError), alone(tmp_path / "x"):
            pass


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written"), alone(tmp_path / "no" / "x"):
        pass
