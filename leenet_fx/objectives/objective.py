"""Objectives: what training minimises.

Notation. N exits stand in front of the final classifier, index i = 0..N−1; the final classifier
has index N, and all N+1 are outlets. At outlet i, pᵢ = softmax(ŷᵢ), CEᵢ = −log pᵢ[y], and cᵢ is the
cost of leaving there. gᵢ = sigmoid(zᵢ) is the probability that the gate opens, g_N = 1, and
qᵢ = gᵢ · Π_{j<i}(1−gⱼ) the probability that a sample leaves at i. A mixture is what a sample
that reaches i gets on average: Ŷᵢ = gᵢ·pᵢ + (1−gᵢ)·Ŷᵢ₊₁, Ŷ_N = p_N, and Cᵢ likewise over costs.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from leenet_fx.errors import InputError
from leenet_fx.registry import Registry


def exit_losses(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Cross-entropy of each sample at each exit.

    Args:
        logits: N+1 tensors (B, classes).
        labels: (B,) class indices.

    Returns:
        (B, N+1).
    """
    return torch.stack([F.cross_entropy(at, labels, reduction="none") for at in logits], 1)


def exit_log_probabilities(gate_logits: Tensor) -> Tensor:
    """log qᵢ, the log probability that a sample leaves at i: qᵢ = gᵢ · Π_{j<i}(1−gⱼ), g_N = 1.

    Computed from the gate logits without forming g, so it is exact at g → 0 and g → 1.

    Args:
        gates: gate logits (B, N).

    Returns:
        (B, N+1).
    """
    opens = F.pad(F.logsigmoid(gate_logits), (0, 1))
    passes = F.pad(F.logsigmoid(-gate_logits).cumsum(1), (1, 0))
    return opens + passes


def mixture_log_probabilities(logits: Sequence[Tensor], gate_logits: Tensor) -> Tensor:
    """log Ŷᵢ, class by class: Ŷᵢ = gᵢ·pᵢ + (1−gᵢ)·Ŷᵢ₊₁, Ŷ_N = p_N.

    At i = 0 this is the soft output of differentiable branching (Scardapane et al. 2020).
    Computed in log space, so it is exact at g → 0 and g → 1.

    Args:
        logits: N+1 tensors (B, classes).
        gates: gate logits (B, N).

    Returns:
        (B, N+1, classes).
    """
    log_p = [at.log_softmax(1) for at in logits]
    opens, passes = F.logsigmoid(gate_logits).unsqueeze(2), F.logsigmoid(-gate_logits).unsqueeze(2)
    mixed = log_p[-1:]
    for i in reversed(range(gate_logits.shape[1])):
        mixed.append(torch.logaddexp(opens[:, i] + log_p[i], passes[:, i] + mixed[-1]))
    return torch.stack(mixed[::-1], 1)


def soft_probabilities(logits: Sequence[Tensor], gate_logits: Tensor) -> Tensor:
    """f̃₀ = Σ qᵢ·pᵢ, all outlets as one ensemble (Scardapane et al. 2020); costs the whole network.

    Args:
        logits: N+1 tensors (B, classes), as `ee.all_exits(images).logits`.
        gates: gate logits (B, N), as `ee.all_exits(images).gate_logits`.

    Returns:
        (B, classes).
    """
    return mixture_log_probabilities(logits, gate_logits)[:, 0].exp()


def mixture_costs(gate_logits: Tensor, costs: Tensor) -> Tensor:
    """Cᵢ, the cost a sample that reaches i is expected to have had when it leaves.

    Cᵢ = gᵢ·cᵢ + (1−gᵢ)·Cᵢ₊₁, C_N = c_N.

    Args:
        gates: gate logits (B, N).
        costs: relative cost of leaving at each outlet (N+1,).

    Returns:
        (B, N+1).
    """
    opens = gate_logits.sigmoid()
    mixed = [costs[-1].expand(gate_logits.shape[0])]
    for i in reversed(range(gate_logits.shape[1])):
        mixed.append(opens[:, i] * costs[i] + (1 - opens[:, i]) * mixed[-1])
    return torch.stack(mixed[::-1], 1)


