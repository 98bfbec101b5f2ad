"""leenet-fx inspect: where exits go and what each costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leenet_fx.cli import options as o
from leenet_fx.cli.output import Format, FormatOption, JsonFlag, print_json, wants_json

if TYPE_CHECKING:
    from leenet_fx.surgery.module import EarlyExitModule


LATENCY_SIZES = (1, 8, 32)


def inspect(
    model: o.ModelArgument,
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
    cost: o.PlacementCostOption = "flops",
    latency: Annotated[
        bool, typer.Option("--latency", help="Measure each stage and branch, too.")
    ] = False,
    device: o.DeviceOption = None,
    batch_size: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Images at once for --latency; repeatable. Default: 1, 8, 32."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the network to this file.")] = None,
    format: FormatOption = Format.human,
    as_json: JsonFlag = False,
) -> None:
    """Show a model's candidate boundaries, where exits go, and the cost table."""
    from leenet_fx.cli.setup import attach_by_name
    from leenet_fx.errors import InputError

    timed = latency or cost == "seconds"
    if device is not None and not timed:
        raise InputError(
            f"--device {device} says where to measure: add --latency or --cost seconds."
        )
    if batch_size and not latency:
        raise InputError("--batch-size says how many images to measure with: add --latency.")
    _, ee = attach_by_name(
        model,
        strategy=strategy,
        num_exits=num_exits,
        at=at,
        block=block,
        branch=branch,
        head=head,
        gate=gate,
        conv_blocks=conv_blocks,
        num_classes=num_classes,
        input_size=input_size,
        meta=not timed,
        cost=cost,
        device=device,
    )
    if latency:
        from leenet_fx.cost.measure import profile

        profile(ee, batch_sizes=batch_size or LATENCY_SIZES)
    if plot is not None:
        from leenet_fx.report.plots import plot_network

        plot_network(ee, plot)
        typer.echo(f"Wrote {plot}", err=True)
    if wants_json(format, as_json):
        from leenet_fx.report.records import describe_network

        print_json(describe_network(ee))
    else:
        print(_candidates(ee))
        print()
        print(ee.summary())
        if ee.latency is not None:
            print()
            print(ee.latency.summary())


def _candidates(ee: EarlyExitModule) -> str:
    from leenet_fx import tables

    profile, placed = ee.spec.profile, ee.spec.placement.indices
    timed = profile.seconds is not None
    table = tables.new_table(
        f"{profile.model}: {len(profile.candidates)} block boundaries",
        *("block", "#", "exit", "FLOPs", "rel."),
        *(["ms", "rel."] if timed else []),
        *("params", "bytes"),
        *([] if timed else ["live bytes"]),
        caption="Cumulative, plain model; bytes: activations written"
        + ("." if timed else "; live bytes: what is alive."),
    )
    for index, (at, share) in enumerate(zip(profile.candidates, profile.shares, strict=True)):
        spent: list[str] = []
        if at.seconds is not None and profile.seconds:
            spent = [f"{1e3 * at.seconds:.3g}", f"{at.seconds / profile.seconds:.3f}"]
        table.add_row(
            at.name,
            str(index),
            str(placed.index(index)) if index in placed else "",
            tables.quantity(at.flops),
            f"{share:.3f}",
            *spent,
            tables.quantity(at.params),
            tables.quantity(at.bytes),
            *([] if timed else [tables.quantity(at.live_bytes)]),
        )
    lines = [tables.render(table)]
    lines += [f"Not a boundary: {name}: {why}" for name, why in ee.spec.rejected.items()]
    return "\n".join(lines)
