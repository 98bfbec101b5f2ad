"""The decision at an exit in a form that needs no code of the policy.

Each stage computes the policy's confidence (B,); a sample exits iff

    confidence >= sign · thresholds[i]

in float32. Anything else that the policy reads, such as the logits of earlier exits, is passed from
stage to stage like the values at the cuts, and α is an input of the stages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from leenet_fx.errors import ExportError
from leenet_fx.policies import NeverExit, Policy, ThresholdPolicy, policy_to_dict


@dataclass(frozen=True)
class Decision:
    """Which samples exit.

    Attributes:
        policy: the policy, as `policy_to_dict` returns it.
        thresholds: N, the active ones, on the policy's scale; none if early exits are disabled.
        sign: see above.
        alpha: the active cost weight, if gates are conditioned on it.
        temperatures: N+1, by which the logits of the exit taken are divided for the output
            `confidence`; None for 1. Stages divide theirs themselves.
    """

    policy: dict[str, Any]
    thresholds: tuple[float, ...]
    sign: int
    alpha: float | None
    temperatures: tuple[float, ...] | None = None

    @property
    def enabled(self) -> bool:
        """Whether samples can exit early."""
        return bool(self.thresholds)


def decision_of(policy: Policy, num_exits: int) -> Decision:
    """Return the decision of a policy.

    Args:
        policy: the policy.
        num_exits: N.

    Raises:
        ExportError: the policy does not compare a confidence with thresholds.
    """
    if isinstance(policy, NeverExit):
        return Decision(policy_to_dict(policy), (), 1, None)
    compares = isinstance(policy, ThresholdPolicy) and (
        type(policy).should_exit is ThresholdPolicy.should_exit
    )
    if not compares:
        raise ExportError(
            f"The policy {policy!r} cannot be exported: it does not compare a confidence with one "
            "threshold for each exit, as subclasses of ThresholdPolicy do."
        )
    assert isinstance(policy, ThresholdPolicy)
    thresholds = tuple(policy.threshold_at(index) for index in range(num_exits))
    return Decision(
        policy_to_dict(policy), thresholds, policy.sign, policy.alpha, policy.temperatures
    )
