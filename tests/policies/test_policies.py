"""Policies against a plain loop over samples, at their edges, and through JSON."""

import json
import math

import pytest
import torch
from helpers import counter, probabilities, votes
from hypothesis import given, settings
from hypothesis import strategies as st

from leenet_fx import GateThreshold, InputError, MaxProbability, NeverExit, UnknownNameError
from leenet_fx.policies import (
    AlphaConditionedGate,
    ClassMeanDistance,
    Entropy,
    Margin,
    Patience,
    ThresholdPolicy,
    Vote,
    exit_indices,
    get_policy,
    list_policies,
    policy_from_dict,
    policy_scores,
    policy_to_dict,
)

LOGIT_POLICIES = [MaxProbability, Entropy, Margin, ClassMeanDistance]
COUNTING_POLICIES = [Patience, Vote]
THRESHOLD_POLICIES = [GateThreshold, *LOGIT_POLICIES, *COUNTING_POLICIES]


def entropy(row):
    return -sum(p * math.log(p) for p in probabilities(row))


def margin(row):
    best, *others = sorted(probabilities(row), reverse=True)
    return best - others[0] if others else 1.0


# What each policy compares with its threshold, and whether a sample exits above or below it.
COMPARED = {
    GateThreshold: (lambda history: history[-1][0], "above"),
    MaxProbability: (lambda history: max(probabilities(history[-1])), "above"),
    Entropy: (lambda history: entropy(history[-1]), "below"),
    Margin: (lambda history: margin(history[-1]), "above"),
    ClassMeanDistance: (lambda history: min(-value for value in history[-1]), "below"),
    Patience: (counter, "above"),
    Vote: (votes, "above"),
}


def read(policy, logits, index):
    """The scores that the policy reads at an exit, from logits (B, N, classes)."""
    return {
        "gate": lambda: logits[:, index, 0],
        "logits": lambda: logits[:, index],
        "history": lambda: logits[:, : index + 1],
        "nothing": lambda: logits[:, index],
    }[policy.reads]()


@st.composite
def logits(draw):
    """(B, N, classes), multiples of 0.5, so that predictions and confidences often tie."""
    shape = [draw(st.integers(1, 4)), draw(st.integers(1, 5)), draw(st.integers(1, 4))]
    count = math.prod(shape)
    halves = draw(st.lists(st.integers(-6, 6), min_size=count, max_size=count))
    return torch.tensor(halves).reshape(shape) / 2


@settings(deadline=None)
@given(st.data(), logits(), st.sampled_from(THRESHOLD_POLICIES))
def test_decisions_equal_a_loop_over_samples(data, logits, kind):
    exits = logits.shape[1]
    values = (
        st.integers(1, 5)
        if kind in COUNTING_POLICIES
        else st.integers(-24, 24).map(lambda v: v / 8)
    )
    thresholds = data.draw(st.lists(values, min_size=exits, max_size=exits))
    policy = kind(thresholds)
    value_of, side = COMPARED[kind]
    for index, threshold in enumerate(thresholds):
        exits_here = policy.should_exit(index, read(policy, logits, index))
        assert exits_here.shape == (len(logits),)
        for sample, should_exit in zip(logits.tolist(), exits_here.tolist(), strict=True):
            value = value_of(sample[: index + 1])
            # A softmax in single precision may fall on either side of a threshold this near.
            if kind in (MaxProbability, Entropy, Margin) and abs(value - threshold) < 1e-5:
                continue
            assert should_exit == (value >= threshold if side == "above" else value <= threshold)


@settings(deadline=None)
@given(logits(), st.sampled_from(THRESHOLD_POLICIES))
def test_confidence_is_the_compared_value_or_its_negative(logits, kind):
    policy = kind(1)
    value_of, side = COMPARED[kind]
    for index in range(logits.shape[1]):
        found = policy.confidence(index, read(policy, logits, index))
        for sample, confidence in zip(logits.tolist(), found.tolist(), strict=True):
            value = value_of(sample[: index + 1])
            expected = value if side == "above" else -value
            assert confidence == pytest.approx(expected, abs=2e-6)


@settings(deadline=None)
@given(logits(), st.sampled_from(THRESHOLD_POLICIES), st.sampled_from([-0.3, 0.0, 0.3]))
def test_with_confidence_sets_the_smallest_confidence_that_exits(logits, kind, shift):
    policy = kind(1)
    exits = range(logits.shape[1])
    scores = [read(policy, logits, index) for index in exits]
    found = [policy.confidence(index, scores[index]) for index in exits]
    for sample in range(len(logits)):
        values = [float(at[sample]) + shift for at in found]
        if kind is Patience:
            # A patience is at least 1, so no threshold corresponds to a confidence of 0.
            values = [max(value, 0.5) for value in values]
        moved = policy.with_confidence(values)
        assert type(moved) is kind
        for index in exits:
            expected = found[index] >= values[index]
            assert torch.equal(moved.should_exit(index, scores[index]), expected)
            single = policy.with_confidence(values[index])
            assert torch.equal(single.should_exit(index, scores[index]), expected)


