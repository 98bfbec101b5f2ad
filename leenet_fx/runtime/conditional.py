"""Conditional execution: each stage runs on the remaining samples only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from leenet_fx.graph.batch_dim import check_samples
from leenet_fx.runtime.active_batch import ActiveBatch, ExitedSamples, take
from leenet_fx.runtime.controller import ExitController
from leenet_fx.runtime.stage_plan import StagePlan


def run_backbone(network: nn.Module, stage_plan: StagePlan, images: Tensor) -> Tensor:
    """Run all stages on all samples, without any branch.

    Args:
        network: the module whose weights are read.
        stage_plan: its stages.
        images: (B, …), B ≥ 1.

    Returns:
        Final logits (B, classes).
    """
    live: Any = (images,)
    for stage in stage_plan.runs[:-1]:
        live = stage(network, *live)
    logits: Tensor = stage_plan.runs[-1](network, *live)
    return logits


def run(controller: ExitController, images: Tensor) -> list[ExitedSamples]:
    """Run each stage on the remaining samples.

    Args:
        controller: decides which samples exit.
        images: (B, …), B ≥ 1.

    Raises:
        InputError: at this image size a value does not follow the batch.
    """
    active = ActiveBatch((images,), images.shape[0])
    exited: list[ExitedSamples] = []
    last = len(controller.stage_plan.cuts)
    for index in range(last):
        group = run_stage(controller, index, active)
        if group is not None:
            exited.append(group)
            if not active.count:
                return exited
    logits = controller.stage_plan.runs[-1](controller.network, *active.live)
    exited.append(ExitedSamples(last, active.indices, logits))
    return exited


def run_stage(controller: ExitController, index: int, active: ActiveBatch) -> ExitedSamples | None:
    """Run a stage and the exit behind it; synchronises with the device once if it is evaluated.

    Args:
        controller: decides which samples exit.
        index: index of stage and exit.
        active: the remaining samples before the stage; those after it when the call returns.

    Returns:
        The samples that exit here; None if there are none.

    Raises:
        InputError: at this image size a value that the exit reads does not follow the batch.
    """
    exits = controller.run(index, active)
    if exits is None and not controller.computes_state[index]:
        return None
    count, cut = active.count, controller.stage_plan.cuts[index]
    for position in cut.features:
        check_samples(active.live[position], cut.batch_dims[position], count)
    if exits is None:
        return None
    exit_count = int(exits) if count == 1 else int(exits.sum())
    if not exit_count:
        return None
    if exit_count == count:
        active.count = 0
        return ExitedSamples(index, active.indices, controller.classify(index, active, None))
    # A stable sort gives both lists of indices without another synchronisation; bytes can be
    # sorted on every device.
    order = exits.byte().argsort(stable=True)
    remaining, exiting = order[: count - exit_count], order[count - exit_count :]
    indices = exiting if active.indices is None else take(active.indices, exiting)
    logits = controller.classify(index, active, exiting)
    active.select(remaining, cut)
    return ExitedSamples(index, indices, logits)


def run_any_stage(
    controller: ExitController, index: int, active: ActiveBatch
) -> ExitedSamples | None:
    """Run a stage as `run_stage` does; at the last one, all samples exit.

    Args:
        controller: decides which samples exit.
        index: index of the stage, 0 to N.
        active: the remaining samples before the stage; those after it when the call returns.
    """
    if index < len(controller.stage_plan.cuts):
        return run_stage(controller, index, active)
    logits = controller.stage_plan.runs[-1](controller.network, *active.live)
    active.count = 0
    return ExitedSamples(index, active.indices, logits)


def merge_logits(exited: Sequence[ExitedSamples]) -> Tensor:
    """Return the logits (B, classes) of all samples, in the order of the batch."""
    if len(exited) == 1:
        return exited[0].logits
    indices = torch.cat([group.indices for group in exited if group.indices is not None])
    logits = torch.cat([group.logits for group in exited])
    return torch.empty_like(logits).index_copy_(0, indices, logits)


def merge_exit_indices(exited: Sequence[ExitedSamples]) -> Tensor:
    """Return the exit of each sample (B,), in the order of the batch."""
    size = sum(len(group.logits) for group in exited)
    device = exited[0].logits.device
    exit_index = torch.full((size,), exited[0].exit_index, dtype=torch.int64, device=device)
    for group in exited[1:]:
        assert group.indices is not None
        exit_index[group.indices] = group.exit_index
    return exit_index
