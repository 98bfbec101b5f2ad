"""Copies of module trees, with their tensors copied, shared, or on the meta device."""

from __future__ import annotations

import copy
import copyreg
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import nn

from leenet_fx.errors import TraceError

_ATOMS = frozenset((type(None), bool, int, float, str))


def clone(model: nn.Module, tensors: Literal["copy", "share", "meta"]) -> nn.Module:
    """Copy a module tree, with its tensors copied, shared, or replaced by meta tensors.

    Raises:
        TraceError: the model cannot be copied.
    """
    memo: dict[int, Any] = {}
    if tensors != "copy":
        for tensor in (*model.parameters(), *model.buffers()):
            memo[id(tensor)] = tensor if tensors == "share" else _to_meta(tensor)
    for computed in _computed_tensors(model):
        detached = computed.detach()
        memo[id(computed)] = _to_meta(detached) if tensors == "meta" else detached.clone()
    try:
        copied: nn.Module = _copied(model, memo)
    except Exception as error:
        raise TraceError(f"{type(model).__name__} cannot be copied: {error}") from error
    return copied


def _copied(module: nn.Module, memo: dict[int, Any]) -> Any:
    """Return what `copy.deepcopy` returns, in a fraction of the time: most of a module is dicts."""
    if id(module) in memo:
        return memo[id(module)]
    kind = type(module)
    if not _copies_by_default(kind):
        return copy.deepcopy(module, memo)
    copied = kind.__new__(kind)
    memo[id(module)] = copied
    state = module.__getstate__()
    # As copy.deepcopy does: the address of a temporary must not be used again while memo has it.
    memo.setdefault(id(memo), []).append(state)
    copied.__setstate__(_copied_value(state, memo))
    return copied


def _copied_value(value: Any, memo: dict[int, Any]) -> Any:
    kind = type(value)
    if kind in _ATOMS:
        return value
    if kind is dict or kind is OrderedDict:
        if id(value) in memo:
            return memo[id(value)]
        copied: dict[Any, Any] = kind()
        memo[id(value)] = copied
        for key, item in value.items():
            copied[_copied_value(key, memo)] = _copied_value(item, memo)
        return copied
    if kind is tuple and _ATOMS.issuperset(map(type, value)):
        return value
    return _copied(value, memo) if isinstance(value, nn.Module) else copy.deepcopy(value, memo)


def _copies_by_default(kind: type[nn.Module]) -> bool:
    """Return whether `copy.deepcopy` copies a module by its `__getstate__` and `__setstate__`."""
    return (
        not any(hasattr(kind, name) for name in ("__deepcopy__", "__getnewargs__"))
        and not hasattr(kind, "__getnewargs_ex__")
        and kind.__reduce_ex__ is object.__reduce_ex__
        and kind.__reduce__ is object.__reduce__
        and kind not in copyreg.dispatch_table
    )


def _computed_tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    """Yield attributes of modules that are results of computations; deepcopy rejects them."""
    for module in model.modules():
        for value in module.__dict__.values():
            for item in value.values() if isinstance(value, dict) else (value,):
                if isinstance(item, torch.Tensor) and item.grad_fn is not None:
                    yield item


def _to_meta(tensor: torch.Tensor) -> torch.Tensor:
    meta = tensor.detach().to("meta")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(meta, requires_grad=tensor.requires_grad)
    return meta
