"""Branches: what hangs on an exit. Each embeds the features, scores them with a gate, classifies them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from leenet_fx.errors import InputError
from placement import Registry


@dataclass(frozen=True)
class FeatureShape:
    """A tensor an exit reads: its shape for one image, batch axis included, and its channel axis."""

    shape: tuple[int, ...]
    channel_axis: int

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.shape[self.channel_axis]

    @property
    def numel(self) -> int:
        """Values for one image."""
        return math.prod(self.shape[1:])


class Branch(nn.Module, ABC):
    """An exit in three steps, so that each runs only for the samples that need it.

    Subclasses take `(features: Sequence[FeatureShape], num_classes: int)` and define `embed`,
    `score`, `classify` and the two parameter groups.
    """

    def __init__(self, features: Sequence[FeatureShape], num_classes: int) -> None:
        super().__init__()
        self.features = tuple(features)
        self.num_classes = num_classes

    @abstractmethod
    def embed(self, *features: Tensor) -> Tensor:
        """Features, each batch first → (B, n)."""

    @abstractmethod
    def score(self, embedded: Tensor) -> Tensor:
        """(B, n) → gate logits (B,), before the sigmoid."""

    @abstractmethod
    def classify(self, embedded: Tensor) -> Tensor:
        """(B, n) → class logits (B, num_classes)."""

    @abstractmethod
    def gate_parameters(self) -> list[nn.Parameter]:
        """Parameters trained by the gates' objective."""

    @abstractmethod
    def classifier_parameters(self) -> list[nn.Parameter]:
        """Parameters trained by the classifiers' objective."""

    @abstractmethod
    def reset_gate(self, generator: torch.Generator) -> None:
        """Draws the gate anew, near an even chance of leaving."""

    def forward(self, *features: Tensor) -> tuple[Tensor, Tensor]:
        """Features → class logits (B, num_classes) and gate logits (B,)."""
        embedded = self.embed(*features)
        return self.classify(embedded), self.score(embedded)


BranchFactory: TypeAlias = Callable[[Sequence[FeatureShape], int], Branch]

_branches: Registry[BranchFactory] = Registry("branch", "leenet_fx.branches")
register_branch = _branches.register
list_branches = _branches.names
get_branch = _branches.get


class _Separate(Branch):
    """Two separate linear maps on the embedding: gate n→1 and classifier n→m (LEENet)."""

    def __init__(self, features: Sequence[FeatureShape], num_classes: int, width: int) -> None:
        super().__init__(features, num_classes)
        self.gate = nn.Linear(width, 1)
        self.classifier = nn.Linear(width, num_classes)

    def score(self, embedded: Tensor) -> Tensor:
        return self.gate(embedded).squeeze(1)

    def classify(self, embedded: Tensor) -> Tensor:
        return self.classifier(embedded)

    def gate_parameters(self) -> list[nn.Parameter]:
        return list(self.gate.parameters())

    def classifier_parameters(self) -> list[nn.Parameter]:
        return list(self.classifier.parameters())

    def reset_gate(self, generator: torch.Generator) -> None:
        _reset_rows(self.gate.weight, self.gate.bias, generator)


@register_branch("pool")
class PoolBranch(_Separate):
    """Global average over every axis but batch and channels, then gate and classifier (EENets).

    Several features are pooled each and joined.
    """

    def __init__(self, features: Sequence[FeatureShape], num_classes: int) -> None:
        super().__init__(features, num_classes, sum(f.channels for f in features))

    def embed(self, *features: Tensor) -> Tensor:
        return _pool(features, self.features)


@register_branch("flatten")
class FlattenBranch(_Separate):
    """Every value of the features, flattened, then gate and classifier, as LEENet published it."""

    def __init__(self, features: Sequence[FeatureShape], num_classes: int) -> None:
        super().__init__(features, num_classes, sum(f.numel for f in features))

    def embed(self, *features: Tensor) -> Tensor:
        embedded = _join([feature.flatten(1) for feature in features])
        if embedded.shape[1] != self.classifier.in_features:
            raise InputError(
                f"A 'flatten' branch made for {self.classifier.in_features} values got "
                f"{embedded.shape[1]}: it fits one image size only; 'pool' fits any."
            )
        return embedded


@register_branch("projection")
class ProjectionBranch(Branch):
    """Pooled features through one projection n→m+1: the first output is the gate (LEENet, proposal)."""

    def __init__(self, features: Sequence[FeatureShape], num_classes: int) -> None:
        super().__init__(features, num_classes)
        self.projection = nn.Linear(sum(f.channels for f in features), num_classes + 1)

    def embed(self, *features: Tensor) -> Tensor:
        return self.projection(_pool(features, self.features))

    def score(self, embedded: Tensor) -> Tensor:
        return embedded[:, 0]

    def classify(self, embedded: Tensor) -> Tensor:
        return embedded[:, 1:]

    def gate_parameters(self) -> list[nn.Parameter]:
        return list(self.projection.parameters())

    def classifier_parameters(self) -> list[nn.Parameter]:
        return list(self.projection.parameters())

    def reset_gate(self, generator: torch.Generator) -> None:
        _reset_rows(self.projection.weight[:1], self.projection.bias[:1], generator)


def _pool(features: Sequence[Tensor], shapes: Sequence[FeatureShape]) -> Tensor:
    pooled = []
    for feature, spec in zip(features, shapes, strict=True):
        axes = [a for a in range(1, feature.ndim) if a != spec.channel_axis]
        pooled.append(feature.mean(axes) if axes else feature)
    return _join(pooled)


def _join(vectors: list[Tensor]) -> Tensor:
    return vectors[0] if len(vectors) == 1 else torch.cat(vectors, 1)


@torch.no_grad()
def _reset_rows(weight: Tensor, bias: Tensor, generator: torch.Generator) -> None:
    # Drawn where the generator lives and copied, so that a seed means the same on every device.
    bound = 1 / math.sqrt(weight.shape[1])
    drawn = torch.empty(weight.shape, device=generator.device)
    weight.copy_(drawn.uniform_(-bound, bound, generator=generator))
    bias.zero_()
