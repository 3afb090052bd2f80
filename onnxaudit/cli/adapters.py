"""onnxaudit adapters."""

from typing import Annotated

import typer


def adapters(debug: Annotated[bool, typer.Option("--debug", hidden=True)] = False) -> None:
    """List the installed adapters: what they open, and which package brings them."""
    from onnxaudit.registry import adapters as installed
    from onnxaudit.report.text import table

    web = ("http", "https", "python")
    rows = [
        (f"{name}://" if name in web[:2] else "module:function" if name == "python" else f".{name}", point.value, point.dist.name)
        for name, point in sorted(installed().items())
        if point.dist is not None
    ]
    typer.echo(table(("opens", "adapter", "package"), rows))
