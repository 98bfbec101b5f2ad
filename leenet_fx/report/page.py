"""The report page: records of evaluations and sweeps as one HTML file that needs no other."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import Any

import jinja2

from leenet_fx.errors import InputError
from leenet_fx.report import figures
from leenet_fx.storage.files import write_atomically
from leenet_fx.text import percent, quantity

MOST_CONFUSIONS = 5
"""How many confusions of each outlet are listed."""

MAY_LOSE = 0.01
"""Accuracy that the α shown first of a sweep may lose."""

KINDS = ("evaluation", "sweep")
COMMON = ("kind", "command", "environment", "config", "network", "classes", "images")
PARTS = {
    "network": (
        *("model", "unit", "total", "exits", "candidates", "placement"),
        *("strategy", "branch", "image_shape", "num_classes"),
    ),
    "evaluation": (
        *("samples", "accuracy", "plain_accuracy", "random_accuracy", "relative_flops"),
        *("mean_exit", "auroc", "calibration_error", "time_ratio", "seconds", "plain_seconds"),
        *("outlets", "classes", "timing"),
    ),
    "sweep": ("method", "cost", "plain_accuracy", "samples", "outlets", "points", "medians"),
}


def write_page(path: Path, records: Sequence[dict[str, Any]], title: str) -> None:
    """Writes one page with a section for each record.

    Args:
        path: where to.
        records: of evaluations and sweeps, in the order to show them.
        title: of the page.

    Raises:
        InputError: there is no record, or one is not as expected.
        DependencyError: matplotlib is not installed.
        StorageError: `path` cannot be written.
    """
    if not records:
        raise InputError("A page needs at least one record.")
    sections: list[dict[str, Any]] = []
    networks: list[Any] = []
    for number, record in enumerate(records, start=1):
        _check(record, f"Record {number}")
        made = (
            _evaluation(record, number)
            if record["kind"] == "evaluation"
            else _sweep(record, number)
        )
        # A sweep and an evaluation of one network show it once.
        shown = record["network"] in networks
        network = None if shown else figures.network(record["network"], f"network-{number}")
        networks.append(record["network"])
        sections.append({**record, **made, "number": number, "network_figure": network})
    page = _environment().get_template("page.html.j2").render(title=title, sections=sections)
    write_atomically(path, page)


def _evaluation(record: Mapping[str, Any], number: int) -> dict[str, Any]:
    found = record["evaluation"]
    classes = record["classes"]
    lost = found["plain_accuracy"] - found["accuracy"]
    return {
        "heading": f"Evaluation of {record['network']['model']}",
        "key_figures": _key_figures(found, found["plain_accuracy"]),
        "lead": f"{found['samples']:,} images. If the same shares of them left at random, "
        f"{percent(found['random_accuracy'])} % would be right instead of "
        f"{percent(found['accuracy'])} %; the plain model answers "
        f"{percent(found['plain_accuracy'])} % rightly, so exits lose "
        f"{_points(lost)} points. Images leave at exit {found['mean_exit']:.2f} on average.",
        "departures": figures.departures(found, f"departures-{number}"),
        "by_class": figures.departures_by_class(found, classes, f"by-class-{number}"),
        "class_rows": [
            {
                "name": figures.class_name(classes, row["label"]),
                **row,
                "mean_exit": figures.mean_exit(row),
            }
            for row in sorted(found["classes"], key=figures.mean_exit)
        ],
        "confusions": [
            [
                (figures.class_name(classes, label), figures.class_name(classes, answer), count)
                for label, answer, count in outlet["confusion"][:MOST_CONFUSIONS]
            ]
            for outlet in found["outlets"]
        ],
    }


def _sweep(record: Mapping[str, Any], number: int) -> dict[str, Any]:
    found = record["sweep"]
    rows = found["medians"]
    plain = found["plain_accuracy"]
    good = [row for row in rows if row["accuracy"] >= plain - MAY_LOSE - 1e-9]
    if good:
        best = min(good, key=lambda row: row["relative_flops"])
        why = f"the cheapest that loses at most {100 * MAY_LOSE:g} point of accuracy"
    else:
        best = max(rows, key=lambda row: row["accuracy"])
        why = f"the most accurate; none loses {100 * MAY_LOSE:g} point of accuracy or less"
    seeds = max(row["seeds"] for row in rows)
    return {
        "heading": f"Sweep over α of {record['network']['model']}",
        "key_figures": _key_figures(best, plain),
        "lead": f"{found['samples']:,} images, {len(rows)} values of α, "
        f"{seeds} seed{'s' * (seeds > 1)}, method {found['method']}, cost by {found['cost']}. "
        f"The numbers above are those of α = {best['alpha']:g}: {why}, picked on these same "
        "images.",
        "seeds": seeds,
        "best": best["alpha"],
        "tradeoff": figures.tradeoff(found, f"tradeoff-{number}"),
        "trends": figures.trends(found, f"trends-{number}"),
    }


def _key_figures(found: Mapping[str, Any], plain: float) -> list[tuple[str, str, str]]:
    """(name, value, remark) of what is asked first."""
    known = found["time_ratio"] is not None and not isnan(found["time_ratio"])
    return [
        ("Accuracy", f"{percent(found['accuracy'])} %", f"plain model {percent(plain)}\u00a0%"),
        ("Accuracy lost", _points(plain - found["accuracy"]), "percentage points"),
        ("FLOPs", f"{percent(found['relative_flops'], 1)} %", "of the plain model's"),
        (
            "Time",
            f"{percent(found['time_ratio'], 0)} %" if known else "–",
            "of the plain model's, measured" if known else "not measured",
        ),
    ]


def _check(record: object, where: str) -> None:
    """Raises InputError for what is no record."""
    if not isinstance(record, dict):
        raise InputError(f"{where} is a {type(record).__name__}; expected a dict.")
    kind = record.get("kind")
    if kind not in KINDS:
        raise InputError(f"{where} is of kind {kind!r}; expected {' or '.join(map(repr, KINDS))}.")
    _check_keys(record, (*COMMON, kind), where)
    for name in ("network", kind):
        part = f"{where}, {name}"
        if not isinstance(record[name], dict):
            raise InputError(f"{part}, is a {type(record[name]).__name__}; expected a dict.")
        _check_keys(record[name], PARTS[name], part)
    if kind == "sweep" and not record["sweep"]["medians"]:
        raise InputError(f"{where} is a sweep without points.")
    if kind == "evaluation" and record["images"] is not None:
        _check_images(record["images"], len(record["evaluation"]["outlets"]), where)


def _check_keys(found: Mapping[str, Any], expected: Sequence[str], where: str) -> None:
    missing = [key for key in expected if key not in found]
    if missing:
        raise InputError(
            f"{where}, lacks {', '.join(missing)}; found {', '.join(map(str, found)) or 'nothing'}."
        )


def _check_images(images: Sequence[Sequence[Mapping[str, Any]]], outlets: int, where: str) -> None:
    if len(images) != outlets:
        raise InputError(f"{where} has images of {len(images)} outlets; expected {outlets}.")
    for image in (image for row in images for image in row):
        _check_keys(image, ("src", "label", "answer", "right"), f"{where}, an image")
        if not str(image["src"]).startswith("data:image/"):
            # A page that fetches pictures would not be whole by itself.
            raise InputError(f"{where}: an image is at {image['src']!r}; expected a data: URI.")


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("leenet_fx.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=percent, points=_points, quantity=quantity, pretty=_pretty, outlet=_outlet
    )
    return environment


def _points(share: float) -> str:
    # Adding zero turns -0.0 into 0.0.
    return f"{round(100 * share, 2) + 0.0:.2f}".replace("-", "−")


def _pretty(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def _outlet(index: int, outlets: Sequence[object]) -> str:
    return "final" if index == len(outlets) - 1 else f"exit {index}"
