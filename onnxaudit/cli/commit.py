"""onnxaudit commit."""

from pathlib import Path
from typing import Annotated

import typer

from onnxaudit.cli.console import check_output
from onnxaudit.errors import UsageError

LONGEST = 6
"""Digits of a query's number; nobody opens more than a million."""


def commit(
    file: Annotated[Path, typer.Argument(help="A bundle; or a transcript or report.")],
    open: Annotated[str | None, typer.Option("--open", help="Show these queries of a bundle instead, as 0-4,17.")] = None,
    date: Annotated[str | None, typer.Option(help="A date to put into the commitment, YYYY-MM-DD.")] = None,
    sign: Annotated[Path | None, typer.Option(help="Sign with this Ed25519 key (PEM); needs the extra evidence.")] = None,
    timestamp_request: Annotated[
        Path | None, typer.Option(help="Write an RFC 3161 request (.tsq) to send to an authority; needs the extra evidence.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Default: FILE's name with .commitment.json (or .opening.json), here.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what exists.")] = False,
    debug: Annotated[bool, typer.Option("--debug", hidden=True)] = False,
) -> None:
    """Bind yourself to a bundle before a dispute, without showing it; show an expert some of its queries later."""
    from onnxaudit.audit.verifying.attesting import Binding, bind, show_rows

    if open is not None:
        if date or sign or timestamp_request:
            raise UsageError("--open shows queries of a commitment that exists", "Leave out --date, --sign and the like.")
        path = output or Path(file.name.removesuffix(".oab") + ".opening.json")
        check_output(path, "-o", {"the bundle": file})
        lines = show_rows(file, parse_rows(open), path, force=force)
    else:
        path = output or Path(file.name.removesuffix(".oab") + ".commitment.json")
        read = {"what is committed to": file, "the key": sign}
        check_output(path, "-o", read)
        if timestamp_request is not None:
            check_output(timestamp_request, "--timestamp-request", {**read, "the commitment": path})
        lines = bind(file, Binding(path, date, sign, timestamp_request, force))
    for line in lines:
        typer.echo(line)


def parse_rows(text: str) -> list[int]:
    """ "0-4,17" as [0, 1, 2, 3, 4, 17]."""
    rows: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or max(len(first), len(last)) > LONGEST:
            raise UsageError(f"--open {text[:60]!r} names no queries", "Give numbers and ranges: 0-4,17")
        rows.update(range(int(first), int(last or first) + 1))
    if not rows:
        raise UsageError(f"--open {text[:60]!r} names no queries", "Give numbers and ranges: 0-4,17")
    return sorted(rows)
