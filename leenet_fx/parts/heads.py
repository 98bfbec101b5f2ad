"""Heads: from a neck's vector to class logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from leenet_fx.errors import InputError
from leenet_fx.parts.exit_site import ExitSite
from leenet_fx.registry import Registry


class Head(nn.Module, ABC):
    """Base of heads: `forward` computes a hidden tensor, `classify` reads class logits from it.

    Attributes:
        reads_previous_logits: whether `forward` reads the logits that earlier exits pass on.
        site: features and position that the head is built for.
        width: n, the length of the neck's vector.
    """

    reads_previous_logits = False

    def __init__(self, site: ExitSite, width: int) -> None:
        super().__init__()
        self.site = site
        self.width = width

    @abstractmethod
    def forward(self, inputs: Tensor, previous_logits: Tensor | None) -> Tensor:
        """Compute the hidden tensor (B, k).

        Args:
            inputs: the neck's vectors (B, n).
            previous_logits: `passed_logits` of earlier heads (B, position, m); None at the first
                exit, or if `reads_previous_logits` is false.
        """

    def classify(self, hidden: Tensor) -> Tensor:
        """Return class logits: (B, k) → (B, m)."""
        return hidden

    def passed_logits(self, hidden: Tensor) -> Tensor:
        """Return the logits passed on to later exits: (B, k) → (B, m)."""
        return hidden

    def begin_phase(self, group: str) -> None:
        """Prepare for a training phase of a parameter group; optional.

        Args:
            group: a `leenet_fx.methods.phases.Group`.
        """

    def classifier_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that the classifiers' objective trains."""
        return list(self.parameters())

    def ensemble_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of ensembles, which are trained after the classifiers."""
        return []


_heads: Registry[type[Head]] = Registry("head", "leenet_fx.heads")
register_head = _heads.register
list_heads = _heads.names
get_head = _heads.get


@register_head("linear")
class LinearHead(Head):
    """Linear classifier."""

    def __init__(self, site: ExitSite, width: int) -> None:
        super().__init__(site, width)
        self.linear = nn.Linear(width, site.num_classes)

    def forward(self, inputs: Tensor, previous_logits: Tensor | None) -> Tensor:
        logits: Tensor = self.linear(inputs)
        return logits


@register_head("ensemble")
class EnsembleHead(Head):
    """Linear head with a geometric ensemble (that of Zero Time Waste, Wołczyk et al. 2021).

    After the heads, the ensembles are trained on their fixed outputs, and exit i classifies by
    log qᵢ = (1/(i+1)) Σ_{j≤i} e^{w_j}·log p_j + b.

    Attributes:
        ensembles: whether `classify` returns the ensemble's logits; before, those of the head.
    """

    reads_previous_logits = True
    ensembles: Tensor

    def __init__(self, site: ExitSite, width: int) -> None:
        super().__init__(site, width)
        classes = site.num_classes
        self.linear = nn.Linear(width, classes)
        self.weights = nn.Parameter(torch.zeros(site.position + 1))
        self.bias = nn.Parameter(torch.zeros(classes))
        self.register_buffer("ensembles", torch.zeros((), dtype=torch.bool))

    def forward(self, inputs: Tensor, previous_logits: Tensor | None) -> Tensor:
        if previous_logits is not None:
            previous_logits = previous_logits.detach()
        own = self.own(inputs, previous_logits)
        logits = (
            own.unsqueeze(1)
            if previous_logits is None
            else torch.cat([previous_logits, own.unsqueeze(1)], 1)
        )
        logs = logits.log_softmax(2)
        ensemble = (self.weights.exp().view(-1, 1) * logs).mean(1) + self.bias
        return torch.cat([own, torch.where(self.ensembles, ensemble, own)], 1)

    def own(self, inputs: Tensor, previous_logits: Tensor | None) -> Tensor:
        """Return the logits of this head alone (B, m).

        Args:
            inputs: the neck's vectors (B, n).
            previous_logits: of the heads before (B, position, m); None at the first exit.
        """
        logits: Tensor = self.linear(inputs)
        return logits

    def classify(self, hidden: Tensor) -> Tensor:
        return hidden[:, self.site.num_classes :]

    def passed_logits(self, hidden: Tensor) -> Tensor:
        return hidden[:, : self.site.num_classes]

    def classifier_parameters(self) -> list[nn.Parameter]:
        excluded = {id(self.weights), id(self.bias)}
        return [parameter for parameter in self.parameters() if id(parameter) not in excluded]

    def ensemble_parameters(self) -> list[nn.Parameter]:
        return [self.weights, self.bias]

    def begin_phase(self, group: str) -> None:
        if group in ("classifiers", "ensembles"):
            self.ensembles.fill_(group == "ensembles")


@register_head("cascade")
class CascadeHead(EnsembleHead):
    """Cascaded head with a geometric ensemble (Zero Time Waste, Wołczyk et al. 2021).

    zᵢ = W·x + V·zᵢ₋₁, with zᵢ₋₁ detached, and the ensembles of `EnsembleHead`.
    """

    def __init__(self, site: ExitSite, width: int) -> None:
        super().__init__(site, width)
        if site.position:
            self.before = nn.Linear(site.num_classes, site.num_classes, bias=False)
            nn.init.zeros_(self.before.weight)

    def own(self, inputs: Tensor, previous_logits: Tensor | None) -> Tensor:
        logits = super().own(inputs, previous_logits)
        if previous_logits is not None:
            logits = logits + self.before(self.normalized(previous_logits[:, -1]))
        return logits

    def normalized(self, previous_logits: Tensor) -> Tensor:
        """Return what V is applied to, from the logits of the head before (B, m)."""
        return previous_logits


@register_head("cascade-norm")
class NormCascadeHead(CascadeHead):
    """`CascadeHead` with a LayerNorm on the logits of the head before, as in the authors' code."""

    def __init__(self, site: ExitSite, width: int) -> None:
        super().__init__(site, width)
        if site.position:
            self.norm = nn.LayerNorm(site.num_classes)

    def normalized(self, previous_logits: Tensor) -> Tensor:
        normalized: Tensor = self.norm(previous_logits)
        return normalized


