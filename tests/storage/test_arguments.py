"""concrete_args and leaf_modules are stored with a network."""

import pytest
import torch
from networks import Block, TinyNet, images

import leenet_fx
from leenet_fx import StorageError

X = images(3, 3, 16, 16)


class Scaled(TinyNet):
    def forward(self, x, scale=1.0, powers=(1,), mask=None):
        y = super().forward(x) * scale
        y = sum(y**power for power in powers)
        return y if mask is None else y * mask


def attached(model, **options):
    return leenet_fx.attach(model, "every", example_inputs=X[:1], **options)


@pytest.mark.parametrize("arguments", [{"scale": 2.5}, {"scale": 0.5, "powers": (1, 3)}, {}])
def test_arguments_are_restored(arguments, tmp_path):
    model = Scaled().eval()
    ee = attached(model, concrete_args=arguments, leaf_modules=[Block])
    leenet_fx.save(ee, tmp_path)
    loaded = leenet_fx.load(tmp_path, model)
    assert torch.equal(loaded(X), ee(X))
    assert [str(n.target) for n in loaded.graph.nodes] == [str(n.target) for n in ee.graph.nodes]
    assert "blocks.0" in [node.target for node in loaded.graph.nodes]
    leenet_fx.save(loaded, tmp_path, overwrite=True)
    assert torch.equal(leenet_fx.load(tmp_path, model)(X), ee(X))


@pytest.mark.parametrize("other", [{}, {"scale": 3.0}, {"powers": (2,)}])
def test_a_network_with_other_arguments_is_rejected(other, tmp_path):
    model = Scaled().eval()
    leenet_fx.save(attached(model, concrete_args={"scale": 2.0}), tmp_path)
    with pytest.raises(StorageError, match=r"concrete_args: expected \{'scale': 2\.0\}"):
        leenet_fx.load(tmp_path, attached(model, concrete_args=other))


def test_a_tensor_is_compared_but_not_stored(tmp_path):
    model = Scaled().eval()
    mask = torch.linspace(0, 1, 5)
    ee = attached(model, concrete_args={"mask": mask})
    assert ee.spec.tracer == "fx"
    leenet_fx.save(ee, tmp_path)
    with pytest.raises(StorageError, match=r"torch\.Tensor, which is not stored"):
        leenet_fx.load(tmp_path, model)
    same = attached(model, concrete_args={"mask": mask.clone()})
    assert torch.equal(leenet_fx.load(tmp_path, same)(X), ee(X))
    with pytest.raises(StorageError, match="concrete_args"):
        leenet_fx.load(tmp_path, attached(model, concrete_args={"mask": mask + 1}))


class Other(TinyNet):
    pass


def test_a_leaf_class_that_the_model_lacks_is_named(tmp_path):
    model = Other().eval()
    leenet_fx.save(attached(model, leaf_modules=[torch.nn.Conv2d, Block]), tmp_path)
    plain = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.AdaptiveAvgPool2d(1)).eval()
    with pytest.raises(StorageError, match=r"leaf_modules: expected .* networks\.Block"):
        leenet_fx.load(tmp_path, plain)
