"""fit: what is trained, what is not, and which arguments are errors."""

import copy
import math

import pytest
import torch
from helpers import attached, backbone, data, loader
from networks import branches_of_images, images, tiny
from torch import nn

import leenet_fx
from leenet_fx import GateThreshold, InputError, NeverExit, TrainingError, UnknownNameError
from leenet_fx.methods.phases import single_update_phase
from leenet_fx.objectives import Objective, exit_losses


@pytest.mark.parametrize("branch", branches_of_images())
def test_exits_learn_and_the_backbone_is_frozen(branch):
    ee = attached(branch=branch)
    frozen = backbone(ee)
    requires_grad = {name: p.requires_grad for name, p in ee.named_parameters()}
    result = leenet_fx.fit(ee, loader(), alpha=0.3, epochs=12, lr=0.03, seed=1, method="leenet")
    assert all(torch.equal(frozen[key], value) for key, value in backbone(ee).items())
    assert requires_grad == {name: p.requires_grad for name, p in ee.named_parameters()}
    assert all(p.grad is None for p in ee.parameters())
    assert not ee.training
    assert ee.policy == GateThreshold(0.0)
    exits = [epoch for epoch in result.history if epoch.phase == "exits"]
    assert len(exits) == 12
    assert exits[-1].train_loss < 0.5 * exits[0].train_loss
    x, labels = data(seed=5)
    everywhere = ee.all_exits(x).logits[:-1]
    assert all((at.argmax(1) == labels).float().mean() > 0.8 for at in everywhere)


def test_the_cost_falls_as_alpha_rises():
    spent = []
    ee = attached()
    # So little training that later exits are more accurate.
    leenet_fx.fit(ee, loader(), epochs={"exits": 2, "gates": 0}, lr=0.001, method="leenet")
    for alpha in (0.0, 0.5, 1.0):
        leenet_fx.fit(ee, loader(), alpha=alpha, epochs={"exits": 0, "gates": 30}, method="leenet")
        spent.append(float(ee.predict(data(seed=5)[0]).cost.mean()))
    assert spent[0] >= spent[1] >= spent[2]
    assert spent[0] > spent[2] + 0.03
    # With the cost alone, the training images exit at the first exit.
    train = torch.cat([x for x, _ in loader()])
    assert float((ee.predict(train).exit_index == 0).float().mean()) > 0.95


def test_cost_by_parameters_is_another_objective():
    gates = []
    for cost in ("flops", "params"):
        ee = attached()
        leenet_fx.fit(
            ee, loader(), alpha=0.6, cost=cost, epochs={"exits": 1, "gates": 3}, method="leenet"
        )
        gates.append(ee.get_submodule("exits.0.gate.linear").weight.clone())
    assert not torch.equal(*gates)


def test_classifiers_are_trained_independently():
    """A classifier trained with others equals one trained alone."""
    together, alone = (
        attached(),
        leenet_fx.attach(tiny(), ["blocks.1"], example_inputs=images(1, 3, 16, 16)),
    )
    alone.exits[0].load_state_dict(together.exits[1].state_dict())
    for ee in (together, alone):
        leenet_fx.fit(ee, loader(), epochs={"exits": 3, "gates": 0}, method="leenet")
    assert torch.allclose(
        together.exits[1].head.linear.weight, alone.exits[0].head.linear.weight, atol=1e-6
    )


def test_the_seed_determines_the_result():
    states = []
    for seed in (3, 3, 4):
        ee = attached()
        leenet_fx.fit(ee, loader(), epochs=2, seed=seed, method="leenet")
        states.append(ee.state_dict()["exits.0.gate.linear.weight"])
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_the_global_random_state_does_not_change():
    ee = attached()
    batches = list(loader())
    before = torch.get_rng_state()
    leenet_fx.fit(ee, batches, epochs=1, method="leenet")
    assert torch.equal(before, torch.get_rng_state())


def test_phases_of_zero_epochs_are_skipped():
    ee = attached()
    leenet_fx.fit(ee, loader(), epochs={"exits": 2, "gates": 0}, method="leenet")
    classifiers = [e.head.linear.weight.clone() for e in ee.exits]
    result = leenet_fx.fit(
        ee, loader(), alpha=0.7, epochs={"exits": 0, "gates": 2}, method="leenet"
    )
    assert [epoch.phase for epoch in result.history] == ["gates", "gates"]
    assert all(
        torch.equal(w, e.head.linear.weight) for w, e in zip(classifiers, ee.exits, strict=True)
    )
    with pytest.raises(UnknownNameError, match="Did you mean 'gates'"):
        leenet_fx.fit(ee, loader(), epochs={"gate": 2}, method="leenet")


