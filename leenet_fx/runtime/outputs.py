"""What a network with exits returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class ExitOutputs(NamedTuple):
    """Outputs of every exit for every sample.

    Attributes:
        logits: N+1 tensors (B, classes); the last is that of the final classifier.
        gate_logits: (B, N), before the sigmoid.
    """

    logits: tuple[Tensor, ...]
    gate_logits: Tensor


@dataclass(frozen=True)
class Prediction:
    """Outputs of conditional execution for a batch.

    Attributes:
        logits: (B, classes).
        exit_index: (B,) exit of each sample; N is the final classifier.
        confidence: (B,) largest class probability.
        cost: (B,) FLOPs, relative to the backbone.
    """

    logits: Tensor
    exit_index: Tensor
    confidence: Tensor
    cost: Tensor


def collect_exits(final: Tensor, *exits: tuple[Tensor, ...]) -> ExitOutputs:
    """Collect the outputs of all exits; the last call in `EarlyExitModule.graph`.

    Args:
        final: logits of the final classifier (B, classes).
        *exits: for each exit, class logits (B, classes), gate logits (B,), and the logits that are
            passed on to later exits.
    """
    logits = (*(outputs[0] for outputs in exits), final)
    return ExitOutputs(logits, torch.stack([outputs[1] for outputs in exits], 1))


def build_prediction(
    logits: Tensor, exit_index: Tensor, costs: Sequence[float] | None
) -> Prediction:
    """Build a prediction from logits and exits.

    Args:
        logits: (B, classes).
        exit_index: (B,).
        costs: N+1, the relative cost of each exit; None if no branch ran, so that it is 1.
    """
    if costs is None:
        cost = torch.ones(exit_index.shape, device=logits.device)
    else:
        cost = torch.tensor(costs, device=logits.device)[exit_index]
    confidence = logits.float().softmax(1).amax(1) if len(logits) else cost.new_empty(0)
    return Prediction(logits, exit_index, confidence, cost)
