"""JEI-DNN."""

from __future__ import annotations

import math

from leenet_fx.errors import InputError
from leenet_fx.methods.method import Method, register_method
from leenet_fx.methods.phases import EXITS, FINAL, Phase, Update, check_flag
from leenet_fx.objectives import JEIDNNGates, JEIDNNHeads
from leenet_fx.policies import CumulativeGate, GateThreshold


@register_method("jei-dnn")
def jei_dnn(turns: int = 20, period: int | None = None, cumulative: bool = False) -> Method:
    """JEI-DNN (Regol et al. 2024): alternating updates of heads and gates.

    Gates read the uncertainty of the head. After a warm-up of the heads, heads minimise Σ Pₖ·CEₖ,
    weighted by where samples exit, and gates learn argminₖ(CEₖ + λ·cₖ), in turns over each of which
    the learning rate rises and falls. The authors' turns are about 200 batches, in a training of
    some 8,000; a share of the phase suits trainings of any length.

    Args:
        turns: number of turns, of heads and gates together.
        period: batches of a turn, in place of `turns`; None divides the phase evenly.
        cumulative: whether a sample exits by the authors' rule, the policy `CumulativeGate`, which
            makes all exit where gates have added up to 1; False asks each gate alone, gᵢ ≥ 0.5, and
            has the better frontier.

    Raises:
        InputError: `turns` is not an integer of at least 2, `period` not a positive one, or
            `cumulative` not a bool.
    """
    check_flag("cumulative", cumulative)
    if isinstance(turns, bool) or not isinstance(turns, int) or turns < 2:
        raise InputError(f"turns must be an integer of at least 2, got {turns!r}.")
    given = period is not None
    if given and (isinstance(period, bool) or not isinstance(period, int) or period < 1):
        raise InputError(f"period must be a positive integer of batches or None, got {period!r}.")
    updates = (Update(("classifiers",), JEIDNNHeads()), Update(("gates",), JEIDNNGates()))
    alternating = Phase("alternating", updates, lr=0.03, turns=turns, period=period)
    return Method(
        phases=(FINAL, EXITS, alternating),
        policy=CumulativeGate() if cumulative else GateThreshold(0.0),
        source="Regol et al. 2024, Jointly-Learned Exit and Inference for a Dynamic Neural Network",
        branch_options={"gate": "confidence"},
        trade_off="cost_weight",
        max_cost_weight=math.inf,
    )
