"""Options that several verbs take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ModelArgument = Annotated[
    str, typer.Argument(help="timm/NAME, torchvision/NAME, a bare name, or path.py:factory.")
]
DataOption = Annotated[
    str,
    typer.Option(
        help="Images: a folder or .tar with a folder a class, a folder with train and val or test "
        "in it, a torchvision data set such as CIFAR10, or 'digits'."
    ),
]
RootOption = Annotated[Path, typer.Option(help="Where torchvision's data sets are kept.")]
DownloadOption = Annotated[bool, typer.Option("--download", help="Let torchvision download.")]
SkipBadOption = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out images that cannot be read.")
]
WeightsOption = Annotated[
    Path | None, typer.Option(help="The backbone's weights: .safetensors, or a torch state dict.")
]
PretrainedOption = Annotated[
    bool, typer.Option("--pretrained", help="The library's weights for the backbone (downloads).")
]
StrategyOption = Annotated[str, typer.Option(help="Placement strategy; see 'strategies'.")]
NumExitsOption = Annotated[
    int | None, typer.Option(help="How many exits; by default √(number of blocks).")
]
AtOption = Annotated[
    list[str] | None,
    typer.Option(help="Strategy 'fixed': a block's name, index or FLOP share; repeatable."),
]
BlockOption = Annotated[
    list[str] | None,
    typer.Option(help="Modules that are blocks, such as 'layer?.*'; repeatable."),
]
BranchOption = Annotated[
    str | None, typer.Option(help="What hangs on an exit: pool, flatten, bnpool, conv, …")
]
HeadOption = Annotated[
    str | None, typer.Option(help="Its head: linear, projection, cascade, additive, means.")
]
GateOption = Annotated[
    str | None, typer.Option(help="Its gate: confidence, history, features, dial.")
]
BlocksOption = Annotated[int | None, typer.Option(min=0, help="Convolutions of a 'conv' branch.")]
MethodOptionOption = Annotated[
    list[str] | None,
    typer.Option(help="An option of the method, as NAME=VALUE; repeatable."),
]
NumClassesOption = Annotated[int | None, typer.Option(help="Classes, if not the model's.")]
InputSizeOption = Annotated[
    str | None, typer.Option(help="Image size as CxHxW, for example 3x224x224.")
]
BatchSizeOption = Annotated[int, typer.Option(min=1, help="Images a batch.")]
WorkersOption = Annotated[int, typer.Option(min=0, help="Processes that read images.")]
SeedOption = Annotated[int, typer.Option(min=0, help="For everything drawn.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace earlier results.")]
MethodOption = Annotated[str, typer.Option(help="A preset of recipe, objective and policy.")]
CostOption = Annotated[
    str,
    typer.Option(help="What counts as cost: flops, params, bytes, or seconds as measured here."),
]
PlacementCostOption = Annotated[
    str, typer.Option(help="What placements count: flops, or seconds as measured here.")
]
DeviceOption = Annotated[str | None, typer.Option(help="Where to measure, for instance cuda.")]
EpochsOption = Annotated[int, typer.Option(min=0, help="Epochs of each step.")]
GateEpochsOption = Annotated[
    int | None, typer.Option(min=0, help="Epochs of the gates, if others.")
]
PrecisionOption = Annotated[str | None, typer.Option(help="32-true, bf16-mixed, 16-mixed.")]
LrOption = Annotated[float | None, typer.Option(help="Adam's highest learning rate.")]