def leenet_loss(
    losses: Tensor, gate_logits: Tensor, costs: Tensor, alpha: float | Tensor
) -> Tensor:
    """L = (1−α) · mean Σᵢ qᵢ·CEᵢ + α · mean Σᵢ qᵢ·cᵢ, sums over i = 0..N (LEENet).

    The published formula leaves the final classifier out of the first sum; it is included here, for
    without it never leaving costs no error.

    Args:
        losses: CE of each sample at each exit (B, N+1).
        gates: gate logits (B, N).
        costs: relative cost of leaving at each exit (N+1,).
        alpha: weight of the cost, in [0, 1]; or one for each sample (B,).

    Returns:
        A scalar.
    """
    if isinstance(alpha, Tensor):
        alpha = alpha.reshape(-1, 1)
    per_exit = (1 - alpha) * losses + alpha * costs
    return (exit_log_probabilities(gate_logits).exp() * per_exit).sum(1).mean()


@dataclass(frozen=True)
class BatchOutputs:
    """What an objective sees of a batch.

    Attributes:
        logits: class logits at each outlet, N+1 tensors (B, classes), the final classifier's last;
            detached where the classifiers are not trained.
        gates: gate logits z, before the sigmoid (B, N).
        labels: class indices (B,).
        costs: cost of leaving at each outlet, relative to the plain model (N+1,); may exceed 1.
        weight: α or λ, the weight of the cost; or one for each sample (B,).
        progress: share of the epochs that are over, for weights that change.
    """

    logits: tuple[Tensor, ...]
    gate_logits: Tensor
    labels: Tensor
    costs: Tensor
    weight: float | Tensor
    progress: float = 1.0

    @property
    def weights(self) -> float | Tensor:
        """The weight of the cost, (B, 1) where samples have their own."""
        return self.weight.reshape(-1, 1) if isinstance(self.weight, Tensor) else self.weight

    @cached_property
    def losses(self) -> Tensor:
        """CEᵢ of each sample at each outlet (B, N+1)."""
        return exit_losses(self.logits, self.labels)


class Objective(ABC):
    """Makes one number, to be minimised, of what a network with exits answers for a batch.

    Attributes:
        name: its registered name.
        uses: what it reads besides logits and costs; gates that are not used need not run.
        reads_final: whether it needs the final classifier's logits; if not, they may be absent.
    """

    name: ClassVar[str]
    uses: ClassVar[frozenset[Literal["labels", "gates"]]] = frozenset({"labels"})
    reads_final: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, outputs: BatchOutputs) -> Tensor:
        """The loss, a scalar; a mean over the samples of the batch."""


_objectives: Registry[type[Objective]] = Registry("objective", "leenet_fx.objectives")
register_objective = _objectives.register
list_objectives = _objectives.names
get_objective = _objectives.get


@register_objective("exits")
@dataclass(frozen=True)
class SumOfExits(Objective):
    """Σ_{i<N} mean CEᵢ. Exits share no parameter, so each is trained as if alone (LEENet)."""

    name = "exits"
    reads_final = False

    def __call__(self, outputs: BatchOutputs) -> Tensor:
        exits = outputs.logits[: outputs.gate_logits.shape[1]]
        return exit_losses(exits, outputs.labels).mean(0).sum()


@register_objective("final")
@dataclass(frozen=True)
class FinalClassifier(Objective):
    """mean CE_N: the final classifier alone, as in a plain model."""

    name = "final"

    def __call__(self, outputs: BatchOutputs) -> Tensor:
        return outputs.losses[:, -1].mean()


@register_objective("leenet")
@dataclass(frozen=True)
class LEENet(Objective):
    """(1−α) · mean Σᵢ qᵢ·CEᵢ + α · mean Σᵢ qᵢ·cᵢ, sums over i = 0..N (LEENet).

    `BatchOutputs.weight` is α, in [0, 1]. See `leenet_loss`.
    """

    name = "leenet"
    uses = frozenset({"labels", "gates"})

    def __call__(self, outputs: BatchOutputs) -> Tensor:
        return leenet_loss(outputs.losses, outputs.gate_logits, outputs.costs, outputs.weight)


