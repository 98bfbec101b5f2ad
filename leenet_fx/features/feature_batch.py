"""A batch of features, and how it is computed from images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

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

    def first(self, count: int) -> FeatureBatch:
        """Return a copy of the features and labels of the first samples."""
        return FeatureBatch(
            tuple(tuple(values[:count].clone() for values in tensors) for tensors in self.pooled),
            None if self.final is None else self.final[:count].clone(),
            None,
            self.labels[:count].clone(),
            min(count, len(self.labels)),
        )


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
        not exactly the output of one linear layer. All are in the dtype of the exits, in which
        they are trained, also where the backbone runs under autocast.
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


@torch.no_grad()
def final_layer_inputs(ee: EarlyExitModule, images: Tensor) -> Tensor | None:
    """Return the inputs of the final classifier's layer as rows (r, n), with n its input channels.

    Args:
        ee: the network.
        images: (B, …).

    Returns:
        None if the layer did not run, or shares its channels among groups.
    """
    weight = getattr(final_classifier(ee), "weight", None)
    if not isinstance(weight, Tensor):
        return None
    with _OperandsOf(weight) as operands:
        for _ in ee.exit_features(images):
            pass
    rows = []
    for values in operands.inputs:
        # A convolution has its channels at axis 1, a linear layer last.
        channels = values.movedim(1, -1) if weight.ndim > 2 else values
        if channels.shape[-1] != weight.shape[1]:
            return None
        rows.append(channels.flatten(0, -2))
    return torch.cat(rows) if rows else None


class _OperandsOf(TorchFunctionMode):
    """Records the first argument of operators whose second argument is a given weight.

    In graphs of torch.export a layer is an operator on its weight, not a call of its module.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight
        self.inputs: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if len(args) > 1 and args[1] is self.weight:
            self.inputs.append(args[0])
        return func(*args, **(kwargs or {}))


def pool_features(
    ee: EarlyExitModule, features: Iterator[tuple[Tensor, ...]]
) -> tuple[tuple[Tensor, ...], ...]:
    """Return for each exit the output of its branch's `pool`, tensors (B, …).

    Args:
        ee: the network.
        features: from `ee.exit_features`; its next item afterwards holds the final logits.
    """
    return tuple(tuple(branch.pool(*next(features))) for branch in ee.exits.branches())
