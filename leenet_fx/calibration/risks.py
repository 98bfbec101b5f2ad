"""Risks of early exits: what a sample loses by exiting early, from cached outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from leenet_fx.calibration.cached_outputs import CachedOutputs
from leenet_fx.errors import InputError
from leenet_fx.registry import Registry

Losses: TypeAlias = Callable[[CachedOutputs], Tensor]


@dataclass(frozen=True)
class Risk:
    """An expected loss of early exits, relative to the final classifier.

    Attributes:
        name: registered name.
        limits: smallest and largest possible loss.
        labelled: whether labels are read.
        compute: outputs → losses of every sample at every exit (n, N+1).
    """

    name: str
    limits: tuple[float, float]
    labelled: bool
    compute: Losses

    def losses(self, outputs: CachedOutputs) -> Tensor:
        """Return each sample's loss if it exits at each exit (n, N+1), in double precision.

        The last column, of the final classifier, is 0.

        Args:
            outputs: of n ≥ 1 samples, with labels if the risk reads them.

        Raises:
            InputError: no samples, labels are missing, or logits are NaN or infinite.
        """
        if not len(outputs.labels):
            raise InputError(f"The risk '{self.name}' needs at least one sample, got none.")
        for index, logits in enumerate(outputs.logits):
            # Of a row with NaN the largest is NaN; −∞ is the logit of an excluded class.
            if not bool(logits.amax(1).isfinite().all()):
                raise InputError(
                    f"The logits of exit {index} contain NaN or infinity, so the risk "
                    f"'{self.name}' cannot be computed: check the images and the weights."
                )
        if self.labelled:
            self._check_labels(outputs)
        return self.compute(outputs)

    def _check_labels(self, outputs: CachedOutputs) -> None:
        classes = outputs.logits[-1].shape[1]
        labels = outputs.labels
        invalid = int(((labels < 0) | (labels >= classes)).sum())
        if invalid:
            raise InputError(
                f"The risk '{self.name}' needs class indices 0 to {classes - 1} for all "
                f"{len(labels)} samples, and {invalid} have none: pass labelled images, or use the "
                "risk 'disagreement', which reads no labels."
            )


_risks: Registry[Risk] = Registry("risk", "leenet_fx.risks")
list_risks = _risks.names
get_risk = _risks.get


def register_risk(
    name: str, limits: tuple[float, float], *, labelled: bool = True
) -> Callable[[Losses], Losses]:
    """Register a function of outputs to losses (n, N+1) as a risk, as a decorator.

    Args:
        name: of the risk.
        limits: smallest and largest possible loss; bounds are wrong if losses exceed them.
        labelled: whether the function reads labels.

    Raises:
        ValueError: the name is taken.
    """

    def register(compute: Losses) -> Losses:
        _risks.register(name)(Risk(name, limits, labelled, compute))
        return compute

    return register


@register_risk("accuracy-gap", (-1.0, 1.0))
def accuracy_gap(outputs: CachedOutputs) -> Tensor:
    """Return the loss of accuracy against the final classifier, (n, N+1).

    1 where the final classifier is right and the exit is wrong, −1 where the exit is right and the
    final classifier wrong, else 0: the mean is the difference of the two accuracies.
    """
    correct = (_predictions(outputs) == outputs.labels.unsqueeze(1)).double()
    return correct[:, -1:] - correct


@register_risk("disagreement", (0.0, 1.0), labelled=False)
def disagreement(outputs: CachedOutputs) -> Tensor:
    """Return 1 where an exit predicts another class than the final classifier, (n, N+1).

    The accuracy gap is at most the disagreement, so a bound of it bounds both, without labels.
    """
    predicted = _predictions(outputs)
    return (predicted != predicted[:, -1:]).double()


@register_risk("brier-gap", (-2.0, 2.0))
def brier_gap(outputs: CachedOutputs) -> Tensor:
    """Return the rise of the Brier score Σ (p − y)² against the final classifier, (n, N+1).

    The score of one sample lies in [0, 2]: 0 for a certain and right prediction, 2 for a certain
    and wrong one (Brier 1950). It falls with both accuracy and calibration.
    """
    truth = F.one_hot(outputs.labels, outputs.logits[-1].shape[1]).double()
    scores = torch.stack(
        [(logits.double().softmax(1) - truth).square().sum(1) for logits in outputs.logits], 1
    )
    return (scores - scores[:, -1:]).clamp(-2, 2)


def _predictions(outputs: CachedOutputs) -> Tensor:
    return torch.stack([logits.argmax(1) for logits in outputs.logits], 1)
