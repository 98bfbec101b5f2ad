"""The report page: records as one self-contained HTML file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import isfinite, isnan
from pathlib import Path
from typing import Any

import jinja2

from leenet_fx.errors import EarlyExitError, InputError
from leenet_fx.evaluation.comparison import without_cheap_end
from leenet_fx.report import (
    charts,
    exit_figures,
    frontier_figures,
    reliability_figures,
    sweep_figures,
    threshold_figures,
)
from leenet_fx.report.record_check import check_record
from leenet_fx.storage.files import write_atomically
from leenet_fx.tables import percent, quantity

MOST_CONFUSIONS = 5
"""Number of confusions listed for each exit."""

INCONSISTENT = (
    *(TypeError, ValueError, LookupError, AttributeError, ArithmeticError),
    jinja2.UndefinedError,
)
"""Errors of drawing records whose parts are valid, but not of one measurement."""

MAX_DROP = 0.01
"""Maximum accuracy drop of the operating point that is shown first."""


def write_page(
    path: Path, records: Sequence[dict[str, Any]], title: str, *, interactive: bool = True
) -> None:
    """Write an HTML page with a section per record.

    The page is one file and reads without scripts. With scripts, the charts of accuracy and cost
    show the values of the point under the pointer; the library that they need is part of the page,
    which grows by 1.3 MB. Without Bokeh the page has the static charts alone, and says so.

    Args:
        path: file to write.
        records: records of evaluations, sweeps and comparisons, in the order of the sections.
        title: title of the page.
        interactive: whether charts show values under the pointer.

    Raises:
        InputError: there is no record, or a record is not valid.
        DependencyError: matplotlib is not installed.
        StorageError: `path` cannot be written.
    """
    if not records:
        raise InputError("A page needs at least one record.")
    sections: list[dict[str, Any]] = []
    networks: list[Any] = []
    try:
        for number, record in enumerate(records, start=1):
            check_record(record, f"Record {number}")
            section = SECTIONS[record["kind"]](record, number)
            # A network that several records share is drawn once.
            drawn = record["network"] is None or record["network"] in networks
            figure = None
            if not drawn:
                figure = exit_figures.network(record["network"], f"network-{number}")
            networks.append(record["network"])
            if not interactive or not charts.available():
                section["chart"] = None
            else:
                section["chart"] = CHARTS[record["kind"]](record[record["kind"]])
            sections.append({**record, **section, "number": number, "network_figure": figure})
        page = (
            _templates()
            .get_template("page.html.j2")
            .render(
                title=title,
                sections=sections,
                library=charts.library() if any(one["chart"] for one in sections) else None,
                missing=charts.INSTALL if interactive and not charts.available() else None,
                level=f"{100 * reliability_figures.LEVEL:g} %",
            )
        )
    except INCONSISTENT as error:
        where = f"Record {min(len(sections) + 1, len(records))}"
        if isinstance(error, EarlyExitError):
            raise
        raise InputError(f"{where} has values that do not belong together: {error!r}.") from error
    write_atomically(path, page)


def _evaluation(record: Mapping[str, Any], number: int) -> dict[str, Any]:
    evaluation, classes = record["evaluation"], record["classes"]
    backbone_accuracy = evaluation["backbone_accuracy"]
    drop = backbone_accuracy - evaluation["accuracy"]
    return {
        "heading": f"Evaluation of {record['network']['model']}",
        "key_figures": _key_figures(evaluation, backbone_accuracy, evaluation["samples"]),
        "point": _operating_point(evaluation),
        **_threshold_figures(evaluation, number),
        **_reliability(evaluation, number),
        "lead": f"{evaluation['samples']:,} images. Overall accuracy (adaptive) "
        f"{percent(evaluation['accuracy'])} %, random exiting at the same exit rates "
        f"{percent(evaluation['random_accuracy'])} %, backbone {percent(backbone_accuracy)} %: an "
        f"accuracy drop of {_points(drop)} points. The mean exit is "
        f"{evaluation['mean_exit']:.2f}.",
        "distribution": exit_figures.exit_distribution(evaluation, f"distribution-{number}"),
        "by_class": exit_figures.exit_distribution_by_class(
            evaluation, classes, f"by-class-{number}"
        ),
        "class_rows": [
            {
                "name": exit_figures.class_name(classes, row["label"]),
                **row,
                "interval": _interval(row["accuracy"], row["samples"]),
                "mean_exit": exit_figures.mean_exit(row),
            }
            for row in sorted(evaluation["classes"], key=exit_figures.mean_exit)
        ],
        "intervals": [_interval(row["accuracy"], row["count"]) for row in evaluation["exits"]],
        "interval": _interval(evaluation["accuracy"], evaluation["samples"]),
        "confusions": [
            [
                (
                    exit_figures.class_name(classes, label),
                    exit_figures.class_name(classes, predicted),
                    count,
                )
                for label, predicted, count in row["confusion"][:MOST_CONFUSIONS]
            ]
            for row in evaluation["exits"]
        ],
    }


def _sweep(record: Mapping[str, Any], number: int) -> dict[str, Any]:
    sweep = record["sweep"]
    rows = sweep["medians"]
    backbone_accuracy = sweep["backbone_accuracy"]
    allowed = [row for row in rows if row["accuracy"] >= backbone_accuracy - MAX_DROP - 1e-9]
    if allowed:
        best = min(allowed, key=lambda row: row["relative_flops"])
        reason = f"the cheapest with an accuracy drop of at most {100 * MAX_DROP:g} point"
    else:
        best = max(rows, key=lambda row: row["accuracy"])
        reason = f"the most accurate; none has an accuracy drop of {100 * MAX_DROP:g} point or less"
    seeds = max(row["seeds"] for row in rows)
    return {
        "heading": f"Sweep over α of {record['network']['model']}",
        "key_figures": _key_figures(best, backbone_accuracy, sweep["samples"]),
        "lead": f"{sweep['samples']:,} images, {len(rows)} values of α, "
        f"{seeds} seed{'s' * (seeds > 1)}, method {sweep['method']}, cost in {sweep['cost']}. "
        f"The numbers above are those of α = {best['alpha']:g}: {reason}, selected on the test "
        "split (optimistic).",
        "seeds": seeds,
        "best": best["alpha"],
        "tradeoff": sweep_figures.tradeoff(sweep, f"tradeoff-{number}"),
        "trends": sweep_figures.trends(sweep, f"trends-{number}"),
    }


def _comparison(record: Mapping[str, Any], number: int) -> dict[str, Any]:
    comparison = record["comparison"]
    rows = comparison["rows"]
    best = rows[0]
    seeds = max(row["seeds"] for row in rows)
    drop = f"{100 * MAX_DROP:g} point"
    key = f"flops_at_{100 * MAX_DROP:g}"
    allowed = [row for row in rows if row[key] is not None]
    cheapest = f"No method has an accuracy drop of {drop} or less."
    if allowed:
        first = min(allowed, key=lambda row: row[key])
        cheapest = (
            f"At an accuracy drop of at most {drop}, {first['label']} needs the least: "
            f"{percent(first[key], 1)}\u00a0% of the FLOPs."
        )
    best_flops = ("–", f"no operating point within a drop of {drop}")
    if best[key] is not None:
        best_flops = (
            f"{percent(best[key], 1)} %",
            f"of the backbone's, accuracy drop of at most {drop}",
        )
    return {
        "heading": f"Methods on {comparison['model']}",
        "key_figures": [
            ("Best method", best["label"], f"area {best['area']:.3f} under its frontier"),
            ("Its FLOPs", *best_flops),
            ("Backbone", f"{percent(comparison['backbone_accuracy'])} %", "accuracy"),
            (
                "Methods",
                str(len(rows)),
                f"compared, {f'{seeds} seeds' * (seeds > 1) or 'one seed'}",
            ),
        ],
        "lead": f"{comparison['samples']:,} test images. The best method has the largest area "
        f"under its frontier{', as the median over the seeds' * (seeds > 1)}. {cheapest}",
        "seeds": seeds,
        "no_cheap_end": without_cheap_end(rows) if "cheapest_flops" in best else "",
        "largest_drop": f"{100 * frontier_figures.LARGEST_DROP:g}",
        "drops": _suffixes("flops_at_", best),
        "budgets": _suffixes("accuracy_at_", best),
        "frontiers": frontier_figures.frontiers(comparison, f"frontiers-{number}"),
        "highlights": frontier_figures.highlights(comparison, f"highlights-{number}"),
    }


SECTIONS = {"evaluation": _evaluation, "sweep": _sweep, "comparison": _comparison}

CHARTS: dict[str, Callable[[Mapping[str, Any]], str | None]] = {
    "evaluation": charts.threshold_chart,
    "sweep": charts.sweep_chart,
    "comparison": charts.comparison_chart,
}


def _operating_point(evaluation: Mapping[str, Any]) -> str | None:
    """Return in words what was asked for at the calibration, and what is promised."""
    point = evaluation.get("operating_point")
    if point is None:
        return None
    percent = f"{100 * point['limit']:g}"
    unit = "percentage point" if percent == "1" else "percentage points"
    limits = {
        "max_drop": f"an accuracy drop of at most {percent} {unit}",
        "max_disagreement": f"disagreement with the backbone on at most {percent} % of the images",
        "budget": f"a budget of {percent} % ({point['cost_kind']})",
    }
    promise = "nothing is promised."
    if point["promised"]:
        promise = (
            f"on new images like those of the calibration it holds with a probability of "
            f"{100 * point['level']:g} %."
        )
    return (
        f"Operating point “{point['name']}”, chosen on {point['samples']:,} calibration images for "
        f"{limits[point['target']]}: {promise}"
    )


def _threshold_figures(evaluation: Mapping[str, Any], number: int) -> dict[str, Any]:
    curve = evaluation.get("curve")
    if curve is None or not any(isfinite(point["threshold"]) for point in curve["points"]):
        return {"tradeoff": None}
    return {
        "tradeoff": threshold_figures.tradeoff_of_thresholds(evaluation, f"tradeoff-{number}"),
        "over_thresholds": threshold_figures.over_thresholds(evaluation, f"thresholds-{number}"),
        "drop": threshold_figures.reference(evaluation).drop,
        "per_exit": len(set(curve["thresholds"])) > 1,
    }


def _reliability(evaluation: Mapping[str, Any], number: int) -> dict[str, Any]:
    if not evaluation.get("reliability"):
        return {"reliability": None}
    last = len(evaluation["exits"]) - 1
    named = [
        *((_exit_name(i, evaluation["exits"]), row) for i, row in enumerate(evaluation["exits"])),
        ("overall", evaluation),
    ]
    return {
        "reliability": reliability_figures.reliability(evaluation, f"reliability-{number}"),
        "all_diagrams": last + 2 <= reliability_figures.MOST_PANELS,
        "bins": [
            (name, [{**row, "interval": reliability_figures.bin_interval(row)} for row in bins])
            for name, bins in ((name, found["reliability"]) for name, found in named)
        ],
    }


def _interval(accuracy: float | None, samples: int) -> tuple[float, float] | None:
    """Return Wilson's interval of an accuracy on a number of images."""
    if accuracy is None or isnan(accuracy) or not samples:
        return None
    return reliability_figures.bin_interval(
        {"correct": round(accuracy * samples), "count": samples}
    )


