"""EarlyExitModule: modes, copies, edits, on a small network."""

import copy
import pickle

import pytest
import torch
from helpers import attached
from networks import TinyNet, close, images, tiny
from torch import fx, nn

import leenet_fx
from leenet_fx import ModeError, NeverExit


def test_early_exits_start_disabled_and_gates_undecided():
    ee = attached()
    x = images(32, 3, 16, 16)
    assert ee.policy == NeverExit()
    found = ee.predict(x)
    assert found.exit_index.tolist() == [4] * 32
    assert found.cost.tolist() == [1.0] * 32
    chance = ee.all_exits(x).gate_logits.detach().sigmoid()
    assert 0.05 < float(chance.min()) < float(chance.max()) < 0.95


def test_training_mode_returns_every_exit():
    ee = attached().train()
    outputs = ee(images(3, 3, 16, 16))
    assert len(outputs.logits) == 5
    assert outputs.gate_logits.shape == (3, 4)
    with pytest.raises(ModeError, match=r"call ee.eval\(\)"):
        ee.predict(images(3, 3, 16, 16))
    ee.eval()
    assert ee(images(3, 3, 16, 16)).shape == (3, 5)
    assert ee.all_exits(images(3, 3, 16, 16)).gate_logits.shape == (3, 4)


def test_dropout_is_on_in_training_and_off_in_evaluation():
    ee = leenet_fx.attach(tiny(dropout=0.5), "every", example_inputs=images(1, 3, 16, 16))
    x = images(64, 3, 16, 16)
    assert torch.equal(ee(x), ee(x))
    ee.train()
    assert not torch.equal(ee(x).logits[-1], ee(x).logits[-1])


class FunctionalDropout(TinyNet):
    """Hands `self.training` on, at the root and in a block."""

    def forward(self, x):
        x = self.blocks(self.stem(x))
        x = nn.functional.dropout(x, 0.5, training=self.training)
        return self.fc(x.mean((2, 3)))


class Branching(nn.Module):
    """Branches on `self.training`."""

    def forward(self, x):
        return 2 * x if self.training else x


def test_training_flags_stay_alive_in_functional_code():
    model = FunctionalDropout()
    model.blocks[1].act = Branching()
    model.eval()
    ee = leenet_fx.attach(model, "every", example_inputs=images(1, 3, 16, 16))
    x = images(8, 3, 16, 16)
    assert torch.equal(ee(x), model(x))
    torch.manual_seed(3)
    expected = model.train()(x)
    torch.manual_seed(3)
    assert close(ee.train()(x).logits[-1], expected, 1e-5)


def test_the_callers_model_is_untouched():
    model = tiny(dropout=0.3).train()
    model.blocks[0].eval()
    model.stem.weight.requires_grad_(False)
    calls = []
    model.fc.register_forward_hook(lambda *a: calls.append(1))
    members = {path: dict(vars(module)) for path, module in model.named_modules()}
    before = copy.deepcopy(model.state_dict())
    ee = leenet_fx.attach(model, "every", example_inputs=images(1, 3, 16, 16))
    assert type(model) is TinyNet
    for path, module in model.named_modules():
        assert vars(module).keys() == members[path].keys()
        assert all(vars(module)[key] is value for key, value in members[path].items())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not ee.stem.weight.requires_grad
    assert ee.fc.weight.requires_grad
    assert ee.training
    assert not ee.get_submodule("blocks.0").training
    assert ee.stem.weight.data_ptr() != model.stem.weight.data_ptr()


def test_copy_false_shares_the_weights():
    model = tiny()
    ee = leenet_fx.attach(model, "every", example_inputs=images(1, 3, 16, 16), copy=False)
    assert ee.stem.weight is model.stem.weight
    assert ee.get_submodule("blocks.0.bn").running_mean is model.blocks[0].bn.running_mean


def test_pickled_and_copied_networks_follow_dtype_and_device():
    ee = attached()
    x = images(4, 3, 16, 16)
    for twin in (copy.deepcopy(ee), copy.copy(ee), pickle.loads(pickle.dumps(ee))):
        assert isinstance(twin, fx.GraphModule)
        half = copy.deepcopy(twin).bfloat16()
        assert half(x.bfloat16()).dtype == torch.bfloat16
        assert half.all_exits(x.bfloat16()).gate_logits.dtype == torch.bfloat16
        assert torch.equal(twin(x), ee(x))


def test_it_prints_as_a_table_and_reads_as_code():
    ee = attached()
    for shown in (str(ee), repr(ee), ee.summary()):
        assert "4 exits" in shown
        assert "blocks.2" in shown
        assert "final" in shown
        assert max(map(len, shown.splitlines())) <= 80
    code = ee.print_readable(print_output=False)
    assert "self.exits" in code
    assert "collect_exits" in code


def test_the_training_form_traces_again_and_can_be_edited():
    ee = attached().train()
    x = images(4, 3, 16, 16)
    again = fx.symbolic_trace(copy.deepcopy(ee))
    assert again(x).gate_logits.shape == (4, 4)
    compiled = torch.compile(copy.deepcopy(ee), backend="eager", fullgraph=True)
    assert compiled(x).gate_logits.shape == (4, 4)
    before = ee.eval()(x)
    logits = next(node for node in ee.graph.nodes if node.target == "fc")
    with ee.graph.inserting_after(logits):
        doubled = ee.graph.call_function(torch.mul, (logits, 2.0))
    logits.replace_all_uses_with(doubled)
    doubled.args = (logits, 2.0)
    ee.recompile()
    assert torch.allclose(ee(x), 2 * before)
    assert torch.allclose(ee.all_exits(x).logits[-1], 2 * before)


@pytest.mark.parametrize("mode", [True, False])
def test_a_batch_of_zero_images_gives_empty_outputs(mode):
    ee = attached().train(mode)
    empty = torch.empty(0, 3, 16, 16)
    outputs = ee.all_exits(empty)
    assert [tuple(at.shape) for at in outputs.logits] == [(0, 5)] * 5
    assert outputs.gate_logits.shape == (0, 4)
    if not mode:
        assert ee(empty).shape == (0, 5)
        found = ee.predict(empty)
        assert found.exit_index.shape == found.cost.shape == found.confidence.shape == (0,)
