"""Batch normalisation for batches of any size."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import fx, nn


class _AnyBatch(nn.modules.batchnorm._BatchNorm):
    """Base that normalises by the running statistics where a batch has one value per channel.

    Its variance would be 0, and torch refuses it: the last batch of a loader may be one image.
    """

    def forward(self, input: Any) -> Any:
        if isinstance(input, fx.Proxy):
            # A layer of the traced graph, as torch's own are.
            tracer: Any = input.tracer
            path = tracer.path_of_module(self)
            return tracer.create_proxy("call_module", path, (input,), {})
        if self.training and input.numel() == input.shape[1]:
            mean, variance = self.running_mean, self.running_var
            return F.batch_norm(input, mean, variance, self.weight, self.bias, eps=self.eps)
        return super().forward(input)


class BatchNorm1d(_AnyBatch, nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d`, which trains on a batch of one vector, too."""


class BatchNorm2d(_AnyBatch, nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d`, which trains on a batch of one map of one cell, too."""
