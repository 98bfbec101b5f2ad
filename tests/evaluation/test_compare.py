"""compare: runs against fit and evaluate, resumed comparisons, and specs that do not fit."""

import copy
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from comparisons import OPTIONS, splits
from helpers import data
from networks import images, tiny
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import leenet_fx
from leenet_fx import InputError, MaxProbability, StorageError, compare
from leenet_fx.calibration.budgets import monotone_costs
from leenet_fx.evaluation import cost_weights
from leenet_fx.evaluation.comparison import MethodSpec, frozen_variants
from leenet_fx.evaluation.cost_weights import ALPHAS
from leenet_fx.methods.phases import single_update_phase
from leenet_fx.objectives import Objective

COUNTED = "test-counted"


@pytest.fixture(scope="module")
def counted():
    """A method that counts its training batches, and can be interrupted at one of them."""
    state = SimpleNamespace(batches=0, stop_at=None)

    class Counted(Objective):
        def __call__(self, outputs):
            state.batches += 1
            if state.batches == state.stop_at:
                raise KeyboardInterrupt
            return outputs.losses[:, :-1].sum(1).mean()

    @leenet_fx.register_method(COUNTED)
    def method():
        phases = (single_update_phase("exits", "classifiers", Counted()),)
        return leenet_fx.Method(phases, leenet_fx.MaxProbability(0.9), "a test")

    return state


SPECS = [
    *frozen_variants(["shallow-deep", "leenet", "pabee", "leenet-alpha", "pteenet"]),
    MethodSpec("branchynet, joint", "branchynet", {"recipe": "joint"}),
]


@pytest.fixture(scope="module")
def whole():
    """A comparison, and the states of model and generators before and after it."""
    model, loaders = tiny(), splits()
    model.blocks[1].train()
    model.fc.weight.requires_grad_(False)
    before = copy.deepcopy(model), loaders[0].generator.get_state(), torch.get_rng_state()
    found = compare(model, SPECS, *loaders, seeds=(0, 3), **OPTIONS)
    after = model, loaders[0].generator.get_state(), torch.get_rng_state()
    return found, before, after


def test_model_and_generators_of_the_caller_are_not_changed(whole):
    _, before, after = whole
    states = [model.state_dict() for model in (before[0], after[0])]
    assert all(torch.equal(states[0][key], value) for key, value in states[1].items())
    modes = [[m.training for m in model.modules()] for model in (before[0], after[0])]
    assert modes[0] == modes[1]
    trained = [[p.requires_grad for p in model.parameters()] for model in (before[0], after[0])]
    assert trained[0] == trained[1]
    assert torch.equal(before[1], after[1])
    assert torch.equal(before[2], after[2])


def test_comparison_has_a_run_for_each_spec_and_seed(whole):
    found = whole[0]
    labels = [spec.label for spec in SPECS]
    pairs = [(label, seed) for label in labels for seed in (0, 3)]
    # One that is trained for several cost weights is read in two ways.
    own = pairs.index(("leenet", 0))
    pairs[own : own + 2] = [
        ("leenet", 0),
        ("leenet, thresholds", 0),
        ("leenet", 3),
        ("leenet, thresholds", 3),
    ]
    assert [(run.label, run.seed) for run in found.runs] == pairs
    trade_offs = {run.label: (run.trade_off, len(run.points)) for run in found.runs}
    assert trade_offs == {
        "shallow-deep": ("threshold", 101),
        "leenet": ("cost_weight", len(ALPHAS)),
        "leenet, thresholds": ("threshold", 21 * len(ALPHAS)),
        "pabee": ("patience", 3),
        "leenet-alpha": ("alpha", len(ALPHAS)),
        "pteenet": ("threshold", 101),
        "branchynet, joint": ("threshold", 101),
    }
    x, labels = data(40, 2)
    with torch.no_grad():
        backbone = float((tiny()(x).argmax(1) == labels).double().mean())
    assert found.backbone_accuracy == pytest.approx(backbone)
    assert (found.samples, found.classes, found.skipped) == (40, 5, {})
    for run in found.runs:
        assert len(run.exits) == 4
        for at in run.points:
            assert sum(at.shares) == pytest.approx(1)
            assert at.shares[0] >= 0
        if run.label != "branchynet, joint":
            assert run.backbone_accuracy == pytest.approx(backbone)


