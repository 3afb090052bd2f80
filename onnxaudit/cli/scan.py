"""onnxaudit scan."""

import gc
from pathlib import Path
from typing import Annotated

import typer

from onnxaudit.cli.console import (
    Console,
    check_alpha,
    check_apart,
    find_bundle,
    parse_choice,
    parse_floats,
    parse_headers,
    parse_number,
    parse_shape,
)
from onnxaudit.cli.options import (
    Batch,
    CaBundle,
    ClientCert,
    Dialect,
    Header,
    InputName,
    Sandbox,
    SandboxLimits,
    Timeout,
    confinement,
)
from onnxaudit.errors import UsageError


def scan(
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="PATH...", help="Files, folders, endpoints (http), URLs of files (s3://, …)."),
    ] = None,
    list_: Annotated[Path | None, typer.Option("--list", metavar="FILE", help="A file with one such PATH a line.")] = None,
    bundle: Annotated[list[Path] | None, typer.Option(help="May be repeated. Default: as for check.")] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Where the lines go; what is there already is not asked.")
    ] = Path("findings.jsonl"),
    engine: Annotated[str, typer.Option(help="local, dask or ray.")] = "local",
    jobs: Annotated[int | None, typer.Option(help="Processes of a local engine or cluster. Default: one a core.")] = None,
    address: Annotated[str | None, typer.Option(help="Of an existing cluster: dask's scheduler, ray's head or auto.")] = None,
    access: Annotated[str | None, typer.Option(help="Use only so much of the answers: label, topk:K, probs, logits.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Error rate of the whole scan. Default: the bundles'.")] = None,
    cache: Annotated[int, typer.Option(help="MiB of fetched files that each worker keeps.")] = 1024,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout: the summary.")] = False,
    device: Annotated[
        str, typer.Option(help="auto, cpu or cuda. The processor, for its cores share the suspects; one GPU holds few at once.")
    ] = "cpu",
    input: Annotated[str | None, typer.Option(help="What the suspects take, HxWxC. Default: their signatures.")] = None,
    scale: Annotated[str | None, typer.Option(help="Factor on 8-bit pixels. Default: the victim's.")] = None,
    mean: Annotated[str | None, typer.Option(help="Default: the victim's.")] = None,
    std: Annotated[str | None, typer.Option(help="Default: the victim's.")] = None,
    layout: Annotated[str | None, typer.Option(help="NCHW or NHWC. Default: their signatures.")] = None,
    channel_order: Annotated[str | None, typer.Option(help="RGB or BGR.")] = None,
    output_name: Annotated[str | None, typer.Option(help="The output to read, where a model has several.")] = None,
    dialect: Dialect = None,
    input_name: InputName = None,
    header: Header = None,
    rate: Annotated[float | None, typer.Option(help="HTTP: at most so many queries a second to each host.")] = None,
    batch: Batch = None,
    timeout: Timeout = None,
    ca_bundle: CaBundle = None,
    client_cert: ClientCert = None,
    sandbox: Sandbox = False,
    sandbox_limits: SandboxLimits = None,
    debug: Annotated[bool, typer.Option("--debug", hidden=True)] = False,
) -> int:
    """Check many suspects with several bundles, corrected for their number. Exit 10: some derived, 11: some inconclusive."""
    import os
    import sys

    from onnxaudit.audit.scan.scanning import ScanOptions
    from onnxaudit.audit.scan.scanning import scan as run
    from onnxaudit.audit.scan.sources import gathered
    from onnxaudit.bundle import load
    from onnxaudit.report.scanned import summary_json, summary_text

    gc.enable()
    check_alpha(alpha)
    check_apart(output, "-o", {"the list": list_})
    parse_choice(device, "--device", ("auto", "cpu", "cuda"))
    if cache < 1:
        raise UsageError(f"--cache {cache} keeps nothing", "Give a positive number of MiB.")
    loaded = [load(path) for path in (bundle or [find_bundle(None)])]
    sources = gathered(paths or [], list_)
    options = ScanOptions(
        access=access,
        alpha=alpha,
        device=device,
        said={
            "shape": parse_shape(input),
            "layout": parse_choice(layout, "--layout", ("NCHW", "NHWC")),
            "scale": parse_number(scale, "--scale"),
            "mean": parse_floats(mean, "--mean"),
            "std": parse_floats(std, "--std"),
            "channels": parse_choice(channel_order, "--channel-order", ("RGB", "BGR")),
        },
        http={
            "dialect": dialect,
            "input_name": input_name,
            "headers": parse_headers(header or []),
            "rate": rate,
            "batch": batch,
            "timeout": timeout,
            "ca_bundle": ca_bundle and str(ca_bundle),
            "client_cert": client_cert and str(client_cert),
        },
        output_name=output_name,
        engine=engine,
        jobs=jobs,
        address=address,
        cache=cache << 20,
        sandbox=confinement(sandbox, sandbox_limits),
    )
    console = Console(quiet=json)
    try:
        summary = run(sources, loaded, output, options, console)
    finally:
        console.close()
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    typer.echo(summary_json(summary) if json else summary_text(summary, colour=colour), color=True)
    return summary.exit_code
