"""The state that side branches pass on, in everything that runs or keeps a network."""

import copy
import math
import pickle

import pytest
import torch
from helpers import loader
from networks import close, images, tiny

import leenet_fx
from leenet_fx import GateThreshold, InputError, MaxProbability
from leenet_fx.calibration.cached_outputs import compute_outputs
from leenet_fx.features.feature_cache import cache_features
from leenet_fx.policies import exit_indices
from leenet_fx.run import load

INF = math.inf
X = images(40, 3, 16, 16, seed=7)
WIDTH = 6


def attached(**options):
    """A network whose exits differ in their confidence, so that samples exit at each."""
    options = {"width": WIDTH, **options}
    ee = leenet_fx.attach(
        tiny(), "every", example_inputs=X[:1], branch="side", branch_options=options
    ).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for branch in ee.exits:
            weight = branch.head.linear.weight
            weight.copy_(torch.randn(weight.shape, generator=generator) / 4)
    return ee


def policies(ee):
    """Policies under which the first, a middle or no exit is disabled."""
    with torch.no_grad():
        outputs = ee.all_exits(X)
    at = [z.softmax(1).amax(1).quantile(0.6).item() for z in outputs.logits[:-1]]
    gates = outputs.gate_logits.quantile(0.6, 0).tolist()
    return [
        MaxProbability(at),
        MaxProbability([INF, at[1], INF, at[3]]),
        MaxProbability([at[0], INF, at[2], INF]),
        GateThreshold([INF, gates[1], gates[2], INF]),
    ]


def expected(ee, x=X):
    """Every exit is computed; the first that is open decides."""
    with torch.no_grad():
        outputs = ee.all_exits(x)
    index = exit_indices(ee.policy, outputs.logits, outputs.gate_logits)
    return torch.stack(outputs.logits, 1)[torch.arange(len(x)), index], index


def check(found, ee, x=X, tolerance=1e-5):
    logits, index = expected(ee, x)
    assert torch.equal(found.exit_index, index)
    assert len(index.unique()) > 2
    assert close(found.logits, logits, tolerance)
    costs = torch.tensor(ee.costs.relative())[index]
    assert found.cost.tolist() == pytest.approx(costs.tolist())


@pytest.mark.parametrize("number", range(4))
def test_streams_and_compiled_stages_predict_what_every_exit_does(number):
    ee = attached()
    ee.policy = policies(ee)[number]
    check(ee.predict(X), ee)
    streamed = list(leenet_fx.predict_stream(ee, X.split(7), batch_size=11, max_delay=3))
    assert torch.equal(torch.cat([p.exit_index for p in streamed]), expected(ee)[1])
    assert close(torch.cat([p.logits for p in streamed]), expected(ee)[0], 1e-5)
    check(leenet_fx.compile(ee, backend="eager").predict(X), ee)


@pytest.mark.parametrize("gate", ["history", "features"])
def test_single_samples_and_histories(gate):
    ee = attached(gate=gate)
    ee.policy = leenet_fx.Patience([1, INF, 1, 2]) if gate == "history" else policies(ee)[3]
    whole = expected(ee)
    for sample in range(6):
        found = ee.predict(X[sample : sample + 1])
        assert int(found.exit_index) == int(whole[1][sample])
        assert close(found.logits[0], whole[0][sample], 1e-5)


def test_the_last_row_of_measured_costs_has_the_states_of_disabled_exits():
    ee = attached()
    ee.policy = policies(ee)[1]
    latency = leenet_fx.profile(ee, batch_sizes=(1,), seconds=0)
    both, state = ([t[0] for t in ts] for ts in (latency.stage_and_exit, latency.stage_and_state))
    assert len(state) == 4
    total = state[0] + both[1] + state[2] + both[3] + latency.stages[4][0]
    backbone = latency.backbone[0]
    assert ee.costs.relative("seconds")[-1] == pytest.approx(total / backbone)
    shares = [0.0, 0.0, 0.0, 0.0, 1.0]
    assert latency.expected_seconds(shares, 1, ee.costs.evaluated) == pytest.approx(total)
    # After the last exit that is evaluated no state is computed, but an exit there would need it.
    ee.policy = MaxProbability([0.9, INF, INF, INF])
    seconds = ee.costs.relative("seconds")
    stages = [t[0] for t in latency.stages]
    assert seconds[-1] == pytest.approx((both[0] + sum(stages[1:])) / backbone)
    third = both[0] + state[1] + both[2] + latency.classification[2][0]
    assert seconds[2] == pytest.approx(third / backbone)


def test_plain_branches_measure_no_states():
    ee = leenet_fx.attach(tiny(), "every", example_inputs=X[:1]).eval()
    assert leenet_fx.profile(ee, batch_sizes=(1,), seconds=0).stage_and_state == ()