@pytest.mark.parametrize("kind", [GateThreshold, *LOGIT_POLICIES])
def test_infinite_confidence_thresholds_exit_no_sample_or_all(kind):
    logits = torch.randn(5, 3, 4)
    policy = kind(1)
    for index in range(3):
        scores = read(policy, logits, index)
        assert not policy.with_confidence(math.inf).should_exit(index, scores).any()
        assert policy.with_confidence(-math.inf).should_exit(index, scores).all()


@pytest.mark.parametrize("kind", COUNTING_POLICIES)
@pytest.mark.parametrize("values", [0.0, -0.5, -math.inf, [1.0, 0.0]])
def test_counting_policies_raise_on_a_confidence_of_zero_or_less(kind, values):
    assert kind(1).with_confidence([math.inf, 0.5]) == kind([math.inf, 1])
    with pytest.raises(InputError, match="integers of at least 1"):
        kind(1).with_confidence(values)


def history(*predicted):
    """(1, N, classes): one sample whose exits predict these classes."""
    return torch.eye(4)[list(predicted)].unsqueeze(0)


def first_exit(policy, history):
    """The exit of the one sample; N for the final classifier."""
    exits = history.shape[1]
    exits_at = (i for i in range(exits) if policy.should_exit(i, history[:, : i + 1]).item())
    return next(exits_at, exits)


@pytest.mark.parametrize(
    ("patience", "exit_index"), [(1, 1), (2, 4), (3, 5), (4, 6), (6, 6), (math.inf, 6)]
)
def test_patience_needs_agreement_in_a_row(patience, exit_index):
    assert first_exit(Patience(patience), history(1, 1, 2, 2, 2, 2)) == exit_index


@pytest.mark.parametrize(("exits", "exit_index"), [(2, 2), (3, 2), (4, 2)])
def test_a_patience_of_n_disables_early_exits(exits, exit_index):
    assert first_exit(Patience(2), history(*[3] * exits)) == exit_index


@pytest.mark.parametrize(("needed", "exit_index"), [(1, 0), (2, 2), (3, 4), (4, 5)])
def test_votes_need_not_be_in_a_row(needed, exit_index):
    assert first_exit(Vote(needed), history(1, 2, 1, 2, 2)) == exit_index


def test_entropy_is_in_nats_and_the_threshold_itself_exits():
    uniform = torch.zeros(1, 4)
    bound = -Entropy(0.0).confidence(0, uniform).item()
    assert bound == pytest.approx(math.log(4))
    assert Entropy(bound).should_exit(0, uniform).all()
    assert not Entropy(bound - 1e-6).should_exit(0, uniform).any()


def test_classes_of_probability_zero_do_not_contribute_to_the_entropy():
    scores = torch.tensor([[0.0, 0.0, -math.inf], [0.0, -math.inf, -math.inf]])
    found = Entropy(0.0).confidence(0, scores)
    assert found.tolist() == pytest.approx([-math.log(2), 0.0])


@pytest.mark.parametrize("kind", [MaxProbability, Entropy, Margin])
def test_a_single_class_has_full_confidence(kind):
    found = kind(0.0).confidence(0, torch.tensor([[-3.0], [8.0]]))
    assert found.tolist() == [0.0 if kind is Entropy else 1.0] * 2


@pytest.mark.parametrize("kind", THRESHOLD_POLICIES)
def test_policies_accept_an_empty_batch(kind):
    policy = kind(1)
    scores = read(policy, torch.empty(0, 2, 3), 1)
    assert policy.confidence(1, scores).shape == policy.should_exit(1, scores).shape == (0,)


@pytest.mark.parametrize("kind", LOGIT_POLICIES + COUNTING_POLICIES)
def test_confidence_is_computed_in_single_precision(kind):
    policy = kind(1)
    logits = torch.randn(20, 3, 4).bfloat16()
    half, single = read(policy, logits, 2), read(policy, logits.float(), 2)
    assert torch.equal(policy.confidence(2, half), policy.confidence(2, single))


def test_never_exit_has_no_confidence_in_any_sample():
    scores = torch.randn(3, 4)
    assert NeverExit().confidence(0, scores).tolist() == [-math.inf] * 3
    assert not NeverExit().should_exit(0, scores).any()
    assert not isinstance(NeverExit(), ThresholdPolicy)


