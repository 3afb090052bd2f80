"""onnxaudit verify."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from onnxaudit.errors import UsageError


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
    reproduce: Annotated[Path | None, typer.Option(help="Craft the bundle again from this victim (needs PyTorch).")] = None,
    data: Annotated[Path | None, typer.Option(help="To reproduce: as for craft.")] = None,
    references: Annotated[Path | None, typer.Option(help="To reproduce: as for craft.")] = None,
    surrogates: Annotated[Path | None, typer.Option(help="To reproduce: as for craft.")] = None,
    siblings: Annotated[Path | None, typer.Option(help="To reproduce: as for craft.")] = None,
    model: Annotated[str | None, typer.Option(help="To reproduce: as for craft.")] = None,
    allow_pickle: Annotated[bool, typer.Option("--allow-pickle", help="To reproduce: as for craft.")] = False,
    device: Annotated[str, typer.Option(help="To reproduce: auto, cpu or cuda.")] = "auto",
    debug: Annotated[bool, typer.Option("--debug", hidden=True)] = False,
) -> None:
    """Check a file against all that it can be checked against, offline. Exit 0: it holds, 3: it does not."""
    from onnxaudit.audit.verifying.verifying import VerifyOptions, verify_file
    from onnxaudit.cli.console import Console, find_bundle
    from onnxaudit.report.text import printable

    given = {"data": data, "references": references, "surrogates": surrogates, "siblings": siblings}
    more = {"model": model, "allow_pickle": allow_pickle, "device": device}
    asked = {**given, "model": model, "allow-pickle": allow_pickle or None}
    if reproduce is None and (idle := [name for name, value in asked.items() if value is not None]):
        raise UsageError(f"--{idle[0]} is for crafting again", "Give the victim with --reproduce.")
    if tsa_cert is not None and timestamp is None:
        raise UsageError("--tsa-cert is of the authority that gave a time-stamp", "Give that with --timestamp F.tsr.")
    again = None if reproduce is None else {"victim": reproduce, **given, **more}
    options = VerifyOptions(partial(find_bundle, bundle), evidence, of, commitment, public_key, timestamp, tsa_cert, again)
    console = Console()
    try:
        first, *others = list(verify_file(file, options, console))
    finally:
        console.close()
    typer.echo("\n  ".join(map(printable, [first, *others])))
