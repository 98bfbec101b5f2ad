"""Exits with an infinite threshold: which branches run, predictions and costs."""

import math
from collections import Counter

import pytest
import torch
from helpers import loader
from networks import close, images, tiny

import leenet_fx
from leenet_fx import InputError, MaxProbability, Patience, Vote
from leenet_fx.calibration.budgets import monotone_costs
from leenet_fx.calibration.cached_outputs import cached_exit_indices, outputs_of_data
from leenet_fx.policies import exit_indices

INF = math.inf
X = images(40, 3, 16, 16)
SINGLE = {
    "shallow-deep": lambda t: MaxProbability(t),
    "branchynet": lambda t: leenet_fx.Entropy([-INF if v == INF else 3 * (1 - v) for v in t]),
    "jei-dnn": lambda t: leenet_fx.Margin([v if v == INF else v / 2 for v in t]),
    "leenet": lambda t: leenet_fx.GateThreshold([v if v == INF else 0.0 for v in t]),
}


def attached(placement="every", seed=0, **options):
    example = images(1, 3, 16, 16)
    return leenet_fx.attach(tiny(), placement, example_inputs=example, seed=seed, **options).eval()


def branch_calls(ee, x):
    """How many samples each branch sees in conditional execution."""
    seen = Counter()
    handles = []
    for index, branch in enumerate(ee.exits.branches()):

        def count(module, inputs, index=index):
            seen[index] += len(inputs[0])

        first = next(part for name, part in branch.named_modules() if name == "neck")
        handles.append(first.register_forward_pre_hook(count))
    prediction = ee.predict(x)
    for handle in handles:
        handle.remove()
    return seen, prediction


def oracle(ee, x):
    outputs = ee.all_exits(x)
    index = exit_indices(ee.policy, outputs.logits, outputs.gate_logits)
    return torch.stack(outputs.logits, 1)[torch.arange(len(x)), index], index


@pytest.mark.parametrize("method", SINGLE)
@pytest.mark.parametrize("kept", [(1,), (0, 2), (1, 2, 3), ()])
def test_a_branch_that_lets_nobody_exit_does_not_run(method, kept):
    ee = attached(method=method)
    middle = 0.205
    ee.policy = SINGLE[method]([middle if i in kept else INF for i in range(ee.num_exits)])
    seen, found = branch_calls(ee, X)
    assert set(seen) <= set(kept)
    logits, index = oracle(ee, X)
    assert torch.equal(found.exit_index, index)
    assert close(found.logits, logits, 1e-5)
    if not kept:
        assert torch.equal(found.cost, torch.ones(len(X)))
        return
    # The truth is a network that has these exits only.
    names = [ee.spec.placement.names[i] for i in kept]
    fewer = attached(names, method=method)
    fewer.policy = SINGLE[method]([middle] * len(kept))
    rows = [*kept, ee.num_exits]
    for kind in ("flops", "params", "bytes"):
        assert [ee.costs.relative(kind)[i] for i in rows] == list(fewer.costs.relative(kind))
    position = {exit_index: row for row, exit_index in enumerate(rows)}
    expected = [fewer.costs.relative()[position[i]] for i in index.tolist()]
    assert found.cost.tolist() == pytest.approx(expected)
    streamed = torch.cat([p.cost for p in leenet_fx.predict_stream(ee, X.split(7), max_delay=2)])
    assert torch.equal(streamed, found.cost)
    assert ee.costs_for(ee.policy, enabled=True) == attached(method=method).costs_for(
        SINGLE[method]([middle])
    )


def test_a_compiled_network_leaves_out_branches_too():
    ee = attached(method="shallow-deep")
    ee.policy = MaxProbability([INF, 0.205, INF, INF])
    found = leenet_fx.compile(ee, backend="eager").predict(X)
    logits, index = oracle(ee, X)
    assert torch.equal(found.exit_index, index)
    assert close(found.logits, logits, 1e-5)


