"""onnxaudit demo."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from onnxaudit.errors import UsageError


def demo(
    fixtures: Annotated[Path, typer.Option(help="The fixtures folder of a source checkout.")] = Path("fixtures"),
    debug: Annotated[bool, typer.Option("--debug", hidden=True)] = False,
) -> int:
    """Run the main job on the fixtures of a source checkout: craft, then check copies, derived and independent models."""
    script = fixtures / "demo.py"
    if not script.is_file():
        raise UsageError(f"{script} is not there", "The demo's models come with the source: clone it and run make demo.")
    return subprocess.run([sys.executable, str(script)], check=False).returncode
