"""A frozen backbone that several processes share out."""

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from helpers import data
from networks import TinyNet, images, tiny
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, TensorDataset

import leenet_fx
from leenet_fx import InputError
from leenet_fx.training.sharding import shard_backbone


def attached():
    return leenet_fx.attach(tiny(), "every", example_inputs=images(1, 3, 16, 16))


def held(ee):
    """Return the number of the backbone's values that this process holds."""
    values = (p.to_local() if isinstance(p, DTensor) else p for p in ee.backbone_parameters())
    return sum(value.numel() for value in values)


def in_process(rank, folder, state):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "RANK": str(rank), "WORLD_SIZE": "2"}
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    ee = attached()
    ee.load_state_dict(state)
    whole = held(ee)
    x = images(5, 3, 16, 16)
    expected = [[f.clone() for f in features] for features in ee.exit_features(x)]
    layers = shard_backbone(ee, init_device_mesh("cpu", (2,)))
    with torch.no_grad():
        found = [[f.clone() for f in features] for features in ee.exit_features(x)]
    equal = all(
        torch.equal(a, b)
        for one, two in zip(expected, found, strict=True)
        for a, b in zip(one, two, strict=True)
    )
    whole_exits = not any(isinstance(p, DTensor) for p in ee.exits.parameters())
    torch.save(
        {"layers": len(layers), "share": held(ee) / whole, "equal": equal, "exits": whole_exits},
        f"{folder}/{rank}.pt",
    )
    dist.destroy_process_group()


def test_each_process_holds_its_share_and_computes_the_same_features(tmp_path):
    mp.spawn(in_process, (str(tmp_path), attached().state_dict()), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert all(one["equal"] and one["exits"] and one["layers"] > 3 for one in found)
    assert sum(one["share"] for one in found) == pytest.approx(1, abs=0.02)
    assert max(one["share"] for one in found) < 0.7


class BySize(TinyNet):
    """torch.Size takes no symbolic values, so that only torch.export captures it."""

    def forward(self, x):
        return super().forward(x.view(torch.Size(x.shape)))


def test_a_network_without_layers_is_refused(caplog):
    ee = leenet_fx.attach(BySize().eval(), "every", example_inputs=images(1, 3, 16, 16))
    assert "cannot be trained" in caplog.text
    with pytest.raises(InputError, match=r"captured by torch.export have no layers"):
        shard_backbone(ee)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("cache", [False, True])
def test_shards_on_a_gpu_give_the_result_of_the_cpu(cache):
    def loader():
        generator = torch.Generator().manual_seed(1)
        return DataLoader(TensorDataset(*data(70)), 23, shuffle=True, generator=generator)

    one, two = attached(), attached()
    options = {"epochs": 2, "seed": 4, "method": "leenet", "train_final": True, "cache": cache}
    leenet_fx.fit(one, loader(), **options)
    leenet_fx.fit(two, loader(), accelerator="cuda", strategy="fsdp", **options)
    for (name, a), b in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        # Convolutions on GPUs take products in TF32.
        assert torch.allclose(a.double(), b.cpu().double(), rtol=0.02, atol=0.02), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_method_that_trains_the_backbone_takes_no_shards():
    with pytest.raises(InputError, match="trains the backbone: strategy='fsdp' needs a frozen"):
        leenet_fx.fit(
            attached(),
            DataLoader(TensorDataset(*data(23)), 23),
            method=leenet_fx.get_method("distilled", recipe="joint"),
            accelerator="cuda",
            strategy="fsdp",
        )
