"""What memory settings, channels_last and threads are worth.

    python benchmarks/settings.py [--rounds N]

EfficientNet-Lite0 at 224 px with random weights, without exits. Each combination of settings runs
in a process of its own, one after the other, in several rounds; the two variables of glibc are read
when a process starts. Times are medians over all batches of all rounds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

import timm
import torch
from cifar10 import RESULTS

from leenet_fx.cost.page_faults import SETTINGS, page_faults
from leenet_fx.environment import environment
from leenet_fx.report.results import Result

RESULT = RESULTS / "settings.json"
COMMAND = "python benchmarks/settings.py"
MODEL = "tf_efficientnet_lite0"
KEPT = str(1 << 32)
BATCHES = {1: 20, 32: 5}
"""Measured batches of a process, by batch size."""


def child(channels_last: bool, threads: int) -> None:
    """Measure in this process, and print the times as JSON."""
    torch.set_num_threads(threads)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = timm.create_model(MODEL).eval().to(memory_format=layout)
    found: dict[int, Any] = {}
    for batch, repeats in BATCHES.items():
        images = torch.rand(batch, 3, 224, 224).to(memory_format=layout)
        wall, processor = [], []
        with torch.inference_mode():
            model(images)
            faults = page_faults(torch.device("cpu")) or 0
            for _ in range(repeats):
                start = time.perf_counter(), time.process_time()
                model(images)
                wall.append(time.perf_counter() - start[0])
                processor.append(time.process_time() - start[1])
            faults = (page_faults(torch.device("cpu")) or 0) - faults
        found[batch] = {"wall": wall, "cpu": processor, "faults": faults / repeats}
    print(json.dumps(found))


def measure(kept: bool, channels_last: bool, threads: int) -> dict[str, Any]:
    """Return what a process with these settings has measured."""
    variables = {key: value for key, value in os.environ.items() if key not in SETTINGS}
    variables |= dict.fromkeys(SETTINGS, KEPT) if kept else {}
    variables.pop("OMP_NUM_THREADS", None)
    command = [sys.executable, __file__, "--child", str(int(channels_last)), str(threads)]
    answer = subprocess.run(command, env=variables, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(answer.stdout)
    return found


def main() -> None:
    """Measure every combination, and write JSON and Markdown."""
    parser = argparse.ArgumentParser(description="What settings are worth.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(bool(options.child[0]), options.child[1])
        return
    settings = list(itertools.product((False, True), (False, True), (1, 2)))
    measured: dict[Any, list[dict[str, Any]]] = {setting: [] for setting in settings}
    for number in range(options.rounds):
        for setting in settings:
            measured[setting].append(measure(*setting))
            print(f"round {number + 1}: {setting}", file=sys.stderr, flush=True)
    rows: list[dict[str, Any]] = []
    for batch in BATCHES:
        for kept, channels_last, threads in settings:
            runs = [run[str(batch)] for run in measured[kept, channels_last, threads]]
            wall = [value for run in runs for value in run["wall"]]
            low, median, high = statistics.quantiles(wall, n=4)
            rows.append(
                {
                    "images": batch,
                    "memory": "kept" if kept else "default",
                    "format": "channels_last" if channels_last else "default",
                    "threads": threads,
                    "seconds": median,
                    "quartiles": [low, high],
                    "cpu": statistics.median(value for run in runs for value in run["cpu"]),
                    "faults": statistics.median(run["faults"] for run in runs),
                }
            )
    table = [
        {
            **{key: row[key] for key in ("images", "memory", "format", "threads")},
            "ms": round(1000 * row["seconds"], 1),
            "quartiles, ms": " to ".join(f"{1000 * value:.1f}" for value in row["quartiles"]),
            "CPU, ms": round(1000 * row["cpu"], 1),
            "page faults of a batch": round(row["faults"]),
        }
        for row in rows
    ]
    command = f"{COMMAND} --rounds {options.rounds}"
    title = "What memory settings, channels_last and threads are worth"
    Result(command, rows, [], environment()).write(RESULT, title, table)


if __name__ == "__main__":
    main()