def test_copies_and_files_predict_the_same(tmp_path):
    options = {"width": [6, 9], "resolution": [8, 4], "fusion": "concat"}
    ee = attached(**options)
    ee.policy = policies(ee)[1]
    leenet_fx.save(ee, tmp_path)
    loaded = leenet_fx.load(tmp_path, tiny()).eval()
    for other in (copy.deepcopy(ee), pickle.loads(pickle.dumps(ee)), loaded):
        check(other.predict(X), ee)
        assert other.costs == ee.costs
    assert loaded.spec.branch_options == options


@torch.no_grad()
def test_training_on_cached_features_gives_the_weights_of_training_on_images():
    torch.manual_seed(0)
    ee = attached()
    cached = copy.deepcopy(ee)
    with torch.enable_grad(), cache_features(cached, loader()) as cache:
        leenet_fx.fit(cached, cache, epochs=2, method="distilled")
        leenet_fx.fit(ee, loader(), epochs=2, method="distilled")
        outputs = compute_outputs(cached, cache)
        alone = leenet_fx.attach(tiny(), "every", example_inputs=X[:1], branch="pool")
        assert not cache.fits(alone)
    for key, value in ee.state_dict().items():
        assert close(cached.state_dict()[key], value, 1e-4), key
    x = torch.cat([images for images, _ in loader()])
    for found, logits in zip(outputs.logits, ee.all_exits(x).logits, strict=True):
        assert close(found, logits, 1e-4)


def test_joint_training_reaches_the_backbone():
    ee = attached()
    before = ee.blocks[0].conv1.weight.clone()
    leenet_fx.fit(ee, loader(), epochs=1, method=leenet_fx.get_method("distilled", recipe="joint"))
    assert not torch.equal(ee.blocks[0].conv1.weight, before)
    ee.policy = policies(ee)[0]
    check(ee.predict(X), ee)


def test_exits_are_chosen_by_what_they_and_their_states_cost():
    ee = attached()
    leenet_fx.fit(ee, loader(n=160), epochs=4, method="distilled")
    point = leenet_fx.calibrate(ee, loader(n=160, seed=4), budget=0.8, exits="auto")
    found = ee.predict(X)
    assert close(found.logits, expected(ee)[0], 1e-5)
    costs = torch.cat([ee.predict(x).cost for x, _ in loader(n=160, seed=4)])
    assert float(costs.mean()) == pytest.approx(point.cost.estimate)
    selection = leenet_fx.select_exits(ee, loader(n=160, seed=4))
    ee.policy = MaxProbability(
        [selection.threshold if i in selection.exits else INF for i in range(4)]
    )
    costs = torch.cat([ee.predict(x).cost for x, _ in loader(n=160, seed=4)])
    assert float(costs.mean()) == pytest.approx(selection.cost)
    with pytest.raises(InputError, match="do not add up to those of 2 exits"):
        leenet_fx.select_exits(ee, loader(n=160, seed=4), 2)


def test_pruning_keeps_the_exits_whose_state_is_read():
    ee = attached()
    logits = policies(ee)[0].thresholds
    ee.policy = MaxProbability([INF, logits[1], logits[2], INF])
    pruned = leenet_fx.prune(ee)
    assert pruned.num_exits == 3
    assert pruned.policy.thresholds == (INF, logits[1], logits[2])
    before, after = ee.predict(X), pruned.predict(X)
    assert close(after.logits, before.logits, 1e-5)
    assert torch.equal(after.cost, before.cost)
    first = leenet_fx.prune(ee, [0, 1])
    for found, kept in zip(first.all_exits(X).logits, (0, 1, 4), strict=True):
        assert close(found, ee.all_exits(X).logits[kept], 1e-5)
    with pytest.raises(InputError, match="exit 2 reads the state of the exit before it, so exit 1"):
        leenet_fx.prune(ee, [0, 2])


def test_an_exported_file_passes_the_state_on(tmp_path):
    ee = attached(resolution=[8, 4])
    ee.policy = policies(ee)[1]
    leenet_fx.export(ee, tmp_path / "network.onnx")
    found = load(tmp_path / "network.onnx").predict(X.numpy())
    logits, index = expected(ee)
    assert found.exit_index.tolist() == index.tolist()
    assert close(torch.tensor(found.logits), logits, 1e-5)


def test_tools_of_torch_see_every_exit():
    ee = attached().train()
    again = torch.fx.symbolic_trace(ee)
    compiled = torch.compile(ee, backend="eager", fullgraph=True)
    torch.manual_seed(0)
    expected_logits = ee.all_exits(X).logits
    for found in (again(X).logits, compiled(X).logits):
        for one, other in zip(found, expected_logits, strict=True):
            assert close(one, other, 1e-4)
