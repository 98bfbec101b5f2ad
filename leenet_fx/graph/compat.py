"""Private parts of torch that the package needs, each behind a function with a public fallback."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


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


def version(tensor: Tensor) -> int | None:
    """Return the number of in-place writes that torch has counted on a tensor.

    Writes through `tensor.data` are not counted. Without torch's private counter, and for tensors
    that have none (those made in inference mode), the answer is None.
    """
    try:
        return int(tensor._version)
    except (AttributeError, RuntimeError):
        return None
