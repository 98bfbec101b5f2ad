"""Whatever happened to a record, reading it returns what was written or raises our own error."""

import json
import random
from pathlib import Path

import pytest
from helpers import attached
from mutations import mutated_bytes, mutated_text, mutated_values

from leenet_fx import EarlyExitError, StorageError
from leenet_fx.evaluation.comparison_file import ComparisonFile
from leenet_fx.evaluation.upgrade import upgrade_record
from leenet_fx.storage.fingerprint import backbone_digest
from leenet_fx.storage.json_files import DIGEST, to_json

STORED = Path(__file__).parents[1] / "stored" / "schema1" / "comparison.json"


@pytest.fixture(scope="module")
def network():
    return attached()


@pytest.fixture(scope="module")
def content(network):
    """A comparison on `network`, with few of the stored runs."""
    record = upgrade_record(json.loads(STORED.read_text()), STORED)
    record["comparison"]["runs"] = record["comparison"]["runs"][:2]
    record["comparison"]["rows"] = record["comparison"]["rows"][:1]
    record["fingerprint"] |= {
        "backbone": backbone_digest(network),
        "image_shape": list(network.spec.image_shape),
        "classes": network.spec.num_classes,
    }
    return record


def opened(path, network, content):
    values = content["fingerprint"]
    return ComparisonFile(path, {}, network, values["backbone_accuracy"], values["samples"]).runs


def test_damaged_comparisons(tmp_path, network, content):
    path, generator = tmp_path / "comparison.json", random.Random(3)
    text = to_json(content, indent=1)
    path.write_text(text)
    expected = opened(path, network, content)
    assert len(expected) == 2 + len(content["other_runs"])
    complete = json.loads(text)
    for step in range(120):
        damaged = (
            mutated_bytes(text.encode(), generator),
            mutated_values(complete, generator).encode(),
            mutated_text(text, generator),
        )[step % 3]
        path.write_bytes(damaged)
        try:
            found = opened(path, network, content)
        except EarlyExitError:
            continue
        assert found == expected


def test_values_without_a_digest_are_valid_or_an_error_of_ours(tmp_path, network, content):
    path, generator = tmp_path / "comparison.json", random.Random(4)
    assert DIGEST not in content
    for _ in range(60):
        path.write_text(mutated_values(content, generator))
        try:
            runs = opened(path, network, content)
        except EarlyExitError:
            continue
        for run in runs.values():
            assert isinstance(run.label, str)
            assert all(isinstance(point.accuracy, (int, float)) for point in run.points)


def test_a_key_of_a_run_is_named(tmp_path, network, content):
    path = tmp_path / "comparison.json"
    damaged = json.loads(json.dumps(content))
    damaged["comparison"]["runs"][1]["points"][0]["accuracy"] = "0.9"
    path.write_text(json.dumps(damaged))
    with pytest.raises(StorageError, match=r"'comparison.runs.1.points.0.accuracy': .* '0.9'"):
        opened(path, network, content)
