"""The report page, from records of a tiny network."""

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from drawings import comparison, drawings, drawn_words
from networks import images, tiny
from torch.utils.data import DataLoader, TensorDataset

import leenet_fx
from leenet_fx import GateThreshold, InputError
from leenet_fx.evaluation.comparison import Comparison
from leenet_fx.evaluation.frontier import FrontierPoint, MethodRun
from leenet_fx.evaluation.sweep import sweep
from leenet_fx.report.page import write_page
from leenet_fx.report.records import make_metadata, make_record, read_records

NAMES = [
    "plain",
    "<b>bold</b>",
    'a "quote" & more',
    "cost in $ and $",
    "猫 with a name that is very long",
]
VOID = {"meta", "img", "br", "link"}
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
    "YPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)


def wilson(successes, n, z=1.959964):
    """Wilson's score interval at 95 %, from its formula."""
    share = successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return middle - half, middle + half


def labelled(n, classes):
    """Images of every class, most of which are classified wrongly."""
    return DataLoader(
        TensorDataset(images(n, 3, 16, 16, seed=2), torch.arange(n) % classes), batch_size=32
    )


def attached(classes=5):
    ee = leenet_fx.attach(tiny(classes=classes), "every", example_inputs=images(1, 3, 16, 16))
    gate_logits = ee.all_exits(images(64, 3, 16, 16)).gate_logits.detach()
    ee.policy = GateThreshold(gate_logits.quantile(0.7, dim=0).tolist())
    return ee


def evaluated(classes=5, n=64, names=NAMES, pictures=None):
    ee = attached(classes)
    found = leenet_fx.evaluate(ee, labelled(n, classes), sizes=[32, 64])
    record = make_record(
        found,
        ee,
        command="leenet-fx evaluate <run>",
        config={"seed": 7, "data": {"name": "made-up"}},
        classes=names,
        images=pictures,
    )
    return json.loads(json.dumps(record))


@pytest.fixture(scope="module")
def evaluation():
    def row(index):
        return [
            {
                "src": PIXEL,
                "label": NAMES[1],
                "predicted": NAMES[1],
                "correct": True,
                "confidence": 0.876,
            },
            {"src": PIXEL, "label": NAMES[1], "predicted": NAMES[index % 5], "correct": False},
        ]

    return evaluated(pictures=[row(index) for index in range(4)] + [[]])


@pytest.fixture(scope="module")
def swept():
    ee = attached()
    loader = labelled(64, 5)
    found = sweep(
        ee, loader, loader, alphas=(0.0, 0.5, 1.0), seeds=(0, 1), epochs=1, timed=32, progress=False
    )
    record = make_record(found, ee, command="leenet-fx sweep", config={}, classes=NAMES)
    return json.loads(json.dumps(record))


@pytest.fixture(scope="module")
def compared():
    metadata = make_metadata(
        attached(), command="leenet-fx compare <net>", config={"methods": "all"}, classes=NAMES
    )
    found = comparison(skipped={"pteenet": "no place for <convolutions>"})
    record = {"kind": "comparison", **metadata, "images": None, "comparison": found.to_dict()}
    return json.loads(json.dumps(record))


def page(folder, *records, title="Report", interactive=False):
    path = folder / "report.html"
    write_page(path, list(records), title, interactive=interactive)
    return path.read_text(encoding="utf-8")


def scripts(reader):
    return [attributes for tag, attributes in reader.tags if tag == "script"]


