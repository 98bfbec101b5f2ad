"""Known architectures with exits, compared with the original models."""

import copy
import pickle

import pytest
import torch
from networks import BLOCKS, close, images, oracle

import leenet_fx
import placement
from leenet_fx import GateThreshold

# An untrained network amplifies rounding; both are relative to the largest logit.
SAME = 1e-5
ORACLE = 1e-4


def quarters(profile, num_exits):
    blocks = len(profile.candidates)
    return placement.fixed(profile, [blocks // 4, blocks // 2, 3 * blocks // 4])


@pytest.fixture(scope="module")
def attached(zoo_model):
    name, model, size, other = zoo_model
    before = copy.deepcopy(model.state_dict())
    modes = {path: module.training for path, module in model.named_modules()}
    ee = leenet_fx.attach(model, quarters, example_inputs=images(1, 3, size, size))
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert modes == {path: module.training for path, module in model.named_modules()}
    return name, model, ee, size, other


def test_one_candidate_for_each_block(attached):
    name, _, ee, _, _ = attached
    assert len(ee.spec.profile.candidates) == BLOCKS[name]
    assert ee.spec.rejected == {}


def test_predictions_with_early_exits_disabled_are_those_of_the_original(attached):
    _, model, ee, size, other = attached
    with torch.no_grad():
        for batch in (1, 2, 7):
            x = images(batch, 3, size, size, seed=batch)
            assert close(ee(x), model(x), SAME)
        if other is not None:
            x = images(2, 3, other, other)
            assert close(ee(x), model(x), SAME)


def test_samples_that_exit_early_get_the_logits_of_the_oracle(attached):
    _, _, ee, size, _ = attached
    x = images(7, 3, size, size)
    for exits in ([0, 3, 1, 2, 0, 1, 3], [2, 2, 2, 2, 2, 2, 2], [3, 0, 3, 0, 3, 0, 3]):
        index = torch.tensor(exits)
        prediction = ee.predict(x, exit_index=index)
        assert torch.equal(prediction.exit_index, index)
        assert close(prediction.logits, oracle(ee, x, index), ORACLE)


def test_the_state_dict_of_the_backbone_is_that_of_the_original(attached):
    _, model, ee, _, _ = attached
    ours = {key: v for key, v in ee.state_dict().items() if not key.startswith("exits.")}
    original = model.state_dict()
    assert ours.keys() == original.keys()
    assert all(torch.equal(ours[key], original[key]) for key in original)
    model.load_state_dict(ours)
    missing, unexpected = ee.load_state_dict(original, strict=False)
    assert unexpected == []
    assert all(key.startswith("exits.") for key in missing)


def test_copies_keep_graph_costs_and_policy(attached):
    _, _, ee, size, _ = attached
    ee = copy.deepcopy(ee)
    ee.policy = GateThreshold(0.1)
    x = images(3, 3, size, size)
    index = torch.tensor([0, 3, 1])
    expected = ee.predict(x, exit_index=index).logits
    for twin in (copy.deepcopy(ee), pickle.loads(pickle.dumps(ee))):
        assert torch.equal(twin.predict(x, exit_index=index).logits, expected)
        assert twin.costs == ee.costs
        assert twin.policy == ee.policy
        assert [n.name for n in twin.graph.nodes] == [n.name for n in ee.graph.nodes]
        with torch.no_grad():
            for a, b in zip(twin.all_exits(x).logits, ee.all_exits(x).logits, strict=True):
                assert torch.equal(a, b)


# GoogLeNet's auxiliary classifiers use random numbers for dropout in training mode.
@torch.no_grad()
def test_training_mode_behaves_like_the_original(attached):
    name, model, ee, size, _ = attached
    model, ee = copy.deepcopy(model).train(), copy.deepcopy(ee).train()
    if name == "torchvision/googlenet":
        model.aux1 = model.aux2 = None
    x = images(4, 3, size, size)
    torch.manual_seed(1)
    expected = model(x)
    expected = expected[0] if isinstance(expected, tuple) else expected
    torch.manual_seed(1)
    outputs = ee(x)
    assert close(outputs.logits[-1], expected, SAME)
    assert [tuple(logits.shape) for logits in outputs.logits] == [(4, 1000)] * 4
    assert outputs.gate_logits.shape == (4, 3)
    trained, ours = model.state_dict(), ee.state_dict()
    for key, value in trained.items():
        assert close(ours[key].float(), value.float(), SAME), key
