"""Answers for the samples of a batch, wherever in the chain of tiers they were found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from leenet_fx.tiers.messages import Message, MessageError

MAX_TIERS = 16
_DTYPES = {"exit_index": torch.int16, "tier": torch.uint8, "fallback": torch.bool}


@dataclass
class Answers:
    """Answers for a batch.

    Attributes:
        logits: (B, classes).
        exit_index: (B,) int64.
        tier: (B,) uint8; position of the tier that answered, 0 for this one.
        fallback: (B,) bool; whether a tier answered at its last exit because the next was gone.
        sent: bytes that each link of the chain carried to the next tier, the first first.
    """

    logits: Tensor
    exit_index: Tensor
    tier: Tensor
    fallback: Tensor
    sent: tuple[int, ...] = ()

    @classmethod
    def empty(cls, logits: Tensor) -> Answers:
        """Return answers to be filled in.

        Args:
            logits: (B, classes), of any value.
        """
        count, device = len(logits), logits.device
        return cls(
            logits,
            torch.full((count,), -1, device=device),
            torch.zeros(count, dtype=torch.uint8, device=device),
            torch.zeros(count, dtype=torch.bool, device=device),
        )

    def record(
        self, indices: Tensor, logits: Tensor, exit_index: Tensor | int, *, fallback: bool = False
    ) -> None:
        """Fill in samples that this tier answers.

        Args:
            indices: (n,) their positions.
            logits: (n, classes).
            exit_index: of all of them, or (n,).
            fallback: whether the next tier was gone.
        """
        self.logits[indices] = logits
        self.exit_index[indices] = exit_index
        self.fallback[indices] = fallback

    def include(self, indices: Tensor, later: Answers, sent: int) -> None:
        """Fill in the answers of later tiers.

        Args:
            indices: (n,) positions of the samples that were sent.
            later: the answers for them.
            sent: number of bytes that they took.
        """
        self.logits[indices] = later.logits
        self.exit_index[indices] = later.exit_index
        self.tier[indices] = later.tier + 1
        self.fallback[indices] = later.fallback
        self.sent = (sent, *later.sent)

    def message(self) -> Message:
        """Return the answers as a message."""
        tensors = {name: getattr(self, name).to(dtype) for name, dtype in _DTYPES.items()}
        tensors["logits"] = self.logits.contiguous()
        return Message("answers", {"sent": list(self.sent)}, tensors)


def read_answers(message: Message, like: Tensor, exits: range) -> Answers:
    """Return the answers in a message.

    Args:
        message: from another tier.
        like: (n, classes) of the expected shape and dtype.
        exits: that may have answered.

    Raises:
        MessageError: other shapes, or exits and tiers that do not exist.
    """
    count = len(like)
    expected: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        name: ((count,), dtype) for name, dtype in _DTYPES.items()
    }
    expected["logits"] = (tuple(like.shape), like.dtype)
    for name, (shape, dtype) in expected.items():
        value = message.tensors.get(name)
        if value is None or tuple(value.shape) != shape or value.dtype != dtype:
            raise MessageError(f"Answers need '{name}' as {dtype} of shape {shape}.")
    exit_index = message.tensors["exit_index"].long()
    if bool(((exit_index < exits.start) | (exit_index >= exits.stop)).any()):
        raise MessageError(f"Answers name exits outside {exits.start} to {exits.stop - 1}.")
    if bool((message.tensors["tier"] >= MAX_TIERS).any()):
        raise MessageError(f"Answers name tiers beyond {MAX_TIERS}.")
    target = like.device
    return Answers(
        message.tensors["logits"].to(target),
        exit_index.to(target),
        message.tensors["tier"].to(target),
        message.tensors["fallback"].to(target),
        _sizes(message.fields.get("sent")),
    )


def _sizes(values: object) -> tuple[int, ...]:
    if not isinstance(values, list) or len(values) > MAX_TIERS:
        raise MessageError(f"Answers need a list 'sent' of numbers of bytes, got {values!r}.")
    if not all(type(value) is int and value >= 0 for value in values):
        raise MessageError(f"Answers need a list 'sent' of numbers of bytes, got {values!r}.")
    return tuple(values)


def merged_sizes(sizes: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Return the sums over batches of the bytes of each link."""
    longest = max(map(len, sizes), default=0)
    return tuple(sum(s[i] for s in sizes if len(s) > i) for i in range(longest))
