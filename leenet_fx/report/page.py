"""The report page: records of what was measured as one HTML file that needs no other."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import Any

import jinja2

from leenet_fx.errors import InputError
from leenet_fx.report import figures
from leenet_fx.storage.files import write_atomically
from leenet_fx.tables import percent, quantity

MOST_CONFUSIONS = 5
"""How many confusions of each outlet are listed."""

MAY_LOSE = 0.01
"""Accuracy that what is shown first of a sweep or a comparison may lose."""

KINDS = ("evaluation", "sweep", "comparison")
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
    "comparison": ("model", "plain_accuracy", "samples", "classes", "runs", "rows", "left_out"),
}


def write_page(path: Path, records: Sequence[dict[str, Any]], title: str) -> None:
    """Writes one page with a section for each record.

    Args:
        path: where to.
        records: of evaluations, sweeps and comparisons, in the order to show them.
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
        made = SECTIONS[record["kind"]](record, number)
        # A sweep and an evaluation of one network show it once.
        shown = record["network"] is None or record["network"] in networks
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


def _comparison(record: Mapping[str, Any], number: int) -> dict[str, Any]:
    found = record["comparison"]
    rows = found["rows"]
    best = rows[0]
    seeds = max(row["seeds"] for row in rows)
    over = f"{seeds} seeds" if seeds > 1 else "one seed"
    at = f"flops_at_{100 * MAY_LOSE:g}"
    good = [row for row in rows if row[at] is not None]
    cheapest = f"No method loses {100 * MAY_LOSE:g} point of accuracy or less."
    if good:
        first = min(good, key=lambda row: row[at])
        cheapest = (
            f"Of those that lose at most {100 * MAY_LOSE:g} point of accuracy, {first['label']} "
            f"spends the least: {percent(first[at], 1)}\u00a0% of the FLOPs."
        )
    return {
        "heading": f"Methods on {found['model']}",
        "key_figures": [
            ("Best method", best["label"], f"area {best['area']:.3f} under its frontier"),
            (
                "Its FLOPs",
                "–" if best[at] is None else f"{percent(best[at], 1)} %",
                f"no point loses {100 * MAY_LOSE:g} point or less"
                if best[at] is None
                else f"of the plain model's, {100 * MAY_LOSE:g} point lost at most",
            ),
            ("Plain model", f"{percent(found['plain_accuracy'])} %", "accuracy"),
            ("Methods", str(len(rows)), f"compared, {over}"),
        ],
        "lead": f"{found['samples']:,} report images. The best method is that with the largest "
        f"area under its frontier{', the median over the seeds' * (seeds > 1)}. {cheapest}",
        "seeds": seeds,
        "deepest": f"{100 * figures.DEEPEST:g}",
        "losses": _after("flops_at_", best),
        "budgets": _after("accuracy_at_", best),
        "frontiers": figures.frontiers(found, f"frontiers-{number}"),
        "highlights": figures.highlights(found, f"highlights-{number}"),
    }


SECTIONS = {"evaluation": _evaluation, "sweep": _sweep, "comparison": _comparison}


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
    # A comparison made from Python need not know more of its network than its name.
    known = kind != "comparison" or record["network"] is not None
    for name in ("network", kind) if known else (kind,):
        part = f"{where}, {name}"
        if not isinstance(record[name], dict):
            raise InputError(f"{part}, is a {type(record[name]).__name__}; expected a dict.")
        _check_keys(record[name], PARTS[name], part)
    if kind == "sweep" and not record["sweep"]["medians"]:
        raise InputError(f"{where} is a sweep without points.")
    if kind == "comparison" and not record["comparison"]["rows"]:
        raise InputError(f"{where} is a comparison without runs.")
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


def _after(prefix: str, names: Iterable[str]) -> list[str]:
    """What follows in the names that begin so."""
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]


def _outlet(index: int, outlets: Sequence[object]) -> str:
    return "final" if index == len(outlets) - 1 else f"exit {index}"