@pytest.mark.parametrize(
    ("method", "policy", "run"),
    [
        # Later heads read the logits of earlier ones, and later decisions their predictions.
        ("ztw", MaxProbability([INF, INF, 2.0, INF]), {0, 1, 2}),
        ("boostnet", MaxProbability([INF, 2.0, INF, INF]), {0, 1}),
        ("pabee", Patience([INF, 9, INF, INF]), {0, 1}),
        ("pabee", Vote([INF, INF, INF, INF]), set()),
        ("pabee", Patience([9, 9, 9, 9]), {0, 1, 2, 3}),
    ],
)
def test_a_branch_runs_if_a_later_one_reads_it(method, policy, run):
    ee = attached(method=method)
    ee.policy = policy
    seen, found = branch_calls(ee, X)
    assert set(seen) == run
    assert close(found.logits, ee.all_exits(X).logits[-1], 1e-5)
    whole, evaluated = ee.costs_for(policy, enabled=True), ee.costs.relative()
    added = [b.hidden.flops + b.classify.flops for b in ee.spec.branch_costs]
    expected = 1 + sum(added[i] for i in run) / ee.spec.profile.flops
    assert evaluated[-1] == pytest.approx(expected)
    assert float(found.cost.mean()) == pytest.approx(expected)
    assert whole.relative()[-1] >= evaluated[-1]


def test_a_score_of_infinity_does_not_reach_an_infinite_threshold():
    ee = attached(method="leenet")
    with torch.no_grad():
        for branch in ee.exits.branches():
            list(branch.gate_parameters())[-1].fill_(INF)
    ee.policy = leenet_fx.GateThreshold([INF, INF, INF, INF])
    _, index = oracle(ee, X)
    assert torch.equal(index, ee.predict(X).exit_index)
    assert index.unique().tolist() == [ee.num_exits]


def test_measured_costs_leave_out_branches_that_do_not_run():
    ee = attached(method="shallow-deep")
    ee.policy = MaxProbability([INF, 0.3, INF, 0.3])
    latency = leenet_fx.profile(ee, batch_sizes=(1,), seconds=0)
    assert all(value > 0 for times in latency.stage_and_exit for value in times)
    stage, both = (
        [times[0] for times in values] for values in (latency.stages, latency.stage_and_exit)
    )
    expected = (stage[0] + both[1] + stage[2] + both[3] + stage[4]) / latency.backbone[0]
    assert ee.costs.relative("seconds")[-1] == pytest.approx(expected)
    evaluated = ee.costs.evaluated
    assert evaluated == (False, True, False, True)
    exits = ee.costs.relative("seconds")
    counts = [0, 0, 0, 0, 1]
    assert latency.batch_seconds(counts, evaluated) / latency.backbone[0] == pytest.approx(exits[4])
    shares = [0.0, 0.0, 0.0, 0.0, 1.0]
    assert latency.expected_seconds(shares, 1, evaluated) == pytest.approx(
        latency.batch_seconds(counts, evaluated)
    )


def test_evaluation_budgets_and_points_count_what_runs():
    ee = attached(method="shallow-deep")
    leenet_fx.fit(ee, loader(), epochs=2)
    calibration = loader(seed=3)
    full = monotone_costs(ee)
    ee.policy = MaxProbability([INF, 0.5, INF, INF])
    # Solvers choose thresholds of all exits, whatever those of the present policy are.
    assert monotone_costs(ee) == full
    evaluation = leenet_fx.evaluate(ee, calibration)
    costs = torch.cat([ee.predict(x).cost for x, _ in calibration])
    assert evaluation.relative_flops == pytest.approx(float(costs.mean()))
    for budget in (0.5, 0.8, 0.99):
        leenet_fx.set_budget(ee, calibration, budget, solver="exponential")
        outputs = outputs_of_data(ee, calibration, labelled=True)
        rows = torch.tensor(ee.costs.relative(), dtype=torch.float64)
        assert float(rows[cached_exit_indices(ee, ee.policy, outputs)].mean()) <= budget + 1e-9
    point = leenet_fx.calibrate(ee, calibration, budget=0.8, solver="exponential")
    costs = torch.cat([ee.predict(x).cost for x, _ in calibration])
    assert point.cost.estimate == pytest.approx(float(costs.mean()))
    with pytest.raises(InputError, match="budget"):
        leenet_fx.set_budget(ee, calibration, full[0] / 2)


def test_fit_counts_all_exits_whatever_the_thresholds_were():
    first, second = (attached(method="leenet") for _ in range(2))
    second.policy = leenet_fx.GateThreshold([INF, INF, 0.0, INF])
    for ee in (first, second):
        leenet_fx.fit(ee, loader(), epochs=1, alpha=0.5)
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key
