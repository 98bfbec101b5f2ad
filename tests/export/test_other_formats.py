"""Formats other than ONNX: exits and logits of what was written are those of `predict`."""

import copy
import hashlib
import json
import os
import shutil
import subprocess
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from export_helpers import documented, small
from networks import images

import leenet_fx
import leenet_fx.run
from leenet_fx import DependencyError, MaxProbability
from leenet_fx.errors import ExportError, StorageError
from leenet_fx.export.formats import get_format
from leenet_fx.export.stage_modules import export_plan
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

    @staticmethod
    def check(path, ee, size):
        """Assert that a loaded program predicts what the network does, at any thresholds."""
        program = torch.export.load(path).module()
        batch = images(size, 3, 16, 16, seed=size)
        for thresholds in THRESHOLDS:
            logits, exits, confidence = program(batch, torch.tensor(thresholds))
            expected = predict(ee, batch, thresholds)
            assert torch.equal(exits, expected.exit_index)
            assert torch.allclose(logits, expected.logits, atol=1e-6)
            assert torch.allclose(confidence, expected.confidence, atol=1e-6)

    @pytest.mark.parametrize("size", [0, 1, 9])
    def test_a_loaded_program_predicts_what_the_network_does(self, exported, size):
        ee, path, _ = exported
        self.check(path, ee, size)

    def test_side_branches_that_read_patches(self, tmp_path):
        options = {"reads": "patches", "resolution": 4, "width": 8}
        ee = small(branch="side", branch_options=options)
        ee.policy = MaxProbability([0.25, 0.24])
        path = tmp_path / "net.pt2"
        leenet_fx.export(ee, path, "torch-export")
        for size in (0, 1, 9):
            self.check(path, ee, size)

    def test_images_of_another_size_are_refused(self, exported):
        program = torch.export.load(exported[1]).module()
        with pytest.raises(RuntimeError, match=r"shape\[2\] to be equal to 16, but got 24"):
            program(images(2, 3, 24, 24), torch.tensor([0.25, 0.24]))

    def test_the_file_has_the_description_and_no_debugging_data(self, exported):
        _, path, result = exported
        extra = {"leenet_fx.json": ""}
        program = torch.export.load(path, extra_files=extra)
        description = json.loads(extra["leenet_fx.json"])
        assert description["policy"]["thresholds"] == [0.25, 0.24]
        assert description["exits"] == ["blocks.0", "blocks.2"]
        assert description["operating_points"] == []
        digest, name = path.with_name("net.pt2.sha256").read_text().split()
        assert (digest, name) == (hashlib.sha256(path.read_bytes()).hexdigest(), "net.pt2")
        assert program.example_inputs is None
        content = path.read_bytes()
        assert b"stack_trace" not in content
        assert result.verification.largest_error <= 1e-5

    def test_names_that_torch_does_not_read_are_refused(self, exported, tmp_path):
        with pytest.raises(StorageError, match=r"end with '.pt2', got 'net.onnx'"):
            leenet_fx.export(exported[0], tmp_path / "net.onnx", "torch-export")
        assert not list(tmp_path.iterdir())


class TestAoti:
    @pytest.fixture(scope="class")
    @classmethod
    def exported(cls, tmp_path_factory):
        if shutil.which(os.environ.get("CXX", "g++")) is None:
            pytest.skip("there is no C++ compiler")
        ee = small([1])
        ee.policy = MaxProbability(0.25)
        path = tmp_path_factory.mktemp("aoti") / "net.pt2"
        return ee, path, leenet_fx.export(ee, path, "aoti")

    @pytest.mark.slow
    def test_a_package_predicts_what_the_network_does_for_any_batch(self, exported):
        ee, path, result = exported
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

    @pytest.mark.slow
    def test_the_documented_program_in_cpp_runs_a_package(self, exported, tmp_path):
        ee, path, _ = exported
        source, program, pixels = (tmp_path / name for name in ("a.cpp", "a", "images.f32"))
        source.write_text(documented("cpp", "AOTIModelPackageLoader"))
        include, libraries = (Path(torch.__file__).parent / name for name in ("include", "lib"))
        command = [os.environ.get("CXX", "g++"), "-std=c++20", f"-I{include}", str(source), "-o"]
        command += [str(program), f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-Wl,--no-as-needed"]
        subprocess.run([*command, "-ltorch", "-ltorch_cpu", "-lc10"], check=True)
        for size, threshold in product((1, 6), (0.25, 2.0)):
            batch = images(size, 3, 16, 16)
            batch.numpy().tofile(pixels)
            arguments = [str(program), str(path), str(pixels), "3", "16", "16", str(threshold)]
            output = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout
            found = [list(map(int, line.split())) for line in output.splitlines()]
            expected = predict(ee, batch, [threshold])
            columns = (expected.logits.argmax(1), expected.exit_index)
            assert found == torch.stack(columns, 1).tolist()
        arguments = [str(program), str(path), str(pixels), "3", "8", "8", "0.25"]
        refused = subprocess.run(arguments, capture_output=True, text=True)
        assert refused.returncode != 0
        assert "expected: 16, but got: 8" in refused.stderr

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
        ee.policy = MaxProbability(0.25, temperatures=[1.0, 2.0])
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

    @pytest.mark.slow
    def test_operators_without_a_kernel_are_named(self, tmp_path):
        pytest.importorskip("executorch", reason="executorch is not installed")
        ee = small([1], branch_options={"gate": "alpha"})
        ee.policy = AlphaConditionedGate(0.3, [0.0])
        with pytest.raises(ExportError, match=r"no kernels for aten::sort\.values"):
            leenet_fx.export(ee, tmp_path / "net.pte", "executorch")
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("net.pt2", "torch-export"),
        pytest.param("net.pt2", "aoti", marks=pytest.mark.slow),
    ],
)
def test_the_cost_weight_of_gates_is_an_input(tmp_path, name, format):
    ee = small([1], branch_options={"gate": "alpha"})
    ee.policy = AlphaConditionedGate(0.3, [0.0])
    path = tmp_path / name
    leenet_fx.export(ee, path, format)
    run = get_format(format)().open(export_plan(ee), path)
    batch = images(4, 3, 16, 16)
    for alpha in (0.0, 0.3, 1.0):
        expected = ee.predict(batch, alpha=alpha).exit_index.tolist()
        assert run(batch.numpy(), [0.0], alpha).exit_index.tolist() == expected
