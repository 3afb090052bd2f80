"""onnxaudit schemes."""

from typing import Annotated

import typer


def schemes(debug: Annotated[bool, typer.Option("--debug", hidden=True)] = False) -> None:
    """List the fingerprinting schemes: paper, parts, what each needs, least access it was made for."""
    from onnxaudit.report.text import table
    from onnxaudit.schemes.catalogue import ALIASES, CATALOGUE

    rows = [
        (
            item.name,
            item.paper,
            f"{item.sampler} + {item.representation} + {item.detector}",
            (item.needs.name or "NOTHING").lower().replace("|", ", "),
            item.access.word,
        )
        for item in CATALOGUE.values()
    ]
    typer.echo(table(("scheme", "paper", "queries + representation + detector", "needs", "access"), rows))
    typer.echo("also: " + ", ".join(f"{alias} = {name}" for alias, name in ALIASES.items()))
