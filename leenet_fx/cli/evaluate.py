"""leenet-fx evaluate: accuracy, cost and time of trained exits."""

from __future__ import annotations

from typing import Annotated

import typer

from leenet_fx.cli import options as o
from leenet_fx.cli.config import (
    PAGE,
    ConfigOption,
    command_line,
    next_command,
    plain_values,
    resolved,
)
from leenet_fx.cli.output import print_json
from leenet_fx.progress import progress_display


@o.expand_options
def evaluate(
    ctx: typer.Context,
    folder: o.FolderArgument,
    *,
    saved: o.SavedOptions,
    loading: o.LoaderOptions,
    size: Annotated[
        list[int] | None, typer.Option(help="Time the first N images; repeatable.")
    ] = None,
    overwrite: o.OverwriteOption = False,
    config: ConfigOption = None,
    output: o.OutputOptions,
) -> None:
    """Compare accuracy, cost and time with the backbone's; writes FOLDER/evaluation.json.

    Images are found, read and transformed as for the fit, unless options say otherwise.
    """
    from leenet_fx.cli.saved import known_split, open_saved
    from leenet_fx.evaluation.evaluate import evaluate as measure
    from leenet_fx.report.records import FILES, make_record, sample_images, write_record
    from leenet_fx.storage.files import check_free

    split = known_split(saved.split)
    check_free(folder / FILES["evaluation"], overwrite)
    run = open_saved(ctx, folder, saved)
    ee, images = run.ee, run.images
    with progress_display(True):
        evaluation = measure(ee, run.loader(split, loading), sizes=sorted(size) if size else None)
    record = make_record(
        evaluation,
        ee,
        command=command_line("evaluate", ctx),
        config={**run.fitted, **resolved(ctx), **plain_values(run.data_set), "split": split},
        classes=images.classes,
        images=sample_images(evaluation, images.splits[split], images.classes),
    )
    path = write_record(folder, record, overwrite)
    if output.is_json:
        print_json(evaluation.to_dict())
    else:
        print(evaluation.summary())
    typer.echo(f"Wrote {path}. {next_command('report', folder, PAGE)}", err=True)
