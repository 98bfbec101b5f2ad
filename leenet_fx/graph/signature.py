"""The argument of a model that takes the images, and the output that is the logits."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from leenet_fx.errors import TraceError
from leenet_fx.graph.compat import forward_hooks
from leenet_fx.registry import unknown_name

logger = logging.getLogger("leenet_fx")


def take_images_only(root: nn.Module, concrete_args: Mapping[str, Any] | None = None) -> None:
    """Replace the `forward` of `root` by one whose only argument is the images.

    Optional arguments (masks, flags) would be traced as present: they get the value of
    `concrete_args` or keep their default.

    Args:
        root: a model, modified in place.
        concrete_args: values of the arguments of `forward` other than the images, by name.

    Raises:
        UnknownNameError: `concrete_args` has a name that `forward` does not have.
        TraceError: a required argument other than the images has no value.
    """
    forward = root.forward
    fixed = dict(concrete_args or {})
    images_name = _images_argument(root, fixed)

    def images_only(self: nn.Module, images: Any) -> Any:
        # torch.fx traces the root's forward, not its __call__, which would run its hooks.
        pre_hooks, hooks = forward_hooks(self)
        arguments = (images,)
        for pre_hook in pre_hooks.values():
            changed = pre_hook(self, arguments)
            if changed is not None:
                arguments = changed if isinstance(changed, tuple) else (changed,)
        if images_name is None:
            output = forward(*arguments, **fixed)
        else:
            output = forward(**{images_name: arguments[0]}, **fixed)
        for hook in hooks.values():
            changed = hook(self, arguments, output)
            output = output if changed is None else changed
        return output

    replace_forward(root, images_only)


def replace_forward(module: nn.Module, forward: Callable[..., Any]) -> None:
    """Replace the `forward` of one module, by a subclass of its class with the same name."""
    cls = type(module)
    members = {"forward": forward, "__module__": cls.__module__}
    module.__class__ = type(cls.__name__, (cls,), members)


def _images_argument(root: nn.Module, fixed: Mapping[str, Any]) -> str | None:
    """Return the name of the images' argument, or None if it is the first one."""
    name = type(root).__name__
    parameters = inspect.signature(root.forward).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for key in fixed:
            if key not in [p.name for p in named]:
                raise unknown_name(f"argument of {name}.forward", key, [p.name for p in named])
    free = [p for p in named if p.name not in fixed]
    required = [p.name for p in free if p.default is p.empty]
    if len(required) > 1:
        raise TraceError(
            f"{name}.forward takes {', '.join(required)}: one of them is the images; pass values "
            "for the others, for instance concrete_args={'" + required[-1] + "': None}."
        )
    images = required[0] if required else next((p.name for p in free), None)
    return images if named and images != named[0].name else None


def select_logits(value: Any, name: str) -> Any:
    """Return the logits among a model's outputs: 'logits' or 'out' by name, else the first value.

    Args:
        value: output of the model.
        name: name of the model, for messages.

    Raises:
        TraceError: several outputs under other names, or none.
    """
    while not isinstance(value, (fx.Node, fx.Proxy, torch.Tensor)):
        if isinstance(value, Mapping) and value:
            key = next((k for k in ("logits", "out") if k in value), None)
            if key is None and len(value) > 1:
                raise TraceError(
                    f"{name} returns {', '.join(map(str, value))}: which are the logits? Wrap it "
                    "in a module that returns only the logits, or rename them to 'logits'."
                )
            value = value[next(iter(value)) if key is None else key]
        elif isinstance(value, Sequence) and not isinstance(value, str) and value:
            if len(value) > 1:
                logger.warning(
                    "%s returns %d values; the first is used as the logits.", name, len(value)
                )
            value = value[0]
        else:
            raise TraceError(
                f"{name} returns {value!r}, expected logits of shape (batch, classes)."
            )
    return value
