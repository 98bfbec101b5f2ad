"""A damaged checkpoint is an error of ours, whatever the damage."""

import random

import pytest
import torch
from mutations import mutated_bytes

from leenet_fx import StorageError
from leenet_fx.training.checkpoint import FILE, load_checkpoint, save_checkpoint


def test_damaged_checkpoints(tmp_path):
    state = {"trainer": {"state": [torch.ones(4, 4)], "done": 3}, "history": [{"epoch": 1}]}
    save_checkpoint(tmp_path, state)
    whole, generator = (tmp_path / FILE).read_bytes(), random.Random(7)
    refused = 0
    for _ in range(300):
        (tmp_path / FILE).write_bytes(mutated_bytes(whole, generator))
        try:
            found = load_checkpoint(tmp_path)
        except StorageError:
            refused += 1
            continue
        assert torch.equal(found["trainer"]["state"][0], torch.ones(4, 4))
        assert found["trainer"]["done"] == 3
        assert found["history"] == state["history"]
    assert refused > 100


@pytest.mark.parametrize("content", [None, 3, torch.zeros(2, dtype=torch.uint8)])
def test_a_checkpoint_without_its_content_is_an_error(tmp_path, content):
    torch.save({"schema": 3, "sha256": "0", "content": content}, tmp_path / FILE)
    with pytest.raises(StorageError, match="damaged"):
        load_checkpoint(tmp_path)