def test_a_new_final_classifier_is_trained_and_nothing_else_of_the_backbone():
    model = tiny()
    ee = leenet_fx.attach(
        model, "every", example_inputs=images(1, 3, 16, 16), num_classes=3, copy=False
    )
    frozen = backbone(ee)
    result = leenet_fx.fit(ee, loader(classes=3), epochs=8, lr=0.05, method="leenet")
    assert {epoch.phase for epoch in result.history} == {"exits", "final", "gates"}
    changed = {k for k, v in backbone(ee).items() if not torch.equal(frozen[k], v)}
    assert changed == {"fc.weight", "fc.bias"}
    assert model.fc.out_features == 5


def test_the_final_classifier_is_trained_on_request():
    ee = attached()
    before = ee.fc.weight.clone()
    leenet_fx.fit(ee, loader(), epochs=1, method="leenet")
    assert torch.equal(before, ee.fc.weight)
    leenet_fx.fit(ee, loader(), epochs=1, train_final=True, method="leenet")
    assert not torch.equal(before, ee.fc.weight)
    shared = attached(copy=False)
    with pytest.raises(InputError, match="copy=True"):
        leenet_fx.fit(shared, loader(), epochs=1, train_final=True, method="leenet")


def test_the_epoch_with_the_lowest_validation_loss_is_restored():
    ee = attached()
    val = loader(32, seed=9)
    result = leenet_fx.fit(
        ee, loader(), val, epochs={"exits": 4, "gates": 0}, lr=0.3, method="leenet"
    )
    best = min(epoch.val_loss for epoch in result.history)
    x, labels = data(32, seed=9)
    losses = exit_losses(ee.all_exits(x).logits[:-1], labels)
    assert float(losses.mean(0).sum().detach()) == pytest.approx(best, rel=1e-5)


def test_a_loss_that_is_not_finite_restores_the_last_good_weights():
    ee = attached()

    class Turning:
        """Three valid passes and a batch, then NaN; records weights as each pass starts."""

        def __init__(self):
            self.starts = []

        def __iter__(self):
            self.starts.append(ee.exits[0].head.linear.weight.detach().clone())
            x, labels = data(32)
            yield x, labels
            yield (x * float("nan") if len(self.starts) == 4 else x), labels

    train = Turning()
    with pytest.raises(TrainingError, match=r"'exits' is nan in epoch 3 \(train batch 2\)"):
        leenet_fx.fit(ee, train, epochs={"exits": 5, "gates": 0}, method="leenet")
    assert torch.equal(ee.exits[0].head.linear.weight, train.starts[3])
    assert not torch.equal(train.starts[3], train.starts[1])
    assert ee.policy == NeverExit()


@pytest.mark.parametrize("error", [TrainingError, KeyboardInterrupt])
def test_an_error_in_the_first_epoch_restores_the_fitted_gates(error):
    class Failing:
        """Images that are valid in the first pass, for statistics of gate inputs, only."""

        passes = 0

        def __iter__(self):
            self.passes += 1
            x, labels = data(16, seed=8)
            if self.passes > 1:
                if error is KeyboardInterrupt:
                    raise KeyboardInterrupt
                x = x * float("nan")
            yield x, labels

    ee = attached()
    leenet_fx.fit(ee, loader(), epochs=2, method="leenet")
    before, policy = copy.deepcopy(ee.exits.state_dict()), ee.policy
    with pytest.raises(error):
        leenet_fx.fit(ee, Failing(), epochs={"exits": 0, "gates": 3}, method="leenet")
    assert all(torch.equal(before[key], value) for key, value in ee.exits.state_dict().items())
    assert ee.policy == policy


def test_early_exits_are_disabled_until_gates_are_trained():
    ee = attached()
    leenet_fx.fit(ee, loader(), epochs={"exits": 1, "gates": 0}, method="leenet")
    assert ee.policy == NeverExit()


def test_fit_enables_gradients_and_frozen_exits_are_an_error():
    ee = attached()
    with torch.no_grad():
        leenet_fx.fit(ee, loader(), epochs=1, method="leenet")
    ee.exits.requires_grad_(False)
    with pytest.raises(InputError, match="requires_grad=False"):
        leenet_fx.fit(ee, loader(), epochs=1, method="leenet")


def test_features_that_are_not_finite_change_no_gate():
    ee = attached()
    before = copy.deepcopy(ee.exits.state_dict())
    x, labels = data(8)
    with pytest.raises(TrainingError, match="not finite"):
        leenet_fx.fit(
            ee, [(x * float("inf"), labels)], epochs={"exits": 0, "gates": 1}, method="leenet"
        )
    assert all(torch.equal(before[key], value) for key, value in ee.exits.state_dict().items())


