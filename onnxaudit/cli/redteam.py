"""onnxaudit redteam."""

import gc
from pathlib import Path
from typing import Annotated

import typer

from onnxaudit.cli.console import Console, check_alpha, parse_input
from onnxaudit.cli.options import (
    AllowPickle,
    ChannelOrder,
    Debug,
    Device,
    Layout,
    Mean,
    Model,
    Scale,
    Std,
    TrainingJobs,
    VictimInput,
)
from onnxaudit.errors import UsageError, missing_extra


def redteam(
    victim: Annotated[Path, typer.Argument(help="The victim, as for craft.")],
    data: Annotated[Path, typer.Option(help="Labelled data, as for craft.")],
    references: Annotated[Path, typer.Option(help="Folder of models known to be independent; half of them are the judge's.")],
    bundle: Annotated[
        Path | None, typer.Option(help="What derived models are checked with. Default: crafted from the data and references.")
    ] = None,
    innocents: Annotated[
        Path | None, typer.Option(help="Folder of other independent models to accuse. Default: each reference in turn.")
    ] = None,
    queries: Annotated[int, typer.Option(help="Queries a scheme.")] = 100,
    quick: Annotated[bool, typer.Option("--quick", help="Few innocents, queries and ways to hide.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Everything random comes from it.")] = 0,
    alpha: Annotated[float, typer.Option(help="Error rate.")] = 0.05,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for results and trained models.")] = Path("redteam"),
    jobs: TrainingJobs = None,
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
    """Attack an audit of this victim: accuse innocents by cheating, hide derived models (needs PyTorch)."""
    check_alpha(alpha)
    try:
        from onnxaudit.audit.crafting import CraftOptions
        from onnxaudit.audit.redteam.redteaming import RedteamOptions
        from onnxaudit.audit.redteam.redteaming import redteam as run
    except ModuleNotFoundError as error:
        raise missing_extra(error.name or "PyTorch", "torch") from None
    from onnxaudit.report.redteam import redteam_text, write_redteam

    crafting = CraftOptions(
        victim=victim,
        data=data,
        references=references,
        queries=queries,
        seed=seed,
        alpha=alpha,
        device=device,
        jobs=jobs,
        model=model,
        allow_pickle=allow_pickle,
        **parse_input(input, scale, mean, std, layout, channel_order),
    )
    gc.enable()
    console = Console()
    try:
        result = run(RedteamOptions(crafting, bundle, innocents, output, quick), console)
        written = write_redteam(result, output)
    except OSError as error:
        raise UsageError(f"{error.filename or output} cannot be written: {error.strerror}", "Choose another folder.") from None
    finally:
        console.close()
    typer.echo(f"{redteam_text(result)}\n\n{output}: {', '.join(written)}")
