"""LEENet."""

from __future__ import annotations

from leenet_fx.methods.method import Method, register_method
from leenet_fx.methods.phases import EXITS, FINAL, check_flag, single_update_phase
from leenet_fx.objectives import LEENet
from leenet_fx.policies import GateThreshold


@register_method("leenet")
def leenet(temperature_scaled: bool = True) -> Method:
    """LEENet: learned gates on a frozen backbone.

    Three phases: (1) the final classifier, if it is new or requested; (2) the exits' classifiers by
    cross-entropy; (3) all gates jointly, classifiers frozen, by L = (1−α)·Σ qᵢCEᵢ + α·Σ qᵢcᵢ.
    A sample exits iff its gate logit is at least 0.

    Two differences from the publication. Cross-entropies in (3) are those of temperature-scaled
    logits: the final classifier was trained on these images, and its overconfidence on them would
    bias the gates. And gates are initialised to equal exit probabilities at all exits and the final
    classifier instead of 0.5 at each gate: with many exits nearly all samples would exit at the
    first, and later gates would receive almost no gradient. The published gate reads features:
    attach with `branch_options={"gate": "features"}`; gates that read the confidence of the head
    perform better.

    What counts is the price α/(1−α) of the whole backbone in nats of cross-entropy, so useful
    values are small: the default is 0.2, a quarter of a nat.

    Args:
        temperature_scaled: whether to scale logits by fitted temperatures in (3).

    Raises:
        InputError: `temperature_scaled` is not a bool.
    """
    check_flag("temperature_scaled", temperature_scaled)
    gates = single_update_phase("gates", "gates", LEENet(), temperature_scaled=temperature_scaled)
    return Method(
        phases=(FINAL, EXITS, gates),
        policy=GateThreshold(0.0),
        source="LEENet: learned early exits (poster and reference code)",
        trade_off="cost_weight",
        cost_weight=0.2,
    )
