"""Ctrl-C, progress in a log, and the version."""

import importlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from helpers import folder, run
from safetensors.torch import load_file
from test_runs import FACTORY

import leenet_fx

# As in a terminal, also where the tests run in the background, where Ctrl-C is ignored.
PROGRAM = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from leenet_fx.cli.app import main
main()
"""
COMMAND = (sys.executable, "-c", PROGRAM)
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(leenet_fx.__file__).parents[1])}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    base = tmp_path_factory.mktemp("my models")
    (base / "net.py").write_text(FACTORY)
    folder(base / "images", 40)
    return base


def arguments(base, out, epochs):
    return (
        *("fit", f"{base}/net.py:small", "--out", str(out), "--data", f"{base}/images"),
        *("--strategy", "linear", "--num-exits", "2", "--epochs", str(epochs)),
        *("--batch-size", "16", "--seed", "3"),
    )


def fit_until_interrupted(monkeypatch, call, target, after):
    """Run a command, which gets a Ctrl-C before the call of `target` number `after`."""
    module, _, name = target.rpartition(".")
    scope = importlib.import_module(module)
    original, count = getattr(scope, name), []

    def interrupted(*args, **options):
        count.append(1)
        if len(count) > after:
            raise KeyboardInterrupt
        return original(*args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(scope, name, interrupted)
        return run(*call)


def test_an_interrupted_fit_says_how_to_resume_and_resumes(base, tmp_path, monkeypatch):
    whole = run(*arguments(base, tmp_path / "whole", 4))
    assert whole.exit_code == 0, whole.output
    out = tmp_path / "my run"
    result = fit_until_interrupted(
        monkeypatch,
        arguments(base, out, 4),
        "leenet_fx.training.checkpoint.save_checkpoint",
        2,
    )
    assert result.exit_code == 130
    assert "resume.pt' has epoch 2 of phase 'exits'" in result.stderr
    assert yaml.safe_load((out / "run.yaml").read_text())["epochs"] == 4
    command = shlex.split(result.stderr.partition("Resume: ")[2].splitlines()[0])
    assert command[0] == "leenet-fx"
    resumed = run(*command[1:])
    assert resumed.exit_code == 0, resumed.output
    first, second = (load_file(at / "exits.safetensors") for at in (tmp_path / "whole", out))
    assert all(first[name].equal(value) for name, value in second.items())
    following = shlex.split(resumed.stderr.partition("Next: ")[2].splitlines()[0])
    measured = run(*following[1:], "--json")
    assert measured.exit_code == 0, measured.output
    page = shlex.split(measured.stderr.partition("Next: ")[2].splitlines()[0])
    assert run(*page[1:]).exit_code == 0
    assert (out / "report.html").exists()


def test_an_interrupt_before_the_first_epoch_leaves_the_folder_free(base, tmp_path, monkeypatch):
    out = tmp_path / "out"
    target = "leenet_fx.training.checkpoint.save_checkpoint"
    result = fit_until_interrupted(monkeypatch, arguments(base, out, 1), target, 0)
    assert result.exit_code == 130
    assert "No epoch is complete" in result.stderr
    assert sorted(path.name for path in out.iterdir()) == ["run.yaml", "transform.json"]
    assert run(*arguments(base, out, 1)).exit_code == 0


def test_ctrl_c_ends_a_process_with_130(base, tmp_path):
    out = tmp_path / "out"
    process = subprocess.Popen(
        [*COMMAND, *arguments(base, out, 100000)],
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (out / "resume.pt").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130, errors
    assert "Interrupted. " in errors
    assert "Traceback" not in errors
    assert f"leenet-fx fit --config {shlex.quote(str(out / 'run.yaml'))} --resume" in errors


def test_other_verbs_end_with_130_too(base, tmp_path, monkeypatch):
    for verb, more in (("sweep", ("--alphas", "0.5")), ("compare", ("--methods", "pabee"))):
        out = tmp_path / verb
        call = (verb, *arguments(base, out, 1)[1:], *more)
        target = "leenet_fx.data.splits.open_data"
        result = fit_until_interrupted(monkeypatch, call, target, 0)
        assert result.exit_code == 130, result.output
        assert not out.exists()
        assert "Interrupted. " in result.stderr


def test_a_log_has_a_line_for_each_step_and_no_flood(base, tmp_path):
    result = run(*arguments(base, tmp_path / "a", 8), "--json")
    assert result.exit_code == 0, result.output
    json.loads(result.stdout)
    lines = result.stderr.splitlines()
    text = "\n".join(lines)
    for step in (
        "model: building",
        "3 classes; train 84",
        "backbone on train images: 84 of 84 images",
        "backbone on calibration images",
        "training exits: epoch 8 of 8, loss",
    ):
        assert step in text
    assert len(lines) < 20


def test_the_version_is_that_of_the_package():
    result = run("--version")
    assert result.exit_code == 0
    assert result.stdout == f"leenet-fx {leenet_fx.__version__}\n"


def test_a_run_is_replaced_on_request(base, tmp_path, capsys):
    out = tmp_path / "a"
    assert run(*arguments(base, out, 1)).exit_code == 0
    before = (out / "exits.safetensors").read_bytes()
    refused = run(*arguments(base, out, 2))
    assert "of another run" in str(refused.exception)
    assert (out / "exits.safetensors").read_bytes() == before
    assert yaml.safe_load((out / "run.yaml").read_text())["epochs"] == 1
    assert run(*arguments(base, out, 2), "--overwrite").exit_code == 0
    assert (out / "exits.safetensors").read_bytes() != before
    assert yaml.safe_load((out / "run.yaml").read_text())["epochs"] == 2
    both = run(*arguments(base, out, 2), "--overwrite", "--resume")
    assert "choose one" in str(both.exception)
