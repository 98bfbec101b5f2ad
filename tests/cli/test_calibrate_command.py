"""leenet-fx calibrate, and the targets of leenet-fx fit."""

import json

import pytest
import torch
from helpers import fails, folder, run
from test_runs import FACTORY

import leenet_fx
from leenet_fx.policies import MaxProbability, NeverExit


def network(base):
    scope = {}
    exec(FACTORY, scope)
    return scope["small"]().eval()


def fit(base, out, *options):
    arguments = ("--data", f"{base}/images", "--strategy", "linear", "--num-exits", "2")
    return run(
        "fit", f"{base}/net.py:small", "--out", str(out), *arguments, "--epochs", "3", *options
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    base = tmp_path_factory.mktemp("calibrate")
    (base / "net.py").write_text(FACTORY)
    folder(base / "images", 150)
    result = fit(base, base / "run", "--method", "shallow-deep")
    assert result.exit_code == 0, result.output
    return base


def calibrate(base, *options):
    return run("calibrate", f"{base}/run", "--model", f"{base}/net.py:small", *options)


def test_points_are_kept_in_the_folder_and_evaluated(base):
    before = (base / "run" / "exits.safetensors").read_bytes()
    promise = calibrate(base, "--max-drop", "40", "--confidence", "0.8", "--name", "safe", "--json")
    assert promise.exit_code == 0, promise.output
    point = json.loads(promise.stdout)
    assert (point["limit"], point["level"], point["target"]) == (0.4, 0.8, "max_drop")
    cheap = calibrate(base, "--budget", "80", "--name", "cheap")
    assert "nothing is promised" in cheap.stdout
    assert "Next: leenet-fx evaluate" in cheap.stderr
    ee = leenet_fx.load(base / "run", network(base))
    assert list(ee.operating_points) == ["safe", "cheap"]
    assert ee.operating_points["safe"].samples == point["samples"] == 45
    assert ee.policy == ee.operating_points["cheap"].build_policy()
    assert ee.operating_points["cheap"].cost.estimate <= 0.8
    assert (base / "run" / "exits.safetensors").read_bytes() == before
    config = json.loads((base / "run" / "exit_config.json").read_text())
    assert config["fit"]["history"]
    measured = run(
        "evaluate", f"{base}/run", "--model", f"{base}/net.py:small", "--overwrite", "--json"
    )
    assert measured.exit_code == 0, measured.output


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ((), 2, "give one of --max-drop, --max-disagreement and --budget"),
        (("--max-drop", "1", "--budget", "50"), 2, "give one of"),
        (("--max-drop", "0"), 1, "--max-drop must be a percentage above 0"),
        (("--budget", "170"), 1, "--budget must be a percentage above 0 and at most 100, got 170"),
        (("--budget", "50", "--split", "test"), 1, "split 'calibration'"),
        (("--max-drop", "1", "--split", "train"), 1, "was fitted to the split 'train'"),
        (("--budget", "50", "--split", "calibrat"), 2, "'calibration'"),
        (("--budget", "50", "--solver", "comon"), 2, "'common'"),
    ],
)
def test_bad_options_change_nothing(base, capsys, monkeypatch, options, code, message):
    before = (base / "run" / "exit_config.json").read_bytes()
    arguments = (f"{base}/run", "--model", f"{base}/net.py:small", *options)
    found, error = fails(capsys, monkeypatch, "calibrate", *arguments)
    assert found == code
    assert message in " ".join(error.replace("│", " ").split())
    assert (base / "run" / "exit_config.json").read_bytes() == before


def test_fit_calibrates_if_it_is_given_a_target(base, tmp_path, capsys, monkeypatch):
    result = fit(base, tmp_path / "a", "--budget", "90", "--json", "--method", "shallow-deep")
    assert result.exit_code == 0, result.output
    point = json.loads(result.stdout)["operating_point"]
    ee = leenet_fx.load(tmp_path / "a", network(base))
    assert isinstance(ee.policy, MaxProbability | NeverExit)
    assert ee.operating_points["budget=0.9"].cost.estimate == point["cost"]["estimate"] <= 0.9


@pytest.mark.parametrize("method", ["leenet", "ztw"])
def test_nothing_is_promised_from_images_that_gates_or_ensembles_are_fitted_to(
    method, base, tmp_path, capsys, monkeypatch
):
    options = ("--method", method, "--max-drop", "5", "--data", f"{base}/images")
    arguments = (f"{base}/net.py:small", "--out", str(tmp_path / "b"), *options)
    code, error = fails(capsys, monkeypatch, "fit", *arguments)
    assert code == 1
    assert f"'{method}' was fitted to the split 'calibration'" in error
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("method", ["diffbranch", "jei-dnn"])
def test_a_promise_may_follow_gates_that_are_fitted_to_the_train_split(method, base, tmp_path):
    options = ("--method", method, "--max-drop", "90", "--confidence", "0.5", "--json")
    result = fit(base, tmp_path / "c", *options)
    assert result.exit_code == 0, result.output
    ee = leenet_fx.load(tmp_path / "c", network(base))
    assert list(ee.operating_points) == ["max_drop=0.9"]


def test_a_method_may_train_the_backbone_which_is_saved_with_the_exits(base, tmp_path):
    out = tmp_path / "d"
    assert fit(base, out, "--method", "branchynet").exit_code == 0
    model = network(base)
    given = {name: value.clone() for name, value in model.state_dict().items()}
    ee = leenet_fx.load(out, model)
    trained = ee.state_dict()
    assert any(not torch.equal(value, trained[name]) for name, value in given.items())
    assert all(torch.equal(value, given[name]) for name, value in model.state_dict().items())
    result = run("evaluate", str(out), "--model", f"{base}/net.py:small", "--split", "train")
    assert result.exit_code == 0, result.output


def test_the_network_in_use_predicts_as_calibrated(base):
    calibrate(base, "--max-drop", "60", "--confidence", "0.5")
    ee = leenet_fx.load(base / "run", network(base))
    images = torch.rand(20, 3, 16, 16)
    point = ee.operating_points["max_drop=0.6"]
    assert ee.policy == point.build_policy()
    assert torch.equal(
        ee.predict(images).exit_index, (ee.use(point), ee.predict(images))[1].exit_index
    )
