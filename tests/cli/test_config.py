"""Options read from run.yaml."""

import shlex
import sys
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from leenet_fx.cli import app
from leenet_fx.cli.config import (
    ConfigOption,
    begin_run,
    command_line,
    load_config,
    next_command,
    read_options,
    resolved,
    resume_command,
    write_config,
)
from leenet_fx.errors import InputError, StorageError, UnknownNameError

STORED = Path(__file__).parents[1] / "stored" / "schema1" / "run.yaml"


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("alpha: 0.5\nepoch: 3\n", UnknownNameError, r"line 2: .*'epoch'.*Did you mean 'epochs'"),
        ("alpha: [0.5\nepochs: 3\n", InputError, r"line \d+: expected"),
        ("alpha:\n  deep: 3\n", InputError, r"line 1, 'alpha': expected a value or a list"),
        ("- 3\n", InputError, r"expected 'option: value' lines"),
    ],
)
def test_an_error_in_a_config_is_named_by_line_and_key(tmp_path, text, error, message):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(error, match=message):
        load_config(path, {"alpha", "epochs"})


def test_a_config_value_of_the_wrong_type_is_named(capsys, monkeypatch, tmp_path):
    (tmp_path / "run.yaml").write_text("epochs: many\n")
    monkeypatch.setattr(
        sys,
        "argv",
        ["leenet-fx", "fit", "m", "--out", "x", "--config", str(tmp_path / "run.yaml")],
    )
    with pytest.raises(SystemExit) as stop:
        app.main()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "'--epochs'" in error
    assert "valid int" in error


def test_a_config_is_read_as_yaml(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("num-exits: 3\nat: [a, 0.5]\ndownload: yes\nlr: null\n")
    known = {"num_exits", "at", "download", "lr"}
    assert load_config(path, known) == {"num_exits": 3, "at": ["a", 0.5], "download": True}
    path.write_text("")
    assert load_config(path, known) == {}


def test_names_of_schema_1_in_a_config_are_upgraded(tmp_path):
    stored = yaml.safe_load(STORED.read_text())
    options = load_config(STORED, set(stored))
    assert options["methods"] == "leenet,leenet-alpha,msdnet,pabee,shallow-deep"
    path = tmp_path / "run.yaml"
    path.write_text("method: leenet-dial\ngate: dial\nsplit: calibrate\n")
    assert load_config(path, {"method", "gate", "split"}) == {
        "method": "leenet-alpha",
        "gate": "alpha",
        "split": "calibration",
    }


def called(*arguments):
    """What a small verb receives, and the two descriptions of its call."""
    calls = []
    verb = typer.Typer()

    @verb.command()
    def call(
        ctx: typer.Context,
        name: str,
        alpha: float = 0.5,
        at: list[str] = typer.Option([]),  # noqa: B008
        joint: bool = typer.Option(False, "--joint"),
        config: ConfigOption = None,
    ) -> None:
        calls.append((alpha, at, joint, resolved(ctx), command_line("call", ctx)))

    result = CliRunner().invoke(verb, list(arguments))
    assert result.exit_code == 0, result.output
    return calls[0]


def test_command_line_options_take_precedence_over_a_config(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("alpha: 0.2\nat: [a, b]\n")
    assert called("m", "--config", str(path))[:3] == (0.2, ["a", "b"], False)
    assert called("m", "--config", str(path), "--alpha", "0.7")[:2] == (0.7, ["a", "b"])


def test_the_options_and_the_command_of_a_call_reproduce_it(tmp_path):
    *values, options, command = called("a model", "--alpha", "0.7", "--at", "x", "--joint")
    assert command == "leenet-fx call 'a model' --alpha 0.7 --at x --joint"
    assert options == {"name": "a model", "alpha": 0.7, "at": ["x"], "joint": True}
    write_config(tmp_path, options)
    assert called("a model", "--config", str(tmp_path / "run.yaml"))[:3] == tuple(values)


def test_a_run_begins_with_its_options_and_spares_results_of_another(tmp_path):
    begin_run(tmp_path / "new", {"epochs": 1})
    (tmp_path / "new" / "transform.json").write_text("{}")
    begin_run(tmp_path / "new", {"epochs": 2})
    assert read_options(tmp_path / "new" / "run.yaml") == {"epochs": 2}
    (tmp_path / "new" / "sweep.json").write_text("{}")
    with pytest.raises(StorageError, match=r"holds 'sweep.json' of another run.*--overwrite"):
        begin_run(tmp_path / "new", {"epochs": 3})
    assert read_options(tmp_path / "new" / "run.yaml") == {"epochs": 2}
    begin_run(tmp_path / "new", {"epochs": 3}, overwrite=True)
    assert read_options(tmp_path / "new" / "run.yaml") == {"epochs": 3}


def test_the_next_command_works_as_printed(tmp_path):
    folder = tmp_path / "my runs"
    folder.mkdir()
    factory = "nets/my net.py:small"
    printed = next_command("evaluate", folder, "evaluation.json", factory)
    assert shlex.split(printed) == [
        *("Next:", "leenet-fx", "evaluate", str(folder)),
        *("--model", factory),
    ]
    (folder / "evaluation.json").write_text("{}")
    printed = next_command("evaluate", folder, "evaluation.json", "timm/resnet18")
    assert shlex.split(printed)[1:] == ["leenet-fx", "evaluate", str(folder), "--overwrite"]
    assert shlex.split(resume_command("fit", folder)) == [
        *("leenet-fx", "fit", "--config", str(folder / "run.yaml"), "--resume")
    ]
