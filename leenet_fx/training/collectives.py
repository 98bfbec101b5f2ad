"""Sums and concatenations over the processes that share each batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn


def sum_over_processes(values: Tensor, fabric: Fabric) -> Tensor:
    """Return the sum of a tensor over all processes."""
    if fabric.world_size == 1:
        return values
    return torch.as_tensor(fabric.all_reduce(values, reduce_op="sum"))


def gather(values: Tensor, fabric: Fabric) -> Tensor:
    """Return the tensors (n, …) of all processes concatenated, that of process 0 first."""
    if fabric.world_size == 1:
        return values
    counts = torch.zeros(fabric.world_size, dtype=torch.int64, device=values.device)
    counts[fabric.global_rank] = len(values)
    counts = sum_over_processes(counts, fabric)
    start = int(counts[: fabric.global_rank].sum())
    gathered = values.new_zeros(int(counts.sum()), *values.shape[1:])
    gathered[start : start + len(values)] = values
    return sum_over_processes(gathered, fabric)


def sum_gradients(parameters: Sequence[nn.Parameter], loss: Tensor, fabric: Fabric) -> float:
    """Sum gradients over all processes in place, and return the sum of the losses.

    Args:
        parameters: whose gradients are summed.
        loss: this process's share of the batch's loss, without gradient.
        fabric: of the processes.
    """
    if fabric.world_size > 1:
        for parameter in parameters:
            # A process without samples has no gradient for parameters that have one in others.
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients] + [loss.reshape(1)])
        flat = sum_over_processes(flat, fabric)
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, values in zip(gradients, flat[:-1].split(sizes), strict=True):
            gradient.copy_(values.view_as(gradient))
        loss = flat[-1]
    return float(loss)
