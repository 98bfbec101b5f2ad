"""attach: what it accepts, what it refuses, and models with odd cuts."""

import logging

import pytest
import torch
from networks import Block, TinyNet, close, images, oracle, tiny
from torch import nn

import leenet_fx
from leenet_fx import EarlyExitError, InputError, PlacementError, TraceError, UnknownNameError
from leenet_fx.graph.traced_model import trace_model
from leenet_fx.parts.branches import list_branches

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


def test_a_model_without_boundaries():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    with pytest.raises(PlacementError, match="no block boundary"):
        leenet_fx.attach(model, example_inputs=torch.zeros(1, 3, 2, 2))


def test_a_model_without_an_input_size():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, x):
            return x * self.weight

    with pytest.raises(InputError, match="No input size found for Odd"):
        leenet_fx.attach(Odd())


def test_a_guessed_input_size_is_noted(caplog):
    with caplog.at_level(logging.WARNING, "leenet_fx"):
        ee = leenet_fx.attach(tiny())
    assert ee.spec.image_shape == (3, 224, 224)
    assert "3 x 224 x 224" in caplog.text


class WithInner(TinyNet):
    """Hands its images to another module first."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return super().forward(self.inner(x))


class BranchesOnValues(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x
        return -x


class BranchesOnShape(nn.Module):
    def forward(self, x):
        return -x if x.shape[2] > 20 else x


def test_control_flow_on_data_is_refused_with_its_place():
    model = WithInner(BranchesOnValues())
    place = r"(?s)module 'inner' \(BranchesOnValues\) at .*test_attach\.py:\d+"
    with pytest.raises(TraceError, match=place):
        leenet_fx.attach(model, example_inputs=EXAMPLE)


def test_a_module_may_branch_on_shapes(caplog):
    model = WithInner(BranchesOnShape()).eval()
    ee = leenet_fx.attach(model, "every", example_inputs=EXAMPLE)
    assert ee.spec.tracer == "export"
    assert "leaf_modules" in caplog.text
    x = images(2, 3, 16, 16)
    assert close(ee(x), model(x), 1e-6)
    with pytest.raises(InputError, match="example_inputs of that size"):
        ee(images(2, 3, 24, 24))


def test_a_module_kept_whole_may_branch_on_shapes():
    model = WithInner(BranchesOnShape()).eval()
    leaves = (BranchesOnShape,)
    ee = leenet_fx.attach(model, "every", example_inputs=EXAMPLE, leaf_modules=leaves)
    for size in (16, 24):
        x = images(2, 3, size, size)
        assert torch.equal(ee(x), model(x))


def test_a_model_that_is_no_classifier():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    with pytest.raises(InputError, match=r"\(B, classes\): pass num_classes"):
        leenet_fx.attach(model, example_inputs=EXAMPLE)


def test_a_member_name_that_is_taken():
    model = tiny()
    model.exits = nn.Identity()
    with pytest.raises(EarlyExitError, match="member called 'exits'"):
        leenet_fx.attach(model, "every", example_inputs=EXAMPLE)


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
    import placement

    last = leenet_fx.attach(
        tiny(), lambda profile, n: placement.fixed(profile, [-1]), example_inputs=EXAMPLE
    )
    assert last.spec.placement.indices == (3,)


class BatchIntegers(TinyNet):
    """Carries the batch size, a shape and a tensor that is only measured across every cut."""

    def forward(self, x):
        images, batch = x, x.shape[0]
        shape = x.shape
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        x = x.reshape(batch, -1, images.size(2) * shape[3]).mean(2)
        return self.fc(x)


class Dense(nn.Module):
    """Several tensors alive at each cut, one of them with the batch on another axis."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block(3) for _ in range(3))
        self.fc = nn.Linear(12, 4)

    def forward(self, x):
        with_alpha = x.mean((2, 3)).t()
        found = [x]
        for block in self.blocks:
            found.append(block(sum(found)))
        x = torch.cat(found, 1).mean((2, 3))
        return self.fc(x) + with_alpha.sum(0)[:, None]


