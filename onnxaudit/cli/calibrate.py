"""onnxaudit calibrate."""

from pathlib import Path
from typing import Annotated

import typer

from onnxaudit.cli.console import Console, find_bundle, parse_choice
from onnxaudit.errors import UsageError


def calibrate(
    models: Annotated[list[str], typer.Argument(help="Models: files, URLs, or module:function.")],
    bundle: Annotated[Path | None, typer.Option(help="The bundle. Default: $ONNXAUDIT_BUNDLE, else the only .oab here.")] = None,
    role: Annotated[str, typer.Option(help="reference, sibling or surrogate.")] = "reference",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The new bundle.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the bundle itself, or the file given by -o.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    debug: Annotated[bool, typer.Option("--debug", hidden=True)] = False,
) -> None:
    """Add models whose origin is known to a bundle: a new file, or the same one with --force."""
    from onnxaudit.audit.calibrating import calibrate as add
    from onnxaudit.bundle import load

    parse_choice(role, "--role", ("reference", "sibling", "surrogate"))
    path = find_bundle(bundle)
    target = output or path
    if target.exists() and not force:
        raise UsageError(f"{target} exists already", "Give the new bundle's name with -o, or --force to replace it.")
    console = Console()
    try:
        made = add(load(path), models, role, console, device).save(target, force=force)
    finally:
        console.close()
    count = len(made.manifest.of_role(role))
    typer.echo(f"{target}: {count} {role}{'' if count == 1 else 's'}, id {made.id[:16]}")
