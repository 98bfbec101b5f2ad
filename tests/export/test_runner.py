"""The runner of exported networks, which needs neither torch nor leenet_fx."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_helpers import run_file, small
from helpers import loader
from networks import images

import leenet_fx
from leenet_fx import InputError, MaxProbability, StorageError, UnknownNameError
from leenet_fx.data.transforms import TransformConfig

NAMES = ("ant", "bee", "cat", "dog", "élan")
TRANSFORM = TransformConfig(
    (3, 16, 16), (0.5, 0.4, 0.3), (0.2, 0.2, 0.25), "bicubic", 0.9, "center"
)


@pytest.fixture(scope="module")
def ee():
    network = small()
    network.spec = replace(network.spec, class_names=NAMES)
    network.policy = MaxProbability(0.5)
    points = [leenet_fx.calibrate(network, loader(), budget=b, name=f"at {b}") for b in (0.7, 1.0)]
    network.spec = replace(network.spec, operating_points=tuple(points))
    network.policy = MaxProbability([0.25, 0.24])
    return network


@pytest.fixture(scope="module")
def folder(ee, tmp_path_factory):
    """One export in both formats."""
    path = tmp_path_factory.mktemp("exports")
    for name in ("onnx", "onnx-stages"):
        leenet_fx.export(ee, path / name, name, preprocessing=TRANSFORM)
    return path


@pytest.fixture(params=["onnx", "onnx-stages"])
def path(request, folder, tmp_path):
    """A copy of an export that a test may damage."""
    for file in folder.iterdir():
        if file.is_dir():
            shutil.copytree(file, tmp_path / file.name)
        else:
            shutil.copy(file, tmp_path)
    return tmp_path / request.param


@pytest.mark.parametrize("size", [0, 1, 7])
def test_predictions_are_those_of_the_network(ee, path, size):
    network = leenet_fx.run.load(path, threads=1)
    batch = images(size, 3, 16, 16, seed=size)
    found, expected = network.predict(batch.numpy()), ee.predict(batch)
    assert found.exit_index.tolist() == expected.exit_index.tolist()
    assert np.allclose(found.logits, expected.logits, atol=1e-6)
    assert np.allclose(found.confidence, expected.confidence, atol=1e-6)
    assert found.logits.shape == (size, 5)


def test_a_stream_has_the_predictions_of_its_batches_in_order(ee, path):
    network = leenet_fx.run.load(path, threads=1)
    batches = [images(size, 3, 16, 16, seed=size) for size in (4, 1, 0, 5, 3, 2)]
    for options in ({}, {"batch_size": 3, "max_delay": 1}, {"batch_size": 50, "max_delay": 0}):
        found = list(network.predict_stream((b.numpy() for b in batches), **options))
        assert len(found) == len(batches)
        for prediction, batch in zip(found, batches, strict=True):
            expected = ee.predict(batch)
            assert prediction.exit_index.tolist() == expected.exit_index.tolist()
            assert np.allclose(prediction.logits, expected.logits, atol=1e-6)


def test_operating_points_and_thresholds_at_run_time(ee, path):
    network = leenet_fx.run.load(path, threads=1)
    batch = images(12, 3, 16, 16)
    assert list(network.operating_points) == ["at 0.7", "at 1.0"]
    reached = []
    for name, point in ee.operating_points.items():
        exits = network.predict(batch.numpy(), point=name).exit_index
        expected = ee.run_with(batch, point.build_policy())[1]
        assert exits.tolist() == expected.tolist()
        reached.append(exits.tolist())
    assert reached[0] != reached[1]
    assert set(network.predict(batch.numpy(), thresholds=2).exit_index) == {2}
    assert set(network.predict(batch.numpy(), thresholds=[2, 0]).exit_index) == {1}


def test_the_file_describes_the_network(ee, path):
    network = leenet_fx.run.load(path, threads=1)
    assert network.class_names == NAMES
    assert network.image_shape == (3, 16, 16)
    assert network.description["preprocessing"]["mean"] == [0.5, 0.4, 0.3]
    assert network.description["preprocessing"]["interpolation"] == "bicubic"
    assert network.description["costs"] == pytest.approx(ee.costs.relative("flops"))
    assert network.description["policy"]["thresholds"] == [0.25, 0.24]
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
    expected = (pixels / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.2, 0.25]
    assert np.allclose(network.prepare(pixels), expected.transpose(0, 3, 1, 2), atol=1e-6)
    with pytest.raises(InputError, match=r"Expected pixels \(B, 16, 16, 3\) of dtype uint8"):
        network.prepare(pixels[:, :8])


def test_other_programs_find_the_description_as_json_in_the_metadata(folder):
    found = {p.key: p.value for p in onnx.load(folder / "onnx").metadata_props}
    assert json.loads(found["leenet_fx.class_names"]) == list(NAMES)
    assert json.loads(found["leenet_fx.preprocessing"])["std"] == [0.2, 0.2, 0.25]
    assert [p["name"] for p in json.loads(found["leenet_fx.operating_points"])] == [
        "at 0.7",
        "at 1.0",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thresholds": [0.1]}, None),
        ({"thresholds": [0.1, 0.2, 0.3]}, "Expected 2 thresholds, one for each exit, got 3"),
        ({"thresholds": [0.1, float("nan")]}, "must not be NaN"),
        ({"thresholds": ["a", 1]}, "must be numbers"),
        ({"alpha": 0.5}, "not conditioned on a cost weight"),
        ({"thresholds": 0.1, "point": "at 0.7"}, "not both"),
    ],
)
def test_bad_settings_are_named(path, options, message):
    network = leenet_fx.run.load(path, threads=1)
    batch = np.zeros((1, 3, 16, 16), np.float32)
    if message is None:
        assert len(network.predict(batch, **options).logits) == 1
        return
    for call in (network.predict, network.predict_stream):
        with pytest.raises(InputError, match=message):
            call(batch, **options)


def test_bad_images_and_names_are_named(path):
    network = leenet_fx.run.load(path, threads=1)
    batch = np.zeros((2, 3, 16, 16), np.float32)
    with pytest.raises(InputError, match=r"\(B, 3, 16, 16\), got \(2, 3, 20, 16\)"):
        network.predict(np.zeros((2, 3, 20, 16), np.float32))
    with pytest.raises(InputError, match=r"\(B, 3, 16, 16\), got \(3, 16, 16\)"):
        network.predict(batch[0])
    with pytest.raises(InputError, match="dtype float32, got float64"):
        network.predict(batch.astype(np.float64))
    with pytest.raises(InputError, match="numpy array, got Tensor"):
        network.predict(torch.zeros(2, 3, 16, 16))
    with pytest.raises(UnknownNameError, match=r"No operating point 'x'. Available: at 0.7, at 1"):
        network.predict(batch, point="x")
    with pytest.raises(InputError, match="batch_size must be a whole number from 1"):
        network.predict_stream([batch], batch_size=0)


def _content(path):
    """The file, or one of a folder."""
    return path / "stage1.onnx" if path.is_dir() else path


def _checksums(path):
    return path / "SHA256SUMS" if path.is_dir() else path.with_name(f"{path.name}.sha256")


@pytest.mark.parametrize("damage", ["flipped", "truncated", "foreign", "empty"])
def test_a_damaged_file_is_refused_by_its_checksum(path, damage):
    file = _content(path)
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    contents = {"flipped": content, "truncated": content[:-100], "foreign": b"a song", "empty": b""}
    file.write_bytes(contents[damage])
    with pytest.raises(StorageError, match=f"{file.name}' is damaged, or not the file that was ex"):
        leenet_fx.run.load(path)


def test_a_file_without_its_checksum_or_parts_is_refused(path):
    _checksums(path).unlink()
    with pytest.raises(StorageError, match=r"sha256'|'SHA256SUMS'"):
        leenet_fx.run.load(path)
    with pytest.raises(StorageError, match="Cannot read"):
        leenet_fx.run.load(path.with_name("absent"))


def test_checksums_are_those_of_sha256sum(path):
    where = path if path.is_dir() else path.parent
    result = subprocess.run(["sha256sum", "-c", _checksums(path)], cwd=where, capture_output=True)
    assert result.returncode == 0, result.stderr


def _sum_again(path):
    files = sorted(p for p in path.iterdir() if p.name != "SHA256SUMS") if path.is_dir() else [path]
    lines = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}\n" for p in files]
    _checksums(path).write_text("".join(lines))


def _describe(path, **changes):
    """Change the description, as an editor that renews the checksum would."""
    if path.is_dir():
        values = json.loads((path / "manifest.json").read_text())
        values |= changes
        (path / "manifest.json").write_text(
            json.dumps({k: v for k, v in values.items() if v != ""})
        )
    else:
        model = onnx.load(path)
        for prop in list(model.metadata_props):
            key = prop.key.removeprefix("leenet_fx.")
            if key in changes and changes[key] == "":
                model.metadata_props.remove(prop)
            elif key in changes:
                prop.value = json.dumps(changes[key])
        onnx.save(model, path)
    _sum_again(path)


def test_other_descriptions_are_refused(path):
    _describe(path, schema=2)
    with pytest.raises(StorageError, match="has schema 2, this version of leenet_fx reads up to 1"):
        leenet_fx.run.load(path)
    _describe(path, schema="")
    with pytest.raises(StorageError, match=r"was not written by leenet_fx.export"):
        leenet_fx.run.load(path)


def test_files_that_no_runtime_reads_are_refused(path):
    file = _content(path)
    file.write_bytes(b"a song")
    _sum_again(path)
    with pytest.raises(StorageError, match="ONNX Runtime cannot read"):
        leenet_fx.run.load(path)


def test_a_list_of_checksums_names_files_beside_it_only(folder, tmp_path):
    shutil.copytree(folder / "onnx-stages", tmp_path / "net")
    sums = tmp_path / "net" / "SHA256SUMS"
    sums.write_text(sums.read_text().replace("stage0.onnx", "../stage0.onnx"))
    with pytest.raises(StorageError, match=r"names '../stage0.onnx', which is not beside it"):
        leenet_fx.run.load(tmp_path / "net")


SCRIPT = """
import sys
import numpy as np
import run
assert "torch" not in sys.modules and "leenet_fx" not in sys.modules
for path in sys.argv[2:]:
    network = run.load(path, threads=1)
    prediction = network.predict(np.load(sys.argv[1]))
    print(prediction.exit_index.tolist(), prediction.logits.round(3).tolist())
