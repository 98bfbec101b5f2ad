"""CalexNet: weights of survivors, thresholds of classes and prototypes, against numpy."""

import numpy as np
import pytest
import torch
from helpers import data, loader, log_softmax
from method_helpers import PRESETS, all_exits, attached_for, fitted, same_state, softmax
from networks import images, tiny
from torch.utils.data import DataLoader, TensorDataset

import leenet_fx
from leenet_fx import InputError
from leenet_fx.calibration.cached_outputs import CachedOutputs, outputs_of_data
from leenet_fx.calibration.class_thresholds import fit_class_thresholds
from leenet_fx.objectives import BatchOutputs, CalexNet
from leenet_fx.parts.exit_site import ExitSite, FeatureShape
from leenet_fx.parts.prototypes import PrototypeNeck
from leenet_fx.policies import ClassThresholds, policy_from_dict, policy_to_dict


def drawn_logits(count=3, samples=7, classes=5):
    return [3 * images(samples, classes, seed=seed) for seed in range(count)]


def batch_of(logits):
    gates = torch.zeros(len(logits[0]), len(logits) - 1)
    labels = torch.full((len(logits[0]),), -1)
    return BatchOutputs(tuple(logits), gates, labels, torch.ones(len(logits)), 0.5)


def test_the_loss_is_the_divergence_weighted_by_soft_survival():
    logits = drawn_logits()
    temperature, confidence, softness = 3.0, 0.8, 0.1
    values = [at.double().numpy() for at in logits]
    teacher = log_softmax(values[-1] / temperature)
    survival, expected = np.ones(7), 0.0
    for at in values[:-1]:
        student = log_softmax(at / temperature)
        divergence = (np.exp(teacher) * (teacher - student)).sum(1)
        expected += temperature**2 * (survival / survival.mean() * divergence).mean()
        stays = 1 / (1 + np.exp((softmax(at).max(1) - confidence) / softness))
        survival = survival * stays
    found = CalexNet(temperature, confidence, softness)(batch_of(logits))
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_nobody_confident_means_equal_weights_and_no_gradient_passes_through_them():
    logits = drawn_logits()
    plain = leenet_fx.methods.get_method("distilled", mix=1.0).phases[1].updates[0].objective
    # A confidence of 1 that no sample comes near: all survive.
    hard = CalexNet(2.0, 1.0, 1e-4)
    assert float(hard(batch_of(logits))) == pytest.approx(float(plain(batch_of(logits))), rel=1e-5)
    first, second, final = (at.clone().requires_grad_() for at in logits)
    CalexNet()(batch_of([first, second, final])).backward()
    alone = first.detach().clone().requires_grad_()
    CalexNet()(batch_of([alone, final.detach()])).backward()
    assert torch.allclose(first.grad, alone.grad)
    assert final.grad is None


@pytest.mark.parametrize("option", ["temperature", "softness", "confidence"])
@pytest.mark.parametrize("value", [-1, float("nan"), "2", True])
def test_options_out_of_range_are_refused(option, value):
    with pytest.raises(InputError, match=option):
        CalexNet(**{option: value})


def drawn_outputs(samples=60, classes=4):
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(classes, (samples,), generator=generator)
    right = torch.nn.functional.one_hot(labels, classes)
    logits = tuple(
        (at + 1) * right + 2 * torch.randn(samples, classes, generator=generator) for at in range(3)
    )
    empty = tuple(torch.empty(samples, 0) for _ in range(2))
    return CachedOutputs(logits, empty, labels)


@pytest.mark.parametrize("precision", [0.5, 0.8, 0.95, 1.0])
def test_thresholds_are_the_least_that_reach_the_precision_among_survivors(precision):
    outputs = drawn_outputs()
    ee = leenet_fx.attach(
        tiny(classes=4), [0.3, 0.6], example_inputs=images(1, 3, 16, 16), method="calexnet"
    )
    policy = fit_class_thresholds(ee, outputs, precision)
    table = policy.options()["class_thresholds"]
    inside = np.ones(60, bool)
    labels = outputs.labels.numpy()
    for index, logits in enumerate(outputs.logits[:-1]):
        largest, predicted = (at.numpy() for at in logits.softmax(1).max(1))
        exits = np.zeros(60, bool)
        for label in range(4):
            at = inside & (predicted == label)
            reached = [
                value
                for value in largest[at]
                if (labels[at & (largest >= value)] == label).mean() >= precision
            ]
            assert table[index][label] == (min(reached) if reached else 2.0)
            exits |= at & (largest >= table[index][label])
        decided = policy.should_exit(index, logits).numpy()
        assert (decided[inside] == exits[inside]).all()
        inside &= ~exits


def test_equal_confidences_exit_together():
    logits = torch.tensor([[2.0, 0.0]] * 3 + [[4.0, 0.0]])
    outputs = CachedOutputs((logits, logits), (torch.empty(4, 0),), torch.tensor([0, 0, 1, 0]))
    ee = leenet_fx.attach(
        tiny(classes=2), [0.3], example_inputs=images(1, 3, 16, 16), method="calexnet"
    )
    strict = fit_class_thresholds(ee, outputs, 0.8).options()["class_thresholds"]
    loose = fit_class_thresholds(ee, outputs, 0.75).options()["class_thresholds"]
    assert strict == [[float(logits.softmax(1)[3, 0]), 2.0]]
    assert loose == [[float(logits.softmax(1)[0, 0]), 2.0]]


