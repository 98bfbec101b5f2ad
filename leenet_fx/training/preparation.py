"""Statistics of the first training images, which a phase begins with."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from lightning_fabric import Fabric
from torch import Tensor

from leenet_fx.errors import TrainingError
from leenet_fx.features.feature_batch import FeatureBatch
from leenet_fx.training.collectives import gather, sum_over_processes
from leenet_fx.training.feature_source import FeatureSource

STATISTICS_SAMPLES = 2048
"""Number of training images that statistics of inputs, and temperatures, are computed on."""


def first_samples(train: FeatureSource, fabric: Fabric, phase: str) -> FeatureBatch:
    """Return the first `STATISTICS_SAMPLES` samples of all processes as one batch.

    Args:
        train: samples to train on.
        fabric: of the processes.
        phase: name of the phase, for messages.

    Raises:
        TrainingError: a feature is not finite.
    """
    parts: list[FeatureBatch] = []
    count = 0
    for batch in train.features(final=True):
        parts.append(batch)
        count += batch.total
        if count >= STATISTICS_SAMPLES:
            break
    pooled = tuple(
        tuple(
            gather(torch.cat([part.pooled[exit_][i] for part in parts]), fabric)
            for i in range(len(first))
        )
        for exit_, first in enumerate(parts[0].pooled)
    )
    for tensors in pooled:
        check_finite(tensors, phase)
    logits = gather(torch.cat([part.final for part in parts if part.final is not None]), fabric)
    labels = gather(torch.cat([part.labels for part in parts]), fabric)
    return FeatureBatch(pooled, logits, None, labels, len(labels))


def final_input_statistics(
    train: FeatureSource, fabric: Fabric, phase: str
) -> tuple[Tensor, Tensor] | None:
    """Return mean (n,) and standard deviation (n,) of the final classifier's inputs.

    Args:
        train: samples to train on, of which the first `STATISTICS_SAMPLES` are read.
        fabric: of the processes.
        phase: name of the phase, for messages.

    Returns:
        None if the layer's inputs cannot be observed.

    Raises:
        TrainingError: an input is not finite.
    """
    sums: Tensor | None = None
    count = 0
    for inputs, total in train.final_inputs():
        values = inputs.double()
        ones = values.new_ones(len(values))
        moments = torch.stack(
            [ones.sum().expand(values.shape[1]), values.sum(0), (values**2).sum(0)]
        )
        sums = moments if sums is None else sums + moments
        count += total
        if count >= STATISTICS_SAMPLES:
            break
    if sums is None:
        return None
    rows, first, second = sum_over_processes(sums, fabric)
    if not bool(rows.all()):
        return None
    mean = first / rows
    spread = (second / rows - mean**2).clamp(min=0).sqrt()
    check_finite((mean, spread), phase)
    return mean, spread


def check_finite(tensors: Iterable[Tensor], phase: str) -> None:
    """Raise TrainingError if a value is not finite.

    Args:
        tensors: features.
        phase: name of the phase, for the message.
    """
    if not all(bool(values.isfinite().all()) for values in tensors):
        raise TrainingError(
            f"The features of phase '{phase}' are not finite: nothing was changed. "
            "Look for NaN in the images."
        )
