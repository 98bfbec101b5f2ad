"""Operating points: thresholds, and what is known about accuracy and cost under them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from leenet_fx.digest import weights_digest
from leenet_fx.policies import Policy, policy_from_dict


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval.

    Attributes:
        estimate: from the calibration samples.
        low: lower end.
        high: upper end.
    """

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.estimate:.4f} [{self.low:.4f}, {self.high:.4f}]"


@dataclass(frozen=True)
class ImageStatistics:
    """Moments of the final classifier's confidence, by which images are recognised in any order.

    Attributes:
        count: number of images.
        mean: of the confidence.
        mean_square: of the confidence.
    """

    count: int
    mean: float
    mean_square: float


@dataclass(frozen=True)
class OperatingPoint:
    """A policy with its thresholds, how they were chosen, and what to expect.

    Accuracies, drops and costs are fractions; costs are relative to the backbone. Intervals hold
    for one quantity each, at `level`; only the promise holds for the choice of thresholds too.

    Attributes:
        name: of the point.
        policy: name and options of the policy, thresholds included.
        target: what was asked for: "max_drop", "max_disagreement" or "budget".
        limit: the highest accepted drop or disagreement, or the budget.
        level: confidence level of the promise and of the intervals.
        promised: whether target and limit hold with probability `level` for new images of the
            distribution of the calibration images. False for budgets, and without early exits.
        bound: the drop or disagreement is at most this, if promised.
        samples: number of calibration images.
        samples_needed: number of images with which a first early exit would have been certified;
            None if one is, or if no number is enough.
        solver: name of the threshold solver.
        cost_kind: "flops", "params", "bytes" or "seconds".
        exit_shares: N+1 shares of the calibration images, by exit.
        cost: mean cost.
        disagreement: share of images whose class differs from the backbone's prediction.
        accuracy: None without labels.
        backbone_accuracy: None without labels.
        drop: accuracy of the backbone minus that with early exits; None without labels.
        fingerprint: of the weights.
        images: statistics of the calibration images; None if unknown.
        savings: for each exit, by how much the mean cost would be higher without it; 0 for exits
            that are not used. Empty if it was not computed.
    """

    name: str
    policy: dict[str, Any]
    target: Literal["max_drop", "max_disagreement", "budget"]
    limit: float
    level: float
    promised: bool
    bound: float | None
    samples: int
    samples_needed: int | None
    solver: str
    cost_kind: str
    exit_shares: tuple[float, ...]
    cost: Interval
    disagreement: Interval
    accuracy: Interval | None
    backbone_accuracy: float | None
    drop: Interval | None
    fingerprint: str
    images: ImageStatistics | None = field(default=None, compare=False)
    savings: tuple[float, ...] = ()

    def build_policy(self) -> Policy:
        """Return the policy of this point."""
        return policy_from_dict(self.policy)

    @property
    def thresholds(self) -> tuple[float, ...]:
        """The policy's thresholds; none if early exits are disabled."""
        return tuple(getattr(self.build_policy(), "thresholds", ()))

    def __str__(self) -> str:
        asked = f"{self.target} = {self.limit:g}"
        lines = [f"operating point '{self.name}': {self.build_policy()!r}"]
        if self.promised:
            lines.append(
                f"promise    {asked}, at confidence {self.level:g}: at most {self.bound:.4f}"
            )
        else:
            lines.append(f"asked for  {asked}; nothing is promised")
        if self.samples_needed is not None:
            lines.append(f"images     {self.samples}; about {self.samples_needed} are needed")
        else:
            lines.append(f"images     {self.samples}")
        if self.drop is not None:
            lines += [f"accuracy   {self.accuracy}, backbone {self.backbone_accuracy:.4f}"]
            lines += [f"drop       {self.drop}"]
        lines += [f"disagrees  {self.disagreement}", f"cost       {self.cost} ({self.cost_kind})"]
        shares = ", ".join(f"{share:.3f}" for share in self.exit_shares)
        lines.append(f"exits      {shares}")
        if self.savings:
            lines.append(f"saved by   {', '.join(f'{saved:.3f}' for saved in self.savings)}")
        return "\n".join(lines)


def weights_fingerprint(network: nn.Module) -> str:
    """Return a digest of everything that the outputs of all exits depend on."""
    return weights_digest(
        (name, value)
        for name, value in network.state_dict(keep_vars=True).items()
        if isinstance(value, Tensor) and name != "exits.thresholds"
    )
