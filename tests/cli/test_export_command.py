"""leenet-fx export and run, on what leenet-fx fit wrote."""

import json
import shutil
import tarfile

import pytest
from helpers import fails, folder, run

import leenet_fx

FACTORY = """
import torch
from torch import nn

def small():
    torch.manual_seed(3)
    blocks = [nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()) for _ in range(2)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A fitted run, its images, and its export with the backbone."""
    path = tmp_path_factory.mktemp("export")
    (path / "net.py").write_text(FACTORY)
    folder(path / "images", 40)
    fitted = run(
        *("fit", f"{path}/net.py:small", "--out", f"{path}/run", "--data", f"{path}/images"),
        *("--input-size", "3x12x12", "--strategy", "every", "--epochs", "1", "--budget", "80"),
    )
    assert fitted.exit_code == 0, fitted.output
    exported = run(
        *("export", f"{path}/run", f"{path}/net.onnx", "--model", f"{path}/net.py:small"),
        *("--backbone", f"{path}/plain.onnx", "--json"),
    )
    assert exported.exit_code == 0, exported.output
    return path, json.loads(exported.stdout)


def test_export_writes_both_and_tells_what_was_verified(base):
    path, results = base
    assert [result["path"] for result in results] == [f"{path}/net.onnx", f"{path}/plain.onnx"]
    # Random images and images of the data set.
    assert results[0]["batches"] > 30
    assert results[0]["size"] == (path / "net.onnx").stat().st_size


def test_run_has_the_predictions_of_the_network_on_the_images(base):
    path, _ = base
    result = run(
        *("run", f"{path}/net.onnx", "--data", f"{path}/images", "--backbone"),
        *(f"{path}/plain.onnx", "--batch-size", "7", "--json"),
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["samples"] == len(found["images"]) == 120
    assert sum(entry["share"] for entry in found["exits"]) == pytest.approx(1)
    right = [row["image"].split("/")[0] == row["class"] for row in found["images"]]
    assert found["accuracy"] == pytest.approx(sum(right) / 120)
    assert found["backbone"]["seconds"] > 0
    shares = [sum(row["exit"] == i for row in found["images"]) / 120 for i in range(3)]
    assert [entry["share"] for entry in found["exits"]] == pytest.approx(
        shares[: len(found["exits"])]
    )


def test_run_prints_a_table(base):
    path, _ = base
    result = run("run", f"{path}/net.onnx", "--data", f"{path}/images", "--limit", "6")
    assert result.exit_code == 0, result.output
    assert "net.onnx: 6 images" in result.stdout
    assert "final classifier" in result.stdout


def test_images_without_class_folders_are_predicted_line_by_line(base, tmp_path):
    path, _ = base
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, source in enumerate(sorted((path / "images").rglob("*.png"))[::17]):
        shutil.copy(source, flat / f"{number}.png")
    with tarfile.open(tmp_path / "flat.tar", "w") as tar:
        tar.add(flat, arcname=".")
    for data in (flat, tmp_path / "flat.tar"):
        call = ("run", f"{path}/net.onnx", "--data", f"{data}")
        found = json.loads(run(*call, "--json").stdout)
        assert found["accuracy"] is None
        assert [row["image"] for row in found["images"]] == sorted(p.name for p in flat.iterdir())
        result = run(*call)
        assert result.exit_code == 0, result.output
        assert [line.split("\t") for line in result.stdout.splitlines()] == [
            [row["image"], row["class"], str(row["exit"]), f"{row['confidence']:.4f}"]
            for row in found["images"]
        ]
        assert "accuracy " not in result.stderr.replace("accuracy %", "")
    labelled = json.loads(
        run("run", f"{path}/net.onnx", "--data", f"{path}/images", "--json").stdout
    )
    expected = [row["class"] for row in sorted(labelled["images"], key=lambda row: row["image"])]
    assert [row["class"] for row in found["images"]] == expected[::17]


def test_images_inside_and_outside_class_folders_are_refused(base, tmp_path, capsys, monkeypatch):
    path, _ = base
    folder(tmp_path / "mixed", 2)
    shutil.copy(next((path / "images").rglob("*.png")), tmp_path / "mixed" / "loose.png")
    empty = tmp_path / "empty"
    empty.mkdir()
    for data, message in (
        (tmp_path / "mixed", "outside class folders, such as 'loose.png'"),
        (empty, "has no images"),
    ):
        code, text = fails(capsys, monkeypatch, "run", f"{path}/net.onnx", "--data", f"{data}")
        assert code == 1
        assert message in text


def test_images_of_other_classes_and_another_backbone_are_refused(
    base, tmp_path, capsys, monkeypatch
):
    path, _ = base
    folder(tmp_path / "other", 2)
    shutil.move(tmp_path / "other" / "blue", tmp_path / "other" / "violet")
    code, text = fails(
        capsys, monkeypatch, "run", f"{path}/net.onnx", "--data", f"{tmp_path}/other"
    )
    assert code == 1
    assert "has no class 'violet'" in text
    content = bytearray((path / "net.onnx").read_bytes())
    content[50] ^= 1
    (tmp_path / "net.onnx").write_bytes(content)
    shutil.copy(path / "net.onnx.sha256", tmp_path)
    code, text = fails(
        capsys, monkeypatch, "run", f"{tmp_path}/net.onnx", "--data", f"{path}/images"
    )
    assert code == 1
    assert "is damaged" in text


def test_an_unknown_format_or_point_is_wrong_usage(base, tmp_path, capsys, monkeypatch):
    path, _ = base
    call = ("export", f"{path}/run", f"{tmp_path}/net", "--model", f"{path}/net.py:small")
    for option in (("--format", "onxx"), ("--point", "none")):
        code, text = fails(capsys, monkeypatch, *call, *option)
        assert code == 2
        assert "export format" in text or "operating point" in text
    assert not list(tmp_path.iterdir())


def test_the_exported_classes_are_the_folders(base):
    path, _ = base
    network = leenet_fx.run.load(path / "net.onnx")
    assert network.class_names == ("blue", "green", "red")
    assert network.description["preprocessing"]["image_shape"] == [3, 12, 12]
