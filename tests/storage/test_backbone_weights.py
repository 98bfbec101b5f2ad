"""Weights of backbones in the files that training code leaves."""

import argparse
import logging
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from networks import TinyNet, images, tiny
from safetensors.torch import save_file, save_model
from torch import nn

import leenet_fx
from leenet_fx import EarlyExitError, InputError, StorageError
from leenet_fx.storage import load_backbone_weights

X = images(4, 3, 16, 16)


def trained():
    return tiny(seed=7)


def prefixed(prefix, seed=7):
    return {prefix + name: value for name, value in tiny(seed).state_dict().items()}


def lightning():
    return {
        "state_dict": {**prefixed("model."), "loss.weight": torch.ones(5)},
        "epoch": 3,
        "pytorch-lightning_version": "2.5.0",
        "hyper_parameters": {"lr": 0.1, "name": "x"},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(8, 3, 3, 3)}}}],
    }


def torchvision_reference():
    optimizer = torch.optim.SGD(trained().parameters(), 0.1)
    args = argparse.Namespace(lr=0.1, output=Path("x"), best=np.float64(0.5))
    return {
        "model": trained().state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 1,
        "args": args,
    }


def compiled():
    return torch.compile(trained()).state_dict()


def averaged():
    """As torch.optim.swa_utils.AveragedModel saves it, with its counter."""
    return torch.optim.swa_utils.AveragedModel(trained()).state_dict()


def with_thop_counters():
    state = prefixed("")
    return {**state, "total_ops": torch.zeros(1), "blocks.0.total_params": torch.zeros(1)}


def without_batch_counters():
    return {k: v for k, v in prefixed("").items() if not k.endswith("num_batches_tracked")}


def inner_data_parallel():
    return {k.replace("blocks.", "blocks.module."): v for k, v in prefixed("").items()}


@pytest.mark.parametrize(
    "content",
    [
        lambda: prefixed(""),
        lambda: nn.DataParallel(trained()).state_dict(),
        compiled,
        lambda: {f"_orig_mod.module.{k}": v for k, v in prefixed("").items()},
        lambda: {f"module._orig_mod.{k}": v for k, v in prefixed("").items()},
        inner_data_parallel,
        *[
            lambda prefix=prefix: prefixed(prefix)
            for prefix in (
                "model.",
                "backbone.",
                "net.",
                "encoder.",
                "_forward_module.model.",
                "x.y.",
            )
        ],
        *[
            lambda key=key: {key: trained().state_dict(), "epoch": 4, "best": 0.5}
            for key in ("state_dict", "model", "model_state_dict", "net", "weights", "whatever")
        ],
        lambda: {"checkpoint": {"ema": {"module": prefixed("module.")}}},
        lambda: {"state_dict_ema": prefixed("")},
        lightning,
        torchvision_reference,
        averaged,
        with_thop_counters,
        without_batch_counters,
        lambda: OrderedDict(prefixed("")),
        lambda: {k: nn.Parameter(v, False) for k, v in prefixed("").items()},
    ],
)
def test_what_training_code_saves_is_loaded(tmp_path, content):
    torch.save(content(), tmp_path / "net.pth")
    model = tiny()
    load_backbone_weights(model, tmp_path / "net.pth")
    assert torch.equal(model(X), trained()(X))


@pytest.mark.parametrize("name", ["net.pth", "net.pt", "net.bin", "net.ckpt", "net"])
@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_the_content_and_not_the_name_says_how_a_file_is_read(tmp_path, name, form):
    if form == "safetensors":
        save_file(prefixed("module."), tmp_path / name)
    else:
        new = form == "zip"
        torch.save(prefixed("module."), tmp_path / name, _use_new_zipfile_serialization=new)
    model = tiny()
    loaded = load_backbone_weights(model, str(tmp_path / name))
    assert torch.equal(model(X), trained()(X))
    assert (loaded.entry, loaded.prefix) == ("", "")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_converted(tmp_path, dtype):
    state = trained().to(dtype).state_dict()
    torch.save(state, tmp_path / "net.pt")
    model = tiny()
    load_backbone_weights(model, tmp_path / "net.pt")
    before = tiny().state_dict()
    for name, value in model.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, state[name].to(value.dtype))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight


def test_of_tied_weights_one_suffices(tmp_path):
    torch.manual_seed(3)
    saved, model = Tied(), Tied()
    save_model(saved, str(tmp_path / "net.safetensors"))
    load_backbone_weights(model, tmp_path / "net.safetensors")
    assert torch.equal(model.second.weight, saved.first.weight)
    assert torch.equal(model.second.bias, saved.second.bias)


class Renaming(TinyNet):
    """Takes the names of an earlier version of itself."""

    def _load_from_state_dict(self, state, prefix, *args, **kwargs):
        for name in [name for name in state if name.startswith(f"{prefix}head.")]:
            state[name.replace("head.", "fc.", 1)] = state.pop(name)
        super()._load_from_state_dict(state, prefix, *args, **kwargs)


def test_names_that_the_model_itself_upgrades_are_taken(tmp_path):
    old = {name.replace("fc.", "head."): v for name, v in prefixed("module.").items()}
    torch.save(old, tmp_path / "net.pt")
    model = Renaming().eval()
    load_backbone_weights(model, tmp_path / "net.pt")
    assert torch.equal(model(X), trained()(X))


