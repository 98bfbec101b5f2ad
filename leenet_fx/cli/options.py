"""Options that several verbs take, each declared once.

Options that go together form a group, a frozen dataclass whose fields are options. A verb takes a
group as a parameter; `expand_options` replaces the parameter by one option for each field. The
parameter's default gives the verb's own defaults.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

F = TypeVar("F", bound=Callable[..., None])

ModelArgument = Annotated[
    str, typer.Argument(help="timm/NAME, torchvision/NAME, a bare name, or path.py:factory.")
]
FolderArgument = Annotated[Path, typer.Argument(help="Folder that 'leenet-fx fit --out' wrote.")]
SavedModelOption = Annotated[
    str | None, typer.Option("--model", help="The backbone; default: the one of the fit.")
]
SavedDataOption = Annotated[
    str | None, typer.Option("--data", help="Images, as for fit; default: those of the fit.")
]
DataOption = Annotated[
    str,
    typer.Option(
        help="Images: a folder or .tar with one folder per class, a folder that contains train "
        "and val or test, a torchvision data set such as CIFAR10, or 'digits'."
    ),
]
CostOption = Annotated[
    str, typer.Option(help="Unit of cost: flops, params, bytes, or seconds measured here.")
]
SeedOption = Annotated[int, typer.Option(min=0, help="Random seed.")]
FirstSeedOption = Annotated[int, typer.Option(min=0, help="First random seed.")]
SeedsOption = Annotated[int, typer.Option(min=1, help="Number of random seeds.")]
PrecisionOption = Annotated[str | None, typer.Option(help="32-true, bf16-mixed, 16-mixed, auto.")]
EpochsOption = Annotated[int, typer.Option(min=0, help="Number of epochs of each phase.")]
WeightsOption = Annotated[
    Path | None, typer.Option(help="The backbone's weights: .safetensors, or a torch state dict.")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace earlier results.")]


class Format(StrEnum):
    """Formats of a verb's output."""

    human = "human"
    json = "json"


@dataclass(frozen=True)
class DataSetOptions:
    """How images are found and read."""

    root: Annotated[Path, typer.Option(help="Folder of torchvision's data sets.")] = Path("data")
    download: Annotated[
        bool, typer.Option("--download", help="Let torchvision download the data set.")
    ] = False
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Skip images that cannot be read.")
    ] = False
    classes: Annotated[
        Path | None,
        typer.Option(
            help="Text file of the class folders' names, one a line in the order of the labels; "
            "default: sorted."
        ),
    ] = None
    exif_orientation: Annotated[
        bool,
        typer.Option("--exif-orientation", help="Turn images as their EXIF orientation says."),
    ] = False


@dataclass(frozen=True)
class TransformOptions:
    """How images become the input of a model, if not as its configuration says."""

    mean: Annotated[
        str | None,
        typer.Option(help="Mean of pixels in 0..1, for example 0.485,0.456,0.406."),
    ] = None
    std: Annotated[
        str | None,
        typer.Option(help="Standard deviation of pixels, for example 0.229,0.224,0.225."),
    ] = None
    interpolation: Annotated[
        str | None,
        typer.Option(help="Resizing: nearest, bilinear, bicubic, box, hamming, lanczos."),
    ] = None


@dataclass(frozen=True)
class SavedNames:
    """Backbone and images of a saved network, if not those of its fit."""

    model: SavedModelOption = None
    data: SavedDataOption = None


@dataclass(frozen=True)
class SavedOptions(TransformOptions, DataSetOptions, SavedNames):
    """A saved network's backbone and images, which are found and read as for its fit."""

    weights: WeightsOption = None
    split: Annotated[str, typer.Option(help="train, val, calibration or test.")] = "test"


@dataclass(frozen=True)
class BackboneOptions:
    """Weights of the backbone."""

    weights: WeightsOption = None
    pretrained: Annotated[
        bool,
        typer.Option(
            "--pretrained", help="Use the library's weights for the backbone (downloads)."
        ),
    ] = False


@dataclass(frozen=True)
class PlacementOptions:
    """Where exits are placed."""

    strategy: Annotated[str, typer.Option(help="Placement strategy; see 'strategies'.")] = "auto"
    num_exits: Annotated[
        int | None,
        typer.Option(
            help="Number of exits; default: at most 12 for 'auto', √(number of blocks) for others."
        ),
    ] = None
    at: Annotated[
        list[str] | None,
        typer.Option(help="Strategy 'fixed': a block's name, index or FLOP share; repeatable."),
    ] = None
    block: Annotated[
        list[str] | None,
        typer.Option(help="Modules that are blocks, such as 'layer?.*'; repeatable."),
    ] = None


@dataclass(frozen=True)
class BranchOptions:
    """Architecture of the exit branches."""

    branch: Annotated[
        str | None,
        typer.Option(help="Exit branch (neck, head, gate): pool, flatten, bnpool, conv, side, …"),
    ] = None
    head: Annotated[
        str | None, typer.Option(help="Its head: linear, projection, cascade, additive, means.")
    ] = None
    gate: Annotated[
        str | None, typer.Option(help="Its gate: confidence, history, features, alpha.")
    ] = None
    conv_blocks: Annotated[
        int | None, typer.Option(min=0, help="Number of convolutions of a 'conv' branch.")
    ] = None

    def branch_options(self) -> dict[str, Any]:
        """Return the options that were given, by their names in `attach(branch_options=…)`."""
        options = {"head": self.head, "gate": self.gate, "blocks": self.conv_blocks}
        return {name: value for name, value in options.items() if value is not None}


