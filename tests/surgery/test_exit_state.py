"""The policy, and the state dict that holds its thresholds."""

import copy
import json
import math

import pytest
import safetensors.torch
import torch
from helpers import attached
from networks import images, tiny
from timm.utils import ModelEmaV2, ModelEmaV3
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import leenet_fx
from leenet_fx import EarlyExitError, InputError
from leenet_fx.policies import (
    AlphaConditionedGate,
    Entropy,
    GateThreshold,
    MaxProbability,
    NeverExit,
    Patience,
    Vote,
    policy_to_dict,
)

X = images(5, 3, 16, 16)


@pytest.mark.parametrize(
    ("policy", "other"),
    [
        (GateThreshold([0.1, 0.2, 0.3, 0.4]), GateThreshold(9.0)),
        (MaxProbability([0.3, math.inf, 0.1, -math.inf]), MaxProbability(0.9)),
        (Entropy([-math.inf, 0.3, 1 / 3, math.inf]), Entropy(0.0)),
        (Patience([1, math.inf, 2, 2]), Patience(7)),
        (Vote([3, 1, 2, 2]), Vote(1)),
        (AlphaConditionedGate(0.3, [0.1, -1.0, 2.0, 0.0]), AlphaConditionedGate(0.3, 5.0)),
    ],
)
def test_thresholds_follow_the_state_dict(policy, other, tmp_path):
    ee, twin = attached(), attached()
    ee.policy, twin.policy = policy, other
    safetensors.torch.save_file(ee.state_dict(), tmp_path / "w.safetensors")
    twin.load_state_dict(safetensors.torch.load_file(tmp_path / "w.safetensors"))
    assert twin.policy == ee.policy == policy
    assert torch.equal(twin.exits.thresholds, ee.exits.thresholds)
    assert torch.isfinite(ee.exits.thresholds).all()


def test_the_state_dict_has_one_shape_whatever_the_policy():
    ee = attached()
    shapes = {name: tensor.shape for name, tensor in ee.state_dict().items()}
    for policy in (GateThreshold(0.5), Patience([1, 2, 3, 4]), AlphaConditionedGate(0.1)):
        ee.policy = policy
        assert {name: tensor.shape for name, tensor in ee.state_dict().items()} == shapes
        assert ee.state_dict()["exits.thresholds"].dtype == torch.float64


def test_a_state_dict_for_another_number_of_exits_changes_nothing():
    ee = attached()
    ee.policy = GateThreshold([0.1, 0.2, 0.3, 0.4])
    fewer = leenet_fx.attach(tiny(seed=3), ["blocks.1"], example_inputs=images(1, 3, 16, 16))
    fewer.policy = GateThreshold(0.5)
    stem = fewer.stem.weight.clone()
    with pytest.raises(InputError, match="but the network has 1 exits"):
        fewer.load_state_dict(ee.state_dict(), strict=False)
    for bad in (torch.full((4,), math.nan), torch.zeros(4, 1), torch.zeros(0), None):
        with pytest.raises(InputError, match=r"exits\.thresholds|NaN"):
            ee.load_state_dict({**ee.state_dict(), "exits.thresholds": bad}, strict=False)
    assert torch.equal(fewer.stem.weight, stem)
    assert fewer.policy == GateThreshold(0.5)
    assert ee.policy == GateThreshold([0.1, 0.2, 0.3, 0.4])


def test_thresholds_without_a_policy_of_their_kind_are_said(caplog):
    ee, twin = attached(), attached()
    ee.policy = GateThreshold(0.25)
    twin.load_state_dict(ee.state_dict())
    assert twin.policy == NeverExit()
    assert "thresholds, which the policy NeverExit() does not use" in caplog.text


def test_state_dicts_of_the_older_form_load():
    ee, policy = attached(), MaxProbability([0.1, 0.2, math.inf, 0.4])
    state = ee.state_dict()
    del state["exits.thresholds"]
    encoded = torch.tensor(list(json.dumps(policy_to_dict(policy)).encode()), dtype=torch.uint8)
    ee.load_state_dict({**state, "exits._extra_state": encoded})
    assert ee.policy == policy
    broken = {**state, "exits._extra_state": torch.zeros(3, dtype=torch.uint8)}
    with pytest.raises(InputError, match="is no encoded policy"):
        ee.load_state_dict(broken)
    fewer = leenet_fx.attach(tiny(), ["blocks.1"], example_inputs=images(1, 3, 16, 16))
    with pytest.raises(InputError, match="4 thresholds, but the network has 1"):
        fewer.load_state_dict({"exits._extra_state": encoded}, strict=False)


