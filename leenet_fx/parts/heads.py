"""Heads: from a body's vector to class logits, for all samples that arrive."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from leenet_fx.errors import InputError
from leenet_fx.parts.exit_site import ExitSite
from leenet_fx.registry import Registry


class Head(nn.Module, ABC):
    """A body's vector, and what earlier exits said, → a state; the answer is read from it.

    Attributes:
        reads_earlier: whether it needs what earlier exits said.
    """

    reads_previous_logits = False

    def __init__(self, site: ExitSite, width: int) -> None:
        super().__init__()
        self.site = site
        self.width = width

    @abstractmethod
    def forward(self, inputs: Tensor, previous_logits: Tensor | None) -> Tensor:
        """The state.

        Args:
            inputs: (B, n).
            earlier: (B, position, m) what earlier heads `said`; None at the first exit, or where
                `reads_earlier` is false.

        Returns:
            (B, k).
        """

    def classify(self, hidden: Tensor) -> Tensor:
        """(B, k) → class logits (B, m)."""
        return hidden

    def passed_logits(self, hidden: Tensor) -> Tensor:
        """(B, k) → what later exits are told (B, m)."""
        return hidden

    def begin_phase(self, group: str) -> None:
        """Told before a step which group it trains; optional."""

    def classifier_parameters(self) -> list[nn.Parameter]:
        """Parameters trained by the classifiers' objective."""
        return list(self.parameters())

    def ensemble_parameters(self) -> list[nn.Parameter]:
        """Parameters trained once classifiers are."""
        return []


_heads: Registry[type[Head]] = Registry("head", "leenet_fx.heads")
register_head = _heads.register
list_heads = _heads.names
get_head = _heads.get


@register_head("linear")
class LinearHead(Head):
    """One linear map."""

    def __init__(self, site: ExitSite, width: int) -> None:
        super().__init__(site, width)
        self.linear = nn.Linear(width, site.num_classes)

    def forward(self, inputs: Tensor, previous_logits: Tensor | None) -> Tensor:
        logits: Tensor = self.linear(inputs)
        return logits


@register_head("cascade")
class CascadeHead(Head):
    """Zero Time Waste (Wołczyk et al. 2021): a head that sees the one before, and an ensemble.

    zᵢ = W·x + V·zᵢ₋₁, with zᵢ₋₁ detached. Once the heads are trained, exit i answers with the
    geometric ensemble log qᵢ = (1/(i+1)) Σ_{j≤i} e^{w_j}·log p_j + b, whose w and b are trained on
    the heads as they are.
    """

    reads_previous_logits = True
    ensembles: Tensor

    def __init__(self, site: ExitSite, width: int) -> None:
        super().__init__(site, width)
        classes = site.num_classes
        self.linear = nn.Linear(width, classes)
        if site.position:
            self.before = nn.Linear(classes, classes, bias=False)
            nn.init.zeros_(self.before.weight)
        self.weights = nn.Parameter(torch.zeros(site.position + 1))
        self.bias = nn.Parameter(torch.zeros(classes))
        self.register_buffer("ensembles", torch.zeros((), dtype=torch.bool))

    def forward(self, inputs: Tensor, previous_logits: Tensor | None) -> Tensor:
        own: Tensor = self.linear(inputs)
        if previous_logits is not None:
            previous_logits = previous_logits.detach()
            own = own + self.before(previous_logits[:, -1])
        heard = (
            own.unsqueeze(1)
            if previous_logits is None
            else torch.cat([previous_logits, own.unsqueeze(1)], 1)
        )
        logs = heard.log_softmax(2)
        mixed = (self.weights.exp().view(-1, 1) * logs).mean(1) + self.bias
        return torch.cat([own, torch.where(self.ensembles, mixed, own)], 1)

    def classify(self, hidden: Tensor) -> Tensor:
        return hidden[:, self.site.num_classes :]

    def passed_logits(self, hidden: Tensor) -> Tensor:
        return hidden[:, : self.site.num_classes]

    def classifier_parameters(self) -> list[nn.Parameter]:
        held = {id(self.weights), id(self.bias)}
        return [parameter for parameter in self.parameters() if id(parameter) not in held]

    def ensemble_parameters(self) -> list[nn.Parameter]:
        return [self.weights, self.bias]

    def begin_phase(self, group: str) -> None:
        if group in ("classifiers", "ensembles"):
            self.ensembles.fill_(group == "ensembles")


@register_head("additive")
class AdditiveHead(Head):
    """BoostNet (Yu et al. 2023): zᵢ = W·x + zᵢ₋₁, with zᵢ₋₁ detached.

    Each head learns what the ones before it leave over, as in gradient boosting.
    """

    reads_previous_logits = True

    def __init__(self, site: ExitSite, width: int) -> None:
        super().__init__(site, width)
        self.linear = nn.Linear(width, site.num_classes)

    def forward(self, inputs: Tensor, previous_logits: Tensor | None) -> Tensor:
        logits: Tensor = self.linear(inputs)
        return logits if previous_logits is None else logits + previous_logits[:, -1].detach()


@register_head("means")
class MeansHead(Head):
    """E2CM (Görmez et al. 2022): distance to each class's mean feature; nothing is trained.

    zᵢ[k] = −‖x − μₖ‖² / s, with s the mean of ‖x − μ_y‖² over training images. The paper does not
    say by what distances are normalised; s makes the typical one 1.
    """

    means: Tensor
    spread: Tensor

    def __init__(self, site: ExitSite, width: int) -> None:
        super().__init__(site, width)
        self.register_buffer("means", torch.zeros(site.num_classes, width))
        self.register_buffer("spread", torch.ones(()))
        self._sums: Tensor | None = None

    def forward(self, inputs: Tensor, previous_logits: Tensor | None) -> Tensor:
        # ‖x‖² is the same for all classes, but distances are compared between exits too.
        squares = (inputs * inputs).sum(1, keepdim=True) + (self.means * self.means).sum(1)
        return (2 * inputs @ self.means.T - squares).clamp(max=0) / self.spread

    def begin_phase(self, group: str) -> None:
        if group == "means":
            classes, width = self.means.shape
            self._sums = self.means.new_zeros(classes, width + 2, dtype=torch.float64)

    @torch.no_grad()
    def count(self, inputs: Tensor, labels: Tensor) -> None:
        """Takes a batch into account.

        Args:
            inputs: (B, width).
            labels: (B,) class indices.
        """
        assert self._sums is not None
        values = inputs.double()
        ones = values.new_ones(len(values), 1)
        squares = (values * values).sum(1, keepdim=True)
        self._sums.index_add_(0, labels, torch.cat([values, ones, squares], 1))

    @torch.no_grad()
    def counted(self, summed: Callable[[Tensor], Tensor]) -> None:
        """Sets the means by all batches.

        Args:
            summed: sums a tensor over processes.

        Raises:
            InputError: a class has no image.
        """
        assert self._sums is not None
        sums, counts, squares = summed(self._sums).split([self.width, 1, 1], 1)
        self._sums = None
        if not bool((counts > 0).all()):
            absent = int((counts == 0).nonzero()[0, 0])
            raise InputError(
                f"Class {absent} has no training image, so it has no mean: head 'means' needs all "
                f"{len(counts)} classes."
            )
        means = sums / counts
        self.means.copy_(means)
        # Σ‖x − μ_y‖² = Σ‖x‖² − Σ_k n_k·‖μ_k‖².
        apart = (squares.sum() - (counts * means * means).sum()) / counts.sum()
        self.spread.copy_(torch.where(apart > 0, apart, 1))
