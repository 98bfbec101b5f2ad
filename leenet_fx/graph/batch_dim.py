"""How a value depends on the batch: the axis of the samples, and selection along it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch

from leenet_fx.errors import InputError

PROBE_BATCH_SIZES = (1, 3)
"""The two batch sizes that graphs run at; 1 is among them, because one sample may remain."""


@dataclass(frozen=True)
class BatchDim:
    """The dependence of a value on the batch.

    Attributes:
        kind: "samples": a tensor with `per_sample` consecutive slices per sample along `axis`;
            "size": an integer proportional to the batch size;
            "constant": a value that is the same for every batch;
            "nested": a tuple or list, with a batch dimension per item in `items`;
            "unusable": any other value, which cannot be split by samples.
        axis: axis of the samples, if the kind is "samples".
        per_sample: number of slices per sample along `axis`.
        items: batch dimensions of the items, if the kind is "nested".
    """

    kind: Literal["samples", "size", "constant", "nested", "unusable"]
    axis: int = 0
    per_sample: int = 1
    items: tuple[BatchDim, ...] = ()

    @property
    def usable(self) -> bool:
        """Whether the value can be split by samples."""
        return self.kind != "unusable" and all(item.usable for item in self.items)

    @property
    def has_samples(self) -> bool:
        """Whether the value is, or contains, a tensor with an axis of samples."""
        return self.kind == "samples" or any(item.has_samples for item in self.items)

    @property
    def is_folded(self) -> bool:
        """Whether the value is, or contains, a tensor with several slices per sample."""
        if self.kind == "nested":
            return any(item.is_folded for item in self.items)
        return self.kind == "samples" and self.per_sample > 1


Summary: TypeAlias = Any
"""Kind and shape of a value, see `summarise`."""

_PLAIN = (bool, int, float, str, torch.dtype, torch.device, slice)


def summarise(value: Any) -> Summary:
    """Return the parts of a value that `classify` compares: shapes, integers, tuples of them."""
    if isinstance(value, torch.Tensor):
        return ("tensor", tuple(value.shape))
    if isinstance(value, (tuple, list)):
        return ("nested", tuple(summarise(item) for item in value))
    if value is None or isinstance(value, _PLAIN):
        return ("plain", value)
    return ("other", type(value).__name__)


def classify(small: Summary, large: Summary) -> BatchDim:
    """Return the batch dimension of a value from its summaries at the two probe batch sizes."""
    one, many = PROBE_BATCH_SIZES
    (kind, a), (large_kind, b) = small, large
    if kind != large_kind:
        return BatchDim("unusable")
    if kind == "nested":
        if len(a) != len(b):
            return BatchDim("unusable")
        items = tuple(classify(x, y) for x, y in zip(a, b, strict=True))
        if all(item.kind == "constant" for item in items):
            return BatchDim("constant")
        return BatchDim("nested", items=items)
    if kind == "tensor":
        if len(a) != len(b):
            return BatchDim("unusable")
        changed = [axis for axis, (x, y) in enumerate(zip(a, b, strict=True)) if x != y]
        if not changed:
            return BatchDim("constant")
        if len(changed) == 1 and a[changed[0]] * many == b[changed[0]] * one:
            return BatchDim("samples", changed[0], per_sample=a[changed[0]] // one)
        return BatchDim("unusable")
    if kind == "plain" and type(a) is type(b) and a == b:
        return BatchDim("constant")
    if kind == "plain" and isinstance(a, int) and isinstance(b, int) and a * many == b * one:
        return BatchDim("size")
    return BatchDim("unusable")


def check_samples(value: torch.Tensor, batch_dim: BatchDim, batch_size: int) -> None:
    """Check that a tensor of kind "samples" has its slices for each sample.

    Raises:
        InputError: at this image size it has not.
    """
    if value.shape[batch_dim.axis] != batch_size * batch_dim.per_sample:
        raise InputError(
            f"At this image size, a tensor of shape {tuple(value.shape)} at an exit does not "
            f"follow the batch size {batch_size}: attach with example_inputs of this size."
        )


def select_samples(value: Any, batch_dim: BatchDim, indices: torch.Tensor, batch_size: int) -> Any:
    """Return the part of a value that belongs to some samples of a batch.

    Args:
        value: a value at a cut of the graph.
        batch_dim: its dependence on the batch.
        indices: (n,) indices of the samples to select.
        batch_size: batch size of `value`.

    Raises:
        InputError: at this image size the value does not have its slices for each sample.
    """
    if batch_dim.kind == "samples":
        check_samples(value, batch_dim, batch_size)
        if batch_dim.per_sample > 1:
            slices = torch.arange(batch_dim.per_sample, device=indices.device)
            indices = (indices.unsqueeze(1) * batch_dim.per_sample + slices).flatten()
        if value.is_contiguous():
            return value.index_select(batch_dim.axis, indices)
        # Slower than index_select, but it keeps channels_last, and later layers are faster.
        return value[(slice(None),) * batch_dim.axis + (indices,)]
    if batch_dim.kind == "size":
        return value // batch_size * indices.shape[0]
    if batch_dim.kind == "nested":
        selected = [
            select_samples(item, item_dim, indices, batch_size)
            for item, item_dim in zip(value, batch_dim.items, strict=True)
        ]
        return torch.Size(selected) if isinstance(value, torch.Size) else type(value)(selected)
    return value


def concat_samples(values: Sequence[Any], batch_dim: BatchDim) -> Any:
    """Join the values of several batches into one, in order; the inverse of `select_samples`.

    Args:
        values: the values of the same cut, one per batch.
        batch_dim: their dependence on the batch.
    """
    if batch_dim.kind == "samples":
        return torch.cat(list(values), batch_dim.axis)
    if batch_dim.kind == "size":
        return sum(values)
    if batch_dim.kind == "nested":
        joined = [
            concat_samples(items, item_dim)
            for items, item_dim in zip(zip(*values, strict=True), batch_dim.items, strict=True)
        ]
        return torch.Size(joined) if isinstance(values[0], torch.Size) else type(values[0])(joined)
    return values[0]
