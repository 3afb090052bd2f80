"""onnxaudit bench."""

import time
from pathlib import Path
from typing import Annotated

import typer

from onnxaudit.cli.console import Console
from onnxaudit.errors import UsageError, missing_extra


def bench(
    zoo: Annotated[Path, typer.Argument(help="Zoo manifest, zoo.json.")],
    victim: Annotated[Path, typer.Option(help="The victim.")],
    data: Annotated[Path | None, typer.Option(help="Its data, as for craft.")] = None,
    scheme: Annotated[list[str] | None, typer.Option(help="A scheme's name; may be repeated. Default: auto and random.")] = None,
    queries: Annotated[int, typer.Option(help="Queries a scheme.")] = 100,
    access: Annotated[list[str] | None, typer.Option(help="Access levels. Default: logits and label.")] = None,
    seed: Annotated[int, typer.Option(help="As for craft.")] = 0,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for results.json and plots.")] = Path("bench"),
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    debug: Annotated[bool, typer.Option("--debug", hidden=True)] = False,
) -> None:
    """Measure schemes on a zoo of models whose origin is known (needs PyTorch to craft)."""
    from onnxaudit.answers import parse_access
    from onnxaudit.zoo.manifest import load_zoo

    try:
        from onnxaudit.audit.benching import bench as run
        from onnxaudit.audit.crafting import CraftOptions, craft
    except ModuleNotFoundError as error:
        raise missing_extra(error.name or "PyTorch", "torch") from None
    from onnxaudit.report.benchmark import plot_roc, plot_scores, results_json, results_table
    from onnxaudit.schemes.catalogue import portfolio

    accesses = list(dict.fromkeys(access or ["logits", "label"]))
    for level in accesses:
        parse_access(level)
    entries = load_zoo(zoo)
    names = scheme or [*portfolio(data=data is not None, labels=True)[0], *(["random"] if data else [])]
    console = Console()
    try:
        started = time.perf_counter()
        output.mkdir(parents=True, exist_ok=True)
        options = CraftOptions(victim, data, tuple(names), queries, seed=seed, device=device)
        bundle = craft(options, console).save(output / "bundle.oab", force=True)
        result = run(bundle, entries, accesses, time.perf_counter() - started, console, device)
        facts = {**result.facts, "craft_seconds": round(result.craft_seconds, 2), "zoo": zoo.name, "seed": seed}
        (output / "results.json").write_text(results_json(result.rows, result.scores, facts), encoding="utf-8")
        plot_roc(result.scores, accesses[0], output / "roc.png")
        plot_scores(result.scores, accesses[0], output / "scores.png")
    except OSError as error:
        raise UsageError(f"{output} cannot be written: {error.strerror}", "Choose another folder with -o.") from None
    finally:
        console.close()
    typer.echo(results_table(result.rows))
    typer.echo(f"{output}/results.json, roc.png, scores.png, bundle.oab; crafting took {result.craft_seconds:.1f} s")
