"""Objectives on selected batches, their options and registry."""

import math
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from objective_helpers import make

from leenet_fx.errors import InputError, UnknownNameError
from leenet_fx.objectives import (
    BatchOutputs,
    BoostNet,
    BranchyNet,
    CalexNet,
    DepthWeighted,
    DifferentiableBranching,
    Distillation,
    EENets,
    FinalClassifier,
    JEIDNNGates,
    JEIDNNHeads,
    LEENet,
    PTEEnet,
    ShallowDeep,
    SumOfExits,
    SumOfObjectives,
    exit_losses,
    get_objective,
    list_objectives,
)

PUBLISHED = {
    "boostnet": BoostNet,
    "branchynet": BranchyNet,
    "calexnet": CalexNet,
    "diffbranch": DifferentiableBranching,
    "distillation": Distillation,
    "eenets": EENets,
    "exits": SumOfExits,
    "final": FinalClassifier,
    "jei-dnn-gates": JEIDNNGates,
    "jei-dnn-heads": JEIDNNHeads,
    "leenet": LEENet,
    "pabee": DepthWeighted,
    "pteenet": PTEEnet,
    "shallow-deep": ShallowDeep,
    "sum": SumOfObjectives,
}


def test_positives_and_negatives_have_equal_weight_in_the_balanced_loss():
    # For one sample of four the exit is best: only there its class is likely.
    right, wrong = [9.0, 0.0], [0.0, 9.0]
    at_exit = torch.tensor([right, wrong, wrong, wrong])
    final = torch.tensor([wrong, right, right, right])
    gate_logits = torch.tensor([[-2.0], [1.0], [1.0], [1.0]])
    labels, costs = torch.zeros(4, dtype=torch.int64), torch.tensor([0.5, 1.0])
    outputs = BatchOutputs((at_exit, final), gate_logits, labels, costs, 0.0)
    positive, negative = math.log(1 + math.exp(2)), math.log(1 + math.exp(1))
    expected = (positive + negative) / 2 + math.log(1 + math.exp(-9))
    assert float(EENets(version=4)(outputs)) == pytest.approx(expected)


@pytest.mark.parametrize("objective", [EENets(version=4), JEIDNNGates()], ids=repr)
def test_of_equally_good_exits_the_earliest_is_the_target(objective):
    logits, gate_logits = torch.zeros(2, 3), torch.zeros(2, 2, requires_grad=True)
    labels = torch.zeros(2, dtype=torch.int64)
    objective(BatchOutputs((logits,) * 3, gate_logits, labels, torch.ones(3), 1.0)).backward()
    assert bool((gate_logits.grad[:, 0] < 0).all())


def test_the_final_classifier_has_a_loss_without_exits():
    outputs = make(4, 0)
    torch.testing.assert_close(
        FinalClassifier()(outputs), exit_losses(outputs.logits, outputs.labels).mean()
    )


def test_the_loss_of_exits_does_not_need_the_final_classifier():
    outputs = make(4, 2)
    without = replace(outputs, logits=outputs.logits[:-1])
    torch.testing.assert_close(SumOfExits()(without), SumOfExits()(outputs))


def test_a_sum_of_objectives_is_the_sum_of_their_losses():
    outputs = make(4, 2)
    parts = (Distillation(), FinalClassifier())
    expected = parts[0](outputs) + parts[1](outputs)
    torch.testing.assert_close(SumOfObjectives(parts)(outputs), expected)


def test_objectives_are_registered_by_name():
    assert set(PUBLISHED) <= set(list_objectives())
    for name, objective in PUBLISHED.items():
        assert get_objective(name) is objective
        assert objective.name == name
    with pytest.raises(UnknownNameError, match="'leenet'"):
        get_objective("leanet")


def test_objectives_are_immutable_and_hashable():
    assert BranchyNet(exit_weights=[1, 0.5]) == BranchyNet(exit_weights=(1, 0.5))
    assert (
        len(
            {
                BranchyNet(exit_weights=[1, 0.5]),
                BranchyNet(exit_weights=(1, 0.5)),
                EENets(),
                DepthWeighted(),
            }
        )
        == 3
    )
    with pytest.raises(FrozenInstanceError):
        EENets().version = 2


@pytest.mark.parametrize(
    ("objective", "options", "message"),
    [
        (BranchyNet, {"exit_weights": (1.0, -1.0)}, r"'exit_weights'.*got \(1.0, -1.0\)"),
        (BranchyNet, {"exit_weights": (1.0, math.nan)}, "'exit_weights'.*nan"),
        (BranchyNet, {"exit_weights": 0.3}, "'exit_weights'.*got 0.3"),
        (BranchyNet, {"exit_weights": "11"}, "'exit_weights'.*got '11'"),
        (EENets, {"version": 5}, "'version'.*0 to 4.*got 5"),
        (EENets, {"version": -1}, "'version'.*got -1"),
        (EENets, {"version": True}, "'version'.*got True"),
        (EENets, {"version": 1.0}, "'version'.*got 1.0"),
        (Distillation, {"mix": 1.01}, "'mix'.*got 1.01"),
        (Distillation, {"mix": "half"}, "'mix'.*got 'half'"),
        (Distillation, {"temperature": 0.0}, "'temperature'.*> 0.*got 0.0"),
        (Distillation, {"temperature": math.inf}, "'temperature'.*got inf"),
        (SumOfObjectives, {"objectives": ()}, r"'objectives'.*got \(\)"),
        (SumOfObjectives, {"objectives": ("final",)}, "'objectives'.*got .*'final'"),
    ],
)
def test_options_that_do_not_fit_raise(objective, options, message):
    with pytest.raises(InputError, match=message):
        objective(**options)


@pytest.mark.parametrize("weights", [(), (1.0, 1.0), (1.0,) * 4])
def test_branchynet_requires_a_weight_per_classifier(weights):
    with pytest.raises(InputError, match=f"{len(weights)} exit weights, but .* 2 exits"):
        BranchyNet(exit_weights=weights)(make(4, 2))


def test_branchynet_weights_the_loss_of_each_classifier():
    outputs = make(4, 2)
    expected = 0.2 * outputs.losses[:, 0].mean() + 3 * outputs.losses[:, 2].mean()
    torch.testing.assert_close(BranchyNet(exit_weights=(0.2, 0, 3))(outputs), expected)
