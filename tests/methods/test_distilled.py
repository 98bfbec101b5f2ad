"""Exits distilled from the final classifier."""

from helpers import data
from method_helpers import (
    all_equal,
    all_exits,
    attach_for,
    check_ensembles,
    fitted,
    head_weights,
    same_state,
)
from networks import tiny
from torch.utils.data import DataLoader, TensorDataset

import leenet_fx


def test_distilled_exits_approach_the_final_classifier():
    x, labels = data(48)
    right = DataLoader(TensorDataset(x, labels), 16)
    wrong = DataLoader(TensorDataset(x, labels.flip(0)), 16)
    ends = {
        (mix, name): fitted("distilled", train, mix=mix)
        for mix in (0.0, 0.5, 1.0)
        for name, train in (("right", right), ("wrong", wrong))
    }
    assert same_state(ends[1.0, "right"], ends[1.0, "wrong"])
    assert not same_state(ends[0.5, "right"], ends[0.5, "wrong"])
    assert all_equal(head_weights(ends[0.0, "right"]), head_weights(fitted("shallow-deep", right)))
    # With mix=1, trained exits predict like the final classifier.
    ee = fitted("distilled", right, mix=1.0, epochs=20)
    logits = all_exits(ee, x).logits
    assert float((logits[-2].argmax(1) == logits[-1].argmax(1)).float().mean()) > 0.8


def test_distilled_exits_may_classify_by_ensembles_of_all_before():
    x, labels = data(48)
    train = DataLoader(TensorDataset(x, labels), 16)
    ee = fitted(
        "distilled",
        train,
        ee=attach_for(leenet_fx.get_method("distilled", ensembles=True), tiny()),
        ensembles=True,
        epochs={"exits": 2, "ensembles": 3},
    )
    alone = fitted("distilled", train)
    assert all_equal(head_weights(alone), head_weights(ee))
    check_ensembles(ee, alone, x)


def test_ensembles_are_trained_without_labels_where_exits_are():
    x, labels = data(48)
    method = leenet_fx.get_method("distilled", mix=1, ensembles=True)
    networks = []
    for given in (TensorDataset(x, labels), TensorDataset(x)):
        ee = attach_for(method, tiny())
        batches = [batch if len(batch) == 2 else batch[0] for batch in DataLoader(given, 16)]
        leenet_fx.fit(ee, batches, method=method, epochs=3, progress=False)
        assert all(part.head.ensembles for part in ee.exits)
        networks.append(ee)
    assert same_state(*networks)
