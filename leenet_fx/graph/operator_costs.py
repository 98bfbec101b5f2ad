"""The ATen operators that a network runs on a batch, with their FLOPs and bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from leenet_fx.graph.compat import aten_operator, dispatch_mode

_FACTORIES = ("new_", "empty", "zeros", "ones", "full", "rand", "arange", "scalar_tensor")
_BATCH_NORMS = ("native_batch_norm", "_native_batch_norm_legit", "_batch_norm_with_update")
_FORMULAS: dict[Any, Any] = dict(flop_registry)
"""FLOPs of an operator; torch leaves out the product of quantised matrices."""
_FORMULAS[aten_operator("_int_mm")] = flop_registry[torch.ops.aten.mm]


def _layer_norm(x: Tensor, normalized: Any, *_: Any) -> tuple[Tensor, ...] | None:
    outer = x.ndim - len(normalized)
    if tuple(x.shape[outer:]) != tuple(normalized):
        return None
    statistics = (*x.shape[:outer], *([1] * len(normalized)))
    return x.new_empty(x.shape), x.new_empty(statistics), x.new_empty(statistics)


def _batch_norm(x: Tensor, *rest: Any) -> tuple[Tensor, ...] | None:
    mean, training = rest[2], rest[4]
    if training or mean is None or mean.shape != x.shape[1:2]:
        return None
    return torch.empty_like(x), x.new_empty(0), x.new_empty(0)


def _addmm(bias: Tensor, a: Tensor, b: Tensor) -> Tensor | None:
    fits = a.shape[1:] == b.shape[:1] and bias.shape == b.shape[1:] and a.dtype == b.dtype
    return a.new_empty(a.shape[0], b.shape[1]) if fits else None


def _same_shape(x: Tensor, *_: Any) -> Tensor | None:
    return torch.empty_like(x) if x.is_floating_point() else None


def _in_place(x: Tensor, *_: Any) -> Tensor | None:
    return x if x.is_floating_point() else None


def _elementwise(a: Tensor, b: Any, *rest: Any) -> Tensor | None:
    if rest:
        return None
    if isinstance(b, (int, float)):
        return _same_shape(a)
    if not isinstance(b, Tensor) or not b.is_meta or a.dtype != b.dtype:
        return None
    if a.shape == b.shape:
        return torch.empty_like(a) if a.stride() == b.stride() else None
    # The scale of each channel, as in squeeze-and-excitation.
    spread = a.ndim == b.ndim and all(n in (1, m) for m, n in zip(a.shape, b.shape, strict=True))
    return torch.empty_like(a) if spread else None


def _log_softmax(x: Tensor, _: int, to_float: bool) -> Tensor | None:
    return None if to_float else x.new_empty(x.shape)


_SHAPE_RULES: dict[Any, Callable[..., Any]] = {
    aten_operator("native_layer_norm.default"): _layer_norm,
    aten_operator("native_batch_norm.default"): _batch_norm,
    aten_operator("addmm.default"): _addmm,
    aten_operator("_log_softmax.default"): _log_softmax,
    aten_operator("mul.Scalar"): _same_shape,
    **{aten_operator(f"{name}.Tensor"): _elementwise for name in ("add", "mul", "sub")},
    **{
        aten_operator(f"{name}.default"): _same_shape
        for name in ("_safe_softmax", "gelu", "relu", "silu", "hardswish")
    },
    **{
        aten_operator(f"{name}.default"): _in_place
        for name in ("relu_", "silu_", "hardswish_", "hardtanh_")
    },
}
"""Results of some operators on meta tensors, None where torch must check the arguments. On the meta
device torch decomposes these operators into a dozen others, or infers their shapes in Python, which
would dominate the run time."""


@dataclass(frozen=True)
class Operation:
    """An executed operator that has read a value computed from the images.

    Attributes:
        name: name of the operator, without the underscore of its in-place form.
        shape: shape of its first result, None if it returns no tensor.
        batch_statistics: whether it normalises over the samples of the batch.
        autocast: whether torch.autocast was on.
    """

    name: str
    shape: tuple[int, ...] | None
    batch_statistics: bool = False
    autocast: bool = False


class Operations:
    """A record of the operators executed within `record`, with their total cost.

    Operators that read weights and constants only are counted, but not part of the log, because
    a trace may have evaluated them in advance.

    Attributes:
        log: the operators that read a value computed from the images, in execution order.
        flops: FLOPs (2 x MACs) of convolutions and matrix products, by torch's own formulas.
        bytes: bytes of all tensors created; views and in-place results count nothing.
        written: keys (`storage_key`) of storages overwritten in place; callers may clear it.
    """

    def __init__(self) -> None:
        self.log: list[Operation] = []
        self.flops = 0
        self.bytes = 0
        self.written: set[int] = set()
        # Values keep the storages alive: another storage could get the same key otherwise.
        self._from_images: dict[int, Any] = {}

    def record(self) -> AbstractContextManager[Any]:
        """Return a context that records the operators executed within."""
        return dispatch_mode(self._run)

    def mark_images(self, images: Tensor) -> Tensor:
        """Mark the tensor from which logged operators compute, and return it."""
        self._from_images[storage_key(images)] = _storage(images)
        return images

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        rule = _SHAPE_RULES.get(func)
        result = rule(*args) if rule is not None and args[0].is_meta and not kwargs else None
        if result is None:
            result = func(*args, **kwargs)
        packet = func.overloadpacket
        formula = _FORMULAS.get(packet)
        if formula is not None:
            self.flops += int(formula(*args, **kwargs, out_val=result))
        name: str = packet.__name__
        inputs = _storages((*args, *kwargs.values()) if kwargs else args)
        results = result if isinstance(result, (tuple, list)) else (result,)
        tensors = [value for value in results if isinstance(value, Tensor)]
        logs = not self._from_images.keys().isdisjoint(inputs) and not name.startswith(_FACTORIES)
        for tensor in tensors:
            storage = _storage(tensor)
            key = id(storage)
            # ATen declares the result of _unsafe_view to be a new tensor.
            if key not in inputs or name == "_unsafe_view":
                self.bytes += tensor.numel() * tensor.element_size()
            if logs:
                self._from_images[key] = storage
        if _is_in_place(name) and isinstance(args[0], Tensor):
            self.written.add(storage_key(args[0]))
        if logs:
            shape = tuple(tensors[0].shape) if tensors else None
            # A graph may run an in-place operator out of place.
            over_samples = _over_samples(name, args)
            self.log.append(Operation(name.rstrip("_"), shape, over_samples, _autocasts()))
        return result


def measure_call(call: Callable[..., Any], *inputs: Tensor) -> tuple[Any, int, int]:
    """Return the result of `call(*inputs)`, its FLOPs (2 x MACs), and the bytes it writes."""
    operations = Operations()
    with operations.record():
        result = call(*inputs)
    return result, operations.flops, operations.bytes


def storage_key(tensor: Tensor) -> int:
    """Return a number that tensors sharing memory have in common while that memory exists."""
    return id(_storage(tensor))


def _storage(tensor: Tensor) -> Any:
    try:
        return tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):
        return tensor


def _storages(values: Iterable[Any]) -> dict[int, Any]:
    """Return the storages of the tensors among values and lists of values, by their keys."""
    storages: dict[int, Any] = {}
    for value in values:
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, Tensor):
                storage = _storage(item)
                storages[id(storage)] = storage
    return storages


def _is_in_place(name: str) -> bool:
    """Return whether ATen's naming marks an operator as in place: a final underscore."""
    return name.endswith("_") and not name.endswith("__")


def _autocasts() -> bool:
    return torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")


def _over_samples(name: str, args: Any) -> bool:
    # InstanceNorm runs as a batch norm of one sample that has the channels of all samples.
    if name not in _BATCH_NORMS or args[0].shape[0] == 1:
        return False
    return any(argument is True for argument in args[3:])
