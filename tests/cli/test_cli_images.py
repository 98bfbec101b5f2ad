"""Options of images and their transform, from fit to evaluate."""

import json
import logging

import pytest
import torch
import yaml
from helpers import fails, folder, run
from PIL import Image

import leenet_fx
from leenet_fx.cli.config import inherited
from leenet_fx.cli.images import transform_values, warn_if_resized
from leenet_fx.cli.options import DataSetOptions, TransformOptions
from leenet_fx.data.transforms import build_transform, transform_config
from leenet_fx.errors import InputError, StorageError
from leenet_fx.storage.transform_file import read_transform

FACTORY = """
import torch
from torch import nn
def small(classes=3, **config):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, classes))
    if config:
        model.pretrained_cfg = config
    return model
def configured():
    return small(input_size=(3, 16, 16), mean=(0.9, 0.9, 0.9), std=(3.0, 3.0, 3.0))
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model file, and images of 10 x 12 pixels in three classes."""
    base = tmp_path_factory.mktemp("cli-images")
    (base / "net.py").write_text(FACTORY)
    folder(base / "images", 20)
    return base


def fit(base, out, *more, factory="small"):
    return run(
        *("fit", f"{base}/net.py:{factory}", "--out", str(out), "--data", f"{base}/images"),
        *("--epochs", "1", "--batch-size", "30", "--num-exits", "1", *more),
    )


def evaluate(base, out, *more, factory="small"):
    result = run(
        *("evaluate", str(out), "--model", f"{base}/net.py:{factory}", "--json", "--overwrite"),
        *more,
    )
    return json.loads(result.stdout) if result.exit_code == 0 else result.exception


def test_a_model_without_an_input_size_takes_that_of_the_images(base, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "leenet_fx"):
        result = fit(base, tmp_path / "run")
    assert result.exit_code == 0, result.output
    config = json.loads((tmp_path / "run" / "exit_config.json").read_text())
    assert config["image_shape"] == [3, 10, 12]
    assert config["class_names"] == ["blue", "green", "red"]
    assert "resized" not in caplog.text
    assert "input size" not in caplog.text


def test_images_of_several_sizes_need_an_input_size(base, tmp_path, caplog):
    images = folder(tmp_path / "images")
    Image.new("RGB", (12, 11)).save(images / "red" / "0019.png")
    arguments = ("--data", str(images))
    result = fit(base, tmp_path / "run", *arguments)
    assert isinstance(result.exception, InputError)
    assert "pass --input-size, for example 3x224x224" in str(result.exception)
    assert not (tmp_path / "run").exists()
    with caplog.at_level(logging.WARNING, "leenet_fx"):
        result = fit(base, tmp_path / "run", *arguments, "--input-size", "3x20x24")
    assert result.exit_code == 0, result.output
    said = [record.getMessage() for record in caplog.records if "resized" in record.getMessage()]
    assert len(said) == 1
    assert "resized to 20 x 24 pixels, for instance from 10 x 12" in said[0]


def test_evaluate_uses_the_transform_of_fit(base, tmp_path):
    """The accuracy is that of the saved network on images transformed by hand."""
    out = tmp_path / "run"
    options = ("--mean", "0.2,0.3,0.4", "--std", "0.5", "--interpolation", "nearest")
    result = fit(base, out, *options, factory="configured")
    assert result.exit_code == 0, result.output
    transform = json.loads((out / "transform.json").read_text())
    assert transform.pop("content_sha256")
    assert transform == {
        "image_shape": [3, 16, 16],
        "mean": [0.2, 0.3, 0.4],
        "std": [0.5, 0.5, 0.5],
        "interpolation": "nearest",
        "crop_pct": 1.0,
        "crop_mode": "center",
    }
    written = yaml.safe_load((out / "run.yaml").read_text())
    assert written["mean"] == "0.2,0.3,0.4"
    scope = {}
    exec(FACTORY, scope)
    ee = leenet_fx.load(out, scope["configured"]().eval())
    data = leenet_fx.open_data(base / "images")

    def measured(mean):
        values = {"mean": mean, "std": [0.5], "interpolation": "nearest"}
        transform = leenet_fx.make_transform(torch.nn.Identity(), (3, 16, 16), **values)
        return leenet_fx.evaluate(ee, data.loader("train", transform, 100))

    found = evaluate(base, out, "--split", "train", factory="configured")
    expected = measured([0.2, 0.3, 0.4])
    assert found["accuracy"] == expected.accuracy
    assert found["auroc"] == pytest.approx(expected.auroc, abs=1e-6, nan_ok=True)
    ece = [row["calibration_error"] for row in found["exits"]]
    assert ece == pytest.approx([row.calibration_error for row in expected.exits], abs=1e-6)
    found = evaluate(base, out, "--split", "train", "--mean", "0.9", factory="configured")
    other = [row.calibration_error for row in measured([0.9]).exits]
    assert [row["calibration_error"] for row in found["exits"]] == pytest.approx(other, abs=1e-6)
    assert other != pytest.approx(ece, abs=1e-4)


