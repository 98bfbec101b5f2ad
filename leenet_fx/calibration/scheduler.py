"""EENet's scheduler: exit scores and exit shares that are learned for a budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leenet_fx.calibration.cached_outputs import CachedOutputs
from leenet_fx.calibration.solvers import exit_indices_at, mean_cost, share_thresholds
from leenet_fx.errors import InputError
from leenet_fx.policies.learned_score import LearnedScore, score_inputs

BISECTIONS = 40


class ExitScheduler(nn.Module):
    """Scores of how likely each exit is right, and an assignment of samples to exits.

    EENet (Ilhan et al. 2024). The input of exit k are its class probabilities p, max p, the
    normalised confidence 1 − H(p)/ln m, and the scores of the exits before it. The score q̂ₖ is
    linear in these, clamped to [0, 1]; the assignment rₖ is a small network of them, and
    P = softmaxₖ(r).

    Attributes:
        thresholds: N thresholds of the scores; a sample exits at the first exit whose score
            reaches its threshold. Set by `fit_scheduler`.

    Args:
        num_exits: N.
        classes: m ≥ 2.
        hidden: units of the hidden layer of an assignment network.
    """

    def __init__(self, num_exits: int, classes: int, hidden: int = 16) -> None:
        super().__init__()
        widths = [classes + 2 + k for k in range(num_exits + 1)]
        self.score_layers = nn.ModuleList(nn.Linear(width, 1) for width in widths)
        self.assignments = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 1))
            for width in widths
        )
        self.classes = classes
        self.thresholds: tuple[float, ...] = (math.inf,) * num_exits

    def reset(self, generator: torch.Generator) -> None:
        """Draw new weights; scores start as max p, which has a gradient within (0, 1)."""
        with torch.no_grad():
            for layer in self.modules():
                if isinstance(layer, nn.Linear):
                    limit = 1 / math.sqrt(layer.in_features)
                    layer.weight.uniform_(-limit, limit, generator=generator)
                    layer.bias.zero_()
            for layer in self.score_layers:
                assert isinstance(layer, nn.Linear)
                layer.weight.zero_()
                layer.weight[0, self.classes] = 1

    def forward(self, logits: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return scores q̂ (n, N+1) and assignment logits r (n, N+1).

        Args:
            logits: of the N exits and the final classifier, each (n, m).
        """
        scores: list[Tensor] = []
        assigned: list[Tensor] = []
        for values, score, assignment in zip(
            logits, self.score_layers, self.assignments, strict=True
        ):
            inputs = torch.cat([score_inputs(values), *scores], 1)
            scores.append(score(inputs).clamp(0, 1))
            assigned.append(assignment(inputs))
        return torch.cat(scores, 1), torch.cat(assigned, 1)

    @torch.no_grad()
    def scores(self, logits: Sequence[Tensor]) -> Tensor:
        """Return the scores of the N exits, the confidences that thresholds apply to, (n, N)."""
        scores: Tensor = self(logits)[0][:, :-1]
        return scores

    def policy(self) -> LearnedScore:
        """Return the scores and thresholds of the N exits as a policy."""
        layers = [cast(nn.Linear, layer) for layer in self.score_layers][:-1]
        return LearnedScore(
            [layer.weight[0].tolist() for layer in layers],
            [layer.bias.item() for layer in layers],
            self.thresholds,
        )

    def exit_indices(self, logits: Sequence[Tensor]) -> Tensor:
        """Return the exit index of each sample (n,) under the fitted thresholds."""
        return exit_indices_at(self.scores(logits), self.thresholds)


