"""leenet-fx models: names of timm's and torchvision's models."""

from __future__ import annotations

from typing import Annotated

import typer

from leenet_fx.cli import options as o
from leenet_fx.cli.output import print_json


@o.expand_options
def models(
    pattern: Annotated[str, typer.Argument(help="A pattern such as 'resnet*' or 'timm/*'.")] = "*",
    *,
    output: o.OutputOptions,
) -> None:
    """List the names of timm's and torchvision's models."""
    from leenet_fx.graph.catalog import list_models

    names = list_models(pattern)
    if output.is_json:
        print_json(names)
    elif names:
        print("\n".join(names))
    else:
        typer.echo(f"No model matches '{pattern}'.", err=True)
        raise typer.Exit(1)
