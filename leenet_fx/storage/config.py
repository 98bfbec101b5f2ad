"""exit_config.json: where exits are, what they cost, when samples exit, and on which network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from leenet_fx.errors import InputError, StorageError
from leenet_fx.methods import MethodConfig
from leenet_fx.policies import policy_to_dict
from leenet_fx.storage.files import read_text
from leenet_fx.storage.fingerprint import backbone_digest, fingerprint
from leenet_fx.storage.upgrade import upgrade_config
from leenet_fx.surgery.module import EarlyExitModule
from placement import Placement

CONFIG = "exit_config.json"
SCHEMA = 2
KEYS = (
    "branch",
    "branch_options",
    "changed",
    "classifier_is_new",
    "graph",
    "holds_backbone",
    "image_shape",
    "model",
    "num_classes",
    "placement",
    "policy",
)
LIBRARIES = ("leenet-fx", "torch", "torchvision", "timm")


def describe(ee: EarlyExitModule) -> dict[str, Any]:
    """Return the content of `exit_config.json`, except what concerns the file of the weights."""
    spec = ee.spec
    return {
        "schema": SCHEMA,
        "versions": {library: _version(library) for library in LIBRARIES},
        "model": spec.profile.model,
        "image_shape": list(spec.image_shape),
        "num_classes": spec.num_classes,
        "class_names": None if spec.class_names is None else list(spec.class_names),
        "classifier_is_new": spec.classifier_is_new,
        "changed": list(spec.changed),
        "tracer": spec.tracer,
        "branch": spec.branch,
        "branch_options": spec.branch_options,
        "blocks": None if spec.blocks is None else list(spec.blocks),
        "placement": asdict(spec.placement),
        "method": None if spec.method is None else asdict(spec.method),
        "policy": policy_to_dict(ee.policy),
        "costs": ee.costs.to_dict(),
        "graph": fingerprint(ee),
        "backbone_sha256": backbone_digest(ee),
    }


def encode_config(config: Mapping[str, Any]) -> str:
    """Return a description as JSON.

    Raises:
        InputError: an option of the branches or of the method is no plain value.
    """
    try:
        return json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    except TypeError as error:
        raise InputError(
            f"Options of branches and methods must be plain values to be saved: {error}."
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """Return the content of `exit_config.json`, upgraded to the present schema.

    The name of a branch, a policy or a method is not checked here.

    Args:
        folder: of the file.

    Raises:
        StorageError: the file is missing, no JSON, of an unknown schema, or lacks a key.
    """
    path = folder / CONFIG
    try:
        config = json.loads(read_text(path))
    except ValueError as error:
        raise StorageError(f"'{path}' is not JSON: {error}.") from error
    if not isinstance(config, dict):
        raise StorageError(f"'{path}': expected an object, found {type(config).__name__}.")
    if config.get("schema") not in (1, SCHEMA):
        raise StorageError(
            f"'{path}': expected schema 1 or {SCHEMA}, found {config.get('schema')}."
        )
    missing = set(KEYS) - set(config)
    if missing:
        raise StorageError(f"'{path}' lacks '{sorted(missing)[0]}'.")
    return upgrade_config(config) if config["schema"] == 1 else config


def placement_of(config: Mapping[str, Any], path: Path) -> Placement:
    """Return the placement of a description.

    Raises:
        StorageError: the description holds no placement; the message names `path`.
    """
    stored = config["placement"]
    try:
        return Placement(stored["strategy"], tuple(stored["indices"]), tuple(stored["names"]))
    except (TypeError, KeyError) as error:
        raise StorageError(f"'{path}': expected a placement, found {stored!r}.") from error


def method_of(config: Mapping[str, Any], path: Path) -> MethodConfig | None:
    """Return name and options of the method of a description, or None if it has no method.

    Raises:
        StorageError: the description of the method is incomplete; the message names `path`.
    """
    stored = config.get("method")
    if stored is None:
        return None
    try:
        # JSON has no tuples, and options must be hashable.
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in stored["options"].items()}
        return MethodConfig(stored["name"], options)
    except (TypeError, KeyError, AttributeError) as error:
        raise StorageError(f"'{path}': expected a method, found {stored!r}.") from error


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"
