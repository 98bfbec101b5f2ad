"""LEENet: learned gates on a frozen backbone.

(1) each exit's classifier by cross-entropy, (2) the final classifier, where it is new or asked for,
(3) all gates together, classifiers frozen, by `leenet_loss`. A sample leaves iff its gate logit is
at least 0.
"""

from leenet_fx.methods.method import Method, register_method
from leenet_fx.parts.objectives import leenet_loss
from leenet_fx.parts.policies import LearnedGate
from leenet_fx.parts.recipes import Step, sum_of_losses

LEENET = register_method("leenet")(
    Method(
        name="leenet",
        steps=(
            Step("exits", "classifiers", sum_of_losses),
            Step("final", "final", sum_of_losses),
            Step("gates", "gates", leenet_loss, lr=0.1),
        ),
        policy=LearnedGate(0.0),
        source="LEENet: learned early exits (poster and reference code)",
    )
)
