"""Which argument of a model takes the images, and which of its outputs are the logits."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from leenet_fx.errors import TraceError
from leenet_fx.registry import unknown_name

logger = logging.getLogger("leenet_fx")


def take_images_only(root: nn.Module, concrete_args: Mapping[str, Any] | None = None) -> None:
    """Leaves `root` with one argument, the images.

    Optional arguments (masks, flags) would be traced as present: they get the value of
    `concrete_args` or keep their default.

    Raises:
        UnknownNameError: a name that `forward` does not have.
        TraceError: an argument that is neither the images nor has a value.
    """
    forward = root.forward
    given = dict(concrete_args or {})
    images_name = _images_argument(root, given)

    def images_only(self: nn.Module, images: Any) -> Any:
        # fx traces the root's forward, not its call: the root's hooks are run by hand.
        arguments = (images,)
        for before in self._forward_pre_hooks.values():
            changed = before(self, arguments)
            if changed is not None:
                arguments = changed if isinstance(changed, tuple) else (changed,)
        if images_name is None:
            answer = forward(*arguments, **given)
        else:
            answer = forward(**{images_name: arguments[0]}, **given)
        for after in self._forward_hooks.values():
            changed = after(self, arguments, answer)
            answer = answer if changed is None else changed
        return answer

    replace_forward(root, images_only)


def replace_forward(module: nn.Module, forward: Callable[..., Any]) -> None:
    """Gives one module another `forward` by a class of its own, of the same name."""
    cls = type(module)
    members = {"forward": forward, "__module__": cls.__module__}
    module.__class__ = type(cls.__name__, (cls,), members)


def _images_argument(root: nn.Module, given: Mapping[str, Any]) -> str | None:
    """Name of the argument that takes the images where others come before it, else None."""
    name = type(root).__name__
    parameters = inspect.signature(root.forward).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for key in given:
            if key not in [p.name for p in named]:
                raise unknown_name(f"argument of {name}.forward", key, [p.name for p in named])
    free = [p for p in named if p.name not in given]
    required = [p.name for p in free if p.default is p.empty]
    if len(required) > 1:
        raise TraceError(
            f"{name}.forward takes {', '.join(required)}: one of them is the images, give the "
            "value of the others, as in concrete_args={'" + required[-1] + "': None}."
        )
    images = required[0] if required else next((p.name for p in free), None)
    return images if named and images != named[0].name else None


def select_logits(value: Any, name: str) -> Any:
    """The logits among what a model returns: 'logits' or 'out' by name, else the first value.

    Raises:
        TraceError: several values under other names, or none.
    """
    while not isinstance(value, (fx.Node, fx.Proxy, torch.Tensor)):
        if isinstance(value, Mapping) and value:
            key = next((k for k in ("logits", "out") if k in value), None)
            if key is None and len(value) > 1:
                raise TraceError(
                    f"{name} returns {', '.join(map(str, value))}: which are the logits? Wrap it "
                    "in a module that returns them alone, or call them 'logits'."
                )
            value = value[next(iter(value)) if key is None else key]
        elif isinstance(value, Sequence) and not isinstance(value, str) and value:
            if len(value) > 1:
                logger.warning("%s returns %d values; the first is taken.", name, len(value))
            value = value[0]
        else:
            raise TraceError(
                f"{name} returns {value!r}, expected logits of shape (batch, classes)."
            )
    return value
