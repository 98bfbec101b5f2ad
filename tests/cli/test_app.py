"""Verbs that need no training, errors, and help on the command line."""

import json
import subprocess
import sys

import pytest
from helpers import fails, run

import leenet_fx

FACTORY = """
from torch import nn
def small():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
def number():
    return 7
def broken():
    raise KeyError("weights")
"""


def test_inspect_as_json_agrees_with_attach():
    result = run("inspect", "torchvision/resnet18", "--strategy", "linear", "--format", "json")
    found = json.loads(result.stdout)
    ee = leenet_fx.attach(leenet_fx.create_model("torchvision/resnet18"), "linear")
    assert found["model"] == "torchvision/resnet18"
    assert "2 x MACs" in found["unit"]
    assert found["total"]["flops"] == ee.costs.backbone.flops
    assert [row["name"] for row in found["exits"]] == [row.name for row in ee.costs]
    for row, expected in zip(found["exits"], ee.costs, strict=True):
        assert row["flops"] == expected.flops
        assert row["relative_flops"] == expected.relative_flops
        assert row["params"] == expected.params
        assert row["bytes"] == expected.bytes
    assert len(found["candidates"]) == 8
    assert run("inspect", "torchvision/resnet18", "--strategy", "linear", "--json").stdout == (
        result.stdout
    )


def test_inspect_fits_80_columns(tmp_path):
    plot = tmp_path / "network.png"
    result = run("inspect", "timm/mobilenetv3_small_100", "--num-exits", "4", "--plot", str(plot))
    assert result.exit_code == 0
    assert "4 exits, 'auto' placement" in result.stdout
    assert "blocks.0.0" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_inspect_measures_time_on_request():
    small = ("inspect", "timm/test_resnet", "--num-exits", "2", "--input-size", "3x64x64")
    sizes = ("--batch-size", "1", "--batch-size", "3")
    shown = run(*small, "--latency", *sizes, "--cost", "seconds", "--device", "cpu").stdout
    assert "latency per batch" in shown.lower()
    assert "exit 1" in shown
    assert max(map(len, shown.splitlines())) <= 80
    found = json.loads(run(*small, "--latency", *sizes, "--json").stdout)
    assert found["latency"]["batch_sizes"] == [1, 3]
    assert [len(found["latency"][key]) for key in ("stages", "stage_and_exit")] == [3, 2]
    assert found["candidates"][0]["seconds"] is None
    by_time = json.loads(run(*small, "--cost", "seconds", "--json").stdout)
    assert by_time["latency"] is None
    up_to = [candidate["seconds"] for candidate in by_time["candidates"]]
    assert up_to == sorted(up_to)
    assert up_to[0] > 0


def test_inspect_takes_positions_and_a_users_own_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(FACTORY)
    result = run(
        "inspect", f"{file}:small", "--strategy", "fixed", "--at", "0", "--input-size", "3x32x32",
        "--json",
    )  # fmt: skip
    found = json.loads(result.stdout)
    assert found["placement"] == ["0"]
    assert found["image_shape"] == [3, 32, 32]
    assert found["total"]["flops"] == 2 * (27 * 8 + 72 * 8) * 32 * 32 + 2 * 32


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["inspect", "resnet19"], 2, "Did you mean 'resnet1"),
        (["inspect", "timm/resnet19"], 2, "Unknown timm model 'resnet19'"),
        (["inspect", "torchvision/resnet19"], 2, "Unknown torchvision model"),
        (["inspect", "torchvision/alexnet", "--strategy", "fien"], 2, "Did you mean 'fine'"),
        (["inspect", "torchvision/alexnet", "--branch", "pol"], 2, "Did you mean 'pool'"),
        (["inspect", "torchvision/alexnet", "--num-exits", "9"], 1, "only 7 block boundaries"),
        (["inspect", "torchvision/alexnet", "--input-size", "3x8"], 1, "does not take"),
        (["inspect", "torchvision/alexnet", "--cost", "second"], 2, "Did you mean 'seconds'"),
        (["inspect", "torchvision/alexnet", "--latency", "--device", "gpu"], 1, "No device 'gpu'"),
        (["inspect", "torchvision/alexnet", "--device", "cpu"], 1, "add --latency"),
        (["inspect", "torchvision/alexnet", "--batch-size", "8"], 1, "add --latency"),
        (["inspect", "missing.py:factory"], 1, "No file 'missing.py'"),
        (["inspect", "torchvision/alexnet", "--input-size", "big"], 2, "like 3x224x224"),
        (["inspect", "torchvision/alexnet", "--at", "0"], 2, "--strategy fixed"),
        (["inspect"], 2, "Missing argument"),
    ],
)
def test_an_error_is_one_message_on_stderr(capsys, monkeypatch, arguments, code, message):
    found, text = fails(capsys, monkeypatch, *arguments)
    assert found == code
    assert message in text
    assert "Traceback" not in text


def test_a_factory_that_fails_or_returns_no_module_is_an_error(capsys, monkeypatch, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(FACTORY)
    assert "int" in fails(capsys, monkeypatch, "inspect", f"{file}:number")[1]
    assert "failed: KeyError" in fails(capsys, monkeypatch, "inspect", f"{file}:broken")[1]
    picture = ("inspect", "torchvision/alexnet", "--plot", str(tmp_path / "a.xyz"))
    assert "Unknown image format 'xyz'" in fails(capsys, monkeypatch, *picture)[1]
    assert "Did you mean 'small'" in fails(capsys, monkeypatch, "inspect", f"{file}:smal")[1]


def test_models_lists_both_libraries():
    names = run("models", "resnet18").stdout.split()
    assert names == ["timm/resnet18", "torchvision/resnet18"]
    assert json.loads(run("models", "torchvision/vgg1?", "--json").stdout) == [
        "torchvision/vgg11", "torchvision/vgg13", "torchvision/vgg16", "torchvision/vgg19",
    ]  # fmt: skip
    assert run("models", "nothing-like-this").exit_code == 1


def test_a_bare_name_selects_torchvisions_model_and_is_logged(caplog):
    model = leenet_fx.create_model("resnet18", device="meta")
    assert type(model).__module__ == "torchvision.models.resnet"
    assert "timm/resnet18 exists too" in caplog.text
    assert type(leenet_fx.create_model("levit_128", device="cpu")).__module__ == "timm.models.levit"


def test_strategies_and_env_print_json():
    found = json.loads(run("strategies", "--json").stdout)
    assert set(found) >= {"fixed", "linear", "pareto", "fine", "golden", "every"}
    assert all(found.values())
    assert "golden" in run("strategies").stdout
    environment = json.loads(run("env", "--json").stdout)
    assert {"python", "torch", "timm", "device", "threads"} <= set(environment)


def test_help_does_not_import_torch():
    code = (
        "import sys; sys.argv = ['leenet-fx', '--help']\n"
        "from leenet_fx.cli.app import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'timm', 'matplotlib', 'networkx') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "inspect" in result.stdout
    assert result.stdout.strip().endswith("[]")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("demo.json", ("demo", "--output")), ("a.png", ("inspect", "resnet18", "--plot"))],
)
def test_files_are_not_replaced_without_being_asked(tmp_path, capsys, monkeypatch, name, arguments):
    (tmp_path / name).write_text("mine")
    target = tmp_path if name == "demo.json" else tmp_path / name
    code, error = fails(capsys, monkeypatch, *arguments, str(target))
    assert code == 1
    assert f"{name}' exists already; --overwrite replaces it" in error
    assert (tmp_path / name).read_text() == "mine"
