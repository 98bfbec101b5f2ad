"""compare: frontiers against brute force, runs against evaluate, and runs that are not repeated."""

import copy
import json
import statistics
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from helpers import data
from hypothesis import given
from hypothesis import strategies as st
from networks import images, tiny
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import leenet_fx
from leenet_fx import InputError, StorageError, compare
from leenet_fx.calibration.budgets import monotone_costs
from leenet_fx.evaluation.compare import (
    ALPHAS,
    Comparison,
    FrontierPoint,
    MethodRun,
    MethodSpec,
    frozen,
)
from leenet_fx.methods.phases import single_update_phase
from leenet_fx.objectives import Objective

COUNTED = "test-counted"
SMALL = {"epochs": 2, "example_inputs": images(1, 3, 16, 16), "progress": False}


def point(flops, accuracy, shares=(1.0,)):
    return FrontierPoint(flops, accuracy, flops, shares)


def made(points, label="a", seed=0, **fields):
    run = MethodRun(label, "leenet", seed, "threshold", 0.9, ("b",), 1.0, tuple(points), "")
    return replace(run, **fields)


@st.composite
def points(draw):
    # No costs so close to each other that a slope between them overflows.
    costs = st.one_of(
        st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 1500).map(lambda n: n / 1000)
    )
    pairs = draw(st.lists(st.tuples(costs, st.floats(0, 1)), max_size=7))
    return [point(*pair) for pair in pairs]


@given(points(), st.floats(0, 1.6), st.floats(0, 1), st.floats(0, 0.3))
def test_what_a_budget_and_a_loss_allow(found, budget, plain, lost):
    run = made(found)
    inside = [p.accuracy for p in found if p.relative_flops <= budget + 1e-9]
    assert run.accuracy_within(budget) == (max(inside) if inside else None)
    good = [p.relative_flops for p in found if p.accuracy >= plain - lost - 1e-9]
    assert run.flops_within(plain, lost) == (min(good) if good else None)


@given(points(), st.integers(1, 20), st.floats(0, 1))
def test_the_area_is_that_under_the_best_mixture_of_two_points(found, classes, plain):
    corners = [(0.0, 1 / classes), (1.0, plain)]
    corners += [(p.relative_flops, p.accuracy) for p in found if p.relative_flops <= 1]

    def reached(budget):
        """What the best mixture of two corners reaches that spends at most the budget."""
        best = [y for x, y in corners if x <= budget]
        for x, y in corners:
            for u, v in corners:
                if x < budget < u:
                    best.append(y + (v - y) * (budget - x) / (u - x))
        return max(best)

    # Between neighbouring corners it is straight.
    places = sorted({x for x, _ in corners})
    area = sum(
        (right - left) * (reached(left) + reached(right)) / 2 for left, right in pairwise(places)
    )
    assert made(found).area(classes, plain) == pytest.approx(area, abs=1e-9)


def test_areas_in_closed_form():
    assert made([]).area(10, 0.9) == pytest.approx((0.1 + 0.9) / 2)
    assert made([point(0.5, 0.9)]).area(10, 0.9) == pytest.approx(0.25 + 0.45)
    assert made([point(0.5, 0.3)]).area(10, 0.9) == pytest.approx(0.5)
    # A point above the plain model serves every larger budget; one beyond its cost serves none.
    assert made([point(0.0, 0.95)]).area(10, 0.9) == pytest.approx(0.95)
    assert made([point(1.2, 1.0)]).area(10, 0.9) == pytest.approx(0.5)


def compared():
    runs = [
        made([point(0.5, 0.8 + 0.02 * seed), point(0.7 + 0.1 * seed, 0.9)], "late", seed)
        for seed in range(3)
    ]
    runs += [made([point(0.2 + 0.1 * seed, 0.88)], "early", seed) for seed in range(2)]
    return Comparison("net", 0.9, 40, 10, tuple(runs))


def test_rows_are_medians_over_seeds_with_the_largest_area_first():
    found = compared()
    early, late = found.rows()
    assert (early["label"], late["label"]) == ("early", "late")
    assert (early["seeds"], late["seeds"]) == (2, 3)
    assert early["flops_at_0"] is None
    assert early["flops_at_3"] == pytest.approx(0.25)
    # One of its seeds has no point there, so there is no median.
    assert early["accuracy_at_0.3"] == 0.88
    assert late["accuracy_at_0.4"] is None
    assert late["flops_at_0"] == pytest.approx(0.8)
    assert late["accuracy_at_0.5"] == pytest.approx(0.82)
    for row in (early, late):
        areas = [run.area(10, 0.9) for run in found.runs if run.label == row["label"]]
        assert row["areas"] == areas
        assert row["area"] == statistics.median(areas)


