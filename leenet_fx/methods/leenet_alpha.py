"""LEENet with gates that are conditioned on the cost weight."""

from __future__ import annotations

from leenet_fx.methods.method import Method, register_method
from leenet_fx.methods.phases import EXITS, FINAL, single_update_phase
from leenet_fx.objectives import LEENet
from leenet_fx.policies import AlphaConditionedGate


@register_method("leenet-alpha")
def leenet_alpha() -> Method:
    """LEENet with gates that take the cost weight α as an input (leenet-fx).

    As `leenet`, but α is drawn uniformly from [0, 1] for each sample while gates are trained. After
    training, α is chosen per call: `ee.predict(images, alpha=0.2)`.
    """
    gates = single_update_phase(
        "gates", "gates", LEENet(), temperature_scaled=True, random_alpha=True
    )
    return Method(
        phases=(FINAL, EXITS, gates),
        policy=AlphaConditionedGate(0.2),
        source="leenet-fx",
        branch_options={"gate": "alpha"},
        requires={"gate": "alpha"},
        trade_off="alpha",
        cost_weight=0.2,
    )
