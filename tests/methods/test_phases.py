"""Training phases of each method: what is trained, and in which order."""

import copy

import numpy as np
import pytest
import torch
from helpers import (
    array,
    assert_equal,
    backbone,
    data,
    loader,
    log_softmax,
    shuffled,
)
from method_helpers import (
    FROZEN,
    GATED,
    JOINT,
    PRESETS,
    all_exits,
    attach_for,
    attached_for,
    changed_keys,
    cross_entropies,
    phases_run,
    state,
)
from networks import TinyNet, tiny

import leenet_fx
from leenet_fx import (
    InputError,
    cache_features,
)


@pytest.mark.parametrize("method", PRESETS)
def test_each_method_trains_its_groups_and_sets_its_policy(method):
    phases, policy = PRESETS[method]
    model = tiny()
    original = copy.deepcopy(model.state_dict())
    ee = attach_for(method, model)
    before, frozen = state(ee), backbone(ee)
    result = leenet_fx.fit(ee, loader(), method=method, epochs=2)
    assert result.method == method
    epochs = 1 if method == "e2cm" else 2
    assert phases_run(result) == [phase for phase in phases for _ in range(epochs)]
    assert not any(module.training for module in ee.modules())
    assert all(p.grad is None and p.requires_grad for p in ee.parameters())
    assert ee.policy == policy
    outputs = all_exits(ee, data(seed=5)[0])
    assert bool(torch.stack(outputs.logits).isfinite().all())
    assert bool(outputs.gate_logits.isfinite().all())
    assert not changed_keys(original, model.state_dict())
    changed = changed_keys(before, state(ee))
    if method in JOINT:
        assert {"stem.weight", "fc.bias", "blocks.3.bn.running_mean"} <= changed
        assert all(key in changed for key in frozen if "num_batches" not in key)
    else:
        assert not changed_keys(frozen, backbone(ee))
    # Gates change if the method trains them; heads always, except for class means.
    assert any(".gate.linear." in key for key in changed) == (method in GATED)
    assert any(".head.linear." in key for key in changed) == (method != "e2cm")


@pytest.mark.parametrize("method", FROZEN)
def test_training_on_cached_features_equals_training_on_images(method):
    live, cached = attached_for(method), attached_for(method)
    first = leenet_fx.fit(live, shuffled(), shuffled(40, 5), method=method, epochs=2, seed=3)
    second = leenet_fx.fit(
        cached, shuffled(), shuffled(40, 5), method=method, epochs=2, seed=3, cache=True
    )
    assert_equal(live, cached, atol=2e-5)
    for a, b in zip(first.history, second.history, strict=True):
        assert a.train_loss == pytest.approx(b.train_loss, rel=1e-4)
        assert a.val_loss == pytest.approx(b.val_loss, rel=1e-4)


@pytest.mark.parametrize("method", sorted(JOINT))
def test_caching_features_raises_if_the_backbone_is_trained(method):
    ee = attached_for(method)
    before = state(ee)
    with pytest.raises(InputError, match=f"'{method}' trains the backbone"):
        leenet_fx.fit(ee, loader(), method=method, cache=True)
    assert not changed_keys(before, state(ee))


def test_joint_training_raises_on_cached_features_and_on_shared_weights():
    ee = attached_for("branchynet")
    with cache_features(ee, loader()) as cached:
        with pytest.raises(InputError, match=r"'branchynet' trains the backbone.*'train'"):
            leenet_fx.fit(ee, cached, method="branchynet")
        leenet_fx.fit(
            ee, cached, method=leenet_fx.get_method("branchynet", recipe="disjoint"), epochs=1
        )
    with pytest.raises(InputError, match="attach with copy=True"):
        leenet_fx.fit(attach_for("branchynet", tiny(), copy=False), loader(), method="branchynet")


RECIPES = {
    "boostnet": (["exits"], ["joint"], ["exits", "joint"]),
    "branchynet": (["exits"], ["joint"], ["exits", "joint"]),
    "diffbranch": (["exits", "joint"], ["joint"], ["exits", "joint"]),
    "distilled": (["exits"], ["joint"], ["exits", "joint"]),
    "eenet": (["exits"], ["joint"], ["exits", "joint"]),
    "eenets": (["exits", "gates"], ["exits", "gates"], ["exits", "joint exits", "joint gates"]),
    "msdnet": (["exits"], ["joint"], ["exits", "joint"]),
    "pabee": (["exits"], ["joint"], ["exits", "joint"]),
    "shallow-deep": (["exits"], ["joint"], ["exits", "joint"]),
}


