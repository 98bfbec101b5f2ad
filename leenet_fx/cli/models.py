"""leenet-fx models: names that `inspect` takes."""

from __future__ import annotations

from typing import Annotated

import typer

from leenet_fx.cli.output import Format, FormatOption, JsonFlag, print_json, wants_json


def models(
    pattern: Annotated[str, typer.Argument(help="A pattern such as 'resnet*' or 'timm/*'.")] = "*",
    format: FormatOption = Format.human,
    as_json: JsonFlag = False,
) -> None:
    """List the names of timm's and torchvision's models."""
    from leenet_fx.graph.catalog import list_models

    names = list_models(pattern)
    if wants_json(format, as_json):
        print_json(names)
    elif names:
        print("\n".join(names))
    else:
        typer.echo(f"No model matches '{pattern}'.", err=True)
        raise typer.Exit(1)
