"""What a network with exits promises, on a small network."""

import copy
import pickle

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import TinyNet, close, images, oracle, tiny
from torch import fx, nn

import leenet_fx
from leenet_fx import (
    EarlyExitError,
    GateThreshold,
    InputError,
    MaxProbability,
    ModeError,
    NeverExit,
)

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float64: 1e-12}


def attached(**options):
    return leenet_fx.attach(tiny(), "every", example_inputs=images(1, 3, 16, 16), **options)


NETWORK = attached()


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.integers(0, 99))
def test_any_mix_and_order_of_exits_equals_the_oracle(exits, seed):
    x = images(len(exits), 3, 16, 16, seed=seed)
    index = torch.tensor(exits)
    found = NETWORK.predict(x, exit_index=index)
    assert torch.equal(found.exit_index, index)
    assert close(found.logits, oracle(NETWORK, x, index), TOLERANCE[torch.float32])
    assert torch.allclose(found.confidence, found.logits.softmax(1).amax(1))
    costs = torch.tensor(NETWORK.costs.relative())
    assert torch.equal(found.cost, costs[index])


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from([GateThreshold, MaxProbability]),
    st.lists(st.floats(-0.4, 0.6), min_size=4, max_size=4),
    st.integers(0, 99),
)
@torch.no_grad()
def test_policies_leave_where_an_oracle_would(policy, thresholds, seed):
    ee = copy.deepcopy(NETWORK)
    ee.policy = policy(thresholds)
    x = images(9, 3, 16, 16, seed=seed)
    everything = ee.all_exits(x)
    for sample, found in enumerate(ee.predict(x).exit_index.tolist()):
        scores = [
            float(everything.gate_logits[sample, i])
            if policy is GateThreshold
            else float(everything.logits[i][sample].softmax(0).max())
            for i in range(4)
        ]
        passed = [s >= t for s, t in zip(scores, thresholds, strict=True)]
        margin = min(abs(s - t) for s, t in zip(scores, thresholds, strict=True))
        if margin > 1e-5:
            assert found == (passed.index(True) if True in passed else 4)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_dtypes_and_memory_formats(dtype, layout):
    model = tiny().to(dtype).to(memory_format=layout)
    ee = leenet_fx.attach(model, "every", example_inputs=images(1, 3, 16, 16).to(dtype))
    x = images(6, 3, 16, 16).to(dtype).contiguous(memory_format=layout)
    assert torch.equal(ee(x), model(x))
    index = torch.tensor([4, 0, 2, 1, 3, 4])
    found = ee.predict(x, exit_index=index).logits
    assert found.dtype == dtype
    assert close(found, oracle(ee, x, index), TOLERANCE[dtype])