@pytest.mark.parametrize("method", RECIPES)
def test_recipes_determine_the_phases_and_whether_the_backbone_changes(method):
    for recipe, phases in zip(("disjoint", "joint", "mixed"), RECIPES[method], strict=True):
        ee = attached_for(method)
        frozen = backbone(ee)
        result = leenet_fx.fit(
            ee, loader(48), method=leenet_fx.get_method(method, recipe=recipe), epochs=1
        )
        assert phases_run(result) == phases
        assert bool(changed_keys(frozen, backbone(ee))) == (recipe != "disjoint")


def test_train_final_adds_a_phase_for_the_final_classifier():
    for method, phases in (
        ("ztw", ["final", "exits", "ensembles"]),
        ("jei-dnn", ["final", "exits", "alternating"]),
    ):
        ee = attached_for(method)
        frozen = backbone(ee)
        result = leenet_fx.fit(ee, loader(48), method=method, epochs=1, train_final=True)
        assert phases_run(result) == phases
        assert changed_keys(frozen, backbone(ee)) == {"fc.weight", "fc.bias"}


class Encoder(TinyNet):
    def forward(self, x):
        return self.blocks(self.stem(x))


@pytest.mark.parametrize("recipe", ["joint", "mixed"])
def test_the_classifier_added_to_an_encoder_is_trained_with_the_backbone(recipe):
    ee = attach_for("branchynet", Encoder().eval(), num_classes=5)
    before = state(ee)
    leenet_fx.fit(
        ee, loader(48), method=leenet_fx.get_method("branchynet", recipe=recipe), epochs=1
    )
    changed = changed_keys(before, state(ee))
    assert {"stem.weight", "exits.final.linear.weight", "exits.final.linear.bias"} <= changed


@pytest.mark.parametrize("recipe", ["joint", "mixed"])
def test_the_classifier_added_to_an_encoder_is_not_trained_if_disabled(recipe):
    ee = attach_for("branchynet", Encoder().eval(), num_classes=5)
    before = state(ee)
    leenet_fx.fit(
        ee,
        loader(48),
        method=leenet_fx.get_method("branchynet", recipe=recipe),
        epochs=1,
        train_final=False,
    )
    assert not {"exits.final.linear.weight"} & changed_keys(before, state(ee))


# Functions of the mean cross-entropies of 5 classifiers and their relative costs.
LOSSES = {
    "branchynet": lambda ce, c: sum(ce[:4]) + 0.3 * ce[4],
    "msdnet": lambda ce, c: sum(ce),
    "pabee": lambda ce, c: (ce[0] + 2 * ce[1] + 3 * ce[2] + 4 * ce[3] + 5 * ce[4]) / 15,
    "boostnet": lambda ce, c: ce[0] / 5 + ce[1] / 4 + ce[2] / 3 + ce[3] / 2 + ce[4],
    # In the first epoch.
    "shallow-deep": lambda ce, c: 0.01 * sum(ce[:4]) + ce[4],
}


def distillation_loss(logits, labels, mix=0.5, temperature=2.0):
    """Exits on labels and on the final classifier, which is trained on labels."""
    *exits, final = logits
    ce = cross_entropies(logits, labels)
    teacher = log_softmax(final / temperature)
    total = ce[-1]
    for at, loss in zip(exits, ce, strict=False):
        gap = teacher - log_softmax(at / temperature)
        divergence = (np.exp(teacher) * gap).sum(1).mean()
        total += (1 - mix) * loss + mix * temperature**2 * divergence
    return total


@pytest.mark.parametrize("method", [*LOSSES, "distilled"])
def test_the_loss_of_joint_training_equals_its_formula(method):
    """Of the first batch, before the first update, from the outputs in training mode."""
    x, labels = data(40)
    options = {"method": leenet_fx.get_method(method, recipe="joint"), "epochs": 1}
    ee = attached_for(method)
    leenet_fx.fit(ee, [(x, labels)], **options)
    logits = [array(at) for at in copy.deepcopy(ee).train()(x).logits]
    result = leenet_fx.fit(ee, [(x, labels)], **options)
    if method == "distilled":
        expected = distillation_loss(logits, labels)
    else:
        expected = LOSSES[method](cross_entropies(logits, labels), ee.costs.relative())
    assert result.history[0].train_loss == pytest.approx(expected, rel=1e-4)
