"""What tests share: repeatable Hypothesis runs, and one bundle crafted from the shipped victim by the command that users type."""

from __future__ import annotations

import fcntl
import gc
import os
import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings

from onnxaudit.bundle import QueryBundle, load

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")

# Commands run as they do for users: what is not flushed is lost, and nothing is compiled twice.
for name in ("PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"):
    os.environ.pop(name, None)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads that wait for one another on a busy machine take up to 30 times as long

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell does that to what it starts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
ZOO = FIXTURES / "zoo"


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Thousands of tests and what they import stay: looking for garbage among them takes a third of the collection."""
    gc.disable()
    found = yield
    gc.freeze()
    gc.enable()
    return found


@pytest.fixture(scope="session")
def crafted_path(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A bundle of fixtures/zoo/victim.pt with its 42 references: crafted once, whatever the number of test processes."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent
    path = shared / "victim.oab"
    with (shared / "victim.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            command = [sys.executable, "-m", "onnxaudit", "craft", str(ZOO / "victim.pt"), "-o", str(path)]
            command += ["--data", str(FIXTURES / "fashion/train.npz"), "--references", str(ZOO / "references")]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
    return path


@pytest.fixture(scope="session")
def crafted(crafted_path: Path) -> QueryBundle:
    """The crafted bundle, loaded."""
    return load(crafted_path)