def test_the_table_fits_a_terminal():
    runs = [
        made([point(0.3 + 0.02 * i, 0.9)], label)
        for i, label in enumerate([*leenet_fx.list_methods(), "leenet, gate on all the features"])
    ]
    why = "Method 'pteenet' needs features (B, C, H, W), and these are (B, 64, 192), on tokens."
    found = Comparison("examples/cifar_resnet.py:resnet20", 0.9, 5000, 10, tuple(runs), {"p": why})
    text = str(found)
    assert max(map(len, text.splitlines())) <= 80
    assert "plain model 90.00 %" in text
    assert all(label in text for label in leenet_fx.list_methods())
    assert " ".join(f"Left out: p: {why}".split()) in " ".join(text.split())


@pytest.fixture(scope="module")
def counted():
    """A method that counts the batches it was trained on, and can be interrupted at one."""
    state = SimpleNamespace(batches=0, stop_at=None)

    class Counted(Objective):
        def __call__(self, outputs):
            state.batches += 1
            if state.batches == state.stop_at:
                raise KeyboardInterrupt
            return outputs.losses[:, :-1].sum(1).mean()

    @leenet_fx.register_method(COUNTED)
    def method():
        steps = (single_update_phase("exits", "classifiers", Counted()),)
        return leenet_fx.Method(steps, leenet_fx.MaxProbability(0.9), "a test")

    return state


def loader(n, seed, shuffle=False):
    generator = torch.Generator().manual_seed(99) if shuffle else None
    return DataLoader(TensorDataset(*data(n, seed)), 16, shuffle=shuffle, generator=generator)


def parts():
    """train, calibrate, report."""
    return loader(64, 0, shuffle=True), loader(48, 1), loader(40, 2)


VARIANTS = [
    *frozen(["shallow-deep", "leenet", "pabee", "leenet-alpha", "pteenet"]),
    MethodSpec("branchynet, joint", "branchynet", {"recipe": "joint"}),
]


@pytest.fixture(scope="module")
def whole():
    """A comparison, its model, and that model and the loaders' generator as they were before."""
    model, loaders = tiny(), parts()
    model.blocks[1].train()
    model.fc.weight.requires_grad_(False)
    before = copy.deepcopy(model), loaders[0].generator.get_state(), torch.get_rng_state()
    found = compare(model, VARIANTS, *loaders, seeds=(0, 3), **SMALL)
    after = model, loaders[0].generator.get_state(), torch.get_rng_state()
    return found, before, after


def test_the_callers_model_and_generators_stay_as_they_were(whole):
    _, before, after = whole
    states = [model.state_dict() for model in (before[0], after[0])]
    assert all(torch.equal(states[0][key], value) for key, value in states[1].items())
    modes = [[m.training for m in model.modules()] for model in (before[0], after[0])]
    assert modes[0] == modes[1]
    trained = [[p.requires_grad for p in model.parameters()] for model in (before[0], after[0])]
    assert trained[0] == trained[1]
    assert torch.equal(before[1], after[1])
    assert torch.equal(before[2], after[2])


def test_a_comparison_has_every_variant_and_seed(whole):
    found = whole[0]
    assert [(run.label, run.seed) for run in found.runs] == [
        (variant.label, seed) for variant in VARIANTS for seed in (0, 3)
    ]
    knobs = {run.label: (run.trade_off, len(run.points)) for run in found.runs}
    assert knobs == {
        "shallow-deep": ("threshold", 101),
        "leenet": ("cost_weight", len(ALPHAS)),
        "pabee": ("patience", 3),
        "leenet-alpha": ("alpha", len(ALPHAS)),
        "pteenet": ("threshold", 101),
        "branchynet, joint": ("threshold", 101),
    }
    x, labels = data(40, 2)
    with torch.no_grad():
        plain = float((tiny()(x).argmax(1) == labels).double().mean())
    assert found.backbone_accuracy == pytest.approx(plain)
    assert (found.samples, found.classes, found.skipped) == (40, 5, {})
    for run in found.runs:
        assert len(run.exits) == 4
        for at in run.points:
            assert sum(at.shares) == pytest.approx(1)
            assert at.shares[0] >= 0
        if run.label != "branchynet, joint":
            assert run.backbone_accuracy == pytest.approx(plain)


def fit_by_hand(method, seed, *lengths, alpha=None):
    """What `compare` should have fitted, from the public functions."""
    train, calibrate, report = parts()
    options = {"example_inputs": SMALL["example_inputs"], "seed": seed}
    ee = leenet_fx.attach(tiny(), "every", method=method, **options)
    for epochs in lengths:
        train.generator.manual_seed(seed)
        leenet_fx.fit(
            ee,
            train,
            calibration=calibrate,
            method=method,
            alpha=alpha,
            epochs=epochs,
            seed=seed,
            cache=True,
        )
    return ee, calibrate, report