class Reader(HTMLParser):
    """Parser that checks the nesting of tags, and stores their attributes and the text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "svg", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def test_page_is_self_contained(tmp_path, swept, evaluation, compared):
    text = page(tmp_path, compared, swept, evaluation, interactive=True)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    reader = Reader(text)
    assert all(set(attributes) <= {"type", "data-chart"} for attributes in scripts(reader))
    for _, attributes in reader.tags:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/"))
        assert not any(name.startswith("on") for name in attributes)
    text = re.sub(r"<script.*?</script>", "", text, flags=re.S)
    assert not re.search(r"@import|url\((?!#)", text)
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = re.findall(r'(?:href="|url\()#([^")]+)', text)
    assert set(targets) <= set(ids)


def test_figures_are_well_formed_and_described(tmp_path, swept, evaluation):
    found = drawings(page(tmp_path, swept, evaluation))
    # Trade-off, trends, network; thresholds, all images, classes, reliability. The shared network
    # is drawn once.
    assert len(found) == 8
    assert all(svg.get("role") == "img" and svg.get("aria-label") for svg in found)
    tradeoff, trends, network, frontier, thresholds, _, by_class, reliability = map(
        drawn_words, found
    )
    assert {"α=0", "α=1"} & set(tradeoff)
    assert "random exiting at the same exit rates" in tradeoff
    assert "time, relative" in trends
    assert any(word.startswith("1: blocks.1, ") for word in network)
    assert "cost in $ and $" in by_class
    assert {"one threshold for all exits", "in use", "backbone"} <= set(frontier)
    assert {"accuracy, %", "FLOPs, relative"} <= set(thresholds)
    assert {"exit 0", "final", "overall (adaptive)", "confidence"} <= set(reliability)


def test_time_is_not_plotted_if_not_measured(tmp_path, swept):
    record = copy.deepcopy(swept)
    for row in record["sweep"]["medians"]:
        row["time_ratio"] = None
    text = page(tmp_path, record)
    assert "time, relative" not in drawn_words(drawings(text)[1])
    assert "not measured" in Reader(text).text


def test_evaluation_section_has_its_numbers(tmp_path, evaluation):
    content = page(tmp_path, evaluation)
    words = [word for svg in drawings(content) for word in drawn_words(svg)]
    text = Reader(content).text
    found = evaluation["evaluation"]
    for key in ("accuracy", "backbone_accuracy", "random_accuracy", "auroc", "calibration_error"):
        assert f"{100 * found[key]:.2f}" in text
    assert f"{100 * found['relative_flops']:.1f} %" in text
    assert f"{100 * found['time_ratio']:.0f} %" in text
    assert f"{1000 * found['timing']['backbone_slope']:.3g} ms" in text
    for index, row in enumerate(found["exits"]):
        name = "final" if index == 4 else f"exit {index}"
        flops, share = f"{row['relative_flops']:.3f}", f"{100 * row['share']:.1f}"
        assert f"{name} {row['name']} {flops} {row['count']} {share}" in text
        for label, predicted, count in row["confusion"][:1]:
            assert f"{NAMES[label]} → {NAMES[predicted]}: {count}" in text
    assert "Overall accuracy (adaptive)" in text
    assert text.count("confidence 88 %") == 4
    low, high = wilson(found["accuracy"] * 64, 64)
    assert f"{100 * found['accuracy']:.2f} ({100 * low:.1f}–{100 * high:.1f})" in text
    for row in (*found["exits"], found):
        assert f"ECE {100 * row['calibration_error']:.1f} %" in " ".join(words)
    for phrase in ("✓ correct", "✗ wrong", '"seed": 7', "leenet-fx evaluate <run>", "blocks.2"):
        assert phrase in text
    assert evaluation["environment"]["torch"] in text


def test_sweep_section_has_every_alpha_and_the_cheapest_within_the_drop(tmp_path, swept):
    text = Reader(page(tmp_path, swept)).text
    found = swept["sweep"]
    rows = found["medians"]
    for row in rows:
        assert (
            f"{row['alpha']:g} {100 * row['accuracy']:.2f} "
            f"({100 * row['accuracy_low']:.2f}–{100 * row['accuracy_high']:.2f})" in text
        )
    allowed = [row for row in rows if row["accuracy"] >= found["backbone_accuracy"] - 0.01]
    if allowed:
        best = min(allowed, key=lambda row: row["relative_flops"])
    else:
        best = max(rows, key=lambda row: row["accuracy"])
    assert f"those of α = {best['alpha']:g}:" in text
    assert "selected on the test split (optimistic)" in text


def test_comparison_section_has_every_method(tmp_path, compared):
    reader = Reader(page(tmp_path, compared))
    text, rows = reader.text, compared["comparison"]["rows"]
    assert [row["label"] for row in rows][-1] == "no points"
    for row in rows:
        low, high = min(row["areas"]), max(row["areas"])
        costs = [row[f"flops_at_{drop}"] for drop in (0, 1, 3)]
        accuracies = [row[f"accuracy_at_0.{tenth}"] for tenth in range(3, 10)]
        shown = ["–" if cost is None else f"{cost:.3f}" for cost in costs]
        shown += ["–" if accuracy is None else f"{100 * accuracy:.2f}" for accuracy in accuracies]
        assert (
            f"{row['label']} {row['area']:.3f} ({low:.3f}–{high:.3f}) {' '.join(shown)} 1.2 1"
            in text
        )
    # The accuracy drops of the best method are 1.1 and 1.2 points at 0.9 of the FLOPs.
    assert "Best method <b>best</b>" in text
    assert "Its FLOPs – no operating point within a drop of 1 point" in text
    assert "No method has an accuracy drop of 1 point or less." in text
    assert "Backbone 90.00 %" in text
    assert "Methods 7 compared, 2 seeds" in text
    assert "pteenet: no place for <convolutions>" in text
    assert "leenet-fx compare <net>" in text


def test_comparison_section_names_the_best_and_the_cheapest_method(tmp_path, compared):
    runs = [
        MethodRun(label, "ztw", 0, "threshold", 0.9, ("b",), 1.0, points, "")
        for label, points in (
            (
                "steady",
                (FrontierPoint(0.2, 0.88, 0.2, (1.0,)), FrontierPoint(0.8, 0.9, 0.8, (1.0,))),
            ),
            ("frugal", (FrontierPoint(0.55, 0.89, 0.55, (1.0,)),)),
        )
    ]
    found = Comparison("net", 0.9, 40, 5, tuple(runs)).to_dict()
    # As written by `leenet_fx.compare` without metadata.
    record = {**compared, "network": None, "environment": {}, "comparison": found}
    text = page(tmp_path, json.loads(json.dumps(record)))
    words = Reader(text).text
    assert "Methods on net" in words
    assert "Best method steady" in words
    assert "Its FLOPs 80.0 % of the backbone's, accuracy drop of at most 1 point" in words
    assert "frugal needs the least: 55.0 % of the FLOPs" in words
    assert "Methods 2 compared, one seed" in words
    assert "One seed." in words
    assert "No cheap end: frugal (from 0.55). Below their cheapest operating point" in words
    for row in record["comparison"]["rows"]:
        del row["cheapest_flops"]  # as in records of earlier releases
    assert "No cheap end" not in Reader(page(tmp_path, record)).text
    assert "The network and the cost at its exits" not in words
    assert "Environment" not in words
    assert len(drawings(text)) == 2


def test_names_are_escaped(tmp_path, evaluation):
    text = page(tmp_path, evaluation, title="<i>Title</i>")
    assert "<b>" not in text
    assert "<i>" not in text
    assert "&lt;b&gt;bold&lt;/b&gt;" in text
    assert NAMES[2] in Reader(text).text


def test_earliest_and_latest_of_many_classes_are_drawn(tmp_path):
    names = [f"kind {i}" for i in range(30)]
    text = page(tmp_path, evaluated(30, n=300, names=names))
    by_class = drawn_words(drawings(text)[3])
    assert sum(word.startswith("kind ") for word in by_class) == 20
    assert "10 earliest and 10 latest of 30 classes" in by_class
    assert all(f">{name}</th>" in text for name in names)


def without(record, *path):
    found = copy.deepcopy(record)
    at = found
    for key in path[:-1]:
        at = at[key]
    del at[path[-1]]
    return found


def test_invalid_records_raise(tmp_path, evaluation, swept, compared):
    empty = {**compared["comparison"], "rows": [], "runs": []}
    for records, message in (
        ([], "at least one record"),
        ([7], "Record 1 is a int; expected a dict"),
        ([{**swept, "kind": "poem"}], "kind 'poem'; expected 'evaluation' or 'sweep' or"),
        ([swept, without(evaluation, "classes")], "Record 2, lacks classes; found kind"),
        ([without(evaluation, "evaluation")], "lacks evaluation"),
        ([without(evaluation, "network", "exits")], "Record 1, network, lacks exits"),
        ([without(swept, "sweep", "medians")], "Record 1, sweep, lacks medians"),
        ([without(compared, "comparison", "rows")], "Record 1, comparison, lacks rows"),
        ([{**compared, "comparison": empty}], "Record 1 is a comparison without runs"),
        ([{**swept, "network": None}], "Record 1, network, is a NoneType; expected a dict"),
        ([{**evaluation, "images": [[]]}], "images of 1 exits; expected 5"),
        ([{**evaluation, "images": [[{}], [], [], [], []]}], "lacks src, label"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            write_page(tmp_path / "never.html", records, "Report")
    remote = copy.deepcopy(evaluation)
    remote["images"][0][0]["src"] = "https://example.org/cat.png"
    with pytest.raises(InputError, match="expected a data: URI"):
        write_page(tmp_path / "never.html", [remote], "Report")
    assert not (tmp_path / "never.html").exists()


STORED = Path(__file__).parents[1] / "stored" / "schema1"


def test_records_of_schema_1_are_drawn(tmp_path):
    records = read_records(STORED)
    assert [record["kind"] for record in records] == ["comparison", "sweep", "evaluation"]
    text = page(tmp_path, *records)
    words = Reader(text).text
    # Frontiers, highlights, network; trade-off, trends, network; all images, classes.
    assert len(drawings(text)) == 8
    for row in json.loads((STORED / "comparison.json").read_text())["comparison"]["rows"]:
        assert f"{row['label']} {row['area']:.3f}" in words
    for row in json.loads((STORED / "sweep.json").read_text())["sweep"]["medians"]:
        assert f"{row['alpha']:g} {100 * row['accuracy']:.2f}" in words
    evaluation = json.loads((STORED / "evaluation.json").read_text())["evaluation"]
    for outlet in evaluation["outlets"]:
        flops, share = f"{outlet['relative_flops']:.3f}", f"{100 * outlet['share']:.1f}"
        assert f"{outlet['name']} {flops} {outlet['count']} {share}" in words
    for row in evaluation["classes"]:
        assert f"{100 * row['accuracy']:.2f} " in words
        assert f"{' '.join(map(str, row['left']))}" in words
