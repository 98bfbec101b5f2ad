"""PTEEnet."""

from __future__ import annotations

import math

from leenet_fx.methods.method import Method, register_method
from leenet_fx.methods.phases import check_flag, single_update_phase
from leenet_fx.objectives import PTEEnet, SumOfExits
from leenet_fx.policies import GateThreshold


@register_method("pteenet")
def pteenet(heads_first: bool = True) -> Method:
    """PTEEnet (Lahiany & Aperstein 2022): trained without labels, the frozen backbone as teacher.

    L = Σ_{n<N} CE(ŷ, Ŷₙ) + λ·Cₙ, with ŷ the class that the backbone predicts. The trade-off
    parameter is one threshold for all gates.

    Two differences from the publication. Heads are trained first, by Σ CE(ŷ, ŷₙ), and L then trains
    the gates: trained together, as published, the first gates shut before their heads have learned
    anything, and closed gates stop the heads' gradients. And the convolutions of a branch work at
    reduced resolution: the published ConvX, X convolutions at full resolution and a global average,
    is `branch="convx"`, `branch_options={"blocks": X}`. The paper's costs count no branch but that
    of the exit, `CostTable.relative(own_branch=True)`, and its accuracy is agreement with the
    backbone: `leenet_fx.compare(…, own_branch_costs=True, agreement=True)`.

    Args:
        heads_first: whether heads are trained before gates; False trains both together, as
            published.

    Raises:
        InputError: `heads_first` is not a bool.
    """
    check_flag("heads_first", heads_first)
    heads = single_update_phase("exits", "classifiers", SumOfExits(), labels="backbone")
    gates = single_update_phase("gates", "gates", PTEEnet(), labels="backbone")
    together = single_update_phase(
        "exits", ("classifiers", "gates"), PTEEnet(), lr=0.03, labels="backbone"
    )
    return Method(
        phases=(heads, gates) if heads_first else (together,),
        policy=GateThreshold(0.0),
        source="Lahiany & Aperstein 2022, PTEENet: Post-Trained Early-Exit Neural Networks",
        branch="conv",
        branch_options={"gate": "features"},
        label_free=True,
        cost_weight=1.0,
        max_cost_weight=math.inf,
    )
