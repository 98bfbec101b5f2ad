"""What of the backbone was changed after attach is saved with the exits, whoever changed it."""

import copy
import json
import pickle
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers import attached, data, loader
from networks import TinyNet, images, tiny
from safetensors.torch import load_file
from torch import nn

import leenet_fx
from leenet_fx import InputError, MaxProbability, StorageError
from leenet_fx.digest import checksum

X = images(12, 3, 16, 16)


def written(folder):
    """Names of the backbone's entries in a saved folder."""
    return {name for name in load_file(folder / "exits.safetensors") if name[:6] != "exits."}


def own_loop(ee):
    optimizer = torch.optim.SGD(ee.parameters(), 0.05)
    x, labels = data(32)
    ee.train()
    for _ in range(2):
        outputs = ee(x)
        loss = sum(F.cross_entropy(logits, labels) for logits in outputs.logits)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ee.eval()


def statistics_only(ee):
    ee.train()
    with torch.no_grad():
        ee(data(32)[0])
    ee.eval()


def through_data(ee):
    ee.get_parameter("stem.weight").data.mul_(1.5)


def permuted(ee):
    """A change that no sum of the elements shows."""
    weight = ee.get_parameter("stem.weight").data
    weight.copy_(weight.flip(0))


def loaded_afterwards(ee):
    ee.load_state_dict(tiny(seed=8).state_dict(), strict=False)


def joint_method(ee):
    leenet_fx.fit(ee, loader(32), epochs=1, method=leenet_fx.get_method("branchynet"))


def final_then_own_loop(ee):
    leenet_fx.fit(ee, loader(32), epochs=1, method="leenet", train_final=True)
    own_loop(ee)


def replaced_parameter(ee):
    ee.get_submodule("blocks.1.conv1").weight = nn.Parameter(torch.ones(8, 8, 3, 3) / 10)


def one_buffer(ee):
    ee.get_buffer("blocks.2.bn.running_mean").add_(1)


@pytest.mark.parametrize(
    "change",
    [
        own_loop,
        statistics_only,
        through_data,
        permuted,
        loaded_afterwards,
        joint_method,
        final_then_own_loop,
        replaced_parameter,
        one_buffer,
    ],
)
def test_a_changed_backbone_is_loaded_onto_the_original_model(tmp_path, change):
    ee = attached()
    change(ee)
    ee.policy = MaxProbability(0.3)
    leenet_fx.save(ee, tmp_path)
    original = tiny()
    loaded = leenet_fx.load(tmp_path, original)
    for logits, expected in zip(loaded.all_exits(X).logits, ee.all_exits(X).logits, strict=True):
        assert torch.equal(logits, expected)
    assert all(torch.equal(v, original.state_dict()[k]) for k, v in tiny().state_dict().items())


def test_a_loaded_network_is_saved_with_what_was_changed_before(tmp_path):
    ee = attached()
    own_loop(ee)
    leenet_fx.save(ee, tmp_path)
    loaded = leenet_fx.load(tmp_path, attached())
    leenet_fx.save(loaded, tmp_path / "again")
    assert written(tmp_path / "again") == written(tmp_path)
    assert torch.equal(leenet_fx.load(tmp_path / "again", tiny())(X), ee(X))


def test_only_what_changed_is_written(tmp_path):
    ee = attached()
    one_buffer(ee)
    leenet_fx.save(ee, tmp_path)
    assert written(tmp_path) == {"blocks.2.bn.running_mean"}
    config = json.loads((tmp_path / "exit_config.json").read_text())
    assert config["changed"] == ["blocks.2.bn.running_mean"]
    statistics_only(ee)
    leenet_fx.save(ee, tmp_path, overwrite=True)
    names = ("running_mean", "running_var", "num_batches_tracked")
    assert written(tmp_path) == {f"blocks.{i}.bn.{name}" for i in range(4) for name in names}


def test_a_frozen_backbone_is_not_written(tmp_path):
    ee = attached()
    for parameter in ee.backbone_parameters():
        parameter.requires_grad_(False)
    optimizer = torch.optim.SGD(ee.exits.parameters(), 0.05)
    x, labels = data(32)
    F.cross_entropy(ee.all_exits(x).logits[0], labels).backward()
    optimizer.step()
    ee = pickle.loads(pickle.dumps(copy.deepcopy(ee.to(memory_format=torch.channels_last))))
    ee.load_state_dict(ee.state_dict())
    leenet_fx.save(ee, tmp_path)
    assert written(tmp_path) == set()


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, copy.copy, lambda e: pickle.loads(pickle.dumps(e))]
)
def test_copies_remember_what_the_original_was(tmp_path, copied):
    ee = attached()
    own_loop(ee)
    ee = copied(ee)
    leenet_fx.save(ee, tmp_path / "first")
    assert torch.equal(leenet_fx.load(tmp_path / "first", tiny())(X), ee(X))
    other = copied(attached())
    statistics_only(other)
    leenet_fx.save(other, tmp_path / "second")
    assert torch.equal(leenet_fx.load(tmp_path / "second", tiny())(X), other(X))


def test_shared_weights_that_change_with_the_model_are_written(tmp_path):
    model = tiny()
    ee = leenet_fx.attach(model, "every", example_inputs=X[:1], copy=False)
    with torch.no_grad():
        model.fc.weight.mul_(2)
    leenet_fx.save(ee, tmp_path)
    assert written(tmp_path) == {"fc.weight"}
    assert torch.equal(leenet_fx.load(tmp_path, tiny())(X), ee(X))


