"""One ONNX file with nested conditions, run by ONNX Runtime alone."""

import copy

import numpy as np
import onnx
import pytest
import torch
from export_helpers import run_file, small
from networks import TinyNet, images

import leenet_fx
from leenet_fx import MaxProbability


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    ee = small()
    ee.policy = MaxProbability([0.25, 0.24])
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    return ee, path, leenet_fx.export(ee, path)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 9])
def test_exits_and_logits_are_those_of_predict_at_any_thresholds(exported, size):
    ee, path, _ = exported
    batch = images(size, 3, 16, 16, seed=size)
    copied, reached = copy.deepcopy(ee), set()
    for thresholds in ([0.0, 0.0], [0.25, 0.24], [0.26, 0.27], [2.0, 0.0], [np.inf, np.inf]):
        logits, exits, confidence = run_file(path, batch, thresholds)
        copied.policy = MaxProbability(thresholds)
        expected = copied.predict(batch)
        assert exits.tolist() == expected.exit_index.tolist()
        assert np.allclose(logits, expected.logits, atol=1e-6)
        assert np.allclose(confidence, expected.confidence, atol=1e-6)
        reached |= set(exits.tolist())
    assert reached == ({0, 1, 2} if size else set())


def test_thresholds_that_are_left_out_are_the_active_ones(exported):
    ee, path, _ = exported
    batch = images(8, 3, 16, 16)
    expected = ee.predict(batch)
    assert run_file(path, batch)[1].tolist() == expected.exit_index.tolist()
    assert len(set(expected.exit_index.tolist())) > 1


def test_stages_run_on_the_remaining_samples_only(exported):
    def operators(graph):
        return {node.op_type for node in graph.node}

    graph = onnx.load(exported[1]).graph
    conditions = []
    while conditional := [node for node in graph.node if node.op_type == "If"]:
        conditions.append(conditional[0])
        branches = {attribute.name: attribute.g for attribute in conditional[0].attribute}
        assert operators(branches["else_branch"]) == {"Identity"}
        graph = branches["then_branch"]
        assert "Conv" in operators(graph)
        # Initializers that are read from outside would not be optimised.
        assert graph.initializer
    # Whether there are images, and after each exit whether any stay.
    assert len(conditions) == 3


class Grouped(TinyNet):
    """ONNX Runtime cannot infer a size for −1 from no values."""

    def forward(self, x):
        x = self.blocks(self.stem(x))
        x = x.reshape(-1, 2, 4, 16, 16).transpose(1, 2).reshape(-1, 8, 16, 16)
        return self.fc(x.mean((2, 3)))


def test_no_images_run_no_operator_of_the_network(tmp_path):
    ee = leenet_fx.attach(Grouped().eval(), [1], example_inputs=images(1, 3, 16, 16))
    ee.policy = MaxProbability(0.25)
    leenet_fx.export(ee, tmp_path / "net.onnx")
    logits, exits, confidence = run_file(tmp_path / "net.onnx", images(0, 3, 16, 16))
    assert logits.shape == (0, 5)
    assert exits.shape == confidence.shape == (0,)
    batch = images(4, 3, 16, 16)
    found = run_file(tmp_path / "net.onnx", batch)
    assert np.allclose(found[0], ee.predict(batch).logits, atol=1e-6)


def test_the_result_tells_what_was_verified(exported):
    _, path, result = exported
    assert result.path == path
    assert result.size == path.stat().st_size
    # Of three exits: 3 + 6 + 10 + 15 ways to spread 1 to 4 samples, and three more batches.
    assert result.verification.batches == 34 + 3
    assert result.verification.unreachable == 0
    assert result.verification.largest_error <= 1e-5


def test_without_early_exits_the_backbone_is_exported(tmp_path):
    ee = small()
    leenet_fx.export(ee, tmp_path / "net.onnx")
    batch = images(3, 3, 16, 16)
    logits, exits, _ = run_file(tmp_path / "net.onnx", batch)
    assert exits.tolist() == [2, 2, 2]
    with torch.no_grad():
        assert np.allclose(logits, ee(batch), atol=1e-6)
