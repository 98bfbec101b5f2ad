"""leenet-fx sweep: accuracy and cost of gates trained for each α."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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

LEENET = o.MethodOptions(method="leenet")


@o.expand_options
def sweep(
    ctx: typer.Context,
    model: o.ModelArgument,
    *,
    out: Annotated[Path, typer.Option(help="Folder for sweep.json and run.yaml.")],
    alphas: Annotated[
        str, typer.Option(help="start:end:step, or values separated by commas.")
    ] = "0:1:0.05",
    seeds: o.SeedsOption = 1,
    seed: o.FirstSeedOption = 0,
    data: o.DataOption = "digits",
    data_set: o.DataSetOptions,
    transforms: o.TransformOptions,
    backbone: o.BackboneOptions,
    placement: o.PlacementOptions,
    branches: o.BranchOptions,
    shapes: o.ShapeOptions,
    training: o.MethodOptions = LEENET,
    cost: o.CostOption = "flops",
    length: o.EpochOptions,
    loading: o.LoaderOptions,
    timed: Annotated[
        int, typer.Option(min=0, help="Number of test images to time both networks on at each α.")
    ] = 256,
    keep: o.KeepOptions,
    overwrite: o.OverwriteOption = False,
    config: ConfigOption = None,
    output: o.OutputOptions,
) -> None:
    """Train exits once and gates for each α, and measure each on the test split.

    The backbone runs once over each image, whatever the number of α.
    """
    from leenet_fx.cli.images import prepare
    from leenet_fx.cli.setup import measure_if_timed, method_with_options, phase_epochs
    from leenet_fx.evaluation.sweep import sweep as run_sweep
    from leenet_fx.report.records import FILES, make_record, write_record
    from leenet_fx.storage.files import check_free

    values = parse_alphas(alphas)
    check_keep(keep, overwrite)
    check_free(out / FILES["sweep"], overwrite)
    method = method_with_options(training)
    options = resolved(ctx)
    kept = f"A sweep keeps no unfinished results; '{out}' has the options."
    with progress_display(True), on_interrupt(lambda: kept):
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
        begin_run(out, options, overwrite)
        ee = run.ee
        measure_if_timed(ee, cost)
        loaders = run.loaders(loading, seed)
        keeper = make_keeper(keep, loaders["val"])
        result = run_sweep(
            ee,
            loaders["train"],
            loaders["test"],
            calibration=loaders["calibration"],
            alphas=values,
            seeds=range(seed, seed + seeds),
            method=method,
            cost=cost,
            epochs=phase_epochs(ee, method, length),
            lr=length.lr,
            timed=timed,
            on_point=keeper,
            progress=True,
        )
    record = make_record(
        result,
        ee,
        command=command_line("sweep", ctx),
        config=options,
        classes=run.images.classes,
    )
    path = write_record(out, record, overwrite)
    if output.is_json:
        print_json(result.to_dict())
    else:
        print(result.summary())
    save_choice(keep, keeper, options, run.config, run.images.classes, overwrite)
    typer.echo(f"Wrote {path}. {next_command('report', out, PAGE)}", err=True)


def parse_alphas(text: str) -> list[float]:
    """Return the numbers of a range `0:1:0.05` or of a list `0,0.5,1`.

    Args:
        text: start:end:step, end included, or values separated by commas.

    Raises:
        InputError: another form, or a number outside [0, 1].
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
        raise InputError(f"--alphas must be like 0:1:0.05 or 0,0.5,1, got '{text}'.") from None
    if not values or any(not 0 <= value <= 1 for value in values):
        raise InputError(f"Each α must lie in [0, 1], got '{text}'.")
    return values