@pytest.mark.parametrize("precision", [0, 1.1, float("nan"), "0.9", True])
def test_precisions_out_of_range_are_refused(precision):
    with pytest.raises(InputError, match="precision"):
        fit_class_thresholds(attached_for("calexnet"), loader(), precision)


@pytest.mark.parametrize("table", [[0.5, 0.5], [[0.5], [0.5, 0.6]], [[float("nan")]], "ab", 3])
def test_tables_that_are_none_are_refused(table):
    with pytest.raises(InputError, match="class_thresholds"):
        ClassThresholds(table)


def test_policies_of_other_networks_are_refused():
    policy = ClassThresholds([[0.5] * 5] * 2)
    ee = attached_for("calexnet")
    with pytest.raises(InputError, match="fitted to 2 exits, but the network has 4"):
        ee.policy = policy
    with pytest.raises(InputError, match="fitted to 5 classes, got logits of 3"):
        policy.should_exit(0, torch.zeros(2, 3))


def test_fitted_thresholds_run_save_and_load(tmp_path):
    ee = fitted("calexnet")
    ee.policy = fit_class_thresholds(ee, loader(), 0.6)
    assert policy_from_dict(policy_to_dict(ee.policy)) == ee.policy
    x = data(24, seed=5)[0]
    found = ee.predict(x)
    outputs = outputs_of_data(ee, [data(24, seed=5)], labelled=True)
    table = torch.tensor(ee.policy.options()["class_thresholds"])
    expected = torch.full((24,), ee.num_exits)
    for index in reversed(range(ee.num_exits)):
        largest, predicted = outputs.logits[index].softmax(1).max(1)
        expected = torch.where(largest >= table[index][predicted], index, expected)
    assert torch.equal(found.exit_index, expected)
    assert len(expected.unique()) > 1
    leenet_fx.save(ee, tmp_path / "saved")
    loaded = leenet_fx.load(tmp_path / "saved", tiny())
    assert loaded.policy == ee.policy
    assert torch.equal(loaded.predict(x).logits, found.logits)
    # One number shifts all thresholds, so budgets can be set as for other policies.
    leenet_fx.set_budget(ee, loader(), 0.7)
    assert float(ee.predict(data()[0]).cost.mean()) <= 0.7 + 1e-6


def test_labels_are_not_read():
    x, labels = data(48)
    networks = [
        fitted("calexnet", DataLoader(TensorDataset(x, given), 16))
        for given in (labels, labels.flip(0))
    ]
    assert same_state(*networks)
    assert PRESETS["calexnet"][0] == ["exits"]


@pytest.mark.parametrize("size", [2, 8])
@pytest.mark.parametrize("layout", ["maps", "last", "tokens"])
def test_prototypes_weigh_cells_by_their_similarity(layout, size):
    shape, axis = {"maps": ((3, 6, 4, 4), 1), "last": ((3, 4, 4, 6), 3), "tokens": ((3, 9, 6), 2)}[
        layout
    ]
    features = images(*shape, seed=3)
    torch.manual_seed(0)
    neck = PrototypeNeck(ExitSite((FeatureShape((1, *shape[1:]), axis),), 5), 2, size)
    values = features.double().numpy()
    cells = np.moveaxis(values, axis, 1).reshape(3, 6, -1)
    if layout == "tokens" and size == 2:
        # Adaptive pooling of 9 tokens to 4 cells: from ⌊9i/4⌋ to ⌈9(i+1)/4⌉.
        cells = np.stack([cells[:, :, a:b].mean(2) for a, b in ((0, 3), (2, 5), (4, 7), (6, 9))], 2)
    elif size == 2:
        cells = cells.reshape(3, 6, 2, 2, 2, 2).mean((3, 5)).reshape(3, 6, 4)
    prototypes = neck.pools[0].prototypes.detach().double().numpy()
    cosine = np.einsum("kc,bcn->bkn", prototypes, cells) / (
        np.linalg.norm(prototypes, axis=1)[None, :, None]
        * np.linalg.norm(cells, axis=1)[:, None, :]
    )
    weights = np.exp(10 * cosine) / np.exp(10 * cosine).sum(2, keepdims=True)
    averages = np.einsum("bkn,bcn->bkc", weights, cells).reshape(3, -1)
    found = neck(*neck.pool(features)).detach().numpy()
    assert np.allclose(found[:, -12:], averages, atol=1e-5)
    plain = cells.mean(2) if layout == "tokens" else cells.reshape(3, -1)
    assert np.allclose(found[:, :-12], plain, atol=1e-5)


@pytest.mark.parametrize("option", ["prototypes", "size"])
@pytest.mark.parametrize("value", [0, 1.5, True, "4"])
def test_necks_with_other_numbers_are_refused(option, value):
    with pytest.raises(InputError, match=option):
        PrototypeNeck(ExitSite((FeatureShape((1, 4, 8, 8), 1),), 5), **{option: value})


def test_conditional_execution_predicts_as_the_whole_network():
    ee = fitted("calexnet")
    x = data(24, seed=5)[0]
    expected = all_exits(ee, x).logits
    forced = ee.predict(x, exit_index=torch.arange(24) % 5)
    for sample, index in enumerate(forced.exit_index.tolist()):
        assert torch.allclose(forced.logits[sample], expected[index][sample], atol=1e-4)
