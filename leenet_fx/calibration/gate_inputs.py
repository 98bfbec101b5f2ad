"""What gates judge by, computed once while only gates train."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from leenet_fx.features.feature_cache import FeatureBatch, FeatureCache
from leenet_fx.parts.branches import Branch, run_branches
from leenet_fx.surgery.module import EarlyExitModule, device_of, final_classifier

LIMIT = 2**30
"""Bytes of evidence above which it is computed anew for every batch."""


@dataclass(frozen=True)
class GateInputs:
    """Evidence and class logits of samples that pass every exit.

    Attributes:
        evidence: for each exit (B, k).
        logits: for each of the N+1 outlets (B, m).
    """

    gate_inputs: tuple[Tensor, ...]
    logits: tuple[Tensor, ...]

    def at(self, rows: Tensor) -> GateInputs:
        """Of some of the samples."""
        return GateInputs(
            tuple(values[rows] for values in self.gate_inputs),
            tuple(values[rows] for values in self.logits),
        )


def joined(parts: Sequence[GateInputs]) -> GateInputs:
    """Several batches as one."""
    return GateInputs(
        tuple(torch.cat(at) for at in zip(*(part.gate_inputs for part in parts), strict=True)),
        tuple(torch.cat(at) for at in zip(*(part.logits for part in parts), strict=True)),
    )


def all_gate_logits(
    branches: Iterable[Branch], gate_inputs: Iterable[Tensor], alpha: Tensor | float | None
) -> Tensor:
    """(B, N) what every gate says.

    Args:
        branches: in order.
        evidence: what each judges by, (B, k).
        alpha: weight of the cost, for gates with a dial.
    """
    scored = zip(branches, gate_inputs, strict=True)
    return torch.stack([branch.gate_logit(found, alpha) for branch, found in scored], 1)


@torch.no_grad()
def gate_inputs_of(branches: Sequence[Branch], rows: FeatureBatch) -> GateInputs:
    """What gates judge by, of a batch with final logits."""
    answers = run_branches(branches, rows.pooled)
    assert rows.final is not None
    classified = [b.classify(hidden) for b, (hidden, _, _) in zip(branches, answers, strict=True)]
    return GateInputs(tuple(found for _, _, found in answers), (*classified, rows.final))


@torch.no_grad()
def gate_inputs_of_cache(ee: EarlyExitModule, cache: FeatureCache) -> GateInputs | None:
    """What gates judge by, of every view of all kept images, in the order of the data set.

    The cache remembers it for as long as the classifiers stay as they are.

    Returns:
        None where it would be too large to keep.
    """
    branches = list(ee.exits.branches())
    key = _classifiers(ee)
    if cache.memo is not None and cache.memo[0] == key:
        return cast(GateInputs | None, cache.memo[1])
    found: list[GateInputs] = []
    for rows in cache.everything(device_of(ee), final_classifier(ee)):
        found.append(gate_inputs_of(branches, rows))
        values = (*found[0].gate_inputs, *found[0].logits)
        if cache.rows * sum(tensor[0].numel() * tensor.element_size() for tensor in values) > LIMIT:
            cache.memo = (key, None)
            return None
    kept = joined(found)
    cache.memo = (key, kept)
    return kept


def _classifiers(ee: EarlyExitModule) -> str:
    """A digest of all that evidence depends on besides the kept features."""
    final = final_classifier(ee)
    modules = [*ee.exits.branches(), *([] if final is None else [final])]
    digest = hashlib.sha256(repr(modules).encode())
    gates = {id(p) for branch in ee.exits.branches() for p in branch.gate_parameters()}
    gates -= {id(p) for branch in ee.exits.branches() for p in branch.classifier_parameters()}
    for module in modules:
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            # A gate's own tensors change while what it judges by stays.
            if id(tensor) not in gates and not name.startswith("gate."):
                digest.update(name.encode())
                values = tensor.detach().cpu().reshape(-1)
                digest.update(values.view(torch.uint8).numpy().data)
    return digest.hexdigest()
