"""Early exits for any trained image classifier.

`attach` puts exits into a model, `fit` trains them, `evaluate` measures what they save:

    ee = leenet_fx.attach(model, strategy="fine")
    leenet_fx.fit(ee, train_loader, method="leenet", alpha=0.8)
    logits = ee(images)

Everything public is a name of this module. Names load when first used, so that importing the
package, and the command line's help, do not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "errors": (
        "DependencyError",
        "EarlyExitError",
        "InputError",
        "ModeError",
        "PlacementError",
        "StorageError",
        "TraceError",
        "TrainingError",
        "UnknownNameError",
    ),
    "data.splits": ("Data", "open_data"),
    "data.transforms": ("make_transform",),
    "evaluation.budgets": ("set_budget",),
    "evaluation.compare": ("Comparison", "Operating", "Run", "Variant", "compare", "frozen"),
    "evaluation.evaluate": ("ClassRow", "Evaluation", "Example", "Outlet", "Timing", "evaluate"),
    "evaluation.sweep": ("Point", "Sweep", "sweep"),
    "graph.catalog": ("create_model", "list_models"),
    "methods": ("Method", "get_method", "list_methods", "list_overrides", "register_method"),
    "parts.bodies": ("Body",),
    "parts.branches": ("Branch", "get_branch", "list_branches", "register_branch"),
    "parts.gates": ("Gate", "get_gate", "list_gates", "register_gate"),
    "parts.heads": ("Head", "get_head", "list_heads", "register_head"),
    "parts.objectives": (
        "Objective",
        "Outputs",
        "exit_log_probabilities",
        "exit_losses",
        "get_objective",
        "leenet_loss",
        "list_objectives",
        "register_objective",
        "soft_probabilities",
    ),
    "parts.policies": (
        "ClassMeanDistance",
        "Dial",
        "Entropy",
        "LearnedGate",
        "Margin",
        "MaxProbability",
        "Patience",
        "Policy",
        "Shut",
        "Vote",
        "get_policy",
        "list_policies",
        "register_policy",
    ),
    "parts.recipes": ("Step", "Turn", "one_turn"),
    "parts.sites": ("FeatureShape", "Site"),
    "parts.thresholds": ("get_solver", "list_solvers", "register_solver"),
    "storage.exits": ("load", "save"),
    "surgery.attach": ("attach",),
    "surgery.compiling": ("compile",),
    "surgery.costs": ("CostRow", "CostTable"),
    "surgery.latency": ("Latency",),
    "surgery.model": ("EarlyExitModule", "ExitOutputs", "Prediction"),
    "surgery.streaming": ("predict_stream",),
    "surgery.timing": ("profile",),
    "training.cache": ("FeatureCache", "cache_features"),
    "training.fit": ("FitResult", "fit"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(["__version__", *_HOME_OF])


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'leenet_fx' has no attribute '{name}'")
    value = getattr(import_module(f"leenet_fx.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *_HOME_OF]
