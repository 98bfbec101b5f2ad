"""Standardisation of inputs by statistics of the training images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Standardize(nn.Module):
    """Affine map of n inputs to mean 0 and standard deviation n^−power on training images.

    Inputs of unequal scale train slowly and can drive a gate to one decision for all samples. The
    standard deviation depends on n because one optimizer step changes a sum of n inputs by an
    amount that grows with n.

    Until `fit_statistics` is called, the map is the identity.

    Args:
        width: n, the number of inputs.
        power: exponent of 1/n in the standard deviation of the outputs.
    """

    mean: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, width: int, power: float) -> None:
        super().__init__()
        self.power = power
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        # −mean·scale, precomputed: on a small network every additional operation costs latency.
        self.register_buffer("shift", torch.zeros(width), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Standardize inputs: (B, n) → (B, n)."""
        return torch.addcmul(self.shift, inputs, self.scale)

    @property
    def is_fitted(self) -> bool:
        """Whether `fit_statistics` was called."""
        return bool((self.mean != 0).any()) or bool((self.scale != 1).any())

    @torch.no_grad()
    def fit_statistics(self, inputs: Tensor) -> None:
        """Set mean and scale from training inputs; constant inputs are mapped to 0.

        Args:
            inputs: (samples, n).
        """
        spread = inputs.std(0, correction=0) * inputs.shape[1] ** self.power
        self.mean.copy_(inputs.mean(0))
        self.scale.copy_(torch.where(spread > 1e-6, 1 / spread.clamp(min=1e-6), 0))
        self.shift.copy_(-self.mean * self.scale)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.shift = -self.mean * self.scale
