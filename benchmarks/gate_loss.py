"""Speed of the vectorised gate loss and of a double loop, forward and backward.

Writes benchmarks/results/gate_loss.json: `python benchmarks/gate_loss.py`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from leenet_fx.environment import environment
from leenet_fx.objectives import leenet_loss
from leenet_fx.report.results import Criterion, Result

BATCH, EXITS, PAIRS, ALPHA = 128, 4, 30, 0.5
RESULTS = Path(__file__).parent / "results" / "gate_loss.json"


def double_loop(losses: Tensor, gates: Tensor, costs: Tensor, alpha: float) -> Tensor:
    """Return the same loss with loops over samples and exits, as in reference code."""
    total = torch.zeros(())
    samples, classifiers = losses.shape
    for b in range(samples):
        remaining = torch.ones(())
        for i in range(classifiers):
            gate = torch.sigmoid(gates[b, i]) if i < classifiers - 1 else torch.ones(())
            total = total + gate * remaining * ((1 - alpha) * losses[b, i] + alpha * costs[i])
            remaining = remaining * (1 - gate)
    return total / samples


def seconds(loss: Callable[..., Tensor], losses: Tensor, gates: Tensor, costs: Tensor) -> float:
    """Return the wall-clock time of one forward and backward pass."""
    gates = gates.clone().requires_grad_()
    start = time.perf_counter()
    loss(losses, gates, costs, ALPHA).backward()
    return time.perf_counter() - start


def main() -> None:
    """Time interleaved pairs and write the result."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    losses = torch.rand(BATCH, EXITS + 1, generator=generator)
    gates = torch.randn(BATCH, EXITS, generator=generator)
    costs = torch.linspace(0.2, 1.0, EXITS + 1)
    pairs = [
        (seconds(double_loop, losses, gates, costs), seconds(leenet_loss, losses, gates, costs))
        for _ in range(PAIRS + 3)
    ][3:]
    slow, fast = (1e3 * statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = slow / fast
    result = Result(
        command="python benchmarks/gate_loss.py",
        rows=[
            {"loss": "double loop", "batch": BATCH, "exits": EXITS, "median_ms": slow},
            {"loss": "leenet_loss", "batch": BATCH, "exits": EXITS, "median_ms": fast},
        ],
        criteria=[Criterion("gate loss, speed-up", ratio, "x", "≥ 50", ratio >= 50)],
        environment=environment(),
    )
    result.write(RESULTS, "Gate loss: vectorised and as a double loop")
    print(f"{slow:.1f} ms against {fast:.3f} ms: {ratio:.0f} x")


if __name__ == "__main__":
    main()
