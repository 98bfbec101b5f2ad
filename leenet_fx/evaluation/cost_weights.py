"""The cost weights that gated methods are trained for in a comparison."""

from __future__ import annotations

from leenet_fx.methods import Method

ALPHAS = (0.0, 0.2, 0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7, 0.8, 1.0)
"""Cost weights α that gated methods are trained for, or that are read from one network."""

LAMBDAS = (0.0, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 2.5, 4.0)
"""Cost weights λ that methods without an upper limit of the cost weight are trained for. Where
cross-entropies are small, as those of trained classifiers are, most of the frontier is below 0.05.
"""


def cost_weights_of(method: Method) -> tuple[float, ...]:
    """Return the cost weights that a method is trained for.

    Args:
        method: of a run.
    """
    if method.trade_off != "cost_weight":
        return (method.cost_weight,)
    return ALPHAS if method.max_cost_weight == 1 else LAMBDAS