@pytest.mark.parametrize("average", [ModelEmaV2, ModelEmaV3, AveragedModel])
def test_averaged_models_follow_the_thresholds(average):
    ee = attached()
    ee.policy = MaxProbability([0.2, math.inf, 0.4, 0.8])
    if average is AveragedModel:
        averaged = AveragedModel(ee, multi_avg_fn=get_ema_multi_avg_fn(0.75), use_buffers=True)
        averaged.update_parameters(ee)
    else:
        averaged = average(ee, decay=0.75)
    expected = [0.2, 0.4, 0.4, 0.8]
    ee.policy = MaxProbability([0.6, math.inf, 0.4, 0.0])
    for _ in range(3):
        expected = [
            0.75 * a + 0.25 * b for a, b in zip(expected, [0.6, 0.4, 0.4, 0.0], strict=True)
        ]
        averaged.update_parameters(ee) if average is AveragedModel else averaged.update(ee)
    module = averaged.module
    assert module.policy.thresholds[1] == math.inf
    found = [module.policy.thresholds[i] for i in (0, 2, 3)]
    assert found == pytest.approx([expected[0], expected[2], expected[3]], abs=1e-9)
    for network in (module, ee):
        outputs = network.eval().all_exits(X)
        confidence = torch.stack([z.softmax(1).amax(1) for z in outputs.logits[:-1]], 1)
        exits = confidence >= torch.tensor(network.policy.thresholds, dtype=torch.float64)
        last = torch.cat([exits, torch.ones(5, 1, dtype=torch.bool)], 1)
        assert torch.equal(network.predict(X).exit_index, last.int().argmax(1))


def test_writes_into_the_buffer_take_effect_at_once():
    ee = attached().eval()
    ee.policy = MaxProbability(0.5)
    assert ee.predict(X).exit_index.tolist() == ee.predict(X).exit_index.tolist()
    for write in (
        lambda t: t.copy_(torch.zeros(4)),
        lambda t: t.data.fill_(0.0),
        lambda t: t.detach().mul_(0),
    ):
        ee.policy = MaxProbability(2.0)
        assert ee.predict(X).exit_index.tolist() == [4] * 5
        write(ee.state_dict()["exits.thresholds"])
        assert ee.predict(X).exit_index.tolist() == [0] * 5
    state = {"exits.thresholds": torch.full((4,), 2.0, dtype=torch.float64)}
    assert torch.equal(functional_call(ee, state, (X,)), ee.predict(X, 4).logits)
    assert ee.predict(X).exit_index.tolist() == [0] * 5
    ee.exits.thresholds.fill_(math.nan)
    with pytest.raises(InputError, match="NaN"):
        ee(X)


def test_conversions_keep_the_values_of_thresholds():
    thresholds = (0.1, 1 / 3, math.inf, 2 / 3)
    ee = attached().eval()
    ee.policy = MaxProbability(thresholds)
    for convert in (
        lambda m: m.half().float(),
        lambda m: m.bfloat16(),
        lambda m: m.double(),
        lambda m: m.to(torch.float32, memory_format=torch.channels_last),
        lambda m: m.to("meta").to_empty(device="cpu"),
        lambda m: m.share_memory(),
    ):
        converted = convert(copy.deepcopy(ee))
        assert converted.policy == MaxProbability(thresholds)
        assert converted.exits.thresholds.dtype == torch.float64
    with torch.inference_mode():
        twin = copy.deepcopy(ee)
        assert twin.policy == ee.policy
        twin.policy = MaxProbability(0.25)
    twin.policy = MaxProbability(0.5)
    assert twin.policy == MaxProbability(0.5)
    assert ee.policy == MaxProbability(thresholds)
    single = attached().float()
    assigned = {k: v.float() for k, v in ee.state_dict().items()}
    single.policy = MaxProbability(0.9)
    single.load_state_dict(assigned, assign=True)
    assert single.exits.thresholds.dtype == torch.float64
    assert single.policy.thresholds == pytest.approx(thresholds)


def test_policies_that_do_not_fit():
    ee = attached()
    with pytest.raises(InputError, match="2 thresholds, but the network has 4"):
        ee.policy = GateThreshold([0.0, 1.0])
    with pytest.raises(InputError, match="Expected a Policy"):
        ee.policy = "gate"
    for bad in ("x", [], [float("nan")], [True]):
        with pytest.raises(EarlyExitError):
            GateThreshold(bad)
    assert ee.policy == NeverExit()
