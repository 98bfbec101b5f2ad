"""Warnings of results that are valid, but hardly what the user wants."""

import copy

import pytest
import torch
from helpers import attached, data, loader
from networks import TinyNet, images, tiny
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import leenet_fx
from leenet_fx import InputError
from leenet_fx.training.sanity import has_initial_weights, is_at_chance


def warnings_of(caplog, text):
    found = [r.getMessage() for r in caplog.records if r.name == "leenet_fx" and text in r.msg]
    caplog.clear()
    return found


def trained(classes=5):
    """A network whose final classifier is right on `data`."""
    ee = leenet_fx.attach(
        tiny(classes=classes + 1), [0, 2], example_inputs=images(1, 3, 16, 16), num_classes=classes
    )
    leenet_fx.fit(ee, loader(), method="shallow-deep", epochs={"final": 10, "exits": 5})
    return ee


@pytest.fixture(scope="module")
def network():
    return trained()


def test_independent_predictions_are_at_chance_and_better_ones_are_not():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(500) % 10
    for seed in range(5):
        generator.manual_seed(seed)
        guesses = torch.randint(0, 10, (500,), generator=generator)
        assert is_at_chance(guesses, labels)
        better = torch.where(torch.rand(500, generator=generator) < 0.2, labels, guesses)
        assert not is_at_chance(better, labels)
    assert is_at_chance(torch.full((500,), 3), labels)
    # Nothing is concluded from one class, from few samples, or without labels.
    assert not is_at_chance(labels * 0, labels * 0)
    assert not is_at_chance(guesses[:20], labels[:20])
    assert not is_at_chance(guesses, labels * 0 - 1)


@pytest.mark.parametrize("cache", [False, True])
def test_a_random_backbone_is_named_once_by_fit_and_by_evaluate(cache, network, caplog):
    random = attached()
    leenet_fx.fit(random, loader(), method="leenet", epochs=1, cache=cache)
    assert len(warnings_of(caplog, "no more than by chance")) == 1
    leenet_fx.evaluate(random, loader())
    assert len(warnings_of(caplog, "no more than by chance")) == 1
    good = copy.deepcopy(network)
    leenet_fx.fit(good, loader(), method="leenet", epochs=1, cache=cache)
    leenet_fx.evaluate(good, loader())
    assert not warnings_of(caplog, "no more than by chance")


def test_a_new_classifier_that_fit_trains_first_is_no_random_backbone(caplog):
    trained()
    assert not warnings_of(caplog, "no more than by chance")


def test_a_backbone_with_folded_statistics_is_named_before_it_is_trained(caplog):
    def fitted(model, recipe="joint"):
        ee = leenet_fx.attach(model, [1], example_inputs=images(1, 3, 16, 16))
        method = leenet_fx.get_method("branchynet", recipe=recipe)
        leenet_fx.fit(ee, loader(32), method=method, epochs=1)
        return ee, warnings_of(caplog, "as if they were folded")

    folded = tiny()
    for number, block in enumerate(folded.blocks[:3]):
        norm, conv = block.bn, block.conv1
        with torch.no_grad():
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            conv.weight.mul_(scale.view(-1, 1, 1, 1))
            norm.bias.copy_(scale * (conv.bias - norm.running_mean) + norm.bias + number)
            conv.bias.zero_()
        norm.weight.data.fill_(1)
        norm.running_mean.zero_()
        norm.running_var.fill_(1 - norm.eps)
    _, warnings = fitted(folded)
    assert len(warnings) == 1
    assert "3 of the backbone's 4 BatchNorm layers" in warnings[0]
    assert not fitted(folded, "disjoint")[1]
    for block in folded.blocks[:3]:
        block.bn.requires_grad_(False)
    ee, warnings = fitted(folded)
    assert not warnings
    assert all(
        torch.equal(ee.blocks[i].bn.running_var, folded.blocks[i].bn.running_var) for i in (0, 2)
    )
    # Neither statistics of its own nor a network from scratch are folded.
    assert not fitted(tiny())[1]
    torch.manual_seed(0)
    assert not fitted(TinyNet().eval())[1]


def test_an_untrained_teacher_is_named(network, caplog):
    x = data(32)[0]

    def new():
        return leenet_fx.attach(
            tiny(classes=4), [1], example_inputs=x[:1], num_classes=5, method="pteenet"
        )

    ee = new()
    leenet_fx.fit(ee, [x], epochs=1)
    assert len(warnings_of(caplog, "does not train it")) == 1
    leenet_fx.fit(ee, loader(32), method="shallow-deep", epochs={"exits": 0, "final": 1})
    caplog.clear()
    leenet_fx.fit(ee, [x], method="pteenet", epochs=1)
    assert not warnings_of(caplog, "does not train it")
    method = leenet_fx.get_method("distilled", mix=1.0)
    leenet_fx.fit(new(), [x], method=method, epochs={"final": 0, "exits": 1})
    assert len(warnings_of(caplog, "does not train it")) == 1


@pytest.mark.parametrize("build", [lambda: nn.Linear(64, 10), lambda: nn.Conv2d(64, 10, 1)])
def test_initial_weights_are_told_from_trained_ones(build):
    torch.manual_seed(0)
    layer = build()
    assert has_initial_weights(layer)
    with torch.no_grad():
        layer.weight += 0.1 * torch.randn(layer.weight.shape)
    assert not has_initial_weights(layer)


def test_nearly_all_samples_at_one_exit_are_named_by_fit_and_evaluate(network, caplog):
    ee = copy.deepcopy(network)
    for threshold, place in ((0.0, "exit 0"), (1.0, "the final classifier")):
        method = leenet_fx.get_method("shallow-deep", threshold=threshold)
        leenet_fx.fit(ee, loader(), method=method, epochs={"exits": 1, "final": 1})
        found = warnings_of(caplog, "end at")
        assert len(found) == 1
        assert place in found[0]
        leenet_fx.evaluate(ee, loader())
        found = warnings_of(caplog, "end at")
        assert len(found) == 1
        assert place in found[0]
    ee.policy = leenet_fx.NeverExit()
    leenet_fx.evaluate(ee, loader())
    assert not warnings_of(caplog, "end at")


def test_a_sweep_measures_its_ends_without_a_warning(network, caplog):
    leenet_fx.sweep(
        network,
        loader(),
        loader(),
        alphas=(0.0, 1.0),
        epochs={"final": 1, "exits": 1, "gates": 20},
        progress=False,
    )
    assert not warnings_of(caplog, "end at")


class Wide(TinyNet):
    def forward(self, x):
        return [super().forward(x)]


@pytest.mark.parametrize("other", [TinyNet(7), Wide(5), nn.Flatten()])
def test_a_backbone_with_other_classes_is_refused(other, network):
    with pytest.raises(InputError, match="backbone returns"):
        leenet_fx.evaluate(network, loader(), backbone=other.eval())
    x, labels = data(40)
    same = DataLoader(TensorDataset(x, labels), 20)
    assert leenet_fx.evaluate(network, same, backbone=tiny()).backbone_accuracy <= 1
