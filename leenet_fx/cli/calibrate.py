"""leenet-fx calibrate: thresholds that keep a promise, or meet a budget."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leenet_fx.cli import options as o
from leenet_fx.cli.config import ConfigOption, next_command
from leenet_fx.cli.output import print_json
from leenet_fx.errors import InputError
from leenet_fx.progress import progress_display

if TYPE_CHECKING:
    from leenet_fx.methods import Method
    from leenet_fx.surgery.module import EarlyExitModule
    from leenet_fx.surgery.operating_point import OperatingPoint

SAVED = o.SavedOptions(split="calibration")


@o.expand_options
def calibrate(
    ctx: typer.Context,
    folder: o.FolderArgument,
    *,
    saved: o.SavedOptions = SAVED,
    loading: o.LoaderOptions,
    target: o.TargetOptions,
    name: Annotated[
        str | None, typer.Option(help="Name of the operating point; default: from the target.")
    ] = None,
    seed: o.SeedOption = 0,
    config: ConfigOption = None,
    output: o.OutputOptions,
) -> None:
    """Choose thresholds from images that nothing was fitted to, and keep them in FOLDER.

    --max-drop is a promise about new images of the same kind: it is kept with the probability
    --confidence. FOLDER keeps operating points by name; the last one is in use.
    """
    from leenet_fx.cli.saved import known_split, open_saved
    from leenet_fx.methods import get_method
    from leenet_fx.report.records import FILES

    split = known_split(saved.split)
    if split == "test":
        raise InputError(
            "Thresholds that were chosen on the test split would make its results too good: "
            "calibrate on the split 'calibration'."
        )
    check_target(target)
    run = open_saved(ctx, folder, saved)
    if saved.data in (None, run.fitted.get("data")) and run.ee.spec.method is not None:
        method = run.ee.spec.method
        check_unseen(get_method(method.name, **method.options), split, target)
    with progress_display(True):
        point = find_point(run.ee, run.loader(split, loading), target, name=name, seed=seed)
    save_again(run.ee, folder)
    if output.is_json:
        print_json(asdict(point))
    else:
        print(point)
    following = next_command("evaluate", folder, FILES["evaluation"], saved.model)
    typer.echo(f"Wrote {folder}. {following}", err=True)


def save_again(ee: EarlyExitModule, folder: Path) -> None:
    """Save a network in the folder it is saved in, with the record of its fit."""
    from leenet_fx.storage.config import read_config
    from leenet_fx.storage.exits import save

    found = read_config(folder)
    save(ee, folder, backbone=found.holds_backbone, fit=found.fit, overwrite=True)


def check_target(target: o.TargetOptions, required: bool = True) -> bool:
    """Return whether a target was given.

    Args:
        target: from the command line.
        required: whether there must be one.

    Raises:
        typer.BadParameter: more than one, or none where one is required.
        InputError: a value that is no percentage.
    """
    given = [target.max_drop, target.max_disagreement, target.budget]
    count = sum(value is not None for value in given)
    if count > 1 or (required and not count):
        raise typer.BadParameter("give one of --max-drop, --max-disagreement and --budget.")
    names = ("--max-drop", "--max-disagreement", "--budget")
    for name, value in zip(names, given, strict=True):
        if value is not None and not 0 < value <= 100:
            raise InputError(f"{name} must be a percentage above 0 and at most 100, got {value:g}.")
    return count == 1


def check_unseen(method: Method, split: str, target: o.TargetOptions) -> None:
    """Raise InputError if `fit` fitted a part of the network to the images of a promise."""
    promise = target.max_drop is not None or target.max_disagreement is not None
    fitted = any(phase.held_out for phase in method.phases)
    if promise and (split == "train" or (split == "calibration" and fitted)):
        raise InputError(
            f"The method '{method.name}' was fitted to the split '{split}', so nothing can be "
            "promised from its images: give others with 'leenet-fx calibrate FOLDER --data', or "
            "a --budget."
        )


def find_point(
    ee: EarlyExitModule, data: Any, target: o.TargetOptions, *, name: str | None, seed: int
) -> OperatingPoint:
    """Calibrate a network for a target of the command line, which is in percent."""
    from leenet_fx.calibration.calibrate import calibrate as choose

    values = {"max_drop": target.max_drop, "max_disagreement": target.max_disagreement}
    fractions = {key: value if value is None else value / 100 for key, value in values.items()}
    budget = None if target.budget is None else target.budget / 100
    return choose(
        ee,
        data,
        max_drop=fractions["max_drop"],
        max_disagreement=fractions["max_disagreement"],
        budget=budget,
        confidence=target.confidence,
        per_class=target.per_class,
        solver=target.solver,
        temperatures=target.temperatures,
        name=name,
        seed=seed,
    )
