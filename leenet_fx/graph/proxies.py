"""Symbolic values of a trace."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx


class Proxy(fx.Proxy):
    """A proxy whose augmented assignments stay in place: other names may refer to the value."""


def _augmented(function: Callable[..., Any]) -> Callable[..., Any]:
    def assign(self: fx.Proxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return assign


READ_VALUES = ("item", "tolist", "numpy", "nonzero", "argwhere", "unique", "masked_select")
"""Operations whose result, or its shape, depends on the values of a tensor."""

IN_PLACE: dict[Callable[..., Any], Callable[..., Any]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.ifloordiv: operator.floordiv,
    operator.ipow: operator.pow,
}
"""Augmented assignments, and their counterparts that return a new value."""

for _function in IN_PLACE:
    setattr(Proxy, f"__{_function.__name__}__", _augmented(_function))


class TensorProxy(Proxy):
    """A proxy of a parameter or buffer: its value is symbolic, its shape is concrete."""

    def __init__(self, node: fx.Node, tracer: fx.Tracer, tensor: torch.Tensor) -> None:
        super().__init__(node, tracer)
        self._tensor = tensor

    @property
    def shape(self) -> torch.Size:
        return self._tensor.shape

    @property
    def ndim(self) -> int:
        return self._tensor.ndim

    def size(self, dim: int | None = None) -> Any:
        return self._tensor.shape if dim is None else self._tensor.shape[dim]

    def dim(self) -> int:
        return self._tensor.ndim

    def numel(self) -> int:
        return self._tensor.numel()

    def nelement(self) -> int:
        return self._tensor.numel()
