"""onnxaudit verify."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer


def verify(
    file: Annotated[Path, typer.Argument(help="A bundle, report (.json), transcript, commitment, signed envelope or opening.")],
    evidence: Annotated[Path | None, typer.Option(help="A report's transcript: its finding is recomputed from it.")] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="A report's bundle. Default: $ONNXAUDIT_BUNDLE, else the only .oab here.")
    ] = None,
    of: Annotated[Path | None, typer.Option(help="The file that a commitment is of.")] = None,
    commitment: Annotated[Path | None, typer.Option(help="The commitment that an opening belongs to.")] = None,
    public_key: Annotated[Path | None, typer.Option(help="The signer's Ed25519 key (PEM).")] = None,
    timestamp: Annotated[Path | None, typer.Option(help="An RFC 3161 reply (.tsr) about the file.")] = None,
    tsa_cert: Annotated[Path | None, typer.Option(help="Root certificate of the authority that gave it (PEM).")] = None,
    debug: Annotated[bool, typer.Option("--debug", hidden=True)] = False,
) -> None:
    """Check a file against all that it can be checked against, offline. Exit 0: it holds, 3: it does not."""
    from onnxaudit.audit.verifying import VerifyOptions, verify_file
    from onnxaudit.cli.console import find_bundle

    options = VerifyOptions(partial(find_bundle, bundle), evidence, of, commitment, public_key, timestamp, tsa_cert)
    first, *more = list(verify_file(file, options))
    typer.echo("\n  ".join([first, *more]))
