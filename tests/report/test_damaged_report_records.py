"""Whatever happened to a record, a page shows what was measured or there is an error of ours."""

import json
import random
from pathlib import Path

import pytest
from mutations import mutated_bytes, mutated_text, mutated_values

from leenet_fx import EarlyExitError, InputError, StorageError
from leenet_fx.report.page import write_page
from leenet_fx.report.records import FILES, read_records
from leenet_fx.storage.json_files import to_json

STORED = Path(__file__).parents[1] / "stored" / "schema1"


@pytest.mark.parametrize("kind", FILES)
def test_damaged_records(tmp_path, kind):
    (tmp_path / FILES[kind]).write_text((STORED / FILES[kind]).read_text())
    (expected,) = read_records(tmp_path)
    text = to_json(expected, indent=1)
    complete, generator = json.loads(text), random.Random(5)
    for step in range(45):
        damaged = (
            mutated_bytes(text.encode(), generator),
            mutated_values(complete, generator).encode(),
            mutated_text(text, generator),
        )[step % 3]
        (tmp_path / FILES[kind]).write_bytes(damaged)
        try:
            found = read_records(tmp_path)
        except EarlyExitError:
            continue
        assert found == [expected]


@pytest.mark.parametrize("kind", FILES)
def test_values_without_a_digest_are_valid_or_an_error_of_ours(tmp_path, kind):
    content = json.loads((STORED / FILES[kind]).read_text())
    generator = random.Random(6)
    for _ in range(40):
        (tmp_path / FILES[kind]).write_text(mutated_values(content, generator))
        try:
            (record,) = read_records(tmp_path)
        except EarlyExitError:
            continue
        assert isinstance(record[kind]["backbone_accuracy"], (int, float))


def test_parts_that_do_not_belong_together_are_an_error(tmp_path):
    (tmp_path / "evaluation.json").write_text((STORED / "evaluation.json").read_text())
    (record,) = read_records(tmp_path)
    record["evaluation"]["classes"][0]["exit_counts"] = [1]
    with pytest.raises(InputError, match="Record 1 has values that do not belong together"):
        write_page(tmp_path / "page.html", [record], "title")
    assert not (tmp_path / "page.html").exists()


def test_a_number_in_quotes_is_named(tmp_path):
    content = json.loads((STORED / "sweep.json").read_text())
    content["sweep"]["points"][0]["accuracy"] = "0.5"
    (tmp_path / "sweep.json").write_text(json.dumps(content))
    with pytest.raises(StorageError, match=r"'sweep.points.0.accuracy': .*, found '0.5'"):
        read_records(tmp_path)
