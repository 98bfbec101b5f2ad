"""Whether a network converts its images itself, so that it takes images of any dtype."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx


def casts_images(graph: fx.Graph, image_shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    """Return whether the first operators of a network convert bytes to the dtype of its images.

    Args:
        graph: the network.
        image_shape: shape of one image, without the batch axis.
        dtype: dtype of the images, that of the weights.
    """
    images = next(node for node in graph.nodes if node.op == "placeholder")
    pending = [(images, torch.empty(1, *image_shape, dtype=torch.uint8, device="meta"))]
    while pending:
        node, value = pending.pop()
        for user in node.users:
            if user.target is getattr or user.target in ("size", "dim"):
                continue
            result = _run(user, node, value)
            if not isinstance(result, torch.Tensor):
                return False
            if result.dtype == torch.uint8:
                pending.append((user, result))
            elif result.dtype != dtype:
                return False
    return True


def _run(user: fx.Node, node: fx.Node, value: torch.Tensor) -> Any:
    """Return the result of an operator that reads one tensor, None for others."""

    def argument(other: fx.Node) -> Any:
        if other is node:
            return value
        if other.target is getattr and other.args[1] == "device":
            return torch.device("meta")
        raise ValueError

    try:
        args = fx.map_arg(user.args, argument)
        kwargs = fx.map_arg(user.kwargs, argument)
        if user.op == "call_method":
            return getattr(args[0], str(user.target))(*args[1:], **kwargs)
        if user.op == "call_function":
            function: Any = user.target
            return function(*args, **kwargs)
    except Exception:
        return None
    return None
