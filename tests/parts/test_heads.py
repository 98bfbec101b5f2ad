"""Heads, against their formulas."""

import copy
import math

import numpy as np
import pytest
import torch
from branch_helpers import (
    BATCH,
    all_exits,
    attached,
    neck_vectors,
    randomized,
)
from helpers import (
    array,
    data,
    loader,
    log_softmax,
)
from networks import images, tiny

import leenet_fx
from leenet_fx import (
    InputError,
    NeverExit,
)


def layer_norm(z, norm):
    centred = z - z.mean(1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(1, keepdims=True) + norm.eps)
    return scaled * array(norm.weight) + array(norm.bias)


@pytest.mark.parametrize("branch", ["pool", "conv"])
@pytest.mark.parametrize("head", ["ensemble", "cascade", "cascade-norm"])
def test_a_cascade_reads_the_previous_head_and_each_exit_classifies_by_the_ensemble(branch, head):
    ee = randomized(attached(branch, head=head))
    z, passed_logits = None, []
    for index, (part, x) in enumerate(zip(ee.exits, neck_vectors(ee), strict=True)):
        own = x @ array(part.head.linear.weight).T + array(part.head.linear.bias)
        if z is not None and head != "ensemble":
            read = layer_norm(z, part.head.norm) if head == "cascade-norm" else z
            own = own + read @ array(part.head.before.weight).T
        z = own
        passed_logits.append(z)
        logs = [
            math.exp(w) * log_softmax(at)
            for w, at in zip(part.head.weights.tolist(), passed_logits, strict=True)
        ]
        ensemble = sum(logs) / (index + 1) + array(part.head.bias)
        assert np.allclose(all_exits(ee).logits[index], ensemble, atol=1e-4)
    for part in ee.exits:
        part.head.ensembles.fill_(False)
    for own, found in zip(passed_logits, all_exits(ee).logits, strict=False):
        assert np.allclose(found, own, atol=1e-4)


@pytest.mark.parametrize(("head", "factor"), [("additive", 1), ("additive-half", 0.5)])
def test_additive_heads_sum_their_logits(head, factor):
    ee = randomized(attached(head=head))
    total = 0
    for part, x, found in zip(ee.exits, neck_vectors(ee), all_exits(ee).logits, strict=False):
        total = factor * total + x @ array(part.head.linear.weight).T + array(part.head.linear.bias)
        assert np.allclose(found, total, atol=1e-4)


@pytest.mark.parametrize(
    "head", ["ensemble", "cascade", "cascade-norm", "additive", "additive-half"]
)
def test_previous_heads_receive_no_gradient(head):
    ee = randomized(attached(head=head)).train()
    ee.all_exits(BATCH).logits[2].square().sum().backward()
    assert [part.head.linear.weight.grad is not None for part in ee.exits] == [
        False,
        False,
        True,
        False,
    ]
    # The features are not detached, so the backbone receives a gradient.
    assert float(ee.get_submodule("stem").weight.grad.abs().sum()) > 0


@pytest.mark.parametrize("euclidean", [False, True])
def test_class_means_equal_those_of_numpy(euclidean):
    """Features of the backbone, pooled, standardized and averaged with numpy."""
    model = tiny()
    method = leenet_fx.get_method("e2cm", euclidean=euclidean)
    ee = attached(model=model, **method.branch_options)
    leenet_fx.fit(ee, loader(90, batch_size=16), method=method)
    x, labels = data(90)
    new = data(20, seed=7)[0]
    train, test = model.stem(x), model.stem(new)
    outputs = all_exits(ee, new)
    for index, block in enumerate(model.blocks):
        train, test = block(train), block(test)
        vectors, others = (
            array(at).reshape(-1, 8, 4, 4, 4, 4).mean((3, 5)).reshape(len(at), 128)
            for at in (train, test)
        )
        mean, deviation = vectors.mean(0), vectors.std(0)
        # A constant feature is mapped to 0.
        factor = np.where(deviation > 1e-6, 1 / np.maximum(deviation, 1e-6), 0) / math.sqrt(128)
        vectors, others = ((v - mean) * factor for v in (vectors, others))
        means = np.stack([vectors[labels.numpy() == k].mean(0) for k in range(5)])
        own = ((vectors - means[labels.numpy()]) ** 2).sum(1)
        spread = own.mean()
        distances = ((others[:, None] - means[None]) ** 2).sum(2)
        if euclidean:
            spread = np.sqrt([own[labels.numpy() == k].mean() for k in range(5)])
            distances = np.sqrt(distances)
        assert np.allclose(outputs.logits[index], -distances / spread, atol=1e-3)
        assert np.allclose(array(ee.exits[index].head.means), means, atol=1e-5)


def test_a_class_without_images_is_named_in_the_error():
    ee = attached(head="means")
    x, labels = data(60)
    keep = labels != 3
    before = copy.deepcopy(ee.state_dict())
    with pytest.raises(InputError, match="Class 3 has no training image"):
        leenet_fx.fit(ee, [(x[keep], labels[keep])], method="e2cm")
    assert all(torch.equal(before[key], value) for key, value in ee.state_dict().items())
    assert ee.policy == NeverExit()


def test_only_heads_with_class_means_accumulate_them():
    ee = attached()
    with pytest.raises(InputError, match="has no class means"):
        ee.exits[0].accumulate_class_means(torch.tensor([0]), images(1, 128))
