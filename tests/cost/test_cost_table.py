"""The cost table against hand-computed networks and a second counter."""

import warnings

import pytest
import torch
from helpers import attached
from networks import images, tiny

import leenet_fx
from leenet_fx import GateThreshold, InputError, MaxProbability, UnknownNameError

# Convolutions: (in channels, out channels, kernel, output size); linear layers: (in, out).
ALEXNET = (
    [(3, 64, 11, 55), (64, 192, 5, 27), (192, 384, 3, 13), (384, 256, 3, 13), (256, 256, 3, 13)],
    [(256 * 36, 4096), (4096, 4096), (4096, 1000)],
)


VGG11 = (
    [
        (3, 64, 3, 224),
        (64, 128, 3, 112),
        (128, 256, 3, 56),
        (256, 256, 3, 56),
        (256, 512, 3, 28),
        (512, 512, 3, 28),
        (512, 512, 3, 14),
        (512, 512, 3, 14),
    ],
    [(512 * 49, 4096), (4096, 4096), (4096, 1000)],
)


def layers(network):
    """(FLOPs = 2 x MACs, parameters) of each layer, by hand."""
    convs, linears = network
    found = [
        (2 * i * o * k * k * size * size, i * o * k * k + o, o * size * size)
        for i, o, k, size in convs
    ]
    return found + [(2 * i * o, i * o + o, o) for i, o in linears]


@pytest.mark.parametrize(("name", "network"), [("alexnet", ALEXNET), ("vgg11", VGG11)])
def test_hand_computed_networks(name, network):
    model = leenet_fx.create_model(f"torchvision/{name}", device="meta")
    ee = leenet_fx.attach(model, "every", branch_options={"gate": "features"})
    by_hand = layers(network)
    flops = [sum(f for f, _, _ in by_hand[: i + 1]) for i in range(len(by_hand))]
    params = [sum(p for _, p, _ in by_hand[: i + 1]) for i in range(len(by_hand))]
    assert [c.flops for c in ee.spec.profile.candidates] == flops[:-1]
    assert [c.params for c in ee.spec.profile.candidates] == params[:-1]
    assert ee.costs.backbone.flops == flops[-1]
    assert ee.costs.backbone.params == params[-1] == sum(p.numel() for p in model.parameters())

    # Branches: gate n→1 and classifier n→1000 on the pooled channels; a gate at every exit
    # passed, one classifier where the sample leaves.
    widths = [conv[1] for conv in network[0]] + [4096, 4096]
    gate_flops = [2 * width for width in widths]
    head_flops = [2 * width * 1000 for width in widths]
    for i, row in enumerate(ee.costs):
        spent = flops[i] + sum(gate_flops[: i + 1])
        if i < ee.num_exits:
            spent += head_flops[i]
        assert row.flops == spent
        assert row.relative_flops == pytest.approx(spent / flops[-1])
    gate_params = [width + 1 for width in widths]
    assert ee.costs[-1].params == params[-1] + sum(gate_params)
    assert ee.costs[0].params == params[0] + gate_params[0] + (widths[0] + 1) * 1000


def test_last_row_is_above_1_by_what_the_branches_add():
    options = {"gate": "features"}
    example = images(1, 3, 16, 16)
    ee = leenet_fx.attach(tiny(), "every", example_inputs=example, branch_options=options)
    assert len(ee.costs) == ee.num_exits + 1
    added = ee.costs[-1].flops - ee.costs.backbone.flops
    # tiny: 8 channels, so a 4x4 grid of 128 values and a gate of 2·128 FLOPs at each of 4 exits.
    assert added == 4 * 2 * 128
    assert ee.costs.relative()[-1] == pytest.approx(1 + added / ee.costs.backbone.flops)
    assert ee.costs.relative("params")[-1] > 1
    assert ee.costs.relative("bytes")[-1] > 1


def test_activation_bytes_by_hand():
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, padding=1),
        torch.nn.ReLU(inplace=True),
        torch.nn.Conv2d(4, 6, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(6 * 64, 2),
    )
    ee = leenet_fx.attach(model, "every", example_inputs=images(1, 3, 8, 8))
    profile = ee.spec.profile
    assert profile.candidates[0].bytes == 4 * 4 * 64
    assert profile.candidates[0].live_bytes == 4 * 4 * 64
    assert profile.candidates[1].bytes == 4 * (4 + 6 + 6) * 64
    assert profile.bytes == 4 * (4 + 6 + 6) * 64 + 4 * 2


def test_costs_follow_the_policy():
    ee = leenet_fx.attach(tiny(), "every", example_inputs=images(1, 3, 16, 16))
    disabled = ee.costs
    ee.policy = GateThreshold()
    assert ee.costs == disabled
    ee.policy = MaxProbability(0.9)
    heads = 4 * 2 * 128 * 5
    assert ee.costs[-1].flops == ee.costs.backbone.flops + heads


def test_unknown_cost():
    ee = leenet_fx.attach(tiny(), "every", example_inputs=images(1, 3, 16, 16))
    with pytest.raises(UnknownNameError, match="Did you mean 'flops'"):
        ee.costs.relative("flop")


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenet_v3_small", "googlenet"])
def test_a_second_counter_agrees(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fvcore.nn import FlopCountAnalysis

        model = leenet_fx.create_model(f"torchvision/{name}").eval()
        ee = leenet_fx.attach(model, "linear", copy=False)
        counts = FlopCountAnalysis(model, torch.zeros(1, 3, 224, 224))
        counts.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        by_operator = counts.by_operator()
    # fvcore counts multiply-adds, and normalisation and pooling besides.
    macs = by_operator["conv"] + by_operator["linear"]
    assert ee.costs.backbone.flops == pytest.approx(2 * macs, rel=1e-6)


def test_seconds_count_only_if_exits_decide_as_measured():
    ee = attached().eval()
    leenet_fx.profile(ee, batch_sizes=(2,), seconds=0)
    assert ee.costs.latency.reads == "gate"
    ee.policy = GateThreshold(0.0)
    ee.costs.relative("seconds")
    ee.policy = MaxProbability(0.5)
    with pytest.raises(InputError, match="logits"):
        ee.costs.relative("seconds")
    leenet_fx.profile(ee, batch_sizes=(2,), seconds=0)
    assert ee.costs.latency.reads == "logits"
