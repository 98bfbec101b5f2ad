"""Records on disk: written once, read with their kind, and upgraded."""

import json
import shutil
from pathlib import Path

import pytest
from helpers import attached, data
from PIL import Image

import leenet_fx
from leenet_fx import InputError, StorageError
from leenet_fx.evaluation.upgrade import SCHEMA
from leenet_fx.report.records import (
    describe_network,
    make_record,
    read_records,
    sample_images,
    write_record,
)

STORED = Path(__file__).parents[1] / "stored" / "schema1"
CLASSES = ["a", "b", "c", "d", "e"]


@pytest.fixture(scope="module")
def network():
    return attached()


@pytest.fixture(scope="module")
def evaluation(network):
    return leenet_fx.evaluate(network, [data(20)])


def test_record_is_read_as_it_was_written(tmp_path, network, evaluation):
    record = make_record(evaluation, network, command="c", config={"a": 1}, classes=CLASSES)
    assert record["schema"] == SCHEMA
    path = write_record(tmp_path, record)
    assert path == tmp_path / "evaluation.json"
    assert read_records(tmp_path) == [json.loads(json.dumps(record))]
    with pytest.raises(StorageError, match="exists already"):
        write_record(tmp_path, record)
    write_record(tmp_path, {**record, "command": "d"}, overwrite=True)
    assert read_records(tmp_path)[0]["command"] == "d"


def test_records_of_schema_1_are_upgraded():
    records = read_records(STORED)
    assert [(record["kind"], record["schema"]) for record in records] == [
        ("comparison", SCHEMA),
        ("sweep", SCHEMA),
        ("evaluation", SCHEMA),
    ]


def test_damaged_and_missing_records_raise(tmp_path):
    with pytest.raises(
        InputError, match=r"has neither comparison\.json nor sweep\.json nor evaluation"
    ):
        read_records(tmp_path)
    shutil.copy(STORED / "sweep.json", tmp_path / "evaluation.json")
    with pytest.raises(StorageError, match="is not a record of kind 'evaluation'"):
        read_records(tmp_path)
    (tmp_path / "evaluation.json").write_text("{")
    with pytest.raises(StorageError, match="is not JSON"):
        read_records(tmp_path)
    (tmp_path / "evaluation.json").write_text('{"kind": "evaluation", "schema": 99}')
    with pytest.raises(StorageError, match="has schema 99; expected 1 or 2"):
        read_records(tmp_path)


def test_network_is_described_with_its_exits_and_candidates(network):
    description = describe_network(network)
    assert json.loads(json.dumps(description)) == description
    assert description["placement"] == list(network.spec.placement.names)
    assert [row["name"] for row in description["exits"]] == [*description["placement"], "final"]
    shares = [candidate["relative_flops"] for candidate in description["candidates"]]
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[-1] <= 1


def test_sample_images_are_those_of_the_examples(evaluation):
    dataset = [(Image.new("RGB", (300, 150)), index % 5) for index in range(20)]
    images = sample_images(evaluation, dataset, CLASSES)
    assert len(images) == len(evaluation.exits)
    for row, samples in zip(evaluation.exits, images, strict=True):
        assert len(samples) == len(row.examples)
        for example, sample in zip(row.examples, samples, strict=True):
            assert sample["src"].startswith("data:image/png;base64,")
            assert sample["label"] == CLASSES[example.label]
            assert sample["predicted"] == CLASSES[example.predicted]
            assert sample["correct"] == (example.label == example.predicted)
    assert any(images)
