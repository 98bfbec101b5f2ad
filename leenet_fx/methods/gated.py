"""Methods whose gates learn the trade between error and cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from leenet_fx.errors import InputError
from leenet_fx.methods.method import Method, register_method
from leenet_fx.methods.phases import Phase, Update, check_recipe, single_update_phase
from leenet_fx.objectives import (
    DifferentiableBranching,
    EENets,
    FinalClassifier,
    JEIDNNGates,
    JEIDNNHeads,
    LEENet,
    PTEEnet,
    SumOfExits,
)
from leenet_fx.policies import AlphaConditionedGate, GateThreshold, MaxProbability, Policy

EXITS = single_update_phase("exits", "classifiers", SumOfExits())
FINAL = single_update_phase("final", "final", FinalClassifier())


@register_method("leenet")
def leenet(temperature_scaled: bool = True) -> Method:
    """LEENet: learned gates on a frozen backbone.

    (1) each exit's classifier by cross-entropy, (2) the final classifier, where it is new or asked
    for, (3) all gates together, classifiers frozen, by L = (1−α)·Σ qᵢCEᵢ + α·Σ qᵢcᵢ. A sample
    leaves iff its gate logit is at least 0.

    Two things differ from what was published. Cross-entropies in (3) are those of tempered logits:
    the final classifier has seen the training images, and its overconfidence would pay for leaving
    early. And gates start with equal shares at all outlets, not with an even chance at each: with
    many exits nearly all samples would leave at the first, and the later gates, which nobody
    reaches, never learn. The published gate reads features: attach with
    `branch_options={"gate": "features"}`; gates that read how sure the head is do better.

    Args:
        tempered: whether to temper.
    """
    gates = single_update_phase("gates", "gates", LEENet(), temperature_scaled=temperature_scaled)
    return Method(
        phases=(EXITS, FINAL, gates),
        policy=GateThreshold(0.0),
        source="LEENet: learned early exits (poster and reference code)",
        trade_off="weight",
    )


@register_method("leenet-alpha")
def leenet_dial() -> Method:
    """One network for every α: gates that take α as an input; leenet-fx's own.

    As `leenet`, but each sample draws an α of its own while gates train, and the user turns the
    dial afterwards: `ee.predict(images, alpha=0.7)`.
    """
    gates = single_update_phase(
        "gates", "gates", LEENet(), temperature_scaled=True, random_alpha=True
    )
    return Method(
        phases=(EXITS, FINAL, gates),
        policy=AlphaConditionedGate(0.5),
        source="leenet-fx",
        branch_options={"gate": "alpha"},
        requires={"gate": "alpha"},
        trade_off="dial",
    )


@register_method("diffbranch")
def diffbranch(recipe: str = "joint") -> Method:
    """Differentiable branching (Scardapane et al. 2020): L = CE(f̃₀) + λ·γ̃₀, end to end.

    f̃ᵢ = gᵢ·pᵢ + (1−gᵢ)·f̃ᵢ₊₁. The paper does not give λ. The decision is the hard gᵢ ≥ 0.5; the
    ensemble f̃₀ is `leenet_fx.soft_probabilities`.

    Args:
        recipe: "joint", "mixed" (exits first, then all), or "disjoint", with a frozen backbone.
    """
    return Method(
        phases=_end_to_end(recipe, DifferentiableBranching()),
        policy=GateThreshold(0.0),
        source="Scardapane et al. 2020, Differentiable Branching in Deep Networks",
        branch_options={"gate": "features"},
        trade_off="weight",
        max_cost_weight=math.inf,
    )


@register_method("eenets")
def eenets(version: int = 1, recipe: str = "joint", two_stage: bool = True) -> Method:
    """EENets (Demir & Akbas 2024): a softmax branch and a confidence branch h at each exit.

    Leave iff h > 0.5; version 3, whose h are shares, iff h > 1/(N+1). Version 0 trains no h: there
    a sample leaves iff its largest class probability is at least 0.5.

    Args:
        version: 0 to 4, which objective; see `leenet_fx.objectives.EENets`.
        recipe: "joint", "mixed" or "disjoint".
        two_stage: whether version 0 trains first.
    """
    objective = EENets(version)
    first = _together("exits", recipe, EENets(0), gates=False)
    phases: tuple[Phase, ...] = (first,) if two_stage or version == 0 else ()
    if version != 0:
        phases = (*phases, _together("gates", recipe, objective))
    if recipe == "mixed":
        later = (replace(step, name=f"{step.name} together") for step in phases)
        phases = (EXITS, FINAL, *later)
    return Method(
        phases=phases,
        policy=_eenets_policy(version),
        source="Demir & Akbas 2024, Early-exit Convolutional Neural Networks",
        branch_options={"gate": "features"},
        trade_off="weight" if version else "threshold",
        cost_weight=1.0,
        max_cost_weight=math.inf,
    )


@register_method("pteenet")
def pteenet() -> Method:
    """PTEEnet (Lahiany & Aperstein 2022): the frozen backbone is the teacher; no labels.

    L = Σ_{n<N} CE(ŷ, Ŷₙ) + λ·Cₙ, with ŷ the class that the backbone predicts. One threshold common
    to all gates is the knob; X of ConvX is `branch_options={"blocks": X}`.
    """
    step = single_update_phase(
        "exits", ("classifiers", "gates"), PTEEnet(), lr=0.03, labels="backbone"
    )
    return Method(
        phases=(step,),
        policy=GateThreshold(0.0),
        source="Lahiany & Aperstein 2022, PTEENet: Post-Trained Early-Exit Neural Networks",
        branch="conv",
        branch_options={"gate": "features"},
        label_free=True,
        cost_weight=1.0,
        max_cost_weight=math.inf,
    )


@register_method("jei-dnn")
def jei_dnn(period: int = 200) -> Method:
    """JEI-DNN (Regol et al. 2024): heads and gates in turns, gates on how sure the head is.

    After a warm-up of the heads, heads minimise Σ p_k·CE_k where samples really leave, and gates
    learn argmin_k(CE_k + λ·c_k), `period` batches each.

    Args:
        period: batches of a turn.
    """
    updates = (Update(("classifiers",), JEIDNNHeads()), Update(("gates",), JEIDNNGates()))
    if isinstance(period, bool) or not isinstance(period, int) or period < 1:
        raise InputError(f"period must be a whole number of batches from 1, got {period!r}.")
    return Method(
        phases=(EXITS, FINAL, Phase("turns", updates, lr=0.03, period=period)),
        policy=GateThreshold(0.0),
        source="Regol et al. 2024, Jointly-Learned Exit and Inference for a Dynamic Neural Network",
        branch_options={"gate": "confidence"},
        trade_off="weight",
        max_cost_weight=math.inf,
    )


def _eenets_policy(version: int) -> Policy | Callable[[int], Policy]:
    if version == 0:
        return MaxProbability(0.5)
    # h ≥ 1/(N+1), as a gate logit.
    return (lambda exits: GateThreshold(-math.log(exits))) if version == 3 else GateThreshold(0.0)


def _end_to_end(recipe: str, objective: DifferentiableBranching) -> tuple[Phase, ...]:
    if recipe == "joint":
        return (_together("together", recipe, objective),)
    return (EXITS, FINAL, _together("together", recipe, objective))


def _together(
    name: str, recipe: str, objective: DifferentiableBranching | EENets, gates: bool = True
) -> Phase:
    """Everything at once, the backbone too unless it is frozen."""
    check_recipe(recipe)
    groups = ["classifiers", *(["gates"] if gates else [])]
    if recipe != "disjoint":
        groups.append("backbone")
    return single_update_phase(name, groups, objective, lr=0.03, sgd_lr=0.01)  # type: ignore[arg-type]
