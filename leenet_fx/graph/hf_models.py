"""Image classifiers of Hugging Face's transformers, which is imported only when one is named."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import nn

from leenet_fx.errors import InputError, first_line
from leenet_fx.graph.hf_processors import read_processor
from leenet_fx.registry import unknown_name

FILE_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
"""Options of `from_pretrained` that say where files are."""


def architectures() -> list[str]:
    """Return the model types of transformers that have an image classifier.

    Raises:
        InputError: transformers is not installed.
    """
    return [config.model_type for config in _mapping()]


def build(architecture: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    """Return a classifier with random weights.

    Args:
        architecture: its model type, "resnet" for instance.
        pretrained: must be False: an architecture has no weights of its own.
        options: keyword arguments of its configuration.

    Raises:
        UnknownNameError: no such model type, or it has no image classifier.
        InputError: `pretrained`; transformers is not installed, or rejects the options.
    """
    if pretrained:
        raise InputError(
            f"'hf/{architecture}' is an architecture without weights: name weights of the hub, as "
            "hf:OWNER/NAME."
        )
    if "num_classes" in options:
        options = {**options, "num_labels": options["num_classes"]}
        del options["num_classes"]
    classes = {config.model_type: (config, models) for config, models in _mapping().items()}
    if architecture not in classes:
        raise unknown_name("architecture of transformers", architecture, classes)
    config, models = classes[architecture]
    cls = models[0] if isinstance(models, (tuple, list)) else models
    try:
        model = cls(config(**options))
    except Exception as error:
        if torch.get_default_device().type == "meta" and isinstance(error, RuntimeError):
            # The constructor computes with weights.
            raise
        raise InputError(f"'hf/{architecture}' cannot be built: {first_line(error)}") from error
    assert isinstance(model, nn.Module)
    return model


def from_hub(name: str, options: dict[str, Any]) -> nn.Module:
    """Return a classifier with the weights of the hub, or of a folder.

    Its `pretrained_cfg` has the size, mean and standard deviation of images by its image processor,
    if there is one.

    Args:
        name: OWNER/NAME, or the path of a folder.
        options: keyword arguments of `from_pretrained`.

    Raises:
        InputError: transformers is not installed, or cannot load the model.
    """
    try:
        model = _transformers().AutoModelForImageClassification.from_pretrained(name, **options)
    except InputError:
        raise
    except Exception as error:
        if torch.get_default_device().type == "meta" and isinstance(error, RuntimeError):
            raise
        raise InputError(f"'hf:{name}' cannot be loaded: {first_line(error)}") from error
    assert isinstance(model, nn.Module)
    of_files = {key: value for key, value in options.items() if key in FILE_OPTIONS}
    with torch.device("cpu"):
        images = read_processor(name, **of_files)
    if images:
        model.pretrained_cfg = images  # type: ignore[assignment]
    return model


def class_names(model: nn.Module) -> tuple[str, ...] | None:
    """Return the names of the classes in a model's configuration, None if it has none."""
    labels = getattr(getattr(model, "config", None), "id2label", None)
    if not isinstance(labels, dict) or sorted(labels) != list(range(len(labels))):
        return None
    names = tuple(str(labels[i]) for i in range(len(labels)))
    return None if names == tuple(f"LABEL_{i}" for i in range(len(names))) else names


def image_shape(model: nn.Module) -> tuple[int, int, int] | None:
    """Return the shape of one image (C, H, W) by a model's configuration, None if it has none."""
    config = getattr(model, "config", None)
    vision = getattr(config, "vision_config", None)
    config = config if vision is None else vision
    size: Any = getattr(config, "image_size", None)
    size = (size, size) if isinstance(size, int) else size
    channels = getattr(config, "num_channels", 3)
    if not isinstance(size, (tuple, list)) or len(size) != 2 or not isinstance(channels, int):
        return None
    return (channels, int(size[0]), int(size[1]))


def _mapping() -> Any:
    _transformers()
    from transformers.models.auto import modeling_auto

    return modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING


def _transformers() -> ModuleType:
    try:
        import transformers
    except ImportError as error:
        raise InputError("Models of transformers need it: pip install 'leenet-fx[hf]'.") from error
    module: ModuleType = transformers
    return module
