"""The report page, from records of a tiny network."""

import copy
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
import torch
from networks import images, tiny
from torch.utils.data import DataLoader, TensorDataset

import leenet_fx
from leenet_fx import GateThreshold, InputError
from leenet_fx.evaluation.compare import Comparison, FrontierPoint, MethodRun
from leenet_fx.evaluation.sweep import sweep
from leenet_fx.report import figures
from leenet_fx.report.page import write_page
from leenet_fx.report.records import make_frame, make_record

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


def labelled(n, classes):
    """Every class occurs, and most answers are wrong."""
    return DataLoader(
        TensorDataset(images(n, 3, 16, 16, seed=2), torch.arange(n) % classes), batch_size=32
    )


def attached(classes=5):
    ee = leenet_fx.attach(tiny(classes=classes), "every", example_inputs=images(1, 3, 16, 16))
    gates = ee.all_exits(images(64, 3, 16, 16)).gate_logits.detach()
    ee.policy = GateThreshold(gates.quantile(0.7, dim=0).tolist())
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
    def row(outlet):
        return [
            {"src": PIXEL, "label": NAMES[1], "answer": NAMES[1], "right": True},
            {"src": PIXEL, "label": NAMES[1], "answer": NAMES[outlet % 5], "right": False},
        ]

    return evaluated(pictures=[row(outlet) for outlet in range(4)] + [[]])


@pytest.fixture(scope="module")
def swept():
    ee = attached()
    loader = labelled(64, 5)
    found = sweep(
        ee, loader, loader, alphas=(0.0, 0.5, 1.0), seeds=(0, 1), epochs=1, timed=32, progress=False
    )
    record = make_record(found, ee, command="leenet-fx sweep", config={}, classes=NAMES)
    return json.loads(json.dumps(record))


def comparison(seeds=2, labels=("<b>best</b>", "b", "c", "d", "e", "f", "never leaves"), **fields):
    """Frontiers one below the other; the last has no operating point."""
    runs = []
    for place, label in enumerate(labels):
        for seed in range(seeds):
            lost = 0.004 * place + 0.002 * seed
            points = tuple(
                FrontierPoint(b, 0.9 - (1 - b) ** 2 - lost, b, (1 - b, b)) for b in (0.9, 0.4, 0.7)
            )
            if label == "never leaves":
                points = ()
            runs.append(
                MethodRun(label, "ztw", seed, "threshold", 0.9, ("blocks.0",), 1.25, points, "")
            )
    return Comparison("TinyNet", 0.9, 400, 5, tuple(runs), **fields)


@pytest.fixture(scope="module")
def compared():
    frame = make_frame(
        attached(), command="leenet-fx compare <net>", config={"methods": "all"}, classes=NAMES
    )
    found = comparison(skipped={"pteenet": "no place for <convolutions>"})
    record = {"kind": "comparison", **frame, "images": None, "comparison": found.to_dict()}
    return json.loads(json.dumps(record))


def page(folder, *records, title="Report"):
    path = folder / "report.html"
    write_page(path, list(records), title)
    return path.read_text(encoding="utf-8")


class Reader(HTMLParser):
    """Checks that tags are closed in order, and keeps attributes and text."""

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
        if not {"style", "svg"} & set(self.open):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def drawings(text):
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, re.S)]


def drawn_words(svg):
    return [
        "".join(node.itertext()).strip() for node in svg.iter("{http://www.w3.org/2000/svg}text")
    ]


def test_a_page_is_whole_by_itself(tmp_path, swept, evaluation, compared):
    text = page(tmp_path, compared, swept, evaluation)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    reader = Reader(text)
    assert "script" not in {tag for tag, _ in reader.tags}
    for _, attributes in reader.tags:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/"))
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"@import|url\((?!#)", text)
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = re.findall(r'(?:href="|url\()#([^")]+)', text)
    assert set(targets) <= set(ids)


