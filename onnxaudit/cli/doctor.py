"""onnxaudit doctor."""

from pathlib import Path
from typing import Annotated

import typer


def doctor(
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Also import PyTorch and every adapter; takes seconds.")] = False,
    debug: Annotated[bool, typer.Option("--debug", hidden=True)] = False,
) -> int:
    """Say what works on this machine, and what to install for the rest. Exit 0: check works on .onnx files, 3: it does not."""
    from onnxaudit.audit.doctoring.examining import examine

    examination = examine(Path.cwd(), full=full)
    if json:
        from json import dumps

        typer.echo(dumps(examination.as_json(), ensure_ascii=False))
    else:
        from onnxaudit.report.examination import text

        typer.echo(text(examination.as_json()))
    return 0 if examination.works else 3
