"""attach: its arguments."""

import copy
import logging
import pickle

import pytest
import torch
from networks import branches_of_images, close, images, oracle, tiny

import leenet_fx
import placement
from leenet_fx import InputError, PlacementError, UnknownNameError
from leenet_fx.methods import MethodConfig

EXAMPLE = images(1, 3, 16, 16)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"strategy": "fien"}, UnknownNameError, "Did you mean 'fine'"),
        ({"branch": "pol"}, UnknownNameError, "Did you mean 'pool'"),
        ({"strategy": ["blocks.9"]}, UnknownNameError, r"Did you mean 'blocks\.\d'"),
        ({"num_exits": 5}, PlacementError, "only 4 block boundaries"),
        ({"strategy": "fixed"}, PlacementError, "needs positions"),
        ({"num_classes": 0}, InputError, "whole number from 1"),
        ({"example_inputs": torch.zeros(1, 7, 16, 16)}, InputError, r"\(1, 7, 16, 16\)"),
        ({"example_inputs": torch.zeros(3)}, InputError, "batch of images"),
        ({"example_inputs": "image"}, InputError, "batch of images"),
    ],
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        leenet_fx.attach(tiny(), **{"example_inputs": EXAMPLE, **options})


def test_only_modules_without_exits():
    with pytest.raises(InputError, match=r"torch\.nn\.Module, got function"):
        leenet_fx.attach(lambda x: x)
    ee = leenet_fx.attach(tiny(), "every", example_inputs=EXAMPLE)
    with pytest.raises(InputError, match="has exits already"):
        leenet_fx.attach(ee)


def test_another_number_of_classes_replaces_the_classifier():
    model = tiny()
    ee = leenet_fx.attach(model, "every", example_inputs=EXAMPLE, num_classes=3)
    assert ee(images(2, 3, 16, 16)).shape == (2, 3)
    assert [at.shape[1] for at in ee.all_exits(images(2, 3, 16, 16)).logits] == [3] * 5
    assert model.fc.out_features == 5
    assert ee.fc.out_features == 3
    assert ee.spec.classifier_is_new
    ours = {key for key in ee.state_dict() if not key.startswith("exits.")}
    assert ours == set(model.state_dict())
    same = leenet_fx.attach(model, "every", example_inputs=EXAMPLE, num_classes=5)
    assert not same.spec.classifier_is_new


def test_the_seed_alone_decides_the_new_weights():
    model = tiny()
    state = torch.get_rng_state()
    one, two, other = (
        leenet_fx.attach(model, "every", example_inputs=EXAMPLE, num_classes=3, seed=seed)
        for seed in (1, 1, 2)
    )
    assert torch.equal(state, torch.get_rng_state())
    for key in ("exits.0.head.linear.weight", "fc.weight"):
        assert torch.equal(one.state_dict()[key], two.state_dict()[key])
        assert not torch.equal(one.state_dict()[key], other.state_dict()[key])


def test_placements_by_list_and_function():
    ee = leenet_fx.attach(tiny(), ["blocks.2", 0], example_inputs=EXAMPLE)
    assert ee.spec.placement.names == ("blocks.0", "blocks.2")
    again = leenet_fx.attach(tiny(), ee.spec.placement, example_inputs=EXAMPLE)
    assert again.spec.placement.names == ("blocks.0", "blocks.2")

    last = leenet_fx.attach(
        tiny(), lambda profile, n: placement.fixed(profile, [-1]), example_inputs=EXAMPLE
    )
    assert last.spec.placement.indices == (3,)


def test_flatten_warns_when_it_outgrows_the_backbone(caplog):
    with caplog.at_level(logging.WARNING, "leenet_fx"):
        ee = leenet_fx.attach(tiny(), "every", example_inputs=EXAMPLE, branch="flatten")
    added = sum(p.numel() for p in ee.exits.parameters())
    assert f"{added:,}" in caplog.text
    with pytest.raises(InputError, match="one image size only"):
        ee.all_exits(images(1, 3, 24, 24))


