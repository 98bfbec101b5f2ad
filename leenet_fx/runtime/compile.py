"""torch.compile, stage by stage."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from leenet_fx.errors import InputError
from leenet_fx.graph.batch_dim import BatchDim
from leenet_fx.graph.compat import mark_dynamic_axis
from leenet_fx.surgery.module import EarlyExitModule

_serial = count()


def compile(
    ee: EarlyExitModule,
    *,
    backend: str | Callable[..., Any] = "inductor",
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> EarlyExitModule:
    """The same network, its stages compiled by torch.compile.

    Each stage and the deciding part of the branch behind it become one graph without breaks, with
    the batch as a symbol: a stage is compiled once for a single sample and once for all larger
    batches, at its first such call, and however many samples are left in a batch, never again.
    Thresholds and α may change without a recompilation; gates deciding after class logits did,
    another image size, or another of torch's modes (gradients, no gradients, inference) compile
    anew.

    Args:
        ee: the network; it stays as it is.
        backend: as torch.compile has it.
        mode: as torch.compile has it, for instance "max-autotune-no-cudagraphs".
        options: as torch.compile has them, for instance {"freezing": True}.

    Returns:
        A network that shares weights and policy with `ee`. Copies and files of it are not compiled,
        and in training mode it runs as `ee` does.

    Raises:
        InputError: not a network with exits; both mode and options; a mode that records CUDA
            graphs, which know no symbolic batch.
    """
    if not isinstance(ee, EarlyExitModule):
        raise InputError(f"compile needs a network with exits, got {type(ee).__name__}.")
    if mode is not None and options is not None:
        raise InputError("torch.compile takes either mode or options, got both.")
    if mode in ("reduce-overhead", "max-autotune"):
        raise InputError(
            f"mode='{mode}' records a CUDA graph for each batch size, and how many samples are "
            "left changes: leave it out, or take 'max-autotune-no-cudagraphs'."
        )
    given = None if options is None else dict(options)

    def wrap(function: Callable[..., Any], entering: Sequence[BatchDim]) -> Callable[..., Any]:
        compiled = torch.compile(
            _with_code_of_its_own(function),
            fullgraph=True,
            backend=backend,
            mode=mode,
            options=given,
        )

        def call(*args: Any) -> Any:
            at = len(args) - len(entering)
            for value, how in zip(args[at:], entering, strict=True):
                _mark(value, how)
            for value in args[:at]:
                if isinstance(value, Tensor) and value.ndim:
                    _mark(value, BatchDim("samples"))
            return compiled(*args)

        return call

    made = copy.copy(ee)
    made.__dict__["_wrap"] = wrap
    return made


def _mark(value: Any, how: BatchDim) -> None:
    """Says which axis is the batch; one of a single sample is compiled for that."""
    if how.kind == "nested":
        for item, of_item in zip(value, how.items, strict=True):
            _mark(item, of_item)
    elif (
        how.kind == "samples"
        and isinstance(value, Tensor)
        and value.shape[how.axis] > how.per_sample
    ):
        mark_dynamic_axis(value, how.axis)


def _with_code_of_its_own(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compilations are counted, and given up at a limit, for each code object."""
    assert isinstance(function, FunctionType)
    name = f"segment_{next(_serial)}"
    code = function.__code__.replace(co_name=name)
    return FunctionType(
        code, function.__globals__, name, function.__defaults__, function.__closure__
    )
