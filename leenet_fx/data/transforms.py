"""From a PIL image to what a model was trained on, by timm's transforms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


def make_transform(
    model: nn.Module, image_shape: tuple[int, ...], *, augment: bool = False, name: str = ""
) -> Callable[[Any], Tensor]:
    """The transform a model expects: its mean, spread, crop and interpolation.

    A model says so by `pretrained_cfg`, a dictionary as timm's models have it; torchvision's are
    known by their name; others get ImageNet's mean and spread.

    Args:
        model: the backbone.
        image_shape: (C, H, W).
        augment: random crops and flips, for training.
        name: `torchvision/NAME`, where it is one of those.
    """
    from timm.data import create_transform, resolve_data_config
    from torchvision import transforms

    config = resolve_data_config(
        {"input_size": image_shape},
        pretrained_cfg={"crop_pct": 1.0, **_torchvision(name), **_own(model)},
    )
    channels, height, width = image_shape
    for key in ("mean", "std"):
        if channels == 1:
            config[key] = (sum(config[key]) / len(config[key]),)
    small = min(height, width) <= 64
    make: Any
    if augment and small:
        # Crops by area suit large photographs; small images are padded and shifted.
        make = transforms.Compose(
            [
                transforms.Resize((height, width)),
                transforms.RandomCrop((height, width), padding=max(1, height // 8)),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(config["mean"], config["std"]),
            ]
        )
    else:
        make = create_transform(
            config["input_size"],
            is_training=augment,
            mean=config["mean"],
            std=config["std"],
            interpolation=config["interpolation"],
            crop_pct=config["crop_pct"],
            crop_mode=config["crop_mode"],
        )
    return Prepared("L" if channels == 1 else "RGB", make)


class Prepared:
    """Colour mode, then a transform; a class, so that worker processes can be sent it."""

    def __init__(self, mode: str, transform: Callable[[Any], Tensor]) -> None:
        self.mode = mode
        self.transform = transform

    def __call__(self, image: Any) -> Tensor:
        """PIL image → tensor (C, H, W)."""
        return self.transform(image.convert(self.mode))


def _own(model: nn.Module) -> dict[str, Any]:
    found = getattr(model, "pretrained_cfg", None)
    return dict(found) if isinstance(found, dict) else {}


def _torchvision(name: str) -> dict[str, Any]:
    library, _, rest = name.partition("/")
    if library != "torchvision":
        return {}
    from torchvision.models import get_model_weights

    weights: Any = getattr(get_model_weights(rest), "DEFAULT", None)
    if weights is None:
        return {}
    made = weights.transforms()
    return {
        "mean": tuple(made.mean),
        "std": tuple(made.std),
        "crop_pct": made.crop_size[0] / made.resize_size[0],
        "interpolation": str(made.interpolation.value),
    }
