"""Choice of an operating point in use, without labels: a bandit over certified points (LEE)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from leenet_fx.errors import InputError
from leenet_fx.registry import unknown_name
from leenet_fx.runtime.outputs import Prediction
from leenet_fx.surgery.module import EarlyExitModule
from leenet_fx.surgery.operating_point import weights_fingerprint

EXPLORATION = 0.6
"""ζ of UCB-V."""


class SlidingWindowUcb:
    """UCB-V over a sliding window, for rewards of small variance whose means change.

    The arm with the largest x̄ + √(2Vζ·ln t/n) + R·ζ·ln t/n is chosen (Audibert, Munos & Szepesvári
    2009, with c = ⅓), with mean x̄, variance V and number n of an arm's rewards among the last
    t ≤ τ of all arms (Garivier & Moulines 2011); arms without rewards come first.

    Args:
        arms: number of arms, at least 1.
        window: τ, in samples.
        scale: R, the width of the interval of rewards.
        exploration: ζ.

    Raises:
        InputError: a number out of range.
    """

    def __init__(
        self, arms: int, *, window: int = 2000, scale: float = 1.0, exploration: float = EXPLORATION
    ) -> None:
        if arms < 1 or window < 1:
            raise InputError(f"arms and window must be at least 1, got {arms!r} and {window!r}.")
        for name, value in (("scale", scale), ("exploration", exploration)):
            if not 0 < value < math.inf:
                raise InputError(f"{name} must be positive and finite, got {value!r}.")
        self.window, self.scale, self.exploration = window, scale, exploration
        self.counts = [0] * arms
        self.sums = [0.0] * arms
        self.squares = [0.0] * arms
        self._samples: deque[tuple[int, float]] = deque()

    def choose(self) -> int:
        """Return the arm for the next samples."""
        bounds = [self._bound(arm) for arm in range(len(self.counts))]
        return max(range(len(bounds)), key=bounds.__getitem__)

    def update(self, arm: int, rewards: Sequence[float]) -> None:
        """Record the rewards of samples of an arm, in order."""
        for reward in rewards:
            self._samples.append((arm, reward))
            self.counts[arm] += 1
            self.sums[arm] += reward
            self.squares[arm] += reward * reward
            if len(self._samples) > self.window:
                oldest, value = self._samples.popleft()
                self.counts[oldest] -= 1
                self.sums[oldest] -= value
                self.squares[oldest] -= value * value

    def _bound(self, arm: int) -> float:
        count = self.counts[arm]
        if not count:
            return math.inf
        mean = self.sums[arm] / count
        # Sums that lose what they were given are not exact.
        variance = max(self.squares[arm] / count - mean * mean, 0.0)
        rate = self.exploration * math.log(len(self._samples)) / count
        return mean + math.sqrt(2 * variance * rate) + self.scale * rate


class PointBandit:
    """Predicts under the certified operating point that pays most on recent images (LEE).

    The reward of an image is its confidence − μ·cost at the exit that it takes, so no labels are
    needed, and the choice follows the images as they become easier or harder. Each point keeps its
    promise for images like those it was calibrated on; that all of K points keep theirs together
    has a probability of at least 1 − Σ(1 − level) over the points. On other images nothing is
    promised, whatever the point: watch them with `leenet_fx.DriftMonitor`.

    Args:
        ee: a calibrated network in evaluation mode; `predict` sets its policy.
        points: names of operating points; None takes all that are promised.
        mu: μ ≥ 0, the price of the backbone's cost in units of confidence.
        cost: "flops", "params", "bytes", or "seconds" as `leenet_fx.profile` measured.
        window: number of recent images that count.

    Raises:
        InputError: fewer than two points; a point without a promise, or for other weights; a number
            out of range.
        UnknownNameError: no point or cost of that name.
    """

    def __init__(
        self,
        ee: EarlyExitModule,
        points: Sequence[str] | None = None,
        *,
        mu: float,
        cost: str = "flops",
        window: int = 2000,
    ) -> None:
        known = ee.operating_points
        chosen = [name for name, point in known.items() if point.promised]
        if points is not None:
            chosen = list(dict.fromkeys(points))
        for name in chosen:
            if name not in known:
                raise unknown_name("operating point", name, known)
            if not known[name].promised:
                raise InputError(f"The operating point '{name}' promises nothing: leave it out.")
        if len(chosen) < 2:
            raise InputError(
                f"Expected at least two certified operating points, got {chosen}: calibrate for "
                "several values of max_drop."
            )
        if not 0 <= mu < math.inf:
            raise InputError(f"mu must be a finite number from 0, got {mu!r}.")
        found = weights_fingerprint(ee)
        if any(known[name].fingerprint != found for name in chosen):
            raise InputError("An operating point is for other weights: calibrate again.")
        self.ee = ee
        self.names = tuple(chosen)
        self.mu = float(mu)
        self._policies = [known[name].build_policy() for name in chosen]
        self._costs = [
            torch.tensor(ee.costs_for(policy).relative(cost)) for policy in self._policies
        ]
        largest = max(float(costs.max()) for costs in self._costs)
        self.ucb = SlidingWindowUcb(len(chosen), window=window, scale=1 + self.mu * largest)
        self.last = self.names[0]

    def predict(self, images: Tensor, **options: Any) -> Prediction:
        """Predict under the point that is chosen now, whose name is then `last`.

        Args:
            images: (B, …).
            options: as for `ee.predict`.
        """
        arm = self.ucb.choose()
        self.last = self.names[arm]
        self.ee.policy = self._policies[arm]
        prediction = self.ee.predict(images, **options)
        costs = self._costs[arm][prediction.exit_index.cpu()]
        rewards = prediction.confidence.detach().cpu() - self.mu * costs
        self.ucb.update(arm, rewards.tolist())
        return prediction
