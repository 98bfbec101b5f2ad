"""Branches of parts: every combination against plain Python, heads and gates against formulas."""

import copy
import itertools
import math
import pickle
from functools import cache

import numpy as np
import pytest
import torch
from helpers import (
    array,
    backbone,
    counter,
    data,
    entropy,
    first,
    loader,
    log_softmax,
    probabilities,
    votes,
)
from networks import close, images, oracle, tiny
from torch import nn

import leenet_fx
from leenet_fx import (
    GateThreshold,
    InputError,
    MaxProbability,
    NeverExit,
    Patience,
    UnknownNameError,
    Vote,
)
from leenet_fx.parts.branches import Branch, get_branch, register_branch, run_branches
from leenet_fx.parts.exit_site import ExitSite, FeatureShape
from leenet_fx.parts.gates import uncertainty
from leenet_fx.parts.necks import Conv, NormPoolNeck
from leenet_fx.policies import AlphaConditionedGate

EXAMPLE = images(1, 3, 16, 16)
BATCH = images(20, 3, 16, 16, seed=3)
BODIES = [
    ("pool", {}),
    ("flatten", {}),
    ("bnpool", {}),
    *(("conv", {"blocks": n}) for n in (0, 1, 2)),
]
PARTS = [
    ("linear", "features"),
    ("projection", None),
    *itertools.product(
        ("linear", "cascade", "additive", "means"), ("confidence", "history", "dial")
    ),
]
COMBINATIONS = [
    pytest.param(
        branch,
        {**options, "head": head, **({"gate": gate} if gate else {})},
        id="-".join(map(str, (branch, *options.values(), head, gate or "own"))),
    )
    for branch, options in BODIES
    for head, gate in PARTS
]
combinations = pytest.mark.parametrize(("branch", "options"), COMBINATIONS)
# Each body, each head and each gate at least once.
SOME = [
    given
    for given in COMBINATIONS
    if given.values[0] == "pool" or given.id.endswith("-cascade-history")
]


def attached(branch="pool", model=None, **options):
    model = tiny() if model is None else model
    return leenet_fx.attach(
        model, "every", example_inputs=EXAMPLE, branch=branch, branch_options=options
    )


@torch.no_grad()
def stirred(ee, seed=1):
    """Exits as if trained: nothing is 0, samples differ, exits differ."""
    drawn = torch.Generator().manual_seed(seed)

    def draw(*shape, spread=1.0):
        return torch.randn(*shape, generator=drawn) * spread

    features = list(ee.exit_features(BATCH))[:-1]
    pooled = [branch.pool(*at) for branch, at in zip(ee.exits, features, strict=True)]
    for branch, at in zip(ee.exits, pooled, strict=True):
        branch.fit_input_statistics(*at)
        for module in branch.neck.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.running_mean.copy_(draw(len(module.running_mean), spread=0.2))
        vectors, head = branch.neck(*at), getattr(branch, "head", None)
        linear = branch.projection if head is None else getattr(head, "linear", None)
        if linear is not None:
            weight = draw(*linear.weight.shape)
            answers = vectors @ weight.T
            linear.weight.copy_(weight / answers.std(0).unsqueeze(1))
            linear.bias.copy_(-answers.mean(0) / answers.std(0))
        if hasattr(head, "before"):
            head.before.weight.copy_(draw(5, 5, spread=0.5))
        if hasattr(head, "ensembles"):
            head.ensembles.fill_(True)
            head.weights.copy_(draw(len(head.weights), spread=0.5))
            head.bias.copy_(draw(5, spread=0.2))
        if hasattr(head, "means"):
            first_sample = 5 * branch.site.position
            head.means.copy_(vectors[first_sample : first_sample + 5])
            head.spread.fill_((vectors - vectors.mean(0)).square().sum(1).mean() / 2)
        if hasattr(branch, "gate"):
            branch.gate.linear.weight.copy_(draw(*branch.gate.linear.weight.shape))
    for branch, (_, _, gate_inputs) in zip(ee.exits, run_branches(ee.exits, pooled), strict=True):
        branch.fit_gate_statistics(gate_inputs)
    return ee


