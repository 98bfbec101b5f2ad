"""--keep: the chosen network of a sweep or a comparison, saved as `leenet-fx fit` saves it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import typer

from leenet_fx.cli.config import write_config
from leenet_fx.cli.options import KeepOptions
from leenet_fx.errors import InputError

if TYPE_CHECKING:
    from leenet_fx.data.transforms import TransformConfig
    from leenet_fx.evaluation.keeper import NetworkKeeper

FITTED_ELSEWHERE = ("keep", "max_drop", "budget", "out", "alphas", "seeds", "methods", "timed")
"""Options of sweeps and comparisons that say nothing of the kept network."""


def check_keep(keep: KeepOptions, overwrite: bool) -> None:
    """Check --keep and its target.

    Raises:
        typer.BadParameter: options that do not go together.
        InputError: a value that is no percentage.
        StorageError: the folder holds a network.
    """
    from leenet_fx.storage.exits import check_no_network

    given = [value for value in (keep.max_drop, keep.budget) if value is not None]
    if (keep.keep is None and given) or (keep.keep is not None and len(given) != 1):
        raise typer.BadParameter("--keep FOLDER needs one of --max-drop and --budget.")
    if keep.keep is None:
        return
    if not 0 <= given[0] <= 100:
        raise InputError(f"--max-drop and --budget must be percentages, got {given[0]:g}.")
    check_no_network(keep.keep, overwrite)


def make_keeper(keep: KeepOptions, val: Iterable[Any]) -> NetworkKeeper | None:
    """Return the keeper for --keep, which chooses on the val split; None without it."""
    from leenet_fx.evaluation.keeper import NetworkKeeper

    if keep.keep is None:
        return None
    return NetworkKeeper(
        val,
        max_drop=None if keep.max_drop is None else keep.max_drop / 100,
        budget=None if keep.budget is None else keep.budget / 100,
    )


def save_choice(
    keep: KeepOptions,
    keeper: NetworkKeeper | None,
    options: dict[str, Any],
    transform: TransformConfig,
    classes: Iterable[str],
    overwrite: bool,
) -> None:
    """Save the kept network with its options and transform, so that `evaluate` measures it.

    Raises:
        InputError: no network is good enough.
    """
    from dataclasses import replace

    from leenet_fx.storage.exits import save
    from leenet_fx.storage.transform_file import write_transform

    if keeper is None or keep.keep is None:
        return
    choice = keeper.choice
    network = choice.network
    if network.spec.class_names is None:
        network.spec = replace(network.spec, class_names=tuple(classes))
    save(network, keep.keep, overwrite=overwrite)
    own = {name: value for name, value in options.items() if name not in FITTED_ELSEWHERE}
    write_config(keep.keep, own)
    write_transform(keep.keep, transform)
    command = ["leenet-fx", "evaluate", str(keep.keep)]
    if ".py:" in str(options.get("model", "")):
        command += ["--model", str(options["model"])]
    typer.echo(f"Kept in {keep.keep}: {choice}. Next: {shlex.join(command)}", err=True)
