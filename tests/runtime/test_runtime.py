"""The conditional runtime: what it asks of the device, compiled stages, and streams of batches."""

import copy
import itertools
from collections import Counter

import pytest
import torch
from helpers import half_leave
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import ZOO, close, images, tiny
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode

import leenet_fx
from leenet_fx import GateThreshold, InputError, MaxProbability, ModeError, Patience, predict_stream
from leenet_fx.graph.batch_dim import BatchDim, concat_samples, select_samples
from leenet_fx.parts.branches import Branch
from leenet_fx.policies import AlphaConditionedGate


def attached(**options):
    return leenet_fx.attach(tiny(), "every", example_inputs=images(1, 3, 16, 16), **options).eval()


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
        asks = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "masked_select", "unique")
        return sum(self.counts[name] for name in asks)


def counted(ee, x):
    with torch.no_grad(), Operations() as operations:
        ee(x)
    return operations


@pytest.mark.parametrize("batch", [1, 6])
@pytest.mark.parametrize("policy", [GateThreshold(1e9), MaxProbability(2.0)])
def test_where_nobody_leaves_the_device_is_asked_once_a_gate_and_nothing_is_copied(batch, policy):
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


def test_where_some_leave_the_device_is_asked_once_a_gate():
    ee = half_leave(attached(), images(16, 3, 16, 16))
    found = counted(ee, images(16, 3, 16, 16))
    assert len(set(ee.predict(images(16, 3, 16, 16)).exit_index.tolist())) > 2
    assert found.syncs == ee.num_exits


def test_images_that_fitted_once_are_refused_once_the_network_changed_its_dtype():
    ee = attached()
    x = images(2, 3, 16, 16)
    ee(x)
    ee.double()
    with pytest.raises(InputError, match="dtype"):
        ee(x)


def test_stages_follow_a_module_that_is_replaced():
    ee = attached()
    x = images(3, 3, 16, 16)
    ee(x)
    new = copy.deepcopy(ee.blocks[1].conv1)
    with torch.no_grad():
        new.weight.mul_(-1)
    ee.blocks[1].conv1 = new
    expected = tiny()
    expected.blocks[1].conv1 = new
    with torch.no_grad():
        assert close(ee(x), expected(x), 1e-5)


def test_an_exit_that_is_replaced_decides():
    ee = attached(branch_options={"gate": "features"})
    x = images(3, 3, 16, 16)
    ee.policy = MaxProbability([2.0, 0.0, 2.0, 2.0])
    before = ee(x)
    ee.exits[1] = copy.deepcopy(ee.exits[1])
    with torch.no_grad():
        ee.exits[1].head.linear.weight.mul_(-1)
    found = ee.predict(x)
    assert not close(found.logits, before, 1e-3)
    assert close(found.logits, ee.all_exits(x).logits[1], 1e-5)


# What an exit asks of itself is written into one function with its stage, so every composition of
# parts is held against the same parts called one after the other, in the graph of all exits.
@pytest.mark.parametrize("body", ["pool", "bnpool", "conv", "flatten"])
@pytest.mark.parametrize(
    ("head", "gate"),
    [
        *itertools.product(("linear", "cascade", "additive"), ("confidence", "history", "dial")),
        ("linear", "features"),
        ("means", "confidence"),
        ("projection", None),
    ],
)
def test_every_composition_of_parts_decides_as_its_parts_do(body, head, gate):
    ee = attached(branch=body, branch_options={"head": head, "gate": gate})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*ee.exits.parameters(), *ee.exits.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) - 0.3)
        for name, buffer in ee.exits.named_buffers():
            if "running_var" in name or "spread" in name:
                buffer.abs_().add_(0.5)
    x = images(6, 3, 16, 16)
    with torch.no_grad():
        logits, gates = ee.all_exits(x)
        sure = torch.stack([given.softmax(1).amax(1) for given in logits[:-1]])
        for scores, by_gate in ((gates.T, True), (sure, False)):
            middle = scores.quantile(0.5, dim=1)
            at = middle.tolist()
            of_gate = AlphaConditionedGate(0.5, at) if gate == "dial" else GateThreshold(at)
            policy = of_gate if by_gate else MaxProbability(at)
            check_leaving(ee, policy, scores >= middle.unsqueeze(1), logits, x)
    heard = []
    for layer in ee.exits[0].modules():
        if isinstance(layer, torch.nn.Linear):
            layer.register_forward_hook(lambda *_: heard.append(1))
    ee(x)
    assert bool(heard) == (head != "means")


def check_leaving(ee, policy, leave, logits, x):
    """`leave` (N, B) says who would leave where, `logits` what each exit answers."""
    ee.policy = policy
    everyone = torch.cat([leave, torch.ones(1, len(x), dtype=torch.bool)])
    expected = everyone.int().argmax(0)
    found = ee.predict(x)
    assert torch.equal(found.exit_index, expected)
    assert close(found.logits, torch.stack(logits)[expected, torch.arange(len(x))], 1e-5)
    written = {segment.__code__.co_filename[:17] for segment in ee.controller(policy).fused_stages}
    assert written == {"<leenet_fx stage "}


def test_a_branch_of_ones_own_is_asked_each_time():
    class Moody(Branch):
        answer = 1.0

        def __init__(self, site):
            super().__init__(site)
            self.linear = torch.nn.Linear(1, site.num_classes)

        def hidden(self, *pooled, previous_logits=None):
            return pooled[0].flatten(1).mean(1, keepdim=True)

        def gate_logit(self, gate_inputs, alpha=None):
            return gate_inputs[:, 0] * 0 + self.answer

        def classify(self, state):
            return self.linear(state)

        def gate_parameters(self):
            return []

        def classifier_parameters(self):
            return list(self.linear.parameters())

        def reset_gate(self, generator, chance):
            pass

    ee = attached(branch=Moody)
    ee.policy = GateThreshold(0.0)
    assert ee.predict(images(2, 3, 16, 16)).exit_index.tolist() == [0, 0]
    ee.exits[0].answer = -1.0
    assert ee.predict(images(2, 3, 16, 16)).exit_index.tolist() == [1, 1]


