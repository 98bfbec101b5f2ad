"""Copies of module trees on the meta device, with modules that meta tensors cannot run replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from leenet_fx.graph.cloning import clone
from leenet_fx.graph.compat import Hooks, forward_hooks
from leenet_fx.graph.devices import move_attributes


def meta_copy(root: nn.Module) -> nn.Module:
    """Copy a module tree to the meta device, in evaluation mode and without the user's hooks.

    Hooks of the user may read values, which meta tensors do not have. Some modules get another
    `forward` with the same shapes and FLOPs: recurrent layers, which torch unrolls on the meta
    device, run as matrix products; dynamically quantised linear layers, whose kernels do not
    support meta tensors, run as plain linear layers.

    Raises:
        TraceError: the module tree cannot be copied.
    """
    meta = clone(root, "meta").eval().requires_grad_(False)
    move_attributes(meta, torch.device("meta"))
    for hooks, key in _user_hooks(meta):
        del hooks[key]
    for module in meta.modules():
        if isinstance(module, nn.RNNBase) and not module.proj_size:
            module.forward = MethodType(_recurrent(module.forward), module)
        elif is_quantised_linear(module):
            module.forward = MethodType(_linear, module)
    return meta


def has_user_hooks(root: nn.Module) -> bool:
    """Return whether any module has a hook other than torch's own (pruning, weight norm)."""
    return any(True for _ in _user_hooks(root))


def _user_hooks(root: nn.Module) -> Iterator[tuple[Hooks, int]]:
    for module in root.modules():
        for hooks in forward_hooks(module):
            for key, hook in list(hooks.items()):
                if not type(hook).__module__.startswith("torch."):
                    yield hooks, key


def _recurrent(unrolled: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: nn.RNNBase, sequence: Any, state: Any = None) -> Any:
        if not isinstance(sequence, Tensor) or sequence.ndim != 3:
            return unrolled(sequence, state)
        x = sequence
        last: list[Tensor] = []
        for layer in range(self.num_layers):
            outputs = []
            for suffix in ("", "_reverse")[: 1 + self.bidirectional]:
                input_weight = getattr(self, f"weight_ih_l{layer}{suffix}")
                hidden_weight = getattr(self, f"weight_hh_l{layer}{suffix}")
                hidden = (x @ input_weight.t())[..., : self.hidden_size]
                outputs.append((hidden @ hidden_weight.t())[..., : self.hidden_size])
                last.append(outputs[-1].select(1 if self.batch_first else 0, -1))
            x = torch.cat(outputs, -1)
        states = torch.stack(last)
        return x, ((states, states) if isinstance(self, nn.LSTM) else states)

    return forward


def is_quantised_linear(module: nn.Module) -> bool:
    """Return whether a module is torch.ao's dynamically quantised linear layer.

    Such a layer has no parameters.
    """
    return type(module).__module__.startswith("torch.ao.nn.quantized.dynamic") and (
        type(module).__name__ in ("Linear", "LinearReLU")
    )


def depends_on_batch_range(module: nn.Module) -> bool:
    """Return whether a module quantises its inputs by their range over the batch."""
    return is_quantised_linear(module) and module._packed_params.dtype == torch.qint8


def _linear(self: Any, x: Tensor) -> Tensor:
    weight = torch.empty(self.in_features, self.out_features, dtype=x.dtype, device=x.device)
    product: Tensor = x @ weight
    return product
