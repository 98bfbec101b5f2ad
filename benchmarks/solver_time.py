"""Time of the budget solvers.

    python benchmarks/solver_time.py

On the confidences of ten exits: distinct values, and values that are saturated at 1, where many
samples tie. Times are of the process, on one thread.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from cifar10 import RESULTS
from torch import Tensor

from leenet_fx.calibration.solvers import get_solver, list_solvers, solve_budgets
from leenet_fx.environment import environment
from leenet_fx.report.results import Criterion, Result

RESULT = RESULTS / "solver_time.json"
COMMAND = "python benchmarks/solver_time.py"
EXITS = 10
COSTS = [0.1 + 0.095 * k for k in range(EXITS + 1)]
MANY, FEW = 10_000, 1_000_000
MAX_SECONDS = {MANY: 1.0, FEW: 2.0}


def confidences(samples: int, saturated: bool) -> Tensor:
    """Return confidences (n, N) that rise from exit to exit and go together."""
    generator = torch.Generator().manual_seed(0)
    ease = 2 * torch.randn(samples, 1, generator=generator)
    noise = torch.randn(samples, EXITS, generator=generator)
    values = (ease + noise + 0.5 * torch.arange(EXITS)).sigmoid()
    return (1.4 * values).clamp(max=1) if saturated else values


def main() -> None:
    """Time 100 budgets on 10,000 samples and one on 1,000,000."""
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    criteria = []
    for samples, number in ((MANY, 100), (FEW, 1)):
        budgets = [0.1 + 0.95 * (step + 0.5) / number for step in range(number)]
        for saturated in (False, True):
            confidence = confidences(samples, saturated)
            for name in list_solvers():
                start = time.process_time()
                for budget in budgets:
                    get_solver(name)(confidence, COSTS, budget)
                one_by_one = time.process_time() - start
                start = time.process_time()
                solve_budgets(name, confidence, COSTS, budgets)
                together = time.process_time() - start
                kind = "saturated" if saturated else "distinct"
                rows.append(
                    {
                        "samples": samples,
                        "budgets": number,
                        "values": kind,
                        "solver": name,
                        "one by one, s": one_by_one,
                        "solve_budgets, s": together,
                    }
                )
                print(rows[-1], flush=True)
                limit = MAX_SECONDS[samples]
                label = f"{name}, {number} budgets, {samples} samples, {kind}"
                criteria.append(Criterion(label, together, "s", f"≤ {limit}", together <= limit))
    Result(COMMAND, rows, criteria, environment()).write(RESULT, "Time of the budget solvers")


if __name__ == "__main__":
    main()