@cache
def _made(branch, options):
    ee = stirred(attached(branch, **dict(options)))
    return ee, everything(ee)


def made(branch, options):
    """A network of each combination, whose policy tests may set, and all its exits' answers."""
    return _made(branch, tuple(options.items()))


def everything(ee, x=BATCH):
    with torch.no_grad():
        return ee.all_exits(x)


def answers(outputs, exit_index):
    """Of each sample the answer at an exit of its own."""
    picked = zip(exit_index, range(len(BATCH)), strict=True)
    return torch.stack([outputs.logits[at][sample] for at, sample in picked])


def histories(outputs):
    """For each sample the logits at each exit, as plain lists."""
    exits = [at.double().tolist() for at in outputs.logits[:-1]]
    return [[at[sample] for at in exits] for sample in range(len(outputs.gate_logits))]


def spread_out(values):
    """Thresholds between values, at each of which a quarter of who is still inside leaves.

    Args:
        values: for each sample its value at each exit.

    Returns:
        Thresholds, and where each sample leaves.
    """
    inside = list(range(len(values)))
    thresholds, left = [], [len(values[0])] * len(values)
    for index in range(len(values[0])):
        ranked = sorted((values[sample][index] for sample in inside), reverse=True)
        k = max(1, len(ranked) // 4)
        assert ranked[k - 1] - ranked[k] > 1e-6
        thresholds.append((ranked[k - 1] + ranked[k]) / 2)
        for sample in inside:
            if values[sample][index] >= thresholds[-1]:
                left[sample] = index
        inside = [sample for sample in inside if left[sample] == len(values[0])]
    return thresholds, left


def replayed(outputs, kind):
    """A policy under which samples leave everywhere, and where each leaves by a plain loop."""
    of_samples = histories(outputs)
    if kind in (Patience, Vote):
        measure, threshold = (counter, 1) if kind is Patience else (votes, 2)
        left = [
            first([measure(history[: i + 1]) >= threshold for i in range(len(history))])
            for history in of_samples
        ]
        return kind(threshold), left
    if kind is MaxProbability:
        values = [[max(probabilities(row)) for row in history] for history in of_samples]
    else:
        values = outputs.gate_logits.double().tolist()
    thresholds, left = spread_out(values)
    return (
        AlphaConditionedGate(0.5, thresholds) if kind is AlphaConditionedGate else kind(thresholds)
    ), left


@combinations
def test_the_conditional_path_answers_as_all_exits_do(branch, options):
    ee, outputs = made(branch, options)
    for index in ([0, 4, 2, 1, 3] * 4, [3] * 20):
        found = ee.predict(BATCH, exit_index=torch.tensor(index))
        assert close(found.logits, answers(outputs, index), 1e-5)
        assert found.exit_index.tolist() == index


@combinations
def test_samples_leave_where_a_plain_loop_says(branch, options):
    """Rows leave at every exit, so what earlier exits said must follow those that stay."""
    ee, outputs = made(branch, options)
    learned = AlphaConditionedGate if options.get("gate") == "dial" else GateThreshold
    for kind in (learned, MaxProbability, Patience, Vote):
        ee.policy, left = replayed(outputs, kind)
        found = ee.predict(BATCH)
        assert found.exit_index.tolist() == left
        assert len(set(left)) >= (2 if kind in (Patience, Vote) else 5)
        assert close(found.logits, answers(outputs, left), 1e-5)


@combinations
def test_each_parameter_has_one_trainer(branch, options):
    for part in made(branch, options)[0].exits:
        gate = {id(p) for p in part.gate_parameters()}
        classifier = {id(p) for p in part.classifier_parameters()}
        ensemble = {id(p) for p in part.ensemble_parameters()}
        assert gate | classifier | ensemble == {id(p) for p in part.parameters()}
        assert not ensemble & (gate | classifier)
        assert bool(ensemble) == (options["head"] == "cascade")
        if options["head"] == "projection":
            assert gate <= classifier
        else:
            assert gate
            assert not gate & classifier
        assert {id(p) for p in part.neck_parameters()} <= classifier


@pytest.mark.parametrize(("branch", "options"), SOME)
def test_copies_and_files_answer_alike(branch, options, tmp_path):
    ee, outputs = made(branch, options)
    ee.policy, _ = replayed(outputs, MaxProbability)
    expected = ee.predict(BATCH)
    leenet_fx.save(ee, tmp_path)
    for again in (
        copy.deepcopy(ee),
        pickle.loads(pickle.dumps(ee)),
        leenet_fx.load(tmp_path, tiny()),
    ):
        found = again.predict(BATCH)
        assert torch.equal(found.logits, expected.logits)
        assert torch.equal(found.exit_index, expected.exit_index)
        assert torch.equal(everything(again).gate_logits, outputs.gate_logits)
        assert again.costs == ee.costs


# --- costs -------------------------------------------------------------------------------------

STEM, BLOCK = 2 * 3 * 8 * 9 * 256, 2 * 2 * 8 * 8 * 9 * 256


@pytest.mark.parametrize(
    ("options", "convolutions", "width"),
    [
        ({"blocks": 0}, [(8, 16, 8)], 64),
        ({"blocks": 1}, [(8, 16, 8), (16, 16, 8)], 64),
        ({"blocks": 2}, [(8, 16, 8), (16, 16, 8), (16, 16, 8)], 64),
        ({"blocks": 1, "size": 16}, [(8, 8, 16)], 32),
        ({"blocks": 1, "size": 4}, [(8, 16, 8), (16, 32, 4), (32, 32, 4)], 128),
        ({"blocks": 0, "channels": 12}, [(8, 12, 8)], 48),
    ],
)
def test_cost_of_convolutions_by_hand(options, convolutions, width):
    """Convolutions are (in channels, out channels, side of the map they write)."""
    ee = attached("conv", gate="features", **options)
    hidden = sum(2 * i * o * 9 * side * side for i, o, side in convolutions)
    gate, head = 2 * width, 2 * width * 5
    plain = STEM + 4 * BLOCK + 2 * 8 * 5
    for i, row in enumerate(ee.costs[:-1]):
        assert row.flops == STEM + (i + 1) * (BLOCK + hidden + gate) + head
    assert ee.costs[-1].flops == plain + 4 * (hidden + gate)
    # Each convolution has no bias, and a BatchNorm of two parameters a channel.
    held = sum(i * o * 9 + 2 * o for i, o, _ in convolutions)
    assert ee.costs[-1].params == ee.costs.backbone.params + 4 * (held + width + 1)
    stem, block = 3 * 8 * 9 + 8, 2 * (8 * 8 * 9 + 8) + 2 * 8
    first_exit = stem + block + held + (width + 1) + (width * 5 + 5)
    assert ee.costs[0].params == first_exit
    ee.policy = MaxProbability(0.9)
    assert ee.costs[-1].flops == plain + 4 * (hidden + head)
    assert ee.costs[-1].params == ee.costs.backbone.params + 4 * (held + width * 5 + 5)


# FLOPs and parameters of what runs for all who pass an exit: pooled to 4 x 4 cells, 128 values.
LINEAR = 2 * 128 * 5
HEADS = {
    "linear": ([LINEAR] * 4, [128 * 5 + 5] * 4),
    "additive": ([LINEAR] * 4, [128 * 5 + 5] * 4),
    "means": ([LINEAR] * 4, [0] * 4),
    "cascade": (
        [LINEAR, *[LINEAR + 2 * 5 * 5] * 3],
        [128 * 5 + 5 + 5 + at + (25 if at > 1 else 0) for at in (1, 2, 3, 4)],
    ),
}
GATES = {"confidence": (2 * 4, 5), "history": (2 * 6, 7), "dial": (2 * 6 * 3, 7 * 3)}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("gate", GATES)
def test_cost_of_heads_and_gates_by_hand(head, gate):
    ee = attached(head=head, gate=gate)
    (flops, params), (gate_flops, gate_params) = HEADS[head], GATES[gate]
    plain = ee.costs.backbone
    for learned in (True, False):
        ee.policy = GateThreshold() if learned else MaxProbability(0.5)
        passed = [n + learned * gate_flops for n in flops]
        for i, row in enumerate(ee.costs):
            before = STEM + (i + 1) * BLOCK if i < 4 else plain.flops
            assert row.flops == before + sum(passed[: i + 1])
            assert row.relative_flops == row.flops / plain.flops
        held = sum(params) + learned * 4 * gate_params
        assert ee.costs[-1].params == plain.params + held


# --- bodies ------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [1, 3])
def test_normpool_normalises_channels_then_averages(axis):
    maps = images(5, 6, 8, 8, seed=2).numpy().astype(np.float64)
    shape = (1, 6, 8, 8) if axis == 1 else (1, 8, 8, 6)
    neck = NormPoolNeck(ExitSite((FeatureShape(shape, axis),), 5), grid=2)
    mean = maps.mean((0, 2, 3), keepdims=True)
    deviation = np.sqrt(maps.var((0, 2, 3), keepdims=True) + 1e-5)
    cells = ((maps - mean) / deviation).reshape(5, 6, 2, 4, 2, 4).mean((3, 5)).reshape(5, -1)
    given = torch.tensor(np.moveaxis(maps, 1, axis), dtype=torch.float32)
    found = neck.train()(*neck.pool(given)).detach().numpy()
    assert np.allclose(found, cells / np.sqrt(24), atol=1e-5)
    assert torch.allclose(neck.norms[0].running_mean, torch.tensor(0.1 * mean.ravel()).float())


def test_convolutions_read_several_features_and_either_layout():
    torch.manual_seed(0)
    shapes = (FeatureShape((1, 4, 8, 8), 1), FeatureShape((1, 8, 8, 2), 3))
    neck = Conv(ExitSite(shapes, 5)).eval()
    one, other = images(3, 4, 8, 8), images(3, 2, 8, 8, seed=1)
    found = neck(one, other.permute(0, 2, 3, 1))
    convolution, norm = neck.layers[0], neck.layers[1]
    joined = nn.functional.conv2d(torch.cat([one, other], 1), convolution.weight, padding=1)
    expected = (joined / math.sqrt(1 + norm.eps)).relu()
    cells = expected.reshape(3, 6, 2, 4, 2, 4).mean((3, 5)).flatten(1)
    assert close(found, 16 * cells / math.sqrt(24), 1e-4)


# --- heads -------------------------------------------------------------------------------------


def embedded(ee, x=BATCH):
    """Each exit's vector, in double precision."""
    with torch.no_grad():
        stages = list(ee.exit_features(x))[:-1]
        bodies = [b.neck(*b.pool(*at)) for b, at in zip(ee.exits, stages, strict=True)]
    return [vector.double().numpy() for vector in bodies]


@pytest.mark.parametrize("branch", ["pool", "conv"])
def test_a_cascade_sees_the_head_before_and_answers_with_the_ensemble(branch):
    ee = stirred(attached(branch, head="cascade"))
    z, passed_logits = None, []
    for index, (part, x) in enumerate(zip(ee.exits, embedded(ee), strict=True)):
        own = x @ array(part.head.linear.weight).T + array(part.head.linear.bias)
        z = own if z is None else own + z @ array(part.head.before.weight).T
        passed_logits.append(z)
        logs = [
            math.exp(w) * log_softmax(at)
            for w, at in zip(part.head.weights.tolist(), passed_logits, strict=True)
        ]
        ensemble = sum(logs) / (index + 1) + array(part.head.bias)
        assert np.allclose(everything(ee).logits[index], ensemble, atol=1e-4)
    for part in ee.exits:
        part.head.ensembles.fill_(False)
    for own, found in zip(passed_logits, everything(ee).logits, strict=False):
        assert np.allclose(found, own, atol=1e-4)


def test_additive_heads_add_up():
    ee = stirred(attached(head="additive"))
    total = 0
    for part, x, found in zip(ee.exits, embedded(ee), everything(ee).logits, strict=False):
        total = total + x @ array(part.head.linear.weight).T + array(part.head.linear.bias)
        assert np.allclose(found, total, atol=1e-4)


@pytest.mark.parametrize("head", ["cascade", "additive"])
def test_no_gradient_reaches_the_head_before(head):
    ee = stirred(attached(head=head)).train()
    ee.all_exits(BATCH).logits[2].square().sum().backward()
    assert [part.head.linear.weight.grad is not None for part in ee.exits] == [
        False,
        False,
        True,
        False,
    ]
    # Its own features are the backbone's, which does learn.
    assert float(ee.get_submodule("stem").weight.grad.abs().sum()) > 0


def test_class_means_by_hand():
    """Pooled, scaled, averaged and compared with numpy, from the plain network's features."""
    model = tiny()
    ee = attached(model=model, head="means")
    leenet_fx.fit(ee, loader(90, batch_size=16), method="e2cm")
    x, labels = data(90)
    new = data(20, seed=7)[0]
    train, test = model.stem(x), model.stem(new)
    outputs = everything(ee, new)
    for index, block in enumerate(model.blocks):
        train, test = block(train), block(test)
        vectors, others = (
            array(at).reshape(-1, 8, 4, 4, 4, 4).mean((3, 5)).reshape(len(at), 128)
            for at in (train, test)
        )
        mean, deviation = vectors.mean(0), vectors.std(0)
        # A value that is always the same counts for nothing.
        factor = np.where(deviation > 1e-6, 1 / np.maximum(deviation, 1e-6), 0) / math.sqrt(128)
        vectors, others = ((v - mean) * factor for v in (vectors, others))
        means = np.stack([vectors[labels.numpy() == k].mean(0) for k in range(5)])
        spread = ((vectors - means[labels.numpy()]) ** 2).sum(1).mean()
        distances = ((others[:, None] - means[None]) ** 2).sum(2)
        assert np.allclose(outputs.logits[index], -distances / spread, atol=1e-3)
        assert np.allclose(array(ee.exits[index].head.means), means, atol=1e-5)


def test_a_class_without_images_has_no_mean_and_is_named():
    ee = attached(head="means")
    x, labels = data(60)
    keep = labels != 3
    before = copy.deepcopy(ee.state_dict())
    with pytest.raises(InputError, match="Class 3 has no training image"):
        leenet_fx.fit(ee, [(x[keep], labels[keep])], method="e2cm")
    assert all(torch.equal(before[key], value) for key, value in ee.state_dict().items())
    assert ee.policy == NeverExit()


def test_only_class_means_count():
    ee = attached()
    with pytest.raises(InputError, match="has no class means"):
        ee.exits[0].count(torch.tensor([0]), images(1, 128))


# --- gates -------------------------------------------------------------------------------------


def measured(z):
    """Largest probability, margin, entropy, log-odds of the largest."""
    p = np.exp(log_softmax(z))
    ranked = np.sort(p, 1)
    best = ranked[:, -1]
    return np.stack([best, best - ranked[:, -2], entropy(p), np.log(best / (1 - best))], 1)


def with_history(ee, outputs):
    """What gates with a history judge by at each exit, from all exits' answers."""
    p = [np.exp(log_softmax(array(at))) for at in outputs.logits]
    gate_inputs = []
    for index in range(ee.num_exits):
        agree, average = np.zeros(len(p[0])), np.zeros(len(p[0]))
        if index:
            agree = (p[index] * p[index - 1]).sum(1)
            average = sum(p[: index + 1]).max(1) / (index + 1)
        sure = measured(array(outputs.logits[index]))
        gate_inputs.append(np.concatenate([sure, agree[:, None], average[:, None]], 1))
    return gate_inputs


def scaled(gate, gate_inputs):
    return (gate_inputs - array(gate.inputs.mean)) * array(gate.inputs.scale)


def test_confidence_gates_read_how_sure_the_head_is():
    ee = stirred(attached(gate="confidence"))
    outputs = everything(ee)
    for index, part in enumerate(ee.exits):
        gate_inputs = measured(array(outputs.logits[index]))
        linear = part.gate.linear
        expected = scaled(part.gate, gate_inputs) @ array(linear.weight[0]) + linear.bias.item()
        assert np.allclose(outputs.gate_logits[:, index], expected, atol=1e-3)
        # Evidence of unlike scale was measured on this very batch.
        assert np.allclose(scaled(part.gate, gate_inputs).std(0), 1 / 4, atol=1e-3)


def test_history_gates_read_whether_exits_agree():
    ee = stirred(attached(gate="history"))
    outputs = everything(ee)
    for index, (part, gate_inputs) in enumerate(
        zip(ee.exits, with_history(ee, outputs), strict=True)
    ):
        linear = part.gate.linear
        expected = scaled(part.gate, gate_inputs) @ array(linear.weight[0]) + linear.bias.item()
        assert np.allclose(outputs.gate_logits[:, index], expected, atol=1e-3)


def dialled(gate, gate_inputs, alphas):
    """a(α)·s + b(α), both quadratic in 2α − 1."""
    dial = 2 * np.asarray(alphas) - 1
    weight, bias = array(gate.linear.weight), array(gate.linear.bias)
    s = scaled(gate, gate_inputs)
    a = weight[0] + dial[:, None] * weight[1] + dial[:, None] ** 2 * weight[2]
    return (a * s).sum(1) + bias[0] + dial * bias[1] + dial**2 * bias[2]


def test_a_dial_is_quadratic_in_each_samples_alpha():
    ee = stirred(attached(gate="dial"))
    outputs = everything(ee)
    alphas = torch.linspace(0, 1, 20)
    for index, (part, gate_inputs) in enumerate(
        zip(ee.exits, with_history(ee, outputs), strict=True)
    ):
        given = torch.tensor(gate_inputs).float()
        with torch.no_grad():
            found = part.gate_logit(given, alphas)
            halfway = part.gate_logit(given)
        assert np.allclose(found, dialled(part.gate, gate_inputs, alphas), atol=1e-3)
        assert np.allclose(halfway, dialled(part.gate, gate_inputs, [0.5] * 20), atol=1e-3)
        assert np.allclose(outputs.gate_logits[:, index], halfway, atol=1e-3)


def test_prediction_turns_the_dial():
    ee = stirred(attached(gate="dial"))
    gate_inputs = with_history(ee, everything(ee))
    seen = set()
    for alpha in (0.0, 0.3, 1.0):
        values = np.stack(
            [
                dialled(part.gate, at, [alpha] * 20)
                for part, at in zip(ee.exits, gate_inputs, strict=True)
            ],
            1,
        )
        thresholds, left = spread_out(values.tolist())
        ee.policy = AlphaConditionedGate(0.9, thresholds)
        assert ee.predict(BATCH, alpha=alpha).exit_index.tolist() == left
        assert ee.policy == AlphaConditionedGate(0.9, thresholds)
        seen.add(tuple(left))
    assert len(seen) == 3


@pytest.mark.parametrize("gate", ["confidence", "history", "features", "dial"])
@pytest.mark.parametrize("classes", [1, 2])
def test_gates_of_few_classes(gate, classes):
    ee = stirred(attached(model=tiny(classes=classes), gate=gate))
    outputs = everything(ee)
    assert all(at.shape == (20, classes) for at in outputs.logits)
    assert bool(outputs.gate_logits.isfinite().all())
    ee.policy = AlphaConditionedGate(0.5) if gate == "dial" else GateThreshold()
    left = [first([gate_logit >= 0 for gate_logit in row]) for row in outputs.gate_logits.tolist()]
    assert ee.predict(BATCH).exit_index.tolist() == left


def test_evidence_of_one_and_two_classes():
    z = torch.tensor([[-2.0], [3.0]])
    assert uncertainty(z, 1).tolist() == [[1, 1, 0, 0]] * 2
    z = torch.tensor([[0.5, 2.0], [1.0, 1.0]])
    assert np.allclose(uncertainty(z, 2), measured(array(z)), atol=1e-6)


# --- what is refused ---------------------------------------------------------------------------


class TokenBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x):
        return x + self.mlp(self.norm(x)).relu()


