"""onnxaudit bench."""

import gc
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnxaudit.cli.console import Console
from onnxaudit.errors import UsageError, missing_extra

if TYPE_CHECKING:
    from onnxaudit.audit.crafting import CraftOptions
    from onnxaudit.zoo.manifest import ZooEntry

QUERIES, BUDGETS = 100, "10,20,50,100,200"


def bench(
    zoo: Annotated[Path, typer.Argument(help="Zoo manifest, zoo.json.")],
    victim: Annotated[Path, typer.Option(help="The victim.")],
    data: Annotated[Path | None, typer.Option(help="Its data, as for craft.")] = None,
    scheme: Annotated[list[str] | None, typer.Option(help="As for craft; may be repeated. Default: auto and random.")] = None,
    queries: Annotated[int | None, typer.Option(help=f"Queries a scheme. Default: {QUERIES}.")] = None,
    access: Annotated[list[str] | None, typer.Option(help="Access levels. Default: logits and label.")] = None,
    surrogates: Annotated[Path | None, typer.Option(help="As for craft.")] = None,
    train_surrogates: Annotated[int, typer.Option(help="As for craft.")] = 0,
    grid: Annotated[
        bool, typer.Option("--grid", help="Every valid composition of parts, at the first access level, by TPR@5%.")
    ] = False,
    budgets: Annotated[str | None, typer.Option(help=f"Numbers of queries of the grid. Default: {BUDGETS}.")] = None,
    seed: Annotated[int, typer.Option(help="As for craft.")] = 0,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for results and plots.")] = Path("bench"),
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    debug: Annotated[bool, typer.Option("--debug", hidden=True)] = False,
) -> None:
    """Measure schemes on a zoo of models whose origin is known (needs PyTorch to craft)."""
    from onnxaudit.answers import parse_access
    from onnxaudit.cli.console import parse_counts
    from onnxaudit.zoo.manifest import load_zoo

    try:
        from onnxaudit.audit.crafting import CraftOptions
    except ModuleNotFoundError as error:
        raise missing_extra(error.name or "PyTorch", "torch") from None
    if grid and scheme:
        raise UsageError("--grid takes every composition", "Leave out --scheme.")
    if grid and queries is not None:
        raise UsageError("--grid has several numbers of queries", "Give --budgets instead of --queries.")
    if budgets is not None and not grid:
        raise UsageError("--budgets is for --grid", "Give --queries, or --grid too.")
    counts = parse_counts(BUDGETS if budgets is None else budgets, "--budgets")
    accesses = list(dict.fromkeys(access or ["logits", "label"]))
    for level in accesses:
        parse_access(level)
    entries = load_zoo(zoo)
    options = CraftOptions(
        victim=victim,
        data=data,
        queries=counts[-1] if grid else QUERIES if queries is None else queries,
        reference_files=[Path(entry.file) for entry in entries if entry.kind == "reference"],
        surrogates=surrogates,
        train_surrogates=train_surrogates,
        surrogate_folder=output / "surrogates",
        seed=seed,
        device=device,
    )
    gc.enable()
    console = Console()
    try:
        output.mkdir(parents=True, exist_ok=True)
        if grid:
            said = _grid(options, entries, accesses[0], counts, output, console)
        else:
            said = _bench(options, scheme, entries, accesses, zoo.name, output, console)
    except OSError as error:
        raise UsageError(f"{output} cannot be written: {error.strerror}", "Choose another folder with -o.") from None
    finally:
        console.close()
    typer.echo(said)


def _bench(
    options: "CraftOptions",
    schemes: Sequence[str] | None,
    entries: "Sequence[ZooEntry]",
    accesses: Sequence[str],
    zoo: str,
    output: Path,
    console: Console,
) -> str:
    import dataclasses

    from onnxaudit.audit.benching import bench as run
    from onnxaudit.audit.benching import by_kind
    from onnxaudit.audit.crafting import craft
    from onnxaudit.report.benchmark import plot_roc, plot_scores, results_json, results_table

    by_kind(entries)
    names = tuple(schemes or ["auto", *(["random"] if options.data else [])])
    options = dataclasses.replace(options, schemes=names, optional=not schemes)
    started = time.perf_counter()
    bundle = craft(options, console).save(output / "bundle.oab", force=True)
    result = run(bundle, entries, accesses, time.perf_counter() - started, console, options.device)
    facts = {**result.facts, "craft_seconds": round(result.craft_seconds, 2), "zoo": zoo, "seed": options.seed}
    (output / "results.json").write_text(results_json(result.rows, result.scores, facts), encoding="utf-8")
    plot_roc(result.scores, accesses[0], output / "roc.png")
    plot_scores(result.scores, accesses[0], output / "scores.png")
    return (
        f"{results_table(result.rows)}\n{output}/results.json, roc.png, scores.png, bundle.oab; "
        f"crafting and asking references took {result.craft_seconds:.1f} s"
    )


def _grid(
    options: "CraftOptions",
    entries: "Sequence[ZooEntry]",
    access: str,
    budgets: Sequence[int],
    output: Path,
    console: Console,
) -> str:
    import dataclasses

    from onnxaudit.answers import parse_access
    from onnxaudit.audit.crafting import available, craft
    from onnxaudit.audit.grid import carriers, grid
    from onnxaudit.report.benchmark import grid_json, grid_table

    names = tuple(scheme.name for scheme in carriers(available=available(options)))
    bundle = craft(dataclasses.replace(options, schemes=names, optional=True), console).save(output / "bundle.oab", force=True)
    cells = grid(bundle, entries, budgets, parse_access(access), console, options.device)
    facts: dict[str, Any] = {"bundle": bundle.id, "access": access, "seed": options.seed, "budgets": list(budgets)}
    (output / "grid.json").write_text(grid_json(cells, facts), encoding="utf-8")
    count = len({cell.scheme for cell in cells})
    return f"{grid_table(cells, budgets)}\n{count} compositions; {output}/grid.json, bundle.oab"
