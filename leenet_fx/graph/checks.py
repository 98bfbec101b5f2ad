"""Models that cannot be traced, by their type."""

from __future__ import annotations

import inspect

import torch
from torch import nn

from leenet_fx.errors import InputError

_RECURRENT = "torch.ao.nn.quantized.dynamic.modules.rnn"
_STATIC = ("torch.ao.nn.quantized.modules", "torch.ao.nn.intrinsic.quantized.modules")

_BESIDE_IMAGES = {"input_ids": "text", "spatial_shapes": "the number of patches of each image"}
"""Arguments of transformers' models, and what they are."""


def check_module(model: object) -> None:
    """Raise InputError unless `model` is an nn.Module that can be traced.

    Compiled, scripted and statically quantised modules cannot, nor quantised recurrent layers.
    """
    name = type(model).__name__
    if not isinstance(model, nn.Module):
        raise InputError(f"Expected a torch.nn.Module, got {name}.")
    if isinstance(getattr(model, "_orig_mod", None), nn.Module):
        raise InputError(
            "The model was compiled by torch.compile: pass model._orig_mod, and compile the result "
            "with leenet_fx.compile."
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError(
            "The model is a TorchScript module, which cannot be traced: pass the torch.nn.Module "
            "from which it was made."
        )
    for path, module in model.named_modules():
        # Dynamically quantised layers hold their weights in a module of the static ones.
        is_weights = type(module).__name__.endswith("PackedParams")
        if type(module).__module__.startswith(_STATIC) and not is_weights:
            raise InputError(
                f"Module '{path}' of {name} is statically quantised, and cannot be traced: attach "
                "exits to the model in floating point, and quantise the result."
            )
        if type(module).__module__ == _RECURRENT and not is_weights:
            raise InputError(
                f"Module '{path}' of {name} is a dynamically quantised {type(module).__name__}, "
                "which cannot be traced: quantise linear layers only."
            )


def check_takes_images(model: nn.Module) -> None:
    """Raise InputError if a model, which could not be captured, takes something other than images.

    That is a first layer that takes whole numbers, or an argument that transformers' models need
    beside images.

    Args:
        model: the model.
    """
    first = next(((p, m) for p, m in model.named_modules() if not list(m.children())), None)
    if first is not None and isinstance(first[1], (nn.Embedding, nn.EmbeddingBag)):
        raise InputError(
            f"The first layer of {type(model).__name__}, '{first[0]}' ({type(first[1]).__name__}), "
            "takes whole numbers: exits are attached to networks that take images."
        )
    arguments = inspect.signature(type(model).forward).parameters
    for argument, meaning in _BESIDE_IMAGES.items():
        if argument in arguments:
            raise InputError(
                f"{type(model).__name__} takes {meaning} ('{argument}') beside images: exits are "
                "attached to networks that take images alone."
            )
