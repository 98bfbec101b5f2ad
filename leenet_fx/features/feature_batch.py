"""A batch of features, and how it is computed from images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from leenet_fx.surgery.module import EarlyExitModule, final_classifier


@dataclass(frozen=True)
class FeatureBatch:
    """A batch as training on a frozen backbone reads it.

    With several processes, the tensors hold this process's share of the batch.

    Attributes:
        pooled: for each exit the output of its branch's `pool`, tensors (B, …).
        final: logits of the final classifier (B, classes), if they were requested.
        final_inputs: inputs of the final classifier (B, n), if they are known.
        labels: (B,) class indices; −1 for images without labels.
        total: size of the whole batch, the shares of all processes included.
        images: (B, …), if the backbone trains; `pooled` is empty then.
        indices: (B,) positions in the feature cache, if only positions were requested.
    """

    pooled: tuple[tuple[Tensor, ...], ...]
    final: Tensor | None
    final_inputs: Tensor | None
    labels: Tensor
    total: int
    images: Tensor | None = None
    indices: Tensor | None = None


def extract_features(
    ee: EarlyExitModule, images: Tensor
) -> tuple[tuple[tuple[Tensor, ...], ...], Tensor, Tensor | None]:
    """Run the backbone and return what the exits and the final classifier read.

    Args:
        ee: the network.
        images: (B, …).

    Returns:
        For each exit the output of its branch's `pool`, tensors (B, …); the final logits
        (B, classes); the inputs of the final classifier (B, n), or None if the final logits are
        not exactly the output of one linear layer.
    """
    inputs: list[Tensor] = []
    final = final_classifier(ee)
    hook = None
    if isinstance(final, nn.Linear):
        hook = final.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    try:
        features = ee.exit_features(images)
        pooled = pool_features(ee, features)
        logits = next(features)[0]
    finally:
        if hook is not None:
            hook.remove()
    exact = (
        final is not None
        and len(inputs) == 1
        and inputs[0].ndim == 2
        and torch.equal(final(inputs[0]), logits)
    )
    return pooled, logits, inputs[0] if exact else None


def pool_features(
    ee: EarlyExitModule, features: Iterator[tuple[Tensor, ...]]
) -> tuple[tuple[Tensor, ...], ...]:
    """Return for each exit the output of its branch's `pool`, tensors (B, …).

    Args:
        ee: the network.
        features: from `ee.exit_features`; its next item afterwards holds the final logits.
    """
    return tuple(tuple(branch.pool(*next(features))) for branch in ee.exits.branches())
