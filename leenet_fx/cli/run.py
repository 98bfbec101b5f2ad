"""leenet-fx run: an exported network on images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leenet_fx.cli import options as o
from leenet_fx.cli.output import print_json
from leenet_fx.errors import InputError

if TYPE_CHECKING:
    from leenet_fx.data.images import ImageFiles
    from leenet_fx.export.measure import Measurement
    from leenet_fx.run import ExportedNetwork


@o.expand_options
def run(
    file: Annotated[Path, typer.Argument(help="File or folder that 'leenet-fx export' wrote.")],
    *,
    data: Annotated[
        Path,
        typer.Option(
            help="A folder or .tar with one folder of images for each class, or with images alone."
        ),
    ],
    point: Annotated[
        str | None, typer.Option(help="Operating point; default: the thresholds in the file.")
    ] = None,
    backbone: Annotated[
        Path | None, typer.Option(help="The exported backbone, whose time is measured too.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Batch size.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="Number of threads.")] = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="Number of images.")] = None,
    output: o.OutputOptions,
) -> None:
    """Run an exported network on images: classes, exits, accuracy, and time beside the backbone.

    Of images without class folders, a line for each has its name, class, exit and confidence; the
    table is then written to the standard error.
    """
    from leenet_fx.data.images import open_files
    from leenet_fx.export.measure import measure
    from leenet_fx.run import load

    network = load(file, threads=threads)
    other = None if backbone is None else load(backbone, threads=threads)
    if other is not None and _identity(other) != _identity(network):
        raise InputError(f"'{backbone}' is not the backbone of '{file}': export both again.")
    images = open_files(data, unlabelled=True)
    labels = _labels(images.classes, network) if images.classes else None
    chosen = range(len(images))[:: max(1, len(images) // limit) if limit else 1][:limit]
    found = measure(
        network, _batches(images, chosen, network, batch_size), backbone=other, point=point
    )
    truth = None if labels is None else [labels[images.targets[index]] for index in chosen]
    summary = _summary(network, found, truth)
    rows = _rows(network, found, [images.names[index] for index in chosen])
    if output.is_json:
        print_json({**summary, "images": rows})
    elif truth is None:
        for row in rows:
            print(row["image"], row["class"], row["exit"], f"{row['confidence']:.4f}", sep="\t")
        typer.echo(_text(summary), err=True)
    else:
        print(_text(summary))


def _identity(network: ExportedNetwork) -> tuple[Any, ...]:
    return tuple(network.description[key] for key in ("weights", "image_shape", "num_classes"))


def _labels(classes: Sequence[str], network: ExportedNetwork) -> list[int]:
    """Return the network's class for each class of the images."""
    names = network.class_names
    if names is not None:
        unknown = sorted(set(classes) - set(names))
        if unknown:
            raise InputError(
                f"'{network.path}' has no class '{unknown[0]}'; its {len(names)} classes are "
                f"{', '.join(names[:5])}, …"
            )
        return [names.index(name) for name in classes]
    if len(classes) != network.num_classes:
        raise InputError(
            f"'{network.path}' has {network.num_classes} classes, without names, and the images "
            f"have {len(classes)}."
        )
    return list(range(len(classes)))


def _batches(
    images: ImageFiles, chosen: Sequence[int], network: ExportedNetwork, batch_size: int
) -> Any:
    import torch

    from leenet_fx.data.transforms import TransformConfig, build_transform

    preprocessing = network.description["preprocessing"]
    if preprocessing is None:
        raise InputError(
            f"'{network.path}' does not tell how images become its input: export it with "
            "'leenet-fx export', or with preprocessing=."
        )
    transform = build_transform(TransformConfig.from_dict(preprocessing))
    for start in range(0, len(chosen), batch_size):
        indices = chosen[start : start + batch_size]
        yield torch.stack([transform(images[index][0]) for index in indices]).numpy()


def _summary(
    network: ExportedNetwork, found: Measurement, truth: Sequence[int] | None
) -> dict[str, Any]:
    count = len(found.labels)
    right = None if truth is None else found.labels == truth
    costs = network.description["costs"]
    names = [*network.description["exits"], "final classifier"]
    exits = []
    for index, name in enumerate(names):
        here = found.exit_index == index
        share = float(here.mean())
        exits.append(
            {
                "exit": name,
                "share": share,
                "accuracy": None if right is None or not share else float(right[here].mean()),
                "cost": costs[index],
            }
        )
    backbone: dict[str, Any] | None = None
    if found.backbone_labels is not None and found.backbone_seconds is not None:
        backbone = {
            "accuracy": None if truth is None else float((found.backbone_labels == truth).mean()),
            "seconds": found.backbone_seconds / count,
        }
    return {
        "file": str(network.path),
        "samples": count,
        "accuracy": None if right is None else float(right.mean()),
        "cost": float(sum(entry["share"] * entry["cost"] for entry in exits)),
        "seconds": found.seconds / count,
        "exits": exits,
        "backbone": backbone,
    }


def _rows(network: ExportedNetwork, found: Measurement, names: Sequence[str]) -> list[Any]:
    classes = network.class_names
    return [
        {
            "image": name,
            "class": int(label) if classes is None else classes[label],
            "exit": int(exit_index),
            "confidence": float(confidence),
        }
        for name, label, exit_index, confidence in zip(
            names, found.labels, found.exit_index, found.confidence, strict=True
        )
    ]


def _text(summary: dict[str, Any]) -> str:
    from leenet_fx.tables import new_table, percent, render

    def accuracy(of_it: dict[str, Any], word: str) -> str:
        return "" if of_it["accuracy"] is None else f"{word}{percent(of_it['accuracy'])} %, "

    caption = (
        f"{accuracy(summary, 'accuracy ')}cost {percent(summary['cost'])} % of the "
        f"backbone's FLOPs, {1000 * summary['seconds']:.2f} ms an image"
    )
    if summary["backbone"] is not None:
        of_it = summary["backbone"]
        caption += (
            f"; backbone {accuracy(of_it, '')}{1000 * of_it['seconds']:.2f} ms, so "
            f"{summary['seconds'] / of_it['seconds']:.2f} of its time"
        )
    title = f"{Path(summary['file']).name}: {summary['samples']} images"
    table = new_table(title, "exit", "images %", "accuracy %", "FLOPs %", caption=caption)
    for entry in summary["exits"]:
        numbers = (entry["share"], entry["accuracy"], entry["cost"])
        table.add_row(entry["exit"], *map(percent, numbers))
    return render(table)
