"""Random batches for objectives."""

import torch

from leenet_fx.objectives import (
    BatchOutputs,
)


def make(samples, exits, classes=3, *, gate=None, cost_weight=0.5, costs=None, seed=0, spread=2.0):
    """A random batch in double precision; `gate` is the magnitude of every gate logit."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    logits = tuple(spread * normal(samples, classes) for _ in range(exits + 1))
    gate_logits = 2 * normal(samples, exits)
    if gate is not None:
        gate_logits = gate * gate_logits.sign()
    labels = torch.randint(classes, (samples,), generator=generator)
    if costs is None:
        costs = 1.5 * torch.rand(exits + 1, generator=generator, dtype=torch.float64)
    return BatchOutputs(
        logits, gate_logits, labels, torch.as_tensor(costs, dtype=torch.float64), cost_weight
    )
