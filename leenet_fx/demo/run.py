"""The demo: train a small network, add exits, select α on the validation split, measure.

The digits are in four splits: `train` trains the backbone and the classifiers; `calibration` trains
the gates, since the classifiers have overfitted to their training images and are too confident on
them; `val` selects α; `test` is used once, for the results.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from leenet_fx import tables
from leenet_fx.data.digits import CLASSES, Digits, load_digits
from leenet_fx.environment import environment
from leenet_fx.evaluation.evaluate import Evaluation, evaluate
from leenet_fx.evaluation.metrics import rank_correlation
from leenet_fx.report.plots import plot_network, plot_samples, plot_tradeoff
from leenet_fx.report.results import Criterion, Result
from leenet_fx.storage.files import write_atomically
from leenet_fx.surgery.attach import attach
from leenet_fx.surgery.module import EarlyExitModule
from leenet_fx.training.fit import fit

ALPHAS = (0.05, 0.1, 0.2, 0.3, 0.4)
MAX_DROP = 0.005
"""Maximum accuracy drop on the validation split; half of the target on the test split."""

MIN_SHARE = 0.05
"""Share of the samples from which an exit counts as used."""

BATCH = 64

RESULTS = "demo.json"
"""File name of the results."""


@dataclass(frozen=True)
class Schedule:
    """Amount of training.

    Attributes:
        views: number of placements of each digit.
        backbone_epochs: number of epochs of the backbone.
        exit_epochs: number of epochs of the classifiers of exits.
        gate_epochs: number of epochs of the gates, for each α.
        alphas: cost weights to select from.
    """

    views: int
    backbone_epochs: int
    exit_epochs: int
    gate_epochs: int
    alphas: tuple[float, ...]


FULL = Schedule(views=40, backbone_epochs=2, exit_epochs=1, gate_epochs=1, alphas=ALPHAS)
QUICK = Schedule(views=1, backbone_epochs=2, exit_epochs=2, gate_epochs=2, alphas=(0.2, 0.5))


@dataclass(frozen=True)
class DemoRun:
    """Result of the demo for one random seed.

    Attributes:
        seed: random seed.
        alpha: the selected α.
        points: accuracy and relative FLOPs on the validation split for each α.
        test: evaluation on the test split with the selected α.
        difficulty: mean difficulty of the samples at each exit; None if there are none.
        rank_correlation: Spearman's, of difficulty and exit index.
        seconds: time of the whole run.
    """

    seed: int
    alpha: float
    points: list[dict[str, float]]
    test: Evaluation
    difficulty: list[float | None]
    rank_correlation: float
    seconds: float


def run_demo(output: Path, *, seeds: Sequence[int] = (0,), quick: bool = False) -> Result:
    """Run the demo; write demo.json, demo.md, and the plots of the last seed.

    Args:
        output: folder to write to.
        seeds: random seeds.
        quick: whether to train for seconds instead of minutes, with little meaning of the results.

    Raises:
        DependencyError: scikit-learn or matplotlib is not installed.
    """
    schedule = QUICK if quick else FULL
    runs = [_run_seed(seed, schedule, output) for seed in seeds]
    command = f"leenet-fx demo --seeds {len(runs)}" + (" --quick" if quick else "")
    result = Result(command, [_row(run) for run in runs], _criteria(runs), environment())
    result.write(output / RESULTS, "Demo: digits of known difficulty")
    _print(f"Wrote demo.json, .md, .txt and -network, -tradeoff, -exits.png to {output}")
    return result


def train_backbone(digits: Digits, epochs: int, seed: int) -> nn.Module:
    """Train a small residual network (timm's ByobNet, nine basic blocks) from scratch.

    Args:
        digits: training images.
        epochs: number of epochs.
        seed: random seed of the initialisation and the order of the images.
    """
    from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg

    widths = (24, 48, 96)
    blocks = tuple(
        ByoBlockCfg(type="basic", d=3, c=width, s=stride, gs=0, br=1.0)
        for width, stride in zip(widths, (1, 2, 2), strict=True)
    )
    config = ByoModelCfg(blocks=blocks, stem_chs=widths[0], stem_type="3x3", stem_pool="")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = ByobNet(config, num_classes=CLASSES, in_chans=1)
    model = model.to(memory_format=torch.channels_last)
    loader = digits.loader(BATCH, torch.Generator().manual_seed(seed))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.01, total_steps=epochs * len(loader)
    )
    model.train()
    for _ in range(epochs):
        for images, labels in loader:
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    model.eval()
    assert isinstance(model, nn.Module)
    return model


def _run_seed(seed: int, schedule: Schedule, output: Path) -> DemoRun:
    start = time.perf_counter()
    splits = load_digits(seed, views=schedule.views)
    train, test = splits["train"], splits["test"]
    _print(f"Seed {seed}: training the backbone on {len(train)} placed digits …")
    backbone = train_backbone(train, schedule.backbone_epochs, seed)
    ee = attach(
        backbone,
        "linear",
        example_inputs=test.images[:1],
        name="digits net",
    )
    _print(
        f"Trained in {time.perf_counter() - start:.0f} s. Fitting exits, then gates for each α …"
    )
    points, (alpha, fitted) = _sweep(ee, splits, schedule, seed)
    evaluation = evaluate(fitted, test.loader(BATCH), backbone=backbone)
    prediction = fitted.predict(test.images)
    difficulty = [
        float(test.difficulty[prediction.exit_index == i].mean()) if row.count else None
        for i, row in enumerate(evaluation.exits)
    ]
    run = DemoRun(
        seed=seed,
        alpha=alpha,
        points=points,
        test=evaluation,
        difficulty=difficulty,
        rank_correlation=rank_correlation(test.difficulty, prediction.exit_index),
        seconds=time.perf_counter() - start,
    )
    _print_run(run)
    plot_network(fitted, output / "demo-network.png")
    plot_tradeoff(points, points[0]["backbone_accuracy"], alpha, output / "demo-tradeoff.png")
    correct = prediction.logits.argmax(1) == test.labels
    names = [f"exit {i}" for i in range(fitted.num_exits)] + ["final"]
    plot_samples(test.images, prediction.exit_index, correct, names, output / "demo-exits.png")
    write_atomically(output / "demo.txt", f"{fitted.summary()}\n\n{evaluation.summary()}\n")
    return run


def _sweep(
    ee: EarlyExitModule, splits: dict[str, Digits], schedule: Schedule, seed: int
) -> tuple[list[dict[str, float]], tuple[float, EarlyExitModule]]:
    """Fit gates for each α, and select the cheapest within MAX_DROP on the validation split."""
    train = splits["train"].loader(BATCH, torch.Generator().manual_seed(seed))
    calibration = splits["calibration"].loader(BATCH, torch.Generator().manual_seed(seed))
    val = splits["val"].loader(BATCH)
    fit(ee, train, method="leenet", epochs={"exits": schedule.exit_epochs, "gates": 0}, seed=seed)
    points: list[dict[str, float]] = []
    fitted: dict[float, EarlyExitModule] = {}
    for alpha in schedule.alphas:
        epochs = {"exits": 0, "gates": schedule.gate_epochs}
        fit(ee, calibration, method="leenet", alpha=alpha, epochs=epochs, seed=seed)
        evaluation = evaluate(ee, val)
        points.append(
            {
                "alpha": alpha,
                "accuracy": evaluation.accuracy,
                "relative_flops": evaluation.relative_flops,
                "random_accuracy": evaluation.random_accuracy,
                "backbone_accuracy": evaluation.backbone_accuracy,
            }
        )
        fitted[alpha] = copy.deepcopy(ee)
    allowed = [p for p in points if p["accuracy"] >= p["backbone_accuracy"] - MAX_DROP]
    candidates = allowed or [max(points, key=lambda point: point["accuracy"])]
    best = min(candidates, key=lambda point: point["relative_flops"])["alpha"]
    return points, (best, fitted[best])


def _print_run(run: DemoRun) -> None:
    table = tables.new_table(
        f"Seed {run.seed}, validation split: accuracy and cost of each α",
        "α",
        "accuracy %",
        "backbone %",
        "FLOPs rel.",
        "selected",
    )
    for point in run.points:
        table.add_row(
            f"{point['alpha']:g}",
            f"{100 * point['accuracy']:.2f}",
            f"{100 * point['backbone_accuracy']:.2f}",
            f"{point['relative_flops']:.3f}",
            "←" if point["alpha"] == run.alpha else "",
        )
    _print(tables.render(table))
    _print(f"\nTest split, α = {run.alpha:g}")
    _print(run.test.summary())
    difficulty = ", ".join("–" if d is None else f"{d:.2f}" for d in run.difficulty)
    _print(
        f"Mean difficulty by exit: {difficulty}; rank correlation of difficulty and exit "
        f"{run.rank_correlation:.2f}. {run.seconds:.0f} s in all.\n"
    )


def _row(run: DemoRun) -> dict[str, Any]:
    test = run.test
    return {
        "seed": run.seed,
        "alpha": run.alpha,
        "backbone_accuracy": test.backbone_accuracy,
        "accuracy": test.accuracy,
        "random_accuracy": test.random_accuracy,
        "relative_flops": test.relative_flops,
        "time_ratio": test.time_ratio,
        "shares": [row.share for row in test.exits],
        "exit_flops": [row.relative_flops for row in test.exits],
        "difficulty": run.difficulty,
        "rank_correlation": run.rank_correlation,
        "seconds": run.seconds,
    }


def _criteria(runs: Sequence[DemoRun]) -> list[Criterion]:
    """Return the medians over the seeds with their targets."""
    median = statistics.median
    saved = median([100 * (1 - run.test.relative_flops) for run in runs])
    drop = median([100 * (run.test.backbone_accuracy - run.test.accuracy) for run in runs])
    used = median([sum(row.share >= MIN_SHARE for row in run.test.exits) for run in runs])
    gain = median([100 * (run.test.accuracy - run.test.random_accuracy) for run in runs])
    increases = median([_difficulty_increases(run) for run in runs])
    correlation = median([run.rank_correlation for run in runs])
    ratio = median([run.test.time_ratio for run in runs])
    slowest = max(run.seconds for run in runs) / 60
    return [
        Criterion("FLOPs saved", saved, "%", "≥ 40", saved >= 40),
        Criterion("accuracy drop", drop, "points", "≤ 1", drop <= 1),
        Criterion(
            "exits and final classifier with ≥ 5 % of the samples", used, "", "≥ 3", used >= 3
        ),
        Criterion("above random exiting at the same exit rates", gain, "points", "> 0", gain > 0),
        Criterion("mean difficulty increases over exits", increases, "", "1", increases == 1),
        Criterion("rank correlation, difficulty and exit", correlation, "", "> 0", correlation > 0),
        Criterion("time relative to the backbone", ratio, "", "none", True),
        Criterion("slowest seed", slowest, "minutes", "< 5", slowest < 5),
    ]


def _difficulty_increases(run: DemoRun) -> float:
    """Return 1 if the mean difficulty increases over the exits with enough samples, else 0."""
    difficulty = [
        value
        for value, row in zip(run.difficulty, run.test.exits, strict=True)
        if value is not None and row.share >= MIN_SHARE
    ]
    return float(all(a < b for a, b in pairwise(difficulty)))


def _print(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