@dataclass(frozen=True)
class ShapeOptions:
    """Numbers of classes and pixels."""

    num_classes: Annotated[
        int | None, typer.Option(help="Number of classes, if not the model's.")
    ] = None
    input_size: Annotated[
        str | None,
        typer.Option(help="Image size as CxHxW, for example 3x224x224; default: the model's."),
    ] = None


@dataclass(frozen=True)
class MethodOptions:
    """How exits are trained and when samples exit."""

    method: Annotated[str, typer.Option(help="Method: training recipe, objective and policy.")] = (
        "shallow-deep"
    )
    option: Annotated[
        list[str] | None,
        typer.Option(help="An option of the method, as NAME=VALUE; repeatable."),
    ] = None


@dataclass(frozen=True)
class EpochOptions:
    """Length of training."""

    epochs: EpochsOption = 10
    gate_epochs: Annotated[
        int | None, typer.Option(min=0, help="Number of epochs of the gates' phase, if different.")
    ] = None
    lr: Annotated[float | None, typer.Option(help="Highest learning rate of Adam.")] = None


@dataclass(frozen=True)
class TargetOptions:
    """What thresholds are chosen for."""

    max_drop: Annotated[
        float | None,
        typer.Option(help="Promise: accuracy drops by at most this many percentage points."),
    ] = None
    max_disagreement: Annotated[
        float | None,
        typer.Option(help="Promise: at most this % of predictions differ from the backbone's."),
    ] = None
    budget: Annotated[
        float | None, typer.Option(help="Mean cost, in % of the backbone's; no promise.")
    ] = None
    confidence: Annotated[
        float, typer.Option(help="Probability that the promise is kept, in (0, 1).")
    ] = 0.95
    per_class: Annotated[
        bool, typer.Option("--per-class", help="Promise --max-drop for each class.")
    ] = False
    solver: Annotated[
        str,
        typer.Option(
            help="common: one threshold; exponential, per-exit: one for each exit; eenet."
        ),
    ] = "common"
    temperatures: Annotated[
        bool, typer.Option("--temperatures", help="Fit a temperature for each classifier.")
    ] = False


@dataclass(frozen=True)
class KeepOptions:
    """Which network to keep of several."""

    keep: Annotated[
        Path | None,
        typer.Option(help="Save the network chosen on the val split by the next two in a folder."),
    ] = None
    max_drop: Annotated[
        float | None,
        typer.Option(help="The cheapest within this accuracy drop in percentage points."),
    ] = None
    budget: Annotated[
        float | None, typer.Option(help="The most accurate within this % of the FLOPs.")
    ] = None


@dataclass(frozen=True)
class LoaderOptions:
    """How images are read."""

    batch_size: Annotated[int, typer.Option(min=1, help="Batch size.")] = 128
    workers: Annotated[int, typer.Option(min=0, help="Number of processes that read images.")] = 0


@dataclass(frozen=True)
class OutputOptions:
    """Format of what is printed."""

    format: Annotated[Format, typer.Option("--format", help="Output format.")] = Format.human
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False

    @property
    def is_json(self) -> bool:
        """Whether to print JSON."""
        return self.as_json or self.format is Format.json


def expand_options(verb: F) -> F:
    """Return a verb whose groups of options are separate parameters.

    Args:
        verb: takes groups, parameters annotated with a dataclass of options, beside its own
            parameters.

    Raises:
        TypeError: two parameters have the same name.
    """
    hints = get_type_hints(verb, include_extras=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, type[Any]] = {}
    for parameter in inspect.signature(verb).parameters.values():
        kind = hints[parameter.name]
        if isinstance(kind, type) and is_dataclass(kind):
            groups[parameter.name] = kind
            parameters += _options_of(kind, parameter.default)
        else:
            parameters.append(parameter.replace(annotation=kind))
    names = [parameter.name for parameter in parameters]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise TypeError(f"'{verb.__name__}' declares the option '{repeated[0]}' more than once.")

    @functools.wraps(verb)
    def expanded(**values: Any) -> None:
        for name, kind in groups.items():
            values[name] = kind(**{field.name: values.pop(field.name) for field in fields(kind)})
        verb(**values)

    signature = inspect.Signature([p.replace(kind=p.KEYWORD_ONLY) for p in parameters])
    expanded.__signature__ = signature  # type: ignore[attr-defined]
    expanded.__annotations__ = {p.name: p.annotation for p in parameters}
    return expanded  # type: ignore[return-value]


def _options_of(kind: type[Any], default: object) -> list[inspect.Parameter]:
    """Return a parameter for each field of a group; an instance as default gives the defaults."""
    hints = get_type_hints(kind, include_extras=True)
    keyword = inspect.Parameter.KEYWORD_ONLY
    return [
        inspect.Parameter(
            field.name,
            keyword,
            default=getattr(default, field.name) if isinstance(default, kind) else field.default,
            annotation=hints[field.name],
        )
        for field in fields(kind)
    ]
