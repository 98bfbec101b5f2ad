"""Side networks, against a plain computation of every exit and counts by hand."""

import itertools
import math

import pytest
import torch
from branch_helpers import BATCH, BLOCK, EXAMPLE, STEM, attached
from helpers import loader
from networks import close, images, tiny
from test_necks import TokenNet
from torch import nn
from torch.nn import functional as F

import leenet_fx
from leenet_fx import GateThreshold, InputError, MaxProbability, UnknownNameError
from leenet_fx.parts.batch_norm import BatchNorm1d, BatchNorm2d
from leenet_fx.parts.branches import get_branch
from leenet_fx.parts.exit_site import ExitSite, FeatureShape

INF = math.inf


class ChannelsLastNet(nn.Module):
    """Blocks on maps (B, H, W, C) of falling size."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.blocks = nn.Sequential(*(Halving(6) for _ in range(3)))
        self.fc = nn.Linear(6, 5)

    def forward(self, x):
        return self.fc(self.blocks(self.stem(x).permute(0, 2, 3, 1)).mean((1, 2)))


class Halving(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(4 * width, width)

    def forward(self, x):
        parts = [x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
        return self.linear(torch.cat(parts, 3)).relu()


def randomize(ee, seed=0):
    """Draw weights and statistics such that no term of the computation vanishes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*ee.exits.named_parameters(), *ee.exits.named_buffers()):
            if name == "thresholds" or not tensor.is_floating_point():
                continue
            fan = max(1, tensor[0].numel()) if tensor.ndim > 1 else 4
            tensor.copy_(torch.randn(tensor.shape, generator=generator) / math.sqrt(fan))
            if "running_var" in name:
                tensor.abs_().add_(0.5)
            elif tensor.ndim == 1 and name.endswith("weight"):
                tensor.add_(1)
    return ee.eval()


def as_map(features, layout):
    if layout == "tokens":
        return features.transpose(1, 2).unsqueeze(3)
    return features.permute(0, 3, 1, 2) if layout == "channels last" else features


