"""onnxaudit show."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from onnxaudit.errors import UsageError


def show(
    file: Annotated[Path, typer.Argument(help="A query bundle.")],
    sheet: Annotated[Path | None, typer.Option(help="Write a contact sheet of the queries to this PNG.")] = None,
    debug: Annotated[bool, typer.Option("--debug", hidden=True)] = False,
) -> None:
    """Say in words what is in a bundle, with a contact sheet of its queries."""
    from onnxaudit.bundle import load
    from onnxaudit.report.contents import contents
    from onnxaudit.report.sheet import save_sheet, terminal_rows, terminal_takes_pictures

    if sheet is not None and sheet.suffix.lower() != ".png":
        raise UsageError(f"--sheet {sheet} is no name of a PNG", "Let it end in .png.")  # a bundle's name would replace it
    bundle = load(file)
    typer.echo(f"{file}\n{contents(bundle)}")
    if sheet is not None:
        save_sheet(bundle, sheet)
        typer.echo(f"contact sheet: {sheet}")
    elif terminal_takes_pictures(sys.stdout) and bundle.queries.ndim == 4:
        typer.echo(terminal_rows(bundle))
