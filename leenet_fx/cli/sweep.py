"""leenet-fx sweep: gates for each α, and what each costs and answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leenet_fx.cli import options as o
from leenet_fx.cli.config import ConfigOption, command_line, resolved, write_config
from leenet_fx.cli.output import Format, FormatOption, JsonFlag, print_json, wants_json
from leenet_fx.errors import InputError


def sweep(
    ctx: typer.Context,
    model: o.ModelArgument,
    out: Annotated[Path, typer.Option(help="Folder for sweep.json and run.yaml.")],
    alphas: Annotated[
        str, typer.Option(help="start:end:step, or values with commas between.")
    ] = "0:1:0.05",
    seeds: Annotated[int, typer.Option(min=1, help="Repeat with so many seeds.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="The first seed.")] = 0,
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
    method: o.MethodOption = "leenet",
    option: o.MethodOptionOption = None,
    cost: o.CostOption = "flops",
    epochs: o.EpochsOption = 10,
    gate_epochs: o.GateEpochsOption = None,
    lr: o.LrOption = None,
    batch_size: o.BatchSizeOption = 128,
    workers: o.WorkersOption = 0,
    timed: Annotated[
        int, typer.Option(min=0, help="Report images to time both networks on at each α.")
    ] = 256,
    overwrite: o.OverwriteOption = False,
    config: ConfigOption = None,
    format: FormatOption = Format.human,
    as_json: JsonFlag = False,
) -> None:
    """Fit exits once, gates for each α, and measure each on the report split.

    The backbone runs once over each image, whatever the number of α.
    """
    import torch

    from leenet_fx.cli.setup import (
        attach_by_name,
        measure_for,
        method_with_options,
        open_images,
        step_epochs,
    )
    from leenet_fx.evaluation.sweep import sweep as run_sweep
    from leenet_fx.report.records import FILES, make_record, write_record
    from leenet_fx.storage.files import check_free

    values = parse_alphas(alphas)
    check_free(out / FILES["sweep"], overwrite)
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
    generator = torch.Generator().manual_seed(seed)
    train = images.loader("train", transform, batch_size, shuffle=generator, workers=workers)
    calibration = images.loader(
        "calibration", transform, batch_size, shuffle=generator, workers=workers
    )
    found = run_sweep(
        ee,
        train,
        images.loader("test", transform, batch_size, workers=workers),
        calibration=calibration,
        alphas=values,
        seeds=range(seed, seed + seeds),
        method=chosen,
        cost=cost,
        epochs=step_epochs(ee, chosen, epochs, gate_epochs),
        lr=lr,
        timed=timed,
        progress=True,
    )
    options = resolved(ctx)
    record = make_record(
        found,
        ee,
        command=command_line("sweep", ctx),
        config=options,
        classes=images.classes,
    )
    write_config(out, options, overwrite)
    path = write_record(out, record, overwrite)
    if wants_json(format, as_json):
        print_json(found.to_dict())
    else:
        print(found.summary())
    typer.echo(f"Wrote {path}. Next: leenet-fx report {out}", err=True)


def parse_alphas(text: str) -> list[float]:
    """`0:1:0.05` or `0,0.5,1` → numbers in [0, 1].

    Raises:
        InputError: neither.
    """
    try:
        if ":" in text:
            start, end, step = (float(part) for part in text.split(":"))
            if step <= 0 or end < start:
                raise ValueError
            count = round((end - start) / step)
            values = [round(start + index * step, 10) for index in range(count + 1)]
        else:
            values = [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--alphas is like 0:1:0.05 or 0,0.5,1, got '{text}'.") from None
    outside = [value for value in values if not 0 <= value <= 1]
    if outside or not values:
        raise InputError(f"Each α must lie in [0, 1], got '{text}'.")
    return values