@pytest.mark.parametrize(
    ("content", "taken"),
    [
        (lambda: {"state_dict": prefixed("", 1), "state_dict_ema": prefixed("")}, "state_dict_ema"),
        (lambda: {"model_ema": averaged(), "model": prefixed("", 1)}, "model_ema"),
        (lambda: {"ema": {"module": prefixed("")}, "module": prefixed("", 1)}, "ema.module"),
        (lambda: {**prefixed("model.", 1), **prefixed("model_ema.")}, "model_ema."),
    ],
)
def test_of_weights_and_their_average_the_average_is_taken_and_named(
    tmp_path, caplog, content, taken
):
    torch.save(content(), tmp_path / "net.pt")
    model = tiny()
    with caplog.at_level(logging.WARNING, "leenet_fx"):
        loaded = load_backbone_weights(model, tmp_path / "net.pt")
    assert torch.equal(model(X), trained()(X))
    assert taken in (loaded.entry, loaded.prefix)
    assert "the moving average was loaded" in caplog.text
    assert taken in caplog.text


def test_equal_copies_are_no_choice(tmp_path, caplog):
    torch.save({"a": prefixed(""), "b": prefixed("module.")}, tmp_path / "net.pt")
    model = tiny()
    with caplog.at_level(logging.INFO, "leenet_fx"):
        load_backbone_weights(model, tmp_path / "net.pt")
    assert torch.equal(model(X), trained()(X))
    assert [record.levelname for record in caplog.records] == ["INFO"]


def other_classes(count=7, prefix=""):
    return {prefix + k: v for k, v in tiny(classes=count).state_dict().items()}


def script():
    return torch.jit.script(nn.Sequential(nn.Linear(2, 2)))


def shallower():
    """A model whose names and shapes are all in the file, which has more."""
    return {**prefixed("module."), "module.blocks.4.conv1.weight": torch.ones(8, 8, 3, 3)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            other_classes,
            r"of a model of 7 classes: 'fc.weight': expected \(5, 8\).*--num-classes 7",
        ),
        (lambda: {"model": other_classes(3, "module.")}, "--num-classes 3"),
        (lambda: {**prefixed("q.", 1), **prefixed("k.", 2)}, r"several .* 'q\.', .* 'k\.'"),
        (lambda: {"last": prefixed("", 1), "best": prefixed("")}, "several .* 'last', 'best'"),
        (lambda: {"ema": prefixed("", 1), "ema2": {"ema": prefixed("")}}, "several"),
        (shallower, r"'blocks.4.conv1.weight': expected nothing, found an entry"),
        (lambda: {**prefixed(""), "stem.weight": torch.ones(8, 3, 5, 5)}, r"found \(8, 3, 5, 5\)"),
        (
            lambda: {**prefixed(""), "fc.bias": torch.ones(5, dtype=torch.int8)},
            r"'fc.bias': expected \(5,\) of torch.float32, found \(5,\) of torch.int8",
        ),
        (
            lambda: {k: v for k, v in prefixed("net.").items() if "fc.bias" not in k},
            r"'fc.bias': expected \(5,\), found nothing",
        ),
        (lambda: {"epoch": 3}, "holds no tensors"),
        (lambda: [1, 2], "holds no tensors"),
        (lambda: trained(), r"'networks\.TinyNet' besides tensors.*weights_only=False"),
        (lambda: {"a": argparse.ArgumentParser}, "argparse.ArgumentParser"),
        (
            lambda: torchvision.models.resnet18().state_dict(),
            r"holds 122 tensors \(such as 'conv1.weight' \(64, 3, 7, 7\).* torchvision/resnet18",
        ),
        (
            lambda: {
                "model": timm.create_model("mobilenetv3_small_100", num_classes=3).state_dict()
            },
            r"'model' of it holds .* timm/mobilenetv3_small_100",
        ),
    ],
)
def test_other_weights_are_an_error_and_change_nothing(tmp_path, content, message):
    torch.save(content(), tmp_path / "net.pt")
    model = tiny()
    with pytest.raises(StorageError, match=message):
        load_backbone_weights(model, tmp_path / "net.pt")
    for name, value in tiny().state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_code_is_not_run(tmp_path):
    torch.jit.save(script(), str(tmp_path / "script.pt"))
    with pytest.raises(StorageError, match=r"TorchScript archive.*torch\.jit\.load"):
        load_backbone_weights(tiny(), tmp_path / "script.pt")
    marker = tmp_path / "hacked"
    (tmp_path / "evil.pt").write_bytes(f"cos\nsystem\n(S'touch {marker}'\ntR.".encode())
    with pytest.raises(StorageError, match=r"cannot be read"):
        load_backbone_weights(tiny(), tmp_path / "evil.pt")
    assert not marker.exists()


def test_weights_are_for_the_model_without_exits(tmp_path):
    torch.save(prefixed(""), tmp_path / "net.pt")
    ee = leenet_fx.attach(tiny(), ["blocks.1"], example_inputs=X[:1])
    with pytest.raises(InputError, match="before attach"):
        load_backbone_weights(ee, tmp_path / "net.pt")


@pytest.mark.parametrize("form", ["zip", "safetensors"])
def test_damaged_files_are_errors_of_ours(tmp_path, form):
    path = tmp_path / "net.pt"
    if form == "zip":
        torch.save({"model": {"fc.weight": torch.ones(5, 8)}}, path)
    else:
        save_file({"fc.weight": torch.ones(5, 8)}, path)
    whole, model = path.read_bytes(), tiny()
    generator = np.random.default_rng(0)
    for step in range(150):
        damaged = bytearray(whole)
        if step % 3 == 0:
            del damaged[generator.integers(len(damaged)) :]
        for _ in range(step % 5):
            if damaged:
                damaged[generator.integers(len(damaged))] = generator.integers(256)
        path.write_bytes(damaged)
        # Too few weights in any case.
        with pytest.raises(EarlyExitError):
            load_backbone_weights(model, path)
