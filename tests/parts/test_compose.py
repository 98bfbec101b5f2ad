"""Combinations of neck, head and gate, against all exits and plain Python."""

import copy
import itertools
import pickle
from functools import cache

import pytest
import torch
from branch_helpers import (
    BATCH,
    BLOCK,
    STEM,
    all_exits,
    attached,
    logits_at,
    policy_and_exits,
    randomized,
)
from networks import close, tiny

import leenet_fx
from leenet_fx import (
    GateThreshold,
    InputError,
    MaxProbability,
    Patience,
    UnknownNameError,
    Vote,
)
from leenet_fx.policies import AlphaConditionedGate

NECKS = [
    ("pool", {}),
    ("flatten", {}),
    ("bnpool", {}),
    *(("conv", {"blocks": n}) for n in (0, 1, 2)),
]

PARTS = [
    ("linear", "features"),
    ("projection", None),
    *itertools.product(
        ("linear", "ensemble", "cascade", "additive", "means"), ("confidence", "history", "alpha")
    ),
]

COMBINATIONS = [
    pytest.param(
        branch,
        {**options, "head": head, **({"gate": gate} if gate else {})},
        id="-".join(map(str, (branch, *options.values(), head, gate or "own"))),
    )
    for branch, options in NECKS
    for head, gate in PARTS
]


combinations = pytest.mark.parametrize(("branch", "options"), COMBINATIONS)


# Each neck, each head and each gate at least once.
SELECTED = [
    given
    for given in COMBINATIONS
    if given.values[0] == "pool" or given.id.endswith("-cascade-history")
]


@cache
def _network(branch, options):
    ee = randomized(attached(branch, **dict(options)))
    return ee, all_exits(ee)


def network(branch, options):
    """A network of a combination, whose policy tests may set, and the outputs of all its exits."""
    return _network(branch, tuple(options.items()))


@combinations
def test_conditional_execution_equals_running_all_exits(branch, options):
    ee, outputs = network(branch, options)
    for index in ([0, 4, 2, 1, 3] * 4, [3] * 20):
        found = ee.predict(BATCH, exit_index=torch.tensor(index))
        assert close(found.logits, logits_at(outputs, index), 1e-5)
        assert found.exit_index.tolist() == index


@combinations
def test_samples_exit_where_a_plain_loop_predicts(branch, options):
    """Samples exit at every exit, so previous logits must be selected with the remaining ones."""
    ee, outputs = network(branch, options)
    by_gate = AlphaConditionedGate if options.get("gate") == "alpha" else GateThreshold
    for kind in (by_gate, MaxProbability, Patience, Vote):
        ee.policy, expected_exits = policy_and_exits(outputs, kind)
        found = ee.predict(BATCH)
        assert found.exit_index.tolist() == expected_exits
        assert len(set(expected_exits)) >= (2 if kind in (Patience, Vote) else 5)
        assert close(found.logits, logits_at(outputs, expected_exits), 1e-5)


@combinations
def test_each_parameter_belongs_to_one_group(branch, options):
    for part in network(branch, options)[0].exits:
        gate = {id(p) for p in part.gate_parameters()}
        classifier = {id(p) for p in part.classifier_parameters()}
        ensemble = {id(p) for p in part.ensemble_parameters()}
        assert gate | classifier | ensemble == {id(p) for p in part.parameters()}
        assert not ensemble & (gate | classifier)
        assert bool(ensemble) == (options["head"] in ("ensemble", "cascade"))
        if options["head"] == "projection":
            assert gate <= classifier
        else:
            assert gate
            assert not gate & classifier
        assert {id(p) for p in part.neck_parameters()} <= classifier


