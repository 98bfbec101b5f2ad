"""Whatever happened to a saved folder, load returns the saved network or raises our own error."""

import json
import logging
import random
import shutil

import pytest
import torch
from mutations import mutated_bytes, mutated_text, mutated_values
from networks import images, tiny

import leenet_fx
from leenet_fx import EarlyExitError, MaxProbability, StorageError
from leenet_fx.storage.json_files import DIGEST, read_json, to_json

X = images(6, 3, 16, 16)
FILES = ("exit_config.json", "exits.safetensors")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder, its backbone, its network, and what that predicts."""
    folder = tmp_path_factory.mktemp("saved")
    model = tiny(width=4)
    ee = leenet_fx.attach(model, ["blocks.0", "blocks.2"], example_inputs=X[:1])
    with torch.no_grad():
        ee.get_buffer("blocks.1.bn.running_mean").add_(0.5)
        probabilities = ee.all_exits(X).logits[0].softmax(1).amax(1)
    ee.policy = MaxProbability([float(probabilities.median()), float("inf")])
    leenet_fx.save(ee, folder)
    return folder, model, ee, ee.predict(X)


@pytest.fixture(autouse=True)
def _quiet():
    logger = logging.getLogger("leenet_fx")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


def outcome(folder, saved):
    """Whether the saved network was returned; False for an error of ours."""
    _, model, ee, expected = saved
    try:
        loaded = leenet_fx.load(folder, model)
    except EarlyExitError as error:
        print(error)  # which fails for text that no terminal shows
        return False
    prediction = loaded.predict(X)
    assert loaded.policy == ee.policy
    assert torch.equal(prediction.logits, expected.logits)
    assert torch.equal(prediction.exit_index, expected.exit_index)
    return True


def copied(saved, folder):
    shutil.copytree(saved[0], folder, dirs_exist_ok=True)
    return folder


def test_a_folder_that_was_not_damaged_is_loaded(tmp_path, saved):
    assert outcome(copied(saved, tmp_path), saved)


@pytest.mark.parametrize("name", FILES)
def test_damaged_bytes(tmp_path, saved, name):
    folder, generator = copied(saved, tmp_path), random.Random(0)
    whole = (folder / name).read_bytes()
    for _ in range(280):
        (folder / name).write_bytes(mutated_bytes(whole, generator))
        same = outcome(folder, saved)
        assert not (same and name == "exits.safetensors" and (folder / name).read_bytes() != whole)


def test_damaged_values(tmp_path, saved):
    folder, generator = copied(saved, tmp_path), random.Random(1)
    text = (folder / "exit_config.json").read_text()
    for _ in range(340):
        (folder / "exit_config.json").write_text(mutated_values(json.loads(text), generator))
        outcome(folder, saved)
    for _ in range(60):
        (folder / "exit_config.json").write_bytes(mutated_text(text, generator))
        outcome(folder, saved)


def test_values_without_a_digest_are_valid_or_an_error_of_ours(tmp_path, saved):
    """A file of an earlier version may say something else, but nothing that cannot be."""
    folder, generator = copied(saved, tmp_path), random.Random(2)
    content = json.loads((folder / "exit_config.json").read_text())
    del content[DIGEST]
    loaded = 0
    for _ in range(60):
        (folder / "exit_config.json").write_text(mutated_values(content, generator))
        try:
            ee = leenet_fx.load(folder, saved[1])
        except EarlyExitError:
            continue
        ee.predict(X)
        loaded += 1
    assert 0 < loaded < 40


def test_exchanged_and_missing_files(tmp_path, saved):
    folder = copied(saved, tmp_path / "one")
    first, second = (folder / name for name in FILES)
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    assert not outcome(folder, saved)
    for name in FILES:
        folder = copied(saved, tmp_path / f"without-{name}")
        (folder / name).unlink()
        assert not outcome(folder, saved)
        (folder / name).mkdir()
        assert not outcome(folder, saved)
    other = leenet_fx.attach(saved[1], ["blocks.0", "blocks.2"], example_inputs=X[:1], seed=9)
    leenet_fx.save(other, tmp_path / "other")
    for name in FILES:
        folder = copied(saved, tmp_path / f"other-{name}")
        shutil.copy(tmp_path / "other" / name, folder / name)
        assert not outcome(folder, saved)


def test_an_edit_on_purpose_is_accepted_without_the_digest(tmp_path, saved):
    folder = copied(saved, tmp_path)
    path = folder / "exit_config.json"
    content = json.loads(path.read_text())
    content["policy"]["thresholds"] = [0.7, 0.8]
    path.write_text(json.dumps(content))
    with pytest.raises(StorageError, match=f"edited or damaged.* remove '{DIGEST}'"):
        leenet_fx.load(folder, saved[1])
    del content[DIGEST]
    path.write_text(json.dumps(content))
    assert leenet_fx.load(folder, saved[1]).policy == MaxProbability([0.7, 0.8])


def strict(text):
    def constant(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=constant)


def test_files_are_strict_json_and_hold_infinity(tmp_path, saved):
    content = strict((saved[0] / "exit_config.json").read_text())
    assert content["policy"]["thresholds"][1] == {"__float__": "inf"}
    values = {"a": [float("inf"), -float("inf"), 1.5], "b": {"c": float("nan"), "d": "inf"}}
    (tmp_path / "a.json").write_text(to_json(values))
    strict((tmp_path / "a.json").read_text())
    found = read_json(tmp_path / "a.json")
    assert found["a"] == values["a"]
    assert found["b"]["c"] != found["b"]["c"]
    assert found["b"]["d"] == "inf"
    (tmp_path / "old.json").write_text(json.dumps(values))
    assert read_json(tmp_path / "old.json")["a"] == values["a"]