def test_patience_with_one_exit_has_the_point_at_which_nothing_exits():
    options = {**OPTIONS, "strategy": ["blocks.1"]}
    (run,) = compare(tiny(), frozen_variants(["pabee"]), *splits(), **options).runs
    (at,) = run.points
    assert at.shares == (0, 1)
    assert at.accuracy == run.backbone_accuracy


def fit_by_hand(method, seed, *lengths, alpha=None):
    """Fit with the public functions what `compare` fits."""
    train, calibration, test = splits()
    options = {"example_inputs": OPTIONS["example_inputs"], "seed": seed}
    ee = leenet_fx.attach(tiny(), "every", method=method, **options)
    for epochs in lengths:
        train.generator.manual_seed(seed)
        leenet_fx.fit(
            ee,
            train,
            calibration=calibration,
            method=method,
            alpha=alpha,
            epochs=epochs,
            seed=seed,
            cache=True,
        )
    return ee, calibration, test


@pytest.mark.parametrize("seed", [0, 3])
def test_points_agree_with_evaluate(whole, seed):
    runs = {run.label: run for run in whole[0].runs if run.seed == seed}
    ee, calibration, test = fit_by_hand("shallow-deep", seed, 2)
    for at in runs["shallow-deep"].points[::8]:
        leenet_fx.set_budget(ee, calibration, at.value)
        assert_agrees(at, leenet_fx.evaluate(ee, test))
    for at in runs["leenet"].points[3::4]:
        lengths = {"exits": 2, "gates": 0}, {"exits": 0, "gates": 2}
        ee, _, test = fit_by_hand("leenet", seed, *lengths, alpha=at.value)
        assert_agrees(at, leenet_fx.evaluate(ee, test))


def test_thresholds_of_networks_trained_for_a_cost_weight_are_swept(whole):
    """The same networks as by the method's own rule, with thresholds solved for budgets."""
    runs = {run.label: run for run in whole[0].runs if run.seed == 0}
    swept = runs["leenet, thresholds"]
    assert {at.value for at in swept.points} == set(ALPHAS)
    alpha = ALPHAS[3]
    lengths = {"exits": 2, "gates": 0}, {"exits": 0, "gates": 2}
    ee, calibration, test = fit_by_hand("leenet", 0, *lengths, alpha=alpha)
    points = [at for at in swept.points if at.value == alpha]
    costs = monotone_costs(ee)
    for step in (0, 7, 20):
        leenet_fx.set_budget(ee, calibration, costs[0] + (costs[-1] - costs[0]) * step / 20)
        assert_agrees(points[step], leenet_fx.evaluate(ee, test))


def test_accuracy_may_be_agreement_and_costs_those_of_the_exits_own_branch():
    specs = [spec for spec in SPECS if spec.label == "shallow-deep"]
    options = {"own_branch_costs": True, "agreement": True}
    found = compare(tiny(), specs, *splits(), seeds=(0,), **options, **OPTIONS)
    (run,) = found.runs
    assert found.backbone_accuracy == run.backbone_accuracy == 1
    ee, _, test = fit_by_hand("shallow-deep", 0, 2)
    costs = ee.costs_for(ee.policy).relative(own_branch=True)
    for at in run.points:
        # Exits that a threshold disables are not counted.
        assert at.relative_flops <= np.dot(at.shares, costs) + 1e-9
        assert at.relative_flops <= max(1, *costs)
        assert at.accuracy == 1 or at.shares[-1] < 1
    ee.policy = MaxProbability(0.0)
    x = torch.cat([images for images, _ in test])
    with torch.no_grad():
        agrees = ee.predict(x).logits.argmax(1) == tiny()(x).argmax(1)
    first = next(at for at in run.points if at.shares[0] == 1)
    assert first.accuracy == pytest.approx(float(agrees.double().mean()))


def assert_agrees(at, evaluation):
    assert at.accuracy == pytest.approx(evaluation.accuracy)
    assert at.relative_flops == pytest.approx(evaluation.relative_flops)
    assert at.shares == pytest.approx([row.share for row in evaluation.exits])


