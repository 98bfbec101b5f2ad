"""Modules that meta tensors cannot run, or only slowly, and what runs in their place."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn


def stand_in(meta: nn.Module) -> None:
    """Gives some modules of a tree on the meta device another `forward`: same shapes, same FLOPs.

    Recurrent layers, unrolled there step by step, become their matrix products; dynamically
    quantised linear layers, whose kernels know no meta tensors, become plain ones.
    """
    for module in meta.modules():
        if isinstance(module, nn.RNNBase) and not module.proj_size:
            module.forward = MethodType(_recurrent(module.forward), module)
        elif is_quantised_linear(module):
            module.forward = MethodType(_linear, module)


def _recurrent(unrolled: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: nn.RNNBase, sequence: Any, state: Any = None) -> Any:
        if not isinstance(sequence, Tensor) or sequence.ndim != 3:
            return unrolled(sequence, state)
        x = sequence
        last: list[Tensor] = []
        for layer in range(self.num_layers):
            outputs = []
            for suffix in ("", "_reverse")[: 1 + self.bidirectional]:
                inward = getattr(self, f"weight_ih_l{layer}{suffix}")
                onward = getattr(self, f"weight_hh_l{layer}{suffix}")
                hidden = (x @ inward.t())[..., : self.hidden_size]
                outputs.append((hidden @ onward.t())[..., : self.hidden_size])
                last.append(outputs[-1].select(1 if self.batch_first else 0, -1))
            x = torch.cat(outputs, -1)
        states = torch.stack(last)
        return x, ((states, states) if isinstance(self, nn.LSTM) else states)

    return forward


def is_quantised_linear(module: nn.Module) -> bool:
    """Whether it is a linear layer of torch.ao's dynamic quantisation, which has no parameters."""
    return type(module).__module__.startswith("torch.ao.nn.quantized.dynamic") and (
        type(module).__name__ in ("Linear", "LinearReLU")
    )


def _linear(self: Any, x: Tensor) -> Tensor:
    weight = torch.empty(self.in_features, self.out_features, dtype=x.dtype, device=x.device)
    made: Tensor = x @ weight
    return made
