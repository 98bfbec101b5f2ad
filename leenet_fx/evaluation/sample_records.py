"""Predictions of all exits and the exit taken, sample by sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from leenet_fx.calibration.cached_outputs import cached_exit_indices, compute_outputs
from leenet_fx.features.feature_cache import FeatureCache
from leenet_fx.surgery.module import EarlyExitModule


@dataclass(frozen=True)
class SampleRecords:
    """Predictions of n samples at N exits and the final classifier, which is last.

    Attributes:
        labels: (n,) class indices.
        predicted: (n, N+1) the class that each classifier predicts.
        confidence: (n, N+1) its softmax probability, at the temperatures of the policy.
        exit_index: (n,) exit taken by each sample; N is the final classifier.
        scores: (n, N) what a policy compares with its thresholds; None if it has none.
        undivided: (n, N+1) `confidence` at temperature 1; None if the policy has no temperatures.
    """

    labels: Tensor
    predicted: Tensor
    confidence: Tensor
    exit_index: Tensor
    scores: Tensor | None = None
    undivided: Tensor | None = None

    @property
    def correct(self) -> Tensor:
        """(n, N+1) whether each classifier predicts the label."""
        return self.predicted == self.labels.unsqueeze(1)

    @property
    def overall_predicted(self) -> Tensor:
        """(n,) class predicted at the exit taken."""
        return self._at_exit(self.predicted)

    @property
    def overall_correct(self) -> Tensor:
        """(n,) whether the class predicted at the exit taken is the label."""
        return self._at_exit(self.correct)

    @property
    def overall_confidence(self) -> Tensor:
        """(n,) softmax probability of the class predicted at the exit taken."""
        return self._at_exit(self.confidence)

    @property
    def overall_undivided(self) -> Tensor | None:
        """(n,) `overall_confidence` at temperature 1; None if the policy has no temperatures."""
        return None if self.undivided is None else self._at_exit(self.undivided)

    def _at_exit(self, values: Tensor) -> Tensor:
        return values.gather(1, self.exit_index.unsqueeze(1)).squeeze(1)


def concatenate(batches: Sequence[SampleRecords]) -> SampleRecords:
    """Join the records of several batches."""
    undivided = [batch.undivided for batch in batches if batch.undivided is not None]
    scores = [batch.scores for batch in batches if batch.scores is not None]
    return SampleRecords(
        labels=torch.cat([batch.labels for batch in batches]),
        predicted=torch.cat([batch.predicted for batch in batches]),
        confidence=torch.cat([batch.confidence for batch in batches]),
        exit_index=torch.cat([batch.exit_index for batch in batches]),
        scores=torch.cat(scores) if scores else None,
        undivided=torch.cat(undivided) if undivided else None,
    )


def record_batch(
    logits: Sequence[Tensor],
    exit_index: Tensor,
    labels: Tensor,
    scores: Tensor | None = None,
    temperatures: Sequence[float] | None = None,
) -> SampleRecords:
    """Build the records of a batch, on the CPU.

    Args:
        logits: N+1 tensors (B, classes).
        exit_index: (B,).
        labels: (B,).
        scores: (B, N) what a policy compares with its thresholds.
        temperatures: N+1, of the policy; None for 1.
    """
    best = [at.float().softmax(1).max(1) for at in logits]
    confidence = undivided = torch.stack([at.values for at in best], 1).cpu()
    if temperatures is not None:
        divided = zip(logits, temperatures, strict=True)
        at_temperature = [(at.float() / value).softmax(1).amax(1) for at, value in divided]
        confidence = torch.stack(at_temperature, 1).cpu()
    return SampleRecords(
        labels=labels.cpu(),
        predicted=torch.stack([at.indices for at in best], 1).cpu(),
        confidence=confidence,
        exit_index=exit_index.cpu(),
        scores=scores,
        undivided=None if temperatures is None else undivided,
    )


def replay(ee: EarlyExitModule, cache: FeatureCache) -> SampleRecords:
    """Build the records of the network's policy from cached features; the backbone does not run.

    Raises:
        InputError: the cache belongs to another network.
    """
    outputs = compute_outputs(ee, cache)
    exit_index = cached_exit_indices(ee, ee.policy, outputs)
    temperatures = ee.policy.temperatures
    return record_batch(outputs.logits, exit_index, outputs.labels, temperatures=temperatures)
