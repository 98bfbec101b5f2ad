"""leenet-fx evaluate: what fitted exits save, on images nothing was fitted to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from leenet_fx.cli import options as o
from leenet_fx.cli.config import FILE, ConfigOption, command_line, resolved
from leenet_fx.cli.output import Format, FormatOption, JsonFlag, print_json, wants_json
from leenet_fx.errors import InputError


def evaluate(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(help="What 'leenet-fx fit --out' wrote.")],
    model: Annotated[
        str | None, typer.Option(help="The backbone; by default the one that was fitted.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Images, as for fit; by default those of fit.")
    ] = None,
    root: o.RootOption = Path("data"),
    download: o.DownloadOption = False,
    skip_bad: o.SkipBadOption = False,
    weights: o.WeightsOption = None,
    split: Annotated[str, typer.Option(help="train, val, calibration or test.")] = "test",
    batch_size: o.BatchSizeOption = 128,
    workers: o.WorkersOption = 0,
    size: Annotated[
        list[int] | None, typer.Option(help="Time the first N images; repeatable.")
    ] = None,
    overwrite: o.OverwriteOption = False,
    config: ConfigOption = None,
    format: FormatOption = Format.human,
    as_json: JsonFlag = False,
) -> None:
    """Measure accuracy, cost and time beside the plain model; writes FOLDER/evaluation.json."""
    from leenet_fx.cli.setup import build, open_images
    from leenet_fx.data.splits import NAMES
    from leenet_fx.evaluation.evaluate import evaluate as measure
    from leenet_fx.registry import unknown_name
    from leenet_fx.report.records import FILES, make_record, sample_images, write_record
    from leenet_fx.storage.exits import load
    from leenet_fx.storage.files import check_free

    if split not in NAMES:
        raise unknown_name("split", split, NAMES)
    check_free(folder / FILES["evaluation"], overwrite)
    kept = _kept(folder)
    name = model or _library_model(kept, folder)
    weights = weights or (Path(kept["weights"]) if kept.get("weights") else None)
    backbone = build(name, pretrained=bool(kept.get("pretrained")), weights=weights)
    ee = load(folder, backbone)
    images, transform = open_images(
        ee, backbone, data or kept.get("data", "digits"), root, download, skip_bad
    )
    loader = images.loader(split, transform, batch_size, workers=workers)
    found = measure(ee, loader, sizes=sorted(size) if size else None)
    record = make_record(
        found,
        ee,
        command=command_line("evaluate", ctx),
        config={**kept, **resolved(ctx)},
        classes=images.classes,
        images=sample_images(found, images.splits[split], images.classes),
    )
    path = write_record(folder, record, overwrite)
    if wants_json(format, as_json):
        print_json(found.to_dict())
    else:
        print(found.summary())
    typer.echo(f"Wrote {path}. Next: leenet-fx report {folder}", err=True)


def _kept(folder: Path) -> dict[str, Any]:
    """The options that fit was called with."""
    import yaml

    from leenet_fx.storage.files import read_text

    path = folder / FILE
    if not path.exists():
        return {}
    try:
        found = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise InputError(f"'{path}' is not YAML: {error}") from error
    return found if isinstance(found, dict) else {}


def _library_model(kept: dict[str, Any], folder: Path) -> str:
    name = str(kept.get("model", ""))
    if ".py:" in name or not name:
        # Reading a result must not run code that the result names.
        raise InputError(
            f"The exits in '{folder}' are for '{name or 'a model of your own'}': name the file "
            "that builds it, --model path.py:factory."
        )
    return name