@torch.enable_grad()
def fit_scheduler(
    outputs: CachedOutputs,
    costs: Tensor | Sequence[float],
    budget: float,
    *,
    generator: torch.Generator,
    epochs: int = 300,
    lr: float = 0.01,
    agreement: float = 1.0,
    budget_weight: float = 10.0,
    sharpness: float = 4.0,
) -> ExitScheduler:
    """Fit EENet's scheduler on the outputs of any trained exits, for one budget.

    L = mean Σₖ Pₖ·BCE(q̂ₖ, correctₖ) + a·KL(P ‖ normalised q̂^β) + b·|E[c] − B|/B, over all exits
    and the final classifier, P without gradient in the first term. Exit k then receives its share
    ⌊P̄ₖ·n⌋ of the best-scored samples still inside; the shares are first tilted, P̄ₖ·exp(−μ·cₖ),
    by the least μ under which the mean cost on these samples is within the budget. Weights of the
    terms are not those of the paper, which chooses them for each data set.

    Args:
        outputs: of n samples with labels; exits must not have been trained on them.
        costs: (N+1,) relative cost of each exit and of the final classifier, non-decreasing.
        budget: B, highest mean relative cost.
        generator: draws the initial weights.
        epochs: number of steps of Adam on all samples.
        lr: learning rate.
        agreement: a.
        budget_weight: b.
        sharpness: β.

    Raises:
        InputError: labels are missing, there is only one class, or the budget is below the first
            exit's cost.
    """
    prices = torch.as_tensor(costs, dtype=torch.float64)
    exits, classes = len(outputs.logits) - 1, outputs.logits[-1].shape[1]
    _check(outputs, prices, budget)
    logits = [values.detach() for values in outputs.logits]
    # Layers draw weights from the global generator before `reset` replaces them.
    with torch.random.fork_rng(devices=[]):
        scheduler = ExitScheduler(exits, classes)
    scheduler.reset(generator)
    scheduler.to(logits[0].device)
    correct = torch.stack([values.argmax(1) == outputs.labels for values in logits], 1).float()
    optimizer = torch.optim.Adam(scheduler.parameters(), lr=lr)
    weights = prices.float().to(correct.device)
    reachable = min(budget, float(prices[-1]))
    for _ in range(epochs):
        scores, assigned = scheduler(logits)
        log_p = assigned.log_softmax(1)
        p = log_p.exp()
        errors = F.binary_cross_entropy(scores, correct, reduction="none")
        # Scores of exactly 0 have no logarithm.
        target = (sharpness * scores.clamp(min=1e-6).log()).log_softmax(1)
        divergence = (p * (log_p - target)).sum(1).mean()
        spent = (p.mean(0) * weights).sum()
        loss = (p.detach() * errors).sum(1).mean() + agreement * divergence
        loss = loss + budget_weight * (spent - reachable).abs() / reachable
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    scheduler.requires_grad_(False)
    with torch.no_grad():
        scores, assigned = scheduler(logits)
    shares = assigned.double().softmax(1).mean(0).cpu()
    scheduler.thresholds = _thresholds_within(scores[:, :-1], shares, prices, budget)
    return scheduler


def _thresholds_within(
    scores: Tensor, shares: Tensor, prices: Tensor, budget: float
) -> tuple[float, ...]:
    """Return thresholds for the shares, tilted towards cheap exits until they meet the budget."""
    samples = len(scores)

    def at(tilt: float) -> list[float]:
        tilted = (shares.log() - tilt * prices).softmax(0)
        # All samples of the last share exit at the first exit if the tilt is large enough.
        counts = [math.floor(samples * share + 1e-9) for share in tilted[:-1].tolist()]
        return share_thresholds(scores, counts)

    def affordable(thresholds: list[float]) -> bool:
        return mean_cost(exit_indices_at(scores, thresholds), prices) <= budget

    low, high = 0.0, 1.0
    if affordable(at(low)):
        return tuple(at(low))
    while not affordable(at(high)):
        low, high = high, 2 * high
        if high > 1e6 / float(prices.abs().max()):
            # The first exit alone costs the budget, or several exits cost as little as the first.
            return (float(scores[:, 0].min()), *[math.inf] * (scores.shape[1] - 1))
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if affordable(at(middle)) else (middle, high)
    return tuple(at(high))


def _check(outputs: CachedOutputs, prices: Tensor, budget: float) -> None:
    classes = outputs.logits[-1].shape[1]
    if classes < 2:
        raise InputError("EENet's scheduler needs at least 2 classes: with one, no exit is wrong.")
    invalid = int(((outputs.labels < 0) | (outputs.labels >= classes)).sum())
    if invalid or not len(outputs.labels):
        raise InputError(
            f"EENet's scheduler needs samples with class indices 0 to {classes - 1}; {invalid} of "
            f"{len(outputs.labels)} have none: pass labelled images."
        )
    if prices.shape != (len(outputs.logits),) or not bool((prices.diff() >= 0).all()):
        raise InputError(
            f"Expected {len(outputs.logits)} costs that do not decrease, got {prices.tolist()}."
        )
    if not float(prices[0]) <= budget < math.inf or budget <= 0:
        raise InputError(
            f"The budget is {budget!r}, but a mean cost can only lie between {float(prices[0])!r}, "
            f"all at the first exit, and {float(prices[-1])!r}, all at the final classifier."
        )
