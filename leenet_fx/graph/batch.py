"""What each value of a graph has to do with the batch: found by running it at two batch sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch

from leenet_fx.errors import InputError

PROBES = (1, 3)
"""The two batch sizes; 1 is one of them, for a single sample may be all that is left."""


@dataclass(frozen=True)
class Carried:
    """How a value follows the batch when samples leave.

    kind:
        "rows": a tensor with one slice a sample along `axis`.
        "size": an integer proportional to the batch size.
        "constant": the same for every batch.
        "nested": a tuple or list, each item described in `items`.
        "unusable": anything else; a cut may not carry it.
    """

    kind: Literal["rows", "size", "constant", "nested", "unusable"]
    axis: int = 0
    items: tuple[Carried, ...] = ()

    @property
    def usable(self) -> bool:
        """Whether a cut may carry the value."""
        return self.kind != "unusable" and all(item.usable for item in self.items)


Summary: TypeAlias = Any
_PLAIN = (bool, int, float, str, torch.dtype, torch.device, slice)


def summarise(value: Any) -> Summary:
    """What `classify` needs of a value: shapes, integers, and tuples of them."""
    if isinstance(value, torch.Tensor):
        return ("tensor", tuple(value.shape))
    if isinstance(value, (tuple, list)):
        return ("nested", tuple(summarise(item) for item in value))
    if value is None or isinstance(value, _PLAIN):
        return ("plain", value)
    return ("other", type(value).__name__)


def classify(one: Summary, other: Summary) -> Carried:
    """Compares a value's summaries at the two batch sizes of `PROBES`."""
    small, large = PROBES
    (kind, a), (other_kind, b) = one, other
    if kind != other_kind:
        return Carried("unusable")
    if kind == "nested":
        if len(a) != len(b):
            return Carried("unusable")
        items = tuple(classify(x, y) for x, y in zip(a, b, strict=True))
        if all(item.kind == "constant" for item in items):
            return Carried("constant")
        return Carried("nested", items=items)
    if kind == "tensor":
        if len(a) != len(b):
            return Carried("unusable")
        moved = [axis for axis, (x, y) in enumerate(zip(a, b, strict=True)) if x != y]
        if not moved:
            return Carried("constant")
        if len(moved) == 1 and (a[moved[0]], b[moved[0]]) == (small, large):
            return Carried("rows", moved[0])
        return Carried("unusable")
    if kind == "plain" and type(a) is type(b) and a == b:
        return Carried("constant")
    if kind == "plain" and isinstance(a, int) and isinstance(b, int) and a * large == b * small:
        return Carried("size")
    return Carried("unusable")


def check_rows(value: torch.Tensor, axis: int, batch: int) -> None:
    """Raises InputError unless `value` has one slice a sample along `axis`."""
    if value.shape[axis] != batch:
        raise InputError(
            f"At this image size a value of shape {tuple(value.shape)} crosses an exit and does "
            f"not follow the batch of {batch}: attach with example_inputs of this size."
        )


def take_rows(value: Any, carried: Carried, rows: torch.Tensor, before: int) -> Any:
    """The part of a value that belongs to some samples of a batch.

    Args:
        value: what crosses the cut.
        carried: how it follows the batch.
        rows: (n,) indices of the samples to keep.
        before: the batch size of `value`.

    Raises:
        InputError: at this image size the value no longer has one slice a sample.
    """
    if carried.kind == "rows":
        check_rows(value, carried.axis, before)
        # Indexing with [] keeps channels_last; index_select does not, and what follows is slower.
        return value[(slice(None),) * carried.axis + (rows,)]
    if carried.kind == "size":
        return value // before * rows.shape[0]
    if carried.kind == "nested":
        kept = [
            take_rows(item, how, rows, before)
            for item, how in zip(value, carried.items, strict=True)
        ]
        return torch.Size(kept) if isinstance(value, torch.Size) else type(value)(kept)
    return value
