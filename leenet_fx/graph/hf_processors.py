"""What a model of transformers expects of images, measured on its image processor."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger("leenet_fx")

SIDE = 512
"""Pixels of a side of the images that are processed."""
FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Pillow's filters for resizing, in the order of its numbers."""


def image_config(model: nn.Module) -> dict[str, Any]:
    """Return how a model that was loaded from a folder or the hub expects images.

    Args:
        model: any model; for those not of transformers, or built without weights, the result is
            empty. Nothing is downloaded.

    Returns:
        Values as in timm's `pretrained_cfg`.
    """
    if isinstance(getattr(model, "pretrained_cfg", None), dict):
        return dict(model.pretrained_cfg)  # type: ignore[arg-type]
    source = getattr(getattr(model, "config", None), "_name_or_path", None)
    if not isinstance(source, str) or not source:
        return {}
    return read_processor(source, local_files_only=True)


def read_processor(name: str, **options: Any) -> dict[str, Any]:
    """Return how the image processor saved beside a model changes images.

    Black, white, grey and red images show the mean and standard deviation, whatever options they
    come from.

    Args:
        name: OWNER/NAME, or the path of a folder.
        options: keyword arguments of `from_pretrained`.

    Returns:
        Values as in timm's `pretrained_cfg`; empty if there is no such processor, and, with a
        warning, without mean and deviation if it does more than shift and scale each channel.
    """
    try:
        from transformers import AutoImageProcessor

        processor = AutoImageProcessor.from_pretrained(name, **options)
        black, white, grey, red = (
            _processed(processor, color)
            for color in ((0, 0, 0), (255, 255, 255), (51, 51, 51), (255, 0, 0))
        )
    except Exception:
        return {}
    if white.ndim != 3 or white.shape[0] != 3:
        return {}
    known = {"input_size": tuple(white.shape), **_resizing(processor, white.shape[1])}
    low, high, between, reddish = (
        image.double().mean((1, 2)) for image in (black, white, grey, red)
    )
    scale = high - low
    linear = torch.allclose(between, low + scale / 5, atol=1e-3)
    expected = torch.stack([high[0], low[1], low[2]])
    if not linear or bool((scale <= 0).any()) or not torch.allclose(reddish, expected, atol=1e-3):
        logger.warning(
            "The image processor of '%s' does more than shift and scale each channel (it may swap "
            "channels): use it as the transform, instead of leenet_fx.make_transform.",
            name,
        )
        return known
    mean, std = (-low / scale).tolist(), (1 / scale).tolist()
    return {**known, "mean": tuple(mean), "std": tuple(std)}


def _processed(processor: Any, color: tuple[int, int, int]) -> Tensor:
    from PIL import Image

    image = Image.new("RGB", (SIDE, SIDE), color)
    values: Tensor = processor(image, return_tensors="pt")["pixel_values"][0]
    return values


def _resizing(processor: Any, height: int) -> dict[str, Any]:
    timm_config = getattr(processor, "data_config", None)
    if isinstance(timm_config, dict):
        keys = ("interpolation", "crop_pct", "crop_mode")
        return {key: timm_config[key] for key in keys if key in timm_config}
    size = {key: value for key, value in dict(processor.size).items() if value}
    resized = int(size.get("shortest_edge") or size.get("height") or height)
    share, squashed = height / max(resized, height), "height" in size
    own_share = getattr(processor, "crop_pct", None)
    if own_share:
        # ConvNext and its kin crop small images, and squash large ones.
        share, squashed = (float(own_share), False) if resized < 384 else (1.0, True)
    number = int(getattr(processor, "resample", None) or 0)
    filter_ = FILTERS[number] if getattr(processor, "resample", None) is not None else "bilinear"
    mode = "squash" if squashed else "center"
    return {"interpolation": filter_, "crop_pct": share, "crop_mode": mode}
