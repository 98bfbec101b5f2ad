"""Solvers that compare predictions with classes: a threshold for each exit, and learned scores."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from leenet_fx.calibration.budgets import monotone_costs
from leenet_fx.calibration.cached_outputs import CachedOutputs, confidences
from leenet_fx.calibration.per_exit import per_exit
from leenet_fx.calibration.risk_control import budget_path, path_budgets
from leenet_fx.calibration.scheduler import fit_scheduler
from leenet_fx.calibration.solvers import list_solvers
from leenet_fx.calibration.temperature import tempered
from leenet_fx.errors import InputError
from leenet_fx.policies import MaxProbability, ThresholdPolicy
from leenet_fx.policies.counting import CountingPolicy
from leenet_fx.registry import unknown_name
from leenet_fx.surgery.module import EarlyExitModule

SEARCHED = ("per-exit", "eenet")
"""Solvers that read classes: those of the labels, or without labels the backbone's predictions."""

SCHEDULED_SAMPLES = 20_000
"""Number of samples from which EENet's scheduler is fitted at most."""

PATH_STEPS = 20
"""Number of budgets that thresholds of each exit are searched for, for a path."""


def check_solver(name: str, policy: ThresholdPolicy) -> None:
    """Check that a solver exists and suits a policy.

    Raises:
        UnknownNameError: no such solver.
        InputError: "per-exit" for a policy that counts exits.
    """
    known = [*list_solvers(), *SEARCHED]
    if name not in known:
        raise unknown_name("solver", name, known)
    if name == "per-exit" and isinstance(policy, CountingPolicy):
        raise InputError(
            f"The solver 'per-exit' searches for confidences, but {policy!r} counts exits: use "
            "solver='common'."
        )


@dataclass(frozen=True)
class Problem:
    """What a searched solver needs.

    Attributes:
        ee: the network.
        policy: its policy.
        outputs: of n samples.
        cost: name of the cost.
    """

    ee: EarlyExitModule
    policy: ThresholdPolicy
    outputs: CachedOutputs
    cost: str

    def select(self, indices: Tensor, temperatures: bool) -> Problem:
        """Return the problem on some of the samples, to which temperatures may be fitted."""
        outputs = self.outputs.select(indices)
        policy = tempered(self.policy, outputs) if temperatures else self.policy
        return replace(self, policy=policy, outputs=outputs)

    def classes(self) -> CachedOutputs:
        """Return the outputs with the backbone's predictions as labels, unless all have labels."""
        labels, final = self.outputs.labels, self.outputs.logits[-1].argmax(1)
        if bool((labels >= 0).all()):
            return self.outputs
        return CachedOutputs(self.outputs.logits, self.outputs.gate_inputs, final)

    def errors(self) -> Tensor:
        """Return (n, N+1): 1 where the prediction of an exit is not the class, else 0."""
        outputs = self.classes()
        wrong = [values.argmax(1) != outputs.labels for values in outputs.logits]
        return torch.stack(wrong, 1).double()


def searched_budget(
    solver: str, problem: Problem, budget: float, generator: torch.Generator
) -> tuple[ThresholdPolicy, list[float]]:
    """Return a policy and confidence thresholds whose mean cost is within a budget.

    Args:
        solver: one of `SEARCHED`.
        problem: with samples on which exits were not trained.
        budget: highest mean relative cost.
        generator: of folds, or of the initial weights of the scheduler.

    Raises:
        InputError: a budget out of reach, or one class.
    """
    if solver == "eenet":
        policy = _scheduled(problem, budget, generator)
        return policy, list(policy.thresholds)
    scores = confidences(problem.ee, problem.policy, problem.outputs)
    costs = monotone_costs(problem.ee, problem.cost, problem.policy)
    found = per_exit(scores, problem.errors(), costs, budget, generator=generator)
    return problem.policy, found


def searched_path(
    solver: str, problem: Problem, generator: torch.Generator
) -> tuple[ThresholdPolicy, list[list[float]]]:
    """Return a policy and thresholds for decreasing budgets, as `budget_path`.

    The scheduler is fitted for the middle of the costs, and has one threshold for all its scores.

    Args:
        solver: one of `SEARCHED`.
        problem: with samples that are *not* among those that a bound is computed from.
        generator: as for `searched_budget`.

    Raises:
        InputError: only one class.
    """
    if solver == "eenet":
        costs = monotone_costs(problem.ee, problem.cost, MaxProbability(1.0))
        policy = _scheduled(problem, (costs[0] + costs[-1]) / 2, generator)
        return policy, budget_path(confidences(problem.ee, policy, problem.outputs), costs)
    costs = monotone_costs(problem.ee, problem.cost, problem.policy)
    scores = confidences(problem.ee, problem.policy, problem.outputs)
    errors = problem.errors()
    found = [
        tuple(per_exit(scores, errors, costs, budget, generator=generator))
        for budget in path_budgets(costs, PATH_STEPS)
    ]
    return problem.policy, [list(thresholds) for thresholds in dict.fromkeys(found)]


def _scheduled(problem: Problem, budget: float, generator: torch.Generator) -> ThresholdPolicy:
    """Return EENet's scores and thresholds, fitted for a budget."""
    # The scores read class logits, so gates do not save the cost of heads.
    costs = monotone_costs(problem.ee, problem.cost, MaxProbability(1.0))
    outputs = problem.classes()
    samples = len(outputs.labels)
    if samples > SCHEDULED_SAMPLES:
        chosen = torch.randperm(samples, generator=generator)[:SCHEDULED_SAMPLES]
        outputs = outputs.select(chosen)
    return fit_scheduler(outputs, costs, budget, generator=generator).policy()
