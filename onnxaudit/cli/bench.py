"""onnxaudit bench."""

import gc
from pathlib import Path
from typing import Annotated

import typer

from onnxaudit.cli.console import Console, parse_counts, parse_input
from onnxaudit.cli.options import AllowPickle, ChannelOrder, Debug, Device, Layout, Mean, Model, Scale, Std, VictimInput
from onnxaudit.errors import UsageError, missing_extra

BUDGETS = "50,100,200,400,1000"


def bench(
    zoo: Annotated[Path, typer.Argument(help="Zoo manifest, zoo.json.")],
    victim: Annotated[Path, typer.Option(help="The victim.")],
    data: Annotated[Path | None, typer.Option(help="Its data, as for craft.")] = None,
    scheme: Annotated[
        list[str] | None, typer.Option(help="As for craft; may be repeated. Default: the catalogue; judged together: auto.")
    ] = None,
    grid: Annotated[bool, typer.Option("--grid", help="All compositions too; with --scheme, of those queries.")] = False,
    budgets: Annotated[str | None, typer.Option(help=f"Queries a scheme. Default: {BUDGETS}.")] = None,
    queries: Annotated[int | None, typer.Option(help="The same with one number.")] = None,
    access: Annotated[list[str] | None, typer.Option(help="Access levels. Default: logits and label.")] = None,
    seeds: Annotated[int, typer.Option(help="Sets of queries, for means and deviations.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="The first seed.")] = 0,
    full: Annotated[bool, typer.Option("--full", help="Every scheme at every budget, however long it takes.")] = False,
    surrogates: Annotated[Path | None, typer.Option(help="As for craft.")] = None,
    train_surrogates: Annotated[int, typer.Option(help="As for craft.")] = 0,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for results and plots.")] = Path("bench"),
    cache: Annotated[Path | None, typer.Option(help="Folder for queries and answers. Default: cache in the output.")] = None,
    jobs: Annotated[int | None, typer.Option(help="Processes. Default: one a core.")] = None,
    engine: Annotated[str, typer.Option(help="local, dask or ray.")] = "local",
    address: Annotated[str | None, typer.Option(help="Of an existing cluster.")] = None,
    device: Device = "auto",
    model: Model = None,
    allow_pickle: AllowPickle = False,
    input: VictimInput = None,
    scale: Scale = None,
    mean: Mean = None,
    std: Std = None,
    layout: Layout = None,
    channel_order: ChannelOrder = None,
    debug: Debug = False,
) -> None:
    """Measure schemes on a zoo of models whose origin is known (needs PyTorch to craft)."""
    from onnxaudit.answers import parse_access
    from onnxaudit.zoo.manifest import load_zoo

    if queries is not None and budgets is not None:
        raise UsageError("--queries and --budgets say the same", "Give one of them.")
    if seeds < 1:
        raise UsageError("--seeds must be at least 1")
    counts = parse_counts(str(queries) if queries is not None else BUDGETS if budgets is None else budgets, "--budgets")
    accesses = list(dict.fromkeys(access or ["logits", "label"]))
    for level in accesses:
        parse_access(level)
    entries = load_zoo(zoo)
    try:
        from onnxaudit.audit.benchmark.sweep import BenchOptions
        from onnxaudit.audit.benchmark.sweep import bench as run
        from onnxaudit.audit.crafting import CraftOptions
    except ModuleNotFoundError as error:
        raise missing_extra(error.name or "PyTorch", "torch") from None
    from onnxaudit.alone import alone
    from onnxaudit.audit.benchmark.preparing import expanded
    from onnxaudit.report.benchmark import summary, write_results

    crafting = CraftOptions(
        victim=victim,
        data=data,
        surrogates=surrogates,
        train_surrogates=train_surrogates,
        surrogate_folder=output / "surrogates",
        seed=seed,
        device=device,
        jobs=jobs,
        model=model,
        allow_pickle=allow_pickle,
        **parse_input(input, scale, mean, std, layout, channel_order),
    )
    options = BenchOptions(
        expanded(scheme, crafting) if scheme else None,
        tuple(counts),
        tuple(accesses),
        seeds,
        output,
        cache or output / "cache",
        grid,
        full,
        jobs,
        engine,
        address,
    )
    gc.enable()
    console = Console()
    try:
        output.mkdir(parents=True, exist_ok=True)
        with alone(output / ".lock"):
            result = run(crafting, entries, options, console)
            written = write_results(result, zoo.name, output)
    except OSError as error:
        raise UsageError(f"{error.filename or output} cannot be written: {error.strerror}", "Choose another folder.") from None
    finally:
        console.close()
    typer.echo(f"{summary(result)}\n{output}: {', '.join(written)}")
