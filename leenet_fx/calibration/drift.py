"""Drift: exit shares met in use, against those at calibration."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from leenet_fx.calibration.bounds import check_level
from leenet_fx.calibration.seen_images import point_in_use
from leenet_fx.errors import InputError
from leenet_fx.runtime.outputs import Prediction
from leenet_fx.surgery.module import EarlyExitModule
from leenet_fx.surgery.operating_point import OperatingPoint

logger = logging.getLogger("leenet_fx")

BLOCK = 10_000
"""Number of images after which counting starts anew, so that a late drift is found too."""


class ExitShareMonitor:
    """Warns once if the exit shares met in use are not those of the calibration images.

    Exit shares need no labels, and move if images become harder, easier, or others. They may also
    stay where they are while accuracy falls: no warning is no proof.

    The test may be looked at after every image. Its evidence against equal shares is the
    likelihood ratio

        E = m(calibration) · m(use) / max_p p(calibration and use together),

    with m the mixture of all shares under Jeffreys' prior. For equal shares, whatever they are,
    1/E bounds the probability of ever meeting as much evidence (Ville 1939; Wasserman, Ramdas and
    Balakrishnan 2020, universal inference). Every `block` images counting starts anew; block
    j = 1, 2, … is tested at the level (1 − confidence) / (j (j + 1)), which sum to 1 − confidence.

    Attributes:
        name: of the operating point.
        exit_shares: (N+1,) at calibration.
        counts: (N+1,) number of images at each exit, and at the final classifier, in this block.
        samples: number of images in all blocks.
        drifted: whether drift was found; it stays True until `reset`.
    """

    def __init__(
        self,
        name: str,
        exit_shares: Sequence[float],
        calibrated_on: int,
        *,
        confidence: float = 0.99,
        block: int = BLOCK,
    ) -> None:
        """Watch exits taken.

        Args:
            name: of the operating point.
            exit_shares: (N+1,) at calibration.
            calibrated_on: number of calibration images.
            confidence: probability of no warning, however long, if there is no drift.
            block: number of images after which counting starts anew.

        Raises:
            InputError: numbers out of range.
        """
        _check(confidence, block)
        self.name = name
        self.exit_shares = tuple(exit_shares)
        self.confidence = confidence
        self.block = block
        self._expected = [round(share * calibrated_on) for share in exit_shares]
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self.counts = [0] * len(self._expected)
        self.samples = 0
        self.drifted = False
        self._blocks = 1

    def update(self, exit_index: Tensor) -> bool:
        """Count exits taken, log a warning at the first drift, and return `drifted`.

        Args:
            exit_index: (B,) as `Prediction.exit_index`, from `ee.predict` or `predict_stream`.

        Raises:
            InputError: no exit indices of this network.
        """
        exits = len(self._expected)
        integers = isinstance(exit_index, Tensor) and not exit_index.is_floating_point()
        if not integers or exit_index.ndim != 1:
            raise InputError("exit_index must be a tensor (B,) of exit indices.")
        if not len(exit_index):
            return self.drifted
        if int(exit_index.min()) < 0 or int(exit_index.max()) >= exits:
            raise InputError(f"exit_index must be in 0..{exits - 1}.")
        for part in self._parts(exit_index.detach().cpu()):
            if sum(self.counts) >= self.block:
                self.counts = [0] * exits
                self._blocks += 1
            met = part.bincount(minlength=exits).tolist()
            self.counts = [a + b for a, b in zip(self.counts, met, strict=True)]
            self.samples += len(part)
            if not self.drifted and self.log_evidence > self._threshold:
                self.drifted = True
                logger.warning("%s", self.summary())
        return self.drifted

    def _parts(self, exit_index: Tensor) -> list[Tensor]:
        """Return exits in pieces that end where blocks end."""
        room = (self.block - sum(self.counts)) or self.block
        first, rest = exit_index[:room], exit_index[room:]
        return [first, *rest.split(self.block)] if len(rest) else [first]

    @property
    def log_evidence(self) -> float:
        """Natural logarithm of the evidence E of this block against equal shares."""
        both = [a + b for a, b in zip(self._expected, self.counts, strict=True)]
        return log_mixture(self._expected) + log_mixture(self.counts) - _log_likelihood(both)

    @property
    def _threshold(self) -> float:
        """Logarithm of the evidence at which block j is found to drift."""
        return math.log(self._blocks * (self._blocks + 1) / (1 - self.confidence))

    @property
    def shares(self) -> tuple[float, ...]:
        """Exit shares met in this block, N+1; NaN before the first image."""
        total = sum(self.counts)
        return tuple(count / total if total else math.nan for count in self.counts)

    def summary(self) -> str:
        """Return shares met and expected as a sentence."""
        met = ", ".join(f"{share:.3f}" for share in self.shares)
        expected = ", ".join(f"{share:.3f}" for share in self.exit_shares)
        found = "differ from" if self.drifted else "are compatible with"
        advice = (
            f" What operating point '{self.name}' promises is not about such images: "
            "calibrate again."
            if self.drifted
            else ""
        )
        return (
            f"Exit shares of the last {sum(self.counts)} images, {met}, {found} those at "
            f"calibration, {expected} (confidence {self.confidence:g}).{advice}"
        )

    def __str__(self) -> str:
        return self.summary()


class DriftMonitor(ExitShareMonitor):
    """Watches the exits that a network takes; see `ExitShareMonitor`.

    The promise of an operating point is about images like those of its calibration. This warns once
    if the exit shares met in use are not those of the calibration images.

    Attributes:
        point: the operating point.
    """

    def __init__(
        self,
        ee: EarlyExitModule,
        point: str | OperatingPoint | None = None,
        *,
        confidence: float = 0.99,
        block: int = BLOCK,
    ) -> None:
        """Watch a network.

        Args:
            ee: a network that was calibrated.
            point: the operating point, or its name; None takes the one in use.
            confidence: probability of no warning, however long, if there is no drift.
            block: number of images after which counting starts anew.

        Raises:
            InputError: no operating point is in use; numbers out of range.
            UnknownNameError: no point of that name.
        """
        _check(confidence, block)
        if point is None:
            found = point_in_use(ee)
            if found is None:
                raise InputError(
                    "No operating point is in use, so there are no exit shares to compare with: "
                    "leenet_fx.calibrate(ee, …), or ee.use(name)."
                )
        else:
            found = ee.use(point)
        super().__init__(
            found.name, found.exit_shares, found.samples, confidence=confidence, block=block
        )
        self.ee = ee
        self.point = found

    def __call__(self, images: Tensor) -> Tensor:
        """Return the logits of `ee(images)`, and count the exits taken."""
        return self.predict(images).logits

    def predict(self, images: Tensor, **options: Any) -> Prediction:
        """Return `ee.predict(images)`, and count the exits taken.

        Raises:
            InputError: the network has another policy than the operating point.
        """
        if self.ee.policy != self.point.build_policy():
            raise InputError(
                f"The network's policy is no longer that of operating point '{self.point.name}': "
                "make a new DriftMonitor, or ee.use the point."
            )
        prediction = self.ee.predict(images, **options)
        self.update(prediction.exit_index)
        return prediction


def _check(confidence: float, block: int) -> None:
    check_level(confidence)
    if isinstance(block, bool) or not isinstance(block, int) or block < 1:
        raise InputError(f"block must be a whole number from 1, got {block!r}.")


def log_mixture(counts: Sequence[int]) -> float:
    """Return the log probability of a sequence with given counts under Jeffreys' mixture.

    Dirichlet–multinomial with all parameters 1/2 (Krichevsky and Trofimov 1981).

    Args:
        counts: number of each outcome.
    """
    size, total = len(counts), sum(counts)
    value = math.lgamma(size / 2) - math.lgamma(total + size / 2)
    return value + sum(math.lgamma(count + 0.5) - math.lgamma(0.5) for count in counts)


def _log_likelihood(counts: Sequence[int]) -> float:
    """Return the highest log probability of a sequence with given counts."""
    total = sum(counts)
    return sum(count * math.log(count / total) for count in counts if count)
