"""onnxaudit check."""

import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnxaudit.cli.console import (
    Console,
    check_alpha,
    check_apart,
    find_bundle,
    parse_choice,
    parse_counts,
    parse_floats,
    parse_headers,
    parse_number,
    parse_shape,
)
from onnxaudit.cli.options import (
    Batch,
    CaBundle,
    ClientCert,
    Device,
    Dialect,
    Header,
    InputName,
    Sandbox,
    SandboxLimits,
    Timeout,
    confinement,
)
from onnxaudit.endpoints import REPEATS
from onnxaudit.errors import UsageError
from onnxaudit.sandbox.limits import Limits

if TYPE_CHECKING:
    from onnxaudit.audit.checking import CheckOptions
    from onnxaudit.bundle import QueryBundle


def check(
    suspect: Annotated[
        str | None, typer.Argument(help=".onnx, .ort, .pt, .ts, .pt2, .xml, .tflite, .skops, or module:function.")
    ] = None,
    url: Annotated[str | None, typer.Option(help="An HTTP endpoint instead of a file.")] = None,
    target: Annotated[Path | None, typer.Option(help="A file that describes an HTTP endpoint, see docs/http.md.")] = None,
    bundle: Annotated[Path | None, typer.Option(help="Default: $ONNXAUDIT_BUNDLE, else the only .oab here.")] = None,
    access: Annotated[str | None, typer.Option(help="Use only so much of the answers: label, topk:K, probs, logits.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Error rate. Default: the bundle's.")] = None,
    label_space: Annotated[
        str | None,
        typer.Option(
            help="same: the suspect's labels are the victim's; unknown: they are others, or private, and no label is compared. "
            "Default: same, unless a file turns out to have another number of classes."
        ),
    ] = None,
    references: Annotated[
        Path | None, typer.Option(help="Calibrate with these models instead of the bundle's references.")
    ] = None,
    looks: Annotated[
        str | None,
        typer.Option(
            help="Look after so many queries of the schemes, as 10,20,50, and stop when enough is known; none: ask all at once. "
            "Default: the bundle's with --url, else none."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Send one query, show it, its answer, and what a check would cost.")
    ] = False,
    budget: Annotated[
        int | None, typer.Option(help="Send at most so many queries, retries included; with --resume, in all runs together.")
    ] = None,
    evidence: Annotated[Path | None, typer.Option(help="Transcript (JSONL). Over HTTP it is kept by default.")] = None,
    sandbox: Sandbox = False,
    sandbox_limits: SandboxLimits = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the transcript; nothing answered is asked again.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
    output: Annotated[list[Path] | None, typer.Option("-o", "--output", help="Also write .html, .json, .md or .txt.")] = None,
    device: Device = "auto",
    input: Annotated[str | None, typer.Option(help="What the suspect takes, HxWxC. Default: its signature.")] = None,
    scale: Annotated[str | None, typer.Option(help="Factor on 8-bit pixels. Default: the victim's.")] = None,
    mean: Annotated[str | None, typer.Option(help="Default: the victim's.")] = None,
    std: Annotated[str | None, typer.Option(help="Default: the victim's.")] = None,
    layout: Annotated[str | None, typer.Option(help="NCHW or NHWC. Default: its signature.")] = None,
    channel_order: Annotated[str | None, typer.Option(help="RGB or BGR.")] = None,
    autofix: Annotated[
        bool,
        typer.Option(
            "--autofix", help="Find scale, layout, channels, size and label order, if wrong, with at most 30 control queries."
        ),
    ] = False,
    output_name: Annotated[str | None, typer.Option(help="The model's output to read, where it has several.")] = None,
    dialect: Dialect = None,
    input_name: InputName = None,
    header: Header = None,
    rate: Annotated[float | None, typer.Option(help="HTTP: at most so many queries a second.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="HTTP: so many requests on their way at once. Default: 1.")] = None,
    batch: Batch = None,
    timeout: Timeout = None,
    ca_bundle: CaBundle = None,
    client_cert: ClientCert = None,
    debug: Annotated[bool, typer.Option("--debug", hidden=True)] = False,
) -> int:
    """Check whether a suspect is derived from a bundle's victim. Exit 0: not shown, 10: derived, 11: inconclusive."""
    from onnxaudit.answers import parse_access
    from onnxaudit.audit.checking import CheckOptions
    from onnxaudit.audit.running import run_check
    from onnxaudit.bundle import load
    from onnxaudit.cli.targets import described
    from onnxaudit.report.writing import check_format, show, write_all

    if suspect and suspect.lower().startswith(("http://", "https://")) and url is None:
        suspect, url = None, suspect  # the same check, however it is typed
    if sum(given is not None for given in (suspect, url, target)) != 1:
        raise UsageError("give either a SUSPECT, --url or --target", "For example: onnxaudit check suspect.onnx")
    check_alpha(alpha)
    if access is not None:
        parse_access(access)  # before anything is sent
    if budget is not None and budget < 1:
        raise UsageError(f"--budget {budget} allows no query", "Give a positive number.")
    over_http: dict[str, object] = {
        "--dialect": dialect,
        "--input-name": input_name,
        "--header": header,
        "--rate": rate,
        "--batch": batch,
    }
    over_http |= {"--concurrency": concurrency, "--timeout": timeout, "--ca-bundle": ca_bundle, "--client-cert": client_cert}
    if concurrency is not None and not 1 <= concurrency <= 256:
        raise UsageError(f"--concurrency {concurrency} has to be from 1 to 256", "Leave it out for one request at a time.")
    if suspect is not None and (given := [name for name, value in over_http.items() if value is not None]):
        raise UsageError(f"{', '.join(given)} can only be used with --url or --target", "Leave it out for a file.")
    if suspect is not None and resume and evidence is None:
        raise UsageError("--resume goes on with a transcript, and none is named", "Give it with --evidence F.jsonl.")
    if dry_run and output:
        raise UsageError("--dry-run writes no report", "Leave -o out.")
    for path in output or []:
        check_format(path)
    if url is not None and not url.lower().startswith(("http://", "https://")):
        raise UsageError("--url must begin with http:// or https://", "Give a file without --url.")
    file = described(target) if target else None
    url = file.url if file else url
    if file and file.private:
        label_space = label_space or "unknown"
    if file and budget is None:
        budget = file.http.get("budget")
    source = url or suspect or ""
    found = find_bundle(bundle)
    read = {"the bundle": found, "the suspect": None if url else source, "the target file": target}
    if evidence is not None:
        check_apart(evidence, "--evidence", read)
    for path in output or []:
        check_apart(path, "-o", {**read, "the transcript": evidence})
    loaded = load(found)
    options = CheckOptions(
        alpha,
        references,
        budget,
        evidence,
        resume,
        REPEATS if url else 0,
        device,
        looks=_planned(looks, loaded.manifest.looks, url),
        exhibits=any(path.suffix in (".html", ".md") for path in output or []),
        sandbox=_confinement(sandbox, sandbox_limits, source, references),
        label_space=parse_choice(label_space, "--label-space", ("same", "unknown")),
        autofix=autofix,
    )
    said = {
        "shape": parse_shape(input),
        "layout": parse_choice(layout, "--layout", ("NCHW", "NHWC")),
        "scale": parse_number(scale, "--scale"),
        "mean": parse_floats(mean, "--mean"),
        "std": parse_floats(std, "--std"),
        "channels": parse_choice(channel_order, "--channel-order", ("RGB", "BGR")),
    }
    http = {
        "dialect": dialect,
        "input_name": input_name,
        "output_name": output_name,
        "headers": parse_headers(header or []),
        "rate": rate,
        "concurrency": concurrency,
        "batch": batch,
        "timeout": timeout,
        "ca_bundle": ca_bundle and str(ca_bundle),
        "client_cert": client_cert and str(client_cert),
        "budget": budget,
        "class_names": loaded.manifest.class_names,
    }
    if file:
        said, http = file.merged_input(said), file.merged_http(http)
    if dry_run:
        return _dry_run(loaded, source, options, said, http, as_json=json)
    console = Console(quiet=json)
    started = time.perf_counter()
    try:
        report = run_check(loaded, source, access, options, said, http, console, started, debug=debug)
    finally:
        console.close()
    try:
        if report.error and not json:
            typer.echo(f"error: {report.reasons[0]}", err=True)  # the error, and what was kept
        else:
            show(report, as_json=json)
    finally:  # a terminal that went away must not cost the files, nor one of them another
        with ExitStack() as writing:
            for path in output or []:
                writing.callback(write_all, report, path, loaded)
    return report.exit_code


def _dry_run(
    bundle: "QueryBundle", source: str, options: "CheckOptions", said: dict[str, Any], http: dict[str, Any], *, as_json: bool
) -> int:
    from json import dumps

    from onnxaudit.audit.dry_running import dry_run
    from onnxaudit.report.dry_run import text

    document = dry_run(bundle, source, options, said, http).to_json()
    print(dumps(document, indent=2, ensure_ascii=False) if as_json else text(document))
    return 0


def _confinement(wanted: bool, said: str | None, source: str, references: Path | None) -> Limits | None:
    """The limits of the sandbox, or None where there is to be none."""
    if "://" in source and references is None and (wanted or said):
        raise UsageError("--sandbox is for models that run here", "An endpoint runs elsewhere: leave it out.")
    return confinement(wanted, said)


def _planned(said: str | None, of_bundle: tuple[int, ...], url: str | None) -> tuple[int, ...] | None:
    """The looks that are asked for, those of the bundle over HTTP, or None for none."""
    if said is None:
        return of_bundle if url and of_bundle else None
    return None if said == "none" else tuple(parse_counts(said, "--looks"))
