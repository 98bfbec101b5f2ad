"""JEI-DNN."""

import math

import pytest
import torch
from method_helpers import (
    all_equal,
    attached_for,
    fitted,
    gate_biases,
    head_weights,
    interrupted_loader,
)
from networks import tiny

import leenet_fx
from leenet_fx.training.checkpoint import load_checkpoint


def test_jei_dnn_alternates_between_heads_and_gates(tmp_path):
    """An epoch is one period: heads change in the first, gates in the second."""
    ee = attached_for("jei-dnn")
    names = [name for name, _ in ee.exits.named_parameters()]
    heads, gates = [], []
    for epochs in (1, 2, 3):
        # Before the alternating phase: two epochs of the exits, and three passes for statistics.
        with pytest.raises(KeyboardInterrupt):
            leenet_fx.fit(
                attached_for("jei-dnn"),
                interrupted_loader(5 + epochs),
                method=leenet_fx.get_method("jei-dnn", period=5),
                epochs={"exits": 2, "alternating": 5},
                out=tmp_path / str(epochs),
            )
        checkpoint = load_checkpoint(tmp_path / str(epochs))["trainer"]
        assert checkpoint["done"] == epochs
        values = dict(zip(names, checkpoint["state"], strict=False))
        heads.append({name: at for name, at in values.items() if ".head." in name})
        gates.append({name: at for name, at in values.items() if ".gate." in name})
    assert heads[0]
    assert gates[0]
    # Equal exit shares: gates open with probability 1/5, 1/4, 1/3, 1/2.
    start = [math.log(share / (1 - share)) for share in (1 / 5, 1 / 4, 1 / 3, 1 / 2)]
    biases = [at.item() for name, at in gates[0].items() if name.endswith("bias")]
    assert biases == pytest.approx(start, abs=1e-6)
    assert same_tensors(heads[0], heads[1])
    assert not same_tensors(gates[0], gates[1])
    assert not same_tensors(heads[1], heads[2])
    assert same_tensors(gates[1], gates[2])


def same_tensors(first, second):
    return all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_period_longer_than_training_leaves_the_gates_untrained(caplog):
    ee = fitted("jei-dnn", epochs={"exits": 1, "alternating": 2}, period=10_000)
    assert "'alternating' trained gates in only 0 % of its batches" in caplog.text
    start = [math.log(share / (1 - share)) for share in (1 / 5, 1 / 4, 1 / 3, 1 / 2)]
    assert [bias.item() for bias in gate_biases(ee)] == pytest.approx(start, abs=1e-6)
    assert not all_equal(
        head_weights(ee), head_weights(fitted("jei-dnn", epochs={"exits": 1, "alternating": 0}))
    )


def test_gates_are_trained_in_a_phase_of_few_batches(caplog):
    """Turns are shares of the phase: in four batches two are of the gates."""
    ee = fitted("jei-dnn", epochs={"exits": 1, "alternating": 1})
    start = [math.log(share / (1 - share)) for share in (1 / 5, 1 / 4, 1 / 3, 1 / 2)]
    assert all(
        abs(bias.item() - at) > 1e-3 for bias, at in zip(gate_biases(ee), start, strict=True)
    )
    assert "of its batches" not in caplog.text


def test_networks_saved_with_a_period_load(tmp_path):
    ee = fitted("jei-dnn", epochs=1, period=3)
    leenet_fx.save(ee, tmp_path / "saved")
    loaded = leenet_fx.load(tmp_path / "saved", tiny())
    assert loaded.spec.method == ee.spec.method
    assert loaded.spec.method.build().phases[-1].period == 3
