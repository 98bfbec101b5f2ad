"""Plots of stored results: promises kept and their price, placements, the five lines, frontiers.

    python benchmarks/result_plots.py

Writes {risk,placement,first_lines,frontiers}.png to benchmarks/results, from the JSON files there.
"""

from __future__ import annotations

import json
from typing import Any

from cifar10 import RESULTS
from static_family import LARGEST, family

from leenet_fx.report.plots import BLUE, GREEN, GREY, ORANGE, pyplot, save

RULES = {"betting": BLUE, "hoeffding-bentkus": GREEN, "in expectation": GREY, "naive": ORANGE}
FRONTIERS = {
    ("resnet20", "conv: distilled"): BLUE,
    ("resnet56", "conv: distilled"): GREEN,
    ("resnet20-mixed", "conv: distilled, mixed"): ORANGE,
}
"""Part and label of the comparison of methods whose frontiers are drawn."""

CALTECH = {
    "shallow-deep": BLUE,
    "leenet, thresholds": ORANGE,
    "distilled, ensembles": GREEN,
}
"""Likewise, of EfficientNet-Lite0 on Caltech-101."""

SIDE = {"deep": "x:", "ensemble": "^:", "ensemble-56": "+:"}
"""Rows of side branches that are drawn."""

DROPS = {"1": BLUE, "3": ORANGE}
PLACEMENTS = ("fine", "pareto", "golden", "linear", "every", "auto")


def rows_of(name: str) -> list[dict[str, Any]]:
    """Return the rows of a result."""
    rows: list[dict[str, Any]] = json.loads((RESULTS / f"{name}.json").read_text())["rows"]
    return rows


def plot_risk() -> None:
    """Plot how often a drop above one point was promised away, and the FLOPs above the oracle."""
    rows = rows_of("risk")
    populations = list(dict.fromkeys(row["population"] for row in rows))
    figure, (broken, price) = pyplot().subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for place, (rule, color) in enumerate(RULES.items()):
        found = {row["population"]: row for row in rows if row["rule"] == rule}
        at = [index + 0.2 * (place - 1.5) for index in range(len(populations))]
        shares = [found[name]["broken %"] for name in populations]
        ends = [found[name]["95 % interval"] for name in populations]
        below = [max(share - low, 0) for share, (low, _) in zip(shares, ends, strict=True)]
        above = [max(high - share, 0) for share, (_, high) in zip(shares, ends, strict=True)]
        broken.bar(at, shares, 0.18, yerr=[below, above], color=color, capsize=2, label=rule)
        costs = [found[name]["above the oracle"] for name in populations]
        price.bar(at, costs, 0.18, color=color)
    broken.axhline(10, color="black", lw=1, ls="--")
    broken.set_title("draws with a drop above 1 point, %; promised: at most 10", fontsize=9)
    broken.legend(fontsize=8)
    price.axhline(0, color="black", lw=0.8)
    price.set_title("mean FLOPs above the oracle, share of the backbone's", fontsize=9)
    for axes in (broken, price):
        axes.set_xticks(range(len(populations)), populations)
        axes.grid(axis="y", alpha=0.3)
    save(figure, RESULTS / "risk.png")


def plot_placements() -> None:
    """Plot the FLOPs at which the accuracy on test images is 1 and 3 points lower."""
    rows = [row for row in rows_of("placement") if row["asked"] is None]
    pairs = list(dict.fromkeys(row["pair"] for row in rows))
    figure, grid = pyplot().subplots(
        1, len(pairs), figsize=(3 * len(pairs), 3), sharex=True, sharey=True, layout="constrained"
    )
    for axes, pair in zip(grid, pairs, strict=True):
        found = {row["rule"]: row for row in rows if row["pair"] == pair}
        for drop, color in DROPS.items():
            shares = [found[rule][f"flops on test at {drop}"] for rule in PLACEMENTS]
            axes.plot(
                shares, PLACEMENTS, "o", color=color, label=f"−{drop} point{'s'[drop == '1' :]}"
            )
        axes.set(title=pair.replace("/", "\n"))
        axes.title.set_fontsize(9)
        axes.grid(alpha=0.3)
    grid[0].legend(fontsize=8)
    figure.supxlabel("FLOPs, share of the backbone's", fontsize=9)
    save(figure, RESULTS / "placement.png")


