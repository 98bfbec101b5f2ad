"""attach: models with unusual modules, outputs, hooks and training code."""

import logging

import pytest
import torch
from networks import TinyNet, close, images, tiny
from torch import nn

import leenet_fx
from leenet_fx import EarlyExitError, InputError, PlacementError, TraceError

EXAMPLE = images(1, 3, 16, 16)


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


def test_control_flow_on_data_is_rejected_with_its_place():
    model = WithInner(BranchesOnValues())
    place = r"(?s)module 'inner' \(BranchesOnValues\) at .*test_attach_models\.py:\d+"
    with pytest.raises(TraceError, match=place):
        leenet_fx.attach(model, example_inputs=EXAMPLE)


def test_a_module_may_branch_on_shapes(caplog):
    model = WithInner(BranchesOnShape()).eval()
    ee = leenet_fx.attach(model, "every", example_inputs=EXAMPLE)
    assert ee.spec.tracer == "fx"
    assert not caplog.text
    x = images(2, 3, 16, 16)
    assert close(ee(x), model(x), 1e-6)
    with pytest.raises(InputError, match="example_inputs of this size"):
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
    named = Several(lambda logits, x: {"features": x, "scores": logits}).eval()
    ee = leenet_fx.attach(named, "every", example_inputs=EXAMPLE)
    assert torch.equal(ee(x), named(x)["scores"])
    unclear = Several(lambda logits, x: {"colours": x.mean((2, 3)), "scores": logits})
    with pytest.raises(TraceError, match="colours, scores: which are the logits"):
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


def test_an_overridden_train_method_is_warned_about(caplog):
    with caplog.at_level(logging.WARNING, "leenet_fx"):
        ee = leenet_fx.attach(FrozenNorm(), "every", example_inputs=EXAMPLE)
    assert "FrozenNorm overrides train()" in caplog.text
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