def _key_figures(
    values: Mapping[str, Any], backbone_accuracy: float, samples: int
) -> list[tuple[str, str, str]]:
    """Return (name, value, remark) of the most important numbers of an operating point."""
    interval = _interval(values["accuracy"], samples)
    between = "" if interval is None else f"{percent(interval[0], 1)}–{percent(interval[1], 1)}; "
    timed = values["time_ratio"] is not None and not isnan(values["time_ratio"])
    return [
        (
            "Overall accuracy",
            f"{percent(values['accuracy'])} %",
            f"{between}backbone {percent(backbone_accuracy)}\u00a0%",
        ),
        ("Accuracy drop", _points(backbone_accuracy - values["accuracy"]), "percentage points"),
        ("FLOPs", f"{percent(values['relative_flops'], 1)} %", "of the backbone's"),
        (
            "Time",
            f"{percent(values['time_ratio'], 0)} %" if timed else "–",
            "of the backbone's, measured" if timed else "not measured",
        ),
    ]


def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("leenet_fx.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=percent, points=_points, quantity=quantity, as_json=_as_json, exit_name=_exit_name
    )
    return environment


def _points(share: float) -> str:
    """Format a difference of accuracies in percentage points."""
    # Adding zero turns -0.0 into 0.0.
    return f"{round(100 * share, 2) + 0.0:.2f}".replace("-", "−")


def _as_json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def _suffixes(prefix: str, names: Iterable[str]) -> list[str]:
    """Return the names with a prefix, without it."""
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]


def _exit_name(index: int, exits: Sequence[object]) -> str:
    return "final" if index == len(exits) - 1 else f"exit {index}"
