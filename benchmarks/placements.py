"""Placement rules and exits chosen from data, on frozen backbones with pooled linear heads.

    python benchmarks/placements.py --data PATH --models PATH [--draws N] [NETWORK/DATA…]

Exits are trained at every boundary once (`exit_outputs.py`, stored); a placement is a part of them.
Thresholds are chosen on the calibration split, figures are of the test split: a common threshold,
the cheapest whose drop on the calibration split is at most 1 or 3 points, and the one that
`calibrate` certifies for 1 point at confidence 0.95. Drops on the test split differ from those on
the calibration split, and with them the FLOPs; so rules are compared at the same accuracy, "on
test": at the cheapest threshold whose drop on the test split itself is accepted.

With --draws, calibration sets are drawn with replacement from all images of both splits, over which
the drop of every point is known, to see how often the promise of "auto" is broken.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from cifar10 import RESULTS, WORK
from exit_outputs import PAIRS, ExitOutputsOfPair, exit_outputs, missing
from scipy.stats import binomtest
from torch import Tensor

import leenet_fx
from leenet_fx.calibration.cached_outputs import (
    CachedOutputs,
    concatenate,
    confidences,
)
from leenet_fx.calibration.exit_subsets import SubsetCosts, exits_of, selected_for_risk
from leenet_fx.calibration.risks import get_risk
from leenet_fx.calibration.solvers import exit_indices_at
from leenet_fx.environment import environment
from leenet_fx.report.results import Criterion, Result
from leenet_fx.surgery.module import EarlyExitModule
from placement import PlacementError

RESULT = RESULTS / "placement.json"
COMMAND = "python benchmarks/placements.py --data PATH --models PATH"
RULES = ("linear", "golden", "pareto", "fine", "auto")
DROPS = (0.01, 0.03)
LEVEL, LEVEL_OF_DRAWS = 0.95, 0.9
TOLERANCE = 0.005
"""Mean FLOPs of the backbone by which "auto" may be above the best rule at the same accuracy."""

GRID = [1 - 10 ** (-step / 60) for step in range(5, 300)]
"""Thresholds that are compared."""


class Network:
    """A network with some of the exits, and its outputs; its weights are not used."""

    def __init__(
        self, pair: str, found: ExitOutputsOfPair, model: torch.nn.Module, at: Any
    ) -> None:
        strategy, num_exits = at
        case = PAIRS[pair]
        classes = found.outputs["test"].logits[-1].shape[1]
        self.ee: EarlyExitModule = leenet_fx.attach(
            model,
            strategy,
            num_exits=num_exits,
            num_classes=classes,
            example_inputs=torch.zeros(1, 3, case.size, case.size, device="meta"),
        )
        self.ee.policy = leenet_fx.MaxProbability(1.0)
        kept = self.ee.spec.placement.indices
        self.outputs = {
            split: CachedOutputs(
                tuple(outputs.logits[index] for index in (*kept, -1)),
                # Thresholds of class probabilities do not read gates, which have four inputs.
                tuple(torch.zeros(len(outputs.labels), 4) for _ in kept),
                outputs.labels,
            )
            for split, outputs in found.outputs.items()
        }
        self.costs = SubsetCosts(self.ee, leenet_fx.MaxProbability(1.0), "flops")
        self.scores = {name: scores_of(self.ee, values) for name, values in self.outputs.items()}
        self.losses = {
            name: get_risk("accuracy-gap").losses(values) for name, values in self.outputs.items()
        }

    def points(self, split: str, exits: Sequence[int]) -> list[tuple[float, float]]:
        """Return mean FLOPs and drop at each threshold of the grid, common to some exits."""
        rows = torch.tensor(self.costs.rows(exits), dtype=torch.float64)
        scores, losses = self.scores[split], self.losses[split]
        points = []
        for threshold in GRID:
            taken = exits_of(scores, threshold, exits)
            drop = losses.gather(1, taken.unsqueeze(1)).mean()
            points.append((float(rows[taken].mean()), float(drop)))
        return points

    def chosen(self, drop: float) -> list[int]:
        """Return the exits that "auto" uses, from a tenth of the calibration split."""
        if self.ee.spec.placement.strategy != "auto":
            return list(range(self.ee.num_exits))
        outputs = self.outputs["calibration"]
        size = len(outputs.labels)
        order = torch.randperm(size, generator=torch.Generator().manual_seed(0))
        some = outputs.select(order[: max(1, size // 10)])
        losses = get_risk("accuracy-gap").losses(some)
        return selected_for_risk(scores_of(self.ee, some), losses, drop, self.costs)


def scores_of(ee: EarlyExitModule, outputs: CachedOutputs) -> Tensor:
    """Return the largest class probabilities (n, N)."""
    return confidences(ee, leenet_fx.MaxProbability(1.0), outputs)


def cheapest(points: Sequence[tuple[float, float]], drop: float) -> int:
    """Return the cheapest point with an accepted drop; the last one, the safest, if there is none.

    Args:
        points: mean FLOPs and drops.
        drop: highest accepted.
    """
    accepted = [(flops, index) for index, (flops, found) in enumerate(points) if found <= drop]
    return min(accepted)[1] if accepted else len(points) - 1


def measure_rule(name: str, rule: str, num_exits: int | None, network: Network) -> dict[str, Any]:
    """Return one row."""
    ee = network.ee
    row: dict[str, Any] = {"pair": name, "rule": rule, "asked": num_exits, "exits": ee.num_exits}
    row["shares"] = [round(network.ee.spec.profile.shares[i], 3) for i in ee.spec.placement.indices]
    for drop in DROPS:
        exits = network.chosen(drop)
        on_test = network.points("test", exits)
        flops, found = on_test[cheapest(network.points("calibration", exits), drop)]
        key = f"{100 * drop:g}"
        row |= {f"used at {key}": len(exits), f"flops at {key}": flops, f"drop at {key}": found}
        row[f"flops on test at {key}"] = on_test[cheapest(on_test, drop)][0]
    point = leenet_fx.calibrate(
        ee, network.outputs["calibration"], max_drop=DROPS[0], confidence=LEVEL
    )
    exits, flops = certified(network, point.thresholds, network.scores["test"])
    lost = network.losses["test"].gather(1, exits.unsqueeze(1)).mean()
    row |= {
        "promised": point.promised,
        "certified: used": sum(value != math.inf for value in point.thresholds),
        "certified: flops": flops,
        "certified: drop": float(lost),
    }
    return row


def certified(
    network: Network, thresholds: Sequence[float], scores: Tensor
) -> tuple[Tensor, float]:
    """Return the exit of each sample and the mean FLOPs at an operating point."""
    limits = thresholds or [math.inf] * network.ee.num_exits
    used = [index for index, value in enumerate(limits) if value != math.inf]
    exits = exit_indices_at(scores, limits)
    rows = torch.tensor(network.costs.rows(used), dtype=torch.float64)
    return exits, float(rows[exits].mean())


def broken_promises(name: str, network: Network, draws: int) -> dict[str, Any]:
    """Calibrate "auto" on many drawn calibration sets; return how often the drop is exceeded."""
    population = concatenate([network.outputs["calibration"], network.outputs["test"]])
    size, scores = len(population.labels), scores_of(network.ee, population)
    losses = get_risk("accuracy-gap").losses(population)
    file = WORK / f"placement-{name.replace('/', '-')}.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")][:draws]
    with file.open("a") as out:
        for seed in range(len(rows), draws):
            generator = torch.Generator().manual_seed(seed)
            drawn = population.select(torch.randint(size, (size // 2,), generator=generator))
            network.ee.policy = leenet_fx.MaxProbability(1.0)
            point = leenet_fx.calibrate(
                network.ee, drawn, max_drop=DROPS[0], confidence=LEVEL_OF_DRAWS, seed=seed
            )
            exits, flops = certified(network, point.thresholds, scores)
            drop = float(losses.gather(1, exits.unsqueeze(1)).mean())
            rows.append({"seed": seed, "flops": flops, "drop": drop})
            out.write(json.dumps(rows[-1]) + "\n")
            out.flush()
    broken = sum(row["drop"] > DROPS[0] for row in rows)
    interval = binomtest(broken, len(rows)).proportion_ci(0.95)
    return {
        "pair": name,
        "draws": len(rows),
        "broken %": 100 * broken / len(rows),
        "95 % interval": [100 * float(interval.low), 100 * float(interval.high)],
        "mean flops": sum(row["flops"] for row in rows) / len(rows),
    }


def rows_of(name: str, found: ExitOutputsOfPair, models: Path) -> dict[tuple[Any, ...], Any]:
    """Return the networks of all rules, by rule and number of exits."""
    case = PAIRS[name]
    model = case.build(models / case.weights)
    networks: dict[tuple[Any, ...], Network] = {}
    for at in (*((rule, None) for rule in RULES), ("every", None), *((rule, 3) for rule in RULES)):
        try:
            network = Network(name, found, model, at)
        except PlacementError as error:
            print(f"{name}: {error}", file=sys.stderr)
            continue
        if at[1] is None or network.ee.num_exits != networks[at[0], None].ee.num_exits:
            networks[at] = network
    return networks


def criteria_of(name: str, rows: Sequence[dict[str, Any]]) -> list[Criterion]:
    """Return how "auto" compares with the best rule and with "fine"."""
    criteria = []
    auto = next(row for row in rows if row["rule"] == "auto" and row["asked"] is None)
    for key in (f"{100 * drop:g}" for drop in DROPS):
        column = f"flops on test at {key}"
        others = [row for row in rows if row["rule"] != "auto"]
        best = min(others, key=lambda row: row[column])
        fine = min(row[column] for row in others if row["rule"] == "fine")
        label = f"{best['rule']} ({best['exits']})"
        above = auto[column] - best[column]
        criteria += [
            Criterion(
                f"{name}, {key} point(s): FLOPs of auto − best rule, {label}",
                above,
                "of the backbone",
                f"≤ {TOLERANCE}",
                above <= TOLERANCE,
            ),
            Criterion(
                f"{name}, {key} point(s): FLOPs of auto − fine",
                auto[column] - fine,
                "of the backbone",
                "≤ 0",
                auto[column] <= fine,
            ),
        ]
    return criteria


def table(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of the Markdown table."""
    return [
        {
            "network, data": row["pair"],
            "rule": row["rule"],
            "exits": row["exits"],
            **{
                f"−{key}: FLOPs (drop), exits used": f"{row[f'flops at {key}']:.3f} "
                f"({100 * row[f'drop at {key}']:.1f}), {row[f'used at {key}']}"
                for key in (f"{100 * drop:g}" for drop in DROPS)
            },
            "−1 on test": f"{row['flops on test at 1']:.3f}",
            "−3 on test": f"{row['flops on test at 3']:.3f}",
            "certified −1: FLOPs (drop), exits used": f"{row['certified: flops']:.3f} "
            f"({100 * row['certified: drop']:.1f}), {row['certified: used']}"
            if row["promised"]
            else "not certified",
        }
        for row in rows
    ]


