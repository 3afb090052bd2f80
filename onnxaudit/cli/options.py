"""Options that several commands take, with one text each: how a victim's file is opened, and where things run."""

from typing import Annotated

import typer

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
TrainingJobs = Annotated[int | None, typer.Option("--jobs", help="Processes that train models. Default: one a core.")]
Debug = Annotated[bool, typer.Option("--debug", hidden=True)]
