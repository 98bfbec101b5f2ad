"""The rows of the reproduction: regimes and claims of papers, and how each is run here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

CIFAR = ("layer1.0", "layer2.1")
"""Exits of ResNet-20 where the paper has few of them."""

EVERY = tuple(f"layer{layer}.{block}" for layer in (1, 2, 3) for block in range(3))[:-1]
"""An exit after each block of ResNet-20 but the last."""

DEEP = tuple(f"layer{layer}.{block}" for layer in (1, 2, 3) for block in (1, 3, 5, 7))
"""An exit after every second block of ResNet-56."""

JOINT_LR = 0.24
"""Of rows that train the backbone: eight times the recipe's default, as in `methods.py`."""

JOINT_DECAY = 5e-4
"""Weight decay of the backbone in these rows."""

ALPHAS = tuple(round(0.05 * step, 2) for step in range(21))
"""LEENet's sweep."""


@dataclass(frozen=True)
class Row:
    """One training, measured in the way of its paper.

    Attributes:
        paper: name and year.
        regime: of the paper, and what differs here.
        claim: published figures, or what is claimed where the sources read have no figure.
        method: registered method, with `options`.
        network: "resnet20", "resnet56", "msdnet", "lite0" or "mobilenetv2".
        exits: names of blocks, or strategy and number.
        branch: branch architecture; None takes the method's.
        branch_options: likewise; None takes the method's.
        epochs: of each phase, or by name of the phase.
        joint_lr: of phases that train the backbone; None takes their own.
        joint_decay: weight decay of the backbone in these phases.
        augmented: whether a frozen backbone's exits are trained on augmented images.
        uncached: whether features are too large to be cached.
        cost_weights: for which gates are trained; empty for methods without.
        own_rule: whether the method's own rule is read; otherwise thresholds are swept.
        accounting: "flops", with all branches that were run; "own branch", the exit's only;
            "params", the share of parameters.
        agreement: whether accuracy is agreement with the backbone.
        at_cost: claimed mean cost, at which the drop in accuracy is reported.
        at_drop: claimed drop in accuracy, at which the cost is reported.
        reference: row whose accuracy is the baseline; None takes the given backbone's.
    """

    paper: str
    regime: str
    claim: str
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    network: str = "resnet20"
    exits: tuple[str, ...] | tuple[str, int] = CIFAR
    branch: str | None = None
    branch_options: Mapping[str, Any] | None = None
    epochs: int | Mapping[str, int] = 12
    joint_lr: float | None = None
    joint_decay: float = 0.0
    augmented: bool = False
    uncached: bool = False
    cost_weights: tuple[float, ...] = ()
    own_rule: bool = False
    accounting: Literal["flops", "own branch", "params"] = "flops"
    agreement: bool = False
    at_cost: float | None = None
    at_drop: float | None = None
    reference: str | None = None

    @property
    def data(self) -> str:
        """Folder of the images."""
        return "imagenette" if self.network in ("lite0", "mobilenetv2") else "cifar10"


def _joint(paper: str, claim: str, method: str, **options: Any) -> Row:
    regime = "joint, from trained weights"
    values = {
        "epochs": 30,
        "joint_lr": JOINT_LR,
        "joint_decay": JOINT_DECAY,
        "reference": "backbone",
        "regime": regime,
        **options,
    }
    return Row(paper=paper, claim=claim, method=method, **values)


def _diffbranch(weight: float, **options: Any) -> Row:
    values = {
        "branch": "conv",
        "branch_options": {"gate": "features"},
        "cost_weights": (weight,),
        "own_rule": True,
        "at_cost": 0.42,
        **options,
    }
    return _joint(
        "Differentiable branching (2020)",
        "ResNet-18: 81.6 alone, 85.8 as an ensemble, 84.9 by hard exits at 58 % less time",
        "diffbranch",
        **values,
    )


def _eenets(version: int, **options: Any) -> Row:
    values = {
        "options": {"version": version},
        "exits": EVERY,
        "branch": "pool",
        "branch_options": {"gate": "features"},
        "epochs": 20,
        "cost_weights": (1.0,),
        "own_rule": True,
        "at_cost": 0.2,
        "at_drop": 0.01,
        **options,
    }
    return _joint("EENets (2024)", "cost down to 20 % at similar accuracy", "eenets", **values)


def _frozen(paper: str, claim: str, method: str, **options: Any) -> Row:
    values = {"regime": "frozen backbone", "exits": EVERY, "at_drop": 0.01, **options}
    return Row(paper=paper, claim=claim, method=method, **values)


