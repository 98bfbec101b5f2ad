"""Devices that a model names in its forward, replaced by the device of the images."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import map_aggregate


def as_device(value: Any) -> torch.device | None:
    """Return the device that a value is or names, None if it is no device."""
    if isinstance(value, torch.device):
        return value
    if isinstance(value, str):
        try:
            return torch.device(value)
        except RuntimeError:
            return None
    return None


def follow_device(graph: fx.Graph) -> None:
    """Replace devices that were fixed while tracing by the device of the images.

    A graph then follows its network to another device, and runs on meta tensors.

    Args:
        graph: edited in place.
    """
    images = next(node for node in graph.nodes if node.op == "placeholder")
    found: list[fx.Node] = []

    def images_device() -> fx.Node:
        if not found:
            with graph.inserting_after(images):
                found.append(graph.call_function(getattr, (images, "device")))
            found[0].meta = {"hoisted": True}
        return found[0]

    def replaced(value: Any) -> Any:
        return images_device() if isinstance(value, torch.device) else value

    for node in list(graph.nodes):
        if node.op not in ("call_function", "call_method"):
            continue
        args: Any = map_aggregate(node.args, replaced)
        kwargs: Any = map_aggregate(node.kwargs, replaced)
        if node.target == "to" and len(args) > 1 and as_device(args[1]) is not None:
            args = (args[0], images_device(), *args[2:])
        if as_device(kwargs.get("device")) is not None:
            kwargs = {**kwargs, "device": images_device()}
        if args != node.args or kwargs != node.kwargs:
            node.args, node.kwargs = args, kwargs


def move_attributes(root: nn.Module, device: torch.device) -> None:
    """Replace devices that modules have as attributes; strings only under the name `device`.

    Args:
        root: the module tree, modified in place.
        device: the device that replaces them.
    """
    for module in root.modules():
        for name, value in list(module.__dict__.items()):
            named = isinstance(value, str) and "device" in name and as_device(value) is not None
            if isinstance(value, torch.device) or named:
                module.__dict__[name] = device
