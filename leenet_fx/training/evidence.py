"""What gates judge by, computed once while only gates train."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from leenet_fx.parts.branches import Branch, answer_all
from leenet_fx.training.cache import Rows

LIMIT = 2**30
"""Bytes of evidence above which it is computed anew for every batch."""


@dataclass(frozen=True)
class Evidence:
    """Evidence and class logits of samples that pass every exit.

    Attributes:
        evidence: for each exit (B, k).
        logits: for each of the N+1 outlets (B, m).
    """

    evidence: tuple[Tensor, ...]
    logits: tuple[Tensor, ...]

    def at(self, rows: Tensor) -> Evidence:
        """Of some of the samples."""
        return Evidence(
            tuple(values[rows] for values in self.evidence),
            tuple(values[rows] for values in self.logits),
        )


@torch.no_grad()
def evidence_of(branches: Sequence[Branch], rows: Rows) -> Evidence:
    """What gates judge by, of a batch with final logits."""
    answers = answer_all(branches, rows.reduced)
    assert rows.final is not None
    classified = [b.classify(state) for b, (state, _, _) in zip(branches, answers, strict=True)]
    return Evidence(tuple(found for _, _, found in answers), (*classified, rows.final))


def keep_evidence(branches: Sequence[Branch], parts: Iterable[Rows], count: int) -> Evidence | None:
    """The evidence of `count` samples, batch by batch; None where it would be too large to keep."""
    found: list[Evidence] = []
    for rows in parts:
        found.append(evidence_of(branches, rows))
        values = (*found[0].evidence, *found[0].logits)
        if count * sum(tensor[0].numel() * tensor.element_size() for tensor in values) > LIMIT:
            return None
    return Evidence(
        tuple(torch.cat(columns) for columns in zip(*(f.evidence for f in found), strict=True)),
        tuple(torch.cat(columns) for columns in zip(*(f.logits for f in found), strict=True)),
    )
