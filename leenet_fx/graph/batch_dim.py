"""What each value of a graph has to do with the batch: found by running it at two batch sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import fx

from leenet_fx.errors import InputError

PROBES = (1, 3)
"""The two batch sizes; 1 is one of them, for a single sample may be all that is left."""


@dataclass(frozen=True)
class BatchDim:
    """How a value follows the batch when samples leave.

    kind:
        "samples": a tensor with `each` consecutive slices a sample along `axis`.
        "size": an integer proportional to the batch size.
        "constant": the same for every batch.
        "nested": a tuple or list, each item described in `items`.
        "unusable": anything else; a cut may not carry it.
    """

    kind: Literal["samples", "size", "constant", "nested", "unusable"]
    axis: int = 0
    per_sample: int = 1
    items: tuple[BatchDim, ...] = ()

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


def classify(one: Summary, other: Summary) -> BatchDim:
    """Compares a value's summaries at the two batch sizes of `PROBES`."""
    small, large = PROBES
    (kind, a), (other_kind, b) = one, other
    if kind != other_kind:
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
        moved = [axis for axis, (x, y) in enumerate(zip(a, b, strict=True)) if x != y]
        if not moved:
            return BatchDim("constant")
        if len(moved) == 1 and a[moved[0]] * large == b[moved[0]] * small:
            return BatchDim("samples", moved[0], per_sample=a[moved[0]] // small)
        return BatchDim("unusable")
    if kind == "plain" and type(a) is type(b) and a == b:
        return BatchDim("constant")
    if kind == "plain" and isinstance(a, int) and isinstance(b, int) and a * large == b * small:
        return BatchDim("size")
    return BatchDim("unusable")


def check_samples(value: torch.Tensor, batch_dims: BatchDim, batch: int) -> None:
    """Raises InputError unless `value` follows the batch as `carried` says."""
    if value.shape[batch_dims.axis] != batch * batch_dims.per_sample:
        raise InputError(
            f"At this image size a value of shape {tuple(value.shape)} crosses an exit and does "
            f"not follow the batch of {batch}: attach with example_inputs of this size."
        )


def select_samples(value: Any, batch_dims: BatchDim, rows: torch.Tensor, before: int) -> Any:
    """The part of a value that belongs to some samples of a batch.

    Args:
        value: what crosses the cut.
        carried: how it follows the batch.
        rows: (n,) indices of the samples to keep.
        before: the batch size of `value`.

    Raises:
        InputError: at this image size the value no longer has its slices for each sample.
    """
    if batch_dims.kind == "samples":
        check_samples(value, batch_dims, before)
        if batch_dims.per_sample > 1:
            within = torch.arange(batch_dims.per_sample, device=rows.device)
            rows = (rows.unsqueeze(1) * batch_dims.per_sample + within).flatten()
        if value.is_contiguous():
            return value.index_select(batch_dims.axis, rows)
        # Slower, but it keeps channels_last, and what follows is faster.
        return value[(slice(None),) * batch_dims.axis + (rows,)]
    if batch_dims.kind == "size":
        return value // before * rows.shape[0]
    if batch_dims.kind == "nested":
        kept = [
            select_samples(item, how, rows, before)
            for item, how in zip(value, batch_dims.items, strict=True)
        ]
        return torch.Size(kept) if isinstance(value, torch.Size) else type(value)(kept)
    return value


def concat_samples(values: Sequence[Any], batch_dims: BatchDim) -> Any:
    """One value for several batches together, in their order; undoes what `take_rows` parts.

    Args:
        values: what crosses the same cut, of each batch.
        carried: how it follows the batch.
    """
    if batch_dims.kind == "samples":
        return torch.cat(list(values), batch_dims.axis)
    if batch_dims.kind == "size":
        return sum(values)
    if batch_dims.kind == "nested":
        columns = zip(*values, strict=True)
        joined = [
            concat_samples(per_sample, how)
            for per_sample, how in zip(columns, batch_dims.items, strict=True)
        ]
        return torch.Size(joined) if isinstance(values[0], torch.Size) else type(values[0])(joined)
    return values[0]


_RESHAPES = (
    *("reshape", "reshape_as", "view", "view_as", "unsafe_view", "flatten", "unflatten"),
    *("contiguous", "clone"),
)
_REPEATS = ("expand", "repeat", "zeros", "ones", "new_zeros", "new_ones", "full", "new_full")
_ELEMENTWISE = (
    *("add", "sub", "mul", "div", "truediv", "neg", "pow", "sqrt", "rsqrt", "exp", "log", "abs"),
    *("iadd", "isub", "imul", "itruediv", "clamp", "where", "masked_fill", "to", "float", "half"),
    *("type_as", "detach", "relu", "relu6", "gelu", "silu", "sigmoid", "tanh", "softplus", "elu"),
    *("hardswish", "hardsigmoid", "hardtanh", "leaky_relu", "mish", "dropout", "drop_path"),
    *("round", "maximum", "minimum", "reciprocal"),
)
_SLICE_BY_SLICE = (
    *("softmax", "log_softmax", "layer_norm", "rms_norm", "group_norm", "batch_norm"),
    *("normalize", "linear", "matmul", "bmm", "mm", "addmm", "int_mm", "einsum"),
    *("conv1d", "conv2d", "conv3d", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"),
    *("adaptive_max_pool2d", "interpolate", "pad", "scaled_dot_product_attention", "chunk"),
    *("split", "split_with_sizes", "unbind", "getitem", "slice", "select", "narrow"),
    *("mean", "sum", "amax", "amin", "squeeze", "unsqueeze"),
)
_PERMUTES = ("permute", "transpose", "movedim", "swapaxes")


def find_disorder(
    graph: fx.Graph, batch_dims: dict[fx.Node, BatchDim], shapes: dict[fx.Node, Summary]
) -> list[fx.Node]:
    """Nodes that may not hold the slices of one sample side by side.

    Merging the batch with the axes behind it, as in (B, n, C) → (B·n, C), does, and so does taking
    them apart again; what works slice by slice keeps it, and so do modules and the functions that
    timm keeps whole. Of anything else that makes or takes several slices a sample nothing is known:
    it, and what is made from it, becomes unusable for a cut.

    Args:
        graph: the network.
        carried: how each node's value follows the batch; what is found becomes "unusable" there.
        shapes: of each node's value for one image.
    """
    from timm.layers import get_notrace_functions

    known = {function.__name__ for function in get_notrace_functions()}
    found: list[fx.Node] = []
    lost: set[fx.Node] = set()
    for node in graph.nodes:
        if batch_dims[node].kind != "unusable" and not _holds_rows(batch_dims[node]):
            continue
        if lost.intersection(node.all_input_nodes):
            lost.add(node)
            continue
        folded = any(_folded(batch_dims[n]) for n in (node, *node.all_input_nodes))
        asked = folded or _name(node) in _RESHAPES
        if asked and _name(node) not in known and not _keeps_order(node, batch_dims, shapes):
            found.append(node)
            lost.add(node)
    batch_dims.update(dict.fromkeys(lost, BatchDim("unusable")))
    return found


def _name(node: fx.Node) -> str:
    if isinstance(node.target, str):
        return node.target
    return str(getattr(node.target, "__name__", "")).partition(".")[0].strip("_")


def _holds_rows(batch_dims: BatchDim) -> bool:
    return batch_dims.kind == "samples" or any(_holds_rows(item) for item in batch_dims.items)


def _folded(batch_dims: BatchDim) -> bool:
    if batch_dims.kind == "nested":
        return any(_folded(item) for item in batch_dims.items)
    return batch_dims.kind == "samples" and batch_dims.per_sample > 1


def _keeps_order(
    node: fx.Node, batch_dims: dict[fx.Node, BatchDim], shapes: dict[fx.Node, Summary]
) -> bool:
    sources = [n for n in node.all_input_nodes if _holds_rows(batch_dims[n])]
    tensors = [batch_dims[source] for source in sources]
    how = batch_dims[node]
    while how.kind == "nested":
        how = next((item for item in how.items if _holds_rows(item)), BatchDim("constant"))
    name = _name(node)
    if not tensors:
        return name in _REPEATS
    if name in _RESHAPES and tensors[0].kind == "samples":
        before = math.prod(shapes[sources[0]][1][: tensors[0].axis])
        return bool(before == math.prod(shapes[node][1][: how.axis]))
    if name == "repeat_interleave":
        return len(tensors) == 1 and tensors[0].axis == how.axis
    if any(source.kind == "samples" and source.per_sample != how.per_sample for source in tensors):
        return False
    if name.startswith("expand"):
        return tensors[0].axis == how.axis
    if name in _PERMUTES:
        return len(tensors) == 1
    return node.op == "call_module" or name in _ELEMENTWISE or name in _SLICE_BY_SLICE
