"""What is compared, and the result of a comparison."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from leenet_fx import tables
from leenet_fx.evaluation.frontier import MethodRun
from leenet_fx.methods import list_method_options
from placement.strategies import Position

BUDGETS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Relative FLOPs for which the best accuracy of each method is listed."""

TABLE_BUDGETS = (0.4, 0.6, 0.8)
"""Those listed in the plain-text table."""

DROPS = (0.0, 0.01, 0.03)
"""Accuracy drops for which the least FLOPs of each method are listed."""


CHEAP_END = 0.2
"""Relative FLOPs by which the cheapest point of a frontier may exceed that of another method."""


@dataclass(frozen=True)
class MethodSpec:
    """A method with the settings to compare it under.

    Attributes:
        label: name in tables; unique within a comparison.
        method: name of a registered method.
        options: method options.
        strategy: placement; None takes the comparison's, with its number of exits.
        branch: branch architecture; None takes the method's.
        branch_options: options of the branches.
        epochs: number of epochs of each phase, or by phase name; None takes the comparison's.
        lr: highest learning rate; None takes each phase's own.
        augmented: whether exits are fitted on augmented images, without cached features.
        start: folder of a saved network whose classifiers the run starts from; "{seed}" in it is
            replaced by the random seed. With `epochs={"exits": 0}` they are not trained further.
    """

    label: str
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    strategy: str | tuple[Position, ...] | None = None
    branch: str | None = None
    branch_options: Mapping[str, Any] = field(default_factory=dict)
    epochs: int | Mapping[str, int] | None = None
    lr: float | None = None
    augmented: bool = False
    start: str | None = None


def frozen_variants(methods: Sequence[str]) -> list[MethodSpec]:
    """Return a spec of each method, with the backbone frozen if the method has such a recipe."""
    return [
        MethodSpec(
            name, name, {"recipe": "disjoint"} if "recipe" in list_method_options(name) else {}
        )
        for name in methods
    ]


@dataclass(frozen=True)
class Comparison:
    """Result of `compare`.

    Attributes:
        model: name of the backbone.
        backbone_accuracy: accuracy of the backbone on the test split; with a new final classifier,
            the median of the runs that trained one.
        samples: number of test images.
        classes: number of classes.
        runs: one run for each spec and seed.
        skipped: by label, the reason why a spec was skipped: it does not fit the network, or its
            training failed.
    """

    model: str
    backbone_accuracy: float
    samples: int
    classes: int
    runs: tuple[MethodRun, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, `rows` included."""
        return {**asdict(self), "rows": self.rows()}

    def rows(self) -> list[dict[str, Any]]:
        """Return a record for each spec, largest area first: medians over seeds."""
        rows = []
        for label in dict.fromkeys(run.label for run in self.runs):
            runs = [run for run in self.runs if run.label == label]
            areas = [run.area(self.classes, self.backbone_accuracy) for run in runs]
            row: dict[str, Any] = {"label": label, "method": runs[0].method, "seeds": len(runs)}
            row |= {"area": statistics.median(areas), "areas": areas}
            for drop in DROPS:
                spent = [run.flops_within(self.backbone_accuracy, drop) for run in runs]
                row[f"flops_at_{100 * drop:g}"] = _median(spent)
            for budget in BUDGETS:
                reached = [run.accuracy_within(budget) for run in runs]
                row[f"accuracy_at_{budget:g}"] = _median(reached)
            row["cheapest_flops"] = statistics.median(
                min((point.relative_flops for point in run.points), default=1.0) for run in runs
            )
            row["backbone_accuracy"] = statistics.median(run.backbone_accuracy for run in runs)
            row["exits"] = len(runs[0].exits)
            row["trained_seconds"] = statistics.median(run.trained_seconds for run in runs)
            rows.append(row)
        return sorted(rows, key=lambda row: -row["area"])

    def summary(self) -> str:
        """Format the rows as a plain-text table, followed by the skipped specs."""
        rows = self.rows()
        seeds = max(row["seeds"] for row in rows)
        table = tables.new_table(
            f"{self.model}: {self.samples} test images, backbone "
            f"{100 * self.backbone_accuracy:.2f} %",
            "method",
            "area",
            *(f"−{100 * drop:g} pt" for drop in DROPS),
            *(f"@{budget:g}" for budget in TABLE_BUDGETS),
            caption=("One seed." if seeds == 1 else f"Medians over {seeds} seeds.")
            + " area: under the frontier of accuracy over relative FLOPs.\n"
            "−x pt: least relative FLOPs at an accuracy drop of at most x points.\n"
            "@b: best accuracy in % within b of the FLOPs. –: no operating point.",
        )
        for row in rows:
            table.add_row(
                row["label"],
                f"{row['area']:.3f}",
                *(_format(row[f"flops_at_{100 * drop:g}"]) for drop in DROPS),
                *(tables.percent(row[f"accuracy_at_{budget:g}"]) for budget in TABLE_BUDGETS),
            )
        lines = [note] if (note := without_cheap_end(rows)) else []
        lines += [f"Skipped: {label}: {reason}" for label, reason in self.skipped.items()]
        return "\n".join(
            [tables.render(table), *(textwrap.fill(line, tables.WIDTH) for line in lines)]
        )

    def __str__(self) -> str:
        return self.summary()


def without_cheap_end(rows: Sequence[Mapping[str, Any]]) -> str:
    """Name the methods whose cheapest operating point is much dearer than that of another.

    Args:
        rows: from `Comparison.rows`.

    Returns:
        What their area means; "" if there is none.
    """
    least = min(row["cheapest_flops"] for row in rows)
    dear = [row for row in rows if row["cheapest_flops"] > least + CHEAP_END]
    if not dear:
        return ""
    named = ", ".join(f"{row['label']} (from {row['cheapest_flops']:.2f})" for row in dear)
    return (
        f"No cheap end: {named}. Below their cheapest operating point, the area is that of "
        "a random choice between guessing and it: a small area need not mean poor exits."
    )


def _median(values: Sequence[float | None]) -> float | None:
    """Return the median; None if a value is missing."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if len(known) == len(values) else None


def _format(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
