"""Private parts of torch that the package uses, looked up when called, each with a fallback."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.utils import flop_counter

Hooks: TypeAlias = MutableMapping[int, Callable[..., Any]]
Handler: TypeAlias = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]

_MODULE_CALL = nn.Module.__call__


def is_symbolic_tracing() -> bool:
    """Return whether torch.fx is tracing a module symbolically.

    Fallback: torch.fx replaces `nn.Module.__call__` while it traces.
    """
    module = getattr(torch.fx, "_symbolic_trace", None)
    flag = getattr(module, "is_fx_symbolic_tracing", None)
    if flag is not None:
        return bool(flag())
    return nn.Module.__call__ is not _MODULE_CALL and not torch.compiler.is_compiling()


def is_operator_overload(target: Any) -> bool:
    """Return whether a node's target is an overload of torch.ops, such as aten.add.Tensor."""
    return isinstance(target, type(torch.ops.aten.add.Tensor))


def mark_dynamic_axis(tensor: Tensor, axis: int) -> None:
    """Mark an axis whose size changes between calls, so that torch.compile makes it symbolic.

    Fallback: nothing is marked, and torch.compile makes the axis symbolic at its second size.
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


def aten_operator(name: str) -> Any:
    """Return an operator of torch.ops.aten, or None if this version of torch has none so named.

    Args:
        name: name of the operator, and of its overload behind a dot: "_int_mm", "gelu.default".
    """
    found: Any = torch.ops.aten
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def dispatch_mode(handle: Handler) -> AbstractContextManager[Any]:
    """Return a context in which each ATen operator is replaced by a call of `handle`.

    Fallback: the class under the name by which `torch.utils.flop_counter` imports it.

    Args:
        handle: called with the operator overload, its arguments, and its keyword arguments;
            returns the operator's result. Operators that it calls are not replaced.

    Raises:
        RuntimeError: torch has the class under neither name.
    """
    return cast(AbstractContextManager[Any], _dispatch_mode_class()(handle))


@lru_cache(maxsize=1)
def _dispatch_mode_class() -> Callable[[Handler], Any]:
    private = getattr(torch.utils, "_python_dispatch", None)
    base = getattr(private, "TorchDispatchMode", None)
    base = getattr(flop_counter, "TorchDispatchMode", None) if base is None else base
    if base is None:
        raise RuntimeError(f"torch {torch.__version__} has no TorchDispatchMode.")

    def initialise(self: Any, handle: Handler) -> None:
        base.__init__(self)
        self.handle = handle

    def dispatch(self: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.handle(func, args, kwargs or {})

    members = {"__init__": initialise, "__torch_dispatch__": dispatch}
    return cast(Callable[[Handler], Any], type("HandlerMode", (base,), members))


def version(tensor: Tensor) -> int | None:
    """Return the number of in-place writes that torch has counted on a tensor.

    Writes through `tensor.data` are not counted. Without torch's private counter, and for tensors
    that have none (those made in inference mode), the answer is None.
    """
    try:
        return int(tensor._version)
    except (AttributeError, RuntimeError):
        return None


def is_exporting() -> bool:
    """Return whether torch is making a program of a module, by export or by tracing with values.

    Fallback for the two tracers that are being replaced: False.
    """
    old = (getattr(torch.jit, "is_tracing", None), getattr(torch.onnx, "is_in_onnx_export", None))
    return torch.compiler.is_exporting() or any(flag is not None and flag() for flag in old)
