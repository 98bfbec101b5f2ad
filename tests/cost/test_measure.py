"""Measurement of stages, and what is counted by measured times."""

import copy
import json
import pickle

import pytest
import torch
from cost_helpers import random_latency
from helpers import half_leave
from networks import images, tiny

import leenet_fx
from leenet_fx import InputError, ModeError
from leenet_fx.cost.latency import Latency
from leenet_fx.parts.gates import AlphaGate, get_gate, list_gates


def attached(**options):
    return leenet_fx.attach(tiny(), "every", example_inputs=images(1, 3, 16, 16), **options).eval()


ALPHA_GATE = next(name for name in list_gates() if get_gate(name) is AlphaGate)


@pytest.mark.parametrize(
    "options", [{}, {"method": "ztw"}, {"branch_options": {"gate": ALPHA_GATE}}]
)
def test_profile_measures_every_part_for_the_cost_table(options):
    ee = attached(**options)
    assert ee.costs.latency is None
    with pytest.raises(InputError, match=r"leenet_fx\.profile"):
        ee.costs.relative("seconds")
    found = leenet_fx.profile(ee, batch_sizes=(3, 1), seconds=0)
    assert found.batch_sizes == (1, 3)
    assert found.reference == 3
    assert found.device
    assert found.threads == torch.get_num_threads()
    assert [len(found.stages), len(found.stage_and_exit), len(found.classification)] == [5, 4, 4]
    for times in (
        found.backbone,
        *found.stages,
        *found.stage_and_exit,
        *found.classification,
        *found.regrouping,
    ):
        assert all(seconds > 0 for seconds in times)
    assert ee.costs.latency == found
    relative = ee.costs.relative("seconds")
    assert len(relative) == 5
    assert relative[-1] == pytest.approx(found.seconds_per_exit()[-1] / found.backbone_seconds())
    assert copy.deepcopy(ee).latency == pickle.loads(pickle.dumps(ee)).latency == found
    assert json.loads(json.dumps(ee.costs.to_dict()))["latency"]["device"] == found.device
    assert "stage 4" in found.summary()
    assert "quarter below" in found.summary()
    for (low, high), median in zip(found.backbone_quartiles, found.backbone, strict=True):
        assert 0 < low <= median <= high


def test_profile_rejects_what_cannot_be_measured():
    with pytest.raises(ModeError, match="evaluation"):
        leenet_fx.profile(attached().train())
    with pytest.raises(ModeError, match="meta"):
        leenet_fx.profile(attached().to("meta"))
    for wrong in ((), (0,), (1.5,), (True,)):
        with pytest.raises(InputError, match="batch_sizes"):
            leenet_fx.profile(attached(), batch_sizes=wrong)


def test_gates_are_fitted_to_the_seconds_that_were_measured():
    ee = attached()
    x = images(64, 3, 16, 16)
    data = [(x, torch.arange(64) % 5)]
    known = random_latency(4).to_dict() | {"batch_sizes": (1,), "reference": 1, "backbone": (1.0,)}
    known.pop("unit")
    free, dear = ((0.0,),) * 4, ((9.0,),) * 4
    shares = []
    for classification, last in ((dear, (0.0,)), (free, (9.0,))):
        work = copy.deepcopy(ee)
        times = {"stages": (*free, last), "stage_and_exit": free, "classification": classification}
        work.latency = Latency(**known | times | {"regrouping": free})
        leenet_fx.fit(work, data, method="leenet", alpha=0.9, cost="seconds", epochs=40, seed=0)
        shares.append(float((work.predict(x).exit_index < 4).float().mean()))
    assert shares[0] < 0.2
    assert shares[1] > 0.8


def test_times_of_batches_are_sums_of_measured_times():
    ee = half_leave(attached(), images(16, 3, 16, 16))
    found = leenet_fx.profile(ee, batch_sizes=(1, 4, 16), seconds=0)
    all_exit = found.batch_seconds([16, 0, 0, 0, 0])
    assert all_exit == pytest.approx(found.stage_and_exit[0][2] + found.classification[0][2])
    none_exit = found.batch_seconds([0, 0, 0, 0, 16])
    assert none_exit == pytest.approx(
        sum(times[2] for times in found.stage_and_exit) + found.stages[4][2]
    )
