"""save and load: exits as safetensors and JSON.

`exits.safetensors` holds the weights of the exits, and all weights and buffers of the backbone that
are not the original model's; `exit_config.json` describes the network. Reading them runs no code
from the files.
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
from torch import Tensor, nn

from leenet_fx.errors import EarlyExitError, InputError, StorageError, UnknownNameError, first_line
from leenet_fx.graph.catalog import create_model
from leenet_fx.policies import Policy, policy_from_dict
from leenet_fx.storage.arguments import decode_arguments, encode_arguments, find_classes
from leenet_fx.storage.config import CONFIG, ExitConfig, describe, encode_config, read_config
from leenet_fx.storage.files import make_folder, rename, write_atomically
from leenet_fx.storage.fingerprint import backbone_digest, changed_entries, fingerprint
from leenet_fx.storage.hub import download, is_hub_name
from leenet_fx.storage.model_card import FOLDER, write_card
from leenet_fx.storage.upgrade import upgrade_state_dict
from leenet_fx.storage.weights import (
    NEXT_WEIGHTS,
    WEIGHTS,
    check_shapes,
    check_sharing,
    encode_weights,
    read_weights,
    set_weights,
    weights_of,
)
from leenet_fx.surgery.attach import attach
from leenet_fx.surgery.module import EarlyExitModule

logger = logging.getLogger("leenet_fx")

DAMAGE = (
    *(TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError),
    *(AssertionError, MemoryError),
)
"""Errors of building exits by options that a damaged description has."""


def save(
    ee: EarlyExitModule,
    folder: str | Path,
    *,
    backbone: bool = False,
    fit: Mapping[str, Any] | None = None,
    license: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write `exits.safetensors`, `exit_config.json` and a model card, `README.md`.

    Weights and buffers of the backbone that were changed since `attach`, by `fit`, by your own loop
    or by `load_state_dict`, are written with the exits, so that `load` with the original model
    returns a network of the same outputs.

    Args:
        ee: the network.
        folder: created if needed. A `README.md` that was written by hand stays as it is.
        backbone: whether to include all weights of the backbone.
        fit: record of the training run, `FitResult.to_dict()`.
        overwrite: whether to replace a network that is saved in the folder. It is replaced as a
            whole: whenever the process is killed, `load` returns the old network or the new one.
        license: licence of the weights, for the card; None takes what timm says of the backbone.

    Raises:
        StorageError: the folder holds a saved network and `overwrite` is False; or it cannot be
            written to, which leaves a saved network as it was.
        InputError: an option of the branches or of the method cannot be written as JSON; a changed
            entry is no tensor; or what was changed is not known.
    """
    check_no_network(Path(folder), overwrite)
    write_files(ee, Path(folder), backbone=backbone, fit=fit, license=license)


def write_files(
    ee: EarlyExitModule,
    folder: Path,
    *,
    backbone: bool,
    fit: Mapping[str, Any] | None,
    license: str | None,
    place: str = FOLDER,
) -> None:
    """Write the files of a network; see `save`.

    Args:
        ee: the network.
        folder: created if needed.
        backbone: whether to include all weights of the backbone.
        fit: record of the training run.
        license: licence of the weights.
        place: what the card says that `load` takes.
    """
    unknown = backbone and ee.spec.checksums is None
    changed = ee.spec.changed if unknown else changed_entries(ee)
    weights = encode_weights(weights_of(ee, changed, backbone))
    config = describe(
        ee,
        changed=changed,
        holds_backbone=backbone,
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        fit=fit,
    )
    text = encode_config(config)
    make_folder(folder)
    if (folder / WEIGHTS).exists():
        # The description names the digest of its weights, and `read_weights` finds them by it in
        # either of two files, so that the old pair is complete until the description is replaced.
        write_atomically(folder / NEXT_WEIGHTS, weights)
        write_atomically(folder / CONFIG, text)
        rename(folder / NEXT_WEIGHTS, folder / WEIGHTS)
    else:
        write_atomically(folder / WEIGHTS, weights)
        write_atomically(folder / CONFIG, text)
    write_card(config, folder, license, place)


def check_no_network(folder: Path, overwrite: bool) -> None:
    """Raise StorageError if a folder holds a saved network that must not be overwritten.

    Args:
        folder: to save in.
        overwrite: whether it may be.
    """
    present = [name for name in (CONFIG, WEIGHTS) if (folder / name).exists()]
    if present and not overwrite:
        raise StorageError(
            f"'{folder}' holds '{present[0]}' of a saved network: choose another folder, or pass "
            "overwrite=True to replace it."
        )


