"""PTEEnet."""

from helpers import data
from method_helpers import attached_for, fitted, same_state
from networks import tiny
from torch.utils.data import DataLoader, TensorDataset

import leenet_fx
from leenet_fx import GateThreshold
from leenet_fx.methods.phases import single_update_phase
from leenet_fx.objectives import get_objective


def test_pteenet_is_trained_without_labels():
    """The labels are the arg-max of the backbone; those of the loader are ignored."""
    x, labels = data(48)
    alone = fitted("pteenet", DataLoader(x, 16))
    assert same_state(alone, fitted("pteenet", DataLoader(TensorDataset(x, labels.flip(0)), 16)))
    assert same_state(alone, fitted("pteenet", DataLoader(TensorDataset(x, labels + 90), 16)))

    name = "test-pteenet-by-labels"

    @leenet_fx.register_method(name)
    def by_labels():
        loss = get_objective("pteenet")()
        phase = single_update_phase("exits", ("classifiers", "gates"), loss, lr=0.03)
        return leenet_fx.Method((phase,), GateThreshold(0.0), "a test", cost_weight=1.0)

    supervised = attached_for("pteenet")
    given = TensorDataset(x, tiny()(x).argmax(1))
    leenet_fx.fit(supervised, DataLoader(given, 16), method=name, epochs=2)
    assert same_state(alone, supervised)
    other = attached_for("pteenet")
    leenet_fx.fit(other, DataLoader(TensorDataset(x, labels), 16), method=name, epochs=2)
    assert not same_state(alone, other)
