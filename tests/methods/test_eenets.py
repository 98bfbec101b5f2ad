"""EENets."""

import math

import numpy as np
import pytest
from helpers import array, data, loader
from method_helpers import all_exits, attached_for, changed_keys, phases_run, softmax, state

import leenet_fx
from leenet_fx import GateThreshold, MaxProbability


def probabilities_and_gates(ee, x):
    """Class probabilities of all classifiers, and probabilities that gates open."""
    outputs = all_exits(ee, x)
    return [softmax(array(at)) for at in outputs.logits], 1 / (
        1 + np.exp(-array(outputs.gate_logits))
    )


def mixtures(p, g, costs):
    """Ŷᵢ = gᵢ·pᵢ + (1−gᵢ)·Ŷᵢ₊₁ and likewise Cᵢ for all i."""
    mixed, spent = [p[-1]], [np.full(len(g), costs[-1])]
    for i in reversed(range(g.shape[1])):
        opens = g[:, i]
        mixed.insert(0, opens[:, None] * p[i] + (1 - opens[:, None]) * mixed[0])
        spent.insert(0, opens * costs[i] + (1 - opens) * spent[0])
    return mixed, spent


def naive_eenets(version, p, g, costs, labels, weight):
    rows = np.arange(len(labels))
    ce = [-np.log(at[rows, labels]) for at in p]
    mixed, spent = mixtures(p, g, costs)
    mixed = [-np.log(at[rows, labels]) for at in mixed]
    if version == 1:
        return (mixed[0] + weight * spent[0]).mean()
    if version == 2:
        return sum((at + weight * c).mean() for at, c in zip(mixed, spent, strict=True))
    penalized = np.stack(ce, 1) + weight * np.asarray(costs)
    if version == 3:
        means = np.append(g.mean(0), 1.0)
        return (means / means.sum() * penalized.mean(0)).sum()
    target = penalized.argmin(1)
    bce = 0.0
    for i in range(g.shape[1]):
        kinds = [-np.log(g[target == i, i]), -np.log(1 - g[target > i, i])]
        present = [kind.mean() for kind in kinds if len(kind)]
        bce += sum(present) / len(present) if present else 0.0
    return bce + penalized[rows, target].mean()


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_eenets_versions_minimize_their_losses(version):
    """In the last of three epochs, after the gates have changed."""
    x, labels = data(40)
    ee = attached_for("eenets")
    recorded = []

    class RecordingLoader:
        """Records the outputs at the start of each pass: two for statistics, one per epoch."""

        def __iter__(self):
            recorded.append(probabilities_and_gates(ee, x))
            return iter([(x, labels)])

    method = leenet_fx.get_method("eenets", version=version, recipe="disjoint", two_stage=False)
    result = leenet_fx.fit(ee, RecordingLoader(), method=method, epochs=3, alpha=0.7)
    assert phases_run(result) == ["gates"] * 3
    p, g = recorded[-1]
    expected = naive_eenets(version, p, g, ee.costs.relative(), labels.numpy(), 0.7)
    assert result.history[-1].train_loss == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("version", "phases", "policy"),
    [
        (0, ["exits"], MaxProbability(0.5)),
        (1, ["exits", "gates"], GateThreshold(0.0)),
        (2, ["exits", "gates"], GateThreshold(0.0)),
        # h ≥ 1/5, of 4 exits and the final classifier: a logit of ln(0.2 / 0.8).
        (3, ["exits", "gates"], GateThreshold(math.log(0.2 / 0.8))),
        (4, ["exits", "gates"], GateThreshold(0.0)),
    ],
)
def test_eenets_versions_differ_in_phases_and_policy(version, phases, policy):
    ee = attached_for("eenets")
    before = state(ee)
    result = leenet_fx.fit(
        ee, loader(48), method=leenet_fx.get_method("eenets", version=version), epochs=1
    )
    assert phases_run(result) == phases
    assert type(ee.policy) is type(policy)
    assert ee.policy.thresholds == pytest.approx(policy.thresholds)
    assert any(".gate.linear" in key for key in changed_keys(before, state(ee))) == (version > 0)


def test_eenets_without_two_stages_has_one_phase():
    for version, phases in ((0, ["exits"]), (1, ["gates"])):
        ee = attached_for("eenets")
        result = leenet_fx.fit(
            ee,
            loader(48),
            method=leenet_fx.get_method("eenets", version=version, two_stage=False),
            epochs=1,
        )
        assert phases_run(result) == phases


@pytest.mark.parametrize(
    ("exits", "threshold"), [(1, math.inf), (2, 0.0), (4, math.log(0.25 / 0.75))]
)
def test_version_3_as_published_exits_above_one_share_of_the_exits(exits, threshold):
    """h ≥ 1/N, without the final classifier; as a gate logit."""
    method = leenet_fx.get_method("eenets", version=3, as_published=True)
    assert method.policy_for(exits).thresholds == pytest.approx((threshold,))
    others = [leenet_fx.get_method("eenets", version=v, as_published=True) for v in (0, 1, 2, 4)]
    assert {type(other.policy_for(exits)) for other in others} == {MaxProbability, GateThreshold}
    assert others[3].phases[-1].updates[0].objective.published_weights
