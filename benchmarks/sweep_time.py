"""What 21 weights of the cost take, beside one: ResNet-20, CIFAR-10, features kept.

    python benchmarks/sweep_time.py --data PATH --weights PATH

Pooled heads stand behind every block. Both begin with nothing: the backbone runs over the images,
heads and gates are fitted, and every α is measured on the report images.
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
MOST = 1.5


def seconds(cifar: Cifar10, alphas: tuple[float, ...], seed: int) -> float:
    """Of one sweep, from the images on."""
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
    """Times both, in turn, once for each seed."""
    options = arguments("Times a sweep of 21 α beside one α.")
    cifar = Cifar10(NETWORK, options.data, options.weights)
    rows: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        one, all_of_them = (seconds(cifar, alphas, seed) for alphas in ((0.5,), ALPHAS))
        rows.append({"seed": seed, "one α, s": one, "21 α, s": all_of_them})
        print(rows[-1], file=sys.stderr, flush=True)
    ratio = statistics.median(row["21 α, s"] / row["one α, s"] for row in rows)
    figure = Criterion("time of 21 α over that of one", ratio, "", f"≤ {MOST}", ratio <= MOST)
    result = Result(COMMAND, rows, [figure], environment())
    result.write(RESULT, "21 weights of the cost on kept features")


if __name__ == "__main__":
    main()