def _pteenet(network: str, exits: int, *, heads_first: bool) -> Row:
    how = "heads first, then gates" if heads_first else "heads and gates together, as published"
    epochs: Mapping[str, int] = {"exits": 50, "gates": 20} if heads_first else {"exits": 50}
    return Row(
        paper="PTEEnet (2022)",
        regime=f"frozen, labels by the backbone, {how}; augmented, ConvX with X = 2",
        claim="about 42 % of the FLOPs saved within 3 points",
        method="pteenet",
        options={"heads_first": heads_first},
        network=network,
        exits=("fine", exits),
        branch="convx",
        branch_options={"gate": "features", "blocks": 2},
        epochs=epochs,
        augmented=True,
        cost_weights=(0.5,),
        accounting="own branch",
        agreement=True,
        at_cost=0.58,
        at_drop=0.03,
    )


def _leenet(network: str, *, published: bool) -> Row:
    parts = "flattened features and gates on them, as published"
    return Row(
        paper="LEENet",
        regime="frozen; final classifier, exits, then gates for each α; "
        + (parts if published else "pooled features and gates on confidence, the preset"),
        claim="ResNet-50: half of the cost, −25 % time, −5 points at α = 0.8",
        method="leenet",
        options={"temperature_scaled": not published},
        network=network,
        exits=("pareto", 4),
        branch="flatten" if published else "pool",
        branch_options={"gate": "features" if published else "confidence"},
        epochs={"final": 12, "exits": 12, "gates": 20},
        cost_weights=ALPHAS,
        own_rule=True,
        accounting="params" if published else "flops",
        at_cost=0.5,
        at_drop=0.05,
    )


MIXED = "mixed: exits on the frozen backbone, then all"
PLAIN = "accuracy of the backbone, trained alone for as many epochs"
IC_ONLY = "half of the cost without loss where exits are trained with the network; less on a frozen"

