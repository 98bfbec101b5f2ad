"""Exits distilled from the final classifier."""

from helpers import data
from method_helpers import all_equal, all_exits, fitted, head_weights, same_state
from torch.utils.data import DataLoader, TensorDataset


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
