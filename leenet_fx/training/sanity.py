"""Warnings of results that are valid, but hardly what the user wants."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from leenet_fx.surgery.module import EarlyExitModule, final_classifier

logger = logging.getLogger("leenet_fx")

MIN_SAMPLES = 32
"""Number of samples below which nothing is concluded."""

ONE_EXIT = 0.95
"""Share of the samples at one exit from which a policy is hardly adaptive."""

FOLDED = 1e-3
"""Deviation from 1 up to which variances are those of folded layers, which add a small ε."""

_extremes_expected = ContextVar("extremes_expected", default=False)


@contextmanager
def extremes_expected() -> Iterator[None]:
    """Log no warning of one exit for all, where the ends of a trade-off are measured on purpose."""
    token = _extremes_expected.set(True)
    try:
        yield
    finally:
        _extremes_expected.reset(token)


def is_at_chance(predicted: Tensor, labels: Tensor) -> bool:
    """Return whether predictions are right no more often than if they did not depend on the labels.

    Independent predictions are right with probability e = Σ_k P(predicted k)·P(label k), as in
    Cohen's κ; three standard deviations above it count as better. Nothing is concluded from few
    samples, or where most labels are equal.

    Args:
        predicted: class indices (n,).
        labels: class indices (n,).
    """
    count = len(labels)
    if count < MIN_SAMPLES or int(labels.min()) < 0:
        return False
    classes = int(max(labels.max(), predicted.max())) + 1
    shares = labels.bincount(minlength=classes).double() / count
    if float(shares.max()) > 0.5:
        return False
    expected = float((shares * predicted.bincount(minlength=classes).double()).sum())
    deviation = math.sqrt(expected * (1 - expected / count))
    return int((predicted == labels).sum()) <= expected + 3 * deviation


def warn_if_at_chance(predicted: Tensor, labels: Tensor, images: str) -> None:
    """Log a warning if the backbone predicts no better than by chance.

    Args:
        predicted: classes that the final classifier predicts (n,).
        labels: class indices (n,).
        images: what was predicted, for the message.
    """
    if is_at_chance(predicted, labels):
        logger.warning(
            "The backbone predicts %.1f %% of %d %s right, no more than by chance: its weights are "
            "not trained (load them, or pretrained=True), or its classes are in another order than "
            "the labels.",
            100 * float((predicted == labels).double().mean()),
            len(labels),
            images,
        )


def warn_if_one_exit(exit_index: Tensor, names: Sequence[str], images: str) -> None:
    """Log a warning if nearly all samples exit at the same exit.

    Args:
        exit_index: of each sample (n,); N is the final classifier.
        names: of the N exits and the final classifier.
        images: what was predicted, for the message.
    """
    count = len(exit_index)
    if count < MIN_SAMPLES or _extremes_expected.get():
        return
    shares = exit_index.bincount(minlength=len(names)).double() / count
    exit_ = int(shares.argmax())
    if float(shares[exit_]) < ONE_EXIT:
        return
    at = f"exit {exit_} (after '{names[exit_]}')"
    logger.warning(
        "%.1f %% of %d %s end at %s: set thresholds with calibrate, or change alpha.",
        100 * float(shares[exit_]),
        count,
        images,
        at if exit_ < len(names) - 1 else "the final classifier",
    )


def warn_if_untrained(ee: EarlyExitModule, method: str) -> None:
    """Log a warning if the final classifier is new and has its initial weights.

    Args:
        ee: a network whose final classifier a method does not train.
        method: name of the method.
    """
    final = final_classifier(ee)
    if ee.spec.classifier_is_new and final is not None and has_initial_weights(final):
        logger.warning(
            "The final classifier is new, and method '%s' does not train it, though it may be the "
            "exits' teacher and predicts for samples that do not exit early: train it first, "
            "fit(ee, train, method='shallow-deep', epochs={'exits': 0}).",
            method,
        )


def warn_if_folded(ee: EarlyExitModule, method: str) -> None:
    """Log a warning if BatchNorm of a backbone that is to be trained has no statistics of its own.

    Weights that were converted from a format without BatchNorm have these in the convolutions: its
    layers have means of 0, variances of 1, and biases. Statistics of batches are others.

    Args:
        ee: the network.
        method: name of the method that trains the backbone.
    """
    norms = [
        module
        for name, module in ee.named_modules()
        if isinstance(module, _BatchNorm) and not name.startswith("exits.")
    ]
    folded = [norm for norm in norms if _is_folded(norm)]
    if folded:
        logger.warning(
            "%d of the backbone's %d BatchNorm layers have means of 0, variances of 1 and biases, "
            "as if they were folded into convolutions. Method '%s' trains them by the statistics "
            "of batches, which changes what the network computes: freeze their parameters in the "
            "model before attach (requires_grad_(False)), and they stay as they are.",
            len(folded),
            len(norms),
            method,
        )


def _is_folded(norm: _BatchNorm) -> bool:
    mean, variance, bias = norm.running_mean, norm.running_var, norm.bias
    if mean is None or variance is None or bias is None or not bias.requires_grad:
        return False
    as_new = bool((mean == 0).all()) and bool(((variance - 1).abs() < FOLDED).all())
    return as_new and bool((bias != 0).any())


def has_initial_weights(layer: nn.Module) -> bool:
    """Return whether the weights of a layer are distributed as `attach` initialises new ones.

    These are uniform in ±1/√n, with n inputs; training moves some of them out of this range.
    """
    weight = layer.weight
    assert isinstance(weight, Tensor)
    values = weight.detach().double().abs() * math.sqrt(weight[0].numel())
    # The mean of |u|, u uniform in ±1, is 0.5.
    near = abs(float(values.mean()) - 0.5) < 0.5 / math.sqrt(values.numel()) + 0.02
    return near and float(values.max()) <= 1 + 1e-2
