"""leenet-fx fit: attach exits to a trained model and train them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from leenet_fx.cli import options as o
from leenet_fx.cli.config import (
    ConfigOption,
    begin_run,
    next_command,
    resolved,
    resume_command,
)
from leenet_fx.cli.interrupts import kept_of_fit, on_interrupt
from leenet_fx.cli.output import print_json
from leenet_fx.errors import InputError
from leenet_fx.progress import progress_display


@o.expand_options
def fit(
    ctx: typer.Context,
    model: o.ModelArgument,
    *,
    out: Annotated[Path, typer.Option(help="Folder for exits, metrics and run.yaml.")],
    data: o.DataOption = "digits",
    data_set: o.DataSetOptions,
    transforms: o.TransformOptions,
    backbone: o.BackboneOptions,
    placement: o.PlacementOptions,
    branches: o.BranchOptions,
    shapes: o.ShapeOptions,
    training: o.MethodOptions,
    alpha: Annotated[
        float | None, typer.Option(help="Cost weight: α in [0, 1], or λ from 0 for some methods.")
    ] = None,
    cost: o.CostOption = "flops",
    length: o.EpochOptions,
    patience: Annotated[
        int | None,
        typer.Option(min=1, help="Stop a phase after this many epochs without a better loss."),
    ] = None,
    augment: Annotated[
        bool,
        typer.Option("--augment", help="Random crops and flips; the backbone runs every epoch."),
    ] = False,
    loading: o.LoaderOptions,
    accelerator: Annotated[str | None, typer.Option(help="cpu, cuda, …")] = None,
    devices: Annotated[int, typer.Option(min=1, help="Number of devices.")] = 1,
    precision: o.PrecisionOption = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write TensorBoard events.")
    ] = False,
    target: o.TargetOptions,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Resume an interrupted run; --epochs may be higher."),
    ] = False,
    overwrite: o.OverwriteOption = False,
    seed: o.SeedOption = 0,
    config: ConfigOption = None,
    output: o.OutputOptions,
) -> None:
    """Train exits on the train split, gates and ensembles on the calibration split.

    The backbone is frozen unless the method trains it. Without --augment, it runs once over each
    image. Writes run.yaml, exits, metrics.csv and transform.json to --out; 'leenet-fx evaluate OUT'
    measures the result. After Ctrl-C, --resume goes on. With --max-drop, --max-disagreement or
    --budget, thresholds are then chosen on the calibration split, as by 'leenet-fx calibrate OUT'.
    """
    from leenet_fx.cli.calibrate import check_target, check_unseen, find_point, save_again
    from leenet_fx.cli.images import prepare
    from leenet_fx.cli.setup import measure_if_timed, method_with_options, phase_epochs
    from leenet_fx.report.records import FILES
    from leenet_fx.storage.transform_file import write_transform
    from leenet_fx.training.fit import fit as fit_exits

    if resume and overwrite:
        raise InputError("--resume goes on with a run, and --overwrite replaces it: choose one.")
    is_calibrated = check_target(target, required=False)
    method = method_with_options(training)
    check_unseen(method, "calibration", target)
    resuming = resume_command("fit", out)
    with progress_display(True), on_interrupt(lambda: kept_of_fit(out, resuming)):
        run = prepare(
            model,
            backbone,
            placement,
            branches,
            shapes,
            data,
            data_set,
            transforms,
            method=method,
            seed=seed,
        )
        begin_run(out, resolved(ctx), overwrite=resume or overwrite)
        write_transform(out, run.config)
        ee = run.ee
        measure_if_timed(ee, cost)
        loaders = run.loaders(loading, seed, augment=augment)
        result = fit_exits(
            ee,
            loaders["augmented"],
            loaders["val"],
            calibration=loaders["calibration"],
            method=method,
            alpha=alpha,
            cost=cost,
            epochs=phase_epochs(ee, method, length),
            lr=length.lr,
            patience=patience,
            cache=not augment and not method.trains_backbone,
            out=out,
            resume=resume,
            overwrite=overwrite,
            tensorboard=tensorboard,
            accelerator=accelerator,
            devices=devices,
            precision=precision,
            seed=seed,
            progress=True,
        )
        point = None
        if is_calibrated:
            point = find_point(ee, loaders["calibration"], target, name=None, seed=seed)
            save_again(ee, out)
    if output.is_json:
        found = {} if point is None else {"operating_point": asdict(point)}
        print_json({**result.to_dict(), **found})
        return
    print(ee.summary())
    if point is not None:
        print(point)
    following = next_command("evaluate", out, FILES["evaluation"], model)
    typer.echo(f"Wrote {out}. {following}", err=True)
