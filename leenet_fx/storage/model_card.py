"""The model card: README.md beside saved exits, for whoever finds the folder or the repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from leenet_fx.storage.config import ExitConfig
from leenet_fx.storage.files import write_atomically
from leenet_fx.surgery.operating_point import Interval, OperatingPoint

CARD = "README.md"

MARK = "<!-- written by leenet_fx.save, which replaces this file as long as this line is in it -->"

FOLDER = "FOLDER"
"""Stands for the place of the files in the card's code."""


def write_card(config: ExitConfig, folder: Path, license: str | None, place: str = FOLDER) -> None:
    """Write the card, unless there is one that was written by hand.

    Args:
        config: description of the network.
        folder: of the card.
        license: licence of the weights; None takes what timm says of the backbone.
        place: what `load` takes to load the network.

    Raises:
        StorageError: the folder cannot be written to.
    """
    path = folder / CARD
    if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
        return
    write_atomically(path, card_text(config, license, place))


def card_text(config: ExitConfig, license: str | None = None, place: str = FOLDER) -> str:
    """Return the card: YAML for the Hugging Face hub, then Markdown.

    Args:
        config: description of the network.
        license: licence of the weights; None takes what timm says of the backbone.
        place: what `load` takes to load the network.
    """
    from huggingface_hub import ModelCardData

    licence = license or _license_of(config.model)
    library, _, name = config.model.partition("/")
    data = ModelCardData(
        license=licence,
        library_name="leenet-fx",
        pipeline_tag="image-classification",
        tags=["early-exit", "image-classification"],
        base_model=config.model if library == "timm" and "." in name else None,
    )
    exits = len(config.placement.names)
    shape = "×".join(map(str, config.image_shape))
    parts = [
        f"---\n{data.to_yaml()}\n---",
        MARK,
        f"# {_plain(config.model)} with early exits",
        f"{exits} exits, {config.num_classes} classes, images of {shape}. Easy images exit early; "
        "the others reach the backbone's own classifier.",
        "## Operating points",
        _points(config.operating_points),
        "## Exits",
        _exits(config),
        "## Use",
        _use(config, place),
        "## Licence",
        f"{licence}." if licence else "Not stated: the backbone's licence holds for its weights.",
    ]
    if config.method is not None:
        parts[6:6] = ["## Training", f"Method {_plain(str(config.method))}; {_backbone(config)}."]
    return "\n\n".join(parts) + "\n"


def _points(points: tuple[OperatingPoint, ...]) -> str:
    if not points:
        return "None: thresholds were not calibrated."
    rows = [
        {
            "name": _plain(point.name),
            "asked for": f"{point.target} = {point.limit:g}",
            "promise": f"≤ {point.bound:.4f} at confidence {point.level:g}"
            if point.promised and point.bound is not None
            else "none",
            "accuracy %": _percent(point.accuracy),
            "backbone %": ""
            if point.backbone_accuracy is None
            else f"{100 * point.backbone_accuracy:.2f}",
            f"cost, % of the backbone's {point.cost_kind}": _percent(point.cost),
            "images": point.samples,
        }
        for point in points
    ]
    return f"{_table(rows)}\n\nMeasured on calibration images, with {_level(points)}."


def _table(rows: list[dict[str, Any]]) -> str:
    from tabulate import tabulate

    return tabulate(rows, "keys", tablefmt="pipe", disable_numparse=True)


def _level(points: tuple[OperatingPoint, ...]) -> str:
    levels = sorted({point.level for point in points})
    return " or ".join(f"{100 * level:g} %" for level in levels) + " intervals"


def _percent(interval: Interval | None) -> str:
    if interval is None:
        return ""
    low, high = 100 * interval.low, 100 * interval.high
    return f"{100 * interval.estimate:.2f} [{low:.2f}, {high:.2f}]"


def _exits(config: ExitConfig) -> str:
    whole = config.costs["total"]["flops"]
    rows = [
        {
            "exit": index,
            "after": f"`{_plain(name)}`",
            "FLOPs, % of the backbone's": f"{100 * row['flops'] / whole:.1f}" if whole else "",
        }
        for index, (name, row) in enumerate(
            zip(config.placement.names, config.costs["exits"], strict=False)
        )
    ]
    return _table(rows)


def _use(config: ExitConfig, place: str) -> str:
    library = config.model.split("/")[0] in ("timm", "torchvision") and ".py:" not in config.model
    model = "" if library and config.holds_backbone else ", model"
    lines = ["```python", "import leenet_fx", ""]
    if model and library:
        lines.append(f'model = leenet_fx.create_model("{_plain(config.model)}", pretrained=True)')
    elif model:
        lines.append("model = ...  # the trained backbone, which is not in these files")
    lines += [
        f'ee = leenet_fx.load("{_plain(place)}"{model})',
        "logits = ee(images)  # (B, classes)",
    ]
    if config.operating_points:
        lines.append(f"ee.use({config.operating_points[-1].name!r})")
    return "\n".join([*lines, "```"])


def _backbone(config: ExitConfig) -> str:
    if not config.changed:
        return "the backbone is unchanged"
    return "new or changed weights of the backbone are in these files"


def _license_of(model: str) -> str | None:
    """Return the licence that timm states for a model's weights."""
    library, _, name = model.partition("/")
    if library != "timm" or "." not in name:
        return None
    import timm

    try:
        config = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except (RuntimeError, ValueError):
        return None
    found = getattr(config, "license", None)
    return str(found) if found else None


def _plain(text: str) -> str:
    """Return text of one line that does not end a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("`", "'").replace('"', "'")
