"""8-bit integers: what is quantized, what stays in float32, and what is reported."""

import numpy as np
import onnx
import pytest
import torch
from export_helpers import run_file, session, small
from networks import images

import leenet_fx
from leenet_fx import ExportError, InputError, MaxProbability

LABELS = torch.arange(40) % 5


@pytest.fixture(scope="module")
def network():
    ee = small()
    ee.policy = MaxProbability([0.25, 0.24])
    return ee


@pytest.fixture(scope="module")
def folder(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("int8")
    calibration = images(40, 3, 16, 16)
    options = {"images": calibration, "labels": LABELS, "quantize": "int8"}
    results = [
        leenet_fx.export(network, path / name, name, **options) for name in ("onnx", "onnx-stages")
    ]
    return path, calibration, results


def stages_alone(path, batch, thresholds):
    """Logits and exits of stage files that all samples run through, in ONNX Runtime alone."""
    tensors = [batch.numpy()]
    every, exits = [], np.full(len(batch), 2)
    for index in range(3):
        stage = session(path / f"stage{index}.onnx")
        names = [value.name for value in stage.get_inputs()]
        logits, *tensors = stage.run(None, dict(zip(names, tensors, strict=True)))
        every.append(logits)
        if index < 2:
            confidence, *tensors = tensors
            exits[(exits == 2) & (confidence >= np.float32(thresholds[index]))] = index
    return np.stack(every)[exits, np.arange(len(batch))], exits


def test_the_composed_file_computes_what_its_stages_compute(folder):
    path, _, _ = folder
    batch = images(20, 3, 16, 16, seed=5)
    logits, exits, _ = run_file(path / "onnx", batch, [0.25, 0.24])
    expected, expected_exits = stages_alone(path / "onnx-stages", batch, [0.25, 0.24])
    assert exits.tolist() == expected_exits.tolist()
    assert len(set(exits.tolist())) > 1
    assert np.allclose(logits, expected, atol=1e-6)
    runner = leenet_fx.run.load(path / "onnx-stages", threads=1)
    found = runner.predict(batch.numpy())
    assert found.exit_index.tolist() == exits.tolist()


def test_weights_are_integers_in_every_branch(folder):
    def weights(graph):
        for tensor in graph.initializer:
            if len(tensor.dims) > 1 and 0 not in tensor.dims:
                yield tensor.data_type
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    yield from weights(attribute.g)

    kinds = list(weights(onnx.load(folder[0] / "onnx").graph))
    assert len(kinds) > 8
    assert set(kinds) == {onnx.TensorProto.INT8}


def test_confidences_are_not_rounded_to_integers(folder):
    path, _, _ = folder
    stage = session(path / "onnx-stages" / "stage0.onnx")
    logits, confidence, *_ = stage.run(None, {"images": images(64, 3, 16, 16).numpy()})
    assert np.allclose(confidence, torch.from_numpy(logits).softmax(1).amax(1), atol=1e-6)


def test_predictions_before_and_after_are_reported_on_the_other_images(network, folder):
    path, calibration, results = folder
    held_out, labels = calibration[1::2], LABELS[1::2]
    before = network.predict(held_out)
    logits, exits, _ = run_file(path / "onnx", held_out)
    for result in results:
        report = result.quantization
        assert (report.num_calibrated, report.num_compared) == (20, 20)
        classes = before.logits.argmax(1)
        assert report.agreement == pytest.approx((logits.argmax(1) == classes.numpy()).mean())
        assert report.same_exit == pytest.approx((exits == before.exit_index.numpy()).mean())
        assert report.exit_shares_after == pytest.approx(np.bincount(exits, minlength=3) / 20)
        assert report.accuracy_before == pytest.approx(float((classes == labels).float().mean()))
        assert report.accuracy_after == pytest.approx((logits.argmax(1) == labels.numpy()).mean())
        assert report.agreement >= 0.8
    described = leenet_fx.run.load(path / "onnx").description["quantization"]
    assert described["kind"] == "int8"
    assert described["agreement"] == results[0].quantization.agreement


def test_bad_requests_are_refused_before_anything_is_written(network, tmp_path):
    batch = images(4, 3, 16, 16)

    def export(format="onnx", **options):
        leenet_fx.export(network, tmp_path / "net", format, **options)

    with pytest.raises(InputError, match="must be 'int8' or None, got 'int4'"):
        export(quantize="int4", images=batch)
    for few in (None, batch[:0], batch[:1]):
        with pytest.raises(InputError, match="quantize needs images"):
            export(quantize="int8", images=few)
    with pytest.raises(InputError, match=r"Expected 4 labels, got shape \(3,\)"):
        export(quantize="int8", images=batch, labels=torch.zeros(3))
    for format in ("openvino", "torch-export"):
        with pytest.raises(ExportError, match=f"'{format}' cannot be quantized"):
            export(format, quantize="int8", images=batch)
    assert not list(tmp_path.iterdir())