def test_survivors_keep_channels_last():
    ee = attached().to(memory_format=torch.channels_last)
    seen = []
    ee.get_submodule("blocks.3.conv1").register_forward_hook(
        lambda module, inputs, output: seen.append(inputs[0])
    )
    x = images(6, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    ee.predict(x, exit_index=torch.tensor([0, 4, 4, 1, 4, 4]))
    assert [len(batch) for batch in seen] == [4]
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_nothing_is_computed_for_samples_that_left():
    ee = attached(branch_options={"gate": "features"})
    rows: dict[str, list[int]] = {}

    def watch(path):
        def hook(module, inputs, output):
            rows.setdefault(path, []).append(len(inputs[0]))

        ee.get_submodule(path).register_forward_hook(hook)

    for path in ("blocks.1.conv1", "blocks.2.conv1", "fc", "exits.0.head", "exits.1.gate"):
        watch(path)
    ee.policy = GateThreshold([float("inf"), -float("inf"), 0.0, 0.0])
    ee(images(5, 3, 16, 16))
    assert rows == {"blocks.1.conv1": [5], "exits.1.gate": [5]}
    rows.clear()
    ee.predict(images(5, 3, 16, 16), exit_index=torch.tensor([0, 4, 0, 2, 0]))
    assert rows == {
        "exits.0.head": [3],
        "blocks.1.conv1": [2],
        "blocks.2.conv1": [2],
        "fc": [1],
    }


def test_heads_run_only_for_those_who_leave_at_a_gate():
    ee = attached(branch_options={"gate": "features"})
    sizes = []
    ee.get_submodule("exits.0.head").register_forward_hook(
        lambda module, inputs, output: sizes.append(len(inputs[0]))
    )
    x = images(8, 3, 16, 16)
    gate_logits = ee.all_exits(x).gate_logits[:, 0].detach()
    sizes.clear()
    ee.policy = GateThreshold([float(gate_logits.median()), 9.0, 9.0, 9.0])
    leaving = int((ee.predict(x).exit_index == 0).sum())
    assert 0 < leaving < 8
    assert sizes == [leaving]


def test_shut_is_a_state_and_gates_start_sane():
    ee = attached()
    x = images(32, 3, 16, 16)
    assert ee.policy == NeverExit()
    found = ee.predict(x)
    assert found.exit_index.tolist() == [4] * 32
    assert found.cost.tolist() == [1.0] * 32
    chance = ee.all_exits(x).gate_logits.detach().sigmoid()
    assert 0.05 < float(chance.min()) < float(chance.max()) < 0.95


def test_training_mode_answers_with_every_exit():
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


def test_state_dict_carries_the_policy_and_fits_safetensors(tmp_path):
    ee, twin = attached(), attached(seed=7)
    ee.policy = GateThreshold([0.1, 0.2, 0.3, 0.4])
    file = tmp_path / "exits.safetensors"
    safetensors.torch.save_file(ee.state_dict(), file)
    twin.load_state_dict(safetensors.torch.load_file(file))
    assert twin.policy == ee.policy
    x = images(5, 3, 16, 16)
    assert torch.equal(twin(x), ee(x))
    fewer = leenet_fx.attach(tiny(seed=3), ["blocks.1"], example_inputs=images(1, 3, 16, 16))
    stem = fewer.stem.weight.clone()
    with pytest.raises(InputError, match="4 thresholds, but the network has 1"):
        fewer.load_state_dict(ee.state_dict(), strict=False)
    assert torch.equal(fewer.stem.weight, stem)
    broken = {**ee.state_dict(), "exits._extra_state": torch.zeros(3, dtype=torch.uint8)}
    with pytest.raises(InputError, match="holds no policy"):
        twin.load_state_dict(broken)


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
def test_a_batch_of_zero_images_answers_with_zero_rows(mode):
    ee = attached().train(mode)
    empty = torch.empty(0, 3, 16, 16)
    outputs = ee.all_exits(empty)
    assert [tuple(at.shape) for at in outputs.logits] == [(0, 5)] * 5
    assert outputs.gate_logits.shape == (0, 4)
    if not mode:
        assert ee(empty).shape == (0, 5)
        found = ee.predict(empty)
        assert found.exit_index.shape == found.cost.shape == found.confidence.shape == (0,)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(3, 16, 16), r"\(B, C, H, W\), got shape \(3, 16, 16\)"),
        (torch.zeros(2, 1, 16, 16), "3 channels, got 1"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), "float32, got torch.uint8"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.float64), "float32, got torch.float64"),
        ([1, 2], "got list"),
    ],
)
def test_images_that_do_not_fit(bad, message):
    ee = attached()
    for call in (ee, ee.predict, ee.all_exits):
        with pytest.raises(InputError, match=message):
            call(bad)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.tensor([0, 1]), "each of 3 images"),
        (torch.tensor([0.0, 1.0, 2.0]), "whole number"),
        (torch.tensor([0, 1, 5]), r"0\.\.4"),
        (torch.tensor([-1, 1, 2]), r"0\.\.4"),
        (torch.tensor([True, False, True]), "whole number"),
        ("a", "whole numbers"),
    ],
)
def test_exit_indices_that_do_not_fit(bad, message):
    with pytest.raises(InputError, match=message):
        attached().predict(images(3, 3, 16, 16), exit_index=bad)


def test_one_index_serves_all():
    assert attached().predict(images(3, 3, 16, 16), exit_index=2).exit_index.tolist() == [2, 2, 2]


def test_policies_that_do_not_fit():
    ee = attached()
    with pytest.raises(InputError, match="2 thresholds, but the network has 4"):
        ee.policy = GateThreshold([0.0, 1.0])
    with pytest.raises(InputError, match="Expected a Policy"):
        ee.policy = "gate"
    for bad in ("x", [], [float("nan")], [True]):
        with pytest.raises(EarlyExitError):
            GateThreshold(bad)
    assert ee.policy == NeverExit()


def test_gradients_flow_through_the_conditional_form():
    ee = attached()
    ee.policy = GateThreshold([0.0, 0.0, 0.0, 0.0])
    x = images(6, 3, 16, 16).requires_grad_()
    ee(x).sum().backward()
    assert bool((x.grad.flatten(1).norm(dim=1) > 0).all())