@pytest.mark.parametrize("model", [BatchIntegers(), Dense()], ids=lambda m: type(m).__name__)
def test_whatever_crosses_a_cut_follows_the_batch(model):
    model = model.eval()
    ee = leenet_fx.attach(model, "every", example_inputs=EXAMPLE)
    x = images(6, 3, 16, 16)
    assert torch.equal(ee(x), model(x))
    n = ee.num_exits
    index = torch.tensor([0, n, 1, n, n, 0])
    assert close(ee.predict(x, exit_index=index).logits, oracle(ee, x, index), 1e-5)
    wider = images(3, 3, 24, 24)
    assert torch.equal(ee(wider), model(wider))
    index = torch.tensor([n, 0, n])
    assert close(ee.predict(wider, exit_index=index).logits, oracle(ee, wider, index), 1e-5)


class Folded(TinyNet):
    """Folds another axis into the batch between two blocks."""

    def forward(self, x):
        x = self.blocks[1](self.blocks[0](self.stem(x)))
        x = x.reshape(-1, 8, 8, 16)
        x = self.blocks[3](self.blocks[2](x))
        x = x.reshape(-1, 8, 16, 16)
        return self.fc(x.mean((2, 3)))


MIXING = {
    "mean over samples": lambda x: x - x.mean(0),
    "first sample": lambda x: x + x[:1],
    "views side by side": lambda x: torch.cat([x, x]).reshape(2, -1, *x.shape[1:]).mean(0),
    "samples torn apart": lambda x: (
        x.reshape(2, x.shape[0], 4, 16, 16).transpose(0, 1).reshape(x.shape)
    ),
    "another order": lambda x: torch.cat([x, x]).reshape(-1, 2, *x.shape[1:]).mean(1),
}


class Mixing(TinyNet):
    """Lets a sample depend on the others in its batch, or may."""

    def __init__(self, way):
        super().__init__()
        self.way = MIXING[way]

    def forward(self, x):
        x = self.blocks[1](self.blocks[0](self.stem(x)))
        x = self.way(x)
        return self.fc(self.blocks[3](self.blocks[2](x)).mean((2, 3)))


def test_unsafe_cuts_are_refused_with_a_reason():
    ee = leenet_fx.attach(Folded().eval(), "every", example_inputs=EXAMPLE)
    assert ee.spec.placement.names == ("blocks.0", "blocks.1")
    assert set(ee.spec.rejected) == {"blocks.2", "blocks.3"}
    assert "several slices a sample" in ee.spec.rejected["blocks.2"]


@pytest.mark.parametrize("way", ["mean over samples", "first sample"])
def test_no_cut_in_front_of_what_mixes_samples(way):
    traced = trace_model(Mixing(way).eval(), example_inputs=EXAMPLE)
    assert "mixes the samples" in traced.rejected["blocks.0"]
    assert "mixes the samples" in traced.rejected["blocks.1"]


@pytest.mark.parametrize("way", ["views side by side", "another order", "samples torn apart"])
def test_no_exits_where_samples_may_change_places(way):
    with pytest.raises(TraceError, match=r"'(cat|reshape)' may mix the samples"):
        leenet_fx.attach(Mixing(way).eval(), "every", example_inputs=EXAMPLE)


def test_no_cut_in_front_of_a_normalisation_over_the_batch():
    model = tiny()
    model.blocks[2].bn = nn.BatchNorm2d(8, track_running_stats=False)
    ee = leenet_fx.attach(model, "every", example_inputs=EXAMPLE)
    assert ee.spec.placement.names == ("blocks.2", "blocks.3")


class InPlaceBehindBlocks(TinyNet):
    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x) - 0.5
            x += 1
            x = nn.functional.relu_(x)
        return self.fc(x.mean((2, 3)))


def test_training_works_beside_in_place_operations():
    ee = leenet_fx.attach(
        InPlaceBehindBlocks(), "every", example_inputs=EXAMPLE, branch="flatten"
    ).train()
    outputs = ee(images(4, 3, 16, 16))
    (sum(at.sum() for at in outputs.logits) + outputs.gate_logits.sum()).backward()
    assert all(p.grad is not None for p in ee.parameters())