def test_policies_are_registered_by_name():
    names = [
        "alpha-gate",
        "class-mean",
        "entropy",
        "gate",
        "margin",
        "max-prob",
        "never",
        "patience",
        "vote",
    ]
    assert set(names) <= set(list_policies())
    assert [get_policy(name).name for name in names] == names
    with pytest.raises(UnknownNameError, match="Did you mean 'entropy'"):
        get_policy("entrpy")


@pytest.mark.parametrize(
    "policy",
    [
        NeverExit(),
        GateThreshold([0.5, -math.inf]),
        AlphaConditionedGate(0.25, [0.5, 1.0]),
        MaxProbability(0.9),
        Entropy([0.1, 0.7]),
        Margin(0.25),
        Margin([0.25, 0.5], temperatures=[1.0, 2.0, 0.5]),
        ClassMeanDistance([2.0, math.inf]),
        Patience(3),
        Vote([1, 2, math.inf]),
    ],
    ids=lambda policy: policy.name,
)
def test_policies_survive_a_json_round_trip(policy):
    again = policy_from_dict(json.loads(json.dumps(policy_to_dict(policy))))
    assert again == policy
    assert hash(again) == hash(policy)
    assert repr(again) == repr(policy)


def test_only_alpha_conditioned_policies_accept_another_alpha():
    assert AlphaConditionedGate(0.5, [1.0, 2.0]).with_alpha(0.2) == AlphaConditionedGate(
        0.2, [1, 2]
    )
    for alpha in (-0.1, 1.1, "high", True):
        with pytest.raises(InputError, match=r"alpha must lie in \[0, 1\]"):
            AlphaConditionedGate(alpha)
    with pytest.raises(InputError, match=r"not conditioned on a cost weight, got alpha=0\.2"):
        GateThreshold(0.0).with_alpha(0.2)


def test_exit_indices_are_those_of_a_loop_over_exits():
    logits, gate_logits = torch.randn(4, 12, 3), torch.randn(12, 3)
    for policy in (GateThreshold([0.5, 0.0, -0.5]), MaxProbability(0.6), Patience(1), NeverExit()):
        expected = [3] * 12
        for index in (2, 1, 0):
            scores = policy_scores(policy, index, list(logits), gate_logits)
            for sample in policy.should_exit(index, scores).nonzero()[:, 0].tolist():
                expected[sample] = index
        assert exit_indices(policy, list(logits), gate_logits).tolist() == expected


def test_equal_policies_have_equal_hashes():
    assert Entropy(-0.0) == Entropy(0.0)
    assert hash(Entropy(-0.0)) == hash(Entropy(0.0))
    assert Entropy(0.5) != Margin(0.5)
    assert Patience(2) != Patience(3)


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"name": "entropy", "thresholds": "0.5"}, "number or a list of numbers, got '0.5'"),
        ({"name": "entropy", "thresholds": None}, "number or a list of numbers, got None"),
        ({"name": "margin", "thresholds": []}, r"number or a list of numbers, got \[\]"),
        ({"name": "margin", "thresholds": [True]}, r"number or a list of numbers, got \[True\]"),
        ({"name": "class-mean", "thresholds": math.nan}, "must not be NaN, got nan"),
        ({"name": "entropy"}, "'entropy' does not take {}"),
        ({"name": "patience", "thresholds": 2}, "'patience' does not take {'thresholds': 2}"),
        ({"name": "patience", "patience": 0}, "Patience .* integers of at least 1, got 0"),
        ({"name": "patience", "patience": -math.inf}, "at least 1, got -inf"),
        ({"name": "patience", "patience": True}, "number or a list of numbers, got True"),
        ({"name": "vote", "thresholds": [2, 1.5]}, r"Vote .* at least 1, got \[2, 1.5\]"),
        ({"thresholds": 0.5}, "Expected a policy with a 'name'"),
    ],
)
def test_invalid_descriptions_raise(description, message):
    with pytest.raises(InputError, match=message):
        policy_from_dict(description)


@pytest.mark.parametrize("kind", THRESHOLD_POLICIES)
def test_there_is_one_threshold_per_exit_or_one_for_all(kind):
    kind(2).check(3)
    kind([1, 2, 3]).check(3)
    with pytest.raises(InputError, match=f"{kind.__name__} has 2 thresholds, but .* 3 exits"):
        kind([1, 2]).check(3)
    with pytest.raises(InputError, match="must not be NaN"):
        kind(2).with_confidence([1.0, math.nan])
