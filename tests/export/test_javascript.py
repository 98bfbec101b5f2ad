"""The program in JavaScript of the documentation, on an exported network."""

import shutil
import subprocess

import pytest
import torch
from export_helpers import documented, small
from networks import images

import leenet_fx
from leenet_fx import MaxProbability


@pytest.fixture(scope="module")
def node():
    """Node, if it finds onnxruntime-node."""
    found = shutil.which("node")
    if found is None:
        pytest.skip("node is not installed")
    call = [found, "-e", "require('onnxruntime-node')"]
    if subprocess.run(call, capture_output=True).returncode:
        pytest.skip(
            "node does not find onnxruntime-node: npm install onnxruntime-node, and set NODE_PATH "
            "to its node_modules"
        )
    return found


def test_the_documented_program_runs_a_file(node, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ee = small()
    ee.policy = MaxProbability([0.25, 0.24])
    leenet_fx.export(ee, "network.onnx")
    batch = images(5, 3, 16, 16)
    batch.numpy().tofile("images.f32")
    (tmp_path / "classify.js").write_text(documented("js"))

    def run(file, *thresholds):
        arguments = [file, "images.f32", "3,16,16", *thresholds]
        call = [node, "classify.js", *arguments]
        output = subprocess.run(call, check=True, capture_output=True, text=True).stdout
        return [list(map(float, line.split())) for line in output.splitlines()]

    def expected():
        found = ee.predict(batch)
        columns = (found.logits.argmax(1), found.exit_index, found.confidence)
        return [pytest.approx(row, abs=1e-5) for row in torch.stack(columns, 1).tolist()]

    assert run("network.onnx") == expected()
    # Node passes no inputs that have a default: the page says how to remove it.
    exec(documented("python", "initializer.remove"), {})
    ee.policy = MaxProbability([2.0, 0.0])
    assert run("for-node.onnx", "2,0") == expected()
    assert {row[1] for row in run("for-node.onnx", "2,0")} == {1.0}
