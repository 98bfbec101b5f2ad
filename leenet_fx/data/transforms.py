"""Transforms from PIL images to the input that a model expects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


def make_transform(
    model: nn.Module, image_shape: tuple[int, ...], *, augment: bool = False, name: str = ""
) -> Callable[[Any], Tensor]:
    """Return the transform a model expects: its mean, standard deviation, crop and interpolation.

    They are read from the model's `pretrained_cfg`, a dictionary as timm's models have it;
    torchvision's models are recognised by `name`; other models get ImageNet's mean and standard
    deviation.

    Args:
        model: the backbone.
        image_shape: (C, H, W).
        augment: whether to add random crops and flips, for training.
        name: name of the model, `torchvision/NAME` for one of torchvision's.

    Returns:
        PIL image → tensor (C, H, W).
    """
    from timm.data import create_transform, resolve_data_config
    from torchvision import transforms

    config = resolve_data_config(
        {"input_size": image_shape},
        pretrained_cfg={"crop_pct": 1.0, **_torchvision_config(name), **_pretrained_config(model)},
    )
    channels, height, width = image_shape
    for key in ("mean", "std"):
        if channels == 1:
            config[key] = (sum(config[key]) / len(config[key]),)
    small = min(height, width) <= 64
    transform: Any
    if augment and small:
        # Random resized crops suit large photographs; small images are padded and cropped.
        transform = transforms.Compose(
            [
                transforms.Resize((height, width)),
                transforms.RandomCrop((height, width), padding=max(1, height // 8)),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(config["mean"], config["std"]),
            ]
        )
    else:
        transform = create_transform(
            config["input_size"],
            is_training=augment,
            mean=config["mean"],
            std=config["std"],
            interpolation=config["interpolation"],
            crop_pct=config["crop_pct"],
            crop_mode=config["crop_mode"],
        )
    return ImageTransform("L" if channels == 1 else "RGB", transform)


class ImageTransform:
    """Conversion to a colour mode, followed by a transform; can be pickled for worker processes."""

    def __init__(self, mode: str, transform: Callable[[Any], Tensor]) -> None:
        self.mode = mode
        self.transform = transform

    def __call__(self, image: Any) -> Tensor:
        """Return a PIL image as a tensor (C, H, W)."""
        return self.transform(image.convert(self.mode))


def _pretrained_config(model: nn.Module) -> dict[str, Any]:
    config = getattr(model, "pretrained_cfg", None)
    return dict(config) if isinstance(config, dict) else {}


def _torchvision_config(name: str) -> dict[str, Any]:
    """Return the transform of torchvision's default weights in timm's form."""
    library, _, rest = name.partition("/")
    if library != "torchvision":
        return {}
    from torchvision.models import get_model_weights

    weights: Any = getattr(get_model_weights(rest), "DEFAULT", None)
    if weights is None:
        return {}
    preset = weights.transforms()
    return {
        "mean": tuple(preset.mean),
        "std": tuple(preset.std),
        "crop_pct": preset.crop_size[0] / preset.resize_size[0],
        "interpolation": str(preset.interpolation.value),
    }
