"""onnxaudit adapters."""

from typing import Annotated

import typer


def adapters(debug: Annotated[bool, typer.Option("--debug", hidden=True)] = False) -> None:
    """List the installed adapters: what they open, and which package brings them."""
    from onnxaudit.registry import adapters as installed
    from onnxaudit.report.text import table

    forms = {"http": "http://", "https": "https://", "python": "module:function"}
    rows = [(forms.get(kind, f".{kind}"), *found) for kind, found in sorted(installed().items())]
    typer.echo(table(("opens", "adapter", "package"), rows))
