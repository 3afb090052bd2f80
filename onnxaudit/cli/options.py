"""Options that several commands take, with one text each: how a victim's file is opened, and where things run."""

from pathlib import Path
from typing import Annotated

import typer

from onnxaudit.endpoints import BATCH, TIMEOUT
from onnxaudit.errors import UsageError
from onnxaudit.sandbox.limits import Limits, parse_limits

Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Model = Annotated[str | None, typer.Option(help="module:factory that makes the network for a file of weights.")]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Load a pickled victim. It can run any code: only for your own file.")
]
VictimInput = Annotated[
    str | None, typer.Option("--input", help="What the victim takes: HxWxC, or a number. Default: the data's size.")
]
Scale = Annotated[str | None, typer.Option(help="Factor on 8-bit pixels, as 1/255. Default: found on the data.")]
Mean = Annotated[str | None, typer.Option(help="Subtracted after scaling; one value, or one a channel.")]
Std = Annotated[str | None, typer.Option(help="Divided by after that.")]
Layout = Annotated[str | None, typer.Option(help="NCHW or NHWC.")]
ChannelOrder = Annotated[str | None, typer.Option(help="RGB or BGR.")]
TrainingJobs = Annotated[int | None, typer.Option("--jobs", min=1, help="Processes that train models. Default: one a core.")]
Sandbox = Annotated[
    bool,
    typer.Option("--sandbox", help="Run each model that came from others in a process of its own that may do next to nothing."),
]
SandboxLimits = Annotated[str | None, typer.Option(help="With --sandbox: GiB, and seconds. Default: memory=8,cpu=3600,wall=600.")]
Dialect = Annotated[str | None, typer.Option(help="HTTP: v2, tfserving, plain …, see docs/http.md. Default: found out.")]
InputName = Annotated[str | None, typer.Option(help="HTTP: the input's name.")]
Header = Annotated[list[str] | None, typer.Option(help='HTTP: "Name: value"; $VARIABLES are filled in. May be repeated.')]
Batch = Annotated[int | None, typer.Option(help=f"HTTP: queries in one request. Default: {BATCH}, or fewer.")]
Timeout = Annotated[float | None, typer.Option(help=f"HTTP: seconds to wait for a reply. Default: {TIMEOUT:g}.")]
CaBundle = Annotated[Path | None, typer.Option(help="HTTP: certificates to trust.")]
ClientCert = Annotated[Path | None, typer.Option(help="HTTP: client certificate with key (PEM).")]
Debug = Annotated[bool, typer.Option("--debug", hidden=True)]


def confinement(wanted: bool, said: str | None) -> Limits | None:
    """The limits of the sandbox, or None where there is to be none. Raises UsageError for limits that mean nothing."""
    if said is not None and not wanted:
        raise UsageError("--sandbox-limits without --sandbox means nothing", "Add --sandbox.")
    return parse_limits(said) if wanted else None