try:
    network.predict(np.zeros(3))
except run.errors.InputError as error:
    print(error)
"""


def test_a_python_with_numpy_and_onnxruntime_only_runs_an_export(ee, folder, tmp_path):
    packages = tmp_path / "packages"
    packages.mkdir()
    for name in ("numpy", "numpy.libs", "onnxruntime", "flatbuffers", "google", "packaging"):
        source = Path(np.__file__).parents[1] / name
        if source.exists():
            (packages / name).symlink_to(source)
    shutil.copytree(Path(leenet_fx.run.__file__).parent, packages / "run")
    batch = images(6, 3, 16, 16)
    np.save(tmp_path / "batch.npy", batch.numpy())
    # -S: without the installed packages; only those above are found.
    result = subprocess.run(
        [
            *(sys.executable, "-S", "-c", SCRIPT, tmp_path / "batch.npy"),
            *(folder / "onnx", folder / "onnx-stages"),
        ],
        env={**os.environ, "PYTHONPATH": str(packages)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    expected = ee.predict(batch)
    lines = result.stdout.splitlines()
    for line in lines[:2]:
        exits, _, logits = line.partition("] ")
        assert json.loads(f"{exits}]") == expected.exit_index.tolist()
        assert np.allclose(json.loads(logits), expected.logits, atol=1e-3)
    assert lines[2].startswith("Expected images (B, 3, 16, 16), got (3,)")


def test_the_runner_loads_without_torch():
    code = "import leenet_fx, sys; leenet_fx.run.load; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "False", result.stderr


def test_the_file_and_the_stages_agree(folder):
    batch = images(5, 3, 16, 16, seed=3)
    logits, exits, _ = run_file(folder / "onnx", batch)
    stages = leenet_fx.run.load(folder / "onnx-stages").predict(batch.numpy())
    assert exits.tolist() == stages.exit_index.tolist()
    assert np.allclose(logits, stages.logits, atol=1e-6)