def normalized(x, weights, name):
    w, b, mean, var = (
        weights[f"{name}.{part}"].view(1, -1, 1, 1)
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    return (x - mean) / (var + 1e-5).sqrt() * w + b


def pointwise(x, weights, name):
    x = torch.einsum("bchw,oc->bohw", x, weights[f"{name}.0.weight"].flatten(1))
    return normalized(x, weights, f"{name}.1")


@torch.no_grad()
def by_hand(ee, x, sizes, layout="maps", fusion="add", unit="separable", reads="average"):
    """Class logits of every exit, all samples, from the weights alone."""
    features = [at[0] for at in ee.exit_features(x)]
    state, logits = None, []
    for index, size in enumerate(sizes):
        weights = dict(ee.exits[index].state_dict())
        cells = as_map(features[index], layout)
        if reads == "patches" and cells.shape[2] > size[0]:
            cells = F.unfold(cells, factor := cells.shape[2] // size[0], stride=factor)
            cells = cells.view(len(x), -1, *size)
        own = pointwise(F.adaptive_avg_pool2d(cells, size), weights, "neck.project")
        if state is not None:
            previous = F.adaptive_avg_pool2d(state, size)
            if fusion == "concat":
                own = pointwise(torch.cat([own, previous], 1), weights, "neck.mix")
            else:
                if "neck.mix.0.weight" in weights:
                    previous = pointwise(previous, weights, "neck.mix")
                if fusion == "gated":
                    means = torch.cat([own.mean((2, 3)), previous.mean((2, 3))], 1)
                    g = means @ weights["neck.balance.weight"].T + weights["neck.balance.bias"]
                    g = g.sigmoid()[:, :, None, None]
                    own = g * own + (1 - g) * previous
                else:
                    own = own + previous
        state = own.relu()
        for number in itertools.count():
            name = f"neck.units.{number}"
            if f"{name}.0.weight" not in weights:
                break
            kernel = weights[f"{name}.0.weight"]
            padding = tuple(side // 2 for side in kernel.shape[2:])
            groups = len(kernel) if unit == "separable" else 1
            change = F.conv2d(state, kernel, padding=padding, groups=groups)
            change = normalized(change, weights, f"{name}.1")
            if unit == "separable":
                product = change.relu()
                kernel = weights[f"{name}.3.weight"].flatten(1)
                product = torch.einsum("bchw,oc->bohw", product, kernel)
                change = normalized(product, weights, f"{name}.4")
            state = (state + change).relu()
        grid = min(2, *size)
        vector = F.adaptive_avg_pool2d(state, grid).flatten(1)
        vector = 16 * vector / math.sqrt(vector.shape[1])
        logits.append(vector @ weights["head.linear.weight"].T + weights["head.linear.bias"])
    return torch.stack([*logits, features[-1]])


def check(ee, expected):
    """Compare all exits, and conditional execution with any subset of enabled exits."""
    outputs = torch.stack(ee.all_exits(BATCH).logits).detach()
    assert close(outputs, expected, 1e-4)
    forced = torch.arange(len(BATCH)) % (ee.num_exits + 1)
    found = ee.predict(BATCH, exit_index=forced).logits
    assert close(found, expected[forced, torch.arange(len(BATCH))], 1e-4)
    confidence = expected[:-1].softmax(2).amax(2)
    medians = confidence.median(1).values.tolist()
    for number in (0b1, 0b10, 0b101, 0b1100, 0b1111):
        enabled = [bool(number >> index & 1) for index in range(ee.num_exits)]
        limits = [m + 1e-4 if on else INF for m, on in zip(medians, enabled, strict=True)]
        ee.policy = MaxProbability(limits)
        exits = confidence >= torch.tensor(limits).unsqueeze(1)
        index = torch.cat([exits, torch.ones(1, len(BATCH), dtype=torch.bool)]).int().argmax(0)
        found = ee.predict(BATCH)
        assert torch.equal(found.exit_index, index)
        assert close(found.logits, expected[index, torch.arange(len(BATCH))], 1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fusion": "concat", "width": [6, 10], "resolution": [8, 4]},
        {"fusion": "gated", "width": [6, 10, 10], "depth": [2, 0, 1], "unit": "full"},
        {"reads": "patches", "width": [10, 6], "resolution": [16, 8]},
        {"resolution": 5, "passes": "detached"},
    ],
    ids=lambda options: "-".join(options) or "defaults",
)
def test_conditional_execution_equals_every_exit_computed_by_hand(options):
    ee = randomize(attached("side", **options))
    resolution = options.get("resolution", 8)
    sides = resolution if isinstance(resolution, list) else [resolution]
    sizes = [(sides[min(i, len(sides) - 1)],) * 2 for i in range(4)]
    known = {k: v for k, v in options.items() if k in ("fusion", "unit", "reads")}
    check(ee, by_hand(ee, BATCH, sizes, **known))


@pytest.mark.parametrize("fusion", ["add", "concat", "gated"])
def test_tokens_and_channels_last_carry_a_state(fusion):
    options = {"example_inputs": EXAMPLE, "branch": "side"}
    branch_options = {"fusion": fusion, "resolution": 3, "width": [6, 9]}
    ee = leenet_fx.attach(
        TokenNet().eval(), "every", blocks=["blocks.*"], branch_options=branch_options, **options
    )
    check(randomize(ee), by_hand(ee, BATCH, [(9, 1)] * 2, "tokens", fusion))
    ee = leenet_fx.attach(
        ChannelsLastNet().eval(),
        ["blocks.0", "blocks.1", "blocks.2"],
        blocks=["blocks.?"],
        branch_options=branch_options,
        **options,
    )
    # The state shrinks with the maps: 8, 4 and 2 cells a side, of at most 3.
    sizes = [(3, 3), (3, 3), (2, 2)]
    check(randomize(ee), by_hand(ee, BATCH, sizes, "channels last", fusion))


def test_images_of_another_size_run_through_the_same_state():
    ee = randomize(attached("side"))
    larger = images(20, 3, 24, 24, seed=5)
    expected = by_hand(ee, larger, [(8, 8)] * 4)
    assert close(torch.stack(ee.all_exits(larger).logits).detach(), expected, 1e-4)
    index = torch.arange(20) % 5
    found = ee.predict(larger, exit_index=index).logits
    assert close(found, expected[index, torch.arange(20)], 1e-4)


@pytest.mark.parametrize("gate", ["confidence", "history", "alpha"])
@pytest.mark.parametrize("head", ["linear", "ensemble", "cascade", "additive"])
def test_heads_and_gates_read_the_state(head, gate):
    ee = randomize(attached("side", width=6, head=head, gate=gate))
    outputs = ee.all_exits(BATCH)
    gates = outputs.gate_logits
    at = gates.median(0).values.tolist()
    policy = GateThreshold([at[0], INF, at[2], INF])
    if gate == "alpha":
        policy = leenet_fx.policies.AlphaConditionedGate(0.5, policy.thresholds)
    ee.policy = policy
    found = ee.predict(BATCH)
    exits = torch.stack([gates[:, 0] >= at[0], gates[:, 2] >= at[2]])
    index = torch.where(exits[0], 0, torch.where(exits[1], 2, 4))
    assert torch.equal(found.exit_index, index)
    logits = torch.stack(outputs.logits)
    assert close(found.logits, logits[index, torch.arange(len(BATCH))], 1e-4)


WIDTH = 6
PROJECT = 2 * 8 * WIDTH * 64
UNIT = 2 * (9 * WIDTH + WIDTH * WIDTH) * 64
STATE = PROJECT + UNIT
HEAD = 2 * (4 * WIDTH) * 5


@pytest.mark.parametrize(
    ("enabled", "states", "heads"),
    [
        ((True, True, True, True), 4, {0, 1, 2, 3}),
        ((False, False, True, False), 3, {2}),
        ((False, True, False, True), 4, {1, 3}),
        ((True, False, False, False), 1, {0}),
    ],
)
def test_costs_equal_a_count_by_hand_and_what_runs(enabled, states, heads):
    ee = attached("side", width=WIDTH)
    ee.policy = MaxProbability([0.999 if on else INF for on in enabled])
    backbone = STEM + 4 * BLOCK + 2 * 8 * 5
    for index, row in enumerate(ee.costs[:-1]):
        before = sum(HEAD for i in heads if i < index)
        assert row.flops == STEM + (index + 1) * (BLOCK + STATE) + before + HEAD
    assert ee.costs[-1].flops == backbone + states * STATE + len(heads) * HEAD
    state_params = (8 * WIDTH + 2 * WIDTH) + (9 * WIDTH + WIDTH * WIDTH + 4 * WIDTH)
    head_params = 4 * WIDTH * 5 + 5
    added = states * state_params + len(heads) * head_params
    assert ee.costs[-1].params == ee.costs.backbone.params + added
    calls = {"state": [], "head": []}
    for index, branch in enumerate(ee.exits):
        branch.neck.project.register_forward_hook(lambda *_, i=index: calls["state"].append(i))
        branch.head.register_forward_hook(lambda *_, i=index: calls["head"].append(i))
    assert ee.predict(BATCH).cost.tolist() == pytest.approx([ee.costs.relative()[-1]] * 20)
    assert calls == {"state": list(range(states)), "head": sorted(heads)}


@pytest.mark.parametrize(
    ("fusion", "extra"),
    [("add", 0), ("concat", 2 * (2 * WIDTH) * WIDTH * 64), ("gated", 2 * (2 * WIDTH) * WIDTH)],
)
def test_fusion_is_counted_after_the_first_exit(fusion, extra):
    ee = attached("side", width=WIDTH, fusion=fusion)
    found = [cost.state.flops for cost in ee.spec.branch_costs]
    assert found == [STATE, *[STATE + extra] * 3]


def test_exits_that_stand_alone_carry_no_state():
    ee = randomize(attached("side", width=WIDTH, passes="nothing"))
    assert not any(branch.carries_state for branch in ee.exits)
    ee.policy = MaxProbability([INF, INF, 2.0, INF])
    backbone = STEM + 4 * BLOCK + 2 * 8 * 5
    assert ee.costs[-1].flops == backbone + STATE + HEAD
    single = attached("side", width=WIDTH)
    single.exits[0].load_state_dict(ee.exits[0].state_dict())
    logits, expected = ee.all_exits(BATCH).logits, by_hand(single, BATCH, [(8, 8)])
    assert close(logits[0].detach(), expected[0], 1e-4)


def test_gradients_reach_earlier_exits_unless_the_state_is_detached():
    for passes, reached in (("state", True), ("detached", False)):
        ee = randomize(attached("side", width=WIDTH, passes=passes)).train()
        ee.all_exits(BATCH).logits[2].sum().backward()
        for index, branch in enumerate(ee.exits):
            gradient = branch.neck.project[0].weight.grad
            expected = index == 2 or (reached and index < 2)
            assert (gradient is not None and bool(gradient.any())) == expected


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"fusion": "sum"}, InputError, "fusion .* add, concat, gated, got 'sum'"),
        ({"unit": None}, InputError, "unit .* separable, full, got None"),
        ({"reads": "all"}, InputError, "reads .* average, patches"),
        ({"passes": True}, InputError, "passes .* state, detached, nothing"),
        ({"width": 0}, InputError, "width .* whole number from 1, .* got 0"),
        ({"width": []}, InputError, r"width .* got \[\]"),
        ({"width": [8, 1.5]}, InputError, r"got \[8, 1.5\]"),
        ({"resolution": True}, InputError, "resolution .* got True"),
        ({"depth": -1}, InputError, "depth .* whole number from 0"),
        ({"grid": 0}, InputError, "grid .* whole number from 1"),
        ({"grid": "2"}, InputError, "grid .* whole number from 1, .* got '2'"),
        ({"head": "means"}, InputError, "no trained weights"),
        ({"widht": 8}, UnknownNameError, "Did you mean 'width'"),
    ],
)
def test_bad_options_are_named(options, error, message):
    site = ExitSite((FeatureShape((1, 8, 16, 16), 1),), 5)
    with pytest.raises(error, match=message):
        get_branch("side")(site, **options)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_patches_of_any_number_of_images_become_channels(count):
    site = ExitSite((FeatureShape((1, 6, 12, 8), 1),), 5)
    neck = get_branch("side")(site, reads="patches", resolution=[4]).eval().neck
    # 12 x 8 is no multiple of a cell of 3 x 3: its cells are averaged.
    assert neck.pool(images(count, 6, 12, 8))[0].shape == (count, 6, 4, 4)
    square = get_branch("side")(
        ExitSite((FeatureShape((1, 6, 12, 12), 1),), 5), reads="patches", resolution=4
    )
    maps = images(count, 6, 12, 12)
    pooled = square.eval().neck.pool(maps)[0]
    assert pooled.shape == (count, 54, 4, 4)
    for c, i, j in itertools.product(range(6), range(3), range(3)):
        assert torch.equal(pooled[:, 9 * c + 3 * i + j], maps[:, c, i::3, j::3])


