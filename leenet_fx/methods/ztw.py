"""Zero Time Waste."""

from __future__ import annotations

from leenet_fx.methods.method import Method, register_method
from leenet_fx.methods.phases import ENSEMBLES, EXITS, FINAL, check_flag
from leenet_fx.policies import MaxProbability


@register_method("ztw")
def ztw(threshold: float = 0.9, conv_heads: bool = False) -> Method:
    """Zero Time Waste (Wołczyk et al. 2021): cascaded heads, then geometric ensembles of them.

    Ensembles are trained on the calibration images, if there are any, instead of the paper's
    training images: where heads classify all of these correctly, the weights grow without bound,
    and every sample is certain at the first exits. As in the authors' code, cascaded logits pass a
    LayerNorm: without it, their scale grows from exit to exit, and the training of many exits for
    many classes diverges.

    Args:
        threshold: least class probability of the ensemble that exits.
        conv_heads: whether heads read features as those of the authors' code do: a convolution with
            stride 2 (and BatchNorm), maximum and average pooling to 4 x 4.

    Raises:
        InputError: `threshold` is not a number, or `conv_heads` not a bool.
    """
    check_flag("conv_heads", conv_heads)
    return Method(
        phases=(FINAL, EXITS, ENSEMBLES),
        policy=MaxProbability(threshold),
        branch="strided" if conv_heads else "pool",
        source="Wołczyk et al. 2021, Zero Time Waste",
        branch_options={"head": "cascade-norm"},
        requires={
            "head": ("cascade-norm", "cascade"),
            **({"branch": "strided"} if conv_heads else {}),
        },
    )
