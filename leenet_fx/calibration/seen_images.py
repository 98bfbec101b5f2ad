"""Warnings where the images of a calibration are not new to the network, or not kept for it."""

from __future__ import annotations

import logging
import math
from weakref import WeakKeyDictionary

from scipy import stats
from torch import Tensor, nn

from leenet_fx.surgery.module import EarlyExitModule
from leenet_fx.surgery.operating_point import ImageStatistics, OperatingPoint

logger = logging.getLogger("leenet_fx")

SIGNIFICANCE = 1e-3
"""Probability of the warning of images seen in training where there are none."""

TOLERANCE = 1e-6
"""Largest difference of statistics that batches of another size make."""

_evaluated: WeakKeyDictionary[nn.Module, list[ImageStatistics]] = WeakKeyDictionary()
"""Statistics of the images that each network was evaluated on in this process."""


def image_statistics(confidence: Tensor) -> ImageStatistics | None:
    """Return statistics by which images are recognised, in any order.

    Args:
        confidence: (n,) largest class probability of the final classifier, n ≥ 1.

    Returns:
        None if the confidences are all alike, as those of other images may be.
    """
    values = confidence.double()
    mean, square = float(values.mean()), float(values.square().mean())
    error = math.sqrt(max(square - mean**2, 0) / len(values))
    # Means of other images differ by about the standard error.
    if error < 10 * TOLERANCE:
        return None
    return ImageStatistics(len(values), mean, square)


def are_the_same(first: ImageStatistics | None, second: ImageStatistics | None) -> bool:
    """Return whether two statistics are those of the same images."""
    if first is None or second is None or first.count != second.count:
        return False
    pairs = ((first.mean, second.mean), (first.mean_square, second.mean_square))
    return all(abs(a - b) <= TOLERANCE for a, b in pairs)


def remember_evaluation(ee: EarlyExitModule, found: ImageStatistics | None) -> None:
    """Remember the images that a network was evaluated on."""
    known = _evaluated.setdefault(ee, [])
    if found is not None and not any(are_the_same(found, other) for other in known):
        known.append(found)


def warn_if_evaluated(ee: EarlyExitModule, found: ImageStatistics | None) -> None:
    """Log a warning if a network was evaluated on the images that it is calibrated on."""
    if any(are_the_same(found, other) for other in _evaluated.get(ee, ())):
        logger.warning(
            "These are the images that this network was evaluated on: what is chosen on them must "
            "be evaluated on others, or the result is too good."
        )


def warn_if_calibrated(ee: EarlyExitModule, found: ImageStatistics | None) -> bool:
    """Log a warning if a network is evaluated on the images of the operating point in use.

    Returns:
        Whether it is.
    """
    point = point_in_use(ee)
    if point is None or not are_the_same(found, point.images):
        return False
    logger.warning(
        "These are the images that operating point '%s' was calibrated on: accuracy and cost are "
        "too good. Evaluate on others.",
        point.name,
    )
    return True


def warn_if_fitted(ee: EarlyExitModule, correct: Tensor, backbone_correct: Tensor) -> None:
    """Log a warning if the accuracy at calibration is suspiciously above that of an evaluation.

    One-sided tests of two proportions, for the backbone and for the operating point.

    Args:
        ee: the evaluated network.
        correct: (n,) bool, which samples are right at the exit taken.
        backbone_correct: (n,) bool, which samples the backbone has right.
    """
    point = point_in_use(ee)
    if point is None or point.accuracy is None or point.backbone_accuracy is None:
        return
    for name, before, now in (
        ("the backbone", point.backbone_accuracy, backbone_correct),
        ("the network", point.accuracy.estimate, correct),
    ):
        after = float(now.double().mean())
        if _is_higher(before, point.samples, after, len(now)):
            logger.warning(
                "%s is right on %.1f %% of these %d images, and was on %.1f %% of the %d images of "
                "operating point '%s': it was probably fitted to those, or these are harder. Its "
                "promise does not hold here; calibrate on images that nothing was fitted to.",
                name.capitalize(),
                100 * after,
                len(now),
                100 * before,
                point.samples,
                point.name,
            )
            return


def point_in_use(ee: EarlyExitModule) -> OperatingPoint | None:
    """Return the operating point whose policy a network has; None if it has none."""
    points = reversed(ee.spec.operating_points)
    return next((point for point in points if point.build_policy() == ee.policy), None)


def _is_higher(before: float, samples: int, after: float, count: int) -> bool:
    """Return whether a share is significantly above that of another sample (pooled z-test)."""
    pooled = (before * samples + after * count) / (samples + count)
    deviation = math.sqrt(pooled * (1 - pooled) * (1 / samples + 1 / count))
    return before > after and before - after > stats.norm.isf(SIGNIFICANCE / 2) * deviation
