"""PTEEnet."""

from pathlib import Path

import pytest
from helpers import data
from method_helpers import (
    all_equal,
    attached_for,
    fitted,
    gate_biases,
    head_weights,
    same_state,
)
from networks import images, tiny
from torch.utils.data import DataLoader, TensorDataset

import leenet_fx
from leenet_fx import GateThreshold, InputError
from leenet_fx.methods.phases import single_update_phase
from leenet_fx.objectives import get_objective

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_pteenet_is_trained_without_labels():
    """The labels are the arg-max of the backbone; those of the loader are ignored."""
    x, labels = data(48)
    for heads_first, other in ((True, labels.flip(0)), (True, labels + 90), (False, labels + 90)):
        alone = fitted("pteenet", DataLoader(x, 16), heads_first=heads_first)
        given = DataLoader(TensorDataset(x, other), 16)
        assert same_state(alone, fitted("pteenet", given, heads_first=heads_first))

    name = "test-pteenet-by-labels"

    @leenet_fx.register_method(name)
    def by_labels():
        loss = get_objective("pteenet")()
        phase = single_update_phase("exits", ("classifiers", "gates"), loss, lr=0.03)
        return leenet_fx.Method((phase,), GateThreshold(0.0), "a test", cost_weight=1.0)

    supervised = attached_for("pteenet")
    given = TensorDataset(x, tiny()(x).argmax(1))
    leenet_fx.fit(supervised, DataLoader(given, 16), method=name, epochs=2)
    assert same_state(alone, supervised)
    other = attached_for("pteenet")
    leenet_fx.fit(other, DataLoader(TensorDataset(x, labels), 16), method=name, epochs=2)
    assert not same_state(alone, other)


def test_heads_are_trained_before_gates():
    """Heads of the first phase alone are those of the whole training."""
    unlabelled = DataLoader(data(48)[0], 16)
    whole = fitted("pteenet", unlabelled, epochs={"exits": 2, "gates": 3})
    heads = fitted("pteenet", unlabelled, epochs={"exits": 2, "gates": 0})
    assert all_equal(head_weights(whole), head_weights(heads))
    assert not all_equal(gate_biases(whole), gate_biases(heads))
    # A later call keeps the heads.
    leenet_fx.fit(heads, unlabelled, method="pteenet", epochs={"exits": 0, "gates": 3})
    assert all_equal(head_weights(whole), head_weights(heads))


def test_published_costs_of_resnet20_with_three_exits():
    """Two convolutions a branch. The paper leaves out the branches before an exit."""
    ee = leenet_fx.attach(
        leenet_fx.create_model(f"{EXAMPLES / 'cifar_resnet.py'}:resnet20").eval(),
        "fine",
        num_exits=3,
        method="pteenet",
        branch="convx",
        example_inputs=images(1, 3, 32, 32),
    )
    costs = ee.costs
    assert costs.relative() == pytest.approx((0.243, 0.475, 0.707, 1.347), abs=0.003)
    own = costs.relative(own_branch=True)
    assert own == pytest.approx((0.243, 0.359, 0.476, 1), abs=0.003)
    assert own[-1] == 1
    # Each branch is a block of its own: what earlier ones cost is what the two differ by.
    assert costs.relative("params", own_branch=True)[-1] == 1
    with pytest.raises(InputError, match="not seconds"):
        costs.relative("seconds", own_branch=True)


def test_heads_first_is_a_bool():
    with pytest.raises(InputError, match="heads_first must be True or False, got 1"):
        leenet_fx.get_method("pteenet", heads_first=1)