def test_flatten_warns_when_it_outgrows_the_backbone(caplog):
    with caplog.at_level(logging.WARNING, "leenet_fx"):
        ee = leenet_fx.attach(tiny(), "every", example_inputs=EXAMPLE, branch="flatten")
    added = sum(p.numel() for p in ee.exits.parameters())
    assert f"{added:,}" in caplog.text
    with pytest.raises(InputError, match="one image size only"):
        ee.all_exits(images(1, 3, 24, 24))


@pytest.mark.parametrize("branch", list_branches())
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
    assert branch.body.width == width
    feature = next(ee.exit_features(images(2, 3, 64, 64)))[0]
    others = tuple(a for a in range(1, feature.ndim) if a != axis)
    assert torch.allclose(branch.body(*branch.reduce(feature)), feature.mean(others))


def test_a_finer_grid_sees_each_quarter_of_either_layout():
    from leenet_fx.parts.exit_site import ExitSite, FeatureShape
    from leenet_fx.parts.necks import Pool

    nchw = images(2, 6, 8, 8)
    first = Pool(ExitSite((FeatureShape((1, 6, 8, 8), 1),), 10))
    last = Pool(ExitSite((FeatureShape((1, 8, 8, 6), 3),), 10))
    expected = torch.stack(
        [
            nchw[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((2, 3))
            for i in range(4)
            for j in range(4)
        ],
        2,
    ).flatten(1)
    assert first.grid == 4
    assert torch.allclose(first(*first.reduce(nchw)), expected, atol=1e-6)
    assert torch.allclose(last(*last.reduce(nchw.permute(0, 2, 3, 1))), expected, atol=1e-6)


class Windows(TinyNet):
    """Folds 8x8 windows into the batch: one window at 16x16 behind the stride, four at 32x32."""

    def forward(self, x):
        x = self.stem(x)[:, :, ::2, ::2]
        b, c, h, w = x.shape
        x = x.reshape(b, c, h // 8, 8, w // 8, 8).permute(0, 2, 4, 1, 3, 5).reshape(-1, c, 8, 8)
        x = self.blocks(x)
        return self.fc(x.mean((2, 3)).reshape(b, -1, c).mean(1))


def test_a_cut_that_another_image_size_breaks_is_refused_when_it_runs():
    model = Windows().eval()
    ee = leenet_fx.attach(model, "every", example_inputs=EXAMPLE)
    index = torch.tensor([0, 4, 2])
    x = images(3, 3, 16, 16)
    assert close(ee.predict(x, exit_index=index).logits, oracle(ee, x, index), 1e-5)
    with pytest.raises(InputError, match="does not follow the batch"):
        ee.predict(images(3, 3, 32, 32), exit_index=index)


def test_hooks_that_change_what_a_model_computes_are_kept():
    model = tiny()
    model.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 3,))
    model.register_forward_hook(lambda module, inputs, output: output + 1)
    model.blocks[1].register_forward_hook(lambda module, inputs, output: output * 2)
    model.fc.register_forward_hook(lambda module, inputs, output: output - 5)
    ee = leenet_fx.attach(model, "every", example_inputs=EXAMPLE)
    x = images(3, 3, 16, 16)
    assert torch.equal(ee(x), model(x))


def test_observers_of_layers_see_no_placeholder():
    model = tiny()
    seen = []
    model.fc.register_forward_hook(lambda module, inputs, output: seen.append(output.sum().item()))
    leenet_fx.attach(model, "every", example_inputs=EXAMPLE)
    assert seen == []


class PlainTensor(TinyNet):
    """A tensor that is neither parameter nor buffer, at the root and inside."""

    def __init__(self):
        super().__init__()
        self.shift = images(1, 3, 1, 1)
        self.blocks[0].offset = images(1, 8, 1, 1)

    def forward(self, x):
        return super().forward(x - self.shift) + self.blocks[0].offset.mean()


def test_plain_tensors_are_carried_along():
    model = PlainTensor().eval()
    ee = leenet_fx.attach(model, "every", example_inputs=EXAMPLE)
    x = images(3, 3, 16, 16)
    assert torch.equal(ee(x), model(x))
    assert set(ee.state_dict()) - set(model.state_dict()) == {
        key for key in ee.state_dict() if key.startswith("exits.")
    }
    assert ee.double()(x.double()).dtype == torch.float64


