"""torch.compile, stage by stage."""

import copy

import pytest
import torch
from helpers import half_leave
from networks import ZOO, close, images, tiny
from torch._dynamo.testing import CompileCounter

import leenet_fx
from leenet_fx import GateThreshold, InputError
from leenet_fx.parts.gates import AlphaGate, get_gate, list_gates


def attached(**options):
    return leenet_fx.attach(tiny(), "every", example_inputs=images(1, 3, 16, 16), **options).eval()


ALPHA_GATE = next(name for name in list_gates() if get_gate(name) is AlphaGate)


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(
    "options",
    [{}, {"method": "ztw"}, {"branch_options": {"gate": ALPHA_GATE}}, {"branch": "side"}],
)
def test_any_number_of_remaining_samples_is_compiled_once(options):
    ee = half_leave(attached(**options), images(64, 3, 16, 16))
    x = images(64, 3, 16, 16, seed=1)
    counter = CompileCounter()
    fast = leenet_fx.compile(ee, backend=counter)
    with torch.inference_mode():
        # On one thread torch runs convolutions of 16 and more images in another way.
        for size in (1, 2, 16):
            for index in range(ee.num_exits + 1):
                fast.predict(x[:size], exit_index=index)
            ee.policy = GateThreshold(1e9)
            fast(x[:size])
        compiled = counter.frame_count
        half_leave(ee, images(64, 3, 16, 16))
        for size in (*range(2, 65, 7), 64, 3, 1):
            found, expected = fast.predict(x[:size]), ee.predict(x[:size])
            assert torch.equal(found.exit_index, expected.exit_index)
            assert close(found.logits, expected.logits, 1e-5)
    assert counter.frame_count == compiled
    assert compiled <= 3 * (2 * ee.num_exits + 1)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(
    "name", ["torchvision/densenet121", "torchvision/swin_t", "timm/levit_128", "timm/vgg11_bn"]
)
def test_stages_of_known_architectures_compile_without_breaks(name):
    options, size, _ = ZOO[name]
    model = leenet_fx.create_model(name, **options).eval()
    example = images(1, 3, size, size)
    ee = leenet_fx.attach(model, "linear", num_exits=2, example_inputs=example, copy=False)
    fast = leenet_fx.compile(ee, backend="eager")
    with torch.no_grad():
        for batch in (1, 3, 5):
            x = images(batch, 3, size, size)
            index = torch.arange(batch) % 3
            expected = ee.predict(x, exit_index=index).logits
            assert close(fast.predict(x, exit_index=index).logits, expected, 1e-4)


# Torch 2.11's inductor imports what torch 2.11 deprecates.
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.usefixtures("fresh_compiler")
def test_inductor_computes_what_eager_computes():
    ee = half_leave(attached(), images(16, 3, 16, 16))
    fast = leenet_fx.compile(ee)
    x = images(16, 3, 16, 16, seed=3)
    with torch.no_grad():
        found, expected = fast.predict(x), ee.predict(x)
    assert torch.equal(found.exit_index, expected.exit_index)
    assert close(found.logits, expected.logits, 1e-5)


@pytest.mark.usefixtures("fresh_compiler")
def test_the_compiled_network_shares_weights_and_policy_and_its_copies_are_not_compiled():
    ee = attached()
    fast = leenet_fx.compile(ee, backend="eager")
    x = images(3, 3, 16, 16)
    assert fast.is_compiled
    assert not ee.is_compiled
    assert not copy.deepcopy(fast).is_compiled
    with torch.no_grad():
        fast(x)
        ee.fc.bias.add_(1)
        ee.policy = GateThreshold(-1e9)
        assert torch.equal(fast.predict(x).exit_index, torch.zeros(3, dtype=torch.int64))
        ee.policy = GateThreshold(1e9)
        assert close(fast(x), ee(x), 1e-5)


def test_compile_rejects_wrong_arguments():
    ee = attached()
    with pytest.raises(InputError, match="CUDA graph"):
        leenet_fx.compile(ee, mode="reduce-overhead")
    with pytest.raises(InputError, match="either mode or options"):
        leenet_fx.compile(ee, mode="default", options={})
    with pytest.raises(InputError, match="TinyNet"):
        leenet_fx.compile(tiny())
