"""Which output of a model is the logits, and a softmax at its end."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from captured import EXAMPLE, check
from networks import TinyNet, close, images
from torch import nn

import leenet_fx
from leenet_fx import TraceError


class Ending(TinyNet):
    def __init__(self, ending):
        super().__init__()
        self.ending = ending

    def forward(self, x):
        return self.ending(super().forward(x))


class InEvaluation(nn.Module):
    """As in many tutorials: logits for the loss, probabilities for users."""

    def forward(self, x):
        return x if self.training else x.softmax(1)


def as_softmax(x):
    return x.softmax(dim=-1).reshape(len(x) if isinstance(x, torch.Tensor) else x.shape[0], -1)


@pytest.mark.parametrize(
    "ending",
    [
        nn.Softmax(1),
        nn.Sequential(nn.Dropout(0.1), nn.Softmax(dim=-1)),
        InEvaluation(),
        lambda x: F.softmax(x, 1),
        lambda x: torch.softmax(x, -1, dtype=torch.float32).flatten(1),
        torch.sigmoid,
        nn.Sigmoid(),
    ],
)
def test_logits_are_taken_before_a_final_softmax(ending, caplog):
    model = Ending(ending).eval()
    ee = leenet_fx.attach(model, "every", example_inputs=EXAMPLE)
    x = images(3, 3, 16, 16)
    assert torch.equal(ee(x), TinyNet.forward(model, x))
    assert "returns the logits before it" in caplog.text
    check(model, ee, expected=lambda x: TinyNet.forward(model, x), pickles=False)


@pytest.mark.parametrize("ending", [nn.LogSoftmax(1), lambda x: torch.log(x.softmax(1))])
def test_log_probabilities_are_logits(ending):
    model = Ending(ending).eval()
    check(model, leenet_fx.attach(model, "every", example_inputs=EXAMPLE), pickles=False)


@pytest.mark.parametrize(
    "ending",
    [
        lambda x: x.exp() / x.exp().sum(1, keepdim=True),
        lambda x: F.log_softmax(x, 1).exp(),
        lambda x: (x.softmax(1) + (2 * x).softmax(1)) / 2,
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_probabilities_computed_otherwise_are_rejected(ending):
    with pytest.raises(TraceError, match="returns probabilities"):
        leenet_fx.attach(Ending(ending).eval(), "every", example_inputs=EXAMPLE)


@dataclass
class Result:
    hidden: torch.Tensor
    logits: torch.Tensor
    loss: torch.Tensor | None = None


class Outputs(TinyNet):
    def __init__(self, form):
        super().__init__()
        self.form = form

    def maps(self, x):
        return self.blocks(self.stem(x))

    def forward(self, x):
        maps = self.maps(x)
        features = maps.mean((2, 3))
        return self.form(maps, features, self.fc(features))


@pytest.mark.parametrize(
    "form",
    [
        lambda maps, features, logits: (features, logits),
        lambda maps, features, logits: [logits, features],
        lambda maps, features, logits: (maps, logits),
        lambda maps, features, logits: Result(features, logits),
        lambda maps, features, logits: {"features": features, "scores": logits},
        lambda maps, features, logits: (logits, logits.argmax(1)),
        lambda maps, features, logits: ((logits, features), [maps]),
    ],
)
def test_the_logits_are_found_among_outputs(form):
    model = Outputs(form).eval()
    ee = leenet_fx.attach(model, "every", example_inputs=EXAMPLE)
    x = images(3, 3, 16, 16)
    assert torch.equal(ee(x), TinyNet.forward(model, x))


@pytest.mark.parametrize("order", [1, -1])
def test_a_classifier_is_added_to_the_deepest_map(order):
    def pyramid(maps, features, logits):
        return [F.avg_pool2d(maps, n) for n in (1, 2, 4)][::order]

    model = Outputs(pyramid).eval()
    ee = leenet_fx.attach(model, "every", example_inputs=EXAMPLE, num_classes=7)
    x = images(3, 3, 16, 16)
    expected = ee.exits.final(F.avg_pool2d(model.maps(x), 4))
    assert close(ee(x), expected, 1e-6)
    call = next(node for node in ee.graph.nodes if node.target == "exits.final")
    assert call.args[0].args[1] == 4
