"""Adam for one linear layer, in the coordinates of centred and scaled inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def is_plain(layer: nn.Module) -> bool:
    """Return whether a layer's parameters are its weight and bias, and not parts of them."""
    return isinstance(layer.weight, nn.Parameter) and {
        name for name, _ in layer.named_parameters()
    } <= {"weight", "bias"}


class StandardizedAdam(torch.optim.Adam):
    """Adam on a linear or convolution layer as if its inputs were centred and scaled.

    The layer computes W·x + b. With z = scale·(x − mean), the same function is V·z + c, where
    W = V·scale and b = c − W·mean. A step maps the gradient to (V, c), where the features of a
    network have no common offset, lets Adam change these, and maps the result back. So the layer
    keeps its form.

    Until `set_statistics` is called, it is plain Adam.

    Args:
        weight: W (outputs, n, …).
        bias: b (outputs,), if there is one; without it the inputs are scaled, not centred.
        decay: decoupled weight decay of V (Loshchilov & Hutter 2019).
        options: of the parameter group and of Adam, such as `lr`.
    """

    def __init__(
        self, weight: nn.Parameter, bias: nn.Parameter | None, *, decay: float = 0.0, **options: Any
    ) -> None:
        group = {
            "params": [weight] if bias is None else [weight, bias],
            # In the group, so that they are part of the state dict.
            "mean": weight.new_zeros(weight.shape[1]),
            "scale": weight.new_ones(weight.shape[1]),
            **options,
        }
        super().__init__([group])
        self.decay = decay

    @torch.no_grad()
    def set_statistics(self, mean: Tensor, spread: Tensor) -> None:
        """Set the statistics of the inputs; inputs that are constant get the weight 0.

        Inputs keep their scale relative to each other, so that channels that are rarely active are
        not amplified. Their common scale gives standard deviations of n^−0.5 on average, as in
        `leenet_fx.parts.standardize.Standardize`; it is rounded to a power of 2, so that dividing
        and multiplying by it is exact.

        Args:
            mean: (n,) of the layer's inputs.
            spread: (n,) their standard deviations.
        """
        group = self.param_groups[0]
        common = spread.square().sum().sqrt().clamp(min=1e-6).log2().round().neg().exp2()
        group["scale"].copy_(torch.where(spread > 1e-6, common, 0))
        if len(group["params"]) == 2:
            group["mean"].copy_(mean)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state dict, which may be of another device."""
        super().load_state_dict(state_dict)
        group = self.param_groups[0]
        for name in ("mean", "scale"):
            group[name] = group[name].to(group["params"][0].device)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Change the layer's parameters by one step."""
        assert closure is None
        group = self.param_groups[0]
        weight, *biases = group["params"]
        if weight.grad is None:
            return None
        shape = (1, -1, *(1,) * (weight.ndim - 2))
        mean, scale = group["mean"].view(shape), group["scale"].view(shape)
        others = tuple(range(1, weight.ndim))
        for bias in biases:
            weight.grad -= bias.grad.view(-1, *(1,) * (weight.ndim - 1)) * mean
            bias += (weight * mean).sum(others)
        weight.grad *= scale
        weight /= torch.where(scale > 0, scale, 1)
        weight *= 1 - group["lr"] * self.decay
        super().step()
        weight *= scale
        for bias in biases:
            bias -= (weight * mean).sum(others)
        return None