class TokenNet(nn.Module):
    """16 tokens of 8 channels."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.blocks = nn.Sequential(TokenBlock(), TokenBlock())
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(self.blocks(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


def test_tokens():
    options = {"example_inputs": EXAMPLE, "blocks": ["blocks.*"]}
    for branch in ("pool", "flatten", "bnpool"):
        ee = leenet_fx.attach(TokenNet().eval(), "every", branch=branch, **options)
        index = torch.arange(20) % 3
        found = ee.predict(BATCH, exit_index=index)
        assert close(found.logits, oracle(ee, BATCH, index), 1e-5)
    with pytest.raises(InputError, match=r"reads maps .* got \[\(1, 16, 8\)\]: 'pool' reads any"):
        leenet_fx.attach(TokenNet().eval(), "every", branch="conv", **options)


@pytest.mark.parametrize(
    ("branch", "options", "error", "message"),
    [
        ("pool", {"haed": "linear"}, UnknownNameError, "branch option 'haed'. Did you mean 'head'"),
        ("pool", {"gird": 2}, UnknownNameError, "Did you mean 'grid'"),
        ("pool", {"blocks": 1}, UnknownNameError, "Available: gate, grid, head"),
        ("conv", {"block": 1}, UnknownNameError, "Did you mean 'blocks'"),
        ("flatten", {"grid": 1}, UnknownNameError, "Available: gate, head"),
        ("pool", {"head": "cascad"}, UnknownNameError, "Did you mean 'cascade'"),
        ("pool", {"head": ["linear"]}, UnknownNameError, "Unknown head"),
        ("pool", {"gate": "histroy"}, UnknownNameError, "Did you mean 'history'"),
        *(
            ("conv", {"gate": "features", "head": head}, InputError, "goes with head='linear'")
            for head in ("cascade", "additive", "means")
        ),
        *(
            ("pool", {"gate": gate, "head": "projection"}, InputError, "a gate of its own")
            for gate in ("confidence", "features")
        ),
        ("pool", {"grid": 0}, InputError, "grid must be a whole number from 1, got 0"),
        ("bnpool", {"grid": True}, InputError, "got True"),
        ("bnpool", {"grid": 1.5}, InputError, "got 1.5"),
        ("conv", {"blocks": -1}, InputError, "blocks ≥ 0"),
        ("conv", {"blocks": 1.5}, InputError, "blocks .* must be a whole number: 1.5"),
        ("conv", {"size": 0}, InputError, "size ≥ 1"),
        ("conv", {"channels": 0}, InputError, "channels ≥ 1"),
        ("conv", {"channels": "many"}, InputError, "channels .* 'many'"),
    ],
)
def test_options_that_do_not_fit(branch, options, error, message):
    model = tiny()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=message):
        attached(branch, model=model, **options)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not model.training


# --- one's own ---------------------------------------------------------------------------------


class Strongest(Branch):
    """Reads each channel's largest values; its gate reads their sum."""

    def __init__(self, site, power=1.0):
        super().__init__(site)
        self.power = power
        self.head = nn.Linear(site.features[0].channels * 16, site.num_classes)
        self.gate = nn.Linear(1, 1)

    def pool(self, *features):
        return (nn.functional.adaptive_max_pool2d(features[0], 4).flatten(1),)

    def hidden(self, *pooled, previous_logits=None):
        return pooled[0] ** self.power

    def gate_logit(self, gate_inputs, alpha=None):
        return self.gate(gate_inputs.mean(1, keepdim=True)).squeeze(1)

    def classify(self, state):
        return self.head(state)

    def gate_parameters(self):
        return list(self.gate.parameters())

    def classifier_parameters(self):
        return list(self.head.parameters())

    def reset_gate(self, generator, chance):
        with torch.no_grad():
            self.gate.weight.zero_()
            self.gate.bias.fill_(math.log(chance / (1 - chance)))


