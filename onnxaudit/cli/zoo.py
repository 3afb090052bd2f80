"""onnxaudit zoo."""

import gc
from pathlib import Path
from typing import Annotated

import typer

from onnxaudit.cli.console import Console, parse_input
from onnxaudit.cli.options import AllowPickle, ChannelOrder, Debug, Device, Layout, Mean, Model, Scale, Std, VictimInput
from onnxaudit.errors import UsageError, missing_extra

app = typer.Typer(help="Models whose origin is known, to judge schemes on.")


@app.callback()
def _zoo() -> None:
    """Keep typer from treating the only command as the group itself."""


@app.command()
def build(
    data: Annotated[Path, typer.Option(help="Labelled data: as for craft; IDX and CIFAR files too.")],
    victim: Annotated[Path | None, typer.Option(help="The victim, as for craft. Default: one is trained.")] = None,
    recipe: Annotated[str, typer.Option(help="A TOML file, or a shipped recipe: standard, large.")] = "standard",
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the zoo.")] = Path("zoo"),
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    jobs: Annotated[int | None, typer.Option(help="Models made at once. Default: one a core; on a GPU 4.")] = None,
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
    """Make derived and independent models of a victim, for bench (needs PyTorch). Resumes where it stopped."""
    try:
        from onnxaudit.audit.building import ZooOptions, build_zoo
        from onnxaudit.audit.crafting import CraftOptions
        from onnxaudit.report.zoo import zoo_table
    except ModuleNotFoundError as error:
        raise missing_extra(error.name or "PyTorch", "torch") from None
    if jobs is not None and jobs < 1:
        raise UsageError(f"--jobs {jobs} makes nothing", "Give a positive number.")
    opened = None
    if victim is not None:
        opened = CraftOptions(
            victim=victim,
            data=data,
            device=device,
            model=model,
            allow_pickle=allow_pickle,
            **parse_input(input, scale, mean, std, layout, channel_order),
        )
    gc.enable()
    console = Console()
    try:
        built = build_zoo(ZooOptions(data, recipe, output, opened, seed, jobs, device), console)
    except OSError as error:
        raise UsageError(f"{output} cannot be written: {error.strerror}", "Choose another folder with -o.") from None
    finally:
        console.close()
    for name, why in built.left_out.items():
        typer.echo(f"  left out: {name}: {why}", err=True)
    typer.echo(zoo_table(built.entries))
    typer.echo(f"\n{built.manifest}: {len(built.entries)} models, {built.made} made now; victim.pt and craft.npz beside it")