@register_head("additive")
class AdditiveHead(Head):
    """Additive head (BoostNet, Yu et al. 2023): zᵢ = W·x + zᵢ₋₁, with zᵢ₋₁ detached.

    Each head fits the residual of the earlier ones, as in gradient boosting.

    Attributes:
        previous_weight: factor of zᵢ₋₁.
    """

    reads_previous_logits = True
    previous_weight: ClassVar[float] = 1.0

    def __init__(self, site: ExitSite, width: int) -> None:
        super().__init__(site, width)
        self.linear = nn.Linear(width, site.num_classes)

    def forward(self, inputs: Tensor, previous_logits: Tensor | None) -> Tensor:
        logits: Tensor = self.linear(inputs)
        if previous_logits is None:
            return logits
        return logits + self.previous_weight * previous_logits[:, -1].detach()


@register_head("additive-half")
class HalfAdditiveHead(AdditiveHead):
    """`AdditiveHead` with ½·zᵢ₋₁, the `ensemble_reweight` of the authors' experiments."""

    previous_weight: ClassVar[float] = 0.5


@register_head("means")
class MeansHead(Head):
    """Distance to the mean feature of each class (E2CM, Görmez et al. 2022); without parameters.

    zᵢ[k] = −‖x − μₖ‖² / s, with s the mean of ‖x − μ_y‖² over training images. The paper does not
    specify the normalisation of distances; with s, the mean distance to the own class is 1.

    Attributes:
        means: μ (classes, width).
        spread: s, a scalar.
    """

    means: Tensor
    spread: Tensor

    def __init__(self, site: ExitSite, width: int) -> None:
        super().__init__(site, width)
        self.register_buffer("means", torch.zeros(site.num_classes, width))
        self.register_buffer("spread", torch.ones(()))
        self._sums: Tensor | None = None

    def forward(self, inputs: Tensor, previous_logits: Tensor | None) -> Tensor:
        return self.negative_squares(inputs) / self.spread

    def negative_squares(self, inputs: Tensor) -> Tensor:
        """Return −‖x − μₖ‖² (B, classes)."""
        # ‖x‖² is equal for all classes, but distances are also compared between exits.
        squares = (inputs * inputs).sum(1, keepdim=True) + (self.means * self.means).sum(1)
        return (2 * inputs @ self.means.T - squares).clamp(max=0)

    def begin_phase(self, group: str) -> None:
        if group == "means":
            classes, width = self.means.shape
            self._sums = self.means.new_zeros(classes, width + 2, dtype=torch.float64)

    @torch.no_grad()
    def accumulate_class_means(self, labels: Tensor, inputs: Tensor) -> None:
        """Add a batch to the sums behind the class means.

        Args:
            labels: class indices (B,).
            inputs: the neck's vectors (B, width).
        """
        assert self._sums is not None
        values = inputs.double()
        ones = values.new_ones(len(values), 1)
        squares = (values * values).sum(1, keepdim=True)
        self._sums.index_add_(0, labels, torch.cat([values, ones, squares], 1))

    @torch.no_grad()
    def finish_class_means(self, sum_over_processes: Callable[[Tensor], Tensor]) -> None:
        """Set the class means from the sums of all batches.

        Args:
            sum_over_processes: returns the sum of a tensor over all processes.

        Raises:
            InputError: a class has no image.
        """
        assert self._sums is not None
        sums, counts, squares = sum_over_processes(self._sums).split([self.width, 1, 1], 1)
        self._sums = None
        if not bool((counts > 0).all()):
            absent = int((counts == 0).nonzero()[0, 0])
            raise InputError(
                f"Class {absent} has no training image, hence no mean: head 'means' needs images "
                f"of all {len(counts)} classes."
            )
        means = sums / counts
        self.means.copy_(means)
        # Σ‖x − μ_k‖² over the images of class k = Σ‖x‖² − n_k·‖μ_k‖².
        scatter = squares.squeeze(1) - (counts * means * means).sum(1)
        self.set_spread(scatter, counts.squeeze(1))

    def set_spread(self, scatter: Tensor, counts: Tensor) -> None:
        """Set the normalisation of distances.

        Args:
            scatter: for each class the sum of ‖x − μₖ‖² over its training images (classes,).
            counts: number of training images of each class (classes,).
        """
        spread = scatter.sum() / counts.sum()
        self.spread.copy_(torch.where(spread > 0, spread, 1))


@register_head("means-euclidean")
class EuclideanMeansHead(MeansHead):
    """Euclidean distances to class means, normalised for each class and exit (E2CM).

    zᵢ[k] = −‖x − μₖ‖ / sₖ, with sₖ the root mean square distance of the training images of class k
    to their mean.

    Attributes:
        spread: s (classes,).
    """

    def __init__(self, site: ExitSite, width: int) -> None:
        super().__init__(site, width)
        self.spread = torch.ones(site.num_classes)

    def forward(self, inputs: Tensor, previous_logits: Tensor | None) -> Tensor:
        return -(-self.negative_squares(inputs)).sqrt() / self.spread

    def set_spread(self, scatter: Tensor, counts: Tensor) -> None:
        spread = (scatter / counts).clamp(min=0).sqrt()
        self.spread.copy_(torch.where(spread > 0, spread, 1))
