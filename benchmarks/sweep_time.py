"""Time of a sweep over 21 cost weights and over one: ResNet-20, CIFAR-10, cached features.

    python benchmarks/sweep_time.py --data PATH --weights PATH

Exits with pooled features are placed after every block. Both times include all steps: the backbone
runs over the images, heads and gates are trained, and every α is measured on the test split.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

from cifar10 import RESULTS, Cifar10, arguments

import leenet_fx
from leenet_fx.environment import environment
from leenet_fx.evaluation.sweep import ALPHAS, sweep
from leenet_fx.report.results import Criterion, Result

RESULT = RESULTS / "sweep_time.json"
COMMAND = "python benchmarks/sweep_time.py --data PATH --weights PATH"
NETWORK = "resnet20"
EPOCHS = {"exits": 10, "gates": 30}
MAX_RATIO = 1.5


def seconds(cifar: Cifar10, alphas: tuple[float, ...], seed: int) -> float:
    """Return the wall-clock time of one sweep."""
    ee = leenet_fx.attach(cifar.model, "every", copy=False, name=cifar.name, seed=seed)
    start = time.perf_counter()
    sweep(
        ee,
        cifar.loader("train", seed=seed),
        cifar.loader("test"),
        calibration=cifar.loader("calibration", seed=seed),
        alphas=alphas,
        seeds=(seed,),
        epochs=EPOCHS,
        progress=False,
    )
    return time.perf_counter() - start


def main() -> None:
    """Time both sweeps in turn, once per seed."""
    options = arguments("Time of a sweep of 21 α and of one α.")
    cifar = Cifar10(NETWORK, options.data, options.weights)
    rows: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        one, many = (seconds(cifar, alphas, seed) for alphas in ((0.5,), ALPHAS))
        rows.append({"seed": seed, "one α, s": one, "21 α, s": many})
        print(rows[-1], file=sys.stderr, flush=True)
    ratio = statistics.median(row["21 α, s"] / row["one α, s"] for row in rows)
    criterion = Criterion(
        "time of 21 α, relative to one", ratio, "", f"≤ {MAX_RATIO}", ratio <= MAX_RATIO
    )
    result = Result(COMMAND, rows, [criterion], environment())
    result.write(RESULT, "21 cost weights on cached features")


if __name__ == "__main__":
    main()
