"""onnxaudit schemes."""

from typing import Annotated

import typer


def schemes(debug: Annotated[bool, typer.Option("--debug", hidden=True)] = False) -> None:
    """List the fingerprinting schemes and the parts to compose others from: what each needs, asks and costs."""
    from onnxaudit.report.catalogue import catalogue_text

    typer.echo(catalogue_text())