def test_budgets_are_met_if_the_final_classifier_costs_less_than_the_last_exit():
    """With gates that do not read logits, the classifier of an exit runs only if a sample exits."""
    ee = leenet_fx.attach(tiny(), "every", method="pteenet", example_inputs=images(1, 3, 16, 16))
    calibration = splits()[1]
    leenet_fx.fit(ee, calibration, method="pteenet", epochs=1)
    costs = ee.costs.relative()
    assert costs[-1] < costs[-2]
    assert monotone_costs(ee) == (*costs[:-1], costs[-2])
    for budget in (1.0, 1.5):
        leenet_fx.set_budget(ee, calibration, budget)
        assert leenet_fx.evaluate(ee, calibration).relative_flops <= budget + 1e-6


def without_time(found):
    runs = tuple(replace(run, trained_seconds=0.0) for run in found.runs)
    return replace(found, runs=runs)


def test_finished_runs_are_not_repeated(tmp_path, counted):
    out = tmp_path / "out"
    specs = frozen_variants(["shallow-deep", COUNTED])
    first = compare(tiny(), specs, *splits(), seeds=(0, 1), out=out, **OPTIONS)
    batches = counted.batches
    assert compare(tiny(), specs, *splits(), seeds=(0, 1), out=out, **OPTIONS) == first
    assert counted.batches == batches

    record = json.loads((out / "comparison.json").read_text())
    assert record["kind"] == "comparison"
    assert record["comparison"] == json.loads(json.dumps(first.to_dict()))
    assert record["other_runs"] == []

    # A comparison of fewer specs or seeds keeps the other runs in the file.
    fewer = compare(tiny(), specs[:1], *splits(), seeds=(1,), out=out, **OPTIONS)
    assert fewer.runs == first.runs[1:2]
    record = json.loads((out / "comparison.json").read_text())
    assert [(run["label"], run["seed"]) for run in record["other_runs"]] == [
        ("shallow-deep", 0),
        (COUNTED, 0),
        (COUNTED, 1),
    ]
    more = compare(tiny(), specs[::-1], *splits(), seeds=(0, 1, 2), out=out, **OPTIONS)
    assert counted.batches == batches + batches // 2
    assert set(first.runs) < set(more.runs)

    # Other epochs, precision or batches make another run.
    now = counted.batches
    longer = {**OPTIONS, "epochs": 3}
    compare(tiny(), frozen_variants([COUNTED]), *splits(), seeds=(0,), out=out, **longer)
    assert counted.batches == now + 3 * 4
    train, calibration, test = splits()
    train = DataLoader(train.dataset, 32)
    compare(
        tiny(), frozen_variants([COUNTED]), train, calibration, test, seeds=(0,), out=out, **longer
    )
    assert counted.batches == now + 3 * 4 + 3 * 2
    longer["precision"] = "bf16-mixed"
    compare(
        tiny(), frozen_variants([COUNTED]), train, calibration, test, seeds=(0,), out=out, **longer
    )
    assert counted.batches == now + 3 * 4 + 2 * 3 * 2


def test_runs_of_other_cost_weights_are_repeated(tmp_path, monkeypatch):
    def weights(*values):
        monkeypatch.setattr(cost_weights, "LAMBDAS", values)
        found = compare(tiny(), frozen_variants(["eenets"]), *splits(), out=tmp_path, **OPTIONS)
        return [point.value for point in found.runs[0].points]

    assert weights(0.0, 0.5) == [0.0, 0.5]
    assert weights(0.0, 2.0) == [0.0, 2.0]


