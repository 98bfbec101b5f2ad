"""What a network with exits returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from leenet_fx.errors import ModeError
from leenet_fx.policies import Policy


class ExitOutputs(NamedTuple):
    """Outputs of every exit for every sample.

    Attributes:
        logits: N+1 tensors (B, classes); the last is that of the final classifier.
        gate_logits: (B, N), before the sigmoid.
    """

    logits: tuple[Tensor, ...]
    gate_logits: Tensor


@dataclass(frozen=True)
class Prediction:
    """Outputs of conditional execution for a batch.

    Attributes:
        logits: (B, classes).
        exit_index: (B,) exit of each sample; N is the final classifier.
        confidence: (B,) largest class probability, at the temperatures of the policy if it has any.
        cost: (B,) FLOPs, relative to the backbone.
    """

    logits: Tensor
    exit_index: Tensor
    confidence: Tensor
    cost: Tensor


def collect_all_exits(
    training: bool, policy: Policy, final: Tensor, *exits: tuple[Tensor, ...]
) -> ExitOutputs:
    """Return the outputs of all exits, in any mode; takes the arguments of `collect_exits`."""
    del training, policy
    logits = (*(outputs[0] for outputs in exits), final)
    return ExitOutputs(logits, torch.stack([outputs[1] for outputs in exits], 1))


def collect_exits(
    training: bool, policy: Policy, final: Tensor, *exits: tuple[Tensor, ...]
) -> ExitOutputs | Tensor:
    """Return what `ee(x)` returns; the last call in `EarlyExitModule.graph`.

    Tools that run the graph without its module, such as `torch.export.export` and
    `fx.Interpreter`, get the result of this function.

    Args:
        training: whether the network is in training mode.
        policy: the network's.
        final: logits of the final classifier (B, classes).
        *exits: for each exit, class logits (B, classes), gate logits (B,), and the logits that are
            passed on to later exits.

    Raises:
        ModeError: the network is in evaluation mode and early exits are enabled.
    """
    if training:
        return collect_all_exits(training, policy, final, *exits)
    if policy.reads != "nothing":
        raise early_exits_enabled()
    return final


def early_exits_enabled() -> ModeError:
    """Return the error for a tool that makes one program for all images, or runs every exit."""
    return ModeError(
        "Early exits are enabled, and this tool would run every exit, or fix the exits of its "
        "example images for all images: export with leenet_fx.export, or export the backbone alone "
        "after ee.policy = leenet_fx.NeverExit()."
    )


def build_prediction(
    logits: Tensor,
    exit_index: Tensor,
    costs: Sequence[float] | None,
    temperatures: Sequence[float] | None = None,
) -> Prediction:
    """Build a prediction from logits and exits.

    Args:
        logits: (B, classes).
        exit_index: (B,).
        costs: N+1, the relative cost of each exit; None if no branch ran, so that it is 1.
        temperatures: N+1, by which logits are divided for the confidence; None for 1.
    """
    if costs is None:
        cost = torch.ones(exit_index.shape, device=logits.device)
    else:
        cost = torch.tensor(costs, device=logits.device)[exit_index]
    divided = logits.float()
    if temperatures is not None:
        divided = divided / torch.tensor(temperatures, device=logits.device)[exit_index, None]
    confidence = divided.softmax(1).amax(1) if len(logits) else cost.new_empty(0)
    return Prediction(logits, exit_index, confidence, cost)
