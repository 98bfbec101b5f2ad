"""A saved network is replaced on request only, and as a whole."""

import pytest
import torch
from helpers import attached
from networks import images, tiny

import leenet_fx
from leenet_fx import MaxProbability, StorageError
from leenet_fx.storage import exits

X = images(6, 3, 16, 16)


def changed(seed):
    ee = attached()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in ee.exits.parameters():
            parameter += torch.randn(parameter.shape, generator=generator)
    ee.policy = MaxProbability(0.1 * (seed + 3))
    return ee


def is_saved(folder, ee):
    loaded = leenet_fx.load(folder, tiny())
    same = [
        torch.equal(a, b)
        for a, b in zip(loaded.all_exits(X).logits, ee.all_exits(X).logits, strict=True)
    ]
    return all(same) and loaded.policy == ee.policy


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("kept", ["exit_config.json", "exits.safetensors"])
def test_a_saved_network_is_not_replaced_without_being_asked(tmp_path, kept):
    leenet_fx.save(changed(0), tmp_path)
    for path in tmp_path.iterdir():
        if path.name != kept:
            path.unlink()
    before = content(tmp_path)
    with pytest.raises(StorageError, match=f"'{kept}' of a saved network.*overwrite=True"):
        leenet_fx.save(changed(1), tmp_path)
    assert content(tmp_path) == before


def test_other_files_of_the_folder_are_kept(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    leenet_fx.save(changed(0), tmp_path)
    second = changed(1)
    leenet_fx.save(second, tmp_path, overwrite=True)
    assert is_saved(tmp_path, second)
    files = ["README.md", "exit_config.json", "exits.safetensors", "notes.txt"]
    assert sorted(content(tmp_path)) == files


@pytest.mark.parametrize("stop", [0, 1, 2])
def test_a_killed_process_leaves_the_old_network_or_the_new_one(tmp_path, monkeypatch, stop):
    first, second = changed(0), changed(1)
    leenet_fx.save(first, tmp_path)
    steps = []

    def killed(step):
        def call(*arguments):
            if len(steps) == stop:
                raise KeyboardInterrupt
            steps.append(step)
            return step(*arguments)

        return call

    for name in ("write_atomically", "rename"):
        monkeypatch.setattr(exits, name, killed(getattr(exits, name)))
    with pytest.raises(KeyboardInterrupt):
        leenet_fx.save(second, tmp_path, overwrite=True)
    monkeypatch.undo()
    assert is_saved(tmp_path, second if stop == 2 else first)
    third = changed(2)
    leenet_fx.save(third, tmp_path, overwrite=True)
    assert is_saved(tmp_path, third)
