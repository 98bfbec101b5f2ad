"""Results of benchmarks as JSON and Markdown."""

import json

from leenet_fx.cli.output import print_json
from leenet_fx.environment import environment
from leenet_fx.report.results import Criterion, Result


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_result_is_written_as_json_and_markdown(tmp_path):
    result = Result(
        "make it",
        [{"a": 1, "b": 0.5, "on": True}, {"a": 2, "c": None, "d": (0.25, 123456.0)}],
        [Criterion("speed", 12.3456, "s", "≤ 20", True), Criterion("n", 3, "", "> 3", False)],
        environment(),
    )
    result.write(tmp_path / "deep" / "x.json", "Title")
    written = json.loads((tmp_path / "deep" / "x.json").read_text())
    assert written == json.loads(json.dumps(result.to_dict()))
    assert written["criteria"][1] == {
        "name": "n",
        "value": 3,
        "unit": "",
        "target": "> 3",
        "met": False,
    }
    lines = (tmp_path / "deep" / "x.md").read_text().splitlines()
    assert lines[0] == "# Title"
    tables = [cells(line) for line in lines if line.startswith("|") and not line.startswith("|:")]
    assert tables == [
        ["criterion", "value", "target", "met"],
        ["speed", "12.35 s", "≤ 20", "yes"],
        ["n", "3", "> 3", "no"],
        ["a", "b", "on", "c", "d"],
        ["1", "0.5", "yes", "", ""],
        ["2", "", "", "", "0.25, 1.235e+05"],
    ]


def test_markdown_may_show_another_table(tmp_path):
    result = Result("make it", [{"a": 1}], [], {"python": "3"})
    text = result.to_markdown("Title", [{"shown": "007"}])
    assert "007" in text
    assert "| a" not in text


def test_infinity_is_written_as_strict_json(capsys):
    result = Result("c", [{"a": float("inf")}], [Criterion("n", float("nan"), "", "", False)], {})
    for write in (lambda: print(result.to_json()), lambda: print_json(result.to_dict())):
        write()
        written = json.loads(capsys.readouterr().out, parse_constant=lambda _: "not JSON")
        assert written["rows"] == [{"a": {"__float__": "inf"}}]
        assert written["criteria"][0]["value"] == {"__float__": "nan"}
