"""The demo's job: train a small network, add exits, choose α on validation images, report.

Four splits of the digits are kept apart: `train` trains backbone and classifiers; `gates` trains
the gates, for on images that the classifiers know by heart no exit looks risky; `validate` picks α;
and `test` is used once, for what is reported.
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
from leenet_fx.evaluation.evaluate import Evaluation, evaluate
from leenet_fx.report.plots import plot_network, plot_strip, plot_tradeoff
from leenet_fx.report.results import Criterion, Result, environment
from leenet_fx.storage.files import write_atomically
from leenet_fx.surgery.attach import attach
from leenet_fx.surgery.module import EarlyExitModule
from leenet_fx.training.fit import fit

ALPHAS = (0.05, 0.1, 0.2, 0.3, 0.4)
MAX_DROP = 0.005
"""Accuracy that may be lost on the validation images; half of what may be lost on the test ones."""

BATCH = 64


@dataclass(frozen=True)
class Effort:
    """How long to train."""

    views: int
    backbone_epochs: int
    exit_epochs: int
    gate_epochs: int
    alphas: tuple[float, ...]


FULL = Effort(views=40, backbone_epochs=2, exit_epochs=1, gate_epochs=1, alphas=ALPHAS)
QUICK = Effort(views=1, backbone_epochs=2, exit_epochs=2, gate_epochs=2, alphas=(0.2, 0.5))


@dataclass(frozen=True)
class DemoRun:
    """What one seed found."""

    seed: int
    alpha: float
    points: list[dict[str, float]]
    test: Evaluation
    difficulty: list[float | None]
    rank_correlation: float
    seconds: float


def run_demo(output: Path, *, seeds: Sequence[int] = (0,), quick: bool = False) -> Result:
    """Runs the demo and writes demo.json, demo.md, and the plots of the last seed to `output`.

    Raises:
        DependencyError: scikit-learn or matplotlib is not installed.
    """
    effort = QUICK if quick else FULL
    runs = [_run_seed(seed, effort, output) for seed in seeds]
    command = f"leenet-fx demo --seeds {len(runs)}" + (" --quick" if quick else "")
    result = Result(command, [_row(run) for run in runs], _figures(runs), environment())
    result.write(output / "demo.json", "Demo: digits of known difficulty")
    _say(f"Wrote demo.json, .md, .txt and -network, -tradeoff, -exits.png to {output}")
    return result


def train_backbone(digits: Digits, epochs: int, seed: int) -> nn.Module:
    """A small residual network (timm's ByobNet, nine basic blocks) trained from scratch."""
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


def _run_seed(seed: int, effort: Effort, output: Path) -> DemoRun:
    start = time.perf_counter()
    splits = load_digits(seed, views=effort.views)
    train, test = splits["train"], splits["test"]
    _say(f"Seed {seed}: training a backbone on {len(train)} placed digits …")
    backbone = train_backbone(train, effort.backbone_epochs, seed)
    ee = attach(
        backbone,
        "linear",
        example_inputs=test.images[:1],
        name="digits net",
    )
    _say(f"Trained in {time.perf_counter() - start:.0f} s. Fitting exits, then gates for each α …")
    points, (alpha, fitted) = _sweep(ee, splits, effort, seed)
    evaluation = evaluate(fitted, test.loader(BATCH), plain=backbone)
    prediction = fitted.predict(test.images)
    difficulty = [
        float(test.difficulty[prediction.exit_index == i].mean()) if outlet.count else None
        for i, outlet in enumerate(evaluation.outlets)
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
    _print(run)
    plot_network(fitted, output / "demo-network.png")
    plot_tradeoff(points, points[0]["plain_accuracy"], alpha, output / "demo-tradeoff.png")
    right = prediction.logits.argmax(1) == test.labels
    names = [f"exit {i}" for i in range(fitted.num_exits)] + ["final"]
    plot_strip(test.images, prediction.exit_index, right, names, output / "demo-exits.png")
    write_atomically(output / "demo.txt", f"{fitted.summary()}\n\n{evaluation.summary()}\n")
    return run


def _sweep(
    ee: EarlyExitModule, splits: dict[str, Digits], effort: Effort, seed: int
) -> tuple[list[dict[str, float]], tuple[float, EarlyExitModule]]:
    """Gates for each α; the cheapest that loses at most MAX_DROP on the validation images."""
    train = splits["train"].loader(BATCH, torch.Generator().manual_seed(seed))
    gates = splits["gates"].loader(BATCH, torch.Generator().manual_seed(seed))
    validate = splits["validate"].loader(BATCH)
    fit(ee, train, method="leenet", epochs={"exits": effort.exit_epochs, "gates": 0}, seed=seed)
    points: list[dict[str, float]] = []
    fitted: dict[float, EarlyExitModule] = {}
    for alpha in effort.alphas:
        epochs = {"exits": 0, "gates": effort.gate_epochs}
        fit(ee, gates, method="leenet", alpha=alpha, epochs=epochs, seed=seed)
        found = evaluate(ee, validate)
        points.append(
            {
                "alpha": alpha,
                "accuracy": found.accuracy,
                "relative_flops": found.relative_flops,
                "random_accuracy": found.random_accuracy,
                "plain_accuracy": found.backbone_accuracy,
            }
        )
        fitted[alpha] = copy.deepcopy(ee)
    allowed = [p for p in points if p["accuracy"] >= p["plain_accuracy"] - MAX_DROP]
    pool = allowed or [max(points, key=lambda point: point["accuracy"])]
    best = min(pool, key=lambda point: point["relative_flops"])["alpha"]
    return points, (best, fitted[best])


def rank_correlation(first: torch.Tensor, second: torch.Tensor) -> float:
    """Spearman's rank correlation; ties share their mean rank.

    Args:
        first, second: (n,).
    """
    ranks = [_ranks(values.double()) for values in (first, second)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


def _ranks(values: torch.Tensor) -> torch.Tensor:
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    ranks: torch.Tensor = (last - (counts - 1) / 2)[inverse]
    return ranks


def _print(run: DemoRun) -> None:
    table = tables.new_table(
        f"Seed {run.seed}, validation images: α and what it gives",
        "α",
        "accuracy %",
        "plain %",
        "FLOPs rel.",
        "chosen",
    )
    for point in run.points:
        table.add_row(
            f"{point['alpha']:g}",
            f"{100 * point['accuracy']:.2f}",
            f"{100 * point['plain_accuracy']:.2f}",
            f"{point['relative_flops']:.3f}",
            "←" if point["alpha"] == run.alpha else "",
        )
    _say(tables.render(table))
    _say(f"\nTest images, α = {run.alpha:g}")
    _say(run.test.summary())
    hard = ", ".join("–" if d is None else f"{d:.2f}" for d in run.difficulty)
    _say(
        f"Mean difficulty by exit: {hard}; rank correlation of difficulty and exit "
        f"{run.rank_correlation:.2f}. {run.seconds:.0f} s in all.\n"
    )


def _row(run: DemoRun) -> dict[str, Any]:
    test = run.test
    return {
        "seed": run.seed,
        "alpha": run.alpha,
        "plain_accuracy": test.backbone_accuracy,
        "accuracy": test.accuracy,
        "random_accuracy": test.random_accuracy,
        "relative_flops": test.relative_flops,
        "time_ratio": test.time_ratio,
        "shares": [outlet.share for outlet in test.outlets],
        "outlet_flops": [outlet.relative_flops for outlet in test.outlets],
        "difficulty": run.difficulty,
        "rank_correlation": run.rank_correlation,
        "seconds": run.seconds,
    }


def _figures(runs: Sequence[DemoRun]) -> list[Criterion]:
    def median(values: list[float]) -> float:
        return statistics.median(values)

    saved = median([100 * (1 - run.test.relative_flops) for run in runs])
    lost = median([100 * (run.test.backbone_accuracy - run.test.accuracy) for run in runs])
    outlets = median([sum(o.share >= 0.05 for o in run.test.outlets) for run in runs])
    gained = median([100 * (run.test.accuracy - run.test.random_accuracy) for run in runs])
    monotone_costs = median([_rises(run) for run in runs])
    correlation = median([run.rank_correlation for run in runs])
    ratio = median([run.test.time_ratio for run in runs])
    slowest = max(run.seconds for run in runs) / 60
    return [
        Criterion("FLOPs saved", saved, "%", "≥ 40", saved >= 40),
        Criterion("accuracy lost", lost, "points", "≤ 1", lost <= 1),
        Criterion("outlets with ≥ 5 % of the samples", outlets, "", "≥ 3", outlets >= 3),
        Criterion("above the same shares at random", gained, "points", "> 0", gained > 0),
        Criterion(
            "mean difficulty rises from exit to exit", monotone_costs, "", "1", monotone_costs == 1
        ),
        Criterion("rank correlation, difficulty and exit", correlation, "", "> 0", correlation > 0),
        Criterion("time relative to the plain model", ratio, "", "printed", True),
        Criterion("slowest seed", slowest, "minutes", "< 5", slowest < 5),
    ]


def _rises(run: DemoRun) -> float:
    """Whether difficulty rises from each outlet to the next, of those with 5 % of the samples."""
    known = [
        value
        for value, outlet in zip(run.difficulty, run.test.outlets, strict=True)
        if value is not None and outlet.share >= 0.05
    ]
    return float(all(a < b for a, b in pairwise(known)))


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