def of_other_pairs(name: str) -> tuple[list[dict[str, Any]], list[Criterion]]:
    """Return the stored rows and criteria of all pairs but one."""
    if not RESULT.exists():
        return [], []
    stored = json.loads(RESULT.read_text())
    rows = [row for row in stored["rows"] if row["pair"] != name]
    criteria = [Criterion(**c) for c in stored["criteria"] if not c["name"].startswith(name)]
    return rows, criteria


def main() -> None:
    """Run the pairs whose files are present, and write JSON and Markdown."""
    parser = argparse.ArgumentParser(description="Placement rules and exits chosen from data.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=0)
    parser.add_argument("pairs", nargs="*", help=", ".join(PAIRS))
    options = parser.parse_args()
    for name in options.pairs or PAIRS:
        if path := missing(name, options.data, options.models):
            print(f"Skipped {name}: needs '{path}'.", file=sys.stderr)
            continue
        found = exit_outputs(name, options.data, options.models)
        networks = rows_of(name, found, options.models)
        measured = [measure_rule(name, *at, network) for at, network in networks.items()]
        criteria = criteria_of(name, measured)
        promises = []
        if options.draws:
            promises.append(broken_promises(name, networks["auto", None], options.draws))
            low = promises[0]["95 % interval"][0]
            criteria.append(
                Criterion(
                    f"{name}: promise of auto broken in {options.draws} draws",
                    promises[0]["broken %"],
                    "%",
                    f"≤ {100 * (1 - LEVEL_OF_DRAWS):.0f} within its interval",
                    low <= 100 * (1 - LEVEL_OF_DRAWS),
                )
            )
        rows, others = of_other_pairs(name)
        rows += [*measured, *promises]
        title = "Placement: rules, and exits chosen from data"
        result = Result(COMMAND, rows, [*others, *criteria], environment())
        result.write(RESULT, title, table([row for row in rows if "rule" in row]))
        print(f"{name}: {len(measured)} placements", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
