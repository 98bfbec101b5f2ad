"""The network to keep of a sweep or a comparison."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from leenet_fx.calibration.cached_outputs import cached_exit_indices, compute_outputs
from leenet_fx.errors import InputError
from leenet_fx.evaluation.metrics import accuracy
from leenet_fx.features.feature_cache import FeatureCache, cache_features
from leenet_fx.surgery.module import EarlyExitModule


class AnyPoint(Protocol):
    """A point of a sweep or of a frontier."""

    @property
    def relative_flops(self) -> float:
        """Mean FLOPs on the test images, relative to the backbone."""


@dataclass(frozen=True)
class Choice:
    """A network that was kept, as measured on the images that it was chosen on.

    Attributes:
        network: the network, with its policy.
        point: the point of the sweep or the frontier, which is measured on the test images.
        samples: number of images that it was chosen on.
        accuracy: on these images.
        backbone_accuracy: accuracy of its final classifier on these images.
        relative_flops: mean FLOPs on these images, relative to the backbone.
    """

    network: EarlyExitModule
    point: AnyPoint
    samples: int
    accuracy: float
    backbone_accuracy: float
    relative_flops: float

    @property
    def drop(self) -> float:
        """Accuracy of the backbone less that of the network."""
        return self.backbone_accuracy - self.accuracy

    def __str__(self) -> str:
        return (
            f"chosen on {self.samples} images: accuracy {100 * self.accuracy:.2f} % (backbone "
            f"{100 * self.backbone_accuracy:.2f} %), {100 * self.relative_flops:.1f} % of the "
            "FLOPs; nothing is promised"
        )


class NetworkKeeper:
    """Keeps the best network of a sweep or a comparison: pass it as `on_point`.

    Networks are chosen on images of their own, so that figures of the test images stay those of
    new images. Accuracy within `max_drop` is an estimate from these images; `leenet_fx.calibrate`
    makes a promise of it.
    """

    def __init__(
        self,
        data: Iterable[Any] | FeatureCache,
        *,
        max_drop: float | None = None,
        budget: float | None = None,
    ) -> None:
        """State what to keep.

        Args:
            data: (images, labels) that nothing is fitted to, and that are not the test images.
            max_drop: keep the cheapest network whose accuracy is at most this fraction below its
                final classifier's.
            budget: keep the most accurate network whose mean FLOPs, relative to the backbone, are
                at most this.

        Raises:
            InputError: not exactly one of `max_drop` and `budget`, or it is out of range.
        """
        given = [value for value in (max_drop, budget) if value is not None]
        if len(given) != 1 or isinstance(given[0], bool) or not 0 <= given[0] <= 1:
            raise InputError(
                f"Expected one of max_drop and budget, a fraction from 0 to 1, got "
                f"max_drop={max_drop!r}, budget={budget!r}."
            )
        self.data = data
        self.max_drop = max_drop
        self.budget = budget
        self._best: Choice | None = None
        self._nearest: Choice | None = None
        self._cache: FeatureCache | None = None

    def __call__(self, point: AnyPoint, network: EarlyExitModule) -> None:
        """Measure a network, and keep a copy of it if it is the best so far."""
        outputs = compute_outputs(network, self._features(network))
        taken = cached_exit_indices(network, network.policy, outputs)
        final = taken.new_full(taken.shape, network.num_exits)
        if network.policy.reads == "nothing":
            spent = 1.0
        else:
            costs = outputs.logits[0].new_tensor(network.costs.relative("flops")).double()
            spent = float(costs[taken].mean())
        found = Choice(
            network,
            point,
            len(taken),
            accuracy(outputs.is_correct(taken)),
            accuracy(outputs.is_correct(final)),
            spent,
        )
        if self._nearest is None or self._excess(found) < self._excess(self._nearest):
            self._nearest = found
        if self._excess(found) <= 0 and (self._best is None or self._beats(found, self._best)):
            self._best = replace(found, network=copy.deepcopy(network))

    def _features(self, network: EarlyExitModule) -> FeatureCache:
        """Return cached features of the images that networks are chosen on."""
        if isinstance(self.data, FeatureCache):
            return self.data
        if self._cache is None or not self._cache.fits(network):
            self.close()
            self._cache = cache_features(network, self.data, name="val images")
        return self._cache

    def close(self) -> None:
        """Free the cached features."""
        if self._cache is not None:
            self._cache.close()
        self._cache = None

    @property
    def choice(self) -> Choice:
        """The network that is kept.

        Raises:
            InputError: no network is good enough, or none was measured.
        """
        if self._best is not None:
            return self._best
        if self._nearest is None:
            raise InputError("No network was measured: pass the keeper as on_point.")
        if self.max_drop is not None:
            raise InputError(
                f"No network is within max_drop={self.max_drop:g}: the lowest drop is "
                f"{self._nearest.drop:.4f}, at {self._nearest.relative_flops:.3f} of the FLOPs."
            )
        raise InputError(
            f"No network is within budget={self.budget:g}: the cheapest has "
            f"{self._nearest.relative_flops:.3f} of the FLOPs."
        )

    def _excess(self, found: Choice) -> float:
        """Return by how much a network misses the target; 0 or less if it does not."""
        if self.max_drop is not None:
            return found.drop - self.max_drop - 1e-12
        assert self.budget is not None
        return found.relative_flops - self.budget

    def _beats(self, found: Choice, other: Choice) -> bool:
        cheap = (-found.relative_flops, found.accuracy), (-other.relative_flops, other.accuracy)
        right = (found.accuracy, -found.relative_flops), (other.accuracy, -other.relative_flops)
        first, second = cheap if self.max_drop is not None else right
        return first > second