@register_objective("branchynet")
@dataclass(frozen=True)
class BranchyNet(Objective):
    """Σᵢ wᵢ · mean CEᵢ over i = 0..N (BranchyNet, Teerapittayanon et al. 2016).

    Attributes:
        weights: wᵢ ≥ 0, one for each outlet. None: 1 for each exit and 0.3 for the final
            classifier, which the paper found 1 point better than equal weights.
    """

    name = "branchynet"
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.weights is None:
            return
        fits = isinstance(self.weights, (tuple, list)) and all(
            _is_finite(weight) and weight >= 0 for weight in self.weights
        )
        _require(fits, "weights", "numbers ≥ 0, one for each outlet, or None", self.weights)
        # Options that come from a file are lists, and a frozen dataclass must hash.
        object.__setattr__(self, "weights", tuple(self.weights))

    def __call__(self, outputs: BatchOutputs) -> Tensor:
        outlets = len(outputs.logits)
        weights = (1.0,) * (outlets - 1) + (0.3,) if self.weights is None else self.weights
        if len(weights) != outlets:
            raise InputError(
                f"BranchyNet has {len(weights)} weights, but the network has {outlets} outlets: "
                f"{outlets - 1} exits and the final classifier; give one weight for each."
            )
        return (outputs.losses.new_tensor(weights) * outputs.losses.mean(0)).sum()


@register_objective("shallow-deep")
@dataclass(frozen=True)
class ShallowDeep(Objective):
    """Σ_{i<N} τᵢ · mean CEᵢ + mean CE_N (Shallow-Deep Networks, Kaya et al. 2019).

    τᵢ = 0.01 + `BatchOutputs.progress` · (min(cᵢ, 1) − 0.01): from next to nothing, so that early exits
    do not disturb the backbone at first, to the exit's relative cost.
    """

    name = "shallow-deep"

    def __call__(self, outputs: BatchOutputs) -> Tensor:
        tau = 0.01 + outputs.progress * (outputs.costs[:-1].clamp(max=1) - 0.01)
        losses = outputs.losses.mean(0)
        return (tau * losses[:-1]).sum() + losses[-1]


@register_objective("pabee")
@dataclass(frozen=True)
class PABEE(Objective):
    """Σᵢ (i+1) · mean CEᵢ / Σᵢ (i+1) over i = 0..N (PABEE, Zhou et al. 2020)."""

    name = "pabee"

    def __call__(self, outputs: BatchOutputs) -> Tensor:
        losses = outputs.losses.mean(0)
        depth = torch.arange(1, len(losses) + 1, device=losses.device)
        return (depth * losses).sum() / depth.sum()


@register_objective("diffbranch")
@dataclass(frozen=True)
class DifferentiableBranching(Objective):
    """mean CE(Ŷ₀) + λ · mean C₀ (differentiable branching, Scardapane et al. 2020).

    The paper writes f̃₀ and γ̃₀ for the mixtures Ŷ₀ and C₀. `BatchOutputs.weight` is λ.
    """

    name = "diffbranch"
    uses = frozenset({"labels", "gates"})

    def __call__(self, outputs: BatchOutputs) -> Tensor:
        return _mixture_losses(outputs)[:, 0].mean()


@register_objective("eenets")
@dataclass(frozen=True)
class EENets(Objective):
    """The five losses of EENets (Demir & Akbas 2024), where hᵢ is gᵢ and `BatchOutputs.weight` is λ.

    - v0: Σᵢ CEᵢ over i = 0..N, the first of two stages.
    - v1: CE(Ŷ₀) + λ·C₀, the second.
    - v2: Σᵢ [CE(Ŷᵢ) + λ·Cᵢ] over i = 0..N.
    - v3: Σᵢ (h̄ᵢ/Σh̄) · (CEᵢ + λ·cᵢ) over i = 0..N, with the batch means h̄ and h̄_N = 1.
    - v4: balanced BCE(h, tag) + CE_tag + λ·c_tag, where tag = argminᵢ(CEᵢ + λ·cᵢ) is the sample's
      best outlet, held constant.

    Balanced BCE is a sum over exits. At exit i, samples tagged i should leave and those tagged
    later should pass; those tagged earlier never get there and are left out (the authors' code lets
    them pass). Each of the two kinds has weight one half however rare it is; where only one kind is
    there, it has all the weight.

    Attributes:
        version: 0 to 4.
    """

    name = "eenets"
    uses = frozenset({"labels", "gates"})
    version: int = 1

    def __post_init__(self) -> None:
        fits = type(self.version) is int and 0 <= self.version <= 4
        _require(fits, "version", "an integer from 0 to 4", self.version)

    def __call__(self, outputs: BatchOutputs) -> Tensor:
        if self.version == 0:
            return outputs.losses.mean(0).sum()
        if self.version == 1:
            return _mixture_losses(outputs)[:, 0].mean()
        if self.version == 2:
            return _mixture_losses(outputs).mean(0).sum()
        if self.version == 3:
            means = F.pad(outputs.gate_logits.sigmoid().mean(0), (0, 1), value=1.0)
            return (means / means.sum() * _priced_losses(outputs).mean(0)).sum()
        tag = _best_outlet(outputs)
        tagged = _priced_losses(outputs).gather(1, tag.unsqueeze(1))
        return _balanced_bce(outputs.gate_logits, tag) + tagged.mean()


