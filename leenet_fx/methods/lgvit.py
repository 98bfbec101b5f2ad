"""LGViT."""

from __future__ import annotations

from leenet_fx.methods.method import Method, register_method
from leenet_fx.methods.phases import FINAL, single_update_phase
from leenet_fx.objectives import Distillation
from leenet_fx.policies import MaxProbability


@register_method("lgvit")
def lgvit(mix: float = 0.5, temperature: float = 2.0, threshold: float = 0.9) -> Method:
    """LGViT (Xu et al. 2023): heterogeneous heads for vision transformers.

    Early exits have local heads, with a convolution over the patches, later ones global heads, with
    self-attention; see `leenet_fx.parts.token_heads`. The first of the paper's two stages trains
    the backbone; this is the second, in which it is frozen, and heads learn from labels and from
    the final classifier. The paper also distils between heads of a kind, from their features, which
    is not done here. Networks without tokens are refused.

    Args:
        mix: weight of the distillation loss, in [0, 1].
        temperature: T > 0.
        threshold: least class probability that exits.

    Raises:
        InputError: an option does not fit.
    """
    objective = Distillation(mix=mix, temperature=temperature)
    return Method(
        phases=(FINAL, single_update_phase("exits", "classifiers", objective)),
        policy=MaxProbability(threshold),
        source="Xu et al. 2023, LGViT: Dynamic Early Exiting for Accelerating Vision Transformer",
        branch="lgvit",
        requires={"branch": "lgvit"},
        label_free=mix == 1,
    )
