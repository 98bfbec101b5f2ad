"""leenet-fx inspect: positions of exits and their costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leenet_fx.cli import options as o
from leenet_fx.cli.output import print_json

if TYPE_CHECKING:
    from leenet_fx.surgery.module import EarlyExitModule


LATENCY_SIZES = (1, 8, 32)


@o.expand_options
def inspect(
    model: o.ModelArgument,
    *,
    placement: o.PlacementOptions,
    branches: o.BranchOptions,
    shapes: o.ShapeOptions,
    cost: Annotated[
        str, typer.Option(help="Cost that placements count: flops, or seconds measured here.")
    ] = "flops",
    latency: Annotated[
        bool, typer.Option("--latency", help="Measure the time of each stage and branch.")
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="Device to measure on, for example cuda.")
    ] = None,
    batch_size: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Batch size for --latency; repeatable. Default: 1, 8, 32."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the network to this file.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file of --plot.")
    ] = False,
    output: o.OutputOptions,
) -> None:
    """Show a model's candidate boundaries, the positions of exits, and the cost table."""
    from leenet_fx.cli.setup import attach_by_name
    from leenet_fx.errors import InputError
    from leenet_fx.storage.files import check_free

    timed = latency or cost == "seconds"
    if device is not None and not timed:
        raise InputError(
            f"--device {device} selects where to measure: add --latency or --cost seconds."
        )
    if batch_size and not latency:
        raise InputError("--batch-size selects batch sizes to measure: add --latency.")
    if plot is not None:
        check_free(plot, overwrite)
    _, ee = attach_by_name(
        model, placement, shapes, branches=branches, meta=not timed, cost=cost, device=device
    )
    if latency:
        from leenet_fx.cost.measure import profile

        profile(ee, batch_sizes=batch_size or LATENCY_SIZES)
    if plot is not None:
        from leenet_fx.report.plots import plot_network

        plot_network(ee, plot)
        typer.echo(f"Wrote {plot}", err=True)
    if output.is_json:
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
    """Return the table of block boundaries and the reasons why others were rejected."""
    from leenet_fx import tables

    profile, placed = ee.spec.profile, ee.spec.placement.indices
    timed = profile.seconds is not None
    table = tables.new_table(
        f"{profile.model}: {len(profile.candidates)} block boundaries",
        *("block", "#", "exit", "FLOPs", "rel."),
        *(["ms", "rel."] if timed else []),
        *("params", "bytes"),
        *([] if timed else ["live bytes"]),
        caption="Cumulative, backbone; bytes: activations written"
        + ("." if timed else "; live bytes: activation memory at the cut."),
    )
    for index, (candidate, share) in enumerate(
        zip(profile.candidates, profile.shares, strict=True)
    ):
        seconds: list[str] = []
        if candidate.seconds is not None and profile.seconds:
            relative = candidate.seconds / profile.seconds
            seconds = [f"{1e3 * candidate.seconds:.3g}", f"{relative:.3f}"]
        table.add_row(
            candidate.name,
            str(index),
            str(placed.index(index)) if index in placed else "",
            tables.quantity(candidate.flops),
            f"{share:.3f}",
            *seconds,
            tables.quantity(candidate.params),
            tables.quantity(candidate.bytes),
            *([] if timed else [tables.quantity(candidate.live_bytes)]),
        )
    lines = [tables.render(table)]
    lines += [f"Not a boundary: {name}: {reason}" for name, reason in ee.spec.rejected.items()]
    return "\n".join(lines)
