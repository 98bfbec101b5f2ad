"""torch.compile, stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from types import FunctionType
from typing import Any, TypeVar

import torch
from torch import Tensor

from leenet_fx.errors import InputError
from leenet_fx.graph.batch_dim import BatchDim
from leenet_fx.graph.compat import mark_dynamic_axis
from leenet_fx.runtime.network import NetworkWithExits, check_network

NetworkT = TypeVar("NetworkT", bound=NetworkWithExits)

_serial_number = count()
_SAMPLES = BatchDim("samples")


def compile(
    ee: NetworkT,
    *,
    backend: str | Callable[..., Any] = "inductor",
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> NetworkT:
    """Compile the stages of a network by torch.compile.

    Each stage and the deciding part of the branch behind it become one graph without breaks, with a
    symbolic batch size. A stage is compiled at its first call with one sample and at its first call
    with more, and not again for other batch sizes, thresholds or values of α. Gates that decide
    after class logits did, another image size, or another of torch's modes (gradients, no
    gradients, inference) compile again.

    While a forward hook is registered on a part of a branch, that branch runs without compilation.

    Args:
        ee: the network (`EarlyExitModule`), which is not changed.
        backend: see torch.compile.
        mode: see torch.compile, for instance "max-autotune-no-cudagraphs".
        options: see torch.compile, for instance {"freezing": True}.

    Returns:
        A network that shares weights and policy with `ee`. Its copies and saved files are not
        compiled, and in training mode it runs as `ee` does.

    Raises:
        InputError: not a network with exits; both mode and options; a mode that records CUDA
            graphs, which do not support a symbolic batch size.
    """
    check_network(ee, "compile")
    if mode is not None and options is not None:
        raise InputError("torch.compile takes either mode or options, got both.")
    if mode in ("reduce-overhead", "max-autotune"):
        raise InputError(
            f"mode='{mode}' records a CUDA graph for each batch size, and the number of remaining "
            "samples varies: leave mode out, or use 'max-autotune-no-cudagraphs'."
        )
    compile_options = None if options is None else dict(options)

    def wrapper(function: Callable[..., Any], inputs: Sequence[BatchDim]) -> Callable[..., Any]:
        compiled = torch.compile(
            _with_own_code(function),
            fullgraph=True,
            backend=backend,
            mode=mode,
            options=compile_options,
        )

        def call(*args: Any) -> Any:
            first = len(args) - len(inputs)
            for value, batch_dim in zip(args[first:], inputs, strict=True):
                _mark_batch(value, batch_dim)
            for value in args[:first]:
                if isinstance(value, Tensor) and value.ndim:
                    _mark_batch(value, _SAMPLES)
            return compiled(*args)

        return call

    return ee.with_stage_wrapper(wrapper)


def _mark_batch(value: Any, batch_dim: BatchDim) -> None:
    """Mark the axis of the samples as dynamic; a single sample is compiled for that size."""
    if batch_dim.kind == "nested":
        for item, item_dim in zip(value, batch_dim.items, strict=True):
            _mark_batch(item, item_dim)
    elif (
        batch_dim.kind == "samples"
        and isinstance(value, Tensor)
        and value.shape[batch_dim.axis] > batch_dim.per_sample
    ):
        mark_dynamic_axis(value, batch_dim.axis)


def _with_own_code(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with a code object of its own.

    torch.compile limits the number of compilations per code object.
    """
    assert isinstance(function, FunctionType)
    name = f"stage_{next(_serial_number)}"
    code = function.__code__.replace(co_name=name)
    return FunctionType(
        code, function.__globals__, name, function.__defaults__, function.__closure__
    )
