"""The checked plan of a training run."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from leenet_fx.cost.cost_table import check_cost_kind
from leenet_fx.errors import InputError
from leenet_fx.features.batches import check_loader
from leenet_fx.features.feature_cache import FeatureCache
from leenet_fx.methods import CUSTOM, DEFAULT, Method, MethodConfig, as_method
from leenet_fx.methods.phases import Phase
from leenet_fx.policies import Policy
from leenet_fx.registry import unknown_name
from leenet_fx.surgery.module import EarlyExitModule
from leenet_fx.training.feature_source import FitData
from leenet_fx.training.parameters import check_trainable

logger = logging.getLogger("leenet_fx")

DEFAULT_EPOCHS = 10
"""Number of epochs of phases that a mapping of epochs does not name."""


@dataclass(frozen=True)
class Plan:
    """What a training run does; equal plans on equal data give equal weights.

    Attributes:
        method: the method.
        alpha: cost weight.
        cost: cost kind.
        epochs: for each of `phases`.
        lr: Adam's maximum learning rate; None takes each phase's own.
        final_path: module name of the final classifier, if it is trained.
        patience: for early stopping.
        seed: of everything random.
    """

    method: Method
    alpha: float
    cost: str
    epochs: tuple[int, ...]
    lr: float | None
    final_path: str | None
    patience: int | None
    seed: int

    @property
    def phases(self) -> list[Phase]:
        """The method's phases that have parameters to train."""
        return _trainable_phases(self.method, self.final_path)

    @property
    def parameter_groups(self) -> set[str]:
        """The groups of parameters that are trained."""
        pairs = zip(self.phases, self.epochs, strict=True)
        return {group for phase, epochs in pairs if epochs for group in phase.parameter_groups}

    @property
    def trains_final(self) -> bool:
        """Whether the final classifier is trained, alone or with the backbone."""
        groups = self.parameter_groups
        return self.final_path is not None and bool(groups & {"final", "backbone"})

    @property
    def labelled(self) -> bool:
        """Whether labels are needed."""
        return not self.method.label_free or "final" in self.parameter_groups

    def policy_for(self, num_exits: int) -> Policy | None:
        """Return the policy that training sets; None if it trains none of what a policy reads."""
        policy = self.method.policy_for(num_exits)
        if policy.reads_gates and "gates" not in self.parameter_groups:
            return None
        return policy if policy.alpha is None else policy.with_alpha(self.alpha)

    @property
    def options(self) -> dict[str, Any]:
        """The options of the method as JSON values."""
        return _json_options(self.method.config.options)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, by which a run is compared with one to resume."""
        return {
            "method": self.method.name,
            "options": self.options,
            "alpha": self.alpha,
            "cost": self.cost,
            "epochs": list(self.epochs),
            "lr": self.lr,
            "final_path": self.final_path,
            "patience": self.patience,
            "seed": self.seed,
        }


def make_plan(
    ee: EarlyExitModule,
    data: FitData,
    *,
    method: Method,
    alpha: float | None,
    cost: str,
    epochs: int | Mapping[str, int],
    lr: float | None,
    train_final: bool | None,
    patience: int | None,
    seed: int,
) -> Plan:
    """Check the arguments of `fit` and return its plan.

    Raises:
        InputError, UnknownNameError, ModeError: an argument does not fit the network.
    """
    _json_options(method.config.options)
    alpha = method.check_cost_weight(alpha)
    method.check_parts(ee.spec.branch, ee.spec.branch_options)
    method.policy_for(ee.num_exits).check(ee.num_exits)
    _check_detached_exits(method, ee.num_exits)
    check_cost_kind(cost)
    _check_numbers(lr, patience, has_val=data.val is not None)
    for name, source in data.named():
        if isinstance(source, FeatureCache):
            source.check(ee)
        else:
            check_loader(source, name)
    final_path = _final_classifier(ee, train_final)
    phases = _trainable_phases(method, final_path)
    lengths = _epochs_of_phases(epochs, phases, [phase.name for phase in method.phases])
    plan = Plan(method, alpha, cost, tuple(lengths), lr, final_path, patience, seed)
    if "backbone" in plan.parameter_groups:
        _check_backbone(ee, method, data)
    return plan


def choose_method(ee: EarlyExitModule, method: str | Method | None) -> Method:
    """Return the method to train, and log a warning if it differs from the network's.

    Args:
        ee: the network, which records the method that it was attached for or last trained by.
        method: None takes the recorded method, else `DEFAULT`.

    Raises:
        InputError: None, although the recorded method is not registered; neither a name nor a
            `Method`.
        UnknownNameError: no method of that name.
    """
    recorded: MethodConfig | None = ee.spec.method
    if method is None:
        if recorded is not None and recorded.name == CUSTOM:
            raise InputError(
                "This network was attached for, or last trained by, a Method that is not "
                "registered: pass it as method=."
            )
        return as_method(DEFAULT) if recorded is None else recorded.build()
    chosen = as_method(method)
    if recorded is not None and _identity(recorded) == _identity(chosen.config):
        return chosen
    if recorded is not None:
        logger.warning(
            "This network was attached for, or last trained by, method %s, and is trained by "
            "method %s.",
            recorded,
            chosen.config,
        )
    if difference := chosen.unlike_preset(ee.spec.branch_options):
        logger.warning(
            "Method %s is meant for branches with %s: attach with %s.",
            chosen.config,
            difference,
            chosen.config.argument,
        )
    return chosen


def _identity(config: MethodConfig) -> tuple[str, dict[str, Any]]:
    return config.name, _json_options(config.options)


def _json_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as they are read from JSON."""
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}
    try:
        json.dumps(plain)
    except TypeError as error:
        raise InputError(f"Options of a method must be JSON values: {error}.") from error
    return plain


