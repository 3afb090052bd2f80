"""Commands in this process, where starting Python and importing PyTorch anew would be most of a test."""

from __future__ import annotations

import gc
import os
import signal
import sys

import pytest

from onnxaudit.cli import main


def typed(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """The exit code of a command, its stdout and its stderr; what it changes of a process is as before."""
    polite = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["onnxaudit", *arguments])
            patch.setattr(os, "_exit", sys.exit)
            patch.setenv("OPENBLAS_NUM_THREADS", "1")
            with pytest.raises(SystemExit) as ended:
                main()
    finally:
        gc.enable()
        signal.signal(signal.SIGTERM, polite)
    out, err = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, out, err
