"""The argument of a model that takes the images, and the form of its outputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import fx, nn

from leenet_fx.errors import TraceError
from leenet_fx.graph.compat import forward_hooks
from leenet_fx.registry import unknown_name

LOGITS = ("logits", "out")
"""Names under which models return logits."""


def take_images_only(root: nn.Module, concrete_args: Mapping[str, Any] | None = None) -> None:
    """Replace the `forward` of `root` by one from the images to `plain_output`.

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
        return plain_output(output)

    replace_forward(root, images_only)


def replace_forward(module: nn.Module, forward: Callable[..., Any]) -> None:
    """Replace the `forward` of one module, by a subclass of its class with the same name."""
    cls = type(module)
    members = {"forward": forward, "__module__": cls.__module__}
    module.__class__ = type(cls.__name__, (cls,), members)


def images_name(model: nn.Module, concrete_args: Mapping[str, Any] | None = None) -> str | None:
    """Return the name of the argument of `forward` that takes the images, None if it has none."""
    name = _images_argument(model, concrete_args or {})
    if name is not None:
        return name
    parameters = inspect.signature(model.forward).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return next((p.name for p in parameters if p.kind in kinds), None)


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
    positional = bool(named) and named[0].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    return images if named and not (positional and images == named[0].name) else None


def plain_output(value: Any) -> Any:
    """Return the output of a model with dataclasses, mappings and named tuples as dictionaries."""
    if isinstance(value, (fx.Proxy, torch.Tensor)):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    elif isinstance(value, tuple) and hasattr(value, "_asdict"):
        named = value._asdict()
        value = named if any(name in named for name in LOGITS) else tuple(value)
    elif hasattr(value, "logits"):
        value = {"logits": value.logits}
    if isinstance(value, Mapping):
        return {name: plain_output(item) for name, item in value.items() if item is not None}
    if isinstance(value, (tuple, list)):
        return tuple(plain_output(item) for item in value)
    return value
