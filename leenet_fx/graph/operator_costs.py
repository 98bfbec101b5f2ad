"""Which operators a network runs on a batch: to compare a graph with the model it was made from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

_FACTORIES = ("new_", "empty", "zeros", "ones", "full", "rand", "arange", "scalar_tensor")
_FORMULAS = {**flop_registry, torch.ops.aten._int_mm: flop_registry[torch.ops.aten.mm]}
"""FLOPs of an operator; torch leaves out the product of quantised matrices."""
_BATCH_NORMS = ("native_batch_norm", "_native_batch_norm_legit", "_batch_norm_with_update")


def _layer_norm(x: torch.Tensor, normalized: Any, *_: Any) -> tuple[torch.Tensor, ...] | None:
    kept = x.ndim - len(normalized)
    if tuple(x.shape[kept:]) != tuple(normalized):
        return None
    statistics = (*x.shape[:kept], *([1] * len(normalized)))
    return x.new_empty(x.shape), x.new_empty(statistics), x.new_empty(statistics)


def _batch_norm(x: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, ...] | None:
    mean, training = rest[2], rest[4]
    if training or mean is None or mean.shape != x.shape[1:2]:
        return None
    return torch.empty_like(x), x.new_empty(0), x.new_empty(0)


def _addmm(bias: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor | None:
    fits = a.shape[1:] == b.shape[:1] and bias.shape == b.shape[1:] and a.dtype == b.dtype
    return a.new_empty(a.shape[0], b.shape[1]) if fits else None


def _same_shape(x: torch.Tensor, *_: Any) -> torch.Tensor:
    return torch.empty_like(x)


_SHAPE_RULES: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.native_layer_norm.default: _layer_norm,
    torch.ops.aten.native_batch_norm.default: _batch_norm,
    torch.ops.aten._safe_softmax.default: _same_shape,
    torch.ops.aten.gelu.default: _same_shape,
    torch.ops.aten.addmm.default: _addmm,
}
"""What some operators make of meta tensors, None where torch is to say what is wrong: it runs them
there as a dozen smaller ones, which is most of the time that attach would take."""


@dataclass(frozen=True)
class Operation:
    """An operator that was given something computed from the images.

    Attributes:
        name: of the operator.
        shape: of what it made, None where that is no tensor.
        batch_statistics: whether it normalises over the samples of the batch.
    """

    name: str
    shape: tuple[int, ...] | None
    batch_statistics: bool = False


class Operations(TorchDispatchMode):
    """Counts what runs under it, and notes every operator that reads something from the images.

    What a model computes from its weights and shapes alone is not noted, for a trace may have done
    it once and for all.

    Attributes:
        log: the operators that read something computed from the images, in order.
        flops: FLOPs (2 x MACs) of convolutions and matrix products, by torch's own formulas.
        bytes: bytes of all tensors made; views and in-place results are free.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log: list[Operation] = []
        self.flops = 0
        self.bytes = 0
        self._from_images: dict[int, torch.Tensor] = {}

    def follow(self, images: torch.Tensor) -> torch.Tensor:
        """Names the tensor that everything else is computed from."""
        self._from_images[self._key(images)] = images
        return images

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        rule = _SHAPE_RULES.get(func)
        made = rule(*args) if rule is not None and args[0].is_meta and not kwargs else None
        if made is None:
            made = func(*args, **kwargs)
        formula = _FORMULAS.get(func._overloadpacket)
        if formula is not None:
            self.flops += int(formula(*args, **kwargs, out_val=made))
        values = made if isinstance(made, (tuple, list)) else (made,)
        returns = func._schema.returns
        if len(returns) == 1 and len(values) > 1:
            returns = returns * len(values)
        tensors = []
        for spec, value in zip(returns, values, strict=False):
            if isinstance(value, torch.Tensor):
                tensors.append(value)
                if spec.alias_info is None:
                    self.bytes += value.numel() * value.element_size()
        if self._from_images and self._reads_images(args, kwargs):
            self._note(func._overloadpacket.__name__, args, tensors)
        return made

    def _note(self, name: str, args: Any, made: list[torch.Tensor]) -> None:
        if name.startswith(_FACTORIES):
            return
        for tensor in made:
            # Kept alive, for another tensor could take the place in memory.
            self._from_images.setdefault(self._key(tensor), tensor)
        shape = tuple(made[0].shape) if made else None
        # Whether a sum overwrites its first term is settled elsewhere.
        self.log.append(Operation(name.rstrip("_"), shape, _over_samples(name, args)))

    def _reads_images(self, args: Any, kwargs: Any) -> bool:
        for value in (*args, *kwargs.values()):
            inner = value if isinstance(value, (tuple, list)) else (value,)
            for item in inner:
                if isinstance(item, torch.Tensor) and self._key(item) in self._from_images:
                    return True
        return False

    @staticmethod
    def _key(tensor: torch.Tensor) -> int:
        try:
            return int(tensor.untyped_storage()._cdata)
        except (NotImplementedError, RuntimeError):
            return id(tensor)


def _over_samples(name: str, args: Any) -> bool:
    # InstanceNorm is a batch norm of one sample that holds all channels of all.
    if name not in _BATCH_NORMS or args[0].shape[0] == 1:
        return False
    return any(argument is True for argument in args[3:])


def mixing(one: list[Operation], other: list[Operation]) -> list[int]:
    """Positions of operators whose result belongs to no sample, from runs at two batch sizes.

    That is a value made from the images whose shape does not follow the batch (a mean over samples,
    the first sample's features), or one normalised by the statistics of the batch.
    """
    if [op.name for op in one] != [op.name for op in other]:
        return []
    return [
        position
        for position, (a, b) in enumerate(zip(one, other, strict=True))
        if (a.shape == b.shape and a.shape is not None and 0 not in a.shape) or b.batch_statistics
    ]
