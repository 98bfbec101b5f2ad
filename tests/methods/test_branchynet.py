"""BranchyNet."""

import numpy as np
from helpers import array, data, entropy, first, loader
from method_helpers import attached_for, changed_keys, fitted, softmax, state

import leenet_fx
from leenet_fx import Entropy


def test_exit_weights_determine_which_classifiers_are_trained():
    trained = {}
    for weights in (None, (1, 0, 0, 0, 0), (0, 0, 0, 0, 1)):
        ee = attached_for("branchynet")
        before = state(ee)
        leenet_fx.fit(
            ee,
            loader(48),
            method=leenet_fx.get_method("branchynet", exit_weights=weights),
            epochs=1,
        )
        changed = changed_keys(before, state(ee))
        trained[weights] = [f"exits.{i}.head.linear.weight" in changed for i in range(4)]
        trained[weights].append("fc.weight" in changed)
        # Blocks after the only classifier with a positive weight receive no gradient.
        assert ("blocks.3.conv1.weight" in changed) == (weights != (1, 0, 0, 0, 0))
    assert trained[None] == [True] * 5
    assert trained[1, 0, 0, 0, 0] == [True, False, False, False, False]
    assert trained[0, 0, 0, 0, 1] == [False, False, False, False, True]


def test_exit_weights_count_on_a_frozen_backbone():
    ee = attached_for("branchynet")
    before = state(ee)
    weights = (1, 0, 2, 0, 0.3)
    method = leenet_fx.get_method("branchynet", recipe="disjoint", exit_weights=weights)
    leenet_fx.fit(ee, loader(48), method=method, epochs=1)
    changed = changed_keys(before, state(ee))
    trained = [f"exits.{i}.head.linear.weight" in changed for i in range(4)]
    assert trained == [True, False, True, False]
    assert not any(key.startswith(("blocks", "fc")) for key in changed)


def test_branchynet_exits_by_entropy():
    x = data(seed=5)[0]
    before = fitted("branchynet").all_exits(x).logits[:-1]
    entropies = np.stack([entropy(softmax(array(at))) for at in before], 1)
    # In the widest gap of the middle half, so that samples exit at several exits.
    middle = np.sort(entropies.ravel())[entropies.size // 4 : -entropies.size // 4]
    widest = np.diff(middle).argmax()
    threshold = float(middle[widest : widest + 2].mean())
    assert np.abs(entropies - threshold).min() > 1e-5
    ee = fitted("branchynet", threshold=threshold)
    assert ee.policy == Entropy(threshold)
    expected = [first([value <= threshold for value in row]) for row in entropies.tolist()]
    assert ee.predict(x).exit_index.tolist() == expected
    assert len(set(expected)) > 1