@pytest.mark.parametrize("seed", [0, 3])
def test_points_are_what_evaluate_says_of_the_same_network(whole, seed):
    runs = {run.label: run for run in whole[0].runs if run.seed == seed}
    ee, calibrate, report = fit_by_hand("shallow-deep", seed, 2)
    for at in runs["shallow-deep"].points[::8]:
        leenet_fx.set_budget(ee, calibrate, at.setting)
        agrees(at, leenet_fx.evaluate(ee, report))
    for at in runs["leenet"].points[3::4]:
        lengths = {"exits": 2, "gates": 0}, {"exits": 0, "gates": 2}
        ee, _, report = fit_by_hand("leenet", seed, *lengths, alpha=at.setting)
        agrees(at, leenet_fx.evaluate(ee, report))


def agrees(at, found):
    assert at.accuracy == pytest.approx(found.accuracy)
    assert at.relative_flops == pytest.approx(found.relative_flops)
    assert at.shares == pytest.approx([outlet.share for outlet in found.outlets])


def test_budgets_are_solved_where_the_final_exit_costs_less_than_the_one_before():
    """A gate that decides alone: the classifiers of exits run only for who leaves."""
    ee = leenet_fx.attach(tiny(), "every", method="pteenet", example_inputs=images(1, 3, 16, 16))
    calibrate = parts()[1]
    leenet_fx.fit(ee, calibrate, method="pteenet", epochs=1)
    costs = ee.costs.relative()
    assert costs[-1] < costs[-2]
    assert monotone_costs(ee) == (*costs[:-1], costs[-2])
    for budget in (1.0, 1.5):
        leenet_fx.set_budget(ee, calibrate, budget)
        assert leenet_fx.evaluate(ee, calibrate).relative_flops <= budget + 1e-6


def without_time(found):
    runs = tuple(replace(run, trained_seconds=0.0) for run in found.runs)
    return replace(found, runs=runs)


def test_what_is_there_is_not_repeated(tmp_path, counted):
    out = tmp_path / "out"
    variants = frozen(["shallow-deep", COUNTED])
    first = compare(tiny(), variants, *parts(), seeds=(0, 1), out=out, **SMALL)
    batches = counted.batches
    assert compare(tiny(), variants, *parts(), seeds=(0, 1), out=out, **SMALL) == first
    assert counted.batches == batches

    record = json.loads((out / "comparison.json").read_text())
    assert record["kind"] == "comparison"
    assert record["comparison"] == json.loads(json.dumps(first.to_dict()))
    assert record["others"] == []

    # Fewer variants or seeds leave the other runs in the file, for whoever asks again.
    fewer = compare(tiny(), variants[:1], *parts(), seeds=(1,), out=out, **SMALL)
    assert fewer.runs == first.runs[1:2]
    record = json.loads((out / "comparison.json").read_text())
    assert [(run["label"], run["seed"]) for run in record["others"]] == [
        ("shallow-deep", 0),
        (COUNTED, 0),
        (COUNTED, 1),
    ]
    more = compare(tiny(), variants[::-1], *parts(), seeds=(0, 1, 2), out=out, **SMALL)
    assert counted.batches == batches + batches // 2
    assert set(first.runs) < set(more.runs)

    # Another length, precision, or other batches, is another run.
    now = counted.batches
    longer = {**SMALL, "epochs": 3}
    compare(tiny(), frozen([COUNTED]), *parts(), seeds=(0,), out=out, **longer)
    assert counted.batches == now + 3 * 4
    train, calibrate, report = parts()
    train = DataLoader(train.dataset, 32)
    compare(tiny(), frozen([COUNTED]), train, calibrate, report, seeds=(0,), out=out, **longer)
    assert counted.batches == now + 3 * 4 + 3 * 2
    longer["precision"] = "bf16-mixed"
    compare(tiny(), frozen([COUNTED]), train, calibrate, report, seeds=(0,), out=out, **longer)
    assert counted.batches == now + 3 * 4 + 2 * 3 * 2


def test_a_comparison_cut_short_ends_as_if_nothing_had_happened(tmp_path, counted):
    variants = frozen(["shallow-deep", COUNTED, "pabee"])
    through = compare(tiny(), variants, *parts(), seeds=(0, 1), out=tmp_path / "a", **SMALL)
    compare(tiny(), variants[2:], *parts(), seeds=(0, 1), out=tmp_path / "b", **SMALL)
    # In the second epoch of the second seed.
    counted.stop_at = counted.batches + 8 + 6
    with pytest.raises(KeyboardInterrupt):
        compare(tiny(), variants, *parts(), seeds=(0, 1), out=tmp_path / "b", **SMALL)
    record = json.loads((tmp_path / "b" / "comparison.json").read_text())
    done = [(run["label"], run["seed"]) for run in record["comparison"]["runs"]]
    assert done == [("shallow-deep", 0), ("shallow-deep", 1), (COUNTED, 0)]
    # What earlier calls had made is still there, though it was not reached again.
    assert [(run["label"], run["seed"]) for run in record["others"]] == [("pabee", 0), ("pabee", 1)]
    batches = counted.batches
    again = compare(tiny(), variants, *parts(), seeds=(0, 1), out=tmp_path / "b", **SMALL)
    assert counted.batches == batches + 8
    assert without_time(again) == without_time(through)


