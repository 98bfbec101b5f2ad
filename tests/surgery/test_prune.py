"""prune: a network with some of the exits of another."""

import math

import pytest
import torch
from helpers import loader
from networks import close, images, tiny

import leenet_fx
from leenet_fx import InputError, MaxProbability, UnknownNameError

INF = math.inf
X = images(24, 3, 16, 16)


def attached(placement="every", **options):
    example = images(1, 3, 16, 16)
    return leenet_fx.attach(tiny(), placement, example_inputs=example, **options).eval()


def state(ee):
    return {key: value.clone() for key, value in ee.state_dict().items()}


@pytest.mark.parametrize("method", ["shallow-deep", "leenet"])
@pytest.mark.parametrize("kept", [[2], [0, 3], [1, 2, 3], [0, 1, 2, 3]])
def test_a_pruned_network_predicts_the_same_where_the_others_were_disabled(method, kept, tmp_path):
    ee = attached(method=method)
    kind = MaxProbability if method == "shallow-deep" else leenet_fx.GateThreshold
    middle = 0.205 if method == "shallow-deep" else 0.0
    options = {"temperatures": [1.1, 0.9, 1.2, 0.8, 2.0]} if kind is MaxProbability else {}
    ee.policy = kind([middle if i in kept else INF for i in range(4)], **options)
    before, policy = state(ee), ee.policy
    pruned = leenet_fx.prune(ee)
    assert pruned.spec.placement.names == tuple(ee.spec.placement.names[i] for i in kept)
    expected, found = ee.predict(X), pruned.predict(X)
    assert close(found.logits, expected.logits, 1e-5)
    rows = torch.tensor([*kept, 4])
    assert torch.equal(rows[found.exit_index], expected.exit_index)
    assert torch.equal(found.cost, expected.cost)
    assert close(found.confidence, expected.confidence, 1e-5)
    for kept_logits, row in zip(pruned.all_exits(X).logits, rows.tolist(), strict=True):
        assert close(kept_logits, ee.all_exits(X).logits[row], 1e-5)
    # Weights are copies, and the network is as it was.
    with torch.no_grad():
        for parameter in pruned.parameters():
            parameter.zero_()
    assert ee.policy == policy
    assert all(torch.equal(value, before[key]) for key, value in state(ee).items())


def test_a_pruned_network_is_saved_trained_and_compiled_as_any_other(tmp_path):
    ee = attached(method="shallow-deep")
    leenet_fx.fit(ee, loader(), epochs=1)
    pruned = leenet_fx.prune(ee, ["blocks.2", 0])
    assert pruned.spec.placement.indices == (0, 2)
    leenet_fx.save(pruned, tmp_path)
    loaded = leenet_fx.load(tmp_path, tiny()).eval()
    assert close(loaded.predict(X).logits, pruned.predict(X).logits, 1e-6)
    assert torch.equal(loaded.predict(X).exit_index, pruned.predict(X).exit_index)
    leenet_fx.fit(pruned, loader(), epochs=1)
    assert pruned.num_exits == 2
    fast = leenet_fx.compile(pruned, backend="eager")
    assert close(fast.predict(X).logits, pruned.predict(X).logits, 1e-5)
    again = leenet_fx.prune(pruned, [1])
    assert again.spec.placement.names == ("blocks.2",)
    assert leenet_fx.prune(attached().train(), [1]).exits[0].training


def test_points_that_do_not_evaluate_removed_exits_stay_with_their_promises():
    ee = attached(method="shallow-deep")
    leenet_fx.fit(ee, loader(), epochs=2)
    leenet_fx.calibrate(ee, loader(seed=2), budget=0.7, name="all")
    leenet_fx.calibrate(ee, loader(seed=2), budget=0.9, name="shares", solver="exponential")
    thresholds = ee.policy.thresholds
    used = [i for i, value in enumerate(thresholds) if value != INF]
    expected = ee.predict(X)
    pruned = leenet_fx.prune(ee)
    kept = set(pruned.operating_points)
    assert kept == ({"all", "shares"} if len(used) == 4 else {"shares"})
    point = pruned.use("shares")
    assert len(point.exit_shares) == pruned.num_exits + 1
    assert sum(point.exit_shares) == pytest.approx(1)
    assert close(pruned.predict(X).logits, expected.logits, 1e-5)


def test_exits_whose_logits_are_read_cannot_be_removed():
    ee = attached(method="ztw")
    with pytest.raises(InputError, match="exit 0 cannot be removed"):
        leenet_fx.prune(ee, [1, 2])
    pruned = leenet_fx.prune(ee, [0, 1])
    assert close(pruned.all_exits(X).logits[1], ee.all_exits(X).logits[1], 1e-6)


@pytest.mark.parametrize(
    ("exits", "error", "message"),
    [
        (None, InputError, "evaluates no exit"),
        ([], InputError, "list of exits"),
        ("blocks.0", InputError, "list of exits"),
        ([4], InputError, "0 to 3"),
        ([-1], InputError, "0 to 3"),
        ([True], InputError, "0 to 3"),
        ([1, "blocks.1"], InputError, "more than once"),
        (["block.1"], UnknownNameError, "Did you mean 'blocks.1'"),
    ],
)
def test_exits_that_are_not_there(exits, error, message):
    with pytest.raises(error, match=message):
        leenet_fx.prune(attached(), exits)