@pytest.mark.parametrize(("branch", "options"), SELECTED)
def test_copies_and_saved_networks_predict_equally(branch, options, tmp_path):
    ee, outputs = network(branch, options)
    ee.policy, _ = policy_and_exits(outputs, MaxProbability)
    expected = ee.predict(BATCH)
    leenet_fx.save(ee, tmp_path)
    for again in (
        copy.deepcopy(ee),
        pickle.loads(pickle.dumps(ee)),
        leenet_fx.load(tmp_path, tiny()),
    ):
        found = again.predict(BATCH)
        assert torch.equal(found.logits, expected.logits)
        assert torch.equal(found.exit_index, expected.exit_index)
        assert torch.equal(all_exits(again).gate_logits, outputs.gate_logits)
        assert again.costs == ee.costs


# FLOPs and parameters at an exit that is passed: features pooled to 4 x 4 cells, 128 values.
LINEAR = 2 * 128 * 5

HEADS = {
    "linear": ([LINEAR] * 4, [128 * 5 + 5] * 4),
    "additive": ([LINEAR] * 4, [128 * 5 + 5] * 4),
    "means": ([LINEAR] * 4, [0] * 4),
    "cascade": (
        [LINEAR, *[LINEAR + 2 * 5 * 5] * 3],
        [128 * 5 + 5 + 5 + at + (25 if at > 1 else 0) for at in (1, 2, 3, 4)],
    ),
}

GATES = {"confidence": (2 * 4, 5), "history": (2 * 6, 7), "alpha": (2 * 6 * 3, 7 * 3)}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("gate", GATES)
def test_cost_of_heads_and_gates_by_hand(head, gate):
    ee = attached(head=head, gate=gate)
    (flops, params), (gate_flops, gate_params) = HEADS[head], GATES[gate]
    backbone = ee.costs.backbone
    for by_gate in (True, False):
        ee.policy = GateThreshold() if by_gate else MaxProbability(0.5)
        passed = [n + by_gate * gate_flops for n in flops]
        for i, row in enumerate(ee.costs):
            before = STEM + (i + 1) * BLOCK if i < 4 else backbone.flops
            assert row.flops == before + sum(passed[: i + 1])
            assert row.relative_flops == row.flops / backbone.flops
        added = sum(params) + by_gate * 4 * gate_params
        assert ee.costs[-1].params == backbone.params + added


@pytest.mark.parametrize(
    ("branch", "options", "error", "message"),
    [
        ("pool", {"haed": "linear"}, UnknownNameError, "branch option 'haed'. Did you mean 'head'"),
        ("pool", {"gird": 2}, UnknownNameError, "Did you mean 'grid'"),
        ("pool", {"blocks": 1}, UnknownNameError, "Available: gate, grid, head"),
        ("conv", {"block": 1}, UnknownNameError, "Did you mean 'blocks'"),
        ("flatten", {"grid": 1}, UnknownNameError, "Available: gate, head"),
        ("pool", {"head": "cascad"}, UnknownNameError, "Did you mean 'cascade'"),
        ("pool", {"head": ["linear"]}, UnknownNameError, "Unknown head"),
        ("pool", {"gate": "histroy"}, UnknownNameError, "Did you mean 'history'"),
        *(
            ("conv", {"gate": "features", "head": head}, InputError, "requires head='linear'")
            for head in ("ensemble", "cascade", "additive", "means")
        ),
        *(
            ("pool", {"gate": gate, "head": "projection"}, InputError, "includes a gate")
            for gate in ("confidence", "features")
        ),
        ("pool", {"grid": 0}, InputError, "grid must be a positive integer, got 0"),
        ("bnpool", {"grid": True}, InputError, "got True"),
        ("bnpool", {"grid": 1.5}, InputError, "got 1.5"),
        ("conv", {"blocks": -1}, InputError, "blocks ≥ 0"),
        ("conv", {"blocks": 1.5}, InputError, "blocks .* must be an integer, got 1.5"),
        ("conv", {"size": 0}, InputError, "size ≥ 1"),
        ("conv", {"channels": 0}, InputError, "channels ≥ 1"),
        ("conv", {"channels": "many"}, InputError, "channels .* 'many'"),
    ],
)
def test_options_that_do_not_fit_raise_and_leave_the_model_unchanged(
    branch, options, error, message
):
    model = tiny()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=message):
        attached(branch, model=model, **options)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not model.training
