"""What every exit says of every sample, and what follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from leenet_fx.calibration.cached_outputs import cached_exit_indices, compute_outputs
from leenet_fx.features.feature_cache import FeatureCache
from leenet_fx.surgery.module import EarlyExitModule

BINS = 15
"""Bins of the calibration error."""


@dataclass(frozen=True)
class SampleRecords:
    """n samples at N+1 outlets, the final classifier's last.

    Attributes:
        labels: (n,).
        predicted: (n, N+1) the class each outlet would answer.
        confidence: (n, N+1) its probability.
        exit_index: (n,) where each sample left.
    """

    labels: Tensor
    predicted: Tensor
    confidence: Tensor
    exit_index: Tensor

    @property
    def right(self) -> Tensor:
        """(n, N+1) whether each outlet's answer is right."""
        return self.predicted == self.labels.unsqueeze(1)

    @property
    def answered(self) -> Tensor:
        """(n,) the class answered where each sample left."""
        return self._there(self.predicted)

    @property
    def answered_right(self) -> Tensor:
        """(n,) whether that is right."""
        return self._there(self.right)

    @property
    def answered_confidence(self) -> Tensor:
        """(n,) its probability."""
        return self._there(self.confidence)

    def _there(self, values: Tensor) -> Tensor:
        return values.gather(1, self.exit_index.unsqueeze(1)).squeeze(1)


def joined(parts: Sequence[SampleRecords]) -> SampleRecords:
    """Several batches as one."""
    return SampleRecords(
        labels=torch.cat([part.labels for part in parts]),
        predicted=torch.cat([part.predicted for part in parts]),
        confidence=torch.cat([part.confidence for part in parts]),
        exit_index=torch.cat([part.exit_index for part in parts]),
    )


def record(logits: Sequence[Tensor], exit_index: Tensor, labels: Tensor) -> SampleRecords:
    """Records of a batch on the CPU.

    Args:
        logits: N+1 tensors (B, classes).
        exit_index: (B,).
        labels: (B,).
    """
    found = [at.float().softmax(1).max(1) for at in logits]
    return SampleRecords(
        labels=labels.cpu(),
        predicted=torch.stack([at.indices for at in found], 1).cpu(),
        confidence=torch.stack([at.values for at in found], 1).cpu(),
        exit_index=exit_index.cpu(),
    )


def auroc(confidence: Tensor, right: Tensor) -> float | None:
    """How well confidence tells right answers from wrong ones; None where all are alike.

    The probability that a right answer is more confident than a wrong one (failure prediction).

    Args:
        confidence: (n,) probabilities.
        right: (n,) bool.
    """
    from torchmetrics.functional.classification import binary_auroc

    if not len(right) or bool(right.all()) or not bool(right.any()):
        return None
    return float(binary_auroc(confidence.contiguous(), right.long()))


def calibration_error(confidence: Tensor, right: Tensor) -> float | None:
    """Expected calibration error in 15 bins (Guo et al. 2017); None without samples."""
    from torchmetrics.functional.classification import binary_calibration_error

    if not len(right):
        return None
    return float(binary_calibration_error(confidence.contiguous(), right.long(), n_bins=BINS))


def replay(ee: EarlyExitModule, kept: FeatureCache) -> SampleRecords:
    """What the network would do with images whose features were kept; the backbone does not run.

    Raises:
        InputError: the cache is of another network.
    """
    outputs = compute_outputs(ee, kept)
    return record(outputs.logits, cached_exit_indices(ee, ee.policy, outputs), outputs.labels)
