"""Interactive charts: what they hold, and how a browser shows a page with them."""

import html
import json
import math
import re
import shutil
import subprocess
import sys

import pytest
from drawings import comparison
from helpers import attached, data

import leenet_fx
from leenet_fx import MaxProbability
from leenet_fx.report import charts
from leenet_fx.report.page import write_page
from leenet_fx.report.records import make_metadata, make_record

HOSTILE = "</script><script>document.title = 'taken over'</script>"
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)

PROBE = """<script>
const errors = [];
addEventListener("error", (event) => errors.push(event.message));
console.error = (...parts) => errors.push(parts.join(" "));
addEventListener("load", () => setTimeout(() => {
  const found = {
    width: innerWidth,
    content: document.documentElement.scrollWidth,
    title: document.title,
    charts: document.querySelectorAll(".chart:not([hidden])").length,
    pictures: document.querySelectorAll(".static[hidden]").length,
    errors: errors,
  };
  parent.document.documentElement.dataset.found = JSON.stringify(found);
}, 1000));
</script>"""


@pytest.fixture(scope="module")
def record():
    ee = attached()
    ee.policy = MaxProbability([0.25, 0.3, 0.3, 0.4])
    found = leenet_fx.evaluate(ee, [data(60)])
    names = [HOSTILE, "b", "a name that is much longer than a phone is wide " * 3, "d", "e"]
    return make_record(found, ee, command=f"c {HOSTILE}", config={"a": HOSTILE}, classes=names)


@pytest.fixture(scope="module")
def compared():
    metadata = make_metadata(attached(), command="c", config={}, classes=list("abcde"))
    found = comparison(labels=(HOSTILE, "b")).to_dict()
    return {"kind": "comparison", **metadata, "images": None, "comparison": found}


def columns(text):
    """The columns of all data sources of a chart."""

    def sources(value):
        if isinstance(value, dict):
            if value.get("name") == "ColumnDataSource":
                yield dict(value["attributes"]["data"]["entries"])
            for item in value.values():
                yield from sources(item)
        elif isinstance(value, list):
            for item in value:
                yield from sources(item)

    return list(sources(json.loads(text)))


def test_chart_of_thresholds_has_threshold_accuracy_flops_and_time(record):
    evaluation = record["evaluation"]
    evaluation = {**evaluation, "time_ratio": 0.75}
    text = charts.threshold_chart(evaluation)
    texts = {
        tuple(source[f"value{place}"][index] for place in range(4))
        for source in columns(text)
        if "value3" in source
        for index in range(len(source["x"]))
    }
    points = evaluation["curve"]["points"]
    for point in points:
        threshold = point["threshold"]
        assert (
            f"{threshold:.4g}" if math.isfinite(threshold) else "no early exits",
            f"{100 * point['accuracy']:.2f} %",
            f"{point['relative_flops']:.3f}",
            "not measured",
        ) in texts
    assert any("0.25, 0.3, 0.4" in values for values in texts)
    assert "0.75" in text
    assert charts.threshold_chart({**evaluation, "curve": None}) is None


def test_nothing_in_a_chart_ends_its_script(record, compared):
    text = charts.comparison_chart(compared["comparison"])
    assert "<" not in text
    assert any(HOSTILE in source.get("value0", ()) for source in columns(text))
    assert "<" not in charts.threshold_chart(record["evaluation"])


def test_page_without_the_library_is_static_and_says_how_to_get_it(record, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bokeh.embed", None)
    path = tmp_path / "report.html"
    write_page(path, [record], "Report")
    text = path.read_text()
    assert "<script" not in text
    assert "pip install &#39;leenet-fx[plot]&#39;" in text
    write_page(path, [record], "Report", interactive=False)
    assert "pip install" not in path.read_text()


@pytest.mark.skipif(not BROWSER, reason="needs chromium or Chrome")
def test_page_in_a_browser_as_wide_as_a_phone(record, compared, tmp_path):
    path = tmp_path / "report.html"
    write_page(path, [compared, record], "Report")
    page = path.read_text().replace("<head>", f"<head>{PROBE}", 1)
    frame = tmp_path / "frame.html"
    # A window is at least 500 pixels wide.
    frame.write_text(
        f'<!DOCTYPE html><iframe width="390" height="800" srcdoc="{html.escape(page)}"></iframe>'
    )
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=10000"]
    run = subprocess.run([*command, frame.as_uri()], capture_output=True, text=True, timeout=120)
    match = re.search(r'data-found="([^"]*)"', run.stdout)
    if match is None and not run.stdout.strip():
        pytest.skip(f"the browser does not start: {run.stderr[-200:]}")
    assert match is not None, run.stderr
    found = json.loads(html.unescape(match[1]))
    assert found.pop("content") <= 390
    assert found == {
        "width": 390,
        "title": "Report",
        "charts": 2,
        "pictures": 2,
        "errors": [],
    }
