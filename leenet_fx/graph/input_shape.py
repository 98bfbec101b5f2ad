"""Which images a network takes, where the caller does not say."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from leenet_fx.errors import InputError, TraceError, first_line

logger = logging.getLogger("leenet_fx")

DEFAULT_SIZE = 224


Measured = TypeVar("Measured")


def find_input(
    root: nn.Module,
    example_inputs: object,
    measure: Callable[[tuple[int, ...], torch.dtype], Measured],
) -> tuple[tuple[int, ...], torch.dtype, Measured]:
    """The shape of one input (without the batch axis), its dtype, and what was measured with it.

    Sources in order: `example_inputs`; the model's own configuration (timm's `pretrained_cfg`, an
    `image_size` or `img_size` attribute); the first layer's channels at 224 x 224, with a logged
    note; for a network that starts with a Linear layer, that layer's width.

    Args:
        root: the model.
        example_inputs: a batch of images, or None.
        measure: runs the model on one input of a shape and dtype; raises if it does not fit.

    Raises:
        InputError: the example does not fit, or no size could be found.
        TraceError: raised by `measure`.
    """
    name = type(root).__name__
    dtype = next((p.dtype for p in root.parameters() if p.is_floating_point()), torch.float32)
    if example_inputs is not None:
        example = _tensor(example_inputs)
        if example.is_floating_point():
            dtype = example.dtype
        shape = tuple(example.shape[1:])
        try:
            return shape, dtype, measure(shape, dtype)
        except TraceError:
            raise
        except Exception as error:
            raise InputError(
                f"{name} does not take example_inputs of shape {tuple(example.shape)}: "
                f"{first_line(error)}"
            ) from error
    tried: list[str] = []
    guesses: dict[tuple[int, ...], str] = {}
    for shape, source in _guesses(root):
        guesses.setdefault(shape, source)
    for shape, source in guesses.items():
        try:
            measured = measure(shape, dtype)
        except TraceError:
            raise
        except Exception as error:
            tried.append(f"{shape} ({source}): {first_line(error)}")
            continue
        if source == "guess" and not type(root).__module__.startswith("torchvision."):
            logger.warning(
                "%s names no input size: costs are counted for %s images; pass example_inputs "
                "for another size.",
                name,
                " x ".join(map(str, shape)),
            )
        return shape, dtype, measured
    reasons = "; ".join(tried) if tried else "it names none and has no convolution or linear layer"
    raise InputError(
        f"No input size found for {name}: {reasons}. Pass example_inputs, a batch of images."
    )


def _tensor(example: object) -> torch.Tensor:
    if isinstance(example, Sequence) and len(example) == 1:
        example = example[0]
    if not isinstance(example, torch.Tensor) or example.ndim < 2:
        got = tuple(example.shape) if isinstance(example, torch.Tensor) else type(example).__name__
        raise InputError(f"example_inputs must be a batch of images (B, C, H, W), got {got}.")
    return example


def _guesses(root: nn.Module) -> Iterator[tuple[tuple[int, ...], str]]:
    first = next(
        (m for m in root.modules() if isinstance(m, (nn.modules.conv._ConvNd, nn.Linear))), None
    )
    conv = first if isinstance(first, nn.Conv2d) else None
    channels = conv.in_channels if conv else 3
    for attribute in ("pretrained_cfg", "default_cfg"):
        config = getattr(root, attribute, None)
        if isinstance(config, dict) and len(config.get("input_size", ())) == 3:
            # A model built for other channels keeps the configuration of its published weights.
            yield (channels, *config["input_size"][1:]), attribute
            yield tuple(config["input_size"]), attribute
    for module in root.modules():
        for attribute in ("image_size", "img_size"):
            size: Any = getattr(module, attribute, None)
            if isinstance(size, int):
                size = (size, size)
            if _is_size(size):
                yield (channels, *size), attribute
    if conv is not None:
        yield (channels, DEFAULT_SIZE, DEFAULT_SIZE), "guess"
    elif isinstance(first, nn.Linear):
        yield (first.in_features,), "guess"


def _is_size(size: Any) -> bool:
    return isinstance(size, tuple) and len(size) == 2 and all(isinstance(s, int) for s in size)
