"""leenet-fx compare: methods on one backbone and the same images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leenet_fx.cli import options as o
from leenet_fx.cli.config import (
    PAGE,
    ConfigOption,
    begin_run,
    command_line,
    next_command,
    resolved,
)
from leenet_fx.cli.interrupts import on_interrupt
from leenet_fx.cli.keep import check_keep, make_keeper, save_choice
from leenet_fx.cli.output import print_json
from leenet_fx.errors import InputError
from leenet_fx.progress import progress_display

if TYPE_CHECKING:
    from leenet_fx.evaluation.comparison import MethodSpec

ALL = "all"
EVERY = o.PlacementOptions(strategy="every")


@o.expand_options
def compare(
    ctx: typer.Context,
    model: o.ModelArgument,
    *,
    out: Annotated[Path, typer.Option(help="Folder for comparison.json and run.yaml.")],
    methods: Annotated[
        str,
        typer.Option(
            help="Names separated by commas; 'all' skips methods that the model does not support."
        ),
    ] = ALL,
    joint: Annotated[
        bool, typer.Option("--joint", help="Add the recipes that train the backbone.")
    ] = False,
    seeds: o.SeedsOption = 1,
    seed: o.FirstSeedOption = 0,
    data: o.DataOption = "digits",
    data_set: o.DataSetOptions,
    transforms: o.TransformOptions,
    backbone: o.BackboneOptions,
    placement: o.PlacementOptions = EVERY,
    shapes: o.ShapeOptions,
    epochs: o.EpochsOption = 10,
    augment: Annotated[
        bool,
        typer.Option(
            "--augment", help="Random crops and flips for recipes that train the backbone."
        ),
    ] = False,
    precision: o.PrecisionOption = None,
    loading: o.LoaderOptions,
    keep: o.KeepOptions,
    overwrite: o.OverwriteOption = False,
    config: ConfigOption = None,
    output: o.OutputOptions,
) -> None:
    """Train every method on the same exits and measure its frontier of accuracy and cost.

    The backbone is frozen unless --joint. Thresholds are set on the calibration split; accuracies
    are of the test split. The same command resumes an interrupted run: methods whose results are in
    --out are not trained again, unless --overwrite removes them.
    """
    import torch

    from leenet_fx.cli.images import prepare
    from leenet_fx.evaluation.compare import compare as run_comparison
    from leenet_fx.evaluation.comparison_file import FILE
    from leenet_fx.report.records import make_metadata

    specs = parse_methods(methods, joint)
    check_keep(keep, overwrite)
    if augment and not joint:
        raise InputError("--augment needs recipes that train the backbone: add --joint.")
    options, command = resolved(ctx), command_line("compare", ctx)
    again = f"Methods whose results are in '{out / FILE}' are kept. Resume: {command}"
    with progress_display(True), on_interrupt(lambda: again):
        run = prepare(
            model, backbone, placement, None, shapes, data, data_set, transforms, seed=seed
        )
        begin_run(out, options, overwrite or (out / FILE).exists())
        if overwrite:
            (out / FILE).unlink(missing_ok=True)
        ee, images = run.ee, run.images
        loaders = run.loaders(loading, seed, augment=augment)
        keeper = make_keeper(keep, loaders["val"])
        comparison = run_comparison(
            run.backbone,
            specs,
            loaders["train"],
            loaders["calibration"],
            loaders["test"],
            augmented=loaders["augmented"],
            strategy=list(ee.spec.placement.names) if placement.at else placement.strategy,
            num_exits=placement.num_exits,
            example_inputs=torch.zeros(1, *ee.spec.image_shape),
            num_classes=shapes.num_classes,
            blocks=placement.block or None,
            name=model,
            epochs=epochs,
            precision=precision,
            seeds=range(seed, seed + seeds),
            skip_unfit=methods == ALL,
            out=out,
            metadata=make_metadata(ee, command=command, config=options, classes=images.classes),
            on_point=keeper,
            progress=True,
        )
    if output.is_json:
        print_json(comparison.to_dict())
    else:
        print(comparison.summary())
    save_choice(keep, keeper, options, run.config, images.classes, overwrite)
    typer.echo(f"Wrote {out / FILE}. {next_command('report', out, PAGE)}", err=True)


def parse_methods(text: str, joint: bool) -> list[MethodSpec]:
    """Return the methods to compare.

    Args:
        text: `all`, or names separated by commas, such as `leenet,ztw`.
        joint: whether to add, for each method that has one, its recipe that trains the backbone.

    Raises:
        UnknownNameError: a name is no method.
        InputError: no name, or a name given twice.
    """
    from leenet_fx.evaluation.comparison import MethodSpec, frozen_variants
    from leenet_fx.methods import list_method_options, list_methods

    names = list_methods() if text == ALL else [name.strip() for name in text.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise InputError(f"--methods must be like all or leenet,ztw, each once, got '{text}'.")
    specs = frozen_variants(names)
    if joint:
        specs += [
            MethodSpec(f"{name}, joint", name, {"recipe": "joint"})
            for name in names
            if "recipe" in list_method_options(name)
        ]
    return specs
