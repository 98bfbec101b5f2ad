"""fit → evaluate → sweep → compare → report on the command line."""

import json

import pytest
import torch
import yaml
from helpers import fails, folder, run
from safetensors.torch import save_file

import leenet_fx
from leenet_fx.errors import InputError

FACTORY = """
import torch
from torch import nn
def small(classes=3):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU()]
    for _ in range(3):
        layers += [nn.Conv2d(6, 6, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, classes))
    model.pretrained_cfg = {"input_size": (3, 16, 16)}
    return model
class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.GELU()) for _ in range(2)))
        self.fc = nn.Linear(8, 3)
        self.pretrained_cfg = {"input_size": (3, 16, 16)}
    def forward(self, x):
        return self.fc(self.blocks(self.patch(x).flatten(2).transpose(1, 2)).mean(1))
def tokens():
    torch.manual_seed(0)
    return Tokens()
"""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A model file, its weights, images, and a fitted run."""
    base = tmp_path_factory.mktemp("cli")
    (base / "net.py").write_text(FACTORY)
    folder(base / "images", 40)
    scope = {}
    exec(FACTORY, scope)
    torch.manual_seed(5)
    weights = {key: torch.randn_like(v) for key, v in scope["small"]().state_dict().items()}
    save_file(weights, base / "net.safetensors")
    result = run(
        "fit",
        f"{base}/net.py:small",
        *("--out", f"{base}/run", "--data", f"{base}/images", "--weights"),
        *(f"{base}/net.safetensors", "--strategy", "linear", "--num-exits", "2"),
        *("--epochs", "3", "--method", "leenet", "--alpha", "0.3", "--batch-size", "16"),
    )
    assert result.exit_code == 0, result.output
    return base


def model(workspace):
    return ("--model", f"{workspace}/net.py:small")


def test_fit_writes_exits_metrics_and_its_options(workspace):
    names = {path.name for path in (workspace / "run").iterdir()}
    assert {"exits.safetensors", "exit_config.json", "metrics.csv", "run.yaml"} <= names
    options = yaml.safe_load((workspace / "run" / "run.yaml").read_text())
    assert options["alpha"] == 0.3
    assert options["epochs"] == 3
    assert options["data"] == f"{workspace}/images"
    assert options["method"] == "leenet"


def test_a_run_can_be_repeated_from_its_options(workspace, tmp_path):
    result = run("fit", "--config", f"{workspace}/run/run.yaml", "--out", str(tmp_path / "again"))
    assert result.exit_code == 0, result.output
    first, second = (
        (path / "exits.safetensors").read_bytes()
        for path in (workspace / "run", tmp_path / "again")
    )
    assert first == second
    other = tmp_path / "other"
    result = run(
        "fit",
        "--config",
        f"{workspace}/run/run.yaml",
        "--out",
        str(other),
        "--alpha",
        "1",
        "--json",
    )
    assert json.loads(result.stdout)["alpha"] == 1.0


def test_evaluate_measures_the_test_split_with_the_weights_of_fit(workspace, capsys):
    arguments = ("evaluate", f"{workspace}/run", *model(workspace), "--size", "4", "--size", "12")
    result = run(*arguments, "--json", "--overwrite")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["samples"] == 12
    assert found["timing"]["sizes"] == [4, 12]
    record = json.loads((workspace / "run" / "evaluation.json").read_text())
    assert record["kind"] == "evaluation"
    assert record["evaluation"] == found
    assert record["classes"] == ["blue", "green", "red"]
    assert record["command"].startswith(f"leenet-fx evaluate {workspace}/run --model")
    assert [len(row) for row in record["images"]] == [
        len(row["examples"]) for row in found["exits"]
    ]
    scope = {}
    exec(FACTORY, scope)
    base = scope["small"]().eval()
    from safetensors.torch import load_file

    base.load_state_dict(load_file(workspace / "net.safetensors"))
    ee = leenet_fx.load(workspace / "run", base)
    data = leenet_fx.open_data(workspace / "images")
    transform = leenet_fx.make_transform(base, (3, 16, 16))
    x, labels = next(iter(data.loader("test", transform, 100)))
    assert found["accuracy"] == pytest.approx(float((ee(x).argmax(1) == labels).float().mean()))
    with torch.no_grad():
        accuracy = (base(x).argmax(1) == labels).float().mean()
    assert found["backbone_accuracy"] == pytest.approx(float(accuracy))
    result = run("evaluate", f"{workspace}/run", *model(workspace))
    assert result.exit_code != 0
    table = run("evaluate", f"{workspace}/run", *model(workspace), "--overwrite").stdout
    assert max(map(len, table.splitlines())) <= 80


def test_sweep_and_report(workspace, tmp_path):
    out = tmp_path / "sweep"
    arguments = (
        "sweep",
        f"{workspace}/net.py:small",
        *("--out", str(out), "--data", f"{workspace}/images", "--strategy", "linear"),
        *("--num-exits", "2", "--epochs", "2", "--alphas", "0,0.5,1", "--seeds", "2"),
        *("--timed", "4", "--batch-size", "16"),
    )
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= 80
    record = json.loads((out / "sweep.json").read_text())
    points = record["sweep"]["points"]
    assert [(p["seed"], p["alpha"]) for p in points] == [
        (s, a) for s in (0, 1) for a in (0, 0.5, 1)
    ]
    assert [row["alpha"] for row in record["sweep"]["medians"]] == [0, 0.5, 1]
    assert run("report", str(out)).exit_code == 0
    page = (out / "report.html").read_text()
    assert page.lower().startswith("<!doctype html>")
    assert "report.html' exists already" in str(run("report", str(out)).exception)
    assert run("report", str(out), "--overwrite").exit_code == 0


def compares(workspace, out, *more, factory="small"):
    return run(
        "compare",
        f"{workspace}/net.py:{factory}",
        *(
            "--out",
            str(out),
            "--data",
            f"{workspace}/images",
            "--epochs",
            "1",
            "--batch-size",
            "16",
        ),
        *more,
    )


def test_compare_and_report(workspace, tmp_path):
    out = tmp_path / "methods"
    options = ("--methods", "shallow-deep, pabee", "--joint", "--augment", "--at", "0", "--at", "3")
    options += ("--strategy", "fixed")
    result = compares(workspace, out, *options, "--seeds", "2", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert {row["label"] for row in found["rows"]} == {
        *("shallow-deep", "pabee", "shallow-deep, joint", "pabee, joint")
    }
    assert all(row["seeds"] == 2 and row["exits"] == 2 for row in found["rows"])
    record = json.loads((out / "comparison.json").read_text())
    assert record["kind"] == "comparison"
    assert record["comparison"] == found
    assert record["command"].startswith(f"leenet-fx compare {workspace}/net.py:small --out {out}")
    assert record["classes"] == ["blue", "green", "red"]
    places = [at["name"] for at in record["network"]["candidates"]]
    assert record["network"]["placement"] == [places[0], places[3]]
    assert record["environment"]["torch"] == torch.__version__.partition("+")[0]
    assert yaml.safe_load((out / "run.yaml").read_text())["methods"] == "shallow-deep, pabee"
    assert run("report", str(out)).exit_code == 0
    assert "shallow-deep, joint" in (out / "report.html").read_text()

    # Results of an earlier call are used again, times included, also for fewer seeds.
    again = json.loads(compares(workspace, out, *options, "--seeds", "2", "--json").stdout)
    assert again == found
    result = compares(workspace, out, *options, "--seed", "1")
    assert max(map(len, result.stdout.splitlines())) <= 80
    stored = json.loads((out / "comparison.json").read_text())["comparison"]["runs"]
    assert stored == [run for run in found["runs"] if run["seed"] == 1]

    # The written options reproduce the accuracies in another folder.
    result = run("compare", "--config", f"{out}/run.yaml", "--out", str(tmp_path / "b"), "--json")
    assert result.exit_code == 0, result.output
    other = json.loads(result.stdout)["runs"]
    assert [run["points"] for run in other] == [run["points"] for run in stored]


def test_compare_skips_unsupported_methods_unless_they_are_named(workspace, tmp_path, monkeypatch):
    names = ["distilled", "pabee", "pteenet", "shallow-deep"]
    assert set(names) < set(leenet_fx.list_methods())
    monkeypatch.setattr("leenet_fx.methods.list_methods", lambda: names)
    result = compares(workspace, tmp_path / "all", factory="tokens")
    assert result.exit_code == 0, result.output
    assert "Skipped: pteenet: " in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    found = json.loads((tmp_path / "all" / "comparison.json").read_text())["comparison"]
    assert list(found["skipped"]) == ["pteenet"]
    assert [run["label"] for run in found["runs"]] == ["distilled", "pabee", "shallow-deep"]
    result = compares(workspace, tmp_path / "one", "--methods", "pabee,pteenet", factory="tokens")
    assert isinstance(result.exception, InputError)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ("report", "{workspace}/images"),
            1,
            "has neither comparison.json nor sweep.json nor evaluation.json",
        ),
        (
            ("compare", "resnet18", "--out", "{workspace}/x", "--methods", "leenet,zwt"),
            2,
            "Did you mean 'ztw'",
        ),
        (("compare", "resnet18", "--out", "{workspace}/x", "--methods", "ztw,ztw"), 1, "each once"),
        (("compare", "resnet18", "--out", "{workspace}/x", "--augment"), 1, "add --joint"),
        (
            (
                *("compare", "{workspace}/net.py:small", "--out", "{workspace}/run"),
                *("--data", "{workspace}/images"),
            ),
            1,
            "of another run: choose another folder, or pass --overwrite",
        ),
        (
            ("evaluate", "{workspace}/run", "--overwrite"),
            1,
            "name the file that builds it, --model",
        ),
        (("evaluate", "{workspace}/images", "--model", "resnet18"), 1, "Cannot read '"),
        (("evaluate", "{workspace}/run", "--split", "tests"), 2, "Did you mean 'test'"),
        (
            ("fit", "resnet18", "--out", "{workspace}/run"),
            1,
            "has 10 classes, the final classifier",
        ),
        (
            (
                "fit",
                "{workspace}/net.py:small",
                "--out",
                "{workspace}/run",
                "--data",
                "{workspace}/images",
            ),
            1,
            "of another run: choose another folder, or pass --overwrite",
        ),
        (
            (
                "fit",
                "{workspace}/net.py:small",
                "--out",
                "{workspace}/x",
                "--data",
                "{workspace}/nowhere",
            ),
            1,
            "No folder or file",
        ),
        (
            (
                "fit",
                "{workspace}/net.py:small",
                "--out",
                "{workspace}/x",
                "--weights",
                "{workspace}/no.pt",
            ),
            1,
            "No weights",
        ),
        (
            (
                "fit",
                "{workspace}/net.py:small",
                "--out",
                "{workspace}/x",
                "--weights",
                "{workspace}/net.py",
            ),
            1,
            "cannot be read",
        ),
        (
            (
                "fit",
                "resnet18",
                "--out",
                "{workspace}/x",
                "--weights",
                "{workspace}/net.safetensors",
            ),
            1,
            "'conv1.weight': expected (64, 3, 7, 7), found nothing",
        ),
        (("sweep", "resnet18", "--out", "{workspace}/x", "--alphas", "0:2:1"), 1, "lie in [0, 1]"),
    ],
)
def test_bad_input_is_one_clear_error(workspace, capsys, monkeypatch, arguments, code, message):
    found, error = fails(capsys, monkeypatch, *(a.format(workspace=workspace) for a in arguments))
    assert found == code
    assert message in error
    assert "Traceback" not in error
