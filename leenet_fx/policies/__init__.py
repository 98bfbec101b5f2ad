"""Policies: the decision which samples exit early."""

from leenet_fx.policies.apply import (
    computed_states,
    evaluated_exits,
    exit_indices,
    policy_scores,
)
from leenet_fx.policies.base import (
    NeverExit,
    Policy,
    get_policy,
    list_policies,
    policy_from_dict,
    policy_to_dict,
    register_policy,
)
from leenet_fx.policies.class_thresholds import ClassThresholds
from leenet_fx.policies.counting import Patience, Vote
from leenet_fx.policies.cumulative_gate import CumulativeGate
from leenet_fx.policies.learned_score import LearnedScore
from leenet_fx.policies.threshold import (
    AlphaConditionedGate,
    ClassMeanDistance,
    Entropy,
    GateThreshold,
    Margin,
    MaxProbability,
    ProbabilityThreshold,
    ThresholdPolicy,
)

__all__ = [
    "AlphaConditionedGate",
    "ClassMeanDistance",
    "ClassThresholds",
    "CumulativeGate",
    "Entropy",
    "GateThreshold",
    "LearnedScore",
    "Margin",
    "MaxProbability",
    "NeverExit",
    "Patience",
    "Policy",
    "ProbabilityThreshold",
    "ThresholdPolicy",
    "Vote",
    "computed_states",
    "evaluated_exits",
    "exit_indices",
    "get_policy",
    "list_policies",
    "policy_from_dict",
    "policy_scores",
    "policy_to_dict",
    "register_policy",
]