def test_figures_are_well_formed_and_say_what_they_are(tmp_path, swept, evaluation):
    found = drawings(page(tmp_path, swept, evaluation))
    # Trade-off, trends, network; all images, classes. The network is the same: shown once.
    assert len(found) == 5
    assert all(svg.get("role") == "img" and svg.get("aria-label") for svg in found)
    tradeoff, trends, network, _, by_class = map(drawn_words, found)
    assert {"α=0", "α=1"} & set(tradeoff)
    assert "same shares at random" in tradeoff
    assert "time, relative" in trends
    assert any(word.startswith("1: blocks.1, ") for word in network)
    assert "cost in $ and $" in by_class


def test_time_is_left_out_where_none_was_measured(tmp_path, swept):
    record = copy.deepcopy(swept)
    for row in record["sweep"]["medians"]:
        row["time_ratio"] = None
    text = page(tmp_path, record)
    assert "time, relative" not in drawn_words(drawings(text)[1])
    assert "not measured" in Reader(text).text


def test_the_numbers_of_an_evaluation_are_on_it(tmp_path, evaluation):
    text = Reader(page(tmp_path, evaluation)).text
    found = evaluation["evaluation"]
    for key in ("accuracy", "plain_accuracy", "random_accuracy", "auroc", "calibration_error"):
        assert f"{100 * found[key]:.2f}" in text
    assert f"{100 * found['relative_flops']:.1f} %" in text
    assert f"{100 * found['time_ratio']:.0f} %" in text
    assert f"{1000 * found['timing']['plain_slope']:.3g} ms" in text
    for index, outlet in enumerate(found["outlets"]):
        here = "final" if index == 4 else f"exit {index}"
        cost, share = f"{outlet['relative_flops']:.3f}", f"{100 * outlet['share']:.1f}"
        assert f"{here} {outlet['name']} {cost} {outlet['count']} {share}" in text
        for label, answer, count in outlet["confusion"][:1]:
            assert f"{NAMES[label]} → {NAMES[answer]}: {count}" in text
    for said in ("✓ right", "✗ wrong", '"seed": 7', "leenet-fx evaluate <run>", "blocks.2"):
        assert said in text
    assert evaluation["environment"]["torch"] in text


def test_a_sweep_shows_every_alpha_and_the_cheapest_that_is_good_enough(tmp_path, swept):
    text = Reader(page(tmp_path, swept)).text
    found = swept["sweep"]
    rows = found["medians"]
    for row in rows:
        assert (
            f"{row['alpha']:g} {100 * row['accuracy']:.2f} "
            f"({100 * row['accuracy_low']:.2f}–{100 * row['accuracy_high']:.2f})" in text
        )
    good = [row for row in rows if row["accuracy"] >= found["plain_accuracy"] - 0.01]
    if good:
        best = min(good, key=lambda row: row["relative_flops"])
    else:
        best = max(rows, key=lambda row: row["accuracy"])
    assert f"those of α = {best['alpha']:g}:" in text


def test_a_comparison_shows_every_method_losers_too(tmp_path, compared):
    reader = Reader(page(tmp_path, compared))
    text, rows = reader.text, compared["comparison"]["rows"]
    assert [row["label"] for row in rows][-1] == "never leaves"
    for row in rows:
        low, high = min(row["areas"]), max(row["areas"])
        costs = [row[f"flops_at_{lost}"] for lost in (0, 1, 3)]
        answers = [row[f"accuracy_at_0.{tenth}"] for tenth in range(3, 10)]
        shown = ["–" if cost is None else f"{cost:.3f}" for cost in costs]
        shown += ["–" if answer is None else f"{100 * answer:.2f}" for answer in answers]
        assert (
            f"{row['label']} {row['area']:.3f} ({low:.3f}–{high:.3f}) {' '.join(shown)} 1.2 1"
            in text
        )
    # The best has 1.1 and 1.2 points less than the plain model at 0.9 of the FLOPs.
    assert "Best method <b>best</b>" in text
    assert "Its FLOPs – no point loses 1 point or less" in text
    assert "No method loses 1 point of accuracy or less." in text
    assert "Plain model 90.00 %" in text
    assert "Methods 7 compared, 2 seeds" in text
    assert "pteenet: no place for <convolutions>" in text
    assert "leenet-fx compare <net>" in text


