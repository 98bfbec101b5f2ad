"""leenet-fx demo: the whole path on real images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leenet_fx.cli.output import Format, FormatOption, JsonFlag, print_json, wants_json


def demo(
    output: Annotated[Path, typer.Option(help="Folder for demo.json, tables and plots.")] = Path(
        "demo-results"
    ),
    seeds: Annotated[int, typer.Option(min=1, help="Repeat with so many seeds.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="The first seed.")] = 0,
    quick: Annotated[
        bool, typer.Option(help="Seconds instead of minutes; figures mean little.")
    ] = False,
    format: FormatOption = Format.human,
    as_json: JsonFlag = False,
) -> None:
    """Train a small network on scikit-learn's digits, add exits, and measure what they save."""
    from leenet_fx.demo.run import run_demo

    result = run_demo(output, seeds=range(seed, seed + seeds), quick=quick)
    if wants_json(format, as_json):
        print_json(result.to_dict())
