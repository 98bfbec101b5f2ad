"""Methods that leave by what class logits say; no gate is trained."""

from __future__ import annotations

from leenet_fx.methods.method import Method, register_method
from leenet_fx.methods.phases import classifier_phases, single_update_phase
from leenet_fx.objectives import PABEE as Depths
from leenet_fx.objectives import (
    BoostNet,
    BranchyNet,
    Distillation,
    EENets,
    FinalClassifier,
    ShallowDeep,
    SumOfExits,
    SumOfObjectives,
)
from leenet_fx.policies import Entropy, MaxProbability, Patience


@register_method("branchynet")
def branchynet(
    recipe: str = "joint", weights: tuple[float, ...] | None = None, threshold: float = 0.5
) -> Method:
    """BranchyNet (Teerapittayanon et al. 2016): Σ wᵢ·CEᵢ; leave iff the entropy is small.

    Args:
        recipe: "joint", "mixed" or "disjoint".
        weights: wᵢ of the N+1 outlets; None takes 1 for exits and 0.3 for the final classifier.
        threshold: of the entropy, in nats.
    """
    objective = BranchyNet(weights)
    return Method(
        phases=classifier_phases(recipe, SumOfExits(), objective),
        policy=Entropy(threshold),
        source="Teerapittayanon et al. 2016, BranchyNet",
    )


@register_method("msdnet")
def msdnet(recipe: str = "joint", threshold: float = 0.9) -> Method:
    """MSDNet's budgeted batch classification (Huang et al. 2018): Σ CEᵢ over all outlets.

    Leave iff the largest class probability reaches a threshold of the exit's own, set so that
    shares ∝ ρᵏ of the samples leave: `set_budget(…, solver="exponential")`. The network itself is
    `examples/msdnet.py`.

    Args:
        recipe: "joint", "mixed" or "disjoint".
        threshold: of the largest class probability until a budget is set.
    """
    return Method(
        phases=classifier_phases(recipe, SumOfExits(), EENets(0)),
        policy=MaxProbability(threshold),
        source="Huang et al. 2018, Multi-Scale Dense Networks",
        trade_off="exit_shares",
    )


@register_method("shallow-deep")
def shallow_deep(recipe: str = "disjoint", threshold: float = 0.9) -> Method:
    """Shallow-Deep Networks (Kaya et al. 2019): internal classifiers, leave iff max p ≥ T.

    Args:
        recipe: "disjoint" (the paper's IC-only), "joint" (its SDN training, whose weights τᵢ rise
            to each exit's cost) or "mixed".
        threshold: of the largest class probability.
    """
    return Method(
        phases=classifier_phases(recipe, SumOfExits(), ShallowDeep()),
        policy=MaxProbability(threshold),
        source="Kaya et al. 2019, Shallow-Deep Networks",
    )


@register_method("pabee")
def pabee(recipe: str = "joint", agreements: int = 2) -> Method:
    """PABEE (Zhou et al. 2020): leave once so many exits in a row agree with the one before.

    Args:
        recipe: "joint" (depth-weighted mean loss), "mixed" or "disjoint".
        agreements: in a row, the patience; `fit` has a `patience` of its own, in epochs.
    """
    return Method(
        phases=classifier_phases(recipe, SumOfExits(), Depths()),
        policy=Patience(agreements),
        source="Zhou et al. 2020, BERT Loses Patience",
        trade_off="patience",
    )


@register_method("ztw")
def ztw(threshold: float = 0.9) -> Method:
    """Zero Time Waste (Wołczyk et al. 2021): cascaded heads, then geometric ensembles of them.

    Args:
        threshold: of the ensemble's largest class probability.
    """
    exits, final = classifier_phases("disjoint", SumOfExits(), SumOfExits())
    ensembles = single_update_phase("ensembles", "ensembles", SumOfExits(), lr=0.01)
    return Method(
        phases=(exits, final, ensembles),
        policy=MaxProbability(threshold),
        source="Wołczyk et al. 2021, Zero Time Waste",
        branch_options={"head": "cascade"},
        requires={"head": "cascade"},
    )


@register_method("boostnet")
def boostnet(recipe: str = "joint", threshold: float = 0.9) -> Method:
    """BoostNet (Yu et al. 2023): each exit adds to the logits of the one before.

    Args:
        recipe: "joint" (gradients rescaled), "mixed" or "disjoint".
        threshold: of the largest class probability until a budget is set.
    """
    return Method(
        phases=classifier_phases(recipe, SumOfExits(), BoostNet()),
        policy=MaxProbability(threshold),
        source="Yu et al. 2023, Boosted Dynamic Neural Networks",
        branch_options={"head": "additive"},
        requires={"head": "additive"},
        trade_off="exit_shares",
    )


@register_method("e2cm")
def e2cm(threshold: float = 0.5) -> Method:
    """E2CM (Görmez et al. 2022): distances to class means; nothing is trained.

    Args:
        threshold: of the largest class probability, softmax of minus the distances.
    """
    return Method(
        phases=(single_update_phase("means", "means", None),),
        policy=MaxProbability(threshold),
        source="Görmez et al. 2022, E2CM: Early Exit via Class Means",
        branch_options={"head": "means"},
        requires={"head": "means"},
    )


@register_method("distilled")
def distilled(
    recipe: str = "disjoint", mix: float = 0.5, temperature: float = 2.0, threshold: float = 0.9
) -> Method:
    """Exits taught by labels and by the final classifier; leave iff max p ≥ T.

    (1−mix)·CEᵢ + mix·T²·KL(softmax(ŷ_N/T) ‖ softmax(ŷᵢ/T)) (Hinton et al. 2015; Phuong & Lampert
    2019 for exits).

    Args:
        recipe: "disjoint", "joint" or "mixed".
        mix: weight of the final classifier's lesson.
        temperature: T.
        threshold: of the largest class probability.
    """
    lesson = Distillation(mix=mix, temperature=temperature)
    together = SumOfObjectives((lesson, FinalClassifier()))
    return Method(
        phases=classifier_phases(recipe, lesson, together),
        policy=MaxProbability(threshold),
        source="Phuong & Lampert 2019, Distillation-based Training for Multi-exit Architectures",
    )
