"""Models that cannot be traced, by their type."""

from __future__ import annotations

import inspect

import torch
from torch import fx, nn

from leenet_fx.errors import InputError

_RECURRENT = "torch.ao.nn.quantized.dynamic.modules.rnn"
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_STATIC = ("torch.ao.nn.quantized.modules", "torch.ao.nn.intrinsic.quantized.modules")

_BESIDE_IMAGES = {"input_ids": "text", "spatial_shapes": "the number of patches of each image"}
"""Arguments of transformers' models, and what they are."""


class TakesIndicesError(InputError):
    """The inputs of a network are the indices of an embedding, so they are no images."""


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
    if first is not None and isinstance(first[1], _EMBEDDINGS):
        raise _takes_indices(model, *first)
    arguments = inspect.signature(type(model).forward).parameters
    for argument, meaning in _BESIDE_IMAGES.items():
        if argument in arguments:
            raise InputError(
                f"{type(model).__name__} takes {meaning} ('{argument}') beside images: exits are "
                "attached to networks that take images alone."
            )


def check_no_indices(graph: fx.Graph, model: nn.Module) -> None:
    """Raise TakesIndicesError if the images of a graph are the indices of an embedding.

    On meta tensors some versions of torch let images of any dtype through.

    Args:
        graph: of the model.
        model: the model.
    """
    for node in graph.nodes:
        if node.op != "call_module" or not node.all_input_nodes:
            continue
        module = model.get_submodule(node.target)
        if isinstance(module, _EMBEDDINGS) and node.all_input_nodes[0].op == "placeholder":
            raise _takes_indices(model, node.target, module)


def _takes_indices(model: nn.Module, path: str, module: nn.Module) -> TakesIndicesError:
    return TakesIndicesError(
        f"The first layer of {type(model).__name__}, '{path}' ({type(module).__name__}), "
        "takes whole numbers: exits are attached to networks that take images."
    )
