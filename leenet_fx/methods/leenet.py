"""LEENet: learned gates on a frozen backbone.

(1) each exit's classifier by cross-entropy, (2) the final classifier, where it is new or asked for,
(3) all gates together, classifiers frozen, by `leenet_loss`. A sample leaves iff its gate logit is
at least 0.

Two things differ from what was published. Cross-entropies in (3) are those of tempered logits: the
final classifier has seen the training images, and its overconfidence would pay for leaving early.
And gates start with equal shares at all outlets, not with an even chance at each: with many exits
nearly all samples would leave at the first, and the later gates, which nobody reaches, never learn.
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
            Step("gates", "gates", leenet_loss, tempered=True),
        ),
        policy=LearnedGate(0.0),
        source="LEENet: learned early exits (poster and reference code)",
    )
)
