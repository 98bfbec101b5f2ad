"""Checkpoints: a resumed run equals an uninterrupted one; a full disk destroys no file."""

import csv
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import InterruptedLoader, attached, loader
from networks import images, tiny

import leenet_fx
from leenet_fx import InputError, StorageError
from leenet_fx.training.checkpoint import FILE, load_checkpoint, save_checkpoint

SCRIPT = Path(__file__).with_name("resumable_run.py")
TESTS = SCRIPT.parents[1]
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
    "OMP_NUM_THREADS": "1",
}


def start(folder, weights):
    command = [sys.executable, str(SCRIPT), str(folder), str(weights)]
    return subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)


def finish(folder, weights):
    process = start(folder, weights)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return torch.load(weights, weights_only=True)


def metrics(folder):
    return list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))


def losses(folder):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in metrics(folder)]


def epochs_written(folder):
    try:
        return len((folder / "metrics.csv").read_text().splitlines()) - 1
    except FileNotFoundError:
        return 0


def test_a_run_killed_five_times_ends_with_the_same_weights(tmp_path):
    undisturbed = finish(tmp_path / "whole", tmp_path / "whole.pt")
    chance = random.Random(11)
    folder = tmp_path / "killed"
    seen = 0
    for _ in range(5):
        process = start(folder, tmp_path / "never.pt")
        wanted = seen + chance.randint(1, 8)
        while epochs_written(folder) < wanted and process.poll() is None:
            time.sleep(0.002)
        time.sleep(chance.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert epochs_written(folder) >= wanted
        seen = epochs_written(folder)
    resumed = finish(folder, tmp_path / "killed.pt")
    assert resumed.keys() == undisturbed.keys()
    assert all(torch.equal(resumed[key], value) for key, value in undisturbed.items())
    whole, killed = (losses(tmp_path / name) for name in ("whole", "killed"))
    assert whole == killed
    assert not (folder / FILE).exists()
    assert not list(folder.glob(".*"))


def test_fit_writes_the_files_that_save_writes(tmp_path):
    ee = attached()
    result = leenet_fx.fit(ee, loader(), epochs=2, out=tmp_path / "fit", method="leenet")
    leenet_fx.save(ee, tmp_path / "saved", fit=None)
    names = {path.name for path in (tmp_path / "fit").iterdir()}
    assert names == {"exits.safetensors", "exit_config.json", "metrics.csv", "README.md"}
    fitted, saved = (
        json.loads((tmp_path / name / "exit_config.json").read_text()) for name in ("fit", "saved")
    )
    record = fitted.pop("fit")
    saved.pop("fit")
    assert fitted.pop("content_sha256") != saved.pop("content_sha256")
    assert fitted == saved
    assert record["alpha"] == 0.2
    loaded = leenet_fx.load(tmp_path / "fit", tiny())
    x = images(8, 3, 16, 16)
    assert torch.equal(loaded(x), ee(x))
    assert [float(row["train_loss"]) for row in metrics(tmp_path / "fit")] == [
        e.train_loss for e in result.history
    ]


def test_a_finished_run_is_loaded_instead_of_repeated(tmp_path):
    ee = attached()
    first = leenet_fx.fit(ee, loader(), epochs=2, out=tmp_path, method="leenet")
    again = attached()
    second = leenet_fx.fit(again, loader(), epochs=2, out=tmp_path, resume=True, method="leenet")
    assert second == first
    x = images(8, 3, 16, 16)
    assert torch.equal(again(x), ee(x))
    with pytest.raises(InputError, match=r"made with alpha=0.2, this run has alpha=0.7"):
        leenet_fx.fit(
            attached(), loader(), alpha=0.7, epochs=2, out=tmp_path, resume=True, method="leenet"
        )
    with pytest.raises(InputError, match=r"holds 'exit_config.json' of another run"):
        leenet_fx.fit(attached(), loader(), epochs=2, out=tmp_path, method="leenet")


def interrupted(folder, **options):
    with pytest.raises(KeyboardInterrupt):
        leenet_fx.fit(
            attached(), InterruptedLoader(2), epochs=5, out=folder, **options, method="leenet"
        )


def test_resuming_with_other_arguments_or_another_network_is_an_error(tmp_path):
    interrupted(tmp_path)
    with pytest.raises(InputError, match=r"made with lr=None, this run has lr=0.1"):
        leenet_fx.fit(
            attached(), loader(), epochs=5, lr=0.1, out=tmp_path, resume=True, method="leenet"
        )
    other = leenet_fx.attach(tiny(), ["blocks.0"], example_inputs=images(1, 3, 16, 16))
    with pytest.raises(InputError, match=r"of another network: up to 'final' expected"):
        leenet_fx.fit(other, loader(), epochs=5, out=tmp_path, resume=True, method="leenet")
    with pytest.raises(InputError, match=r"holds 'resume.pt' of another run"):
        leenet_fx.fit(attached(), loader(), epochs=5, out=tmp_path, method="leenet")


def test_a_damaged_checkpoint_is_an_error_and_runs_no_code(tmp_path):
    (tmp_path / FILE).write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
    with pytest.raises(StorageError, match="is not a checkpoint of fit, or is damaged"):
        leenet_fx.fit(attached(), loader(), epochs=1, out=tmp_path, resume=True, method="leenet")
    torch.save({"schema": 99}, tmp_path / FILE)
    with pytest.raises(StorageError, match="expected a checkpoint of schema 3, found 99"):
        load_checkpoint(tmp_path)


def test_an_unwritable_folder_is_an_error_before_training(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    ee = attached()
    with pytest.raises(StorageError, match=r"Cannot write '.*file/run'"):
        leenet_fx.fit(ee, loader(), epochs=1, out=file / "run", method="leenet")
    assert ee.policy == leenet_fx.NeverExit()


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path):
    interrupted(tmp_path)
    before = (tmp_path / FILE).read_bytes()
    loaded = load_checkpoint(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    ee = attached()
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(StorageError, match=r"Cannot write '.*resume.pt': File too large"):
            leenet_fx.fit(ee, loader(), epochs=5, out=tmp_path, resume=True, method="leenet")
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        with pytest.raises(StorageError, match=r"Cannot write '.*exits.safetensors'"):
            leenet_fx.save(ee, tmp_path / "other")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert (tmp_path / FILE).read_bytes() == before
    assert not list(tmp_path.glob(".*"))
    assert not list((tmp_path / "other").iterdir())
    result = leenet_fx.fit(ee, loader(), epochs=5, out=tmp_path, resume=True, method="leenet")
    assert [e.epoch for e in result.history] == [1, 2, 3, 4, 5] * 2
    save_checkpoint(tmp_path / "deep", loaded)
    assert load_checkpoint(tmp_path / "deep")["history"] == loaded["history"]


def test_patience_ends_a_phase_also_after_resuming(tmp_path):
    """With wrong validation labels the loss only rises, so an early epoch is the best."""
    x, labels = next(iter(loader(40, 3, batch_size=40)))
    val = [(x, (labels + 1) % 5)]
    ee = attached()
    result = leenet_fx.fit(
        ee, loader(), val, epochs={"exits": 12, "gates": 0}, lr=0.05, patience=3, method="leenet"
    )
    losses = [epoch.val_loss for epoch in result.history]
    best = losses.index(min(losses))
    assert len(losses) == best + 4 < 12
    broken = attached()
    with pytest.raises(KeyboardInterrupt):
        leenet_fx.fit(
            broken,
            InterruptedLoader(best + 2),
            val,
            epochs={"exits": 12, "gates": 0},
            lr=0.05,
            patience=3,
            out=tmp_path,
            method="leenet",
        )
    leenet_fx.fit(
        broken,
        loader(),
        val,
        epochs={"exits": 12, "gates": 0},
        lr=0.05,
        patience=3,
        out=tmp_path,
        resume=True,
        method="leenet",
    )
    assert torch.equal(broken.exits[0].head.linear.weight, ee.exits[0].head.linear.weight)
    for bad, message in ((0, "whole number from 1"), (1.5, "whole number from 1")):
        with pytest.raises(InputError, match=message):
            leenet_fx.fit(attached(), loader(), val, patience=bad, method="leenet")
    with pytest.raises(InputError, match="pass val="):
        leenet_fx.fit(attached(), loader(), patience=2, method="leenet")


def test_resume_and_tensorboard_need_a_folder():
    for options in ({"resume": True}, {"tensorboard": True}):
        with pytest.raises(InputError, match="need out="):
            leenet_fx.fit(attached(), loader(), **options, method="leenet")
