"""leenet-fx evaluate: accuracy, cost and time of trained exits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from leenet_fx.cli import options as o
from leenet_fx.cli.config import (
    FILE,
    ConfigOption,
    command_line,
    inherited,
    is_default,
    plain_values,
    read_options,
    resolved,
)
from leenet_fx.cli.output import print_json
from leenet_fx.errors import InputError

FITTED = {"model": str, "data": str, "weights": str, "pretrained": bool, "num_classes": int}
"""Options of a fit that `evaluate` takes, and the types of their values."""


@o.expand_options
def evaluate(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(help="Folder that 'leenet-fx fit --out' wrote.")],
    *,
    model: Annotated[
        str | None, typer.Option(help="The backbone; default: the one of the fit.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Images, as for fit; default: those of the fit.")
    ] = None,
    data_set: o.DataSetOptions,
    transforms: o.TransformOptions,
    weights: o.WeightsOption = None,
    split: Annotated[str, typer.Option(help="train, val, calibration or test.")] = "test",
    loading: o.LoaderOptions,
    size: Annotated[
        list[int] | None, typer.Option(help="Time the first N images; repeatable.")
    ] = None,
    overwrite: o.OverwriteOption = False,
    config: ConfigOption = None,
    output: o.OutputOptions,
) -> None:
    """Compare accuracy, cost and time with the backbone's; writes FOLDER/evaluation.json.

    Images are found, read and transformed as for the fit, unless options say otherwise.
    """
    from leenet_fx.cli.images import (
        check_number_of_classes,
        open_images,
        read_transform,
        transform_values,
        warn_if_ordered_otherwise,
        warn_if_resized,
    )
    from leenet_fx.cli.setup import build
    from leenet_fx.data.splits import NAMES
    from leenet_fx.data.transforms import build_transform, override, transform_config
    from leenet_fx.evaluation.evaluate import evaluate as measure
    from leenet_fx.registry import unknown_name
    from leenet_fx.report.records import FILES, make_record, sample_images, write_record
    from leenet_fx.storage.exits import load
    from leenet_fx.storage.files import check_free
    from leenet_fx.storage.upgrade import SPLITS

    split = SPLITS.get(split, split)
    if split not in NAMES:
        raise unknown_name("split", split, NAMES)
    check_free(folder / FILES["evaluation"], overwrite)
    fitted = _options_of_fit(folder)
    given = transform_values(transforms)
    data_set = inherited(ctx, data_set, fitted)
    name = model or _library_model(fitted, folder)
    weights = weights or (Path(fitted["weights"]) if fitted.get("weights") else None)
    network = build(
        name,
        o.BackboneOptions(weights=weights, pretrained=bool(fitted.get("pretrained"))),
        num_classes=fitted.get("num_classes"),
    )
    ee = load(folder, network)
    data = data or str(fitted.get("data", "digits"))
    classes = None
    if is_default(ctx, "classes") and data_set.classes is not None:
        # The network holds the names that the fit read from its file.
        classes = ee.spec.class_names
    images = open_images(data, data_set, classes)
    check_number_of_classes(ee, images)
    transform = read_transform(folder)
    if transform is None:
        transform = transform_config(network, ee.spec.image_shape, name=ee.spec.profile.model)
    transform = override(transform, **given)
    warn_if_resized(images, transform)
    if fitted and ee.spec.class_names is None:
        warn_if_ordered_otherwise(images)
    loader = images.loader(
        split, build_transform(transform), loading.batch_size, workers=loading.workers
    )
    evaluation = measure(ee, loader, sizes=sorted(size) if size else None)
    record = make_record(
        evaluation,
        ee,
        command=command_line("evaluate", ctx),
        config={**fitted, **resolved(ctx), **plain_values(data_set), "split": split},
        classes=images.classes,
        images=sample_images(evaluation, images.splits[split], images.classes),
    )
    path = write_record(folder, record, overwrite)
    if output.is_json:
        print_json(evaluation.to_dict())
    else:
        print(evaluation.summary())
    typer.echo(f"Wrote {path}. Next: leenet-fx report {folder}", err=True)


def _options_of_fit(folder: Path) -> dict[str, Any]:
    """Return the options that `leenet-fx fit` was called with; none if there is no run.yaml."""
    path = folder / FILE
    options = read_options(path) if path.exists() else {}
    for name, kind in FITTED.items():
        if name in options and not isinstance(options[name], kind):
            raise InputError(
                f"'{path}', '{name}': expected {kind.__name__}, found {options[name]!r}."
            )
    return options


def _library_model(fitted: dict[str, Any], folder: Path) -> str:
    name = str(fitted.get("model", ""))
    if ".py:" in name or not name:
        # Reading a result must not run code that the result names.
        raise InputError(
            f"The exits in '{folder}' are for '{name or 'a model of yours'}': name the file that "
            "builds it, --model path.py:factory."
        )
    return name
