"""Upgrade of files of schema 1: tables of renames, and functions that apply them.

Schema 1 is the form that `exit_config.json`, `exits.safetensors` and `run.yaml` had before the
names below changed. Names that are in no table are the same in both schemas.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")

CONFIG_KEYS = {"captured": "tracer"}
POLICIES = {"shut": "never", "dial": "alpha-gate"}
GATES = {"dial": "alpha"}
METHODS = {"leenet-dial": "leenet-alpha"}
METHOD_OPTIONS = {
    "branchynet": {"weights": "exit_weights"},
    "leenet": {"tempered": "temperature_scaled"},
    "pabee": {"agreements": "patience"},
}
PLAN_KEYS = {"lengths": "epochs"}
EPOCH_KEYS = {"step": "phase"}
PHASES = {
    "exits together": "joint exits",
    "gates together": "joint gates",
    "together": "joint",
    "turns": "alternating",
}
LATENCY_KEYS = {"plain": "backbone"}
SPLITS = {"fit": "train", "validate": "val", "calibrate": "calibration", "report": "test"}

_NECK = re.compile(r"^(exits\.\d+)\.body\.")


def upgrade_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of an `exit_config.json` of schema 1 in the form of schema 2.

    The method is taken from the record of the training run. The digest of the backbone's weights
    is left out: it cannot be compared with digests of schema 2.

    Args:
        config: of schema 1; unchanged.

    Returns:
        The description, with `upgraded_from` 1: the weights beside it need `upgrade_state_dict`.
    """
    upgraded = _renamed(config, CONFIG_KEYS)
    upgraded.pop("backbone_digest", None)
    upgraded["schema"], upgraded["upgraded_from"] = 2, 1
    if isinstance(options := config.get("branch_options"), Mapping):
        upgraded["branch_options"] = _upgrade_branch_options(options)
    if isinstance(policy := config.get("policy"), Mapping):
        upgraded["policy"] = upgrade_policy(policy)
    if isinstance(costs := config.get("costs"), Mapping):
        upgraded["costs"] = _upgrade_costs(costs)
    fit = config.get("fit")
    upgraded["fit"] = _upgrade_fit(fit) if isinstance(fit, Mapping) else None
    upgraded["method"] = None
    if isinstance(fit, Mapping) and "method" in fit:
        upgraded["method"] = {
            "name": upgraded["fit"]["method"],
            "options": upgraded["fit"].get("options", {}),
        }
    return upgraded


def upgrade_policy(policy: Mapping[str, Any]) -> dict[str, Any]:
    """Return the description of a policy of schema 1 in the form of schema 2."""
    return {**policy, "name": _new(POLICIES, policy.get("name"))}


def upgrade_state_dict(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state dict of schema 1 in the form that `EarlyExitModule.load_state_dict` takes.

    Args:
        state: names and tensors of a network with exits, or of its exits only; unchanged. The
            encoded policy, `exits._extra_state`, is upgraded if it is in it.
    """
    upgraded = {_NECK.sub(r"\1.neck.", name): tensor for name, tensor in state.items()}
    key = "exits._extra_state"
    if key in upgraded:
        policy = upgrade_policy(json.loads(bytes(upgraded[key].tolist())))
        upgraded[key] = upgraded[key].new_tensor(list(json.dumps(policy).encode()))
    return upgraded


def upgrade_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options of a `run.yaml` of schema 1 in the form of schema 2.

    Args:
        options: of the command line, by name with underscores; unchanged.
    """
    upgraded = dict(options)
    for name, table in (("gate", GATES), ("method", METHODS), ("split", SPLITS)):
        if name in upgraded:
            upgraded[name] = _new(table, upgraded[name])
    if isinstance(methods := upgraded.get("methods"), str):
        names = (name.strip() for name in methods.split(","))
        upgraded["methods"] = ",".join(METHODS.get(name, name) for name in names)
    if isinstance(given := upgraded.get("option"), list):
        table = METHOD_OPTIONS.get(str(options.get("method")), {})
        upgraded["option"] = [_upgrade_assignment(str(text), table) for text in given]
    return upgraded


def _upgrade_branch_options(options: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _new(GATES, value) if k == "gate" else value for k, value in options.items()}


def _upgrade_costs(costs: Mapping[str, Any]) -> dict[str, Any]:
    latency = costs.get("latency")
    if not isinstance(latency, Mapping):
        return dict(costs)
    return {**costs, "latency": _renamed(latency, LATENCY_KEYS)}


def _upgrade_fit(fit: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record of a training run with new names of methods, options and phases."""
    upgraded = _upgrade_method(fit)
    if isinstance(history := fit.get("history"), list):
        epochs = (_renamed(epoch, EPOCH_KEYS) for epoch in history if isinstance(epoch, Mapping))
        upgraded["history"] = [
            {**epoch, "phase": _new(PHASES, epoch.get("phase"))} for epoch in epochs
        ]
    if isinstance(plan := fit.get("plan"), Mapping):
        upgraded["plan"] = _renamed(_upgrade_method(plan), PLAN_KEYS)
    return upgraded


def _upgrade_method(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with new names of its `method` and of that method's `options`."""
    upgraded = dict(record)
    if "method" in record:
        upgraded["method"] = _new(METHODS, record["method"])
    if isinstance(options := record.get("options"), Mapping):
        upgraded["options"] = _renamed(options, METHOD_OPTIONS.get(str(record.get("method")), {}))
    return upgraded


def _upgrade_assignment(text: str, table: Mapping[str, str]) -> str:
    name, equals, value = text.partition("=")
    return f"{table.get(name, name)}{equals}{value}"


def _renamed(record: Mapping[str, Any], table: Mapping[str, str]) -> dict[str, Any]:
    return {table.get(key, key): value for key, value in record.items()}


def _new(table: Mapping[str, str], value: T) -> T | str:
    return table.get(value, value) if isinstance(value, str) else value