def plot_first_lines() -> None:
    """Plot accuracy on test images against FLOPs, of the backbone and of the calibrated network."""
    figure, axes = pyplot().subplots(figsize=(5.4, 3.4), layout="constrained")
    for row, color in zip(rows_of("first_lines"), (BLUE, ORANGE), strict=True):
        name = f"{row['network']}, {row['data']}"
        points = [100 * row["backbone_accuracy"], 100 * row["accuracy"]]
        axes.plot([1, row["flops"]], points, "o-", color=color, label=name)
        axes.axhline(points[0] - 1, color=color, lw=1, ls="--")
    axes.set(
        xlabel="FLOPs, share of the backbone's",
        ylabel="accuracy on test images, %",
        title="Promised: at most 1 point lower (dashed)",
        xlim=(0, 1.05),
        ylim=(87, 93.5),
    )
    axes.legend(fontsize=8, loc="center left")
    axes.grid(alpha=0.3)
    save(figure, RESULTS / "first_lines.png")


def plot_frontiers() -> None:
    """Plot frontiers of networks with exits beside networks without exits, over MFLOPs."""
    plain = {name: family(name) for name in ("resnet", "lite0")}
    if not all(any(row["member"] in LARGEST for row in rows) for rows in plain.values()):
        return
    figure, (cifar, caltech) = pyplot().subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    for axes, members in zip((cifar, caltech), plain.values(), strict=True):
        flops = [row["flops"] / 1e6 for row in members]
        accuracies = [100 * row["accuracy"] for row in members]
        axes.plot(flops, accuracies, "k--s", ms=5, label="networks without exits")
        axes.set(xlabel="mean MFLOPs per image")
        axes.grid(alpha=0.3)
    backbones = {row["network"]: row["flops"] for row in plain["resnet"]}
    rows = {(row["part"], row["label"]): row for row in rows_of("methods")}
    for (part, label), color in FRONTIERS.items():
        at = frontier_of(rows[part, label], backbones[part.removesuffix("-mixed")])
        cifar.plot(*at, "o-", color=color, ms=4, label=f"{part}, {label.removeprefix('conv: ')}")
    for name, marker in SIDE.items():
        row = next((row for row in rows_of("side") if row["row"] == name), None)
        if row is not None:
            found = [row[drop] for drop in ("3", "1", "0") if row[drop] is not None]
            flops = [point["flops"] * row["flops"] / 1e6 for point in found]
            accuracies = [100 * point["accuracy"] for point in found]
            cifar.plot(flops, accuracies, marker, color=GREY, label=f"side branches, {name}")
    cifar.set(ylabel="accuracy on test images, %", title="CIFAR-10, ResNets", ylim=(82, 91))
    for label, color in CALTECH.items():
        at = frontier_of(rows["lite0-caltech101", label], plain["lite0"][-1]["flops"])
        caltech.plot(*at, "o-", color=color, ms=4, label=f"frozen, {label}")
    caltech.set(title="Caltech-101, EfficientNet-Lite0")
    for axes in (cifar, caltech):
        axes.legend(fontsize=7, loc="lower right")
    save(figure, RESULTS / "frontiers.png")


def frontier_of(row: dict[str, Any], flops: int) -> tuple[list[float], list[float]]:
    """Return MFLOPs and accuracies in % of the best operating points within budgets."""
    found = [
        (share, row[f"accuracy_at_{share}"])
        for share in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
        if row[f"accuracy_at_{share}"] is not None
    ]
    return [share * flops / 1e6 for share, _ in found], [100 * accuracy for _, accuracy in found]


if __name__ == "__main__":
    plot_risk()
    plot_placements()
    plot_first_lines()
    plot_frontiers()
