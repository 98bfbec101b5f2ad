"""prune: a network with some of the exits of another."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from torch import fx, nn

from leenet_fx.errors import InputError
from leenet_fx.parts.branches import Branch
from leenet_fx.policies import (
    Policy,
    ProbabilityThreshold,
    ThresholdPolicy,
    computed_states,
    evaluated_exits,
    policy_to_dict,
)
from leenet_fx.registry import unknown_name
from leenet_fx.runtime.stages import collecting_node, is_exit
from leenet_fx.surgery.exits import Exits
from leenet_fx.surgery.module import EarlyExitModule
from leenet_fx.surgery.operating_point import OperatingPoint, weights_fingerprint
from placement import Placement


def prune(ee: EarlyExitModule, exits: Sequence[int | str] | None = None) -> EarlyExitModule:
    """Return a copy of a network with some of its exits; the network itself is not changed.

    Weights, thresholds and mode are those of the network. If its policy does not evaluate the
    removed exits, since their thresholds are infinite, predictions and costs stay as they are.
    Operating points under which they are not evaluated are kept, with their promises.

    Args:
        ee: the network.
        exits: the exits to keep, by index or by the name of the block before them; None keeps those
            that the present policy evaluates, or whose state an exit reads that it evaluates.

    Raises:
        InputError: no exits, or a repeated one; a branch that is kept reads the logits or the state
            of an exit that is not; the policy was fitted to all exits (`LearnedScore`).
        UnknownNameError: no exit after a block of that name.
    """
    branches = list(ee.exits.branches())
    reads = [branch.reads_previous_logits for branch in branches]
    kept = _kept(ee, reads, exits)
    for index in kept:
        removed = [earlier for earlier in range(index) if earlier not in kept]
        if removed and (reads[index] or branches[index].carries_state):
            read = "logits of all exits" if reads[index] else "state of the exit"
            raise InputError(
                f"The branch of exit {index} reads the {read} before it, so exit {removed[0]} "
                "cannot be removed: keep it, or attach and fit without it."
            )
    spec, placed = ee.spec, ee.spec.placement
    copied = copy.deepcopy(ee)
    remaining = [cast(Branch, copied.exits._modules[str(index)]) for index in kept]
    for position, branch in enumerate(remaining):
        branch.site = replace(branch.site, position=position)
    exits_kept = Exits(remaining, copied.exits._modules.get("final"))
    pruned = EarlyExitModule(
        _backbone(copied),
        _pruned_graph(copied.graph, kept),
        exits_kept,
        replace(
            spec,
            placement=Placement(
                placed.strategy,
                tuple(placed.indices[index] for index in kept),
                tuple(placed.names[index] for index in kept),
            ),
            cuts=tuple(spec.cuts[index] for index in kept),
            branch_costs=tuple(spec.branch_costs[index] for index in kept),
            shares_weights=False,
            operating_points=(),
        ),
    )
    pruned.policy = _pruned_policy(ee.policy, kept)
    found, fingerprint = weights_fingerprint(ee), weights_fingerprint(pruned)
    points = [
        _pruned_point(point, kept, fingerprint)
        for point in spec.operating_points
        if point.fingerprint == found and _evaluates_only(point.build_policy(), reads, kept)
    ]
    pruned.spec = replace(pruned.spec, operating_points=tuple(points))
    return pruned


def _kept(
    ee: EarlyExitModule, reads: Sequence[bool], exits: Sequence[int | str] | None
) -> list[int]:
    """Return the indices of the exits to keep, ascending."""
    if exits is None:
        used = evaluated_exits(ee.policy, reads)
        if any(branch.carries_state for branch in ee.exits.branches()):
            used = computed_states(used)
        kept = [index for index, is_used in enumerate(used) if is_used]
        if not kept:
            raise InputError(
                f"The policy {ee.policy!r} evaluates no exit: name the exits to keep, or take the "
                "original model, which predicts the same."
            )
        return kept
    return named_exits(ee, exits)


def named_exits(ee: EarlyExitModule, exits: Sequence[int | str]) -> list[int]:
    """Return the indices of exits, ascending.

    Args:
        ee: the network.
        exits: indices, or names of the blocks before the exits.

    Raises:
        InputError: no exits, or a repeated one.
        UnknownNameError: no exit after a block of that name.
    """
    names = ee.spec.placement.names
    if isinstance(exits, str) or not isinstance(exits, Sequence) or not exits:
        raise InputError(f"Expected a list of exits, indices or names, got {exits!r}.")
    kept = []
    for given in exits:
        if isinstance(given, str):
            if given not in names:
                raise unknown_name("exit after block", given, names)
            kept.append(names.index(given))
        elif isinstance(given, bool) or not isinstance(given, int) or not 0 <= given < len(names):
            raise InputError(
                f"Expected exits by index, 0 to {len(names) - 1}, or by name, got {given!r}."
            )
        else:
            kept.append(given)
    if len(set(kept)) != len(kept):
        raise InputError(f"Exits {list(exits)} name one of them more than once.")
    return sorted(kept)


def _backbone(ee: EarlyExitModule) -> nn.Module:
    """Return the module tree of a network without its exits."""
    root = nn.Module()
    for attribute in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
        root.__dict__[attribute] = ee.__dict__[attribute]
    del root._modules["exits"]
    root._version = ee._version
    root.training = ee.training
    return root


def _pruned_graph(graph: fx.Graph, kept: Sequence[int]) -> fx.Graph:
    """Remove the calls of other exits from a graph, and number the remaining ones."""
    calls = [node for node in graph.nodes if is_exit(node)]
    remaining = [calls[index] for index in kept]
    for position, call in enumerate(remaining):
        call.target = f"exits.{position}"
    collect = collecting_node(graph)
    collect.args = (*collect.args[:3], *remaining)
    for call in reversed(calls):
        if "previous_exits" in call.kwargs:
            earlier = cast("tuple[fx.Node, ...]", call.kwargs["previous_exits"])
            call.kwargs = {"previous_exits": tuple(node for node in earlier if node in remaining)}
        if call not in remaining:
            graph.erase_node(call)
    return graph


def _pruned_policy(policy: Policy, kept: Sequence[int]) -> Policy:
    if not isinstance(policy, ThresholdPolicy):
        return policy
    if isinstance(policy, ProbabilityThreshold) and policy.temperatures is not None:
        temperatures = policy.temperatures
        policy = policy.with_temperatures([temperatures[index] for index in (*kept, -1)])
    if len(policy.thresholds) == 1:
        return policy
    return policy.with_thresholds([policy.thresholds[index] for index in kept])


def _evaluates_only(policy: Policy, reads: Sequence[bool], kept: Sequence[int]) -> bool:
    evaluated = evaluated_exits(policy, reads)
    try:
        _pruned_policy(policy, kept).check(len(kept))
    except InputError:
        # Scores that were fitted to all exits.
        return False
    return all(index in kept for index, used in enumerate(evaluated) if used)


def _pruned_point(point: OperatingPoint, kept: Sequence[int], fingerprint: str) -> OperatingPoint:
    return replace(
        point,
        policy=policy_to_dict(_pruned_policy(point.build_policy(), kept)),
        exit_shares=tuple(point.exit_shares[index] for index in (*kept, -1)),
        savings=tuple(point.savings[index] for index in kept if point.savings),
        fingerprint=fingerprint,
    )
