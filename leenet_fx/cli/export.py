"""leenet-fx export: a trained network as a file for another runtime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from leenet_fx.cli import options as o
from leenet_fx.cli.config import ConfigOption
from leenet_fx.cli.output import print_json

SAVED = o.SavedOptions(split="calibration")
"""Its options, with the split of the images that an export is verified with."""

VERIFIED = 8
"""Number of images that an export is verified with."""


@o.expand_options
def export(
    ctx: typer.Context,
    folder: o.FolderArgument,
    out: Annotated[Path, typer.Argument(help="File or folder to write.")],
    *,
    format: Annotated[
        str,
        typer.Option(
            help="onnx: one file; onnx-stages: a file for each stage; openvino; torch-export; "
            "aoti; executorch."
        ),
    ] = "onnx",
    point: Annotated[
        str | None, typer.Option(help="Operating point to use; default: the last calibrated.")
    ] = None,
    backbone: Annotated[
        Path | None, typer.Option(help="Also write the backbone alone, for 'run --backbone'.")
    ] = None,
    saved: o.SavedOptions = SAVED,
    config: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write FOLDER's network for a runtime without torch, verified on images and random inputs."""
    import torch

    from leenet_fx.cli.saved import known_split, open_saved
    from leenet_fx.data.transforms import build_transform
    from leenet_fx.export.export import export as write
    from leenet_fx.policies import NeverExit

    run = open_saved(ctx, folder, saved)
    if point is not None:
        run.ee.use(point)
    transform = build_transform(run.transform)
    split = run.images.splits[known_split(saved.split)]
    if run.ee.spec.class_names is None:
        run.ee.spec = replace(run.ee.spec, class_names=run.images.classes)
    images = torch.stack([transform(split[i][0]) for i in range(min(VERIFIED, len(split)))])
    run.ee.eval()
    results = [write(run.ee, out, format, images=images, preprocessing=run.transform)]
    if backbone is not None:
        run.ee.policy = NeverExit()
        results.append(write(run.ee, backbone, format, preprocessing=run.transform))
    if as_json:
        print_json([result.to_dict() for result in results])
    else:
        for result in results:
            print(result)
    typer.echo(f"Next: leenet-fx run {out} --data FOLDER_OF_IMAGES", err=True)
