"""Batches through a chain of tiers, of which this process runs one."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from leenet_fx.errors import EarlyExitError, InputError
from leenet_fx.runtime.active_batch import ActiveBatch
from leenet_fx.runtime.outputs import Prediction
from leenet_fx.tiers.answers import Answers, read_answers
from leenet_fx.tiers.coding import Coding, check_coding
from leenet_fx.tiers.link import Link, LinkError, check_positive, connect
from leenet_fx.tiers.messages import Message, MessageError
from leenet_fx.tiers.tier import LocalAnswer, Tier

logger = logging.getLogger("leenet_fx")

RETRY_SECONDS = 5.0
"""Time after a failure in which the next tier is not tried again."""

WAIT_SHARE = 0.8
"""Share of the time that a tier is waited for, in which it waits for the next one itself, so that
its own answer still arrives in time."""


class TierMismatchError(InputError):
    """The next tier runs another network or policy, or other stages than those that follow."""


@dataclass(frozen=True)
class NextTier:
    """Where the remaining samples are sent, and how.

    Attributes:
        address: HOST:PORT.
        coding: of live tensors.
        bandwidth: of the link, in Mbit/s and either direction; None for no limit.
        timeout: seconds that an answer is waited for.

    Raises:
        UnknownNameError: no such coding.
        InputError: a bandwidth or timeout that is not above 0.
    """

    address: str
    coding: Coding = "unchanged"
    bandwidth: float | None = None
    timeout: float = 30.0

    def __post_init__(self) -> None:
        check_coding(self.coding)
        check_positive(self.timeout, "timeout (seconds)")
        if self.bandwidth is not None:
            check_positive(self.bandwidth, "bandwidth of a link (Mbit/s)")


@dataclass(frozen=True)
class TierPrediction:
    """Predictions for a batch that several tiers have worked on.

    Attributes:
        prediction: as `ee.predict` returns it.
        tier: (B,) position of the tier that answered each sample, 0 for the first.
        fallback: (B,) whether a tier answered at its last exit because the next was gone or did not
            answer in time.
        sent: bytes that each link carried to the next tier.
    """

    prediction: Prediction
    tier: Tensor
    fallback: Tensor
    sent: tuple[int, ...]


class Chain:
    """A tier and its connection to the next one.

    Attributes:
        tier: that this process runs.
        following: first and stop of the stages of all later tiers, when connected.
    """

    def __init__(self, tier: Tier, following: NextTier | None = None) -> None:
        """Connect to the next tier, if there is one.

        Args:
            tier: that this process runs.
            following: where its remaining samples go; None for the last tier.

        Raises:
            InputError: a last tier without the final classifier, or one with a next.
            LinkError: the next tier cannot be reached.
            TierMismatchError: it runs another network or policy, or other stages.
        """
        if tier.is_last != (following is None):
            stages = tier.ee.num_exits + 1
            wrong = "has no next tier" if following is None else "has a next tier"
            raise InputError(
                f"The tier with stages {tier.first}:{tier.stop} of {stages} {wrong}: only the last "
                f"tier, which runs up to stage {stages - 1}, has none."
            )
        self.tier = tier
        self.following: list[tuple[int, int]] = []
        self._next = following
        self._link: Link | None = None
        self._retry_at = 0.0
        if following is not None:
            self._link = self._connect(following)

    def predict(self, images: Tensor) -> TierPrediction:
        """Predict a batch; this tier must be the first.

        Args:
            images: (B, …) of the size that the network was attached for.

        Raises:
            InputError: images that do not fit, or this tier begins with a later stage.
            LinkError: the next tier is gone, and this one has no exit to answer at.
        """
        ee = self.tier.ee
        if self.tier.first:
            raise InputError(
                f"Images enter at stage 0, and this tier begins with stage {self.tier.first}."
            )
        ee.check_images(images)
        shape = tuple(images.shape[1:])
        if self._next is not None and shape != ee.spec.image_shape:
            raise InputError(
                f"Tiers take images of the size that the network was attached for, "
                f"{ee.spec.image_shape}, got {shape}."
            )
        active = ActiveBatch((images,), len(images), torch.arange(len(images), device=ee.device))
        answers = self.answer(active, None)
        disabled = ee.policy.reads == "nothing"
        return TierPrediction(
            ee.prediction(answers.logits, answers.exit_index, early_exits_disabled=disabled),
            answers.tier,
            answers.fallback,
            answers.sent,
        )

    @torch.inference_mode()
    def answer(self, active: ActiveBatch, seconds: float | None) -> Answers:
        """Answer all samples of a batch.

        Args:
            active: the samples before this tier's first stage.
            seconds: that the tier before waits; None for no limit.

        Raises:
            LinkError: the next tier is gone, and this one has no exit to answer at.
        """
        ee = self.tier.ee
        weight = next(ee.exits.parameters())
        logits = weight.new_empty(active.count, ee.spec.num_classes)
        if not active.count:
            return Answers.empty(logits)
        answers, local = self.tier.run(active, logits)
        if not active.count:
            return answers
        assert active.indices is not None
        assert self._next is not None
        remaining = active.indices
        try:
            later, sent = self._ask(self._next, active, logits[remaining], seconds)
        except TierMismatchError:
            raise
        except (LinkError, MessageError) as error:
            self._answer_locally(answers, remaining, local, error)
        else:
            answers.include(remaining, later, sent)
        return answers

    def close(self) -> None:
        """Close the connection to the next tier."""
        if self._link is not None:
            self._link.close()
            self._link = None

    def _answer_locally(
        self,
        answers: Answers,
        remaining: Tensor,
        local: LocalAnswer | None,
        error: EarlyExitError,
    ) -> None:
        """Answer samples that cannot be sent at the last local exit."""
        if self._link is not None or time.monotonic() >= self._retry_at:
            logger.warning(
                "The next tier fails, so samples are answered at the last local exit: %s", error
            )
            self._retry_at = time.monotonic() + RETRY_SECONDS
        self.close()
        if local is None:
            raise LinkError(
                f"The next tier fails, and this one has no exit that could answer: {error}"
            ) from error
        logits, exit_index = local()
        answers.record(remaining, logits, exit_index, fallback=True)

    def _ask(
        self, following: NextTier, active: ActiveBatch, like: Tensor, seconds: float | None
    ) -> tuple[Answers, int]:
        """Send samples and return the answers, and the number of bytes sent."""
        assert self.tier.behind is not None
        if self._link is None:
            if time.monotonic() < self._retry_at:
                raise LinkError(f"'{following.address}' failed a moment ago.")
            self._link = self._connect(following)
        wait = following.timeout if seconds is None else min(following.timeout, seconds)
        message = self.tier.behind.message(active, following.coding, seconds=WAIT_SHARE * wait)
        start = time.monotonic()
        sent = self._link.send(message)
        reply = self._link.receive(max(0.001, wait - (time.monotonic() - start)))
        if reply.kind != "answers":
            raise LinkError(_reason(reply))
        return read_answers(reply, like, range(self.tier.stop, self.tier.ee.num_exits + 1)), sent

    def _connect(self, following: NextTier) -> Link:
        link = connect(following.address, timeout=following.timeout, bandwidth=following.bandwidth)
        try:
            identity = self.tier.identity
            fields: dict[str, Any] = {"network": identity.network, "policy": identity.policy}
            if following.bandwidth is not None:
                fields["bandwidth"] = following.bandwidth
            link.send(Message("hello", {**fields, "stage": self.tier.stop}))
            reply = link.receive(following.timeout)
            if reply.kind == "refused":
                raise TierMismatchError(f"'{following.address}': {_reason(reply)}")
            if reply.kind != "ready":
                raise LinkError(_reason(reply))
            self.following = _ranges(reply)
        except EarlyExitError:
            link.close()
            raise
        return link


def _reason(reply: Message) -> str:
    return str(reply.fields.get("reason", f"unexpected message '{reply.kind}'"))[:1000]


def _ranges(reply: Message) -> list[tuple[int, int]]:
    ranges = reply.fields.get("stages")
    if isinstance(ranges, list) and 0 < len(ranges) <= 16:
        pairs = [tuple(r) for r in ranges if isinstance(r, list) and len(r) == 2]
        if len(pairs) == len(ranges) and all(type(i) is int for pair in pairs for i in pair):
            return pairs
    raise MessageError(f"The next tier names no stages, but {ranges!r}.")
