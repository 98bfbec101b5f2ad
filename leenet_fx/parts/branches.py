"""Branches: what hangs on an exit: an embedding of the features, a gate, a classifier."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leenet_fx.errors import InputError
from placement import Registry


@dataclass(frozen=True)
class FeatureShape:
    """A tensor an exit reads: its shape for one image, batch axis included; its channel axis."""

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
    """An exit in steps, so that each runs only for the samples that need it.

    reduce → embed → score → classify. Subclasses take `(features: Sequence[FeatureShape],
    num_classes: int)` and define `embed`, `score`, `classify` and the two parameter groups.
    """

    def __init__(self, features: Sequence[FeatureShape], num_classes: int) -> None:
        super().__init__()
        self.features = tuple(features)
        self.num_classes = num_classes

    def reduce(self, *features: Tensor) -> tuple[Tensor, ...]:
        """What the branch needs of its features, each batch first; uses no parameter.

        With a frozen backbone this is what training keeps, so the smaller, the better.
        """
        return features

    @abstractmethod
    def embed(self, *reduced: Tensor) -> Tensor:
        """What `reduce` left, each batch first → (B, n)."""

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
    def reset_gate(self, generator: torch.Generator, chance: float) -> None:
        """Draws the gate anew, so that it opens for about a share of `chance` of the samples."""

    def standardise_inputs(self, *reduced: Tensor) -> None:
        """Lets the branch scale what `reduce` leaves by what it is on training images; optional.

        Called before classifiers are trained; a branch that has trained keeps the scale it has.

        Args:
            reduced: each (n, …).
        """

    def standardise(self, embedded: Tensor) -> None:
        """Lets the gate scale its inputs by what they are on training images; optional.

        Args:
            embedded: (n, width) embeddings.
        """

    def forward(self, *features: Tensor) -> tuple[Tensor, Tensor]:
        """Features → class logits (B, num_classes) and gate logits (B,)."""
        return self.answer(*self.reduce(*features))

    def answer(self, *reduced: Tensor) -> tuple[Tensor, Tensor]:
        """What `reduce` left → class logits (B, num_classes) and gate logits (B,)."""
        embedded = self.embed(*reduced)
        return self.classify(embedded), self.score(embedded)


BranchFactory: TypeAlias = Callable[[Sequence[FeatureShape], int], Branch]

_branches: Registry[BranchFactory] = Registry("branch", "leenet_fx.branches")
register_branch = _branches.register
list_branches = _branches.names
get_branch = _branches.get


class Scale(nn.Module):
    """Brings n inputs to mean 0 and spread n^−power, as measured on training images.

    Features of unlike scale train slowly, and leave a gate that sends all samples one way. The
    width n counts, for a step of the optimizer moves a sum of n inputs up to n times as far.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int, power: float) -> None:
        super().__init__()
        self.power = power
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, n) → (B, n)."""
        return (inputs - self.mean) * self.scale

    @property
    def measured(self) -> bool:
        """Whether `measure` was called."""
        return bool((self.mean != 0).any()) or bool((self.scale != 1).any())

    @torch.no_grad()
    def measure(self, inputs: Tensor) -> None:
        """Sets mean and scale by (samples, n) inputs; constant inputs count for nothing."""
        spread = inputs.std(0, correction=0) * inputs.shape[1] ** self.power
        self.mean.copy_(inputs.mean(0))
        self.scale.copy_(torch.where(spread > 1e-6, 1 / spread.clamp(min=1e-6), 0))


class Gate(nn.Module):
    """A linear map n→1 on standardised inputs."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # Weights move no faster than the bias: a sigmoid that has saturated learns no more.
        self.inputs = Scale(width, power=1)
        self.linear = nn.Linear(width, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, n) → (B,)."""
        return torch.squeeze(self.linear(self.inputs(inputs)), 1)

    @torch.no_grad()
    def reset(self, generator: torch.Generator, chance: float) -> None:
        """Draws the weights anew; the gate opens for about `chance` of the samples."""
        _reset_rows(self.linear.weight, self.linear.bias, generator, chance)


class _Separate(Branch):
    """A gate and a classifier that share no parameter.

    By default two linear maps, n→1 and n→m, on the same standardised features (LEENet).
    """

    def __init__(
        self,
        features: Sequence[FeatureShape],
        num_classes: int,
        width: int,
        gate_width: int | None = None,
    ) -> None:
        super().__init__(features, num_classes)
        self.inputs = Scale(width, power=0.5)
        self.gate = Gate(width if gate_width is None else gate_width)
        self.classifier = nn.Linear(width, num_classes)

    def embed(self, *reduced: Tensor) -> Tensor:
        embedded: Tensor = self.inputs(*reduced)
        return embedded

    def score(self, embedded: Tensor) -> Tensor:
        scores: Tensor = self.gate(embedded)
        return scores

    def classify(self, embedded: Tensor) -> Tensor:
        logits: Tensor = self.classifier(embedded)
        return logits

    def gate_parameters(self) -> list[nn.Parameter]:
        return list(self.gate.parameters())

    def classifier_parameters(self) -> list[nn.Parameter]:
        return list(self.classifier.parameters())

    def reset_gate(self, generator: torch.Generator, chance: float) -> None:
        self.gate.reset(generator, chance)

    def standardise_inputs(self, *reduced: Tensor) -> None:
        if not self.inputs.measured:
            self.inputs.measure(*reduced)

    def standardise(self, embedded: Tensor) -> None:
        self.gate.inputs.measure(embedded)


@register_branch("pool")
class PoolBranch(_Separate):
    """Average pooling, then gate and classifier (EENets' `pool`).

    Maps are pooled to a grid of 4 x 4, 2 x 2 or 1 x 1 cells, the finest that keeps the classifier
    within 100,000 weights: few classes afford a finer look, 1000 classes get the global average.
    Tokens are averaged. Several features are pooled each and joined.
    """

    def __init__(self, features: Sequence[FeatureShape], num_classes: int) -> None:
        grid = _grid(features, num_classes)
        super().__init__(features, num_classes, _pooled_width(features, grid))
        self.grid = grid

    def reduce(self, *features: Tensor) -> tuple[Tensor, ...]:
        return (_pool(features, self.features, self.grid),)


@register_branch("flatten")
class FlattenBranch(_Separate):
    """Every value of the features, flattened, then gate and classifier, as LEENet published it."""

    def __init__(self, features: Sequence[FeatureShape], num_classes: int) -> None:
        super().__init__(features, num_classes, sum(f.numel for f in features))

    def reduce(self, *features: Tensor) -> tuple[Tensor, ...]:
        joined = _join([feature.flatten(1) for feature in features])
        if isinstance(joined, Tensor) and joined.shape[1] != self.classifier.in_features:
            raise InputError(
                f"A 'flatten' branch made for {self.classifier.in_features} values got "
                f"{joined.shape[1]}: it fits one image size only; 'pool' fits any."
            )
        return (joined,)


@register_branch("projection")
class ProjectionBranch(Branch):
    """Pooled features through one projection n→m+1, gate first (LEENet's proposal)."""

    def __init__(self, features: Sequence[FeatureShape], num_classes: int) -> None:
        super().__init__(features, num_classes)
        self.grid = _grid(features, num_classes)
        width = _pooled_width(features, self.grid)
        self.inputs = Scale(width, power=0.5)
        self.projection = nn.Linear(width, num_classes + 1)

    def reduce(self, *features: Tensor) -> tuple[Tensor, ...]:
        return (_pool(features, self.features, self.grid),)

    def embed(self, *reduced: Tensor) -> Tensor:
        embedded: Tensor = self.projection(self.inputs(*reduced))
        return embedded

    def score(self, embedded: Tensor) -> Tensor:
        return embedded[:, 0]

    def classify(self, embedded: Tensor) -> Tensor:
        return embedded[:, 1:]

    def gate_parameters(self) -> list[nn.Parameter]:
        return list(self.projection.parameters())

    def classifier_parameters(self) -> list[nn.Parameter]:
        return list(self.projection.parameters())

    def reset_gate(self, generator: torch.Generator, chance: float) -> None:
        _reset_rows(self.projection.weight[:1], self.projection.bias[:1], generator, chance)

    def standardise_inputs(self, *reduced: Tensor) -> None:
        if not self.inputs.measured:
            self.inputs.measure(*reduced)


@register_branch("confidence")
class ConfidenceBranch(_Separate):
    """Pooled features, a classifier, and a gate on how sure the classifier is.

    The gate reads the largest class probability, the margin to the second, the entropy, and the
    log-odds of the largest (JEI-DNN, Regol et al. 2024, with log-odds for power entropy). The
    classifier runs for every sample that arrives, and is counted so.
    """

    def __init__(self, features: Sequence[FeatureShape], num_classes: int) -> None:
        grid = _grid(features, num_classes)
        super().__init__(features, num_classes, _pooled_width(features, grid), gate_width=4)
        self.grid = grid

    def reduce(self, *features: Tensor) -> tuple[Tensor, ...]:
        return (_pool(features, self.features, self.grid),)

    def embed(self, *reduced: Tensor) -> Tensor:
        embedded: Tensor = self.classifier(self.inputs(*reduced))
        return embedded

    def score(self, embedded: Tensor) -> Tensor:
        return super().score(_uncertainty(embedded))

    def classify(self, embedded: Tensor) -> Tensor:
        return embedded

    def standardise(self, embedded: Tensor) -> None:
        super().standardise(_uncertainty(embedded))


def _uncertainty(logits: Tensor) -> Tensor:
    """Class logits (B, m) → (B, 4): largest probability, margin, entropy, log-odds."""
    logs = logits.log_softmax(1)
    probabilities = logs.exp()
    ordered = logs.sort(1, descending=True).values
    first = ordered[:, 0]
    second = ordered[:, 1] if logits.shape[1] > 1 else torch.full_like(first, -torch.inf)
    rest = ordered[:, 1:].logsumexp(1) if logits.shape[1] > 1 else torch.zeros_like(first)
    entropy = -(probabilities * logs).sum(1)
    return torch.stack([first.exp(), first.exp() - second.exp(), entropy, first - rest], 1)


GRIDS = (4, 2, 1)
MOST_WEIGHTS = 100_000


def _grid(features: Sequence[FeatureShape], num_classes: int) -> int:
    maps = [f for f in features if len(f.shape) == 4]
    smallest = min((min(_map_size(f)) for f in maps), default=1)
    return next(
        (
            grid
            for grid in GRIDS
            if grid <= smallest and _pooled_width(features, grid) * num_classes <= MOST_WEIGHTS
        ),
        1,
    )


def _map_size(feature: FeatureShape) -> list[int]:
    return [size for a, size in enumerate(feature.shape) if a not in (0, feature.channel_axis)]


def _pooled_width(features: Sequence[FeatureShape], grid: int) -> int:
    return sum(f.channels * (grid * grid if len(f.shape) == 4 else 1) for f in features)


def _pool(features: Sequence[Tensor], shapes: Sequence[FeatureShape], grid: int) -> Tensor:
    pooled = []
    for feature, spec in zip(features, shapes, strict=True):
        rank = len(spec.shape)
        if rank == 4 and grid > 1:
            maps = feature.movedim(spec.channel_axis, 1)
            pooled.append(F.adaptive_avg_pool2d(maps, grid).flatten(1))
        else:
            axes = [a for a in range(1, rank) if a != spec.channel_axis]
            pooled.append(feature.mean(axes) if axes else feature)
    return _join(pooled)


def _join(vectors: list[Tensor]) -> Tensor:
    return vectors[0] if len(vectors) == 1 else torch.cat(vectors, 1)


@torch.no_grad()
def _reset_rows(weight: Tensor, bias: Tensor, generator: torch.Generator, chance: float) -> None:
    # Drawn where the generator lives and copied, so that a seed means the same on every device.
    bound = 1 / math.sqrt(weight.shape[1])
    drawn = torch.empty(weight.shape, device=generator.device)
    weight.copy_(drawn.uniform_(-bound, bound, generator=generator))
    bias.fill_(math.log(chance / (1 - chance)))
