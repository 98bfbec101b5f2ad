"""Criteria, table and plot of the measurements of `speed.py`."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leenet_fx.environment import environment
from leenet_fx.report.plots import BLUE, GREEN, GREY, ORANGE, pyplot, save
from leenet_fx.report.results import Criterion, Result

COMMAND = "python benchmarks/speed.py"
RESULTS = Path(__file__).parent / "results"
FOLDER = RESULTS / "speed"
"""Folder of the measured cells; not in the repository."""
RESULT = RESULTS / "speed.json"

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Exit rates of the first exit."""

RENAMED = {
    "plain_ms": "backbone_ms",
    "plain, MB": "backbone, MB",
    "plain eager": "backbone eager",
    "shut": "disabled",
    "none over plain and branches": "none over backbone and branches",
    "behind the network, us": "after the network, us",
}
"""Keys of rows of schema 1 → their names."""


def upgrade(measured: Any) -> Any:
    """Return a stored row, or rows, with the keys of schema 1 renamed."""
    if isinstance(measured, list):
        return [upgrade(row) for row in measured]
    row = {RENAMED.get(key, key): value for key, value in measured.items()}
    return {
        key.replace("behind the first exit", "after the first exit").replace(
            " over pieces", " over stages"
        ): value
        for key, value in row.items()
    }


def write(order: Sequence[str]) -> None:
    """Write JSON, Markdown and the plot of all stored measurements.

    Args:
        order: names of the networks, in the order of the table.
    """
    cells = sorted(
        _read("cell-*.json"),
        key=lambda row: (row["threads"], order.index(row["network"]), row["batch"]),
    )
    compiled, streams = _read("compiled-*.json"), _read("stream-*.json")
    start = next(iter(_read("start.json")), None)
    memory = next(iter(_read("memory.json")), [])
    decision = next(iter(_read("decision.json")), [])
    rows = [
        *({"part": "cells", **row} for row in cells),
        *({"part": "compiled", **row} for row in compiled),
        *([{"part": "start", **start}] if start else []),
        *({"part": "memory", **row} for row in memory),
        *({"part": "stream", **row} for row in streams),
        *({"part": "decision", **row} for row in decision),
    ]
    results = [
        *_criteria_of_cells(cells),
        *_criteria_of_parts(compiled, start, memory),
        *_times_of_streams(streams),
        *_times_of_decision(decision),
    ]
    setting = environment() | {
        "threads": "see rows",
        "allocator": "glibc, freed memory is kept",
    }
    Result(COMMAND, rows, results, setting).write(RESULT, "Time", _table(cells))
    plot(cells, [name for name in order if any(row["network"] == name for row in cells)])


def _read(pattern: str) -> list[Any]:
    return [upgrade(json.loads(path.read_text())) for path in sorted(FOLDER.glob(pattern))]


def _criteria_of_cells(cells: Sequence[dict[str, Any]]) -> list[Criterion]:
    """Return the criteria of cells on one thread."""
    results = []
    one = {(row["network"], row["batch"]): row for row in cells if row["threads"] == 1}
    for name in ("resnet18", "resnet50"):
        for batch in (1, 32):
            if (name, batch) in one:
                ratio = one[name, batch]["none over backbone and branches"]
                text = f"{name}, batch size {batch}, no early exits, over backbone + branches"
                results.append(Criterion(text, ratio, "", "≤ 1.02", ratio <= 1.02))
    stages = [
        (row[key], row["network"], row["batch"], key)
        for row in one.values()
        for key in row
        if key.endswith("over stages")
    ]
    if stages:
        ratios = [ratio for ratio, *_ in stages]
        within = sum(ratio <= 1.05 for ratio in ratios) / len(ratios)
        median = statistics.median(ratios)
        text = f"any exit rates over their stages, median of {len(ratios)}"
        results.append(Criterion(text, median, "", "≤ 1.05", median <= 1.05))
        text = "any exit rates over their stages, share ≤ 1.05"
        results.append(Criterion(text, within, "", "1", within == 1))
        worst, *where = max(stages)
        text = f"exit rates over their stages, worst ({', '.join(map(str, where))})"
        results.append(Criterion(text, worst, "", "≤ 1.05", worst <= 1.05))
    predicted = [row[key] for row in one.values() for key in row if key.endswith("over predicted")]
    if predicted:
        within = sum(abs(ratio - 1) <= 0.1 for ratio in predicted) / len(predicted)
        text = f"latency predicted within 10 %, share of {len(predicted)} exit rates"
        results.append(Criterion(text, within, "", "1", within == 1))
        error = statistics.median(abs(ratio - 1) for ratio in predicted)
        text = "predicted latency, median error"
        results.append(Criterion(text, error, "", "≤ 0.1", error <= 0.1))
    stem = one.get(("resnet18-stem", 32))
    if stem:
        ratio = stem["ours 0.5"]["ratio"]
        text = "resnet18, batch size 32, half exit after the stem, over backbone"
        results.append(Criterion(text, ratio, "", "< 0.62", ratio < 0.62))
    for name, exits in (("resnet20-one-exit", "one exit"), ("resnet20", "three exits")):
        if (name, 1) in one:
            ratio = one[name, 1]["ours 0"]["ratio"]
            text = f"resnet20 with {exits}, batch size 1, no early exits, over backbone"
            results.append(Criterion(text, ratio, "", "≤ 1.05", ratio <= 1.05))
    return results


