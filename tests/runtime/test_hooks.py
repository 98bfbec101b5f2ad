"""Forward hooks on parts of branches run for real tensors, whenever they are registered."""

import pytest
import torch
from networks import images, tiny
from torch import Tensor
from torch.nn.modules.module import register_module_forward_hook

import leenet_fx
from leenet_fx import GateThreshold, MaxProbability, Patience, predict_stream

BRANCHES = {
    "linear": {},
    "features": {"gate": "features"},
    "projection": {"head": "projection"},
    "cascade": {"head": "cascade", "gate": "history"},
    "means": {"head": "means"},
}
PARTS = {
    "linear": ("neck", "head", "gate", "head.linear", "gate.linear", "gate.inputs", "neck.inputs"),
    "features": ("neck", "gate", "gate.linear", "gate.inputs"),
    "projection": ("neck", "projection", "neck.inputs"),
    "cascade": ("neck", "head", "gate", "head.linear", "gate.linear"),
    "means": ("neck", "head", "gate", "gate.linear"),
}
CASES = [(name, part) for name, parts in PARTS.items() for part in parts]
FOUR = images(4, 3, 16, 16)


def attached(name="linear"):
    options = BRANCHES[name]
    example = images(1, 3, 16, 16)
    ee = leenet_fx.attach(tiny(), "every", example_inputs=example, branch_options=options).eval()
    ee.policy = GateThreshold(1e9)
    return ee


class Recorder:
    """Counts calls of hooks; every input and output must be a tensor."""

    def __init__(self):
        self.sizes = []

    def hook(self, module, inputs, output):
        assert type(inputs[0]) is Tensor
        assert type(output) is Tensor
        self.sizes.append(len(output))

    def pre_hook(self, module, inputs):
        assert type(inputs[0]) is Tensor
        self.sizes.append(len(inputs[0]))


def part_of(ee, part, index=1):
    return ee.get_submodule(f"exits.{index}.{part}")


@pytest.mark.parametrize(("name", "part"), CASES)
@pytest.mark.parametrize("after_first_call", [False, True])
@pytest.mark.parametrize("kind", ["hook", "pre_hook"])
def test_a_hook_runs_once_a_call_until_it_is_removed(name, part, after_first_call, kind):
    ee, calls = attached(name), Recorder()
    if after_first_call:
        ee(FOUR)
    register = "register_forward_hook" if kind == "hook" else "register_forward_pre_hook"
    handle = getattr(part_of(ee, part), register)(getattr(calls, kind))
    ee(FOUR)
    ee(FOUR[:1])
    ee.predict(FOUR[:3])
    list(predict_stream(ee, [FOUR[:2]], max_delay=0))
    assert calls.sizes == [4, 1, 3, 2]
    handle.remove()
    ee(FOUR)
    assert calls.sizes == [4, 1, 3, 2]


@pytest.mark.parametrize("policy", [MaxProbability(2.0), Patience(3)], ids=["logits", "history"])
@pytest.mark.parametrize("name", ["linear", "features", "cascade", "means"])
def test_hooks_on_heads_run_where_class_logits_decide(name, policy):
    ee, calls = attached(name), Recorder()
    ee.policy = policy
    part_of(ee, "head").register_forward_hook(calls.hook)
    ee(FOUR)
    assert calls.sizes == [4]


def test_a_hook_runs_for_the_samples_that_reach_its_part():
    ee, gate, head = attached("features"), Recorder(), Recorder()
    part_of(ee, "gate").register_forward_hook(gate.hook)
    part_of(ee, "head").register_forward_hook(head.hook)
    ee.predict(FOUR, exit_index=torch.tensor([0, 1, 4, 1]))
    assert (gate.sizes, head.sizes) == ([], [2])
    ee.policy = GateThreshold([1e9, -1e9, 0.0, 0.0])
    ee(FOUR)
    assert (gate.sizes, head.sizes) == ([4], [2, 4])


def test_a_hook_may_change_what_a_gate_decides():
    ee = attached()
    assert ee.predict(FOUR).exit_index.tolist() == [4] * 4
    gate = part_of(ee, "gate")
    handle = gate.register_forward_hook(lambda module, inputs, output: output + 1e10)
    assert ee.predict(FOUR).exit_index.tolist() == [1] * 4
    handle.remove()
    assert ee.predict(FOUR).exit_index.tolist() == [4] * 4


def test_hooks_in_a_stream_are_noticed_between_two_batches():
    ee, calls = attached(), Recorder()
    stream = predict_stream(ee, [FOUR, FOUR, FOUR], max_delay=0)
    next(stream)
    handle = part_of(ee, "neck").register_forward_hook(calls.hook)
    next(stream)
    handle.remove()
    next(stream)
    assert calls.sizes == [4]


def test_hooks_of_all_modules_run_on_parts_of_branches():
    ee, seen = attached(), []
    ee(FOUR)
    head = part_of(ee, "head")
    with register_module_forward_hook(
        lambda module, inputs, output: seen.append(inputs[0]) if module is head else None
    ):
        ee(FOUR)
    ee(FOUR)
    assert [type(inputs) for inputs in seen] == [Tensor]


def test_hooks_run_in_training_mode_and_for_all_exits():
    ee, calls = attached(), Recorder()
    part_of(ee, "gate").register_forward_hook(calls.hook)
    ee.all_exits(FOUR)
    ee.train()(FOUR)
    assert calls.sizes == [4, 4]


@pytest.mark.parametrize("part", ["neck", "head", "gate", "head.linear"])
def test_hooks_run_on_compiled_networks_and_on_the_network_they_were_compiled_from(part):
    torch._dynamo.reset()
    ee, calls = attached(), Recorder()
    compiled = leenet_fx.compile(ee, backend="eager")
    with torch.no_grad():
        expected = compiled(FOUR)
        handle = part_of(compiled, part).register_forward_hook(calls.hook)
        assert torch.allclose(compiled(FOUR), expected, atol=1e-5)
        ee(FOUR[:2])
        assert calls.sizes == [4, 2]
        handle.remove()
        compiled(FOUR)
        assert calls.sizes == [4, 2]
    torch._dynamo.reset()
