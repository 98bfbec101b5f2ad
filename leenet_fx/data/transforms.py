"""Transforms from PIL images to the input that a model expects."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor, nn

from leenet_fx.data.decoding import to_eight_bits
from leenet_fx.errors import InputError
from leenet_fx.graph.hf_processors import image_config
from leenet_fx.registry import unknown_name

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
"""Names of Pillow's filters for resizing."""


@dataclass(frozen=True)
class TransformConfig:
    """How an image becomes the input of a model: resized, cropped in the centre, standardised.

    Attributes:
        image_shape: (C, H, W); C is 1 for grey and 3 for RGB.
        mean: C values that are subtracted, of pixels in 0..1.
        std: C values that the difference is divided by.
        interpolation: filter of resizing, one of `INTERPOLATIONS`.
        crop_pct: share of the resized image's side that is kept.
        crop_mode: timm's: "center", "squash" or "border".
    """

    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    crop_mode: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TransformConfig:
        """Return the configuration that `to_dict` described.

        Raises:
            InputError: a value is absent or not valid.
        """
        try:
            shape = tuple(int(size) for size in values["image_shape"])
            _check_shape(shape)
            channels, height, width = shape
            config = cls(
                image_shape=(channels, height, width),
                mean=_channels("mean", values["mean"], channels),
                std=_channels("std", values["std"], channels),
                interpolation=str(values["interpolation"]),
                crop_pct=float(values["crop_pct"]),
                crop_mode=str(values["crop_mode"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"Not a transform: {error!r} in {dict(values)}.") from error
        _check(config)
        return config


def transform_config(
    model: nn.Module,
    image_shape: Sequence[int],
    *,
    name: str = "",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    interpolation: str | None = None,
) -> TransformConfig:
    """Return how a model expects images; arguments that are given take precedence.

    The rest is read from the model's `pretrained_cfg`, a dictionary as timm's models have it, or
    from the image processor saved with a model of transformers; torchvision's models are recognised
    by `name`; other models get ImageNet's mean and standard deviation.

    Args:
        model: the backbone.
        image_shape: (C, H, W); C is 1 or 3.
        name: name of the model, `torchvision/NAME` for one of torchvision's.
        mean: one value, or one for each channel, of pixels in 0..1.
        std: likewise.
        interpolation: filter of resizing, one of `INTERPOLATIONS`.

    Raises:
        InputError: a shape that images do not have, or values that are not numbers, not one for
            each channel, or no deviation.
        UnknownNameError: no such interpolation.
    """
    from timm.data import resolve_data_config

    shape = tuple(image_shape)
    _check_shape(shape)
    channels, height, width = shape
    found = resolve_data_config(
        {"input_size": shape},
        pretrained_cfg={
            "crop_pct": 1.0,
            **_torchvision_config(model, name),
            **image_config(model),
        },
    )
    config = TransformConfig(
        image_shape=(channels, height, width),
        mean=_of_channels(found["mean"], channels),
        std=_of_channels(found["std"], channels),
        interpolation=found["interpolation"],
        crop_pct=found["crop_pct"],
        crop_mode=found["crop_mode"],
    )
    return override(config, mean=mean, std=std, interpolation=interpolation)


def override(
    config: TransformConfig,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    interpolation: str | None = None,
) -> TransformConfig:
    """Return a configuration with the values that are given.

    Raises:
        InputError, UnknownNameError: as `transform_config` raises.
    """
    channels = config.image_shape[0]
    changed = replace(
        config,
        mean=config.mean if mean is None else _channels("mean", mean, channels),
        std=config.std if std is None else _channels("std", std, channels),
        interpolation=config.interpolation if interpolation is None else interpolation,
    )
    _check(changed)
    return changed


def make_transform(
    model: nn.Module,
    image_shape: Sequence[int],
    *,
    augment: bool = False,
    name: str = "",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    interpolation: str | None = None,
) -> Callable[[Any], Tensor]:
    """Return the transform a model expects: its mean, standard deviation, crop and interpolation.

    Images of any mode are brought to grey or RGB as `leenet_fx.data.decoding` says.

    Args:
        model: the backbone.
        image_shape: (C, H, W).
        augment: whether to add random crops and flips, for training.
        name: name of the model, `torchvision/NAME` for one of torchvision's.
        mean: one value, or one for each channel, of pixels in 0..1; None takes the model's.
        std: likewise.
        interpolation: "nearest", "bilinear", "bicubic", "box", "hamming" or "lanczos"; None takes
            the model's.

    Returns:
        PIL image → tensor (C, H, W).

    Raises:
        InputError, UnknownNameError: as `transform_config` raises.
    """
    config = transform_config(
        model, image_shape, name=name, mean=mean, std=std, interpolation=interpolation
    )
    return build_transform(config, augment=augment)


def build_transform(config: TransformConfig, *, augment: bool = False) -> Callable[[Any], Tensor]:
    """Return the transform of a configuration.

    Args:
        config: the configuration.
        augment: whether to add random crops and flips, for training.

    Returns:
        PIL image → tensor (C, H, W).
    """
    from timm.data import create_transform
    from torchvision import transforms

    channels, height, width = config.image_shape
    transform: Any
    if augment and min(height, width) <= 64:
        # Random resized crops suit large photographs; small images are padded and cropped.
        filter_ = transforms.InterpolationMode(config.interpolation)
        transform = transforms.Compose(
            [
                transforms.Resize((height, width), filter_),
                transforms.RandomCrop((height, width), padding=max(1, height // 8)),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(config.mean, config.std),
            ]
        )
    else:
        transform = create_transform(
            config.image_shape,
            is_training=augment,
            mean=config.mean,
            std=config.std,
            interpolation=config.interpolation,
            crop_pct=config.crop_pct,
            crop_mode=config.crop_mode,
        )
    return ImageTransform("L" if channels == 1 else "RGB", transform)


class ImageTransform:
    """Conversion to a colour mode, followed by a transform; can be pickled for worker processes."""

    def __init__(self, mode: str, transform: Callable[[Any], Tensor]) -> None:
        self.mode = mode
        self.transform = transform

    def __call__(self, image: Any) -> Tensor:
        """Return a PIL image as a tensor (C, H, W)."""
        return self.transform(to_eight_bits(image).convert(self.mode))


def _check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) != 3 or shape[0] not in (1, 3) or min(shape) < 1:
        raise InputError(
            f"Images have 1 or 3 channels and are (C, H, W), the model takes {shape}: write a "
            "transform of your own for other inputs."
        )


def _check(config: TransformConfig) -> None:
    if config.interpolation not in INTERPOLATIONS:
        raise unknown_name("interpolation", config.interpolation, INTERPOLATIONS)
    if min(config.std) <= 0:
        raise InputError(f"std must be greater than 0, got {config.std}.")


def _channels(option: str, values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Return one value for each channel."""
    given = tuple(float(value) for value in values)
    if len(given) == 1:
        given *= channels
    if len(given) != channels or not all(map(math.isfinite, given)):
        raise InputError(
            f"{option} must be one number or one for each of {channels} channels, got "
            f"{list(values)}."
        )
    return given


def _of_channels(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Return the values of a model's configuration; their mean for grey images."""
    if channels == 1:
        return (sum(values) / len(values),)
    return _channels("pretrained_cfg", values, channels)


def _torchvision_config(model: nn.Module, name: str) -> dict[str, Any]:
    """Return the transform of torchvision's default weights in timm's form."""
    library, _, rest = name.rpartition("/")
    by_class = not library and type(model).__module__.startswith("torchvision.")
    if library != "torchvision" and not by_class:
        return {}
    from torchvision.models import get_model_weights, list_models

    if rest not in list_models():
        return {}
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