def _criteria_of_parts(
    compiled: Sequence[dict[str, Any]],
    start: dict[str, Any] | None,
    memory: Sequence[dict[str, Any]],
) -> list[Criterion]:
    """Return the criteria of compiled networks, of the first prediction, and of memory."""
    results = []
    for row in compiled:
        ratio = row["none"]["ratio"]
        text = (
            f"{row['network']}, batch size {row['batch']}, compiled, no early exits, over backbone"
        )
        results.append(Criterion(text, ratio, "", "≤ 1.03", ratio <= 1.03))
    if start:
        text = "resnet50, attach and first prediction, over earlyon's"
        results.append(Criterion(text, start["ratio"], "", "< 1", start["ratio"] < 1))
    for row in memory:
        text = f"{row['network']}, batch size 32, peak memory, no early exits, over backbone"
        results.append(Criterion(text, row["0"], "", "≤ 1.05", row["0"] <= 1.05))
        peaks = [row[f"after the first exit, {share:g}"] for share in SHARES]
        text = f"{row['network']}, peak after the first exit, exit rate 0.75 over exit rate 0"
        decreasing = peaks == sorted(peaks, reverse=True)
        results.append(Criterion(text, peaks[3] / peaks[0], "", "decreasing", decreasing))
    return results


def _times_of_streams(streams: Sequence[dict[str, Any]]) -> list[Criterion]:
    """Return the times of streams, without a target."""
    systems = {
        "predict": "batch by batch",
        "delay 2": "pooled, delay 2",
        "delay 8": "pooled, delay 8",
    }
    return [
        Criterion(
            f"{row['network']}, stream of batches of {row['batch']}, realistic mix: {text}, over "
            "backbone",
            row[key]["ratio"],
            "",
            "printed",
            True,
        )
        for row in streams
        for key, text in systems.items()
    ]


def _times_of_decision(decision: Sequence[dict[str, Any]]) -> list[Criterion]:
    """Return the time of a decision, without a target."""
    if not decision:
        return []
    return [
        Criterion(
            f"one decision on one image, {where}, all operations, μs",
            sum(row[f"{where}, us"] for row in decision),
            "",
            "printed",
            True,
        )
        for where in ("alone", "after the network")
    ]


def plot(cells: Sequence[dict[str, Any]], names: Sequence[str]) -> None:
    """Plot the time relative to the backbone by the first exit's rate, one panel per network."""
    figure, panels = pyplot().subplots(
        2,
        math.ceil(len(names) / 2),
        figsize=(11, 6.5),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    colours = {1: ORANGE, 8: GREEN, 32: BLUE, 128: GREY}
    for axes, name in zip(panels.flat, names, strict=False):
        rows = [row for row in cells if row["network"] == name and row["threads"] == 1]
        for row in rows:
            colour = colours[row["batch"]]
            times = [row[f"ours {share:g}"] for share in SHARES]
            axes.plot(SHARES, [time["ratio"] for time in times], "o-", ms=4, color=colour)
            axes.fill_between(
                SHARES,
                [time["low"] for time in times],
                [time["high"] for time in times],
                color=colour,
                alpha=0.2,
            )
            if row["batch"] == 32:
                earlyon = [row["earlyon none"]["ratio"]] * 4 + [row["earlyon all"]["ratio"]]
                axes.plot(SHARES, earlyon, "x--", color="#666666", ms=4, lw=0.8)
        if rows:
            first, *_, last = max(rows, key=lambda row: row["batch"])["relative_flops"]
            flops = [share * first + (1 - share) * last for share in SHARES]
            axes.plot(SHARES, flops, ":", color="black", lw=1)
            label = f"first exit at {first:.2f} of the FLOPs"
            axes.text(0.02, 0.04, label, transform=axes.transAxes, fontsize=8)
        axes.set(title=name, xlabel="exit rate of the first exit", ylim=(0, 1.35))
        axes.grid(alpha=0.3)
    for row in panels[:, :1]:
        row[0].set_ylabel("time relative to the backbone")
    for axes in list(panels.flat)[len(names) :]:
        axes.axis("off")
    handles = [
        *(
            figure.axes[0].plot([], [], "o-", color=c, label=f"batch size {b}")[0]
            for b, c in colours.items()
        ),
        figure.axes[0].plot([], [], ":", color="black", label="FLOPs")[0],
        figure.axes[0].plot([], [], "x--", color="#666666", label="earlyon, batch size 32")[0],
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False)
    save(figure, RESULT.with_suffix(".png"))


def _table(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per cell for the Markdown."""

    def ratio(row: dict[str, Any], key: str) -> str:
        value = row[key]
        return f"{value['ratio']:.2f} ({value['low']:.2f}–{value['high']:.2f})"

    return [
        {
            "network": row["network"],
            "batch size": row["batch"],
            "image": row["image"],
            "threads": row["threads"],
            "backbone, ms": f"{row['backbone_ms']:.1f}",
            **{f"{100 * share:g} %": ratio(row, f"ours {share:g}") for share in SHARES},
            "mix": ratio(row, "ours mix"),
            "all exits": ratio(row, "all exits"),
            "earlyon, none": ratio(row, "earlyon none"),
            "earlyon, all": ratio(row, "earlyon all"),
            "none / (backbone + branches)": f"{row['none over backbone and branches']:.3f}",
        }
        for row in cells
    ]
