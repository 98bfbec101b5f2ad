"""PTEEnet."""

from __future__ import annotations

import math

from leenet_fx.methods.method import Method, register_method
from leenet_fx.methods.phases import single_update_phase
from leenet_fx.objectives import PTEEnet
from leenet_fx.policies import GateThreshold


@register_method("pteenet")
def pteenet() -> Method:
    """PTEEnet (Lahiany & Aperstein 2022): trained without labels, the frozen backbone as teacher.

    L = Σ_{n<N} CE(ŷ, Ŷₙ) + λ·Cₙ, with ŷ the class that the backbone predicts. The trade-off
    parameter is one threshold for all gates; X of ConvX is `branch_options={"blocks": X}`.
    """
    exits = single_update_phase(
        "exits", ("classifiers", "gates"), PTEEnet(), lr=0.03, labels="backbone"
    )
    return Method(
        phases=(exits,),
        policy=GateThreshold(0.0),
        source="Lahiany & Aperstein 2022, PTEENet: Post-Trained Early-Exit Neural Networks",
        branch="conv",
        branch_options={"gate": "features"},
        label_free=True,
        cost_weight=1.0,
        max_cost_weight=math.inf,
    )