ROWS: dict[str, Row] = {
    "backbone": Row(
        "(baseline)",
        "the backbone alone, as many epochs as with exits",
        PLAIN,
        "backbone-only",
        epochs=30,
        joint_lr=JOINT_LR,
        joint_decay=JOINT_DECAY,
    ),
    "branchynet": _joint(
        "BranchyNet (2016)",
        "ResNet-110: −1.5 points at 1.9 times the speed (52.6 %), exits 41.5 / 13.8 / 44.7 %",
        "branchynet",
        branch="conv",
        at_cost=1 / 1.9,
    ),
    **{f"diffbranch-{weight}": _diffbranch(weight) for weight in (0.1, 0.5)},
    **{f"eenets-v{version}": _eenets(version) for version in (1, 2)},
    "diffbranch-0.5-mixed": _diffbranch(
        0.5,
        regime=MIXED,
        options={"recipe": "mixed"},
        epochs={"exits": 10, "joint": 30},
    ),
    "eenets-v1-mixed": _eenets(
        1,
        regime=MIXED,
        options={"recipe": "mixed", "two_stage": False},
        epochs={"exits": 10, "joint gates": 30},
    ),
    "pabee": _joint(
        "PABEE (2020)",
        "as accurate as the network or more, for less (no figure in the sources read)",
        "pabee",
        exits=EVERY,
        branch="pool",
        at_drop=0.0,
    ),
    "shallow-deep": _joint(
        "Shallow-Deep (2019), SDN training",
        "at half of the cost as accurate as the network (no figure in the sources read)",
        "shallow-deep",
        options={"recipe": "joint", "mixed_pooling": True},
        exits=EVERY,
        branch="mixpool",
        at_cost=0.5,
    ),
    "boostnet": _joint(
        "BoostNet (2023)",
        "above Σ CEᵢ on the same network (MSDNet, RANet; no figure in the sources read)",
        "boostnet",
        options={"ensemble_reweight": 0.5},
        exits=EVERY,
        branch="pool",
        branch_options={"head": "additive-half"},
        at_drop=0.01,
    ),
    "joint": _joint(
        "Training regimes (2025), joint",
        "final classifier: ResNet-34, CIFAR-100: disjoint 73.8, joint 74.2, mixed 75.9",
        "msdnet",
        branch="conv",
        at_drop=0.01,
    ),
    "mixed": _joint(
        "Training regimes (2025), mixed",
        "final classifier: ResNet-34, CIFAR-100: disjoint 73.8, joint 74.2, mixed 75.9",
        "msdnet",
        regime=MIXED,
        options={"recipe": "mixed"},
        branch="conv",
        epochs={"exits": 10, "joint": 30},
        at_drop=0.01,
    ),
    "hierarchical": _joint(
        "Hierarchical training (2024)",
        "training time −29 / −61 % on a slow link (not measured here) at the accuracy of joint",
        "hierarchical",
        branch="conv",
        at_drop=0.01,
    ),
    "msdnet": _joint(
        "MSDNet (2018)",
        "above ResNets at equal cost",
        "msdnet",
        regime="joint, from scratch, MSDNet's own network and classifiers; beside its own last one",
        network="msdnet",
        reference="msdnet",
        exits=("layers.1", "layers.3", "layers.5"),
        epochs=60,
        at_drop=0.0,
    ),
    "distilled": _joint(
        "Distillation to exits (2019)",
        "exits above Σ CEᵢ on MSDNet (no figure in the sources read)",
        "distilled",
        options={"recipe": "joint"},
        branch="conv",
        at_drop=0.01,
    ),
    "pteenet-20": _pteenet("resnet20", 3, heads_first=True),
    "pteenet-20-together": _pteenet("resnet20", 3, heads_first=False),
    "pteenet-56": _pteenet("resnet56", 5, heads_first=True),
    "pteenet-56-together": _pteenet("resnet56", 5, heads_first=False),
    **{
        f"{name}-{depth}": _frozen(
            paper, claim, method, network=f"resnet{depth}", exits=exits, **options
        )
        for depth, exits in ((20, EVERY), (56, DEEP))
        for name, (paper, claim, method, options) in {
            "ic-only": (
                "Shallow-Deep (2019), IC-only",
                "as SDN training, with more loss (no figure in the sources read)",
                "shallow-deep",
                {"options": {"mixed_pooling": True}, "branch": "mixpool"},
            ),
            "ztw": (
                "Zero Time Waste (2021)",
                "above IC-only at every cost (no figure in the sources read)",
                "ztw",
                {"options": {"conv_heads": True}, "uncached": True},
            ),
            "jei-dnn": (
                "JEI-DNN (2024)",
                "T2T-ViT-7 (94.95 on CIFAR-10): above exits with thresholds",
                "jei-dnn",
                {
                    "options": {"cumulative": True},
                    "branch": "pool",
                    "cost_weights": (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8),
                    "own_rule": True,
                    "epochs": {"exits": 12, "alternating": 8},
                },
            ),
            "e2cm": (
                "E2CM (2022)",
                "exits without training by gradients (no figure in the sources read)",
                "e2cm",
                {"options": {"euclidean": True}, "epochs": 1},
            ),
            "eenet": (
                "EENet (2024), scheduler",
                "above thresholds of MSDNet on the same exits",
                "eenet",
                {"branch": "pool"},
            ),
            "calexnet": (
                "CalexNet (2026)",
                "ResNet-18/50, CIFAR-100: above PTEEnet, ZTW, BoostNet; most at 30–70 % saved",
                "calexnet",
                {"own_rule": True, "at_cost": 0.5, "epochs": 20},
            ),
            "leenet-alpha": (
                "(leenet-fx)",
                "gates of every α in one training: no paper",
                "leenet-alpha",
                {"cost_weights": (0.2,), "epochs": {"exits": 12, "gates": 20}},
            ),
        }.items()
    },
    **{
        f"leenet-{network}{'' if published else '-preset'}": _leenet(network, published=published)
        for network in ("lite0", "mobilenetv2")
        for published in (True, False)
    },
}

NOT_HERE = {
    "LEE": "a claim of online learning: `adaptation.md` simulates it",
    "HAPI": "a claim of placement by measured times: `placement.md` has it",
    "Fast yet Safe (2024)": "a claim of promises kept: `risk.md` has it",
    "Dynamic Perceiver (2023)": "trained from scratch on ImageNet; on a frozen backbone its idea "
    'is `branch="side"`: `side.md`',
    "LGViT (2023)": "needs a pretrained ViT, and there are no weights of one",
    "JEI-DNN (2024) on T2T-ViT-7": "no weights of that network; its rows are on ResNets",
    "CalexNet (2026) on ResNet-18/50": "no such networks trained on CIFAR-100 or CINIC-10",
    "LEENet on ResNet-50": "no such weights; its rows are on two smaller networks",
}
"""Paper → why there is no row."""
