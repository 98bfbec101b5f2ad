"""Comparison of an exported network with the network itself.

Thresholds are set midway between sorted confidences, so that every way in which B samples can
spread over the exits is run, and no decision is closer than `MARGIN` to its threshold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from leenet_fx.errors import EarlyExitError, ExportError, InputError, first_line
from leenet_fx.export.formats import Runner
from leenet_fx.export.stage_modules import ExportPlan
from leenet_fx.policies import AlphaConditionedGate, Policy, ThresholdPolicy, policy_scores
from leenet_fx.runtime.outputs import build_prediction
from leenet_fx.surgery.module import EarlyExitModule

MARGIN = 1e-6
"""Least distance between a confidence and a threshold."""

TOLERANCE = 1e-5
"""Largest difference of logits, relative to the largest logit of the batch."""

BATCH_SIZES = (1, 2, 3, 4)
LARGE_BATCH = 32

MAX_COMPOSITIONS = 40
"""Of each batch size; up to three exits have fewer."""

SCALES = (1.0, 4.0, 0.25)
"""Standard deviations of random images that are tried one after the other."""


@dataclass(frozen=True)
class Verification:
    """What was compared.

    Attributes:
        batches: number of batches.
        unreachable: number of compositions for which no thresholds were found: the policy never
            spreads samples so, or confidences are closer than `MARGIN`.
        largest_error: largest difference of logits, relative to the largest logit of the batch.
    """

    batches: int = 0
    unreachable: int = 0
    largest_error: float = 0.0


class Reference(Protocol):
    """What an exported network must compute."""

    def confidences(self, policy: ThresholdPolicy, images: Tensor) -> Tensor:
        """Return the confidences of a batch at every exit, (N, B) float64."""

    def predict(self, policy: Policy, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, classes) and exits (B,)."""