def test_patches_of_images_of_another_size():
    ee = randomize(attached("side", reads="patches", resolution=4))
    larger = images(6, 3, 32, 32, seed=5)
    index = torch.arange(6) % 5
    expected = torch.stack(ee.all_exits(larger).logits).detach()
    found = ee.predict(larger, exit_index=index).logits
    assert close(found, expected[index, torch.arange(6)], 1e-4)
    ee.policy = MaxProbability(0.5)
    for call in (ee.predict, ee.all_exits):
        with pytest.raises(InputError, match=r"cells of 4 x 4 values got features of 18 x 18"):
            call(images(2, 3, 18, 18))


@pytest.mark.parametrize("cache", [False, True])
def test_a_last_batch_of_one_image_is_trained_on(cache):
    ee = attached("side", resolution=1, fusion="concat")
    leenet_fx.fit(ee, loader(17), method="distilled", epochs=2, cache=cache)
    assert all(bool(torch.isfinite(logits).all()) for logits in ee.all_exits(BATCH).logits)


@pytest.mark.parametrize(("norm", "shape"), [(BatchNorm1d, (4,)), (BatchNorm2d, (4, 1, 1))])
def test_one_value_per_channel_is_normalised_by_running_statistics(norm, shape):
    ours, theirs = norm(4), getattr(nn, norm.__name__)(4)
    for batch in (images(5, *shape), images(2, *shape, seed=1)):
        assert torch.equal(ours(batch), theirs(batch))
    one = images(1, *shape, seed=2)
    expected = theirs.eval()(one)
    assert close(ours(one), expected, 1e-6)
    assert torch.equal(ours.running_var, theirs.running_var)
    assert torch.equal(ours.eval()(one), expected)