X, Y = data(8)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ([], "train is empty"),
        ([(X[:0], Y[:0])], "train is empty"),
        ([X], "labels are absent"),
        ([(X,)], "labels are absent"),
        ([{"picture": X, "label": Y}], "keys picture, label; expected images under pixel_values"),
        ([{"image": X}], "yields a dict: labels are absent"),
        ([(X, torch.nn.functional.one_hot(Y, 5))], r"labels\.argmax\(1\)"),
        ([(X, torch.rand(8, 5))], "mixup"),
        ([(X[0], 3)], "single samples.*batch_size"),
        ([(X[0], Y[0])], "single samples.*batch_size"),
        ([(X, Y.float())], "whole-number label"),
        ([(X, Y[:3])], "for 8 images"),
        ([(X, Y + 1)], r"label 5, but the final classifier has 5 classes \(0\.\.4\)"),
        ([(X, Y - 1)], "label -1"),
        ([(X, "labels")], "must yield tensors"),
        ([(X[:, :1], Y)], "3 channels, got 1"),
        ([(X.double(), Y)], "torch.float64"),
        (iter([(X, Y)]), "read only once"),
        (7, "got int"),
    ],
)
def test_bad_loaders_change_nothing(train, message):
    ee = attached().train()
    ee.get_submodule("blocks.0").eval()
    before = copy.deepcopy(ee.state_dict())
    modes = [module.training for module in ee.modules()]
    with pytest.raises(InputError, match=message):
        leenet_fx.fit(ee, train, epochs=1, method="leenet")
    assert all(torch.equal(before[key], value) for key, value in ee.state_dict().items())
    assert modes == [module.training for module in ee.modules()]


def test_a_bad_batch_late_in_an_epoch_undoes_what_was_trained():
    ee = attached()
    before = copy.deepcopy(ee.state_dict())
    with pytest.raises(InputError, match="label 99"):
        leenet_fx.fit(ee, [(X, Y), (X, Y + 95)], epochs=1, method="leenet")
    assert all(torch.equal(before[key], value) for key, value in ee.state_dict().items())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"alpha": 1.2}, InputError, r"must lie in \[0, 1\], got 1.2"),
        ({"alpha": -0.1}, InputError, "alpha"),
        ({"alpha": float("nan")}, InputError, "alpha"),
        ({"alpha": "high"}, InputError, "alpha"),
        ({"method": "leanet"}, UnknownNameError, "Did you mean 'leenet'"),
        ({"cost": "flop"}, UnknownNameError, "Did you mean 'flops'"),
        ({"epochs": -1}, InputError, "whole numbers from 0"),
        ({"epochs": {"final": 2}}, InputError, "train_final=True"),
        ({"epochs": 1.5}, InputError, "whole numbers from 0"),
        ({"lr": 0}, InputError, "lr must be a positive number"),
        ({"val": 3}, InputError, "val must yield"),
    ],
)
def test_bad_arguments(options, error, message):
    ee = attached()
    with pytest.raises(error, match=message):
        leenet_fx.fit(ee, loader(), **{"method": "leenet", **options})
    assert ee.policy == NeverExit()


def test_a_registered_method_with_an_objective_of_its_own():
    name = "test-own-method"

    class FirstExit(Objective):
        def __call__(self, outputs):
            return outputs.losses[:, 0].mean()

    @leenet_fx.register_method(name)
    def own(threshold=0.9):
        steps = (single_update_phase("heads", "classifiers", FirstExit()),)
        return leenet_fx.Method(steps, leenet_fx.MaxProbability(threshold), "a test")

    ee = attached()
    result = leenet_fx.fit(ee, loader(), method=leenet_fx.get_method(name, threshold=0.7), epochs=2)
    assert [epoch.phase for epoch in result.history] == ["heads", "heads"]
    assert ee.policy == leenet_fx.MaxProbability(0.7)
    with pytest.raises(UnknownNameError, match="Did you mean 'threshold'"):
        leenet_fx.get_method(name, treshold=0.7)


def test_heads_are_trained_by_adam_and_necks_by_sgd():
    """One batch, whose learning rates are those of the middle of the phase."""
    x, labels = data(40)
    ee = leenet_fx.attach(tiny(), "every", example_inputs=x[:1], branch="conv")
    before = copy.deepcopy(ee)
    leenet_fx.fit(ee, [(x, labels)], method="shallow-deep", epochs=1)
    before.exits.train()
    losses = [nn.functional.cross_entropy(at, labels) for at in before.all_exits(x).logits[:-1]]
    sum(losses).backward()
    rate = (1 + math.cos(math.pi * 0.4 / 0.9)) / 2
    compared = set()
    for (name, old), new in zip(
        before.exits.named_parameters(), ee.exits.parameters(), strict=True
    ):
        if ".neck." in name:
            step = old.grad + 1e-3 * old
            expected = old - 0.2 * rate * 1.9 * step
        elif ".head." in name:
            expected = old - 0.1 * rate * old.grad / (old.grad.abs() + 1e-8)
        else:
            continue
        compared.add(name.split(".")[1])
        assert torch.allclose(new, expected, atol=1e-5), name
    assert compared == {"neck", "head"}