def test_a_registered_branch_of_ones_own(tmp_path):
    name = "test-strongest"
    register_branch(name)(Strongest)
    ee = attached(name, power=0.5)
    assert [part.site.position for part in ee.exits] == [0, 1, 2, 3]
    assert [part.power for part in ee.exits] == [0.5] * 4
    # 128 values: the gate reads one number, the classifier all.
    assert ee.costs[-1].flops == ee.costs.backbone.flops + 4 * 2
    assert ee.costs[-1].params == ee.costs.backbone.params + 4 * 2
    frozen = backbone(ee)
    leenet_fx.fit(ee, loader(), epochs={"exits": 15, "gates": 1}, lr=0.02, method="leenet")
    assert all(torch.equal(frozen[key], value) for key, value in backbone(ee).items())
    x, labels = data(seed=5)
    assert all(
        float((at.argmax(1) == labels).float().mean()) > 0.8 for at in everything(ee, x).logits[:-1]
    )
    ee.policy, left = replayed(everything(ee), GateThreshold)
    assert ee.predict(BATCH).exit_index.tolist() == left
    leenet_fx.save(ee, tmp_path)
    again = leenet_fx.load(tmp_path, tiny())
    assert torch.equal(again(BATCH), ee(BATCH))
    with pytest.raises(UnknownNameError, match="Did you mean 'power'"):
        attached(name, powr=2.0)
    with pytest.raises(InputError, match="needs branches with head='means'"):
        leenet_fx.fit(attached(name), [data(10)], method="e2cm")


