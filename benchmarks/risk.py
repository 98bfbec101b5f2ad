"""How often a certified accuracy drop is exceeded, and what the promise costs.

    python benchmarks/risk.py --data PATH --models PATH [--part NAME]… [--draws N]

Calibration sets are drawn from a population whose risk is known at every threshold: from closed
formulas ("synthetic"), or with replacement from all test images of a data set, over which the risk
is the mean. A tenth of each set, without labels, sets the path of thresholds; the rest certifies.
Draws are stored as they are made, so an interrupted benchmark is resumed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from cached_exits import cached_exits, missing
from cifar10 import RESULTS, WORK
from scipy.stats import binomtest
from torch import Tensor

from leenet_fx.calibration.risk_control import budget_path, control_risk
from leenet_fx.calibration.risks import get_risk
from leenet_fx.calibration.solvers import exit_indices_at, mean_cost
from leenet_fx.environment import environment
from leenet_fx.policies import MaxProbability
from leenet_fx.report.results import Criterion, Result

RESULT = RESULTS / "risk.json"
COMMAND = "python benchmarks/risk.py --data PATH --models PATH"
MAX_DROP = 0.01
LEVEL = 0.9
STEPS = 40
DESIGN = 0.1
"""Share of the calibration samples that sets the path."""

MAX_ABOVE_ORACLE = 0.10
RULES: dict[str, dict[str, Any]] = {
    "betting": {},
    "hoeffding-bentkus": {"bound": "hoeffding-bentkus"},
    "in expectation": {"rule": "expectation"},
}


@dataclass(frozen=True)
class Sample:
    """Confidences (n, N) and losses (n, N+1)."""

    confidence: Tensor
    losses: Tensor

    def select(self, indices: Tensor | slice) -> Sample:
        """Return some of the samples."""
        return Sample(self.confidence[indices], self.losses[indices])


class Synthetic:
    """Two exits with independent, uniform confidences c.

    An exit loses a sample that the final classifier has right with probability eₖ(1−c), and wins
    one with probability eₖ(1−c)/4.
    """

    samples = 5000
    costs = (0.3, 0.6, 1.0)
    errors = (0.1, 0.06)

    def draw(self, generator: torch.Generator) -> Sample:
        """Draw a calibration set."""
        confidence = torch.rand(self.samples, 2, generator=generator)
        chance = torch.rand(self.samples, 2, generator=generator)
        lost = torch.tensor(self.errors) * (1 - confidence)
        losses = (chance < lost).double() - (chance > 1 - lost / 4).double()
        return Sample(confidence, torch.cat([losses, torch.zeros(self.samples, 1)], 1))

    def truth(self, thresholds: Sequence[float]) -> tuple[float, float]:
        """Return the risk and the mean cost of thresholds."""
        arriving, risk, spent = 1.0, 0.0, 0.0
        for threshold, error, cost in zip(thresholds, self.errors, self.costs, strict=False):
            share = min(max(1 - threshold, 0.0), 1.0)
            risk += arriving * 0.75 * error * share**2 / 2
            spent += arriving * share * cost
            arriving *= 1 - share
        return risk, spent + arriving * self.costs[-1]

    def oracle(self) -> float:
        """Return the mean cost of the cheapest common threshold whose risk is accepted."""
        points = [self.truth([step / 10000] * 2) for step in range(10001)]
        return min(cost for risk, cost in points if risk <= MAX_DROP)


class Images:
    """All test images of a data set, of which a calibration set is drawn with replacement."""

    def __init__(self, name: str, data: Path, models: Path) -> None:
        outputs, self.costs = cached_exits(name, data, models)
        policy = MaxProbability(1.0)
        confidence = [policy.confidence(i, x) for i, x in enumerate(outputs.logits[:-1])]
        losses = get_risk("accuracy-gap").losses(outputs)
        self.population = Sample(torch.stack(confidence, 1), losses)
        self.samples = len(losses) // 2

    def draw(self, generator: torch.Generator) -> Sample:
        """Draw a calibration set."""
        size = len(self.population.losses)
        return self.population.select(torch.randint(size, (self.samples,), generator=generator))

    def truth(self, thresholds: Sequence[float]) -> tuple[float, float]:
        """Return the risk and the mean cost of thresholds."""
        return measure(self.population, thresholds, self.costs)

    def oracle(self) -> float:
        """Return the mean cost of the cheapest common threshold whose risk is accepted."""
        path = budget_path(self.population.confidence, self.costs, steps=400)
        points = [self.truth(thresholds) for thresholds in path]
        return min(cost for risk, cost in points if risk <= MAX_DROP)


def measure(
    sample: Sample, thresholds: Sequence[float], costs: Sequence[float]
) -> tuple[float, float]:
    """Return the mean loss and the mean cost."""
    exits = exit_indices_at(sample.confidence, thresholds)
    return float(sample.losses.gather(1, exits.unsqueeze(1)).mean()), mean_cost(exits, costs)


def naive(sample: Sample, path: Sequence[list[float]], costs: Sequence[float]) -> list[float]:
    """Return the cheapest thresholds whose observed drop is accepted."""
    accepted = [point for point in path if measure(sample, point, costs)[0] <= MAX_DROP]
    return accepted[-1] if accepted else [float("inf")] * (len(costs) - 1)


def one_draw(population: Synthetic | Images, seed: int) -> dict[str, Any]:
    """Choose thresholds on one calibration set by each rule; return their true risk and cost."""
    generator = torch.Generator().manual_seed(seed)
    sample = population.draw(generator)
    design = round(DESIGN * population.samples)
    path = budget_path(sample.confidence[:design], population.costs, steps=STEPS)
    held_out = sample.select(slice(design, None))
    row: dict[str, Any] = {"seed": seed}
    for name, options in RULES.items():
        chosen = control_risk(
            held_out.losses,
            held_out.confidence,
            path,
            MAX_DROP,
            limits=(-1.0, 1.0),
            generator=generator,
            level=LEVEL,
            **options,
        )
        row[name] = population.truth(chosen.thresholds)
    row["naive"] = population.truth(naive(sample, path, population.costs))
    return row


def draws(name: str, population: Synthetic | Images, number: int) -> list[dict[str, Any]]:
    """Return the draws of a part; those that are stored are not repeated."""
    file = WORK / f"risk-{name}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    # An interrupted write leaves a line without its end.
    rows = [json.loads(line) for line in lines if line.endswith("\n")][:number]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with file.open("a") as out:
        for seed in range(len(rows), number):
            rows.append(one_draw(population, seed))
            out.write(json.dumps(rows[-1]) + "\n")
            out.flush()
            if (seed + 1) % 100 == 0:
                print(f"{name}: {seed + 1} of {number} draws", file=sys.stderr, flush=True)
    return rows


def summarise(
    name: str, population: Synthetic | Images, rows: Sequence[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[Criterion]]:
    """Return one row for each rule, and the criteria of the promise."""
    oracle = population.oracle()
    table, criteria = [], []
    for rule in (*RULES, "naive"):
        risks = [row[rule][0] for row in rows]
        spent = sum(row[rule][1] for row in rows) / len(rows)
        broken = sum(risk > MAX_DROP for risk in risks)
        interval = binomtest(broken, len(rows)).proportion_ci(0.95)
        table.append(
            {
                "population": name,
                "samples": population.samples,
                "draws": len(rows),
                "rule": rule,
                "broken %": 100 * broken / len(rows),
                "95 % interval": [round(100 * float(end), 2) for end in interval],
                "mean drop, points": 100 * sum(risks) / len(rows),
                "mean FLOPs": spent,
                "above the oracle": spent - oracle,
            }
        )
        if rule == "betting":
            promise = f"{name}: drop above {100 * MAX_DROP:g} point in draws"
            kept = float(interval.low) <= 1 - LEVEL
            target = f"≤ {100 * (1 - LEVEL):.0f} within its interval"
            criteria.append(Criterion(promise, 100 * broken / len(rows), "%", target, kept))
            excess = spent - oracle
            criteria.append(
                Criterion(
                    f"{name}: mean FLOPs above the oracle",
                    excess,
                    "of the backbone",
                    f"≤ {MAX_ABOVE_ORACLE:.2f}" if name == "cifar10" else "printed",
                    excess <= MAX_ABOVE_ORACLE or name != "cifar10",
                )
            )
    return table, criteria


def main() -> None:
    """Run the parts whose files are present, and write JSON and Markdown."""
    parser = argparse.ArgumentParser(description="Risk control on populations of known risk.")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--part", action="append", choices=("synthetic", "cifar10", "caltech101"))
    parser.add_argument("--draws", type=int, default=1000)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    criteria: list[Criterion] = []
    for name in options.part or ("synthetic", "cifar10", "caltech101"):
        if name != "synthetic" and (path := missing(name, options.data, options.models)):
            print(f"Skipped {name}: needs '{path}'.", file=sys.stderr)
            continue
        population = (
            Synthetic() if name == "synthetic" else Images(name, options.data, options.models)
        )
        table, results = summarise(name, population, draws(name, population, options.draws))
        rows += table
        criteria += results
    Result(COMMAND, rows, criteria, environment()).write(
        RESULT, "Certified accuracy drop: broken promises and their price"
    )


if __name__ == "__main__":
    main()
