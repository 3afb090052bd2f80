"""onnxaudit craft."""

import gc
from pathlib import Path
from typing import Annotated

import typer

from onnxaudit.cli.console import Console, check_alpha, check_output, parse_counts, parse_input
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


def craft(
    victim: Annotated[
        Path, typer.Argument(help="TorchScript, torch.export .pt2, or weights (with --model); with --draw a folder of siblings.")
    ],
    data: Annotated[Path | None, typer.Option(help=".npz or .safetensors with x and optional y, or an image folder.")] = None,
    scheme: Annotated[
        list[str] | None,
        typer.Option(help="A scheme, with parameters as sac-m:box=corner, or queries+representation+detector; may be repeated."),
    ] = None,
    queries: Annotated[int, typer.Option(help="Queries a scheme.")] = 100,
    controls: Annotated[int, typer.Option(help="Control queries.")] = 100,
    references: Annotated[Path | None, typer.Option(help="Folder of models known to be independent.")] = None,
    train_references: Annotated[int, typer.Option(help="Train so many references on the data.")] = 0,
    surrogates: Annotated[
        Path | None, typer.Option(help="Folder of models derived from the victim, for schemes that learn.")
    ] = None,
    train_surrogates: Annotated[int, typer.Option(help="Derive so many surrogates from the victim.")] = 0,
    siblings: Annotated[Path | None, typer.Option(help="Folder of models by the victim's own recipe with other seeds.")] = None,
    train_siblings: Annotated[int, typer.Option(help="Train so many siblings by --recipe.")] = 0,
    recipe: Annotated[str | None, typer.Option(help="module:function in your code that trains one, given a seed.")] = None,
    draw: Annotated[
        int | None,
        typer.Option(min=0, help="VICTIM is a folder of siblings: draw the one to deploy by this seed, keep the others."),
    ] = None,
    looks: Annotated[
        str | None,
        typer.Option(help="After so many queries of the schemes checks over HTTP look at the answers; or none."),
    ] = None,
    combine: Annotated[
        str, typer.Option(help="How schemes become one statistic: mean-z, or learned from surrogates and half of the references.")
    ] = "mean-z",
    seed: Annotated[int, typer.Option(min=0, help="Everything random comes from it.")] = 0,
    alpha: Annotated[float, typer.Option(help="Error rate that the bundle is made for.")] = 0.05,
    exports: Annotated[
        bool | None,
        typer.Option(
            "--exports/--no-exports", help="Keep what the victim answers in fp16 and INT8. Default: unless it is large."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The bundle. Default: VICTIM's name with .oab, here.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the bundle if it exists.")] = False,
    device: Device = "auto",
    model: Model = None,
    allow_pickle: AllowPickle = False,
    input: VictimInput = None,
    scale: Scale = None,
    mean: Mean = None,
    std: Std = None,
    layout: Layout = None,
    channel_order: ChannelOrder = None,
    margin: Annotated[float | None, typer.Option(help="IPGuard's k, in logits.")] = None,
    jobs: TrainingJobs = None,
    debug: Debug = False,
) -> None:
    """Craft a query bundle from the victim (white box, once; needs PyTorch)."""
    check_alpha(alpha)
    path = output or Path(victim.stem + ".oab")
    if not victim.exists():
        raise UsageError(f"{victim} does not exist", "Check the path of the victim.")
    check_output(path, "-o", {"the victim": victim, "the data": data})
    if path.exists() and not force:
        raise UsageError(f"{path} exists already", "Give another name with -o, or --force to replace it.")
    if references and train_references:
        raise UsageError(
            "--references and --train-references exclude each other", "Add more models later with: onnxaudit calibrate"
        )
    if surrogates and train_surrogates:
        raise UsageError("--surrogates and --train-surrogates exclude each other", "Put all of them in one folder.")
    from onnxaudit.evidence.sequential import LOOKS

    if siblings and train_siblings:
        raise UsageError("--siblings and --train-siblings exclude each other", "Add more later with: onnxaudit calibrate")
    try:
        from onnxaudit.audit.crafting import CraftOptions
        from onnxaudit.audit.crafting import craft as make
    except ModuleNotFoundError as error:
        raise missing_extra(error.name or "PyTorch", "torch") from None

    gc.enable()
    console = Console()
    options = CraftOptions(
        victim=victim,
        data=data,
        schemes=tuple(scheme or ["auto"]),
        queries=queries,
        controls=controls,
        references=references,
        train_references=train_references,
        reference_folder=path.with_suffix(".references"),
        surrogates=surrogates,
        train_surrogates=train_surrogates,
        surrogate_folder=path.with_suffix(".surrogates"),
        siblings=siblings,
        train_siblings=train_siblings,
        recipe=recipe,
        sibling_folder=path.with_suffix(".siblings"),
        draw=draw,
        looks=LOOKS if looks is None else () if looks == "none" else tuple(parse_counts(looks, "--looks")),
        combine=combine,
        seed=seed,
        alpha=alpha,
        device=device,
        model=model,
        allow_pickle=allow_pickle,
        **parse_input(input, scale, mean, std, layout, channel_order),
        margin=margin,
        jobs=jobs,
        exports=exports,
    )
    try:
        bundle = make(options, console).save(path, force=force)
    finally:
        console.close()
    manifest = bundle.manifest
    if not manifest.of_role("reference"):
        console.note("no references: check can only say inconclusive. Give --references DIR, or --train-references 39")
    names = ", ".join(entry.name for entry in manifest.schemes)
    kin = len(manifest.of_role("sibling"))
    references_said = f"{len(manifest.of_role('reference'))} references" + (f", {kin} siblings" if kin else "")
    typer.echo(f"{path}: {len(bundle.queries)} queries ({names}, controls), {references_said}, id {bundle.id[:16]}")
