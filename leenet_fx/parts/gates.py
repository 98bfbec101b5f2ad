"""Gates: from features or class logits to the logit of exiting early."""

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
    """Base of gates: `gate_inputs`, which uses no parameter, then `forward`.

    Attributes:
        reads: "features": the neck's vector, so that the head runs only for samples that exit;
            "logits": the head's class logits.
        reads_previous_logits: whether `gate_inputs` reads the logits of earlier exits.
        site: features and position that the gate is built for.

    Args:
        site: features and position.
        width: k, the number of gate inputs; subclasses take the neck's width instead.
    """

    reads: ClassVar[Literal["features", "logits"]] = "logits"
    reads_previous_logits: ClassVar[bool] = False

    def __init__(self, site: ExitSite, width: int) -> None:
        super().__init__()
        self.site = site
        self.inputs = Standardize(width, power=1)
        self.linear = nn.Linear(width, 1)

    @abstractmethod
    def gate_inputs(self, inputs: Tensor, previous_logits: Tensor | None) -> Tensor:
        """Compute the gate inputs (B, k).

        Args:
            inputs: features (B, n) or class logits (B, m), as `reads` states.
            previous_logits: logits of earlier exits (B, position, m); None at the first exit, or
                if `reads_previous_logits` is false.
        """

    def forward(self, gate_inputs: Tensor, alpha: Tensor | float | None = None) -> Tensor:
        """Compute gate logits (B,).

        Args:
            gate_inputs: (B, k).
            alpha: cost weight, for gates that are conditioned on it.
        """
        del alpha
        return torch.squeeze(self.linear(self.inputs(gate_inputs)), 1)

    def fit_statistics(self, gate_inputs: Tensor) -> None:
        """Fit the standardisation to the gate inputs (samples, k) of training images."""
        self.inputs.fit_statistics(gate_inputs)

    @torch.no_grad()
    def reset(self, generator: torch.Generator, probability: float) -> None:
        """Reinitialise the gate so that it opens with about `probability`."""
        reset_linear_gate(self.linear.weight, self.linear.bias, generator, probability)


_gates: Registry[type[Gate]] = Registry("gate", "leenet_fx.gates")
register_gate = _gates.register
list_gates = _gates.names
get_gate = _gates.get


@register_gate("features")
class FeatureGate(Gate):
    """Linear map of the neck's vector (LEENet; EENets; PTEEnet).

    Its inputs have the standard deviation of a neck's vector, n^−½: with a smaller one, Adam would
    move the bias far faster than the part that depends on the image, and the gate would stay
    constant.
    """

    reads = "features"

    def __init__(self, site: ExitSite, width: int) -> None:
        super().__init__(site, width)
        self.inputs = Standardize(width, power=0.5)

    def gate_inputs(self, inputs: Tensor, previous_logits: Tensor | None) -> Tensor:
        return inputs


@register_gate("confidence")
class ConfidenceGate(Gate):
    """Linear map of uncertainty statistics of the class probabilities (JEI-DNN, Regol et al. 2024).

    The statistics are the largest class probability, the margin to the second largest, the entropy,
    and the log-odds of the largest (in place of the paper's power entropy).
    """

    def __init__(self, site: ExitSite, width: int) -> None:
        super().__init__(site, 4)

    def gate_inputs(self, inputs: Tensor, previous_logits: Tensor | None) -> Tensor:
        return uncertainty(inputs, self.site.num_classes)


@register_gate("history")
class HistoryGate(Gate):
    """Linear map of the statistics of `confidence` and of the agreement with earlier exits.

    EENet (Ilhan et al. 2024) also reads the scores of earlier exits. The two additional inputs are
    the probability that this exit and the previous one predict the same class, Σₖ pᵢ[k]·pᵢ₋₁[k],
    and the largest of the class probabilities averaged over exits 0 to i.
    """

    reads_previous_logits = True

    def __init__(self, site: ExitSite, width: int) -> None:
        super().__init__(site, 6)

    def gate_inputs(self, inputs: Tensor, previous_logits: Tensor | None) -> Tensor:
        statistics, own = uncertainty(inputs, self.site.num_classes), inputs.softmax(1)
        if previous_logits is None:
            return torch.cat([statistics, torch.zeros_like(statistics[:, :2])], 1)
        previous = previous_logits.softmax(2)
        agreement = (own * previous[:, -1]).sum(1)
        average = (previous.sum(1) + own) / (previous.shape[1] + 1)
        return torch.cat([statistics, torch.stack([agreement, average.amax(1)], 1)], 1)


@register_gate("alpha")
class AlphaGate(HistoryGate):
    """Gate on the inputs of `history`, conditioned on the cost weight α (method `leenet-alpha`).

    z = a(α)·s + b(α) on the standardized gate inputs s, with a and b quadratic in t = 2α − 1, so
    that one gate represents the gates for all α (leenet-fx).
    """

    def __init__(self, site: ExitSite, width: int) -> None:
        super().__init__(site, width)
        self.linear = nn.Linear(self.linear.in_features, 3)

    def forward(self, gate_inputs: Tensor, alpha: Tensor | float | None = None) -> Tensor:
        """Compute gate logits (B,).

        Args:
            gate_inputs: (B, k).
            alpha: cost weight in [0, 1], one number or one per sample (B,); None is 0.5.
        """
        coefficients = self.linear(self.inputs(gate_inputs))
        t = torch.as_tensor(0.5 if alpha is None else alpha, dtype=coefficients.dtype) * 2 - 1
        t = t.to(coefficients.device).reshape(-1)
        powers = torch.stack([torch.ones_like(t), t, t * t], 1)
        gate_logits: Tensor = (coefficients * powers).sum(1)
        return gate_logits

    @torch.no_grad()
    def reset(self, generator: torch.Generator, probability: float) -> None:
        self.linear.weight.zero_()
        self.linear.bias.zero_()
        reset_linear_gate(self.linear.weight[:1], self.linear.bias[:1], generator, probability)


def uncertainty(logits: Tensor, num_classes: int) -> Tensor:
    """Return largest probability, margin, entropy and log-odds of the largest: (B, 4).

    Args:
        logits: class logits (B, m).
        num_classes: m; an argument because a symbolic trace has no shapes.
    """
    logs = logits.log_softmax(1)
    probabilities = logs.exp()
    ordered = logs.sort(1, descending=True).values
    first = ordered[:, 0]
    second = ordered[:, 1] if num_classes > 1 else torch.full_like(first, -torch.inf)
    rest = ordered[:, 1:].logsumexp(1) if num_classes > 1 else torch.zeros_like(first)
    entropy = -(probabilities * logs).sum(1)
    return torch.stack([first.exp(), first.exp() - second.exp(), entropy, first - rest], 1)


@torch.no_grad()
def reset_linear_gate(
    weight: Tensor, bias: Tensor, generator: torch.Generator, probability: float
) -> None:
    """Reinitialise a linear gate so that it opens with about `probability`.

    Args:
        weight: (1, k), drawn uniformly from ±1/√k.
        bias: (1,), set to the logit of `probability`.
        generator: random generator.
        probability: in (0, 1).
    """
    # Draw on the generator's device and copy, so that a seed gives equal weights on every device.
    bound = 1 / math.sqrt(weight.shape[1])
    drawn = torch.empty(weight.shape, device=generator.device)
    weight.copy_(drawn.uniform_(-bound, bound, generator=generator))
    bias.fill_(math.log(probability / (1 - probability)))
