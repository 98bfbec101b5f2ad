"""The values at a cut as a flat list of tensors, with one slice for each sample.

Values may be tuples, may have several slices for each sample, or may be integers derived from the
batch size. Runtimes other than torch select samples by one index along one axis of a tensor, so
`CutLayout.flatten` brings every value to that form, and `CutLayout.restore` back.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from leenet_fx.graph.batch_dim import BatchDim
from leenet_fx.runtime.stages import Cut


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that a stage reads or returns.

    Attributes:
        name: unique in the network.
        batch_axis: axis of the samples, one slice for each; None for a tensor that is the same for
            every batch.
        shape: with None for the number of samples.
        dtype: of the elements.
    """

    name: str
    batch_axis: int | None
    shape: tuple[int | None, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class _Samples:
    """A tensor, with `per_sample` slices for each sample along `axis`; the same for all if None."""

    axis: int | None
    per_sample: int = 1


@dataclass(frozen=True)
class _Size:
    """An integer, `ratio` for each sample."""

    ratio: int


@dataclass(frozen=True)
class _Fixed:
    """A value that is no tensor and the same for every batch."""

    value: Any


@dataclass(frozen=True)
class _Nested:
    """A tuple or list."""

    kind: type
    items: tuple[_Layout, ...]


_Layout: TypeAlias = _Samples | _Size | _Fixed | _Nested


class CutLayout:
    """How the values at a cut become tensors.

    Attributes:
        specs: of the tensors, in order.
    """

    def __init__(self, cut: Cut, values: Sequence[Any], count: int, prefix: str) -> None:
        """Read the layout from an example.

        Args:
            cut: the cut.
            values: those at the cut, for a batch of `count` samples.
            count: number of samples.
            prefix: of the names of tensors.
        """
        self._items = tuple(
            _layout(value, batch_dim, count)
            for value, batch_dim in zip(values, cut.batch_dims, strict=True)
        )
        names = [re.sub(r"\W", "_", name) for name in cut.live]
        labelled = [
            (f"{prefix}{name}{suffix}", layout, tensor)
            for name, item, value in zip(names, self._items, values, strict=True)
            for suffix, layout, tensor in _tensors(item, value)
        ]
        self.specs = tuple(
            tensor_spec(name, _flat(tensor, layout, count), layout.axis)
            for name, layout, tensor in labelled
        )

    def flatten(self, values: Sequence[Any], count: Any) -> list[Tensor]:
        """Return the tensors of the values at the cut.

        Args:
            values: those at the cut.
            count: number of samples; symbolic during an export.
        """
        return [
            _flat(tensor, layout, count)
            for item, value in zip(self._items, values, strict=True)
            for _, layout, tensor in _tensors(item, value)
        ]

    def restore(self, tensors: Sequence[Tensor]) -> list[Any]:
        """Return the values at the cut from their tensors; the inverse of `flatten`."""
        count = batch_size(tensors, self.specs)
        remaining = iter(tensors)
        return [_restored(item, remaining, count) for item in self._items]


def tensor_spec(name: str, example: Tensor, batch_axis: int | None) -> TensorSpec:
    """Describe a tensor by an example.

    Args:
        name: of the tensor.
        example: of any number of samples.
        batch_axis: axis of the samples; None if it has none.
    """
    shape = tuple(None if i == batch_axis else size for i, size in enumerate(example.shape))
    return TensorSpec(name, batch_axis, shape, example.dtype)


def batch_size(tensors: Sequence[Tensor], specs: Sequence[TensorSpec]) -> Any:
    """Return the number of samples of tensors; symbolic during an export."""
    return next(
        tensor.shape[spec.batch_axis]
        for tensor, spec in zip(tensors, specs, strict=False)
        if spec.batch_axis is not None
    )


def _layout(value: Any, batch_dim: BatchDim, count: int) -> _Layout:
    if isinstance(value, Tensor):
        if batch_dim.kind == "samples":
            return _Samples(batch_dim.axis, batch_dim.per_sample)
        return _Samples(None)
    if batch_dim.kind == "size":
        return _Size(int(value) // count)
    if isinstance(value, (tuple, list)):
        dims = batch_dim.items or (batch_dim,) * len(value)
        items = tuple(_layout(v, d, count) for v, d in zip(value, dims, strict=True))
        return _Nested(type(value), items)
    return _Fixed(value)


def _tensors(layout: _Layout, value: Any) -> Iterator[tuple[str, _Samples, Tensor]]:
    """Yield suffix of the name, layout and value of each tensor in a value."""
    if isinstance(layout, _Samples):
        yield "", layout, value
    elif isinstance(layout, _Nested):
        for index, (item, part) in enumerate(zip(layout.items, value, strict=True)):
            for suffix, found, tensor in _tensors(item, part):
                yield f"__{index}{suffix}", found, tensor


def _flat(tensor: Tensor, layout: _Samples, count: Any) -> Tensor:
    if layout.axis is None or layout.per_sample == 1:
        return tensor
    unfolded: Tensor = tensor.unflatten(layout.axis, (count, layout.per_sample))
    return unfolded


def _restored(layout: _Layout, tensors: Iterator[Tensor], count: Any) -> Any:
    if isinstance(layout, _Samples):
        tensor = next(tensors)
        if layout.axis is None or layout.per_sample == 1:
            return tensor
        return tensor.flatten(layout.axis, layout.axis + 1)
    if isinstance(layout, _Size):
        return layout.ratio * count
    if isinstance(layout, _Nested):
        items = [_restored(item, tensors, count) for item in layout.items]
        return tuple(items) if layout.kind is torch.Size else layout.kind(items)
    return layout.value
