"""save and load: exits as safetensors and JSON.

`exits.safetensors` holds the weights of the exits, and of a final classifier that was replaced or
trained; `exit_config.json` describes the network. Reading them runs no code from the files.
"""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from leenet_fx.errors import InputError, StorageError
from leenet_fx.graph.catalog import create_model
from leenet_fx.policies import policy_from_dict
from leenet_fx.storage.config import (
    CONFIG,
    describe,
    encode_config,
    method_of,
    placement_of,
    read_config,
)
from leenet_fx.storage.files import make_folder, write_atomically
from leenet_fx.storage.fingerprint import backbone_digest, fingerprint
from leenet_fx.storage.upgrade import upgrade_state_dict
from leenet_fx.storage.weights import (
    WEIGHTS,
    check_shapes,
    encode_weights,
    read_weights,
    weights_of,
)
from leenet_fx.surgery.attach import attach
from leenet_fx.surgery.module import EarlyExitModule

logger = logging.getLogger("leenet_fx")


def save(
    ee: EarlyExitModule,
    folder: str | Path,
    *,
    backbone: bool = False,
    fit: Mapping[str, Any] | None = None,
) -> None:
    """Write `exits.safetensors` and `exit_config.json`.

    Args:
        ee: the network.
        folder: created if needed. Files of these names are replaced.
        backbone: whether to include the backbone's weights.
        fit: record of the training run, `FitResult.to_dict()`.

    Raises:
        StorageError: the folder cannot be written to.
        InputError: an option of the branches or of the method cannot be written as JSON.
    """
    folder = Path(folder)
    make_folder(folder)
    weights = encode_weights(weights_of(ee, backbone))
    config = {
        **describe(ee),
        "holds_backbone": backbone,
        "fit": dict(fit) if fit else None,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }
    text = encode_config(config)
    write_atomically(folder / WEIGHTS, weights)
    write_atomically(folder / CONFIG, text)


def load(
    folder: str | Path, model: nn.Module | None = None, *, strict: bool = True
) -> EarlyExitModule:
    """Return the network that `save` wrote.

    Args:
        folder: of `exits.safetensors` and `exit_config.json`, of schema 1 or 2.
        model: the backbone; or a network with exits, attached as the saved one was, which receives
            the weights and is returned; or None for the timm or torchvision model of the saved
            name, with the library's pretrained weights unless the file holds the backbone.
        strict: whether to raise an error if the network's operations differ from the saved one's;
            False logs a warning. Shapes must be equal in any case.

    Raises:
        StorageError: a file is missing, damaged or of an unknown schema, or the network differs
            from the saved one: the message names the file, what was expected and what was found.
        InputError: no `model`, and the saved name is not that of a library model.
        UnknownNameError: the branch or the policy is not registered.
    """
    folder = Path(folder)
    path = folder / CONFIG
    config = read_config(folder)
    weights = read_weights(folder / WEIGHTS, config.get("weights_sha256"))
    if config.get("upgraded_from") == 1:
        weights = upgrade_state_dict(weights)
    method = method_of(config, path)
    if isinstance(model, EarlyExitModule):
        ee = model
    else:
        ee = _attach_saved(config, _library_model(config) if model is None else model, path)
    _check_description(config, ee, path)
    _check_operations(config, ee, path, strict)
    policy = policy_from_dict(config["policy"])
    policy.check(ee.num_exits)
    check_shapes(folder / WEIGHTS, weights, ee)
    ee.load_state_dict(weights, strict=False)
    ee.policy = policy
    names = config.get("class_names")
    ee.spec = replace(
        ee.spec,
        changed=tuple(config["changed"]),
        method=method,
        class_names=None if names is None else tuple(names),
    )
    _compare_backbone(config, ee)
    return ee


def _library_model(config: Mapping[str, Any]) -> nn.Module:
    name = str(config["model"])
    # A model file of the user's is never run: loading runs no code.
    if not name.startswith(("timm/", "torchvision/")) or ".py:" in name:
        raise InputError(
            f"The exits were attached to '{name}', which is not a model of timm or torchvision: "
            "pass the backbone as model=."
        )
    return create_model(name, pretrained=not config.get("holds_backbone")).eval()


def _attach_saved(config: Mapping[str, Any], model: nn.Module, path: Path) -> EarlyExitModule:
    """Attach untrained exits to a backbone as the description says."""
    placement = placement_of(config, path)
    shape = [int(size) for size in config["image_shape"]]
    weight = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    try:
        ee = attach(
            copy.deepcopy(model).eval() if model.training else model,
            list(placement.names),
            example_inputs=torch.empty(1, *shape, dtype=weight.dtype, device="meta"),
            branch=config["branch"],
            branch_options=config["branch_options"],
            num_classes=config["num_classes"],
            blocks=config.get("blocks"),
            name=config["model"],
        )
    except InputError as error:
        raise StorageError(
            f"'{path}': the exits cannot be attached to this network: {error}"
        ) from error
    if ee.spec.classifier_is_new and not (config["classifier_is_new"] or config["holds_backbone"]):
        raise StorageError(
            f"'{path}': num_classes: expected a backbone that has {config['num_classes']} classes, "
            "found another number: pass the backbone as model=."
        )
    ee.spec = replace(ee.spec, placement=replace(ee.spec.placement, strategy=placement.strategy))
    return ee.train(model.training)


def _check_description(config: Mapping[str, Any], ee: EarlyExitModule, path: Path) -> None:
    """Raise StorageError if exits or shapes differ from the saved network's."""
    for key, found in (
        ("num_classes", ee.spec.num_classes),
        ("branch", ee.spec.branch),
        ("branch_options", ee.spec.branch_options),
        ("image_shape", list(ee.spec.image_shape)),
    ):
        if config[key] != found:
            raise StorageError(f"'{path}': {key}: expected {config[key]}, found {found}.")
    expected, names = config["placement"]["names"], list(ee.spec.placement.names)
    if expected != names:
        raise StorageError(f"'{path}': exits: expected after {expected}, found {names}.")


def _check_operations(
    config: Mapping[str, Any], ee: EarlyExitModule, path: Path, strict: bool
) -> None:
    """Raise StorageError, or log a warning, if the backbone's operations differ."""
    before = "the input"
    for expected, found in zip(config["graph"], fingerprint(ee), strict=True):
        if expected != found:
            message = (
                f"'{path}': the network differs between {before} and '{found['up_to']}': expected "
                f"{expected['digest']}, found {found['digest']} (saved with "
                f"{config.get('versions')})."
            )
            if strict:
                raise StorageError(f"{message} strict=False turns this error into a warning.")
            logger.warning("%s", message)
            return
        before = f"'{found['up_to']}'"


def _compare_backbone(config: Mapping[str, Any], ee: EarlyExitModule) -> None:
    """Log a warning if the backbone's weights differ from those the exits were fitted on."""
    expected = config.get("backbone_sha256")
    if expected is None:
        return
    found = backbone_digest(ee)
    if expected != found:
        logger.warning(
            "The backbone's weights differ from those the exits were fitted on (expected digest "
            "%s, found %s): refit or recalibrate.",
            expected[:16],
            found[:16],
        )
