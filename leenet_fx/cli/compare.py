"""leenet-fx compare: methods side by side on one backbone and the same images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leenet_fx.cli import options as o
from leenet_fx.cli.config import FILE as OPTIONS
from leenet_fx.cli.config import ConfigOption, command_line, resolved, write_config
from leenet_fx.cli.output import Format, FormatOption, JsonFlag, print_json, wants_json
from leenet_fx.errors import InputError, StorageError

if TYPE_CHECKING:
    from leenet_fx.evaluation.comparison import MethodSpec

ALL = "all"


def compare(
    ctx: typer.Context,
    model: o.ModelArgument,
    out: Annotated[Path, typer.Option(help="Folder for comparison.json and run.yaml.")],
    methods: Annotated[
        str, typer.Option(help="Names with commas between; 'all' leaves out what does not fit.")
    ] = ALL,
    joint: Annotated[
        bool, typer.Option("--joint", help="The recipes that train the backbone, too.")
    ] = False,
    seeds: Annotated[int, typer.Option(min=1, help="Repeat with so many seeds.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="The first seed.")] = 0,
    data: o.DataOption = "digits",
    root: o.RootOption = Path("data"),
    download: o.DownloadOption = False,
    skip_bad: o.SkipBadOption = False,
    weights: o.WeightsOption = None,
    pretrained: o.PretrainedOption = False,
    strategy: o.StrategyOption = "every",
    num_exits: o.NumExitsOption = None,
    at: o.AtOption = None,
    block: o.BlockOption = None,
    num_classes: o.NumClassesOption = None,
    input_size: o.InputSizeOption = None,
    epochs: o.EpochsOption = 10,
    augment: Annotated[
        bool, typer.Option("--augment", help="Random crops and flips where the backbone trains.")
    ] = False,
    precision: o.PrecisionOption = None,
    batch_size: o.BatchSizeOption = 128,
    workers: o.WorkersOption = 0,
    config: ConfigOption = None,
    format: FormatOption = Format.human,
    as_json: JsonFlag = False,
) -> None:
    """Fit every method on the same exits and draw each one's frontier of accuracy and cost.

    The backbone stays frozen unless --joint. Thresholds are set on the calibrate split, figures are
    of the report split. The same command again goes on where it was interrupted: what is in --out
    already is not repeated.
    """
    import torch

    from leenet_fx.cli.setup import attach_by_name, open_images
    from leenet_fx.data.transforms import make_transform
    from leenet_fx.evaluation.compare import compare as run_comparison
    from leenet_fx.evaluation.comparison_file import FILE
    from leenet_fx.report.records import make_metadata

    if (out / OPTIONS).exists() and not (out / FILE).exists():
        raise StorageError(f"'{out / OPTIONS}' is of another run: choose another folder.")
    variants = parse_methods(methods, joint)
    if augment and not joint:
        raise InputError("--augment is for recipes that train the backbone: give --joint too.")
    backbone, ee = attach_by_name(
        model,
        strategy=strategy,
        num_exits=num_exits,
        at=at,
        block=block,
        num_classes=num_classes,
        input_size=input_size,
        pretrained=pretrained,
        weights=weights,
        seed=seed,
    )
    images, transform = open_images(ee, backbone, data, root, download, skip_bad)
    training = transform
    if augment:
        training = make_transform(backbone, ee.spec.image_shape, augment=True, name=model)
    generator = torch.Generator().manual_seed(seed)
    options = resolved(ctx)
    found = run_comparison(
        backbone,
        variants,
        images.loader("train", transform, batch_size, shuffle=generator, workers=workers),
        images.loader("calibration", transform, batch_size, shuffle=generator, workers=workers),
        images.loader("test", transform, batch_size, workers=workers),
        augmented=images.loader("train", training, batch_size, shuffle=generator, workers=workers),
        strategy=list(ee.spec.placement.names) if at else strategy,
        num_exits=num_exits,
        example_inputs=torch.zeros(1, *ee.spec.image_shape),
        num_classes=num_classes,
        blocks=block or None,
        name=model,
        epochs=epochs,
        precision=precision,
        seeds=range(seed, seed + seeds),
        skip_unfit=methods == ALL,
        out=out,
        metadata=make_metadata(
            ee, command=command_line("compare", ctx), config=options, classes=images.classes
        ),
        progress=True,
    )
    write_config(out, options, overwrite=True)
    if wants_json(format, as_json):
        print_json(found.to_dict())
    else:
        print(found.summary())
    typer.echo(f"Wrote {out / FILE}. Next: leenet-fx report {out}", err=True)


def parse_methods(text: str, joint: bool) -> list[MethodSpec]:
    """`all` or `leenet,ztw` → what to compare.

    Args:
        text: names with commas between.
        joint: whether each that can train the backbone is there a second time, doing so.

    Raises:
        UnknownNameError: no such method.
        InputError: no name, or one twice.
    """
    from leenet_fx.evaluation.comparison import MethodSpec, frozen_variants
    from leenet_fx.methods import list_method_options, list_methods

    names = list_methods() if text == ALL else [name.strip() for name in text.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise InputError(f"--methods is like all or leenet,ztw, each once, got '{text}'.")
    variants = frozen_variants(names)
    if joint:
        variants += [
            MethodSpec(f"{name}, joint", name, {"recipe": "joint"})
            for name in names
            if "recipe" in list_method_options(name)
        ]
    return variants