def load(
    folder: str | Path, model: nn.Module | None = None, *, strict: bool = True
) -> EarlyExitModule:
    """Return the network that `save` wrote.

    Args:
        folder: of `exits.safetensors` and `exit_config.json`, of schema 1 or 2; or
            "hf:owner/name" or "hf:owner/name@revision" of the Hugging Face hub.
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
    folder = download(folder) if is_hub_name(folder) else Path(folder)
    path = folder / CONFIG
    config = read_config(folder)
    weights = read_weights(folder, config.weights_sha256)
    if config.upgraded_from == 1:
        weights = upgrade_state_dict(weights)
    policy = _policy(config, path)
    if isinstance(model, EarlyExitModule):
        ee = model
    else:
        given = library_model(config, path) if model is None else model
        ee = _attach_saved(config, given, path, weights)
    _check_description(config, ee, path)
    _check_operations(config, ee, path, strict)
    policy.check(ee.num_exits)
    check_shapes(folder / WEIGHTS, weights, ee, config.changed)
    check_sharing(folder / WEIGHTS, weights, ee)
    set_weights(ee, weights)
    ee.policy = policy
    ee.spec = replace(
        ee.spec,
        changed=config.changed,
        method=config.method,
        class_names=config.class_names,
        operating_points=config.operating_points,
    )
    _compare_backbone(config, ee)
    return ee


def _policy(config: ExitConfig, path: Path) -> Policy:
    """Return the policy of a description, which fits the number of exits."""
    try:
        policy = policy_from_dict(config.policy)
        policy.check(len(config.placement.names))
    except (InputError, OverflowError) as error:
        raise StorageError(f"'{path}': 'policy': {first_line(error)}") from error
    return policy


def library_model(config: ExitConfig, path: Path) -> nn.Module:
    """Build the timm or torchvision model that a description names, in evaluation mode.

    Args:
        config: the description.
        path: of its file, for messages.

    Raises:
        InputError: another model; StorageError: it cannot be built.
    """
    name = config.model
    # A model file of the user's is never run: loading runs no code.
    if not name.startswith(("timm/", "torchvision/")) or ".py:" in name:
        raise InputError(
            f"The exits were attached to '{name}', which is not a model of timm or torchvision: "
            "pass the backbone as model=."
        )
    try:
        return create_model(name, pretrained=not config.holds_backbone).eval()
    except EarlyExitError:
        raise
    except Exception as error:
        # Builders and downloads of the libraries raise errors of any kind.
        raise StorageError(
            f"'{path}': the model '{name}' cannot be built: {first_line(error)} Pass the backbone "
            "as model=."
        ) from error


def _attach_saved(
    config: ExitConfig, model: nn.Module, path: Path, weights: Mapping[str, Tensor]
) -> EarlyExitModule:
    """Attach untrained exits to a backbone as the description says."""
    holds_classifier = config.classifier_is_new or config.holds_backbone
    if holds_classifier and config.num_classes > sum(w.numel() for w in weights.values()):
        raise StorageError(
            f"'{path}': 'num_classes': {config.num_classes} classes have more weights than "
            f"'{WEIGHTS}' holds."
        )
    weight = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    try:
        ee = attach(
            copy.deepcopy(model).eval() if model.training else model,
            list(config.placement.names),
            example_inputs=torch.empty(1, *config.image_shape, dtype=weight.dtype, device="meta"),
            branch=config.branch,
            branch_options=config.branch_options,
            num_classes=config.num_classes if holds_classifier else None,
            blocks=config.blocks,
            concrete_args=decode_arguments(config.concrete_args, path),
            leaf_modules=find_classes(config.leaf_modules, model, path),
            name=config.model,
        )
    except (UnknownNameError, StorageError):
        raise
    except (EarlyExitError, *DAMAGE) as error:
        raise StorageError(
            f"'{path}': the exits cannot be attached to this network: {first_line(error)}"
        ) from error
    strategy = config.placement.strategy
    ee.spec = replace(ee.spec, placement=replace(ee.spec.placement, strategy=strategy))
    return ee.train(model.training)


def _check_description(config: ExitConfig, ee: EarlyExitModule, path: Path) -> None:
    """Raise StorageError if exits or shapes differ from the saved network's."""
    if config.num_classes != ee.spec.num_classes:
        raise StorageError(
            f"'{path}': num_classes: expected a backbone that has {config.num_classes} classes, "
            f"found {ee.spec.num_classes}: pass the backbone as model=."
        )
    for key in ("branch", "branch_options", "image_shape"):
        expected, found = getattr(config, key), getattr(ee.spec, key)
        if expected != found:
            raise StorageError(f"'{path}': {key}: expected {expected}, found {found}.")
    arguments = encode_arguments(ee.spec.concrete_args)
    if config.concrete_args != arguments:
        raise StorageError(
            f"'{path}': concrete_args: expected {config.concrete_args}, found {arguments}."
        )
    names = ee.spec.placement.names
    if config.placement.names != names:
        raise StorageError(
            f"'{path}': exits: expected after {list(config.placement.names)}, found {list(names)}."
        )


def _check_operations(config: ExitConfig, ee: EarlyExitModule, path: Path, strict: bool) -> None:
    """Raise StorageError, or log a warning, if the backbone's operations differ."""
    before = "the input"
    for expected, found in zip(config.graph, fingerprint(ee), strict=True):
        if expected.digest != found["digest"]:
            message = (
                f"'{path}': the network differs between {before} and '{found['up_to']}': expected "
                f"{expected.digest}, found {found['digest']} (saved with {config.versions})."
            )
            if strict:
                raise StorageError(f"{message} strict=False turns this error into a warning.")
            logger.warning("%s", message)
            return
        before = f"'{found['up_to']}'"


def _compare_backbone(config: ExitConfig, ee: EarlyExitModule) -> None:
    """Log a warning if the backbone's weights differ from those the exits were fitted on."""
    expected = config.backbone_sha256
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
