"""Thresholds for each class that reach a precision (CalexNet)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from leenet_fx.calibration.cached_outputs import CachedOutputs, outputs_of_data
from leenet_fx.errors import InputError
from leenet_fx.features.feature_cache import FeatureCache
from leenet_fx.policies.class_thresholds import NEVER, ClassThresholds
from leenet_fx.surgery.module import EarlyExitModule


def fit_class_thresholds(
    ee: EarlyExitModule, data: Iterable[Any] | FeatureCache | CachedOutputs, precision: float = 0.95
) -> ClassThresholds:
    """Return thresholds by which the predictions of each class at each exit reach a precision.

    From the first exit to the last, on the samples that have not exited before: the least
    confidence from which on at least a share `precision` of the samples that are predicted as the
    class belong to it (Aperstein & Apartsin 2026). A class that reaches it nowhere does not exit.
    The network is not changed: set `ee.policy` to the result.

    Args:
        ee: the network.
        data: (images, labels) that nothing was fitted on, a feature cache of them, or the outputs
            of the network for them.
        precision: in (0, 1].

    Raises:
        InputError: a precision out of range, or data that do not fit.
    """
    is_number = isinstance(precision, (int, float)) and not isinstance(precision, bool)
    if not is_number or not 0 < precision <= 1:
        raise InputError(f"precision must lie in (0, 1], got {precision!r}.")
    outputs = outputs_of_data(ee, data, labelled=True)
    labels = outputs.labels.cpu()
    inside = torch.ones_like(labels, dtype=torch.bool)
    table = []
    for logits in outputs.logits[:-1]:
        largest, predicted = logits.cpu().float().softmax(1).max(1)
        correct = predicted == labels
        row = torch.full((logits.shape[1],), NEVER)
        for class_index in predicted[inside].unique().tolist():
            chosen = inside & (predicted == class_index)
            row[class_index] = _least_threshold(largest[chosen], correct[chosen], precision)
        table.append(row.tolist())
        inside = inside & (largest < row[predicted])
    return ClassThresholds(table)


def _least_threshold(confidence: Tensor, correct: Tensor, precision: float) -> float:
    """Return the least confidence from which on the precision is reached; `NEVER` if none is."""
    ordered, order = confidence.sort(descending=True, stable=True)
    hits = correct[order].double().cumsum(0)
    counts = torch.arange(1, len(ordered) + 1, dtype=torch.float64)
    # Samples of equal confidence exit together.
    last = torch.cat([ordered[1:] != ordered[:-1], torch.ones(1, dtype=torch.bool)])
    reached = (last & (hits >= precision * counts - 1e-9)).nonzero()
    return float(ordered[reached[-1, 0]]) if len(reached) else NEVER