# --- torch.compile ------------------------------------------------------------------------------


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("options", [{}, {"method": "ztw"}, {"branch_options": {"gate": "dial"}}])
def test_survivors_of_any_number_are_compiled_for_once(options):
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
def test_inductor_says_what_eager_says():
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


def test_compile_refuses_what_cannot_be():
    ee = attached()
    with pytest.raises(InputError, match="CUDA graph"):
        leenet_fx.compile(ee, mode="reduce-overhead")
    with pytest.raises(InputError, match="either mode or options"):
        leenet_fx.compile(ee, mode="default", options={})
    with pytest.raises(InputError, match="TinyNet"):
        leenet_fx.compile(tiny())


# --- streams ------------------------------------------------------------------------------------

STREAMED = {
    "gates": {},
    "history": {"branch_options": {"gate": "history"}},
    "cascade": {"method": "ztw"},
    "features": {"branch_options": {"gate": "features"}},
}
NETWORKS = {
    name: half_leave(attached(**options), images(64, 3, 16, 16))
    for name, options in STREAMED.items()
}
NETWORKS["patience"] = attached()
NETWORKS["patience"].policy = Patience(1)
NETWORKS["shut"] = attached()


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(sorted(NETWORKS)),
    st.lists(st.integers(0, 9), min_size=0, max_size=7),
    st.integers(1, 12),
    st.integers(0, 4),
)
def test_a_stream_says_of_each_batch_what_predict_says(name, sizes, full, delay):
    ee = NETWORKS[name]
    batches = [images(size, 3, 16, 16, seed=turn) for turn, size in enumerate(sizes)]
    found = list(predict_stream(ee, batches, batch_size=full, max_delay=delay))
    assert len(found) == len(batches)
    for answer, batch in zip(found, batches, strict=True):
        expected = ee.predict(batch)
        assert torch.equal(answer.exit_index, expected.exit_index)
        assert torch.equal(answer.cost, expected.cost)
        assert close(answer.logits, expected.logits, 1e-5) if len(batch) else True
        assert answer.logits.shape == expected.logits.shape


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_no_answer_waits_for_more_batches_than_allowed(delay):
    ee = NETWORKS["gates"]
    read = []

    def loader():
        for turn in range(12):
            read.append(turn)
            yield images(4, 3, 16, 16, seed=turn), torch.zeros(4)

    for turn, _ in enumerate(predict_stream(ee, loader(), batch_size=1000, max_delay=delay)):
        assert len(read) - 1 - turn <= delay


def test_later_stages_run_on_full_batches():
    ee = NETWORKS["gates"]
    seen = []
    last = ee.get_submodule("blocks.3.conv1")
    hook = last.register_forward_hook(lambda module, given, out: seen.append(len(given[0])))
    batches = [images(8, 3, 16, 16, seed=turn) for turn in range(16)]
    alone, together = [], []
    for found, run in (
        (alone, lambda: [ee.predict(b) for b in batches]),
        (together, lambda: list(predict_stream(ee, batches, max_delay=100))),
    ):
        seen.clear()
        run()
        found += seen
    hook.remove()
    assert sum(together) == sum(alone)
    assert min(together[:-1]) >= 8
    assert len(together) < len(alone) / 2


def test_a_stream_of_folded_windows():
    name = "torchvision/swin_t"
    options, size, _ = ZOO[name]
    model = leenet_fx.create_model(name, **options).eval()
    example = images(1, 3, size, size)
    ee = leenet_fx.attach(model, "linear", num_exits=2, example_inputs=example, copy=False)
    x = images(8, 3, size, size)
    half_leave(ee, x)
    found = list(predict_stream(ee, x.split(2), max_delay=3))
    expected = ee.predict(x)
    assert torch.equal(torch.cat([p.exit_index for p in found]), expected.exit_index)
    assert close(torch.cat([p.logits for p in found]), expected.logits, 1e-4)


def test_predict_stream_refuses_what_cannot_be():
    ee = attached()
    with pytest.raises(ModeError):
        predict_stream(attached().train(), [])
    for wrong in ({"batch_size": 0}, {"max_delay": -1}, {"batch_size": True}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            predict_stream(ee, [], **wrong)
    with pytest.raises(InputError, match="yield images"):
        list(predict_stream(ee, [["a"]]))
    ee.policy = GateThreshold(0.0)
    with pytest.raises(InputError, match="channels"):
        list(predict_stream(ee, [images(2, 4, 16, 16)]))


@given(st.integers(1, 6), st.integers(1, 3), st.data())
def test_what_was_parted_is_joined(count, per_sample, data):
    value = torch.arange(2 * count * per_sample * 3).reshape(2, count * per_sample, 3)
    batch_dims = BatchDim(
        "nested",
        items=(BatchDim("samples", 1, per_sample), BatchDim("size"), BatchDim("constant")),
    )
    whole = (value, 5 * count, "x")
    cut = data.draw(st.integers(0, count))
    parts = [rows for rows in (torch.arange(cut), torch.arange(cut, count)) if len(rows)]
    joined = concat_samples(
        [select_samples(whole, batch_dims, rows, count) for rows in parts], batch_dims
    )
    assert torch.equal(joined[0], value)
    assert joined[1:] == whole[1:]