class Tokens(nn.Module):
    """Blocks whose features are tokens (B, 16, 8)."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.GELU()) for _ in range(3)))
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(self.blocks(self.patch(x).flatten(2).transpose(1, 2)).mean(1))


def test_what_does_not_fit_the_network_is_left_out_or_an_error(tmp_path):
    variants = frozen(["pteenet", "shallow-deep"])
    model = Tokens().eval()
    with pytest.raises(InputError, match="'conv'"):
        compare(model, variants, *parts(), **SMALL)
    found = compare(model, variants, *parts(), skip_unfit=True, out=tmp_path, **SMALL)
    assert [run.label for run in found.runs] == ["shallow-deep"]
    assert list(found.skipped) == ["pteenet"]
    assert "Left out: pteenet: " in found.summary()
    record = json.loads((tmp_path / "comparison.json").read_text())
    assert record["comparison"]["left_out"] == found.skipped
    with pytest.raises(InputError, match="No variant fits Tokens: pteenet: "):
        compare(model, variants[:1], *parts(), skip_unfit=True, **SMALL)


def test_the_number_of_exits_goes_with_the_strategy_it_was_given_with():
    placed = MethodSpec("placed", "shallow-deep", strategy=("blocks.0",))
    found = compare(
        tiny(),
        [*frozen(["shallow-deep"]), placed],
        *parts(),
        strategy="linear",
        num_exits=2,
        **SMALL,
    )
    assert [len(run.exits) for run in found.runs] == [2, 1]


def test_a_new_classifier_is_trained_by_each_method(tmp_path):
    """Six classes where the model has five: its accuracy is that of what the runs trained."""
    x, labels = data(120, 0, classes=6)
    loaders = [
        DataLoader(TensorDataset(x[part], labels[part]), 16)
        for part in (slice(0, 64), slice(64, 90), slice(90, 120))
    ]
    options = {**SMALL, "epochs": 8, "num_classes": 6, "leave_out": True}
    found = compare(tiny(), frozen(["e2cm", "shallow-deep"]), *loaders, **options)
    assert list(found.skipped) == ["e2cm"]
    assert "does not train the final classifier" in found.skipped["e2cm"]
    assert found.classes == 6
    assert found.backbone_accuracy == found.runs[0].backbone_accuracy > 0.4


@pytest.mark.parametrize(
    ("variants", "seeds"),
    [
        ([], (0,)),
        (frozen(["leenet"]), ()),
        (frozen(["leenet"]), (1, 1)),
        ([MethodSpec("a", "leenet"), MethodSpec("a", "pabee")], (0,)),
    ],
)
def test_variants_and_seeds_are_needed_each_once(variants, seeds):
    with pytest.raises(InputError, match="each once"):
        compare(tiny(), variants, *parts(), seeds=seeds, **SMALL)


def test_unknown_methods_are_named_before_anything_is_fitted(tmp_path):
    variants = [*frozen(["pabee"]), MethodSpec("a", "leennet")]
    with pytest.raises(leenet_fx.UnknownNameError, match="Did you mean 'leenet'"):
        compare(tiny(), variants, *parts(), out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_of_something_else_is_refused(tmp_path):
    variants = frozen(["pabee"])
    path = tmp_path / "comparison.json"
    compare(tiny(), variants, *parts(), out=tmp_path, **SMALL)
    good = path.read_text()
    train, calibrate, report = parts()
    with pytest.raises(StorageError, match="of another network or other images, with backbone"):
        compare(tiny(seed=1), variants, train, calibrate, report, out=tmp_path, **SMALL)
    with pytest.raises(StorageError, match="with samples 40, not 48"):
        compare(tiny(), variants, train, calibrate, calibrate, out=tmp_path, **SMALL)
    assert path.read_text() == good
    record = json.loads(good)
    for text in (
        good[: len(good) // 2],
        "[]",
        "{}",
        json.dumps({**record, "others": [{"label": "a", "seed": 0}]}),
        json.dumps({**record, "made_of": None}),
    ):
        path.write_text(text)
        with pytest.raises(StorageError, match="no comparison that can be taken up"):
            compare(tiny(), variants, train, calibrate, report, out=tmp_path, **SMALL)
        assert path.read_text() == text
