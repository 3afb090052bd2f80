"""onnxaudit calibrate."""

from pathlib import Path
from typing import Annotated

import typer

from onnxaudit.cli.console import Console, check_output, find_bundle, parse_choice, parse_headers
from onnxaudit.cli.options import Batch, CaBundle, ClientCert, Device, Dialect, Header, InputName, Timeout
from onnxaudit.errors import UsageError


def calibrate(
    models: Annotated[list[str], typer.Argument(help="Models: files, URLs, or module:function.")],
    bundle: Annotated[Path | None, typer.Option(help="The bundle. Default: $ONNXAUDIT_BUNDLE, else the only .oab here.")] = None,
    role: Annotated[str, typer.Option(help="reference, sibling or surrogate.")] = "reference",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The new bundle.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the bundle itself, or the file given by -o.")] = False,
    device: Device = "auto",
    output_name: Annotated[str | None, typer.Option(help="HTTP: the output to read, where there are several.")] = None,
    dialect: Dialect = None,
    input_name: InputName = None,
    header: Header = None,
    rate: Annotated[float | None, typer.Option(help="HTTP: at most so many queries a second.")] = None,
    batch: Batch = None,
    timeout: Timeout = None,
    ca_bundle: CaBundle = None,
    client_cert: ClientCert = None,
    debug: Annotated[bool, typer.Option("--debug", hidden=True)] = False,
) -> None:
    """Add models whose origin is known to a bundle: a new file, or the same one with --force."""
    from onnxaudit.audit.calibrating import calibrate as add
    from onnxaudit.bundle import load

    parse_choice(role, "--role", ("reference", "sibling", "surrogate"))
    http = {
        "dialect": dialect,
        "input_name": input_name,
        "output_name": output_name,
        "headers": parse_headers(header or []) or None,
        "rate": rate,
        "batch": batch,
        "timeout": timeout,
        "ca_bundle": ca_bundle and str(ca_bundle),
        "client_cert": client_cert and str(client_cert),
    }
    http = {name: value for name, value in http.items() if value is not None}
    if http and not any("://" in model for model in models):
        named = ", ".join(f"--{name.removesuffix('s' * (name == 'headers')).replace('_', '-')}" for name in http)
        raise UsageError(f"{named} can only be used with URLs", "Leave it out for files.")
    path = find_bundle(bundle)
    target = output or path
    check_output(target, "-o", {f"the {role}": model for model in models})
    if target.exists() and not force:
        raise UsageError(f"{target} exists already", "Give the new bundle's name with -o, or --force to replace it.")
    console = Console()
    try:
        made = add(load(path), models, role, console, device, http).save(target, force=force)
    finally:
        console.close()
    count = len(made.manifest.of_role(role))
    typer.echo(f"{target}: {count} {role}{'' if count == 1 else 's'}, id {made.id[:16]}")
