"""The final classifier that fit trains: as good as logistic regression, in its own form."""

import copy

import pytest
import torch
from helpers import attached, data, loader, shuffled
from networks import TinyNet, images
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn

import leenet_fx
from leenet_fx.features.feature_batch import final_layer_inputs
from leenet_fx.training.standardized_adam import StandardizedAdam


class Unequal(TinyNet):
    """Features of unequal scale and a common offset before the classifier, one of them constant."""

    def __init__(self, classes):
        super().__init__(classes)
        scales = 10 ** torch.linspace(-0.5, 0.5, 8)
        scales[3] = 0
        self.register_buffer("scales", scales)

    def forward(self, x):
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)) * self.scales + 20)


def test_a_new_classifier_is_as_accurate_as_logistic_regression():
    torch.manual_seed(0)
    model = Unequal(3).eval()
    ee = leenet_fx.attach(model, [1], example_inputs=images(1, 3, 16, 16), num_classes=5)
    weight = ee.fc.weight
    leenet_fx.fit(
        ee,
        loader(160),
        method="shallow-deep",
        epochs={"exits": 0, "final": 100},
        cache=True,
    )
    assert ee.fc.weight is weight
    assert type(ee.fc) is nn.Linear
    x, labels = data(160)
    with torch.no_grad():
        inputs = final_layer_inputs(ee, x)
        accuracy = float((ee(x).argmax(1) == labels).float().mean())
    scaled = StandardScaler().fit_transform(inputs.numpy())
    regression = LogisticRegression(max_iter=5000).fit(scaled, labels.numpy())
    expected = regression.score(scaled, labels.numpy())
    assert expected > 0.6
    assert accuracy >= expected - 0.03


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_a_step_is_one_of_adam_on_centred_and_scaled_inputs(kind, bias):
    """AdamW on the linear layer behind an explicit map of its inputs, one of which is constant."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([0.25, 0.25, 0.0], dtype=torch.float64)
    mean = torch.tensor([3.0, -1.0, 0.2], dtype=torch.float64) if bias else torch.zeros(3).double()
    spread = torch.tensor([4.0, 1.0, 0.0], dtype=torch.float64)
    x = torch.randn(40, 3, generator=generator, dtype=torch.float64) * spread + mean
    labels = torch.arange(40) % 4
    layer = nn.Linear(3, 4, bias=bias) if kind == "linear" else nn.Conv2d(3, 4, 1, bias=bias)
    layer.double()
    explicit = nn.Linear(3, 4, bias=bias).double()
    with torch.no_grad():
        explicit.weight.copy_(layer.weight.view(4, 3) / torch.where(scale > 0, scale, 1))
        if bias:
            explicit.bias.copy_(layer.bias + layer.weight.view(4, 3) @ mean)
    ours = StandardizedAdam(layer.weight, layer.bias, lr=0.03, decay=0.1)
    ours.set_statistics(mean, spread)
    groups = [{"params": [explicit.weight], "weight_decay": 0.1}]
    if bias:
        groups.append({"params": [explicit.bias], "weight_decay": 0.0})
    theirs = torch.optim.AdamW(groups, lr=0.03)
    for _ in range(5):
        for optimizer, outputs in (
            (ours, layer(x if kind == "linear" else x[:, :, None, None]).flatten(1)),
            (theirs, explicit((x - mean) * scale)),
        ):
            optimizer.zero_grad()
            nn.functional.cross_entropy(outputs, labels).backward()
            optimizer.step()
    with torch.no_grad():
        logits = layer(x if kind == "linear" else x[:, :, None, None]).flatten(1)
        assert torch.allclose(logits, explicit((x - mean) * scale), atol=1e-9)


class ConvHead(TinyNet):
    def __init__(self):
        super().__init__()
        self.fc = nn.Conv2d(8, 5, 1)

    def forward(self, x):
        return self.fc(self.blocks(self.stem(x))).mean((2, 3))


class Sized(TinyNet):
    """Control flow on a shape, which only torch.export captures."""

    def forward(self, x):
        y = self.blocks(self.stem(x))
        if y.shape[2] > 4:
            y = y * 1.0
        return self.fc(y.mean((2, 3)))


@pytest.mark.parametrize("build", [TinyNet, ConvHead, Sized])
def test_inputs_of_the_final_classifier_give_its_logits(build, caplog):
    ee = leenet_fx.attach(build().eval(), [1], example_inputs=images(1, 3, 16, 16))
    x = images(6, 3, 16, 16)
    rows = final_layer_inputs(ee, x)
    with torch.no_grad():
        logits = rows @ ee.fc.weight.view(5, -1).T + ee.fc.bias
        assert torch.allclose(logits.view(6, -1, 5).mean(1), ee(x), atol=1e-5)


def test_an_interrupted_final_classifier_is_resumed_with_the_same_weights(tmp_path):
    class Interrupting:
        def __init__(self, passes):
            self.passes, self.loader = passes, shuffled()
            self.generator = self.loader.generator

        def __len__(self):
            return len(self.loader)

        def __iter__(self):
            self.passes -= 1
            if self.passes < 0:
                raise KeyboardInterrupt
            return iter(self.loader)

    options = {"method": "shallow-deep", "epochs": {"exits": 0, "final": 4}, "train_final": True}
    whole, parts = attached(), attached()
    leenet_fx.fit(whole, shuffled(), **options)
    with pytest.raises(KeyboardInterrupt):
        leenet_fx.fit(parts, Interrupting(3), out=tmp_path / "run", **options)
    leenet_fx.fit(parts, Interrupting(9), out=tmp_path / "run", resume=True, **options)
    assert torch.equal(whole.fc.weight, parts.fc.weight)
    assert torch.equal(whole.fc.bias, parts.fc.bias)


def test_a_new_classifier_is_trained_before_exits_that_learn_from_it():
    """Distilled exits of a new classifier equal those of a classifier trained in a call before."""

    def new():
        return leenet_fx.attach(
            TinyNet(4).eval(), [1], example_inputs=images(1, 3, 16, 16), num_classes=5
        )

    torch.manual_seed(0)
    one = new()
    two = copy.deepcopy(one)
    method = leenet_fx.get_method("distilled", mix=1.0)
    batches = list(loader())
    result = leenet_fx.fit(one, batches, method=method, epochs=2)
    assert [epoch.phase for epoch in result.history] == ["final", "final", "exits", "exits"]
    leenet_fx.fit(two, batches, method="shallow-deep", epochs={"final": 2, "exits": 0})
    leenet_fx.fit(two, batches, method=method, epochs={"final": 0, "exits": 2})
    assert torch.equal(one.exits[0].head.linear.weight, two.exits[0].head.linear.weight)


@pytest.mark.parametrize("method", ["e2cm", "eenets", "ztw", "jei-dnn", "diffbranch"])
def test_methods_with_a_frozen_backbone_train_a_new_classifier(method):
    options = {"recipe": "disjoint"} if method in ("eenets", "diffbranch") else {}
    chosen = leenet_fx.get_method(method, **options)
    ee = leenet_fx.attach(
        TinyNet(4).eval(),
        [1],
        example_inputs=images(1, 3, 16, 16),
        num_classes=5,
        method=chosen,
    )
    before = ee.fc.weight.clone()
    leenet_fx.fit(ee, loader(32), method=chosen, epochs=1)
    assert not torch.equal(before, ee.fc.weight)


def test_a_classifier_with_weight_norm_is_trained_and_keeps_it():
    model = TinyNet().eval()
    nn.utils.parametrizations.weight_norm(model.fc)
    ee = leenet_fx.attach(model, [1], example_inputs=images(1, 3, 16, 16))
    before = ee.fc.weight.detach().clone()
    leenet_fx.fit(
        ee, loader(32), method="shallow-deep", epochs={"exits": 0, "final": 1}, train_final=True
    )
    assert not torch.equal(before, ee.fc.weight)
    assert len(list(ee.fc.parameters())) == 3