def test_interrupted_comparison_is_resumed_with_equal_results(tmp_path, counted):
    specs = frozen_variants(["shallow-deep", COUNTED, "pabee"])
    uninterrupted = compare(tiny(), specs, *splits(), seeds=(0, 1), out=tmp_path / "a", **OPTIONS)
    compare(tiny(), specs[2:], *splits(), seeds=(0, 1), out=tmp_path / "b", **OPTIONS)
    # In the second epoch of the second seed.
    counted.stop_at = counted.batches + 8 + 6
    with pytest.raises(KeyboardInterrupt):
        compare(tiny(), specs, *splits(), seeds=(0, 1), out=tmp_path / "b", **OPTIONS)
    record = json.loads((tmp_path / "b" / "comparison.json").read_text())
    done = [(run["label"], run["seed"]) for run in record["comparison"]["runs"]]
    assert done == [("shallow-deep", 0), ("shallow-deep", 1), (COUNTED, 0)]
    # Runs of earlier calls are kept, although the interrupted call did not reach them.
    assert [(run["label"], run["seed"]) for run in record["other_runs"]] == [
        ("pabee", 0),
        ("pabee", 1),
    ]
    batches = counted.batches
    again = compare(tiny(), specs, *splits(), seeds=(0, 1), out=tmp_path / "b", **OPTIONS)
    assert counted.batches == batches + 8
    assert without_time(again) == without_time(uninterrupted)


class Tokens(nn.Module):
    """Blocks whose features are tokens (B, 16, 8)."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.GELU()) for _ in range(3)))
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(self.blocks(self.patch(x).flatten(2).transpose(1, 2)).mean(1))


def test_specs_that_do_not_fit_are_skipped_or_raise(tmp_path):
    specs = frozen_variants(["pteenet", "shallow-deep"])
    model = Tokens().eval()
    with pytest.raises(InputError, match="'conv'"):
        compare(model, specs, *splits(), **OPTIONS)
    found = compare(model, specs, *splits(), skip_unfit=True, out=tmp_path, **OPTIONS)
    assert [run.label for run in found.runs] == ["shallow-deep"]
    assert list(found.skipped) == ["pteenet"]
    assert "Skipped: pteenet: " in found.summary()
    record = json.loads((tmp_path / "comparison.json").read_text())
    assert record["comparison"]["skipped"] == found.skipped
    with pytest.raises(InputError, match="No spec fits Tokens: pteenet: "):
        compare(model, specs[:1], *splits(), skip_unfit=True, **OPTIONS)


def test_number_of_exits_applies_to_the_shared_strategy_only():
    placed = MethodSpec("placed", "shallow-deep", strategy=("blocks.0",))
    found = compare(
        tiny(),
        [*frozen_variants(["shallow-deep"]), placed],
        *splits(),
        strategy="linear",
        num_exits=2,
        **OPTIONS,
    )
    assert [len(run.exits) for run in found.runs] == [2, 1]


def test_new_classifier_is_trained_by_each_method():
    """With a new final classifier, the backbone's accuracy is that of the trained classifiers."""
    x, labels = data(120, 0, classes=6)
    loaders = [
        DataLoader(TensorDataset(x[part], labels[part]), 16)
        for part in (slice(0, 64), slice(64, 90), slice(90, 120))
    ]
    options = {**OPTIONS, "epochs": 8, "num_classes": 6, "skip_unfit": True}
    found = compare(tiny(), frozen_variants(["pteenet", "shallow-deep"]), *loaders, **options)
    assert list(found.skipped) == ["pteenet"]
    assert "does not train the final classifier" in found.skipped["pteenet"]
    assert found.classes == 6
    assert found.backbone_accuracy == found.runs[0].backbone_accuracy > 0.4


@pytest.mark.parametrize(
    ("specs", "seeds"),
    [
        ([], (0,)),
        (frozen_variants(["leenet"]), ()),
        (frozen_variants(["leenet"]), (1, 1)),
        ([MethodSpec("a", "leenet"), MethodSpec("a", "pabee")], (0,)),
    ],
)
def test_specs_and_seeds_must_be_unique(specs, seeds):
    with pytest.raises(InputError, match="unique labels"):
        compare(tiny(), specs, *splits(), seeds=seeds, **OPTIONS)


