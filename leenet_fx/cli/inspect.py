"""leenet-fx inspect: where exits go and what each costs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leenet_fx.cli.output import Format, FormatOption, JsonFlag, print_json, wants_json

if TYPE_CHECKING:
    from leenet_fx.surgery.model import EarlyExitModule


def inspect(
    model: Annotated[
        str, typer.Argument(help="timm/NAME, torchvision/NAME, a bare name, or path.py:factory.")
    ],
    strategy: Annotated[str, typer.Option(help="Placement strategy; see 'strategies'.")] = "fine",
    num_exits: Annotated[
        int | None, typer.Option(help="How many exits; by default √(number of blocks).")
    ] = None,
    at: Annotated[
        list[str] | None,
        typer.Option(help="Strategy 'fixed': a block's name, index or FLOP share; repeatable."),
    ] = None,
    block: Annotated[
        list[str] | None,
        typer.Option(help="Modules that are blocks, such as 'layer?.*'; repeatable."),
    ] = None,
    branch: Annotated[str, typer.Option(help="What hangs on an exit.")] = "pool",
    num_classes: Annotated[int | None, typer.Option(help="Classes, if not the model's.")] = None,
    input_size: Annotated[
        str | None, typer.Option(help="Image size as CxHxW, for example 3x224x224.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the network to this file.")] = None,
    format: FormatOption = Format.human,
    as_json: JsonFlag = False,
) -> None:
    """Show a model's candidate boundaries, where exits go, and the cost table."""
    ee = _attach(model, strategy, num_exits, at, block, branch, num_classes, input_size)
    if plot is not None:
        from leenet_fx.report.plots import plot_network

        plot_network(ee, plot)
        typer.echo(f"Wrote {plot}", err=True)
    if wants_json(format, as_json):
        print_json(_as_json(ee))
    else:
        print(_candidates(ee))
        print()
        print(ee.summary())


def _attach(
    model: str,
    strategy: str,
    num_exits: int | None,
    at: list[str] | None,
    block: list[str] | None,
    branch: str,
    num_classes: int | None,
    input_size: str | None,
) -> EarlyExitModule:
    from leenet_fx.graph.catalog import create_model
    from leenet_fx.surgery.attach import attach
    from placement import get_strategy

    get_strategy(strategy)
    if at and strategy != "fixed":
        raise typer.BadParameter("--at goes with --strategy fixed.")
    try:
        network = create_model(model, device="meta")
    except (RuntimeError, NotImplementedError):
        # Some models compute with their weights while they are built.
        network = create_model(model)
    return attach(
        network.eval(),
        [_position(text) for text in at] if at else strategy,
        num_exits=num_exits,
        example_inputs=_example(input_size),
        blocks=block,
        branch=branch,
        num_classes=num_classes,
        copy=False,
        name=model,
    )


def _example(input_size: str | None) -> Any:
    if input_size is None:
        return None
    import torch

    parts = input_size.lower().split("x")
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"--input-size is like 3x224x224, got '{input_size}'.")
    return torch.empty(1, *map(int, parts), device="meta")


def _position(text: str) -> str | int | float:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _candidates(ee: EarlyExitModule) -> str:
    from leenet_fx import text

    profile, placed = ee.spec.profile, ee.spec.placement.indices
    table = text.new_table(
        f"{profile.model}: {len(profile.candidates)} block boundaries",
        "block",
        "#",
        "exit",
        "FLOPs",
        "rel.",
        "params",
        "bytes",
        "live bytes",
        caption="Cumulative, plain model; bytes: activations written; live bytes: what is alive.",
    )
    for index, (at, share) in enumerate(zip(profile.candidates, profile.shares, strict=True)):
        table.add_row(
            at.name,
            str(index),
            str(placed.index(index)) if index in placed else "",
            text.quantity(at.flops),
            f"{share:.3f}",
            text.quantity(at.params),
            text.quantity(at.bytes),
            text.quantity(at.live_bytes),
        )
    lines = [text.render(table)]
    lines += [f"Not a boundary: {name}: {why}" for name, why in ee.spec.refused.items()]
    return "\n".join(lines)


def _as_json(ee: EarlyExitModule) -> dict[str, Any]:
    spec, profile = ee.spec, ee.spec.profile
    return {
        **ee.costs.to_dict(),
        "strategy": spec.placement.strategy,
        "branch": spec.branch,
        "image_shape": list(spec.image_shape),
        "captured": spec.captured,
        "num_classes": spec.num_classes,
        "placement": list(spec.placement.names),
        "candidates": [
            {**asdict(candidate), "relative_flops": share}
            for candidate, share in zip(profile.candidates, profile.shares, strict=True)
        ],
        "refused": spec.refused,
    }
