"""Learning rates: torch's schedulers against the closed form, from any batch on."""

import math
from dataclasses import replace

import pytest
import torch
from helpers import loader
from hypothesis import given
from hypothesis import strategies as st
from networks import images, tiny
from torch import nn

import leenet_fx
from leenet_fx.training.optimizers import make_optimizers, make_schedulers, warmup_cosine
from leenet_fx.training.parameters import UpdateParameters


def optimizers(lr=0.1, sgd_lr=0.4):
    linear, neck, backbone = ([nn.Parameter(torch.ones(2))] for _ in range(3))
    return make_optimizers(UpdateParameters(linear, neck, backbone), lr, sgd_lr)


def rates(made):
    return [group["lr"] for optimizer in made for group in optimizer.param_groups]


def closed_form(progress):
    if progress < 0.1:
        return progress / 0.1
    return (1 + math.cos(math.pi * (progress - 0.1) / 0.9)) / 2


@given(st.floats(0, 1), st.floats(0, 1))
def test_rates_rise_for_a_tenth_and_then_fall(a, b):
    assert 0 <= warmup_cosine(a) <= 1
    first, second = sorted((a, b))
    if second <= 0.1:
        assert warmup_cosine(first) <= warmup_cosine(second)
    if first >= 0.1:
        assert warmup_cosine(first) >= warmup_cosine(second)


def test_rates_at_selected_points():
    found = [warmup_cosine(progress) for progress in (0, 0.05, 0.1, 0.55, 1, 1.5)]
    assert found == pytest.approx([0, 0.5, 1, 0.5, 0, 0])


@pytest.mark.parametrize("length", [1, 21, 60])
def test_schedulers_follow_the_closed_form_at_the_middle_of_each_step(length):
    made = optimizers()
    schedulers = make_schedulers(made, position=0, length=length)
    for step in range(length):
        factor = closed_form((step + 0.5) / length)
        assert rates(made) == pytest.approx([0.1 * factor, 0.4 * factor, 0.4 * factor])
        for optimizer in made:
            optimizer.step()
        for scheduler in schedulers:
            scheduler.step()


def test_schedulers_that_start_in_the_middle_continue_the_schedule():
    made = optimizers()
    for position in (19, 3, 0):
        make_schedulers(made, position=position, length=32)
        factor = closed_form((position + 0.5) / 32)
        assert rates(made) == pytest.approx([0.1 * factor, 0.4 * factor, 0.4 * factor])


def test_necks_have_weight_decay_and_the_backbone_has_none():
    adam, sgd = optimizers()
    assert isinstance(adam, torch.optim.Adam)
    assert isinstance(sgd, torch.optim.SGD)
    assert [group["weight_decay"] for group in sgd.param_groups] == [1e-3, 0]


def test_weight_decay_of_the_backbone_is_a_setting_of_phases():
    def trained(decay):
        (phase,) = leenet_fx.get_method("msdnet").phases
        method = leenet_fx.Method(
            (replace(phase, backbone_decay=decay),), leenet_fx.MaxProbability(0.9), "a test"
        )
        ee = leenet_fx.attach(tiny(), "every", example_inputs=images(1, 3, 16, 16))
        leenet_fx.fit(ee, loader(), method=method, epochs=3, seed=0)
        return torch.cat([p.flatten() for p in ee.backbone_parameters()]).norm()

    # One step of SGD with weight decay d and learning rate r scales weights by 1 − r·d.
    assert trained(20.0) < 0.7 * trained(0.0)
