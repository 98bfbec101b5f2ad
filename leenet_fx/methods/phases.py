"""Recipes: in which order the parts of a network with exits are trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from leenet_fx.errors import InputError
from leenet_fx.objectives import FinalClassifier, Objective

Group: TypeAlias = Literal["classifiers", "ensembles", "means", "gates", "final", "backbone"]
"""What may move: the exits' classifiers with their bodies; ensembles of classifiers; class means;
gates; the final classifier; all of the backbone, the final classifier included."""


@dataclass(frozen=True)
class Update:
    """What moves, and by what.

    Attributes:
        trains: the groups that move.
        objective: what is minimised; None for class means, which are counted.
    """

    parameter_groups: tuple[Group, ...]
    objective: Objective | None


@dataclass(frozen=True)
class Phase:
    """One phase of training.

    Attributes:
        name: what users call it, for instance in `epochs={"gates": 5}`.
        turns: what moves, `period` batches each in turn.
        lr: Adam's learning rate where the user gives none, of what is linear in scaled inputs.
        deep_lr: SGD's learning rate, for the backbone and for bodies with weights; with a learning
            rate of the user's it keeps its ratio to `lr`.
        tempered: whether logits held constant are tempered first (Guo et al. 2017): a classifier
            that knows its training images by heart is too sure of itself, and its cross-entropy
            says more of that than of its errors.
        labels: "given", or "backbone": the class that the backbone predicts.
        dials: whether each sample draws a weight of the cost of its own.
        period: batches of a turn, where there are several.
    """

    name: str
    updates: tuple[Update, ...]
    lr: float = 0.1
    sgd_lr: float = 0.2
    temperature_scaled: bool = False
    labels: Literal["given", "backbone"] = "given"
    random_alpha: bool = False
    period: int = 200

    @property
    def parameter_groups(self) -> frozenset[Group]:
        """All that moves."""
        return frozenset(group for turn in self.updates for group in turn.parameter_groups)


def single_update_phase(
    name: str,
    parameter_groups: Group | Sequence[Group],
    objective: Objective | None,
    **options: object,
) -> Phase:
    """A step with one turn.

    Args:
        name: of the step.
        trains: the groups that move.
        objective: what is minimised.
        options: the other fields of `Step`.
    """
    groups: tuple[Group, ...] = (
        (parameter_groups,) if isinstance(parameter_groups, str) else tuple(parameter_groups)
    )
    return Phase(name, (Update(groups, objective),), **options)  # type: ignore[arg-type]


RECIPES = ("disjoint", "joint", "mixed")
"""Training regimes (Kubaty et al. 2025). "disjoint": the backbone is frozen. "joint": it trains
with its exits. "mixed": exits are fitted on the frozen backbone first, then all train together."""


def classifier_phases(recipe: str, exits: Objective, together: Objective) -> tuple[Phase, ...]:
    """How exits without gates are trained.

    Args:
        recipe: one of `RECIPES`.
        exits: the exits' objective on a frozen backbone.
        together: the objective of all N+1 outlets where the backbone trains too.

    Raises:
        InputError: another recipe.
    """
    check_recipe(recipe)
    alone = single_update_phase("exits", "classifiers", exits)
    final = single_update_phase("final", "final", FinalClassifier())
    joint = single_update_phase(
        "together", ("classifiers", "backbone"), together, lr=0.03, sgd_lr=0.01
    )
    return {"disjoint": (alone, final), "joint": (joint,), "mixed": (alone, final, joint)}[recipe]


def check_recipe(recipe: str) -> None:
    """Raises InputError for a recipe that is not one."""
    if recipe not in RECIPES:
        raise InputError(f"recipe must be one of {', '.join(RECIPES)}, got {recipe!r}.")
