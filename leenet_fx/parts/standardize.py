"""Inputs brought to one scale, as measured on training images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Standardize(nn.Module):
    """Brings n inputs to mean 0 and spread n^−power, as measured on training images.

    Features of unlike scale train slowly, and leave a gate that sends all samples one way. The
    width n counts, for a step of the optimizer moves a sum of n inputs up to n times as far.
    """

    mean: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, width: int, power: float) -> None:
        super().__init__()
        self.power = power
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        # −mean·scale, so that scaling is a single operation: on a small network each one shows.
        self.register_buffer("shift", torch.zeros(width), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, n) → (B, n)."""
        return torch.addcmul(self.shift, inputs, self.scale)

    @property
    def measured(self) -> bool:
        """Whether `measure` was called."""
        return bool((self.mean != 0).any()) or bool((self.scale != 1).any())

    @torch.no_grad()
    def measure(self, inputs: Tensor) -> None:
        """Sets mean and scale by (samples, n) inputs; constant inputs count for nothing."""
        spread = inputs.std(0, correction=0) * inputs.shape[1] ** self.power
        self.mean.copy_(inputs.mean(0))
        self.scale.copy_(torch.where(spread > 1e-6, 1 / spread.clamp(min=1e-6), 0))
        self.shift.copy_(-self.mean * self.scale)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.shift = -self.mean * self.scale