@pytest.mark.parametrize("prepare", [nn.utils.parametrizations.weight_norm, "cached"])
def test_models_that_keep_computed_tensors(prepare):
    model = tiny()
    if prepare == "cached":
        model.kept = {"bias": model.fc.bias * 2}
    else:
        prepare(model.stem)
    ee = leenet_fx.attach(model, "every", example_inputs=EXAMPLE)
    x = images(3, 3, 16, 16)
    assert torch.equal(ee(x), model(x))


class Several(TinyNet):
    def __init__(self, pack):
        super().__init__()
        self.pack = pack

    def forward(self, x):
        return self.pack(super().forward(x), x)


def test_several_outputs():
    named = Several(lambda logits, x: {"features": x, "logits": logits}).eval()
    ee = leenet_fx.attach(named, "every", example_inputs=EXAMPLE)
    x = images(2, 3, 16, 16)
    assert torch.equal(ee(x), named(x)["logits"])
    first = Several(lambda logits, x: (logits, x)).eval()
    ee = leenet_fx.attach(first, "every", example_inputs=EXAMPLE)
    assert torch.equal(ee(x), first(x)[0])
    unclear = Several(lambda logits, x: {"features": x, "answer": logits})
    with pytest.raises(TraceError, match="features, answer: which are the logits"):
        leenet_fx.attach(unclear, "every", example_inputs=EXAMPLE)


class RootDropout(TinyNet):
    def forward(self, x):
        x = self.blocks(self.stem(x))
        if self.training:
            x = nn.functional.dropout(x, 0.5)
        return self.fc(x.mean((2, 3)))


def test_a_training_branch_of_the_root_is_warned_about(caplog):
    with caplog.at_level(logging.WARNING, "leenet_fx"):
        leenet_fx.attach(RootDropout(), "every", example_inputs=EXAMPLE)
    assert "RootDropout branches on self.training" in caplog.text


class FrozenNorm(TinyNet):
    def train(self, mode=True):
        super().train(mode)
        self.blocks[0].bn.eval()
        return self


def test_a_train_method_of_its_own_is_warned_about(caplog):
    with caplog.at_level(logging.WARNING, "leenet_fx"):
        ee = leenet_fx.attach(FrozenNorm(), "every", example_inputs=EXAMPLE)
    assert "FrozenNorm has a train() of its own" in caplog.text
    assert not FrozenNorm().train().blocks[0].bn.training
    assert ee.train().get_submodule("blocks.0.bn").training


def test_a_classifier_that_cannot_be_replaced():
    model = nn.Sequential(tiny(), nn.LayerNorm(5))
    with pytest.raises(InputError, match=r"what follows '0\.fc' .* takes 5 classes only"):
        leenet_fx.attach(model, "every", example_inputs=EXAMPLE, num_classes=3)
    conv = nn.Sequential(
        *(nn.Sequential(nn.Conv2d(c, 8, 3, padding=1), nn.ReLU()) for c in (3, 8)),
        nn.Conv2d(8, 5, 3, stride=2, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    ee = leenet_fx.attach(conv, "every", example_inputs=EXAMPLE, num_classes=3)
    assert ee.eval()(images(2, 3, 16, 16)).shape == (2, 3)
    replaced = ee.get_submodule("2")
    assert (replaced.stride, replaced.padding, replaced.out_channels) == ((2, 2), (1, 1), 3)


def test_an_exit_in_front_of_dropout_in_place_trains():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.MaxPool2d(2),
        nn.Dropout2d(0.5, inplace=True),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 25, 4),
    )
    ee = leenet_fx.attach(model, "every", example_inputs=EXAMPLE, branch="flatten").train()
    sum(at.sum() for at in ee(images(2, 3, 16, 16)).logits).backward()
    assert all(p.grad is not None for p in ee.get_submodule("0").parameters())


def test_attach_works_in_inference_mode_and_makes_weights_that_train():
    with torch.inference_mode():
        ee = leenet_fx.attach(tiny(), "linear", example_inputs=images(1, 3, 16, 16))
        x = images(2, 3, 16, 16)
        assert close(ee.eval()(x), tiny()(x), 1e-5)
    ee.train()(images(4, 3, 16, 16)).logits[0].sum().backward()
    assert next(ee.exits.branches()).classifier_parameters()[0].grad is not None
