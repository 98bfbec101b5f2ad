"""Choosing among certified operating points in use, while the images become easier and harder.

    python benchmarks/adaptation.py --data PATH --models PATH

Outputs of ResNet-20 with exits at every block on CIFAR-10's test images are drawn as a stream,
whose share of hard images (the half with the lower confidence of the final classifier) changes
every 5,000 images. The arms are points certified on other images for several drops; the reward is
confidence − μ·FLOPs. Regrets are against the arm that is best over the whole stream, and against
the arm that is best in each segment, both known only in hindsight.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from cifar10 import RESULTS
from exit_outputs import exit_outputs, missing
from torch import Tensor

from leenet_fx.calibration.bandit import SlidingWindowUcb
from leenet_fx.calibration.cached_outputs import CachedOutputs
from leenet_fx.calibration.risk_control import budget_path, control_risk
from leenet_fx.calibration.risks import get_risk
from leenet_fx.calibration.solvers import exit_indices_at
from leenet_fx.environment import environment
from leenet_fx.report.results import Criterion, Result

RESULT = RESULTS / "adaptation.json"
COMMAND = "python benchmarks/adaptation.py --data PATH --models PATH"
PAIR = "resnet20/cifar10"
DROPS = (0.005, 0.01, 0.02, 0.04)
PRICES = (0.05, 0.2, 0.5)
HARD = (0.5, 0.1, 0.9, 0.3, 0.9, 0.1, 0.7, 0.5)
SEGMENT = 5000
BATCH = 20
WINDOWS = (1000, 2000, 5000, 40000)
SEEDS = range(10)
ACCEPTED = 0.01


def confidence_of(outputs: CachedOutputs) -> Tensor:
    """Return the largest class probability at each exit and the final classifier, (n, N+1)."""
    return torch.stack([logits.float().softmax(1).amax(1) for logits in outputs.logits], 1)


def certified_points(outputs: CachedOutputs, costs: list[float]) -> list[list[float]]:
    """Return the thresholds that are certified for each drop."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(outputs.labels), generator=generator)
    design, tested = order[:500], order[500:]
    scores = confidence_of(outputs)[:, :-1]
    path = budget_path(scores[design], costs)
    losses = get_risk("accuracy-gap").losses(outputs)
    found = [
        control_risk(
            losses[tested], scores[tested], path, drop, limits=(-1.0, 1.0), generator=generator
        )
        for drop in DROPS
    ]
    return [list(certificate.thresholds) for certificate in found if certificate.certified]


def stream(hard: Tensor, seed: int) -> Tensor:
    """Return indices of images, (segments, SEGMENT)."""
    generator = torch.Generator().manual_seed(seed)
    kinds = hard.nonzero().squeeze(1), (~hard).nonzero().squeeze(1)
    segments = []
    for share in HARD:
        is_hard = torch.rand(SEGMENT, generator=generator) < share
        drawn = [kind[torch.randint(len(kind), (SEGMENT,), generator=generator)] for kind in kinds]
        segments.append(torch.where(is_hard, *drawn))
    return torch.stack(segments)


def run(rewards: Tensor, indices: Tensor, window: int, scale: float) -> tuple[float, Tensor]:
    """Return the bandit's mean reward, and how often it used each arm.

    Args:
        rewards: (n, arms).
        indices: of the images of the stream.
        window: of the bandit.
        scale: width of the interval of rewards.
    """
    ucb = SlidingWindowUcb(rewards.shape[1], window=window, scale=scale)
    total, used = 0.0, torch.zeros(rewards.shape[1])
    for batch in indices.split(BATCH):
        arm = ucb.choose()
        found = rewards[batch, arm].tolist()
        ucb.update(arm, found)
        total += sum(found)
        used[arm] += len(batch)
    return total / len(indices), used / len(indices)


def main() -> None:
    """Simulate, and write JSON and Markdown."""
    parser = argparse.ArgumentParser(description="A bandit over certified operating points.")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--models", type=Path, default=Path("models"))
    options = parser.parse_args()
    if path := missing(PAIR, options.data, options.models):
        sys.exit(f"Skipped: needs '{path}'.")
    found = exit_outputs(PAIR, options.data, options.models)
    spent, costs = 0.0, []
    for share, branch in zip(found.profile.shares, found.branches, strict=True):
        spent += branch
        costs.append(share + spent)
    costs.append(1 + spent)
    points = certified_points(found.outputs["calibration"], costs)
    confidence = confidence_of(found.outputs["test"])
    hard = confidence[:, -1] < confidence[:, -1].median()
    exits = [exit_indices_at(confidence[:, :-1], thresholds) for thresholds in points]
    rows: list[dict[str, Any]] = []
    for price in PRICES:
        rewards = torch.stack(
            [
                confidence.gather(1, at.unsqueeze(1)).squeeze(1)
                - price * confidence.new_tensor(costs)[at]
                for at in exits
            ],
            1,
        )
        for window in WINDOWS:
            regrets, dynamic, switches = [], [], []
            for seed in SEEDS:
                segments = stream(hard, seed)
                mean, used = run(rewards, segments.flatten(), window, 1 + price * max(costs))
                by_segment = rewards[segments].mean(1)
                regrets.append(float(by_segment.mean(0).max()) - mean)
                dynamic.append(float(by_segment.amax(1).mean()) - mean)
                switches.append(float(used.max()))
            rows.append(
                {
                    "mu": price,
                    "window": window,
                    "arms": len(points),
                    "regret, best fixed arm": statistics.median(regrets),
                    "regret, best arm of each segment": statistics.median(dynamic),
                    "worst fixed arm": float(
                        (by_segment.mean(0).max() - by_segment.mean(0).min()).item()
                    ),
                    "share of the most used arm": statistics.median(switches),
                }
            )
            print(rows[-1], file=sys.stderr, flush=True)
    default = [row for row in rows if row["window"] == 2000]
    criteria = [
        Criterion(
            f"μ = {row['mu']:g}: regret per image against the best fixed arm",
            row["regret, best fixed arm"],
            "of confidence",
            f"≤ {ACCEPTED}",
            row["regret, best fixed arm"] <= ACCEPTED,
        )
        for row in default
    ]
    title = "Choosing among certified operating points in use"
    Result(COMMAND, rows, criteria, environment()).write(RESULT, title)


if __name__ == "__main__":
    main()