@pytest.mark.parametrize("head", ["means", "means-euclidean"])
def test_class_means_of_a_state_are_refused(head):
    with pytest.raises(InputError, match="no trained weights"):
        attached("side", head=head)


def test_a_state_passes_through_every_exit_or_none():
    def mixed(site):
        return get_branch("pool" if site.position == 1 else "side")(site)

    with pytest.raises(InputError, match="exit 1 carries no state, and others do"):
        leenet_fx.attach(tiny(), "every", example_inputs=EXAMPLE, branch=mixed)


def test_several_features_and_vectors_are_read_together():
    shapes = (FeatureShape((1, 8, 8, 4), 3), FeatureShape((1, 6), 1), FeatureShape((1, 5, 3), 2))
    branch = get_branch("side")(ExitSite(shapes, 5), width=7, resolution=4).eval()
    maps, vectors, tokens = images(3, 8, 8, 4), images(3, 6, seed=1), images(3, 5, 3, seed=2)
    pooled = branch.pool(maps, vectors, tokens)
    assert [tuple(p.shape) for p in pooled] == [(3, 4, 4, 4), (3, 6, 4, 4), (3, 3, 4, 4)]
    expected = maps.reshape(3, 4, 2, 4, 2, 4).mean((2, 4)).permute(0, 3, 1, 2)
    assert close(pooled[0], expected, 1e-6)
    assert bool((pooled[1] == vectors[:, :, None, None]).all())
    assert branch(maps, vectors, tokens)[3].shape == (3, 7, 4, 4)