@register_objective("pteenet")
@dataclass(frozen=True)
class PTEEnet(Objective):
    """Σ_{i<N} mean [CE(Ŷᵢ) + λ·Cᵢ] (PTEEnet, Lahiany & Aperstein 2022).

    `BatchOutputs.weight` is λ. In the paper, labels are the arg-max of the final classifier.
    """

    name = "pteenet"
    uses = frozenset({"labels", "gates"})

    def __call__(self, outputs: BatchOutputs) -> Tensor:
        return _mixture_losses(outputs)[:, :-1].mean(0).sum()


@register_objective("jei-dnn-heads")
@dataclass(frozen=True)
class JEIDNNHeads(Objective):
    """mean Σᵢ Pᵢ·CEᵢ over i = 0..N, gates held constant (JEI-DNN, Regol et al. 2024).

    Pᵢ = max(0, min(gᵢ, 1 − Σ_{j<i} gⱼ)), and what is left goes to the final classifier. Here the
    gates' probabilities add up until they reach 1, unlike in qᵢ. The authors' code rescales each
    sample's weighted losses to the sum of the unweighted ones; the paper's formula, here, does not.
    """

    name = "jei-dnn-heads"
    uses = frozenset({"labels", "gates"})

    def __call__(self, outputs: BatchOutputs) -> Tensor:
        opens = outputs.gate_logits.detach().sigmoid()
        left = F.pad(1 - opens.cumsum(1), (1, 0), value=1.0)
        shares = torch.minimum(F.pad(opens, (0, 1), value=1.0), left).clamp(min=0)
        return (shares * outputs.losses).sum(1).mean()


@register_objective("jei-dnn-gates")
@dataclass(frozen=True)
class JEIDNNGates(Objective):
    """BCE of the gates, mean over samples and exits (JEI-DNN, Regol et al. 2024).

    A gate should open at a sample's best outlet, argminᵢ(CEᵢ + λ·cᵢ), and at all later exits. The
    losses are held constant; `BatchOutputs.weight` is λ. The authors' code also weights the targets that
    are 1 by the ratio of zeros to ones in the batch; here they count alike.
    """

    name = "jei-dnn-gates"
    uses = frozenset({"labels", "gates"})

    def __call__(self, outputs: BatchOutputs) -> Tensor:
        gate_logits = outputs.gate_logits
        exits = torch.arange(gate_logits.shape[1], device=gate_logits.device)
        target = (_best_outlet(outputs).unsqueeze(1) <= exits).to(gate_logits.dtype)
        return F.binary_cross_entropy_with_logits(gate_logits, target)