def test_unknown_methods_raise_before_fitting(tmp_path):
    specs = [*frozen_variants(["pabee"]), MethodSpec("a", "leennet")]
    with pytest.raises(leenet_fx.UnknownNameError, match="Did you mean 'leenet'"):
        compare(tiny(), specs, *splits(), out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_file_of_another_comparison_is_rejected(tmp_path):
    specs = frozen_variants(["pabee"])
    path = tmp_path / "comparison.json"
    compare(tiny(), specs, *splits(), out=tmp_path, **OPTIONS)
    good = path.read_text()
    train, calibration, test = splits()
    with pytest.raises(
        StorageError, match="belongs to another network or other images, with backbone"
    ):
        compare(tiny(seed=1), specs, train, calibration, test, out=tmp_path, **OPTIONS)
    with pytest.raises(StorageError, match="with samples 40, not 48"):
        compare(tiny(), specs, train, calibration, calibration, out=tmp_path, **OPTIONS)
    assert path.read_text() == good
    record = json.loads(good)
    edited = {key: value for key, value in record.items() if key != "content_sha256"}
    for text, message in (
        (good[: len(good) // 2], "is not JSON"),
        ("[]", "no comparison that can be resumed"),
        ("{}", "has schema None"),
        (json.dumps({**record, "command": "x"}), "edited or damaged"),
        (json.dumps({**edited, "other_runs": [{"label": "a", "seed": 0}]}), "lacks 'other_runs.0"),
        (json.dumps({**edited, "fingerprint": None}), "'fingerprint': .* found None"),
    ):
        path.write_text(text)
        with pytest.raises(StorageError, match=message):
            compare(tiny(), specs, train, calibration, test, out=tmp_path, **OPTIONS)
        assert path.read_text() == text


def test_run_starts_from_the_classifiers_of_a_saved_network(tmp_path):
    trained = MethodSpec("trained", "shallow-deep", {"recipe": "disjoint"})
    for seed in (0, 1):
        ee = fit_by_hand("shallow-deep", seed, 2)[0]
        leenet_fx.save(ee, tmp_path / f"saved-{seed}")
    start = str(tmp_path / "saved-{seed}")
    started = replace(trained, label="started", start=start, epochs={"exits": 0})
    found = compare(tiny(), [trained, started], *splits(), seeds=(0, 1), **OPTIONS)
    for first, second in zip(found.runs[:2], found.runs[2:], strict=True):
        assert first.points == second.points
    elsewhere = replace(started, strategy=("blocks.0",))
    with pytest.raises(InputError, match=r"has exits after .*, expected"):
        compare(tiny(), [elsewhere], *splits(), **OPTIONS)


def test_comparison_of_schema_1_is_resumed(tmp_path):
    specs = frozen_variants(["pabee"])
    path = tmp_path / "comparison.json"
    first = compare(tiny(), specs, *splits(), out=tmp_path, **OPTIONS)
    old = as_schema_1(json.loads(path.read_text()))
    del old["content_sha256"]
    path.write_text(json.dumps(old))
    assert compare(tiny(), specs, *splits(), out=tmp_path, **OPTIONS) == first
    # A run with other settings is refitted, and old runs of other labels are kept.
    old["comparison"]["runs"][0]["key"] = "{}"
    old["others"] = [{**old["comparison"]["runs"][0], "label": "old", "knob": "dial"}]
    path.write_text(json.dumps(old))
    again = compare(tiny(), specs, *splits(), out=tmp_path, **OPTIONS)
    assert without_time(again) == without_time(first)
    record = json.loads(path.read_text())
    assert record["schema"] == 2
    assert [(run["label"], run["trade_off"]) for run in record["other_runs"]] == [("old", "alpha")]


def as_schema_1(record):
    comparison = record["comparison"]
    accuracy = comparison.pop("backbone_accuracy")
    runs = [
        {
            **{key: run[key] for key in ("label", "method", "seed", "exits", "key")},
            "knob": run["trade_off"],
            "plain_accuracy": run["backbone_accuracy"],
            "trained_seconds": run["trained_seconds"],
            "points": [{"setting": at.pop("value"), **at} for at in run["points"]],
        }
        for run in comparison["runs"]
    ]
    fingerprint = record.pop("fingerprint")
    fingerprint["plain_accuracy"] = fingerprint.pop("backbone_accuracy")
    others = record.pop("other_runs")
    comparison |= {"plain_accuracy": accuracy, "runs": runs, "left_out": comparison.pop("skipped")}
    return {**record, "schema": 1, "made_of": fingerprint, "others": others}
