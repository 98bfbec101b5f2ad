"""Formats other than ONNX: exits and logits of what was written are those of `predict`."""

import copy
import json
import os
import shutil
from itertools import product

import numpy as np
import pytest
import torch
from export_helpers import small
from networks import images

import leenet_fx
import leenet_fx.run
from leenet_fx import DependencyError, MaxProbability
from leenet_fx.errors import StorageError
from leenet_fx.policies import AlphaConditionedGate


def predict(ee, batch, thresholds):
    copied = copy.deepcopy(ee)
    copied.policy = MaxProbability(thresholds)
    return copied.predict(batch)


THRESHOLDS = ([0.0, 0.0], [0.25, 0.24], [0.26, 0.27], [2.0, 0.0], [np.inf, np.inf])


class TestOpenVino:
    @pytest.fixture(scope="class")
    @classmethod
    def exported(cls, tmp_path_factory):
        pytest.importorskip("openvino", reason="openvino is not installed")
        ee = small()
        ee.policy = MaxProbability([0.25, 0.24])
        path = tmp_path_factory.mktemp("openvino") / "net"
        return ee, path, leenet_fx.export(ee, path, "openvino")

    @pytest.mark.parametrize("size", [0, 1, 3, 9])
    def test_exits_and_logits_are_those_of_predict_at_any_thresholds(self, exported, size):
        ee, path, _ = exported
        network = leenet_fx.run.load(path, threads=1)
        batch = images(size, 3, 16, 16, seed=size)
        for thresholds in THRESHOLDS:
            found = network.predict(batch.numpy(), thresholds=thresholds)
            expected = predict(ee, batch, thresholds)
            assert found.exit_index.tolist() == expected.exit_index.tolist()
            assert np.allclose(found.logits, expected.logits, atol=1e-6)
        active = network.predict(batch.numpy())
        assert active.exit_index.tolist() == ee.predict(batch).exit_index.tolist()

    def test_openvino_alone_reads_the_file(self, exported):
        import openvino

        ee, path, result = exported
        batch = images(6, 3, 16, 16)
        model = openvino.Core().compile_model(path / "network.xml", "CPU")
        found = model({"images": batch.numpy(), "thresholds": np.float32([0.25, 0.24])})
        assert found["exit_index"].tolist() == ee.predict(batch).exit_index.tolist()
        assert result.verification.batches == 37

    def test_a_damaged_file_is_refused(self, exported, tmp_path):
        _, path, _ = exported
        for name in ("network.xml", "network.bin", "manifest.json"):
            folder = tmp_path / name
            folder.mkdir()
            for file in path.iterdir():
                content = bytearray(file.read_bytes())
                if file.name == name:
                    content[len(content) // 2] ^= 1
                (folder / file.name).write_bytes(content)
            with pytest.raises(StorageError, match="damaged"):
                leenet_fx.run.load(folder)

    def test_gates_that_are_conditioned_on_a_cost_weight(self, tmp_path):
        pytest.importorskip("openvino", reason="openvino is not installed")
        ee = small([1], branch_options={"gate": "alpha"})
        ee.policy = AlphaConditionedGate(0.3, [0.0])
        leenet_fx.export(ee, tmp_path / "net", "openvino")
        batch = images(7, 3, 16, 16)
        network = leenet_fx.run.load(tmp_path / "net", threads=1)
        for alpha in (0.0, 0.3, 1.0):
            found = network.predict(batch.numpy(), alpha=alpha)
            expected = ee.predict(batch, alpha=alpha)
            assert found.exit_index.tolist() == expected.exit_index.tolist()


class TestTorchExport:
    @pytest.fixture(scope="class")
    @classmethod
    def exported(cls, tmp_path_factory):
        ee = small()
        ee.policy = MaxProbability([0.25, 0.24])
        path = tmp_path_factory.mktemp("pt2") / "net.pt2"
        return ee, path, leenet_fx.export(ee, path, "torch-export")

    @pytest.mark.parametrize("size", [0, 1, 9])
    def test_a_loaded_program_predicts_what_the_network_does(self, exported, size):
        ee, path, _ = exported
        program = torch.export.load(path).module()
        batch = images(size, 3, 16, 16, seed=size)
        for thresholds in THRESHOLDS:
            logits, exits, confidence = program(batch, torch.tensor(thresholds))
            expected = predict(ee, batch, thresholds)
            assert torch.equal(exits, expected.exit_index)
            assert torch.allclose(logits, expected.logits, atol=1e-6)
            assert torch.allclose(confidence, expected.confidence, atol=1e-6)

    def test_the_file_has_the_description_and_no_debugging_data(self, exported):
        _, path, result = exported
        extra = {"leenet_fx.json": ""}
        program = torch.export.load(path, extra_files=extra)
        description = json.loads(extra["leenet_fx.json"])
        assert description["policy"]["thresholds"] == [0.25, 0.24]
        assert description["exits"] == ["blocks.0", "blocks.2"]
        assert program.example_inputs is None
        content = path.read_bytes()
        assert b"stack_trace" not in content
        assert result.verification.largest_error <= 1e-5

    def test_names_that_torch_does_not_read_are_refused(self, exported, tmp_path):
        with pytest.raises(StorageError, match=r"end with '.pt2', got 'net.onnx'"):
            leenet_fx.export(exported[0], tmp_path / "net.onnx", "torch-export")
        assert not list(tmp_path.iterdir())


class TestAoti:
    @pytest.mark.slow
    def test_a_package_predicts_what_the_network_does_for_any_batch(self, tmp_path):
        if shutil.which(os.environ.get("CXX", "g++")) is None:
            pytest.skip("there is no C++ compiler")
        ee = small([1])
        ee.policy = MaxProbability(0.25)
        path = tmp_path / "net.pt2"
        result = leenet_fx.export(ee, path, "aoti")
        # Two exits: 2 + 3 + 4 + 5 ways to spread 1 to 4 samples, and three more batches.
        assert result.verification.batches == 14 + 3
        package = torch._inductor.aoti_load_package(str(path))
        described = json.loads(package.get_metadata()["leenet_fx"])
        assert described["policy"]["thresholds"] == [0.25]
        for size, threshold in product((0, 1, 3, 20), (0.0, 0.25, 2.0)):
            batch = images(size, 3, 16, 16, seed=size)
            logits, exits, _ = package(batch, torch.tensor([threshold]))
            expected = predict(ee, batch, [threshold])
            assert torch.equal(exits, expected.exit_index)
            assert torch.allclose(logits, expected.logits, atol=1e-5)

    def test_a_missing_compiler_or_device_is_named(self, tmp_path, monkeypatch):
        ee = small([1])
        if not torch.cuda.is_available():
            with pytest.raises(
                DependencyError, match=r"'aoti-cuda' needs a C.. compiler|needs a CU"
            ):
                leenet_fx.export(ee, tmp_path / "net.pt2", "aoti-cuda")
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setenv("CXX", "no-compiler")
        with pytest.raises(DependencyError, match=r"needs a C\+\+ compiler, and 'no-compiler'"):
            leenet_fx.export(ee, tmp_path / "net.pt2", "aoti")
        assert not list(tmp_path.iterdir())


class TestExecuTorch:
    @pytest.mark.slow
    def test_a_host_composes_the_methods_of_the_file(self, tmp_path):
        pytest.importorskip("executorch", reason="executorch is not installed")
        ee = small([1])
        ee.policy = MaxProbability(0.25)
        path = tmp_path / "net.pte"
        result = leenet_fx.export(ee, path, "executorch")
        assert result.verification.batches == 14 + 1
        from executorch.runtime import Runtime

        program = Runtime.get().load_program(path)
        assert {"stage0", "stage1"} <= set(program.method_names)
        batch = images(3, 3, 16, 16)
        expected = ee.all_exits(batch)
        logits, confidence, *passed = [
            output.clone() for output in program.load_method("stage0").execute([batch])
        ]
        assert torch.allclose(logits, expected.logits[0], atol=1e-5)
        assert torch.allclose(confidence, logits.softmax(1).amax(1), atol=1e-6)
        (final,) = program.load_method("stage1").execute(passed)
        assert torch.allclose(final, expected.logits[1], atol=1e-5)
