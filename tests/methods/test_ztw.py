"""Zero Time Waste."""

import torch
from helpers import data, loader
from method_helpers import (
    all_equal,
    changed_keys,
    check_ensembles,
    fitted,
    head_weights,
    state,
)
from networks import images, tiny
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import leenet_fx


def test_ztw_classifies_by_ensembles_after_they_are_trained():
    x = data(24, seed=5)[0]
    alone = fitted("ztw", epochs={"exits": 2, "ensembles": 0})
    ee = fitted("ztw", epochs={"exits": 2, "ensembles": 3})
    assert all_equal(head_weights(alone), head_weights(ee))
    before = {name for name in state(ee) if "head.weights" in name or "head.bias" in name}
    assert before <= changed_keys(state(alone), state(ee))
    check_ensembles(ee, alone, x)
    # Retraining the classifiers disables the ensembles.
    leenet_fx.fit(ee, loader(), method="ztw", epochs={"exits": 1, "ensembles": 0})
    part = ee.exits[0]
    features = next(ee.exit_features(x))
    own = part.head.linear(part.neck(*part.pool(*features)))
    assert torch.allclose(ee.all_exits(x).logits[0], own, atol=1e-5)


def test_ensembles_are_trained_on_the_calibration_images():
    """Where labels have nothing to do with the images, no head deserves weight."""
    x, labels = data(96, seed=7)
    shuffled = labels[torch.randperm(96, generator=torch.Generator().manual_seed(0))]
    random = DataLoader(TensorDataset(x, shuffled), batch_size=16)
    epochs = {"exits": 10, "ensembles": 60}
    certain, heads = {}, {}
    for name, calibration in (("train", None), ("random", random)):
        ee = leenet_fx.attach(tiny(), [0, 2], example_inputs=images(1, 3, 16, 16), method="ztw")
        leenet_fx.fit(ee, loader(), calibration=calibration, epochs=epochs, progress=False)
        heads[name] = head_weights(ee)
        logits = ee.all_exits(x).logits[:-1]
        certain[name] = [float(z.detach().softmax(1).amax(1).mean()) for z in logits]
    assert all_equal(heads["train"], heads["random"])
    assert all(b < a for a, b in zip(certain["train"], certain["random"], strict=True)), certain


def test_networks_with_heads_without_a_norm_are_trained_further():
    x = images(1, 3, 16, 16)
    ee = leenet_fx.attach(tiny(), [0, 2], example_inputs=x, branch_options={"head": "cascade"})
    before = head_weights(ee)
    leenet_fx.fit(ee, loader(), method="ztw", epochs=1, progress=False)
    assert not all_equal(before, head_weights(ee))
    assert all(part.head.ensembles for part in ee.exits)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(32, 32, 1)

    def forward(self, x):
        return torch.relu(self.conv(x)) + x


class Chain(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 1)
        self.blocks = nn.Sequential(*(Block() for _ in range(10)))
        self.linear = nn.Linear(32, 40)

    def forward(self, x):
        return self.linear(self.blocks(self.stem(x)).mean((2, 3)))


def test_logits_do_not_grow_from_exit_to_exit():
    torch.manual_seed(0)
    model, labels = Chain().eval(), torch.arange(400) % 40
    x = torch.randn(40, 3, 4, 4)[labels] + 0.3 * torch.randn(400, 3, 4, 4)
    batches = DataLoader(TensorDataset(x, labels), batch_size=40)
    ee = leenet_fx.attach(model, "every", example_inputs=x[:1], method="ztw")
    leenet_fx.fit(ee, batches, epochs={"exits": 20, "ensembles": 0}, progress=False)
    assert ee.num_exits == 10
    with torch.no_grad():
        sizes = [float(z.abs().mean()) for z in ee.all_exits(x).logits[:-1]]
    assert max(sizes) < 3 * sizes[1], sizes
