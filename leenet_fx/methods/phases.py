"""Training phases and training regimes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from leenet_fx.errors import InputError
from leenet_fx.objectives import FinalClassifier, Objective, SumOfExits

Group: TypeAlias = Literal["classifiers", "ensembles", "means", "gates", "final", "backbone"]
"""Parameter group: the exits' necks and heads; the weights of ensembles; class means; gates; the
final classifier; the backbone including the final classifier."""


@dataclass(frozen=True)
class Update:
    """Parameters and the objective that trains them.

    Attributes:
        parameter_groups: groups that are trained.
        objective: the loss; None for class means, which are computed without gradients.
    """

    parameter_groups: tuple[Group, ...]
    objective: Objective | None


@dataclass(frozen=True)
class Phase:
    """A phase of training, with optimizers and a learning-rate schedule of its own.

    Attributes:
        name: key of `epochs={"gates": 5}`, and name in logs.
        updates: applied alternately, in turns over each of which learning rates rise and fall.
        lr: default peak learning rate of Adam, for linear layers on standardized inputs.
        sgd_lr: default peak learning rate of SGD, for the backbone and for necks with weights; a
            user's learning rate replaces `lr` and scales this by the same factor.
        backbone_decay: weight decay of the backbone, which is given with trained weights; papers
            that train from scratch take 1e-4 to 5e-4.
        temperature_scaled: whether logits that are held constant are temperature-scaled first (Guo
            et al. 2017): a classifier that has overfitted is overconfident on its training images,
            and its cross-entropy there no longer measures its errors.
        labels: "given", or "backbone": the class that the backbone predicts.
        random_alpha: whether the cost weight is drawn at random for each sample.
        turns: number of turns of equal length, if there are several updates.
        period: batches of a turn; None divides the phase into `turns`.
        detached_exits: indices of exits behind which no gradient flows back, if the backbone
            trains.
    """

    name: str
    updates: tuple[Update, ...]
    lr: float = 0.1
    sgd_lr: float = 0.2
    backbone_decay: float = 0.0
    temperature_scaled: bool = False
    labels: Literal["given", "backbone"] = "given"
    random_alpha: bool = False
    turns: int = 20
    period: int | None = None
    detached_exits: tuple[int, ...] = ()

    @property
    def parameter_groups(self) -> frozenset[Group]:
        """Groups that any of the updates trains."""
        return frozenset(group for update in self.updates for group in update.parameter_groups)

    @property
    def held_out(self) -> bool:
        """Whether the calibration images are for this phase.

        Gates and the weights of ensembles weigh classifiers that are fixed, and that look better on
        their own training images than on others.
        """
        return self.parameter_groups <= {"gates", "ensembles"}


def single_update_phase(
    name: str,
    parameter_groups: Group | Sequence[Group],
    objective: Objective | None,
    **options: Any,
) -> Phase:
    """Return a phase with one update.

    Args:
        name: of the phase.
        parameter_groups: one or more groups that are trained.
        objective: the loss.
        options: other fields of `Phase`.
    """
    groups: tuple[Group, ...] = (
        (parameter_groups,) if isinstance(parameter_groups, str) else tuple(parameter_groups)
    )
    return Phase(name, (Update(groups, objective),), **options)


EXITS = single_update_phase("exits", "classifiers", SumOfExits())
"""Training of the exits' classifiers by cross-entropy."""

FINAL = single_update_phase("final", "final", FinalClassifier())
"""Training of the final classifier by cross-entropy."""

ENSEMBLES = single_update_phase("ensembles", "ensembles", SumOfExits())
"""Training of the weights of ensembles on the fixed outputs of their heads, by cross-entropy."""

RECIPES = ("disjoint", "joint", "mixed")
"""Training regimes (Kubaty et al. 2025). "disjoint": the backbone is frozen. "joint": backbone and
exits are trained together. "mixed": exits are first trained on the frozen backbone, then all
together."""


def classifier_phases(recipe: str, exits: Objective, joint: Objective) -> tuple[Phase, ...]:
    """Return the training phases of exits without gates.

    Args:
        recipe: one of `RECIPES`.
        exits: objective of the exits on a frozen backbone.
        joint: objective of all N+1 classifiers when the backbone is trained.

    Raises:
        InputError: no such recipe.
    """
    check_recipe(recipe)
    frozen = single_update_phase("exits", "classifiers", exits)
    together = single_update_phase(
        "joint", ("classifiers", "backbone"), joint, lr=0.03, sgd_lr=0.01
    )
    phases = {
        "disjoint": (FINAL, frozen),
        "joint": (together,),
        "mixed": (FINAL, frozen, together),
    }
    return phases[recipe]


def end_to_end_phase(name: str, recipe: str, objective: Objective, *, gates: bool = True) -> Phase:
    """Return a phase that trains classifiers, gates and the backbone, unless it is frozen.

    Args:
        name: of the phase.
        recipe: one of `RECIPES`; "disjoint" freezes the backbone.
        objective: the loss.
        gates: whether gates are trained.

    Raises:
        InputError: no such recipe.
    """
    check_recipe(recipe)
    groups: list[Group] = ["classifiers"]
    if gates:
        groups.append("gates")
    if recipe != "disjoint":
        groups.append("backbone")
    return single_update_phase(name, groups, objective, lr=0.03, sgd_lr=0.01)


def gate_for(recipe: str) -> str:
    """Return the gate of methods whose published gate reads features.

    Features of a frozen backbone do not adapt to a gate, and a linear gate on them predicts the
    head's errors worse than the head's own confidence does.

    Args:
        recipe: one of `RECIPES`.

    Raises:
        InputError: no such recipe.
    """
    check_recipe(recipe)
    return "confidence" if recipe == "disjoint" else "features"


def check_flag(option: str, value: object) -> None:
    """Raise InputError unless the value of a method's option is a bool."""
    if not isinstance(value, bool):
        raise InputError(f"{option} must be True or False, got {value!r}.")


def check_recipe(recipe: str) -> None:
    """Raise InputError unless `recipe` is one of `RECIPES`."""
    if recipe not in RECIPES:
        raise InputError(f"recipe must be one of {', '.join(RECIPES)}, got {recipe!r}.")
