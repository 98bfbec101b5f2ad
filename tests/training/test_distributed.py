"""fit on other devices and in several processes."""

import copy
import os
import pickle
import signal
import subprocess
import sys

import pytest
import torch
from helpers import data
from networks import images, tiny
from torch.utils.data import DataLoader, TensorDataset

import leenet_fx
from leenet_fx import InputError, TrainingError
from leenet_fx.training.transfer import Transferable


def attached():
    return leenet_fx.attach(tiny(), "every", example_inputs=images(1, 3, 16, 16))


def shuffled(labels=None):
    x, y = data(70)
    generator = torch.Generator().manual_seed(1)
    return DataLoader(
        TensorDataset(x, y if labels is None else labels), 23, shuffle=True, generator=generator
    )


@pytest.fixture
def two_threads():
    """Give this process another number of threads than the processes it starts."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("cache", [False, True])
def test_two_processes_give_the_result_of_one(cache, tmp_path, two_threads):
    """The last batch has one sample, so one of the two processes has none."""
    one, two = attached(), attached()
    options = {"epochs": 3, "seed": 4, "train_final": True, "cache": cache}
    val = DataLoader(TensorDataset(*data(21, 9)), 5)
    first = leenet_fx.fit(one, shuffled(), val, **options, method="leenet")
    second = leenet_fx.fit(
        two, shuffled(), val, accelerator="cpu", devices=2, out=tmp_path, method="leenet", **options
    )
    for (name, a), b in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        assert torch.allclose(a.double(), b.double(), atol=2e-5), name
    assert len(first.history) == len(second.history)
    for a, b in zip(first.history, second.history, strict=True):
        assert a.train_loss == pytest.approx(b.train_loss, rel=1e-4)
        assert a.val_loss == pytest.approx(b.val_loss, rel=1e-4)
    assert two.policy == one.policy
    loaded = leenet_fx.load(tmp_path, tiny())
    assert torch.equal(loaded.exits[0].head.linear.weight, two.exits[0].head.linear.weight)


class Fatal(TensorDataset):
    """Kills the second process when it reads images for the third time."""

    reads = 0

    def __getitem__(self, index):
        self.reads += 1
        if self.reads > 150 and os.environ.get("LOCAL_RANK") == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_a_killed_process_leaves_a_run_that_any_number_of_processes_resumes(tmp_path):
    def loader(kind):
        generator = torch.Generator().manual_seed(1)
        return DataLoader(kind(*data(70)), 23, shuffle=True, generator=generator)

    whole, killed = attached(), attached()
    options = {"epochs": 4, "seed": 4, "method": "shallow-deep"}
    leenet_fx.fit(whole, loader(TensorDataset), **options)
    before = copy.deepcopy(killed.state_dict())
    several = {"accelerator": "cpu", "devices": 2}
    with pytest.raises(TrainingError, match=r"process ended unexpectedly.*resume=True"):
        leenet_fx.fit(killed, loader(Fatal), out=tmp_path, **several, **options)
    assert all(torch.equal(before[key], value) for key, value in killed.state_dict().items())
    leenet_fx.fit(killed, loader(TensorDataset), out=tmp_path, resume=True, **options)
    for (name, a), b in zip(whole.state_dict().items(), killed.state_dict().values(), strict=True):
        assert torch.allclose(a.double(), b.double(), atol=2e-5), name


def test_an_error_in_a_process_is_raised_here():
    ee = attached()
    before = copy.deepcopy(ee.state_dict())
    bad = torch.full((70,), 9)
    with pytest.raises(InputError, match="label 9, but the final classifier has 5 classes"):
        leenet_fx.fit(ee, shuffled(bad), epochs=1, accelerator="cpu", devices=2, method="leenet")
    assert all(torch.equal(before[key], value) for key, value in ee.state_dict().items())


def test_bf16_mixed_trains_float32_weights():
    ee = attached()
    leenet_fx.fit(ee, shuffled(), epochs=4, lr=0.03, precision="bf16-mixed", method="leenet")
    assert {p.dtype for p in ee.parameters()} == {torch.float32}
    x, labels = data(50, 5)
    assert float((ee.all_exits(x).logits[-2].argmax(1) == labels).float().mean()) > 0.8


def test_a_loss_that_is_not_finite_restores_the_weights_in_mixed_precision():
    ee = attached()
    x, labels = data(8)
    late = [(x, labels)] * 260 + [(x * float("nan"), labels)]
    before = copy.deepcopy(ee.state_dict())
    with pytest.raises(TrainingError, match=r"'exits' is nan in epoch 1 \(train batch 261\)"):
        leenet_fx.fit(ee, late, epochs=1, precision="bf16-mixed", method="leenet")
    assert all(torch.equal(before[key], value) for key, value in ee.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "bf16-true"}, "precision must be one of 32-true, bf16-mixed, 16-mixed"),
        ({"accelerator": "abacus"}, "accelerator='abacus'"),
        ({"devices": -3}, "devices=-3"),
        ({"num_nodes": 2}, "num_nodes=2 needs .* torchrun"),
        ({"strategy": "fsdp"}, "shards the backbone over GPUs, and this run is on 'cpu'"),
        ({"strategy": "deepspeed"}, "strategy must be one of ddp, fsdp, got 'deepspeed'"),
    ],
)
def test_devices_and_precisions_that_do_not_exist_are_errors(options, message):
    with pytest.raises(InputError, match=message):
        leenet_fx.fit(attached(), shuffled(), **options, method="leenet")


def test_importing_fit_changes_no_reducer_of_the_process():
    code = """
from multiprocessing.reduction import ForkingPickler
import torch, torch.multiprocessing, copyreg
import lightning_fabric
before = dict(ForkingPickler._extra_reducers), dict(copyreg.dispatch_table)
import leenet_fx.training.fit
from leenet_fx.training.transfer import Transferable
import pickle
pickle.dumps(Transferable(print))
assert (ForkingPickler._extra_reducers, copyreg.dispatch_table) == before
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_transferred_generator_continues_where_it_was():
    generator = torch.Generator().manual_seed(3)
    torch.rand(5, generator=generator)
    sent = pickle.loads(pickle.dumps(Transferable(generator.get_state)))
    assert torch.equal(sent(), generator.get_state())
    assert sent.function.__self__ is not generator
