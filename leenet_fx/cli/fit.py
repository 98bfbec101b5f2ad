"""leenet-fx fit: exits for a trained model, fitted on your images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leenet_fx.cli import options as o
from leenet_fx.cli.config import ConfigOption, resolved, write_config
from leenet_fx.cli.output import Format, FormatOption, JsonFlag, print_json, wants_json


def fit(
    ctx: typer.Context,
    model: o.ModelArgument,
    out: Annotated[Path, typer.Option(help="Folder for exits, metrics and run.yaml.")],
    data: o.DataOption = "digits",
    root: o.RootOption = Path("data"),
    download: o.DownloadOption = False,
    skip_bad: o.SkipBadOption = False,
    weights: o.WeightsOption = None,
    pretrained: o.PretrainedOption = False,
    strategy: o.StrategyOption = "fine",
    num_exits: o.NumExitsOption = None,
    at: o.AtOption = None,
    block: o.BlockOption = None,
    branch: o.BranchOption = None,
    head: o.HeadOption = None,
    gate: o.GateOption = None,
    conv_blocks: o.BlocksOption = None,
    num_classes: o.NumClassesOption = None,
    input_size: o.InputSizeOption = None,
    method: o.MethodOption = "shallow-deep",
    option: o.MethodOptionOption = None,
    alpha: Annotated[float | None, typer.Option(help="Weight of cost against error.")] = None,
    cost: o.CostOption = "flops",
    epochs: o.EpochsOption = 10,
    gate_epochs: o.GateEpochsOption = None,
    lr: o.LrOption = None,
    patience: Annotated[
        int | None, typer.Option(min=1, help="Stop a step after so many epochs without a gain.")
    ] = None,
    augment: Annotated[
        bool, typer.Option("--augment", help="Random crops and flips; runs the backbone anew.")
    ] = False,
    batch_size: o.BatchSizeOption = 128,
    workers: o.WorkersOption = 0,
    accelerator: Annotated[str | None, typer.Option(help="cpu, cuda, …")] = None,
    devices: Annotated[int, typer.Option(min=1, help="How many of them.")] = 1,
    precision: o.PrecisionOption = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write its events.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run cut short.")] = False,
    seed: o.SeedOption = 0,
    config: ConfigOption = None,
    format: FormatOption = Format.human,
    as_json: JsonFlag = False,
) -> None:
    """Fit exits on the fit split and gates on the calibrate split of your images.

    The backbone stays frozen and, without --augment, runs once over each image. Leaves exits,
    metrics.csv and run.yaml in --out; 'leenet-fx evaluate OUT' measures the result.
    """
    import torch

    from leenet_fx.cli.setup import (
        attach_by_name,
        measure_for,
        method_with_options,
        open_images,
        step_epochs,
    )
    from leenet_fx.data.transforms import make_transform
    from leenet_fx.training.fit import fit as fit_exits

    chosen = method_with_options(method, option)
    backbone, ee = attach_by_name(
        model,
        strategy=strategy,
        num_exits=num_exits,
        at=at,
        block=block,
        branch=branch,
        head=head,
        gate=gate,
        conv_blocks=conv_blocks,
        method=chosen,
        num_classes=num_classes,
        input_size=input_size,
        pretrained=pretrained,
        weights=weights,
        seed=seed,
    )
    images, transform = open_images(ee, backbone, data, root, download, skip_bad)
    measure_for(ee, cost)
    training = transform
    if augment:
        training = make_transform(backbone, ee.spec.image_shape, augment=True, name=model)
    generator = torch.Generator().manual_seed(seed)
    train = images.loader("train", training, batch_size, shuffle=generator, workers=workers)
    val = images.loader("val", transform, batch_size, workers=workers)
    calibration = images.loader(
        "calibration", transform, batch_size, shuffle=generator, workers=workers
    )
    result = fit_exits(
        ee,
        train,
        val,
        calibration=calibration,
        method=chosen,
        alpha=alpha,
        cost=cost,
        epochs=step_epochs(ee, chosen, epochs, gate_epochs),
        lr=lr,
        patience=patience,
        cache=not augment,
        out=out,
        resume=resume,
        tensorboard=tensorboard,
        accelerator=accelerator,
        devices=devices,
        precision=precision,
        seed=seed,
    )
    write_config(out, resolved(ctx), overwrite=resume)
    if wants_json(format, as_json):
        print_json(result.to_dict())
        return
    print(ee.summary())
    typer.echo(f"Wrote {out}. Next: leenet-fx evaluate {out}", err=True)
