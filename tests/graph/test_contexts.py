"""Contexts that a model enters in its forward are kept, or rejected."""

import copy

import pytest
import torch
from captured import EXAMPLE, check
from networks import TinyNet, images
from torch import nn

import leenet_fx
from leenet_fx import TraceError


class FrozenStem(TinyNet):
    def forward(self, x):
        with torch.no_grad():
            x = self.blocks[0](self.stem(x))
        for block in list(self.blocks)[1:]:
            x = block(x)
        return self.fc(x.mean((2, 3)))


class FrozenInside(TinyNet):
    """A decorated method, and a block whose input needs a gradient."""

    @torch.no_grad()
    def first(self, x):
        return self.stem(x)

    def forward(self, x):
        x = self.blocks[0](self.first(x))
        with torch.set_grad_enabled(False):
            y = nn.functional.conv2d(x, self.blocks[1].conv1.weight, padding=1)
        x = self.blocks[2](x) + y
        return self.fc(self.blocks[3](x).mean((2, 3)))


def gradients(module, output):
    module.zero_grad()
    output(module).sum().backward()
    return {n: p.grad for n, p in module.named_parameters() if not n.startswith("exits.")}


@pytest.mark.parametrize("cls", [FrozenStem, FrozenInside])
@pytest.mark.parametrize("ambient", [torch.enable_grad, torch.no_grad])
def test_parts_without_gradients_do_not_train(cls, ambient):
    model = cls().eval()
    with ambient():
        ee = leenet_fx.attach(model, "every", example_inputs=EXAMPLE)
    assert ee.spec.tracer == "fx"
    check(model, ee)
    x = images(4, 3, 16, 16)
    expected = gradients(copy.deepcopy(model), lambda m: m(x))
    found = gradients(ee, lambda m: m.all_exits(x).logits[-1])
    assert any(gradient is None for gradient in expected.values())
    for name, gradient in expected.items():
        assert (found[name] is None) == (gradient is None)
        assert gradient is None or torch.allclose(found[name], gradient, atol=1e-6)
    early = gradients(ee, lambda m: sum(logits.sum() for logits in m.all_exits(x).logits))
    assert early["stem.weight"] is None


class Lower(nn.Module):
    """Most of its work is in bfloat16."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return x + self.conv(x).float()


class PartlyLower(TinyNet):
    def __init__(self):
        super().__init__()
        self.lower = Lower()

    def forward(self, x):
        return self.fc(self.blocks(self.lower(self.stem(x))).mean((2, 3)))


def test_a_module_that_enters_autocast_is_kept_whole():
    model = PartlyLower().eval()
    ee = leenet_fx.attach(model, "every", example_inputs=EXAMPLE)
    assert ee.spec.tracer == "fx"
    x = images(3, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(ee(x), model(x))
        with torch.autocast("cpu", enabled=False):
            exact = model.lower.conv(model.stem(x)) + model.stem(x)
        assert not torch.equal(model.lower(model.stem(x)), exact)


class AllLower(TinyNet):
    @torch.autocast("cpu", dtype=torch.bfloat16)
    def forward(self, x):
        return super().forward(x).float()


class StemLower(TinyNet):
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = self.stem(x)
        return self.fc(self.blocks(x.float()).mean((2, 3)))


def test_autocast_around_a_part_of_the_forward_is_exported(caplog):
    model = StemLower().eval()
    ee = leenet_fx.attach(model, "every", example_inputs=EXAMPLE)
    x = images(3, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(ee(x), model(x))
        assert not torch.equal(ee(x), TinyNet.forward(model, x))
    assert "enters torch.autocast" in caplog.text


def test_autocast_around_the_network_is_rejected():
    with pytest.raises(TraceError, match=r"AllLower .* enters torch\.autocast"):
        leenet_fx.attach(AllLower().eval(), "every", example_inputs=EXAMPLE)
