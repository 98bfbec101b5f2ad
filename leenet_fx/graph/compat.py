"""Private parts of torch that the package needs, each behind a function with a public fallback."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

Hooks: TypeAlias = MutableMapping[int, Callable[..., Any]]


def is_symbolic_tracing() -> bool:
    """Return whether torch.fx is tracing symbolically in this thread.

    Without torch's private flag nothing is known of a trace, and the answer is False.
    """
    module = getattr(torch.fx, "_symbolic_trace", None)
    flag = getattr(module, "is_fx_symbolic_tracing", None)
    return False if flag is None else bool(flag())


def is_operator_overload(target: Any) -> bool:
    """Return whether a node's target is an overload of torch.ops, such as aten.add.Tensor."""
    overload = getattr(getattr(torch, "_ops", None), "OpOverload", None)
    if overload is not None:
        return isinstance(target, overload)
    return isinstance(target, type(torch.ops.aten.add.Tensor))


def mark_dynamic_axis(tensor: Tensor, axis: int) -> None:
    """Mark an axis whose size changes between calls, so that torch.compile makes it symbolic.

    Without torch's private hint, torch.compile finds out at the second size.
    """
    mark = getattr(getattr(torch, "_dynamo", None), "maybe_mark_dynamic", None)
    if mark is not None:
        mark(tensor, axis)


def forward_hooks(module: nn.Module) -> tuple[Hooks, Hooks]:
    """Return the forward pre-hooks and the forward hooks of one module, by the id of their handle.

    Both mappings are the module's own: deleting an item removes the hook.

    Fallback: two empty mappings; torch has no public access to hooks.
    """
    pre_hooks = getattr(module, "_forward_pre_hooks", None)
    hooks = getattr(module, "_forward_hooks", None)
    return ({} if pre_hooks is None else pre_hooks, {} if hooks is None else hooks)


def global_forward_hooks() -> tuple[Hooks, Hooks]:
    """Return the forward pre-hooks and the forward hooks of all modules, by the id of their handle.

    Both mappings are torch's own, so they show hooks that are registered later.

    Fallback: two empty mappings; torch has no public access to hooks.
    """
    pre_hooks = getattr(nn.modules.module, "_global_forward_pre_hooks", None)
    hooks = getattr(nn.modules.module, "_global_forward_hooks", None)
    return ({} if pre_hooks is None else pre_hooks, {} if hooks is None else hooks)


def has_hooks(module: nn.Module) -> bool:
    """Return whether a forward hook or a forward pre-hook is registered on this module.

    Fallback: True, because a hook cannot be excluded.
    """
    names = ("_forward_hooks", "_forward_pre_hooks")
    return any(getattr(module, name, None) is None or len(getattr(module, name)) for name in names)


def has_global_hooks() -> bool:
    """Return whether a forward hook or a forward pre-hook is registered for all modules.

    Fallback: True, because a hook cannot be excluded.
    """
    names = ("_global_forward_hooks", "_global_forward_pre_hooks")
    found = [getattr(nn.modules.module, name, None) for name in names]
    return any(hooks is None or len(hooks) > 0 for hooks in found)