def _check_numbers(lr: object, patience: object, *, has_val: bool) -> None:
    if lr is not None and (not isinstance(lr, (int, float)) or not 0 < lr < math.inf):
        raise InputError(f"lr must be a positive number, got {lr!r}.")
    if patience is not None:
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
            raise InputError(f"patience must be a whole number from 1, got {patience!r}.")
        if not has_val:
            raise InputError(
                "patience counts epochs without a lower validation loss: pass val= too."
            )


def _trainable_phases(method: Method, final_path: str | None) -> list[Phase]:
    """Return the phases without that of a final classifier that is not trained."""
    phases = method.phases
    return [p for p in phases if p.parameter_groups != {"final"} or final_path is not None]


def _check_detached_exits(method: Method, num_exits: int) -> None:
    for phase in method.phases:
        if any(index >= num_exits for index in phase.detached_exits):
            raise InputError(
                f"Method '{method.name}' cuts the network behind exits "
                f"{list(phase.detached_exits)}, and it has {num_exits}, from 0 to {num_exits - 1}."
            )


def _check_backbone(ee: EarlyExitModule, method: Method, data: FitData) -> None:
    """Raise InputError or ModeError if the method cannot train the backbone."""
    advice = "use the method's recipe='disjoint', which keeps the backbone frozen"
    if not ee.backbone_parameters():
        raise InputError("The backbone has no parameter to train.")
    if ee.spec.shares_weights:
        raise InputError(
            f"Method '{method.name}' trains the backbone, and would change the caller's model, "
            f"whose weights are shared: attach with copy=True, or {advice}."
        )
    cached = [name for name, source in data.named() if isinstance(source, FeatureCache)]
    if cached:
        raise InputError(
            f"Method '{method.name}' trains the backbone, so '{cached[0]}' cannot be a feature "
            f"cache: pass the loader, or {advice}."
        )


def _final_classifier(ee: EarlyExitModule, train_final: bool | None) -> str | None:
    """Return the name of the final classifier if it is to be trained."""
    spec = ee.spec
    if train_final is None:
        train_final = spec.classifier_is_new
    if not train_final:
        return None
    if spec.final_classifier is None:
        raise InputError("train_final=True, but the logits do not come from one linear layer.")
    if spec.shares_weights and not spec.classifier_is_new:
        raise InputError(
            "train_final=True would change the caller's model, whose weights are shared: attach "
            "with copy=True."
        )
    final = ee.get_submodule(spec.final_classifier)
    check_trainable(final.parameters(), f"train_final=True ('{spec.final_classifier}')")
    return spec.final_classifier


def _epochs_of_phases(
    epochs: int | Mapping[str, int], phases: Sequence[Phase], known: Sequence[str]
) -> list[int]:
    """Return the number of epochs of each phase.

    Args:
        epochs: for all phases, or by name.
        phases: that have parameters to train.
        known: names of all phases of the method.
    """
    if isinstance(epochs, Mapping):
        names = [phase.name for phase in phases]
        for name, number in epochs.items():
            if name not in known:
                raise unknown_name("training phase", name, known)
            if number and name not in names:
                raise InputError(
                    f"Phase '{name}' has epochs but nothing to train: pass train_final=True?"
                )
        numbers = [epochs.get(name, DEFAULT_EPOCHS) for name in names]
    else:
        numbers = [epochs] * len(phases)
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise InputError(f"epochs must be whole numbers from 0, got {number!r}.")
    # Class means do not change after one pass.
    single = [phase.parameter_groups == {"means"} for phase in phases]
    return [min(n, 1) if one else n for n, one in zip(numbers, single, strict=True)]