def test_a_comparison_names_its_best_and_its_cheapest(tmp_path, compared):
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
    # As `leenet_fx.compare` leaves it to those who call it from Python.
    record = {**compared, "network": None, "environment": {}, "comparison": found}
    text = page(tmp_path, json.loads(json.dumps(record)))
    said = Reader(text).text
    assert "Methods on net" in said
    assert "Best method steady" in said
    assert "Its FLOPs 80.0 % of the plain model's, 1 point lost at most" in said
    assert "frugal spends the least: 55.0 % of the FLOPs" in said
    assert "Methods 2 compared, one seed" in said
    assert "One seed." in said
    assert "The network and what its exits cost" not in said
    assert "Environment" not in said
    assert len(drawings(text)) == 2


def test_figures_of_frontiers_name_five_and_show_all(tmp_path, compared):
    together, apart, _ = drawings(page(tmp_path, compared))
    words = drawn_words(together)
    assert {"<b>best</b>", "b", "c", "d", "e", "1 other", "plain model"} <= set(words)
    assert not {"f", "never leaves"} & set(words)
    titles = [word for word in drawn_words(apart) if word in ("<b>best</b>", *"bcdef")]
    assert titles == ["<b>best</b>", *"bcdef"]
    assert all(svg.get("role") == "img" and svg.get("aria-label") for svg in (together, apart))
    # Where no method has a point, the plain model alone is drawn.
    nothing = comparison(labels=("never leaves",)).to_dict()
    for draw in (figures.frontiers, figures.highlights):
        assert "<svg" in draw(nothing, "nothing")


def test_bands_are_the_best_so_far_and_straight_between():
    def run(seed, *points):
        made = tuple(FrontierPoint(x, y, x, (1.0,)) for x, y in points)
        return MethodRun("a", "ztw", seed, "threshold", 0.9, ("b",), 1.0, made, "")

    runs = (
        run(0, (0.6, 0.7), (0.2, 0.5), (0.4, 0.4), (0.8, 0.9)),
        run(1, (0.4, 0.8), (0.6, 0.6)),
    )
    found = figures.bands(Comparison("net", 0.9, 40, 5, runs).to_dict())["a"]
    assert found.cost == [0.4, 0.6, 0.8]
    assert found.low == pytest.approx([50, 70, 80])
    assert found.high == pytest.approx([80, 80, 90])
    assert found.middle == pytest.approx([65, 75, 85])


def test_names_are_text_and_not_markup(tmp_path, evaluation):
    text = page(tmp_path, evaluation, title="<i>Title</i>")
    assert "<b>" not in text
    assert "<i>" not in text
    assert "&lt;b&gt;bold&lt;/b&gt;" in text
    assert NAMES[2] in Reader(text).text


def test_of_many_classes_the_earliest_and_the_latest_are_drawn(tmp_path):
    names = [f"kind {i}" for i in range(30)]
    text = page(tmp_path, evaluated(30, n=300, names=names))
    by_class = drawn_words(drawings(text)[1])
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


def test_bad_records_are_refused(tmp_path, evaluation, swept, compared):
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
        ([{**evaluation, "images": [[]]}], "images of 1 outlets; expected 5"),
        ([{**evaluation, "images": [[{}], [], [], [], []]}], "lacks src, label"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            write_page(tmp_path / "never.html", records, "Report")
    remote = copy.deepcopy(evaluation)
    remote["images"][0][0]["src"] = "https://example.org/cat.png"
    with pytest.raises(InputError, match="expected a data: URI"):
        write_page(tmp_path / "never.html", [remote], "Report")
    assert not (tmp_path / "never.html").exists()
