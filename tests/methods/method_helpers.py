"""Networks attached for and fitted by each method, and comparisons of their state."""

import copy
from functools import cache

import numpy as np
import torch
from helpers import (
    array,
    data,
    loader,
    log_softmax,
)
from networks import images, tiny
from torch.utils.data import DataLoader, TensorDataset

import leenet_fx
from leenet_fx import (
    Entropy,
    GateThreshold,
    MaxProbability,
    Patience,
)
from leenet_fx.methods import list_method_options
from leenet_fx.policies import AlphaConditionedGate

# Phases, and the policy after training.
PRESETS = {
    "boostnet": (["joint"], MaxProbability(0.9)),
    "branchynet": (["joint"], Entropy(0.5)),
    "calexnet": (["exits"], MaxProbability(0.9)),
    "diffbranch": (["exits", "joint"], GateThreshold(0.0)),
    "distilled": (["exits"], MaxProbability(0.9)),
    "e2cm": (["means"], MaxProbability(0.5)),
    "eenet": (["exits"], MaxProbability(0.9)),
    "eenets": (["exits", "gates"], GateThreshold(0.0)),
    "hierarchical": (["joint"], MaxProbability(0.9)),
    "jei-dnn": (["exits", "alternating"], GateThreshold(0.0)),
    "leenet": (["exits", "gates"], GateThreshold(0.0)),
    "leenet-alpha": (["exits", "gates"], AlphaConditionedGate(0.2)),
    "msdnet": (["joint"], MaxProbability(0.9)),
    "pabee": (["joint"], Patience(2)),
    "pteenet": (["exits", "gates"], GateThreshold(0.0)),
    "shallow-deep": (["exits"], MaxProbability(0.9)),
    "ztw": (["exits", "ensembles"], MaxProbability(0.9)),
}

JOINT = {"boostnet", "branchynet", "diffbranch", "eenets", "hierarchical", "msdnet", "pabee"}

FROZEN = sorted(set(PRESETS) - JOINT)

GATED = {"diffbranch", "eenets", "jei-dnn", "leenet", "leenet-alpha", "pteenet"}


def attach_for(method, model, **options):
    return leenet_fx.attach(
        model, "every", example_inputs=images(1, 3, 16, 16), method=method, **options
    )


@cache
def _attached_to_tiny(method):
    return attach_for(method, tiny())


def attached_for(method):
    return copy.deepcopy(_attached_to_tiny(method))


def fitted(method, train=None, ee=None, epochs=2, **options):
    ee = attached_for(method) if ee is None else ee
    own = {name: options.pop(name) for name in list(options) if name in list_method_options(method)}
    chosen = leenet_fx.get_method(method, **own)
    leenet_fx.fit(ee, loader() if train is None else train, method=chosen, epochs=epochs, **options)
    return ee


def state(ee):
    return {key: value.clone() for key, value in ee.state_dict().items()}


def changed_keys(before, after):
    return {key for key, value in before.items() if not torch.equal(value, after[key])}


def same_state(first, second):
    return not changed_keys(first.state_dict(), second.state_dict())


@torch.no_grad()
def all_exits(ee, x):
    return ee.all_exits(x)


def phases_run(result):
    """The phase of each epoch."""
    return [epoch.phase for epoch in result.history]


def gate_biases(ee):
    return [part.gate.linear.bias.detach().clone() for part in ee.exits]


def check_ensembles(ee, alone, x):
    """Assert that exits classify by ensembles of the exits of `alone`, which has none."""
    z = [array(at) for at in all_exits(alone, x).logits[:-1]]
    for index, (part, found) in enumerate(zip(ee.exits, all_exits(ee, x).logits, strict=False)):
        weights = np.exp(array(part.head.weights))
        mixed = sum(w * log_softmax(at) for w, at in zip(weights, z, strict=False)) / (index + 1)
        assert np.allclose(found, mixed + array(part.head.bias), atol=1e-4)


def head_weights(ee):
    return [part.head.linear.weight.detach().clone() for part in ee.exits]


def all_equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


class InterruptedLoader(DataLoader):
    """Loader that raises KeyboardInterrupt after a number of passes."""

    allowed = 0

    def __iter__(self):
        self.allowed -= 1
        if self.allowed < 0:
            raise KeyboardInterrupt
        return super().__iter__()


def interrupted_loader(passes):
    """Shuffled by a generator of its own, so that the order of batches matters."""
    generator = torch.Generator().manual_seed(8)
    interrupted = InterruptedLoader(TensorDataset(*data(80)), 16, shuffle=True, generator=generator)
    interrupted.allowed = passes
    return interrupted


def softmax(z):
    return np.exp(log_softmax(z))


def cross_entropies(logits, labels):
    rows = np.arange(len(labels))
    return [-log_softmax(at)[rows, labels.numpy()].mean() for at in logits]
