"""E2CM."""

from __future__ import annotations

from leenet_fx.methods.method import Method, register_method
from leenet_fx.methods.phases import FINAL, check_flag, single_update_phase
from leenet_fx.policies import MaxProbability


@register_method("e2cm")
def e2cm(threshold: float = 0.5, euclidean: bool = False) -> Method:
    """E2CM (Görmez et al. 2022): distances to class means, without training by gradients.

    Args:
        threshold: least class probability that exits, softmax of the negative distances.
        euclidean: whether distances are Euclidean and normalised for each class and exit, as the
            paper is cited; False squares them, and normalises for each exit.

    Raises:
        InputError: `threshold` is not a number, or `euclidean` not a bool.
    """
    check_flag("euclidean", euclidean)
    head = "means-euclidean" if euclidean else "means"
    return Method(
        phases=(FINAL, single_update_phase("means", "means", None)),
        policy=MaxProbability(threshold),
        source="Görmez et al. 2022, E2CM: Early Exit via Class Means",
        branch_options={"head": head},
        requires={"head": head},
    )
