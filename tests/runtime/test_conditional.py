"""Conditional execution: what runs for which samples."""

import copy
from collections import Counter

import pytest
import torch
from helpers import half_leave
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import close, images, oracle, tiny
from torch.utils._python_dispatch import TorchDispatchMode

import leenet_fx
from leenet_fx import GateThreshold, MaxProbability


def attached(**options):
    return leenet_fx.attach(tiny(), "every", example_inputs=images(1, 3, 16, 16), **options).eval()


NETWORK = attached()
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float64: 1e-12}


class Operations(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[str(func.overloadpacket).removeprefix("aten.")] += 1
        return func(*args, **(kwargs or {}))

    @property
    def syncs(self):
        names = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "masked_select", "unique")
        return sum(self.counts[name] for name in names)


def counted(ee, x):
    with torch.no_grad(), Operations() as operations:
        ee(x)
    return operations


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
def test_policies_exit_where_an_oracle_would(policy, thresholds, seed):
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


def test_remaining_samples_keep_channels_last():
    ee = attached().to(memory_format=torch.channels_last)
    seen = []
    ee.get_submodule("blocks.3.conv1").register_forward_hook(
        lambda module, inputs, output: seen.append(inputs[0])
    )
    x = images(6, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    ee.predict(x, exit_index=torch.tensor([0, 4, 4, 1, 4, 4]))
    assert [len(batch) for batch in seen] == [4]
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_nothing_is_computed_for_samples_that_have_exited():
    ee = attached(branch_options={"gate": "features"})
    sizes: dict[str, list[int]] = {}

    def watch(path):
        def hook(module, inputs, output):
            sizes.setdefault(path, []).append(len(inputs[0]))

        ee.get_submodule(path).register_forward_hook(hook)

    for path in ("blocks.1.conv1", "blocks.2.conv1", "fc", "exits.0.head", "exits.1.gate"):
        watch(path)
    ee.policy = GateThreshold([float("inf"), -float("inf"), 0.0, 0.0])
    ee(images(5, 3, 16, 16))
    assert sizes == {"blocks.1.conv1": [5], "exits.1.gate": [5]}
    sizes.clear()
    ee.predict(images(5, 3, 16, 16), exit_index=torch.tensor([0, 4, 0, 2, 0]))
    assert sizes == {
        "exits.0.head": [3],
        "blocks.1.conv1": [2],
        "blocks.2.conv1": [2],
        "fc": [1],
    }


def test_heads_run_only_for_samples_that_exit_at_a_gate():
    ee = attached(branch_options={"gate": "features"})
    sizes = []
    ee.get_submodule("exits.0.head").register_forward_hook(
        lambda module, inputs, output: sizes.append(len(inputs[0]))
    )
    x = images(8, 3, 16, 16)
    gate_logits = ee.all_exits(x).gate_logits[:, 0].detach()
    sizes.clear()
    ee.policy = GateThreshold([float(gate_logits.median()), 9.0, 9.0, 9.0])
    exiting = int((ee.predict(x).exit_index == 0).sum())
    assert 0 < exiting < 8
    assert sizes == [exiting]


def test_gradients_flow_through_the_conditional_form():
    ee = attached()
    ee.policy = GateThreshold([0.0, 0.0, 0.0, 0.0])
    x = images(6, 3, 16, 16).requires_grad_()
    ee(x).sum().backward()
    assert bool((x.grad.flatten(1).norm(dim=1) > 0).all())


@pytest.mark.parametrize("batch", [1, 6])
@pytest.mark.parametrize("policy", [GateThreshold(1e9), MaxProbability(2.0)])
def test_without_early_exits_each_gate_synchronises_once_and_nothing_is_copied(batch, policy):
    ee = attached(branch_options={"gate": "features"})
    x = images(batch, 3, 16, 16)
    plain = counted(ee, x)
    ee.policy = policy
    found = counted(ee, x)
    assert plain.syncs == 0
    assert found.syncs == ee.num_exits
    for name in ("index", "index_select", "argsort", "cat", "clone"):
        assert found.counts[name] == plain.counts[name]
    assert found.counts["convolution"] == plain.counts["convolution"]


def test_with_early_exits_each_gate_synchronises_once():
    ee = half_leave(attached(), images(16, 3, 16, 16))
    found = counted(ee, images(16, 3, 16, 16))
    assert len(set(ee.predict(images(16, 3, 16, 16)).exit_index.tolist())) > 2
    assert found.syncs == ee.num_exits