def test_a_model_that_shares_its_weights_is_not_changed_by_load(tmp_path):
    changed = attached()
    leenet_fx.save(changed, tmp_path / "same", backbone=True)
    one_buffer(changed)
    leenet_fx.save(changed, tmp_path / "changed")
    model = tiny()
    shared = leenet_fx.attach(model, "every", example_inputs=X[:1], copy=False)
    before = {name: value.clone() for name, value in shared.state_dict().items()}
    with pytest.raises(StorageError, match=r"'blocks.2.bn.running_mean' would change the original"):
        leenet_fx.load(tmp_path / "changed", shared)
    assert all(torch.equal(v, shared.state_dict()[k]) for k, v in before.items())
    leenet_fx.load(tmp_path / "same", shared)


class Special(nn.Module):
    """Tied weights, and a buffer that is not in the state dict."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(4)))
        self.blocks[2].weight = self.blocks[1].weight
        self.fc = nn.Linear(8, 5)
        self.register_buffer("scale", torch.ones(1), persistent=False)

    def forward(self, x):
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)) * self.scale)


@pytest.mark.parametrize("backbone", [False, True])
def test_tied_weights_and_buffers_outside_the_state_dict_are_kept(tmp_path, backbone):
    ee = leenet_fx.attach(Special().eval(), ["blocks.0", "blocks.2"], example_inputs=X[:1])
    leenet_fx.save(ee, tmp_path / "same")
    assert written(tmp_path / "same") == set()
    with torch.no_grad():
        ee.get_parameter("blocks.1.weight").mul_(3)
        ee.get_buffer("scale").mul_(2)
    leenet_fx.save(ee, tmp_path / "changed", backbone=backbone)
    changed = {"blocks.1.weight", "blocks.2.weight", "scale"}
    names = written(tmp_path / "changed")
    assert changed < names if backbone else changed == names
    loaded = leenet_fx.load(tmp_path / "changed", Special().eval())
    assert torch.equal(loaded(X), ee(X))
    assert loaded.get_parameter("blocks.1.weight") is loaded.get_parameter("blocks.2.weight")


def test_weights_in_half_precision_are_kept(tmp_path):
    ee = attached().bfloat16()
    leenet_fx.save(ee, tmp_path)
    x = X.bfloat16()
    assert torch.equal(leenet_fx.load(tmp_path, tiny().bfloat16())(x), ee(x))
    assert torch.equal(leenet_fx.load(tmp_path, tiny())(X), attached().bfloat16().float()(X))


def test_an_unknown_original_is_an_error_that_names_the_way_out(tmp_path):
    ee = attached()
    ee.spec = replace(ee.spec, checksums=None)
    with pytest.raises(InputError, match="backbone=True"):
        leenet_fx.save(ee, tmp_path / "exits")
    assert not (tmp_path / "exits").exists()
    leenet_fx.save(ee, tmp_path, backbone=True)
    assert torch.equal(leenet_fx.load(tmp_path, tiny(seed=5))(X), ee(X))


def test_weights_without_content_are_an_error(tmp_path):
    with torch.device("meta"):
        model = TinyNet().eval()
    ee = leenet_fx.attach(model, ["blocks.1"], example_inputs=X[:1].to("meta"))
    with pytest.raises(InputError, match="on the meta device"):
        leenet_fx.save(ee, tmp_path)


@pytest.mark.filterwarnings("ignore:.*quantized tensor creation")
def test_checksums_see_values_and_not_their_layout():
    x = images(2, 3, 4, 4)
    assert checksum(x) == checksum(x.to(memory_format=torch.channels_last)) == checksum(x.clone())
    assert checksum(x) != checksum(x.flip(0))
    assert checksum(x) != checksum(x.reshape(6, 4, 4))
    assert checksum(torch.zeros(3)) != checksum(torch.zeros(3, dtype=torch.int32))
    assert checksum(torch.tensor([0.0])) != checksum(torch.tensor([-0.0]))
    assert checksum(x.to_sparse()) == checksum(x)
    quantized = [torch.quantize_per_tensor(x, scale, 0, torch.qint8) for scale in (0.1, 0.2)]
    assert checksum(quantized[0]) != checksum(quantized[1])
    assert checksum((x, None, 2)) != checksum((x.flip(1), None, 2))
    assert checksum(torch.complex(x, x)) != checksum(torch.complex(x, -x))
    assert checksum(torch.complex(x, -x)) == checksum(torch.complex(x, x).conj())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*quantized tensor creation")
def test_exits_of_a_quantised_backbone_are_kept_and_another_one_is_refused(tmp_path):
    def quantised(seed=0):
        layers = {nn.Linear}
        return torch.ao.quantization.quantize_dynamic(tiny(seed), layers, dtype=torch.qint8)

    ee = leenet_fx.attach(quantised(), ["blocks.1"], example_inputs=X[:1])
    leenet_fx.save(ee, tmp_path)
    assert torch.equal(leenet_fx.load(tmp_path, quantised())(X), ee(X))
    ee.fc = quantised(seed=4).fc
    with pytest.raises(InputError, match=r"'fc._packed_params.* cannot be saved"):
        leenet_fx.save(ee, tmp_path / "other")