@register_objective("distillation")
@dataclass(frozen=True)
class Distillation(Objective):
    """Σ_{i<N} mean [(1−mix)·CEᵢ + mix·T²·KL(softmax(ŷ_N/T) ‖ softmax(ŷᵢ/T))].

    The final classifier teaches the exits and is held constant (Phuong & Lampert 2019; T² keeps the
    two gradients at the same scale, Hinton et al. 2015).

    Attributes:
        mix: share of the teacher, in [0, 1].
        temperature: T > 0.
    """

    name = "distillation"
    mix: float = 0.5
    temperature: float = 2.0

    def __post_init__(self) -> None:
        fits = _is_finite(self.mix) and 0 <= self.mix <= 1
        _require(fits, "mix", "a number in [0, 1]", self.mix)
        fits = _is_finite(self.temperature) and self.temperature > 0
        _require(fits, "temperature", "a number > 0", self.temperature)

    def __call__(self, outputs: BatchOutputs) -> Tensor:
        *exits, final = [(at / self.temperature).log_softmax(1) for at in outputs.logits]
        teacher = final.detach()
        divergence = torch.stack(
            [F.kl_div(at, teacher, reduction="batchmean", log_target=True) for at in exits]
        )
        losses = outputs.losses[:, :-1].mean(0)
        return ((1 - self.mix) * losses + self.mix * self.temperature**2 * divergence).sum()


@register_objective("boostnet")
@dataclass(frozen=True)
class BoostNet(Objective):
    """Σᵢ mean CEᵢ / (N+1−i) over i = 0..N (BoostNet, Yu et al. 2023).

    An outlet's loss, value and gradient, is divided by the number of outlets from it to the end, so
    that what is reported is what is minimised. In the authors' code the same factors act inside the
    backbone: a block gets the mean of the gradients of all outlets after it, and classifiers get
    theirs undivided. An objective sees only logits and cannot do that; on a frozen backbone, where
    outlets share nothing, the two differ in each classifier's step size alone.

    Logits are taken as additive already, each the branch's own plus the detached logits of the
    outlet before, for inference needs the sum too.
    """

    name = "boostnet"

    def __call__(self, outputs: BatchOutputs) -> Tensor:
        losses = outputs.losses.mean(0)
        to_the_end = torch.arange(len(losses), 0, -1, device=losses.device)
        return (losses / to_the_end).sum()


@register_objective("sum")
@dataclass(frozen=True)
class SumOfObjectives(Objective):
    """The sum of several objectives.

    Args:
        objectives: which.
    """

    objectives: tuple[Objective, ...] = ()

    name = "sum"

    def __post_init__(self) -> None:
        given = self.objectives
        fits = isinstance(given, tuple) and all(isinstance(one, Objective) for one in given)
        _require(fits and len(given) > 0, "objectives", "a tuple of objectives", given)

    def __call__(self, outputs: BatchOutputs) -> Tensor:
        return torch.stack([objective(outputs) for objective in self.objectives]).sum()


def _priced_losses(outputs: BatchOutputs) -> Tensor:
    """CEᵢ + λ·cᵢ of each sample at each outlet (B, N+1)."""
    return outputs.losses + outputs.weights * outputs.costs


def _mixture_losses(outputs: BatchOutputs) -> Tensor:
    """CE(Ŷᵢ) + λ·Cᵢ of each sample at each outlet (B, N+1)."""
    log_mixtures = mixture_log_probabilities(outputs.logits, outputs.gate_logits)
    labels = outputs.labels.view(-1, 1, 1).expand(-1, log_mixtures.shape[1], 1)
    losses = -log_mixtures.gather(2, labels).squeeze(2)
    return losses + outputs.weights * mixture_costs(outputs.gate_logits, outputs.costs)


def _best_outlet(outputs: BatchOutputs) -> Tensor:
    """argminᵢ(CEᵢ + λ·cᵢ) of each sample, the earliest of equals (B,)."""
    return _priced_losses(outputs).argmin(1)


def _balanced_bce(gate_logits: Tensor, tag: Tensor) -> Tensor:
    """Σ over exits of the mean over the two kinds of samples of their mean BCE; see `EENets`."""
    exits = torch.arange(gate_logits.shape[1], device=gate_logits.device)
    leave, stay = tag.unsqueeze(1) == exits, tag.unsqueeze(1) > exits
    of_leave = -(leave * F.logsigmoid(gate_logits)).sum(0) / leave.sum(0).clamp(min=1)
    of_stay = -(stay * F.logsigmoid(-gate_logits)).sum(0) / stay.sum(0).clamp(min=1)
    kinds = leave.any(0).int() + stay.any(0).int()
    return ((of_leave + of_stay) / kinds.clamp(min=1)).sum()


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _require(fits: bool, option: str, expected: str, given: object) -> None:
    if not fits:
        raise InputError(f"'{option}' must be {expected}, got {given!r}.")
