"""--weights and --num-classes together."""

import pytest
import timm
import torch
from networks import images

from leenet_fx.cli.options import BackboneOptions, PlacementOptions, ShapeOptions
from leenet_fx.cli.setup import attach_by_name, build
from leenet_fx.errors import StorageError

NAME = "timm/test_resnet"


def test_weights_of_another_number_of_classes_need_num_classes(tmp_path):
    torch.manual_seed(1)
    trained = timm.create_model("test_resnet", num_classes=7).eval()
    torch.save({"model": trained.state_dict(), "epoch": 3}, tmp_path / "net.pth")
    options = BackboneOptions(weights=tmp_path / "net.pth")
    for count in (None, 5):
        with pytest.raises(StorageError, match="--num-classes 7"):
            build(NAME, options, num_classes=count)
    x = images(2, 3, 64, 64)
    network, ee = attach_by_name(NAME, PlacementOptions(), ShapeOptions(num_classes=7), options)
    assert torch.equal(network(x), trained(x))
    assert torch.equal(ee(x), trained(x))
    assert not ee.spec.classifier_is_new
