"""ONNX files of policies with memory, with α, and of cuts with several kinds of tensors."""

import numpy as np
import pytest
import torch
from export_helpers import run_file, small
from networks import images
from test_stage_modules import Windows

import leenet_fx
from leenet_fx import Entropy, Patience
from leenet_fx.policies import AlphaConditionedGate


def contrasts(count):
    """Images that differ in what exits predict."""
    return images(count, 3, 16, 16) * torch.linspace(0, 4, count).view(-1, 1, 1, 1)


def random_heads(ee, bias=0.0):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for branch in ee.exits.branches():
            for parameter in branch.parameters():
                parameter.normal_(generator=generator)
            branch.head.linear.bias[0] += bias
    return ee


def check(ee, path, batch, policy, **inputs):
    """Compare a file with the network under a policy; returns the exits."""
    logits, exits, _ = run_file(path, batch, policy.thresholds, **inputs)
    expected, expected_exits = ee.run_with(batch, policy)
    assert exits.tolist() == expected_exits.tolist()
    scale = expected.abs().max().item()
    assert np.allclose(logits, expected.detach(), atol=1e-5 * scale)
    return set(exits.tolist())


def test_patience_counts_over_exits_that_read_earlier_logits(tmp_path):
    # Three exits, because the counter is 0 at the first and reset by a disagreement.
    ee = random_heads(small([0, 1, 2], branch_options={"head": "cascade"}), bias=4.0)
    ee.policy = Patience(2)
    result = leenet_fx.export(ee, tmp_path / "net.onnx")
    # Nothing exits at exit 0, or at exit 1 with a patience of 2, whatever the thresholds.
    assert result.verification.unreachable
    batch, reached = contrasts(16), set()
    for patience in ([1, 1, 1], [2, 2, 2], [1, 2, 1], [np.inf, np.inf, 1]):
        reached |= check(ee, tmp_path / "net.onnx", batch, Patience(patience))
    assert {1, 3} <= reached


@pytest.mark.parametrize("format", ["onnx", "onnx-stages", "torch-export"])
def test_temperatures_divide_logits_for_decisions_and_confidences(tmp_path, format):
    ee = random_heads(small())
    batch = contrasts(24)
    scores = ee.all_exits(batch).logits[0] / 4
    threshold = scores.softmax(1).amax(1).median().item()
    rest = 0.99 * ee.all_exits(batch).logits[1].softmax(1).amax(1).quantile(0.5).item()
    ee.policy = leenet_fx.MaxProbability([threshold, rest], temperatures=[4.0, 1.0, 3.0])
    path = tmp_path / ("net.pt2" if format == "torch-export" else "net")
    leenet_fx.export(ee, path, format)
    if format == "torch-export":
        program = torch.export.load(path).module()
        logits, exits, confidence = program(batch, torch.tensor(ee.policy.thresholds))
    else:
        logits, exits, confidence = leenet_fx.run.load(path, threads=1).predict(batch.numpy())
    expected = ee.predict(batch)
    assert exits.tolist() == expected.exit_index.tolist()
    assert len(set(exits.tolist())) == 3
    assert np.allclose(logits, expected.logits.detach(), atol=1e-4)
    assert np.allclose(confidence, expected.confidence.detach(), atol=1e-5)


@pytest.mark.parametrize("format", ["onnx", "onnx-stages", "torch-export"])
def test_without_early_exits_all_samples_reach_the_final_classifier(tmp_path, format):
    ee = small()
    ee.policy = leenet_fx.NeverExit()
    path = tmp_path / ("net.pt2" if format == "torch-export" else "net")
    leenet_fx.export(ee, path, format)
    batch = contrasts(5)
    if format == "torch-export":
        logits, exits, _ = torch.export.load(path).module()(batch)
    else:
        logits, exits, _ = leenet_fx.run.load(path, threads=1).predict(batch.numpy())
    assert exits.tolist() == [2] * 5
    assert np.allclose(logits, ee(batch).detach(), atol=1e-6)


def test_alpha_is_an_input_of_gates_that_are_conditioned_on_it(tmp_path):
    ee = random_heads(small(branch_options={"gate": "alpha"}))
    ee.policy = AlphaConditionedGate(0.3, [0.1, -0.2])
    for name in ("onnx", "onnx-stages"):
        leenet_fx.export(ee, tmp_path / name, name)
    batch, exits = contrasts(16), []
    for alpha in (0.0, 0.5, 1.0):
        policy = AlphaConditionedGate(alpha, [0.1, -0.2])
        value = np.asarray(alpha, np.float32)
        exits.append(check(ee, tmp_path / "onnx", batch, policy, alpha=value))
        network = leenet_fx.run.load(tmp_path / "onnx-stages", threads=1)
        found = network.predict(batch.numpy(), alpha=alpha)
        assert found.exit_index.tolist() == ee.predict(batch, alpha=alpha).exit_index.tolist()
    assert len({frozenset(found) for found in exits}) > 1 or len(set.union(*exits)) > 1
    # Left out, it is the active one.
    assert run_file(tmp_path / "onnx", batch)[1].tolist() == ee.predict(batch).exit_index.tolist()
    with pytest.raises(leenet_fx.InputError, match=r"alpha must lie in \[0, 1\]"):
        network.predict(batch.numpy(), alpha=1.5)


def test_windows_sequences_tuples_and_tables_are_selected(tmp_path):
    torch.manual_seed(0)
    model = Windows().eval()
    ee = leenet_fx.attach(model, "every", example_inputs=images(1, 3, 4, 4), blocks=["blocks.*"])
    ee.policy = Entropy(1.5)
    assert leenet_fx.export(ee, tmp_path / "net").verification.unreachable == 0
    batch = images(7, 3, 4, 4)
    with torch.no_grad():
        middle = [
            float(-(z.log_softmax(1) * z.softmax(1)).sum(1).median()) - 1e-4
            for z in ee.all_exits(batch).logits[:-1]
        ]
    assert len(check(ee, tmp_path / "net", batch, Entropy(middle))) > 1


class Encoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.Sequential(
            *(
                torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3, padding=1), torch.nn.ReLU())
                for _ in range(2)
            )
        )

    def forward(self, x):
        return self.blocks(x).mean((2, 3))


def test_an_encoder_is_exported_with_the_classifier_it_got(tmp_path):
    torch.manual_seed(0)
    ee = leenet_fx.attach(Encoder().eval(), [0], example_inputs=images(1, 3, 8, 8), num_classes=4)
    ee.policy = leenet_fx.MaxProbability(0.3)
    leenet_fx.export(ee, tmp_path / "net")
    batch = images(6, 3, 8, 8)
    logits, exits, _ = run_file(tmp_path / "net", batch, [2.0])
    assert set(exits.tolist()) == {1}
    assert np.allclose(logits, ee.run_with(batch, leenet_fx.NeverExit())[0].detach(), atol=1e-6)
