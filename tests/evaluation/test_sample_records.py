"""Sample records: predictions at the exit taken, and replay from cached features."""

import copy

import pytest
import torch
from helpers import attached, data, loader

import leenet_fx
from leenet_fx import GateThreshold, MaxProbability, NeverExit, cache_features
from leenet_fx.evaluation.evaluate import summarise
from leenet_fx.evaluation.sample_records import SampleRecords, replay


@pytest.fixture(scope="module")
def fitted():
    ee = attached()
    leenet_fx.fit(ee, loader(), alpha=0.3, epochs={"exits": 4, "gates": 8}, method="leenet")
    gate_logits = ee.all_exits(data(150, 5)[0]).gate_logits
    ee.policy = GateThreshold(gate_logits.detach().quantile(0.7, 0).tolist())
    return ee


def test_overall_predictions_are_those_of_the_exit_taken():
    records = SampleRecords(
        labels=torch.tensor([0, 1]),
        predicted=torch.tensor([[0, 1], [0, 1]]),
        confidence=torch.tensor([[0.9, 0.8], [0.7, 0.6]]),
        exit_index=torch.tensor([0, 1]),
    )
    assert records.overall_predicted.tolist() == [0, 1]
    assert records.overall_correct.tolist() == [True, True]
    assert records.overall_confidence.tolist() == pytest.approx([0.9, 0.6])


@pytest.mark.parametrize("policy", [GateThreshold(0.2), MaxProbability(0.5), NeverExit()])
def test_replay_agrees_with_evaluate(fitted, policy):
    ee = copy.deepcopy(fitted)
    ee.policy = policy
    batches = [data(40, 3), data(25, 4)]
    live = leenet_fx.evaluate(ee, batches)
    with cache_features(ee, batches) as cache:
        replayed = summarise(ee, replay(ee, cache))
    for key in ("samples", "accuracy", "backbone_accuracy", "relative_flops", "mean_exit"):
        assert getattr(replayed, key) == pytest.approx(getattr(live, key))
    assert [row.count for row in replayed.exits] == [row.count for row in live.exits]
