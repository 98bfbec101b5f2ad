"""Gates: how likely a sample is to leave."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from leenet_fx.parts.exit_site import ExitSite
from leenet_fx.parts.standardize import Standardize
from leenet_fx.registry import Registry


class Gate(nn.Module, ABC):
    """evidence, which uses no parameter, then a gate logit.

    Attributes:
        reads: "features": the body's vector, so that the head runs only for samples that leave;
            "logits": the head's answer.
        reads_earlier: whether it needs what earlier exits said.
    """

    reads: ClassVar[Literal["features", "logits"]] = "logits"
    reads_previous_logits: ClassVar[bool] = False

    def __init__(self, site: ExitSite, width: int) -> None:
        super().__init__()
        self.site = site
        self.inputs = Standardize(width, power=1)
        self.linear = nn.Linear(width, 1)

    @abstractmethod
    def gate_inputs(self, read: Tensor, previous_logits: Tensor | None) -> Tensor:
        """What the gate judges by.

        Args:
            read: (B, n) features or (B, m) class logits.
            earlier: (B, position, m) class logits of earlier exits; None where it does not read
                them, and at the first exit.
        """

    def forward(self, gate_inputs: Tensor, alpha: Tensor | float | None = None) -> Tensor:
        """Evidence → gate logits (B,).

        Args:
            evidence: (B, k).
            alpha: weight of the cost, for gates with a dial.
        """
        del alpha
        return torch.squeeze(self.linear(self.inputs(gate_inputs)), 1)

    def measure(self, gate_inputs: Tensor) -> None:
        """Scales by what evidence is on training images."""
        self.inputs.measure(gate_inputs)

    @torch.no_grad()
    def reset(self, generator: torch.Generator, chance: float) -> None:
        """Draws the weights anew; the gate opens for about `chance` of the samples."""
        reset_row(self.linear.weight, self.linear.bias, generator, chance)


_gates: Registry[type[Gate]] = Registry("gate", "leenet_fx.gates")
register_gate = _gates.register
list_gates = _gates.names
get_gate = _gates.get


@register_gate("features")
class FeatureGate(Gate):
    """A linear map on the body's vector (LEENet; EENets; PTEEnet).

    Weights move no faster than the bias: a sigmoid that has saturated learns no more.
    """

    reads = "features"

    def __init__(self, site: ExitSite, width: int) -> None:
        super().__init__(site, width)

    def gate_inputs(self, read: Tensor, previous_logits: Tensor | None) -> Tensor:
        return read


@register_gate("confidence")
class ConfidenceGate(Gate):
    """A linear map on how sure the head is (JEI-DNN, Regol et al. 2024).

    It reads the largest class probability, the margin to the second, the entropy, and the log-odds
    of the largest (in the place of the paper's power entropy).
    """

    def __init__(self, site: ExitSite, width: int) -> None:
        super().__init__(site, 4)

    def gate_inputs(self, read: Tensor, previous_logits: Tensor | None) -> Tensor:
        return uncertainty(read, self.site.num_classes)


@register_gate("history")
class HistoryGate(Gate):
    """As `confidence`, and whether earlier exits agree.

    EENet (Ilhan et al. 2024) reads the scores of earlier exits too. Besides how sure the head is,
    this gate reads the probability that this exit and the one before mean the same class, and the
    largest of the class probabilities averaged over all exits until here.
    """

    reads_previous_logits = True

    def __init__(self, site: ExitSite, width: int) -> None:
        super().__init__(site, 6)

    def gate_inputs(self, read: Tensor, previous_logits: Tensor | None) -> Tensor:
        sure, own = uncertainty(read, self.site.num_classes), read.softmax(1)
        if previous_logits is None:
            return torch.cat([sure, torch.zeros_like(sure[:, :2])], 1)
        before = previous_logits.softmax(2)
        agree = (own * before[:, -1]).sum(1)
        average = (before.sum(1) + own) / (before.shape[1] + 1)
        return torch.cat([sure, torch.stack([agree, average.amax(1)], 1)], 1)


@register_gate("alpha")
class AlphaGate(HistoryGate):
    """As `history`, for every weight α of the cost at once: `leenet-alpha`.

    z = a(α)·s + b(α) on the scaled evidence s, with a and b quadratic in the dial d = 2α − 1, so
    that one gate stands for a family; leenet-fx's own.
    """

    def __init__(self, site: ExitSite, width: int) -> None:
        super().__init__(site, width)
        self.linear = nn.Linear(self.linear.in_features, 3)

    def forward(self, gate_inputs: Tensor, alpha: Tensor | float | None = None) -> Tensor:
        terms = self.linear(self.inputs(gate_inputs))
        dial = torch.as_tensor(0.5 if alpha is None else alpha, dtype=terms.dtype) * 2 - 1
        dial = dial.to(terms.device).reshape(-1)
        powers = torch.stack([torch.ones_like(dial), dial, dial * dial], 1)
        scores: Tensor = (terms * powers).sum(1)
        return scores

    @torch.no_grad()
    def reset(self, generator: torch.Generator, chance: float) -> None:
        self.linear.weight.zero_()
        self.linear.bias.zero_()
        reset_row(self.linear.weight[:1], self.linear.bias[:1], generator, chance)


def uncertainty(logits: Tensor, classes: int) -> Tensor:
    """Class logits (B, m) → (B, 4): largest probability, margin, entropy, log-odds.

    Args:
        logits: (B, m).
        classes: m, which a symbolic trace cannot ask the logits for.
    """
    logs = logits.log_softmax(1)
    probabilities = logs.exp()
    ordered = logs.sort(1, descending=True).values
    first = ordered[:, 0]
    second = ordered[:, 1] if classes > 1 else torch.full_like(first, -torch.inf)
    rest = ordered[:, 1:].logsumexp(1) if classes > 1 else torch.zeros_like(first)
    entropy = -(probabilities * logs).sum(1)
    return torch.stack([first.exp(), first.exp() - second.exp(), entropy, first - rest], 1)


@torch.no_grad()
def reset_row(weight: Tensor, bias: Tensor, generator: torch.Generator, chance: float) -> None:
    """Draws a gate's weights and sets its bias, so that it opens for about a share `chance`."""
    # Drawn where the generator lives and copied, so that a seed means the same on every device.
    bound = 1 / math.sqrt(weight.shape[1])
    drawn = torch.empty(weight.shape, device=generator.device)
    weight.copy_(drawn.uniform_(-bound, bound, generator=generator))
    bias.fill_(math.log(chance / (1 - chance)))
