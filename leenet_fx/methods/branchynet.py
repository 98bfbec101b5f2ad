"""BranchyNet."""

from __future__ import annotations

from leenet_fx.methods.method import Method, register_method
from leenet_fx.methods.phases import classifier_phases
from leenet_fx.objectives import BranchyNet, SumOfExits
from leenet_fx.policies import Entropy


@register_method("branchynet")
def branchynet(
    recipe: str = "joint", exit_weights: tuple[float, ...] | None = None, threshold: float = 0.5
) -> Method:
    """BranchyNet (Teerapittayanon et al. 2016): Σ wᵢ·CEᵢ; exit iff the entropy is small.

    Args:
        recipe: "joint", "mixed" or "disjoint".
        exit_weights: wᵢ of the N exits and the final classifier; None is 1 for exits and 0.3 for
            the final classifier. On a frozen backbone the final classifier's has no effect.
        threshold: largest entropy that exits, in nats.

    Raises:
        InputError: an option does not fit.
    """
    joint = BranchyNet(exit_weights)
    return Method(
        phases=classifier_phases(recipe, SumOfExits() if exit_weights is None else joint, joint),
        policy=Entropy(threshold),
        source="Teerapittayanon et al. 2016, BranchyNet",
    )
