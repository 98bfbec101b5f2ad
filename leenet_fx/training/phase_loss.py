"""The loss of a batch in a phase."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from leenet_fx.calibration.cached_outputs import CachedOutputs, gate_logits
from leenet_fx.features.feature_batch import FeatureBatch
from leenet_fx.methods.phases import Phase, Update
from leenet_fx.objectives import BatchOutputs, SumOfExits
from leenet_fx.parts.branches import run_branches
from leenet_fx.runtime.active_batch import detach
from leenet_fx.surgery.module import EarlyExitModule


@dataclass(frozen=True)
class _Outputs:
    """Logits of the classifiers (B, classes), gate logits (B, N) and labels (B,) of a batch."""

    logits: tuple[Tensor, ...]
    gate_logits: Tensor
    labels: Tensor


class PhaseLoss:
    """The objectives of a phase, evaluated on batches of images, features or cached outputs.

    Args:
        ee: the network.
        phase: of the method.
        final: the final classifier, if it is trained.
        costs: (N+1,) relative costs.
        cost_weight: weight of the cost against the error.

    Attributes:
        temperatures: (N+1,) by which logits that are held constant are divided.
    """

    def __init__(
        self,
        ee: EarlyExitModule,
        phase: Phase,
        final: nn.Module | None,
        costs: Tensor,
        cost_weight: float,
    ) -> None:
        self.ee = ee
        self.phase = phase
        self.final = final
        self.costs = costs
        self.cost_weight = cost_weight
        self.branches = list(ee.exits.branches())
        self.temperatures = torch.ones(ee.num_exits + 1, device=costs.device)

    @property
    def needs_final(self) -> bool:
        """Whether the phase reads the final logits."""
        objectives = [update.objective for update in self.phase.updates]
        reads = any(o is not None and o.reads_final for o in objectives)
        return reads or self.phase.labels == "backbone"

    def labels(self, labels: Tensor, final: Tensor | None) -> Tensor:
        """Return the labels that the phase trains on (B,).

        Args:
            labels: (B,) of the data.
            final: final logits (B, classes), for phases whose labels are the backbone's classes.
        """
        if self.phase.labels == "given":
            return labels
        assert final is not None
        return final.detach().argmax(1)

    def __call__(
        self,
        batch: FeatureBatch,
        cached: CachedOutputs | None,
        update: Update,
        alpha: Tensor | None,
        progress: float,
    ) -> Tensor:
        """Return the mean loss of a batch.

        Args:
            batch: of images or features.
            cached: outputs for the batch, if only gates are trained.
            update: whose objective is evaluated.
            alpha: (B,) a cost weight for each sample, for phases that draw it at random.
            progress: share of the phase's epochs that are completed, in [0, 1].
        """
        if cached is not None:
            outputs = self._from_cached(batch, cached, alpha)
        elif batch.images is not None:
            outputs = self._from_images(batch, batch.images)
        elif update.parameter_groups == ("final",):
            outputs = self._from_final_inputs(batch)
        else:
            outputs = self._from_features(batch, update, alpha)
        objective = SumOfExits() if update.objective is None else update.objective
        weight = self.cost_weight if alpha is None else alpha
        costs = self.costs.to(outputs.gate_logits.dtype)
        return objective(
            BatchOutputs(
                outputs.logits, outputs.gate_logits, outputs.labels, costs, weight, progress
            )
        )

    def _from_cached(
        self, batch: FeatureBatch, cached: CachedOutputs, alpha: Tensor | None
    ) -> _Outputs:
        gates = gate_logits(self.branches, cached.gate_inputs, alpha)
        labels = self.labels(batch.labels, cached.logits[-1])
        return _Outputs(self._scale(cached.logits), gates, labels)

    def _from_images(self, batch: FeatureBatch, images: Tensor) -> _Outputs:
        if self.phase.detached_exits:
            logits, gates = self._all_exits_in_parts(images)
        else:
            logits, gates = self.ee.all_exits(images)
        return _Outputs(logits, gates, self.labels(batch.labels, logits[-1]))

    def _all_exits_in_parts(self, images: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return class logits and gate logits of parts that exchange no gradients."""
        detached = self.phase.detached_exits
        features = self.ee.exit_features(images, detached)
        exits: list[tuple[Tensor, ...]] = []
        previous: list[tuple[Tensor, ...]] = []
        for index, (branch, tensors) in enumerate(zip(self.branches, features, strict=False)):
            exits.append(branch(*tensors, previous_exits=previous))
            previous.append(exits[-1])
            if index in detached:
                previous = detach(previous)
        logits = (*(outputs[0] for outputs in exits), next(features)[0])
        return logits, torch.stack([outputs[1] for outputs in exits], 1)

    def _from_final_inputs(self, batch: FeatureBatch) -> _Outputs:
        inputs = batch.final_inputs
        logits = batch.final if inputs is None or self.final is None else self.final(inputs)
        assert logits is not None
        return _Outputs((logits,), logits.new_empty(len(logits), 0), batch.labels)

    def _from_features(self, batch: FeatureBatch, update: Update, alpha: Tensor | None) -> _Outputs:
        outputs = run_branches(self.branches, batch.pooled)
        logits = [branch.classify(o[0]) for branch, o in zip(self.branches, outputs, strict=True)]
        if not {"classifiers", "ensembles"} & set(update.parameter_groups):
            logits = [exit_logits.detach() for exit_logits in logits]
        if batch.final is not None:
            logits.append(batch.final)
        if update.objective is not None and "gates" in update.objective.uses:
            gates = gate_logits(self.branches, [inputs for _, _, inputs in outputs], alpha)
        else:
            gates = logits[0].new_zeros(len(batch.labels), len(self.branches))
        labels = self.labels(batch.labels, batch.final)
        return _Outputs(self._scale(logits), gates, labels)

    def _scale(self, logits: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Divide logits by their temperatures; those of the final classifier may be absent."""
        return tuple(z / t for z, t in zip(logits, self.temperatures, strict=False))
