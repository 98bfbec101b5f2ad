"""Outputs of all exits and the final classifier, computed from cached features."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from leenet_fx.digest import weights_digest
from leenet_fx.errors import InputError
from leenet_fx.features.feature_batch import FeatureBatch
from leenet_fx.features.feature_cache import FeatureCache, cache_features
from leenet_fx.parts.branches import Branch, run_branches
from leenet_fx.policies import Policy, exit_indices, policy_scores
from leenet_fx.surgery.module import EarlyExitModule, final_classifier

LIMIT = 2**30
"""Bytes above which the outputs of a feature cache are not stored between calls."""


@dataclass(frozen=True)
class CachedOutputs:
    """Outputs of all exits and the final classifier for n samples that pass every exit.

    Attributes:
        logits: for each exit and the final classifier class logits (n, classes).
        gate_inputs: for each exit the inputs of its gate (n, k).
        labels: (n,) class indices; −1 for images without labels.
    """

    logits: tuple[Tensor, ...]
    gate_inputs: tuple[Tensor, ...]
    labels: Tensor

    def select(self, indices: Tensor | slice) -> CachedOutputs:
        """Return the outputs of some of the samples."""
        return CachedOutputs(
            tuple(values[indices] for values in self.logits),
            tuple(values[indices] for values in self.gate_inputs),
            self.labels[indices],
        )

    def gate_logits(self, ee: EarlyExitModule, alpha: float | None) -> Tensor:
        """Return the gate logits (n, N) of the network that the outputs were computed by.

        Args:
            ee: the network; its gates may have changed since.
            alpha: cost weight for gates conditioned on it; None takes the gates' default.
        """
        with torch.no_grad():
            return gate_logits(ee.exits.branches(), self.gate_inputs, alpha)

    def is_correct(self, exit_index: Tensor) -> Tensor:
        """Return (n,) whether each sample's class is predicted at the exit it is given.

        Args:
            exit_index: (n,) exit indices; N is the final classifier.
        """
        predicted = torch.stack([logits.argmax(1) for logits in self.logits], 1)
        return predicted.gather(1, exit_index.unsqueeze(1)).squeeze(1) == self.labels


def concatenate(parts: Sequence[CachedOutputs]) -> CachedOutputs:
    """Concatenate the outputs of several batches."""
    return CachedOutputs(
        tuple(torch.cat(values) for values in zip(*(p.logits for p in parts), strict=True)),
        tuple(torch.cat(values) for values in zip(*(p.gate_inputs for p in parts), strict=True)),
        torch.cat([part.labels for part in parts]),
    )


def gate_logits(
    branches: Iterable[Branch], gate_inputs: Iterable[Tensor], alpha: Tensor | float | None
) -> Tensor:
    """Return the logits of all gates (B, N).

    Args:
        branches: of the N exits, in order.
        gate_inputs: for each exit (B, k).
        alpha: cost weight for gates conditioned on it, one for all samples or (B,).
    """
    pairs = zip(branches, gate_inputs, strict=True)
    return torch.stack([branch.gate_logit(inputs, alpha) for branch, inputs in pairs], 1)


@torch.no_grad()
def batch_outputs(branches: Sequence[Branch], batch: FeatureBatch) -> CachedOutputs:
    """Return the outputs for a batch of features that holds final logits.

    Args:
        branches: of the N exits, in order.
        batch: B samples.
    """
    assert batch.final is not None
    outputs = run_branches(branches, batch.pooled)
    logits = [branch.classify(o[0]) for branch, o in zip(branches, outputs, strict=True)]
    gate_inputs = tuple(inputs for _, _, inputs in outputs)
    return CachedOutputs((*logits, batch.final), gate_inputs, batch.labels)


@torch.no_grad()
def compute_outputs(ee: EarlyExitModule, cache: FeatureCache) -> CachedOutputs:
    """Return the outputs for the first view of every cached image; the backbone does not run.

    Args:
        ee: the network.
        cache: of n images.

    Raises:
        InputError: the cache was closed, or made from another network.
    """
    cache.check(ee)
    outputs = outputs_of_all_views(ee, cache)
    if outputs is not None:
        single_view = cache.num_samples == len(cache)
        return outputs if single_view else outputs.select(slice(len(cache)))
    branches = list(ee.exits.branches())
    batches = cache.first_view(ee.device, final_classifier(ee))
    return concatenate([batch_outputs(branches, batch) for batch in batches])


def outputs_of_data(
    ee: EarlyExitModule, data: Iterable[Any] | FeatureCache | CachedOutputs, *, labelled: bool
) -> CachedOutputs:
    """Return the outputs for images of a loader, or of a feature cache.

    Args:
        ee: the network.
        data: the images; or their outputs, which are returned as they are.
        labelled: whether labels of a loader are read.

    Raises:
        InputError: as `cache_features` and `compute_outputs` raise; outputs of a network with other
            exits or classes.
    """
    if isinstance(data, CachedOutputs):
        shapes = {tuple(logits.shape) for logits in data.logits}
        expected = (len(data.labels), ee.spec.num_classes)
        if len(data.logits) != ee.num_exits + 1 or shapes != {expected}:
            raise InputError(
                f"Expected outputs of {ee.num_exits} exits and the final classifier, each "
                f"{expected}, got {len(data.logits)} of shapes {sorted(shapes)}."
            )
        return data
    if isinstance(data, FeatureCache):
        return compute_outputs(ee, data)
    with cache_features(ee, data, labelled=labelled, name="calibration images") as cache:
        return compute_outputs(ee, cache)


@torch.no_grad()
def outputs_of_all_views(ee: EarlyExitModule, cache: FeatureCache) -> CachedOutputs | None:
    """Return the outputs for every view of every cached image, view by view.

    The cache stores them as its memo until a classifier changes; gates may change.

    Args:
        ee: the network.
        cache: of n images.

    Returns:
        None if the outputs exceed `LIMIT`.
    """
    key = _classifier_digest(ee)
    if cache.memo is not None and cache.memo[0] == key:
        return cast("CachedOutputs | None", cache.memo[1])
    branches = list(ee.exits.branches())
    parts: list[CachedOutputs] = []
    outputs: CachedOutputs | None = None
    for batch in cache.all_views(ee.device, final_classifier(ee)):
        parts.append(batch_outputs(branches, batch))
        tensors = (*parts[0].logits, *parts[0].gate_inputs)
        if cache.num_samples * sum(t[0].numel() * t.element_size() for t in tensors) > LIMIT:
            break
    else:
        outputs = concatenate(parts)
    cache.memo = (key, outputs)
    return outputs


def confidences(ee: EarlyExitModule, policy: Policy, outputs: CachedOutputs) -> Tensor:
    """Return each sample's confidence at each exit (n, N), on the policy's own scale.

    Args:
        ee: the network that the outputs were computed by.
        policy: with thresholds.
        outputs: of n samples.
    """
    gates = outputs.gate_logits(ee, policy.alpha)
    columns = [
        policy.confidence(index, policy_scores(policy, index, outputs.logits, gates))
        for index in range(ee.num_exits)
    ]
    return torch.stack(columns, 1)


def cached_exit_indices(ee: EarlyExitModule, policy: Policy, outputs: CachedOutputs) -> Tensor:
    """Return the exit index of each sample (n,) under a policy.

    Args:
        ee: the network that the outputs were computed by.
        policy: decides which samples exit early.
        outputs: of n samples.
    """
    return exit_indices(policy, outputs.logits, outputs.gate_logits(ee, policy.alpha))


def _classifier_digest(ee: EarlyExitModule) -> str:
    """Return a digest of what outputs depend on besides the cached features."""
    final = final_classifier(ee)
    modules = [*ee.exits.branches(), *([] if final is None else [final])]
    digest = hashlib.sha256(repr((modules, ee.device)).encode())
    digest.update(weights_digest(_classifier_tensors(ee, modules)).encode())
    return digest.hexdigest()


def _classifier_tensors(
    ee: EarlyExitModule, modules: Sequence[torch.nn.Module]
) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters and buffers, except those of gates, which may change."""
    gates = {id(p) for branch in ee.exits.branches() for p in branch.gate_parameters()}
    gates -= {id(p) for branch in ee.exits.branches() for p in branch.classifier_parameters()}
    for index, module in enumerate(modules):
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if id(tensor) not in gates and not name.startswith("gate."):
                yield f"{index}.{name}", tensor
