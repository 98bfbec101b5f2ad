"""leenet-fx tier: a part of a network on this machine, the rest on others."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leenet_fx.cli import options as o
from leenet_fx.cli.interrupts import on_interrupt
from leenet_fx.cli.output import print_json
from leenet_fx.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from leenet_fx.surgery.module import EarlyExitModule
    from leenet_fx.tiers.chain import Chain, NextTier, TierPrediction
    from leenet_fx.tiers.tier import Tier

LOADING = o.LoaderOptions(batch_size=1)


@o.expand_options
def tier(
    ctx: typer.Context,
    folder: o.FolderArgument,
    *,
    stages: Annotated[
        str,
        typer.Option(
            help="First stage, and the one behind the last, for instance 0:1. Stage i ends at exit "
            "i, the last stage at the final classifier."
        ),
    ],
    listen: Annotated[
        str | None,
        typer.Option(
            help="HOST:PORT where this tier answers the one before; port 0 takes a free one. "
            "Without it, this is the first tier, and runs images."
        ),
    ] = None,
    following: Annotated[
        str | None, typer.Option("--next", help="HOST:PORT of the next tier; none for the last.")
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="How tensors are sent: unchanged, float16 or uint8.")
    ] = "unchanged",
    bandwidth: Annotated[
        float | None,
        typer.Option(help="Mbit/s of the link to the next tier, to imitate a slower one."),
    ] = None,
    timeout: Annotated[
        float, typer.Option(help="Seconds after which the next tier counts as gone.")
    ] = 30.0,
    point: Annotated[
        str | None, typer.Option(help="Operating point; default: the one in use when saved.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Number of images.")] = None,
    saved: o.SavedOptions,
    loading: o.LoaderOptions = LOADING,
    output: o.OutputOptions,
) -> None:
    """Run some stages of a network here, and the rest on other machines.

    Start the last tier first. Each tier opens the same folder, answers the samples that exit in its
    stages, and sends the others on. If the next tier disappears, samples are answered at the last
    exit before it, and counted as such.
    """
    from leenet_fx.tiers.chain import NextTier
    from leenet_fx.tiers.coding import check_coding
    from leenet_fx.tiers.link import check_positive
    from leenet_fx.tiers.link import listen as open_socket
    from leenet_fx.tiers.tier import parse_stages

    first, stop = parse_stages(stages)
    check_positive(timeout, "timeout (seconds)")
    coding = check_coding(dtype)
    target = None
    if following is not None:
        target = NextTier(following, coding, bandwidth, timeout)
    elif bandwidth is not None:
        raise typer.BadParameter("--bandwidth is of the link to --next, which is not given.")
    if listen is None:
        if first:
            raise typer.BadParameter(
                f"Images enter at stage 0; a tier that begins with stage {first} needs --listen."
            )
        _run_images(ctx, folder, (first, stop), target, point, limit, saved, loading, output)
        return
    # A port in use is found before the network is read, which takes longer.
    open_socket(listen).close()
    _serve(folder, (first, stop), target, point, saved, listen, timeout)


def _serve(
    folder: Path,
    stages: tuple[int, int],
    target: NextTier | None,
    point: str | None,
    saved: o.SavedOptions,
    listen: str,
    timeout: float,
) -> None:
    from leenet_fx.cli.saved import build_backbone, options_of_fit
    from leenet_fx.storage.exits import load
    from leenet_fx.tiers.link import address_of
    from leenet_fx.tiers.link import listen as open_socket
    from leenet_fx.tiers.server import TierServer

    network = build_backbone(folder, options_of_fit(folder), saved.model, saved.weights)
    server = TierServer(_tier(load(folder, network), stages, point), target, timeout=timeout)
    listening = open_socket(listen)
    address = address_of(listening)
    with on_interrupt(lambda: "The tier has stopped."):
        server.serve(
            listening,
            lambda: typer.echo(
                f"Stages {stages[0]}:{stages[1]} of '{folder}' answer at {address}. Ctrl-C stops "
                "them.",
                err=True,
            ),
        )


def _tier(ee: EarlyExitModule, stages: tuple[int, int], point: str | None) -> Tier:
    from leenet_fx.tiers.tier import Tier

    if point is not None:
        ee.use(point)
    return Tier(ee.eval(), *stages)


def _run_images(
    ctx: typer.Context,
    folder: Path,
    stages: tuple[int, int],
    target: NextTier | None,
    point: str | None,
    limit: int | None,
    saved: o.SavedOptions,
    loading: o.LoaderOptions,
    output: o.OutputOptions,
) -> None:
    from leenet_fx.cli.saved import known_split, open_saved
    from leenet_fx.tiers.chain import Chain

    split = known_split(saved.split)
    run = open_saved(ctx, folder, saved)
    chain = Chain(_tier(run.ee, stages, point), target)
    start = time.perf_counter()
    predictions, labels = _predict(chain, run.loader(split, loading), limit)
    seconds = time.perf_counter() - start
    chain.close()
    summary = _summary(run.ee, chain, predictions, labels, seconds)
    if output.is_json:
        print_json({"folder": str(folder), "split": split, **summary})
    else:
        print(_text(folder, split, summary))


def _predict(
    chain: Chain, batches: Any, limit: int | None
) -> tuple[list[TierPrediction], list[Tensor]]:
    predictions: list[TierPrediction] = []
    labels: list[Tensor] = []
    count = 0
    for images, truth in batches:
        if limit is not None:
            images, truth = images[: limit - count], truth[: limit - count]
        predictions.append(chain.predict(images.to(chain.tier.ee.device)))
        labels.append(truth)
        count += len(images)
        if limit is not None and count >= limit:
            break
    if not count:
        raise InputError("There are no images to run.")
    return predictions, labels


def _summary(
    ee: EarlyExitModule,
    chain: Chain,
    predictions: Sequence[TierPrediction],
    labels: Sequence[Tensor],
    seconds: float,
) -> dict[str, Any]:
    import torch

    from leenet_fx.tiers.answers import merged_sizes

    exits = torch.cat([p.prediction.exit_index for p in predictions]).cpu()
    classes = torch.cat([p.prediction.logits.argmax(1) for p in predictions]).cpu()
    tiers = torch.cat([p.tier for p in predictions]).cpu()
    fallback = torch.cat([p.fallback for p in predictions]).cpu()
    right = classes == torch.cat(list(labels)).cpu()
    cost = torch.cat([p.prediction.cost for p in predictions]).cpu()
    count = len(exits)

    def rows(values: Tensor, number: int) -> list[dict[str, Any]]:
        masks = [values == index for index in range(number)]
        return [
            {
                "share": float(mask.float().mean()),
                "accuracy": float(right[mask].float().mean()) if mask.any() else None,
            }
            for mask in masks
        ]

    ranges = [(chain.tier.first, chain.tier.stop), *chain.following]
    names = [*ee.spec.placement.names, "final classifier"]
    return {
        "samples": count,
        "accuracy": float(right.float().mean()),
        "cost": float(cost.mean()),
        "seconds": seconds / count,
        "fallback": float(fallback.float().mean()),
        "exits": [
            {"exit": name, **row} for name, row in zip(names, rows(exits, len(names)), strict=True)
        ],
        "tiers": [
            {"stages": list(pair), **row}
            for pair, row in zip(ranges, rows(tiers, len(ranges)), strict=True)
        ],
        "sent_bytes": [size / count for size in merged_sizes([p.sent for p in predictions])],
    }


def _text(folder: Path, split: str, summary: dict[str, Any]) -> str:
    from leenet_fx.tables import new_table, percent, render

    sent = ", ".join(f"{size:.0f}" for size in summary["sent_bytes"]) or "0"
    caption = (
        f"accuracy {percent(summary['accuracy'])} %, cost {percent(summary['cost'])} % of the "
        f"backbone's FLOPs; bytes sent an image, by link: {sent}; "
        f"{1000 * summary['seconds']:.2f} ms an image, reading included"
    )
    if summary["fallback"]:
        caption += (
            f"; {percent(summary['fallback'])} % of the images were answered at the last exit "
            "before a tier that was gone"
        )
    title = f"{folder.name}, {split}: {summary['samples']} images"
    table = new_table(title, "answered by", "images %", "accuracy %", caption=caption)
    for row in summary["exits"]:
        table.add_row(row["exit"], percent(row["share"]), percent(row["accuracy"]))
    for index, row in enumerate(summary["tiers"]):
        stages = "{}:{}".format(*row["stages"])
        name = f"tier {index} (stages {stages})"
        table.add_row(name, percent(row["share"]), percent(row["accuracy"]))
    return render(table)
