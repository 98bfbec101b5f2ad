"""Derived values of a network are never stale."""

import copy
import pickle

import pytest
import torch
from helpers import attached
from networks import images

import leenet_fx
from leenet_fx import GateThreshold, InputError, MaxProbability


def test_images_that_fitted_once_are_refused_once_the_network_changed_its_dtype():
    ee = attached()
    x = images(2, 3, 16, 16)
    ee(x)
    ee.double()
    with pytest.raises(InputError, match="dtype"):
        ee(x)


def test_images_are_checked_by_the_dtype_of_assigned_weights():
    ee = attached().eval()
    single = images(2, 3, 16, 16)
    ee(single)
    state = {
        name: value.double() if value.is_floating_point() else value
        for name, value in ee.state_dict().items()
    }
    ee.load_state_dict(state, assign=True)
    assert ee(single.double()).dtype == torch.float64
    with pytest.raises(InputError, match="float64, got torch"):
        ee(single)


@pytest.mark.parametrize(
    "change",
    [
        lambda ee: ee.double(),
        lambda ee: ee.load_state_dict(ee.state_dict()),
        lambda ee: ee.recompile(),
    ],
    ids=["_apply", "load_state_dict", "recompile"],
)
def test_changes_of_weights_or_code_drop_all_derived_values(change):
    ee = attached().eval()
    ee.policy = GateThreshold(0.0)
    ee(images(2, 3, 16, 16))
    plan, costs = ee.stage_plan, ee.costs
    controller = ee.controller(ee.policy)
    change(ee)
    assert ee.stage_plan is not plan
    assert ee.controller(ee.policy) is not controller
    assert ee.costs is not costs
    assert ee.costs == costs


def test_costs_of_another_policy_leave_the_policy_alone():
    ee = attached()
    gates, logits = ee.costs_for(GateThreshold()), ee.costs_for(MaxProbability(0.5))
    assert (gates.reads, logits.reads) == ("gate", "logits")
    assert ee.policy.reads == "nothing"
    ee.policy = MaxProbability(0.5)
    assert ee.costs == logits != gates


def test_latency_is_kept_by_copies_and_moves_and_dropped_by_recompilation():
    ee = attached().eval()
    latency = leenet_fx.profile(ee, batch_sizes=(1,), seconds=0)
    for copied in (copy.copy(ee), copy.deepcopy(ee), pickle.loads(pickle.dumps(ee))):
        assert copied.latency == latency
        assert copied.costs.latency == latency
    ee.load_state_dict(ee.state_dict())
    ee.double()
    assert ee.costs.latency == latency
    ee.recompile()
    assert ee.latency is None
    assert ee.costs.latency is None