def test_evaluate_reads_images_as_fit_did(base, tmp_path):
    images = folder(tmp_path / "images")
    (images / "red" / "0001.png").write_bytes(b"no image")
    names = tmp_path / "classes.txt"
    names.write_text("red\nblue\ngreen\n")
    out = tmp_path / "run"
    options = ("--skip-bad", "--exif-orientation", "--classes", str(names), "--data", str(images))
    result = fit(base, out, *options)
    assert result.exit_code == 0, result.output
    config = json.loads((out / "exit_config.json").read_text())
    assert config["class_names"] == ["red", "blue", "green"]
    names.unlink()
    found = evaluate(base, out, "--split", "train")
    assert [row["samples"] for row in found["classes"]] == [13, 14, 14]
    record = json.loads((out / "evaluation.json").read_text())
    assert record["classes"] == ["red", "blue", "green"]
    assert record["config"]["skip_bad"] is True
    assert record["config"]["exif_orientation"] is True

    other = tmp_path / "other.txt"
    other.write_text("blue\ngreen\nred\n")
    error = evaluate(base, out, "--classes", str(other))
    assert "Class 0 is 'red' in the network and 'blue' in loader" in str(error)
    cows = folder(tmp_path / "cows")
    (cows / "green").rename(cows / "grean")
    error = evaluate(base, out, "--data", str(cows))
    assert "'green' is no class folder (did you mean 'grean'?)" in str(error)


def test_sweep_and_compare_take_the_options_of_images(base, tmp_path):
    names = tmp_path / "classes.txt"
    names.write_text("red\nblue\ngreen\n")
    shared = (
        *("--data", f"{base}/images", "--classes", str(names), "--mean", "0.5", "--epochs", "1"),
        *("--strategy", "linear", "--num-exits", "1", "--batch-size", "60"),
    )
    network = f"{base}/net.py:small"
    result = run("sweep", network, "--out", f"{tmp_path}/s", *shared, "--alphas", "0.5")
    assert result.exit_code == 0, result.output
    more = ("--methods", "shallow-deep")
    result = run("compare", network, "--out", f"{tmp_path}/c", *shared, *more)
    assert result.exit_code == 0, result.output
    for path in ("s/sweep.json", "c/comparison.json"):
        record = json.loads((tmp_path / path).read_text())
        assert record["classes"] == ["red", "blue", "green"]
        assert record["network"]["image_shape"] == [3, 10, 12]
        assert record["config"]["mean"] == "0.5"


@pytest.mark.parametrize(
    ("classes", "files", "said"),
    [
        (("a", "b", "c"), ("01", "02", "10"), 0),
        (("a", "b", "c"), ("1", "2", "10"), 1),
        (("1", "2", "10"), ("01", "02", "10"), 1),
        (("B", "a", "c"), ("01", "02", "10"), 1),
        (("a", "b", "c"), ("x", "Y", "z"), 1),
    ],
)
def test_an_order_that_changed_since_the_fit_is_said(base, tmp_path, caplog, classes, files, said):
    """Runs of 0.1.0 have no class names; its order of names differs where numbers or case do."""
    images = tmp_path / "images"
    for name in classes:
        for index in range(20):
            path = images / name / f"p{index:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (12, 10), (index, 0, 0)).save(path)
        for file in files:
            Image.new("RGB", (12, 10)).save(images / name / f"q{file}.png")
    result = fit(base, tmp_path / "run", "--data", str(images))
    assert result.exit_code == 0, result.output
    config = tmp_path / "run" / "exit_config.json"
    evaluate(base, tmp_path / "run")
    assert "0.1.0" not in caplog.text
    content = {**json.loads(config.read_text()), "class_names": None}
    del content["content_sha256"]
    config.write_text(json.dumps(content))
    with caplog.at_level(logging.WARNING, "leenet_fx"):
        evaluate(base, tmp_path / "run")
    assert caplog.text.count("fitted by version 0.1.0") == said


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--mean", "grey"), 1, "--mean must be like 0.5 or"),
        (("--std", "1,2"), 1, "std must be one number or one for each of 3 channels"),
        (("--std", "0"), 1, "std must be greater than 0"),
        (("--interpolation", "cubic"), 2, "Did you mean 'bicubic'"),
        (("--classes", "nowhere.txt"), 1, "Class names 'nowhere.txt' cannot be read"),
        (("--data", "digits", "--exif-orientation"), 1, "are for folders and tar files"),
    ],
)
def test_options_that_do_not_fit_are_one_clear_error(
    base, tmp_path, capsys, monkeypatch, options, code, message
):
    arguments = ("--out", str(tmp_path / "x"), "--data", f"{base}/images", *options)
    found, error = fails(capsys, monkeypatch, "fit", f"{base}/net.py:small", *arguments)
    assert found == code
    assert message in error
    assert not (tmp_path / "x").exists()


def test_a_damaged_transform_is_an_error(tmp_path):
    assert read_transform(tmp_path) is None
    for text in ("{", "[]", '{"mean": [0.5]}'):
        (tmp_path / "transform.json").write_text(text)
        with pytest.raises(StorageError, match=r"transform.json' is (damaged|not JSON)"):
            read_transform(tmp_path)


def test_values_are_parsed():
    assert transform_values(TransformOptions()) == {"interpolation": None}
    given = transform_values(TransformOptions(mean="0.1, 0.2,0.3", std="1", interpolation="box"))
    assert given == {"mean": [0.1, 0.2, 0.3], "std": [1.0], "interpolation": "box"}


def test_a_group_inherits_what_the_call_does_not_give():
    class Call:
        def get_parameter_source(self, name):
            from click.core import ParameterSource

            return ParameterSource.COMMANDLINE if name == "root" else ParameterSource.DEFAULT

    group = DataSetOptions(root="here")
    found = inherited(Call(), group, {"root": "there", "skip_bad": True, "epochs": 3})
    assert found == DataSetOptions(root="here", skip_bad=True)


def test_images_of_the_right_size_are_not_said_to_be_resized(base, caplog):
    data = leenet_fx.open_data(base / "images")
    for shape, said in (((3, 10, 12), 0), ((3, 12, 10), 1)):
        caplog.clear()
        config = transform_config(torch.nn.Identity(), shape)
        assert build_transform(config)(data.splits["train"][0][0]).shape == shape
        warn_if_resized(data, config)
        assert len(caplog.records) == said
