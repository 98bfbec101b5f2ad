"""Names, options and cost weights of methods."""

import inspect
import math
from dataclasses import replace

import pytest
import torch
from helpers import loader
from method_helpers import GATED, PRESETS, attached_for, changed_keys, state
from networks import images, tiny

import leenet_fx
from leenet_fx import InputError, MaxProbability, NeverExit, UnknownNameError
from leenet_fx.cli.fit import fit as fit_by_command
from leenet_fx.methods import DEFAULT, list_method_options


def test_all_methods_are_listed():
    listed = {name for name in leenet_fx.list_methods() if not name.startswith("test-")}
    assert listed == {*PRESETS, "lgvit"}


@pytest.mark.parametrize("method", PRESETS)
def test_an_unknown_option_raises_an_error_that_lists_the_known_ones(method):
    known = ", ".join(sorted(list_method_options(method)))
    with pytest.raises(UnknownNameError, match=f"option of method '{method}'.*: {known}"):
        leenet_fx.get_method(method, colour="red")


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("eenets", {"two_stage": object()}, "two_stage must be True or False"),
        ("leenet", {"temperature_scaled": "no"}, "temperature_scaled must be True or False"),
        ("boostnet", {"ensemble_reweight": [1]}, r"ensemble_reweight must be 1 or 0.5, got \[1\]"),
        (
            "branchynet",
            {"exit_weights": (1, 1), "recipe": "disjoint"},
            "2 exit weights, but the network has 4 exits",
        ),
        ("branchynet", {"recipe": "jiont"}, "recipe must be one of disjoint, joint, mixed"),
        ("diffbranch", {"recipe": None}, "recipe must be one of"),
        ("eenets", {"recipe": 3}, "recipe must be one of"),
        ("branchynet", {"exit_weights": 0.3}, "'exit_weights' must be numbers"),
        ("branchynet", {"exit_weights": (1, -1, 1, 1, 1)}, "'exit_weights' must be numbers"),
        ("branchynet", {"exit_weights": (1, 1)}, "2 exit weights, but the network has 4 exits"),
        ("branchynet", {"threshold": "low"}, "Thresholds must be a number"),
        ("msdnet", {"threshold": torch.tensor(0.5)}, "Thresholds must be a number"),
        ("shallow-deep", {"threshold": float("nan")}, "must not be NaN"),
        ("shallow-deep", {"threshold": [0.5, 0.6]}, "2 thresholds, but the network has 4 exits"),
        ("pabee", {"patience": 0}, "integers of at least 1"),
        ("eenets", {"version": 5}, "'version' must be an integer from 0 to 4"),
        ("jei-dnn", {"period": 0}, "period must be a positive integer of batches"),
        ("jei-dnn", {"period": True}, "period must be"),
        ("eenets", {"as_published": 1}, "as_published must be True or False, got 1"),
        ("shallow-deep", {"mixed_pooling": "yes"}, "mixed_pooling must be True or False"),
        ("ztw", {"conv_heads": None}, "conv_heads must be True or False"),
        ("e2cm", {"euclidean": 0}, "euclidean must be True or False"),
        ("boostnet", {"ensemble_reweight": 0.7}, "ensemble_reweight must be 1 or 0.5, got 0.7"),
        ("boostnet", {"ensemble_reweight": True}, "ensemble_reweight must be"),
        ("jei-dnn", {"turns": 1}, "turns must be an integer of at least 2"),
        ("jei-dnn", {"turns": 2.5}, "turns must be"),
        ("distilled", {"mix": 1.5}, "'mix' must be"),
        ("distilled", {"temperature": 0}, "'temperature' must be"),
    ],
)
def test_options_that_do_not_fit_raise_and_leave_the_network_unchanged(method, options, message):
    ee = attached_for(method)
    before = state(ee)
    with pytest.raises(InputError, match=message):
        leenet_fx.fit(ee, loader(), method=leenet_fx.methods.get(method, **options), epochs=1)
    assert not changed_keys(before, state(ee))
    assert ee.policy == NeverExit()


def test_options_that_are_no_json_values_raise():
    ee = attached_for("shallow-deep")
    method = leenet_fx.get_method("shallow-deep")
    method = replace(method, config=replace(method.config, options={"threshold": {1, 2}}))
    with pytest.raises(InputError, match="must be JSON values"):
        leenet_fx.fit(ee, loader(), method=method, epochs=1)


@pytest.mark.parametrize("method", sorted(GATED))
def test_cost_weights_out_of_range_raise(method):
    ee = attached_for(method)
    as_lambda = method in {"diffbranch", "eenets", "jei-dnn", "pteenet"}
    bad = (-0.1, math.nan, math.inf, True, "high") + (() if as_lambda else (1.2,))
    expected = "be ≥ 0 and finite" if as_lambda else r"lie in \[0, 1\]"
    for alpha in bad:
        with pytest.raises(InputError, match=f"alpha, the cost weight, must {expected}"):
            leenet_fx.fit(ee, loader(), method=method, alpha=alpha)
    if as_lambda:
        result = leenet_fx.fit(ee, loader(32), method=method, epochs=1, alpha=3)
        assert result.alpha == 3.0


@pytest.mark.parametrize("method", sorted(set(PRESETS) - GATED))
def test_methods_without_gates_have_no_cost_weight(method):
    with pytest.raises(InputError, match=f"'{method}' trains no gates.* got alpha=0.5"):
        leenet_fx.fit(attached_for(method), loader(), method=method, alpha=0.5)


def test_the_default_method_has_no_gates_and_no_cost_weight():
    ee = leenet_fx.attach(tiny(), "every", example_inputs=images(1, 3, 16, 16))
    before = state(ee)
    with pytest.raises(
        InputError, match=r"'shallow-deep' trains no gates.* got alpha=0.3.*'leenet'"
    ):
        leenet_fx.fit(ee, loader(), alpha=0.3)
    assert not changed_keys(before, state(ee))
    leenet_fx.fit(ee, loader(), epochs=2)
    assert ee.policy == MaxProbability(0.9)
    assert leenet_fx.fit(ee, loader(), epochs=1).method == DEFAULT == "shallow-deep"


def test_the_command_line_has_the_same_default_method():
    assert inspect.signature(fit_by_command).parameters["method"].default == DEFAULT