@pytest.mark.parametrize("branch", branches_of_images())
@torch.no_grad()
def test_every_branch_agrees_with_its_oracle(branch):
    ee = leenet_fx.attach(tiny(), "every", example_inputs=EXAMPLE, branch=branch)
    x = images(6, 3, 16, 16)
    index = torch.tensor([0, 4, 2, 1, 3, 4])
    assert close(ee.predict(x, exit_index=index).logits, oracle(ee, x, index), 1e-5)
    ee.policy = leenet_fx.GateThreshold(0.0)
    everything, found = ee.all_exits(x), ee.predict(x)
    for sample, left in enumerate(found.exit_index.tolist()):
        assert bool((everything.gate_logits[sample, :left] < 1e-6).all())
        if left < 4:
            assert float(everything.gate_logits[sample, left]) > -1e-6


@pytest.mark.parametrize(
    ("name", "options", "axis", "width"),
    [
        ("torchvision/resnet18", {}, 1, 64),
        ("torchvision/swin_t", {}, 3, 96),
        ("torchvision/convnext_tiny", {}, 1, 96),
        ("timm/vit_tiny_patch16_224", {"img_size": 64}, 2, 192),
    ],
)
def test_heads_pool_over_the_right_axes(name, options, axis, width):
    model = leenet_fx.create_model(name, **options).eval()
    ee = leenet_fx.attach(model, [0], example_inputs=images(1, 3, 64, 64))
    branch = ee.exits[0]
    assert branch.features[0].channel_axis == axis
    assert branch.neck.width == width
    feature = next(ee.exit_features(images(2, 3, 64, 64)))[0]
    others = tuple(a for a in range(1, feature.ndim) if a != axis)
    assert torch.allclose(branch.neck(*branch.pool(feature)), feature.mean(others))


def test_a_finer_grid_sees_each_quarter_of_either_layout():
    from leenet_fx.parts.exit_site import ExitSite, FeatureShape
    from leenet_fx.parts.necks import PoolNeck

    nchw = images(2, 6, 8, 8)
    first = PoolNeck(ExitSite((FeatureShape((1, 6, 8, 8), 1),), 10))
    last = PoolNeck(ExitSite((FeatureShape((1, 8, 8, 6), 3),), 10))
    expected = torch.stack(
        [
            nchw[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((2, 3))
            for i in range(4)
            for j in range(4)
        ],
        2,
    ).flatten(1)
    assert first.grid == 4
    assert torch.allclose(first(*first.pool(nchw)), expected, atol=1e-6)
    assert torch.allclose(last(*last.pool(nchw.permute(0, 2, 3, 1))), expected, atol=1e-6)


def test_attach_works_in_inference_mode_and_makes_weights_that_train():
    with torch.inference_mode():
        ee = leenet_fx.attach(tiny(), "linear", example_inputs=images(1, 3, 16, 16))
        x = images(2, 3, 16, 16)
        assert close(ee.eval()(x), tiny()(x), 1e-5)
    ee.train()(images(4, 3, 16, 16)).logits[0].sum().backward()
    assert next(ee.exits.branches()).classifier_parameters()[0].grad is not None


def test_the_network_remembers_its_method(tmp_path):
    ee = leenet_fx.attach(tiny(), "every", example_inputs=EXAMPLE, method="ztw")
    assert ee.spec.method == MethodConfig("ztw")
    for copied in (copy.copy(ee), copy.deepcopy(ee), pickle.loads(pickle.dumps(ee))):
        assert copied.spec.method == ee.spec.method
    options = leenet_fx.get_method("pabee", patience=3)
    ee = leenet_fx.attach(tiny(), "every", example_inputs=EXAMPLE, method=options)
    assert ee.spec.method == MethodConfig("pabee", {"patience": 3})
    assert leenet_fx.attach(tiny(), "every", example_inputs=EXAMPLE).spec.method is None
