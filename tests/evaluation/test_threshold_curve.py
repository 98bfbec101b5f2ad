"""The curve over thresholds against networks that run under each of them."""

import json
import math

import pytest
from helpers import attached, data, loader

import leenet_fx
from leenet_fx import Entropy, GateThreshold, MaxProbability, NeverExit, Patience
from leenet_fx.evaluation.threshold_curve import operating_point_in_use
from leenet_fx.report.records import make_record, read_records, write_record


@pytest.fixture(scope="module")
def fitted():
    ee = attached()
    leenet_fx.fit(ee, loader(), epochs=4)
    return ee


@pytest.fixture(autouse=True)
def unchanged(fitted):
    policy, spec = fitted.policy, fitted.spec
    yield
    fitted.policy, fitted.spec = policy, spec


@pytest.mark.parametrize(
    "policy",
    [
        MaxProbability(0.8),
        Entropy(0.5),
        GateThreshold(0.1),
        Patience(2),
        MaxProbability([math.inf, 0.5, 0.6, math.inf]),
    ],
)
def test_every_point_is_what_the_network_does_with_that_threshold(fitted, policy):
    fitted.policy = policy
    batches = [data(50, 3), data(25, 4)]
    curve = leenet_fx.evaluate(fitted, batches).curve
    assert (curve.policy, curve.thresholds) == (policy.name, policy.thresholds)
    costs = [point.relative_flops for point in curve.points if math.isfinite(point.threshold)]
    assert costs == sorted(costs)
    if len(policy.thresholds) == 1:
        assert policy.thresholds[0] in [point.threshold for point in curve.points]
    for point in curve.points[:: max(1, len(curve.points) // 5)]:
        fitted.policy = policy.with_thresholds(point.threshold)
        found = leenet_fx.evaluate(fitted, batches)
        assert point.accuracy == pytest.approx(found.accuracy)
        assert point.relative_flops == pytest.approx(found.relative_flops)
        assert point.shares == pytest.approx([row.share for row in found.exits])
        assert point.relative_seconds is None
    assert curve.points[-1].shares[-1] == 1


def test_expected_time_is_that_of_the_measured_profile(fitted):
    fitted.policy = MaxProbability(0.8)
    leenet_fx.profile(fitted, batch_sizes=[1, 2], seconds=0.05)
    try:
        curve = leenet_fx.evaluate(fitted, [data(40, 3)]).curve
        seconds = fitted.costs.relative("seconds")
    finally:
        fitted.latency = None
    for point in curve.points[:-1]:
        expected = sum(s * share for s, share in zip(seconds, point.shares, strict=True))
        assert point.relative_seconds == pytest.approx(expected)


def test_networks_without_a_threshold_have_no_curve(fitted):
    never = attached()
    never.policy = NeverExit()
    assert leenet_fx.evaluate(never, [data(40, 3)]).curve is None
    # After a fit, disabled early exits are shown beside what the method's thresholds would do.
    fitted.policy = NeverExit()
    curve = leenet_fx.evaluate(fitted, [data(40, 3)]).curve
    assert (curve.policy, curve.thresholds) == ("max-prob", ())


def test_the_operating_point_in_use_is_in_the_record(fitted, tmp_path):
    point = leenet_fx.calibrate(fitted, [data(64, 6)], budget=0.8)
    evaluation = leenet_fx.evaluate(fitted, [data(40, 3)])
    assert evaluation.operating_point == point
    assert evaluation.curve.thresholds == point.thresholds
    record = make_record(evaluation, fitted, command="c", config={}, classes=list("abcde"))
    write_record(tmp_path, record)
    (read,) = read_records(tmp_path)
    assert read["evaluation"]["operating_point"]["name"] == point.name
    assert json.loads(json.dumps(read)) == json.loads(json.dumps(record))
    fitted.policy = MaxProbability(0.123)
    assert operating_point_in_use(fitted) is None