def test_each_exit_may_have_a_branch_of_its_own():
    """A convolution, one's own, then heads that read what the exits before them said."""

    def by_place(site):
        parts = {"head": "additive", "gate": "history"}
        return (
            get_branch("conv")(site, gate="features")
            if site.position == 0
            else Strongest(site)
            if site.position == 1
            else get_branch("pool")(site, **parts)
        )

    ee = attached(by_place)
    leenet_fx.fit(ee, loader(), epochs=1, lr=0.01, method="leenet")
    outputs = everything(ee)
    for kind in (GateThreshold, MaxProbability, Patience, Vote):
        ee.policy, left = replayed(outputs, kind)
        found = ee.predict(BATCH)
        assert found.exit_index.tolist() == left
        assert close(found.logits, answers(outputs, left), 1e-5)
    # The third exit adds to what the branch of one's own answered.
    own = embedded_at(ee, 2) @ array(ee.exits[2].head.linear.weight).T
    own += array(ee.exits[2].head.linear.bias)
    assert np.allclose(outputs.logits[2] - outputs.logits[1], own, atol=1e-4)


def embedded_at(ee, index):
    part = ee.exits[index]
    with torch.no_grad():
        features = list(ee.exit_features(BATCH))[index]
        return array(part.neck(*part.pool(*features)))
