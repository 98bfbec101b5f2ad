"""Each example runs as a program."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from networks import shared
from safetensors.torch import load_file

import leenet_fx

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


def run(name, *arguments):
    """Return what an example prints; a warning or an error fails the test."""
    result = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_quickstart_prints_exits_and_accuracy():
    command = [sys.executable, str(EXAMPLES / "quickstart.py"), "--views", "1"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "'auto' placement" in result.stdout
    assert "max_drop = 0.02, at confidence 0.95" in result.stdout
    assert "1988 images" not in result.stdout
    assert "497 images: overall accuracy" in result.stdout


@pytest.mark.parametrize(
    ("name", "placement", "images"),
    [
        ("alexnet.py", "torchvision/alexnet: 6 exits, 'auto' placement", 256),
        ("vgg.py", "torchvision/vgg11_bn: 7 exits, 'auto' placement", 256),
        ("resnet.py", "torchvision/resnet18: 7 exits, 'auto' placement", 256),
        ("densenet.py", "torchvision/densenet121: 12 exits, 'auto' placement", 256),
        ("bring_your_own.py", "OddNet: 2 exits, 'linear' placement", 497),
    ],
)
def test_an_example_prints_exits_and_accuracy(name, placement, images):
    printed = run(name, "--quick")
    assert placement in printed
    assert "FLOPs = 2 x MACs, per image" in printed
    assert f"{images} images: overall accuracy" in printed
    assert "Mean exit" in " ".join(printed.split())


def test_msdnet_prints_each_budget():
    printed = run("msdnet.py", "--quick", "--batch-size", "16", "--budgets", "0.4", "0.8")
    assert "MSDNet: 3 exits, 'fixed' placement, 'coarsest' branches" in printed
    assert "FLOPs = 2 x MACs, per image" in printed
    for budget in ("0.40", "0.80"):
        assert f"Budget {budget}: 64 images, accuracy" in printed


def test_exits_of_msdnet_read_the_coarsest_map_and_depend_on_all_earlier_layers():
    model = leenet_fx.create_model(f"{EXAMPLES / 'msdnet.py'}:msdnet").eval()
    coarsest = sys.modules[type(model).__module__].coarsest
    ee = leenet_fx.attach(model, "every", branch=coarsest)
    assert ee.num_exits == len(model.layers) == 8
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ee(images), model(images))
    for index, (branch, logits) in enumerate(
        zip(ee.exits.branches(), ee.all_exits(images).logits, strict=False)
    ):
        assert branch.features[branch.neck.index].shape[2:] == (8, 8)
        ee.zero_grad()
        logits.square().sum().backward(retain_graph=True)
        # Lazy evaluation: an exit depends on every layer that runs before it.
        for name, parameter in ee.named_parameters():
            if name.startswith("layers."):
                ran = int(name.split(".")[1]) <= index
                assert (parameter.grad is not None) == ran, (index, name)


def test_weights_of_a_file_and_another_number_of_classes(tmp_path):
    torch.save(leenet_fx.create_model("resnet18", num_classes=7).state_dict(), tmp_path / "w.pth")
    weights = ["--weights", str(tmp_path / "w.pth"), "--size", "32"]
    printed = run("resnet.py", "--quick", "--strategy", "golden", *weights)
    assert "from scratch" not in printed
    assert "'golden' placement" in printed
    assert "256 images: overall accuracy" in printed


@pytest.mark.parametrize(
    ("factory", "macs", "blocks"), [("resnet20", 40.55e6, 9), ("resnet56", 125.49e6, 27)]
)
def test_cifar_resnets_have_the_published_costs(factory, macs, blocks):
    model = leenet_fx.create_model(f"{EXAMPLES / 'cifar_resnet.py'}:{factory}").eval()
    ee = leenet_fx.attach(model, "every")
    assert ee.num_exits == blocks
    assert ee.spec.image_shape == (3, 32, 32)
    assert ee.costs.backbone.flops == pytest.approx(2 * macs, rel=2e-4)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ee(images), model(images))


@pytest.mark.parametrize("factory", ["resnet20", "resnet56"])
def test_cifar_resnets_load_published_weights(factory):
    name = f"{factory}_cifar10.safetensors"
    file = shared(f"models/{name}")
    if file is None:
        pytest.skip(f"no {name}: LEENET_FX_SHARED names no folder that contains models/")
    model = leenet_fx.create_model(f"{EXAMPLES / 'cifar_resnet.py'}:{factory}")
    model.load_state_dict(load_file(file), strict=True)
