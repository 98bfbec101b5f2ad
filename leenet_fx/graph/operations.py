"""Which operators a network runs on a batch: to compare a graph with the model it was made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_FACTORIES = ("new_", "empty", "zeros", "ones", "full", "rand", "arange", "scalar_tensor")
_BATCH_NORMS = ("native_batch_norm", "_native_batch_norm_legit", "_batch_norm_with_update")


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
    """Notes every operator that reads something computed from the images, in order.

    What a model computes from its weights and shapes alone is left out, for a trace may have done
    it once and for all.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log: list[Operation] = []
        self._from_images: dict[int, torch.Tensor] = {}

    def follow(self, images: torch.Tensor) -> torch.Tensor:
        """Names the tensor that everything else is computed from."""
        self._mark(images)
        return images

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        if not any(self._key(t) in self._from_images for t in inputs):
            return made
        name = func._overloadpacket.__name__
        if name.startswith(_FACTORIES):
            return made
        values = [t for t in tree_leaves(made) if isinstance(t, torch.Tensor)]
        for value in values:
            self._mark(value)
        shape = tuple(values[0].shape) if values else None
        # Whether a sum overwrites its first term is settled elsewhere.
        self.log.append(Operation(name.rstrip("_"), shape, _over_samples(name, args)))
        return made

    def _mark(self, tensor: torch.Tensor) -> None:
        # Kept alive, for another tensor could take the place in memory.
        self._from_images.setdefault(self._key(tensor), tensor)

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