class NetworkReference:
    """The network itself."""

    def __init__(self, plan: ExportPlan) -> None:
        self._plan = plan

    @torch.inference_mode()
    def predict(self, policy: Policy, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, classes) and exits (B,)."""
        return self._plan.ee.run_with(images, policy)

    @torch.inference_mode()
    def confidences(self, policy: ThresholdPolicy, images: Tensor) -> Tensor:
        """Return the confidences of a batch at every exit, (N, B) float64."""
        ee = self._plan.ee
        if policy.alpha is None:
            outputs = ee.all_exits(images)
            scores = [
                policy_scores(policy, index, outputs.logits, outputs.gate_logits)
                for index in range(ee.num_exits)
            ]
            found = [policy.confidence(i, s) for i, s in enumerate(scores)]
        else:
            # `all_exits` has no α: the stages have.
            found = []
            tensors: tuple[Tensor, ...] = (images,)
            alpha = torch.tensor(policy.alpha)
            for stage in self._plan.stages[:-1]:
                _, confidence, *passed = stage(*tensors, alpha)
                found.append(confidence)
                tensors = tuple(passed)
        return torch.stack(found).double()


def verify(
    plan: ExportPlan,
    run: Runner,
    *,
    images: Tensor | None = None,
    batch_sizes: Sequence[int] | None = None,
    tolerance: float = TOLERANCE,
    reference: Reference | None = None,
) -> Verification:
    """Compare an exported network with the network.

    Batches of 1 to 4 random images, and of the given ones, are run under thresholds for every
    composition of exits, or for `MAX_COMPOSITIONS` of them, evenly spread, if there are more; then
    one batch of `LARGE_BATCH`, an empty one, the active thresholds, and two other values of α if
    gates are conditioned on it.

    Args:
        plan: the network.
        run: the exported one.
        images: real images (n, …), n ≥ 1.
        batch_sizes: those that the file accepts; None for all.
        tolerance: largest accepted difference of logits, relative to the largest logit.
        reference: what the exported network is compared with; None for the network.

    Raises:
        ExportError: exits or logits differ, or the runtime fails.
    """
    comparison = _Comparison(plan, run, tolerance, reference or NetworkReference(plan))
    accepted = (*BATCH_SIZES, LARGE_BATCH, 0) if batch_sizes is None else tuple(batch_sizes)
    generator = torch.Generator().manual_seed(1)
    shape = plan.image_shape
    sources = [torch.randn(max(BATCH_SIZES), *shape, generator=generator) * s for s in SCALES]
    for size in [size for size in BATCH_SIZES if size in accepted]:
        comparison.check_compositions([source[:size] for source in sources])
        if images is not None and len(images) >= size:
            comparison.check_compositions([images[:size]])
    for size in [size for size in accepted if size > max(BATCH_SIZES)]:
        comparison.check_spread(torch.randn(size, *shape, generator=generator))
    comparison.check_active(sources[0][: max((s for s in BATCH_SIZES if s in accepted), default=1)])
    if 0 in accepted:
        comparison.check_empty(sources[0][:0])
    return comparison.result


def thresholds_for(
    plan: ExportPlan, images: Tensor, counts: Sequence[int]
) -> tuple[float, ...] | None:
    """Return thresholds under which given numbers of samples exit at each exit.

    Args:
        plan: the network.
        images: (B, …).
        counts: N+1 numbers, whose sum is B.

    Returns:
        N thresholds on the policy's scale; None if there are none.
    """
    policy = plan.ee.policy
    if not isinstance(policy, ThresholdPolicy):
        return None
    confidences = NetworkReference(plan).confidences(policy, images)
    found = _policy_for(policy, confidences, counts)
    return None if found is None else found.thresholds


class _Comparison:
    def __init__(
        self, plan: ExportPlan, run: Runner, tolerance: float, reference: Reference
    ) -> None:
        self.plan = plan
        self.reference = reference
        self.run = run
        self.tolerance = tolerance
        self.result = Verification()

    def check_compositions(self, sources: Sequence[Tensor]) -> None:
        """Compare under thresholds for each composition, on the first batch that allows it."""
        policy = self.plan.ee.policy
        if not isinstance(policy, ThresholdPolicy):
            self._check(sources[0], None, None)
            return
        confidences = [self.reference.confidences(policy, images) for images in sources]
        for counts in _chosen(len(sources[0]), self.plan.num_exits + 1):
            for images, values in zip(sources, confidences, strict=True):
                found = _policy_for(policy, values, counts)
                if found is not None:
                    self._check(images, found, None)
                    break
            else:
                self.result = replace(self.result, unreachable=self.result.unreachable + 1)

    def check_spread(self, images: Tensor) -> None:
        """Compare a batch that spreads evenly over the exits, as far as the policy allows."""
        policy = self.plan.ee.policy
        found = None
        if isinstance(policy, ThresholdPolicy):
            share, rest = divmod(len(images), self.plan.num_exits + 1)
            counts = [share] * self.plan.num_exits + [share + rest]
            found = _policy_for(policy, self.reference.confidences(policy, images), counts)
        self._check(images, found, None)

    def check_active(self, images: Tensor) -> None:
        """Compare under the active thresholds, and other values of α."""
        policy = self.plan.ee.policy
        self._check(images, None, None)
        if isinstance(policy, AlphaConditionedGate):
            for alpha in (0.0, 1.0):
                self._check(images, None, alpha)

    def check_empty(self, images: Tensor) -> None:
        """Compare shapes for a batch without images."""
        logits, exit_index, confidence = self._outputs(images, None, None)
        classes = self.plan.ee.spec.num_classes
        shapes = logits.shape, exit_index.shape, confidence.shape
        if shapes != ((0, classes), (0,), (0,)):
            raise ExportError(f"An empty batch has outputs of shapes {shapes}.")
        self.result = replace(self.result, batches=self.result.batches + 1)

    def _check(self, images: Tensor, policy: ThresholdPolicy | None, alpha: float | None) -> None:
        active = self.plan.ee.policy
        expected_policy = active if policy is None else policy
        if alpha is not None:
            expected_policy = expected_policy.with_alpha(alpha)
        if policy is None and not self._is_decided(expected_policy, images):
            return
        logits, exits = self.reference.predict(expected_policy, images)
        thresholds = None
        if policy is not None:
            thresholds = [policy.threshold_at(index) for index in range(self.plan.num_exits)]
        found, found_exits, confidence = self._outputs(images, thresholds, alpha)
        where = f"a batch of {len(images)} under {expected_policy!r}"
        if found_exits.tolist() != exits.tolist():
            raise ExportError(
                f"The exported network has other exits on {where}: expected {exits.tolist()}, got "
                f"{found_exits.tolist()}."
            )
        expected = logits.numpy()
        scale = max(float(np.abs(expected).max()), 1e-30)
        error = float(np.abs(found - expected).max()) / scale
        if not error <= self.tolerance:
            raise ExportError(
                f"The exported network has other logits on {where}: the largest difference is "
                f"{error:.2g} of the largest logit, at most {self.tolerance:g} is accepted."
                f"{_rounding(self.plan.ee, expected_policy, images)}"
            )
        sure = build_prediction(
            torch.from_numpy(found), torch.from_numpy(found_exits), None, active.temperatures
        ).confidence.numpy()
        if not np.allclose(confidence, sure, atol=self.tolerance):
            raise ExportError(f"The exported network has other confidences on {where}.")
        self.result = replace(
            self.result,
            batches=self.result.batches + 1,
            largest_error=max(self.result.largest_error, error),
        )

    def _is_decided(self, policy: Policy, images: Tensor) -> bool:
        """Return whether no confidence is closer than `MARGIN` to its threshold."""
        if not isinstance(policy, ThresholdPolicy):
            return True
        bounds = [policy.sign * policy.threshold_at(index) for index in range(self.plan.num_exits)]
        confidences = self.reference.confidences(policy, images)
        distances = confidences - torch.tensor(bounds).double().unsqueeze(1)
        return bool((distances.abs() >= MARGIN).all())

    def _outputs(
        self, images: Tensor, thresholds: Sequence[float] | None, alpha: float | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        try:
            return self.run(images.contiguous().numpy(), thresholds, alpha)
        except EarlyExitError:
            raise
        except Exception as error:
            # Runtimes raise errors of any kind.
            raise ExportError(
                f"The runtime cannot run the exported network on a batch of {len(images)}: "
                f"{first_line(error)}"
            ) from error


def _rounding(ee: EarlyExitModule, policy: Policy, images: Tensor) -> str:
    """Return a sentence on a network whose own results depend on rounding, "" for others."""
    try:
        with torch.inference_mode():
            logits, exits = ee.run_with(images, policy)
            precise, same_exits = deepcopy(ee).double().run_with(images.double(), policy)
    except RuntimeError:
        # It has constants of 32 bits.
        return ""
    scale = max(float(precise.abs().max()), 1e-30)
    difference = float((logits - precise).abs().max()) / scale
    if not torch.equal(exits, same_exits) or not difference > TOLERANCE / 2:
        return ""
    return (
        f" It amplifies rounding: PyTorch's own results in 32 bits differ from those in 64 by "
        f"{difference:.2g} there."
    )


def _policy_for(
    policy: ThresholdPolicy, confidences: Tensor, counts: Sequence[int]
) -> ThresholdPolicy | None:
    """Return the policy under which given numbers of samples exit at each exit.

    Args:
        policy: gives kind and options.
        confidences: (N, B).
        counts: N+1 numbers, whose sum is B.

    Returns:
        None if there is none, or a decision would be closer than `MARGIN`.
    """
    arrived = list(range(confidences.shape[1]))
    bounds = []
    for values, count in zip(confidences.tolist(), counts, strict=False):
        arrived.sort(key=lambda sample: -values[sample])
        ordered = [values[sample] for sample in arrived]
        if not ordered:
            bound = float("inf")
        elif count == 0:
            bound = ordered[0] + 0.5
        elif count == len(ordered):
            bound = ordered[-1] - 0.5
        else:
            if ordered[count - 1] - ordered[count] < 2 * MARGIN:
                return None
            bound = (ordered[count - 1] + ordered[count]) / 2
        bounds.append(float(np.float32(bound)))
        arrived = arrived[count:]
    try:
        return policy.with_confidence(bounds)
    except InputError:
        return None


def _chosen(size: int, bins: int) -> Iterator[tuple[int, ...]]:
    """Yield the compositions to check: all, or evenly spread ones and those of one exit only."""
    every = list(_compositions(size, bins))
    if len(every) <= MAX_COMPOSITIONS:
        yield from every
        return
    step = len(every) / MAX_COMPOSITIONS
    chosen = {every[int(i * step)] for i in range(MAX_COMPOSITIONS)}
    chosen |= {counts for counts in every if max(counts) == size}
    yield from sorted(chosen)


def _compositions(size: int, bins: int) -> Iterator[tuple[int, ...]]:
    """Yield every way to write `size` as a sum of `bins` numbers from 0."""
    for bars in combinations(range(size + bins - 1), bins - 1):
        edges = (-1, *bars, size + bins - 1)
        yield tuple(right - left - 1 for left, right in pairwise(edges))
