"""leenet-fx demo: training and measuring exits on scikit-learn's digits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leenet_fx.cli import options as o
from leenet_fx.cli.output import print_json


@o.expand_options
def demo(
    output: Annotated[Path, typer.Option(help="Folder for demo.json, tables and plots.")] = Path(
        "demo-results"
    ),
    *,
    seeds: o.SeedsOption = 1,
    seed: o.FirstSeedOption = 0,
    quick: Annotated[
        bool, typer.Option(help="Seconds instead of minutes; accuracies are not meaningful.")
    ] = False,
    overwrite: o.OverwriteOption = False,
    printing: o.OutputOptions,
) -> None:
    """Train a small network on scikit-learn's digits, attach exits, and measure their savings."""
    from leenet_fx.demo.run import RESULTS, run_demo
    from leenet_fx.storage.files import check_free

    check_free(output / RESULTS, overwrite)
    result = run_demo(output, seeds=range(seed, seed + seeds), quick=quick)
    if printing.is_json:
        print_json(result.to_dict())
