"""The shape and dtype of the images that a network takes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from leenet_fx.errors import InputError, TraceError, first_line
from leenet_fx.graph.checks import TakesIndicesError
from leenet_fx.graph.hf_models import image_shape
from leenet_fx.graph.hf_processors import image_config

logger = logging.getLogger("leenet_fx")

DEFAULT_SIZE = 224

_WEIGHT_LAYERS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)

Result = TypeVar("Result")


def find_input(
    root: nn.Module,
    example_inputs: object,
    run: Callable[[tuple[int, ...], torch.dtype], Result],
) -> Result:
    """Call `run` with the first input shape and dtype that the model takes; return its result.

    Sources, in order: `example_inputs`; the model's own configuration (timm's `pretrained_cfg`,
    transformers' image processor and `config`, an `image_size` or `img_size` attribute); the
    channels of the first layer at 224 x 224, with a logged note; for a network that starts with a
    Linear layer, the width of that layer.

    Args:
        root: the model.
        example_inputs: a batch of images, or None.
        run: runs the model on one image of a shape and dtype; raises if they do not fit.

    Raises:
        InputError: the example does not fit, or no shape could be found.
        TraceError, TakesIndicesError: raised by `run`.
    """
    name = type(root).__name__
    dtype = next((p.dtype for p in root.parameters() if p.is_floating_point()), torch.float32)
    if example_inputs is not None:
        example = _as_tensor(example_inputs)
        if example.is_floating_point():
            dtype = example.dtype
        try:
            return run(tuple(example.shape[1:]), dtype)
        except (TraceError, TakesIndicesError):
            raise
        except Exception as error:
            raise InputError(
                f"{name} does not take example_inputs of shape {tuple(example.shape)}: "
                f"{first_line(error)}"
            ) from error
    failures: list[str] = []
    sources: dict[tuple[int, ...], str] = {}
    for shape, source in _candidates(root):
        sources.setdefault(shape, source)
    for shape, source in sources.items():
        try:
            result = run(shape, dtype)
        except (TraceError, TakesIndicesError):
            raise
        except Exception as error:
            failures.append(f"{shape} ({source}): {first_line(error)}")
            continue
        if source == "default" and not type(root).__module__.startswith("torchvision."):
            logger.warning(
                "%s does not define an input size: costs are counted for %s images; pass "
                "example_inputs for another size.",
                name,
                " x ".join(map(str, shape)),
            )
        return result
    if not failures:
        failures = ["it defines none and has no convolution or linear layer"]
    raise InputError(
        f"No input size found for {name}: {'; '.join(failures)}. Pass example_inputs, a batch of "
        "images."
    )


def assumed_shape(root: nn.Module) -> tuple[int, ...] | None:
    """Return the shape that is assumed of images for want of a configured one.

    Args:
        root: the model.

    Returns:
        None if the model has a configured shape, is torchvision's, or none can be assumed.
    """
    candidates = list(_candidates(root))
    configured = any(source != "default" for _, source in candidates)
    if configured or not candidates or type(root).__module__.startswith("torchvision."):
        return None
    return candidates[0][0]


def _as_tensor(example: object) -> torch.Tensor:
    if isinstance(example, Sequence) and len(example) == 1:
        example = example[0]
    if not isinstance(example, torch.Tensor) or example.ndim < 2:
        got = tuple(example.shape) if isinstance(example, torch.Tensor) else type(example).__name__
        raise InputError(f"example_inputs must be a batch of images (B, C, H, W), got {got}.")
    return example


def _candidates(root: nn.Module) -> Iterator[tuple[tuple[int, ...], str]]:
    """Yield possible shapes of one image, each with its source."""
    first = next((m for m in root.modules() if isinstance(m, _WEIGHT_LAYERS)), None)
    conv = first if isinstance(first, nn.Conv2d) else None
    channels = conv.in_channels if conv else 3
    configs = {
        "pretrained_cfg": image_config(root),
        "default_cfg": getattr(root, "default_cfg", None),
    }
    for attribute, config in configs.items():
        if isinstance(config, dict) and len(config.get("input_size", ())) == 3:
            # A model built for other channels keeps the configuration of its published weights.
            yield (channels, *config["input_size"][1:]), attribute
            yield tuple(config["input_size"]), attribute
    configured = image_shape(root)
    if configured is not None:
        yield configured, "config"
    for module in root.modules():
        for attribute in ("image_size", "img_size"):
            size: Any = getattr(module, attribute, None)
            if isinstance(size, int):
                size = (size, size)
            if _is_size(size):
                yield (channels, *size), attribute
    if conv is not None:
        yield (channels, DEFAULT_SIZE, DEFAULT_SIZE), "default"
    elif isinstance(first, nn.Linear):
        yield (first.in_features,), "default"


def _is_size(size: Any) -> bool:
    return isinstance(size, tuple) and len(size) == 2 and all(isinstance(s, int) for s in size)
