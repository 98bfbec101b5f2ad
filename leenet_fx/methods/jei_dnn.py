"""JEI-DNN."""

from __future__ import annotations

import math

from leenet_fx.errors import InputError
from leenet_fx.methods.method import Method, register_method
from leenet_fx.methods.phases import EXITS, FINAL, Phase, Update
from leenet_fx.objectives import JEIDNNGates, JEIDNNHeads
from leenet_fx.policies import GateThreshold


@register_method("jei-dnn")
def jei_dnn(period: int = 200) -> Method:
    """JEI-DNN (Regol et al. 2024): alternating updates of heads and gates.

    Gates read the uncertainty of the head. After a warm-up of the heads, heads minimise Σ Pₖ·CEₖ,
    weighted by where samples exit, and gates learn argminₖ(CEₖ + λ·cₖ), for `period` batches each.

    Args:
        period: batches between the two updates.

    Raises:
        InputError: `period` is not a positive integer.
    """
    if isinstance(period, bool) or not isinstance(period, int) or period < 1:
        raise InputError(f"period must be a positive integer of batches, got {period!r}.")
    updates = (Update(("classifiers",), JEIDNNHeads()), Update(("gates",), JEIDNNGates()))
    return Method(
        phases=(FINAL, EXITS, Phase("alternating", updates, lr=0.03, period=period)),
        policy=GateThreshold(0.0),
        source="Regol et al. 2024, Jointly-Learned Exit and Inference for a Dynamic Neural Network",
        branch_options={"gate": "confidence"},
        trade_off="cost_weight",
        max_cost_weight=math.inf,
    )
