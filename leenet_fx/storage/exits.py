"""save and load: what is new of a network with exits, as safetensors and JSON.

`exits.safetensors` holds the branches, and a final classifier that is new or was trained;
`exit_config.json` says where the exits go, what they cost, when samples leave, and on which network
they fit. Reading them runs no code from them.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from leenet_fx.errors import InputError, StorageError
from leenet_fx.graph.catalog import create_model
from leenet_fx.methods import MethodConfig
from leenet_fx.policies import policy_from_dict, policy_to_dict
from leenet_fx.runtime.stages import is_exit
from leenet_fx.storage.files import make_folder, read_text, write_atomically
from leenet_fx.surgery.attach import attach
from leenet_fx.surgery.module import EarlyExitModule
from placement import Placement

logger = logging.getLogger("leenet_fx")

WEIGHTS = "exits.safetensors"
CONFIG = "exit_config.json"
SCHEMA = 1
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


def save(
    ee: EarlyExitModule,
    folder: str | Path,
    *,
    backbone: bool = False,
    fit: Mapping[str, Any] | None = None,
) -> None:
    """Writes `exits.safetensors` and `exit_config.json`.

    Args:
        ee: the network.
        folder: where to; made if needed. Files of these names are replaced.
        backbone: whether to write the backbone's weights too.
        fit: how it was trained, for the record: `FitResult.to_dict()`.

    Raises:
        StorageError: the folder cannot be written to.
    """
    folder = Path(folder)
    make_folder(folder)
    weights = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in ee.state_dict().items()
        if isinstance(tensor, Tensor)
        and name != "exits._extra_state"
        and (backbone or is_new(ee, name))
    }
    # Two names of one tensor (tied weights) are two tensors in the file.
    data = to_bytes(_apart(weights))
    config = {**describe(ee), "holds_backbone": backbone, "fit": dict(fit) if fit else None}
    config["weights_sha256"] = hashlib.sha256(data).hexdigest()
    write_atomically(folder / WEIGHTS, data)
    write_atomically(folder / CONFIG, _to_json(config))


def load(
    folder: str | Path, model: nn.Module | None = None, *, strict: bool = True
) -> EarlyExitModule:
    """Reads what `save` wrote, onto a backbone.

    Args:
        folder: of `exits.safetensors` and `exit_config.json`.
        model: the backbone; or a network with exits, attached by hand as the saved one was, which
            is filled and returned; or None, which takes timm's or torchvision's model of the saved
            name with the library's pretrained weights, unless the file holds the backbone.
        strict: whether a network that computes otherwise than the saved one is an error; if not, it
            is a warning. Shapes must fit in any case.

    Raises:
        StorageError: a file is missing, damaged or of another schema; the network is another one:
            the message names the place, what was expected and what was found.
        InputError: no `model`, and none can be built by the saved name.
        UnknownNameError: no branch or policy of the saved name is registered.
    """
    folder = Path(folder)
    config = read_config(folder)
    weights = _read_weights(folder, config)
    if isinstance(model, EarlyExitModule):
        ee = model
    else:
        ee = _attached(config, _backbone(config) if model is None else model, folder)
    _check_same(config, ee, folder, strict)
    policy = policy_from_dict(config["policy"])
    policy.check(ee.num_exits)
    own = ee.state_dict()
    for name in sorted({*weights, *(n for n in own if is_new(ee, n))} - {"exits._extra_state"}):
        expected = tuple(weights[name].shape) if name in weights else "nothing"
        found = tuple(own[name].shape) if name in own else "nothing"
        if expected != found:
            raise StorageError(
                f"'{folder / WEIGHTS}': '{name}' has shape {expected}, the network's {found}."
            )
    ee.load_state_dict(weights, strict=False)
    ee.policy = policy
    ee.spec = replace(ee.spec, changed=tuple(config["changed"]), method=_method(config))
    _warn_of_other_weights(config, ee)
    return ee


def read_config(folder: Path) -> dict[str, Any]:
    """The content of `exit_config.json`.

    Raises:
        StorageError: it is missing, or not such a file.
    """
    path = folder / CONFIG
    try:
        config = json.loads(read_text(path))
    except ValueError as error:
        raise StorageError(f"'{path}' is not JSON: {error}.") from error
    if not isinstance(config, dict) or config.get("schema") != SCHEMA:
        found = config.get("schema") if isinstance(config, dict) else type(config).__name__
        raise StorageError(f"'{path}': expected schema {SCHEMA}, found {found}.")
    missing = set(KEYS) - set(config)
    if missing:
        raise StorageError(f"'{path}' lacks '{sorted(missing)[0]}'.")
    return config


def describe(ee: EarlyExitModule) -> dict[str, Any]:
    """What `exit_config.json` says of a network, but for its weights."""
    spec = ee.spec
    return {
        "schema": SCHEMA,
        "versions": {library: _version(library) for library in LIBRARIES},
        "model": spec.profile.model,
        "image_shape": list(spec.image_shape),
        "num_classes": spec.num_classes,
        "classifier_is_new": spec.classifier_is_new,
        "changed": list(spec.changed),
        "captured": spec.tracer,
        "branch": spec.branch,
        "branch_options": spec.branch_options,
        "blocks": None if spec.blocks is None else list(spec.blocks),
        "placement": asdict(spec.placement),
        "method": None if spec.method is None else asdict(spec.method),
        "policy": policy_to_dict(ee.policy),
        "costs": ee.costs.to_dict(),
        "graph": fingerprint(ee),
        "backbone_digest": backbone_digest(ee),
    }


def is_new(ee: EarlyExitModule, name: str) -> bool:
    """Whether a state-dict entry is not as in the original model."""
    changed = tuple(f"{module}." if module else "" for module in ee.spec.changed)
    return name.startswith(("exits.", *changed))


def fingerprint(ee: EarlyExitModule) -> list[dict[str, str]]:
    """A digest of the plain network's operations for each stretch between exits, in order.

    Two networks with the same fingerprint run the same operations on tensors of the same shapes.
    """
    ends = [*ee.spec.placement.names, "final"]
    digests = [hashlib.sha256() for _ in ends]
    position: dict[Any, int] = {}
    at = 0
    for node in ee.graph.nodes:
        if is_exit(node):
            at += 1
            continue
        if getattr(node.target, "__name__", "") == "collect_exits" or node.op == "output":
            continue
        position[node] = len(position)
        sources = [position[source] for source in node.all_input_nodes if source in position]
        target = getattr(node.target, "__name__", str(node.target))
        described = [node.op, target, str(sources)]
        if node.op == "call_module":
            module = ee.get_submodule(str(node.target))
            described.append(type(module).__name__)
            described += [f"{n}{tuple(p.shape)}" for n, p in module.named_parameters()]
        digests[min(at, len(ends) - 1)].update("|".join(described).encode())
    return [
        {"up_to": end, "digest": digest.hexdigest()[:16]}
        for end, digest in zip(ends, digests, strict=True)
    ]


def backbone_digest(ee: EarlyExitModule) -> str:
    """A digest of the weights that are as in the original model."""
    digest = hashlib.sha256()
    for name, tensor in sorted(ee.state_dict().items()):
        if isinstance(tensor, Tensor) and not is_new(ee, name) and not tensor.is_meta:
            values = tensor.detach().double()
            # Sums, so that other hardware and dtypes of storage agree to the digits that are kept.
            digest.update(
                f"{name} {float(values.sum()):.6g} {float(values.abs().sum()):.6g}".encode()
            )
    return digest.hexdigest()[:16]


def _backbone(config: Mapping[str, Any]) -> nn.Module:
    name = str(config["model"])
    # Never a file of the user's: loading runs no code.
    if not name.startswith(("timm/", "torchvision/")) or ".py:" in name:
        raise InputError(
            f"The exits were made for '{name}', which is not a name of timm's or torchvision's: "
            "pass model=."
        )
    return create_model(name, pretrained=not config.get("holds_backbone")).eval()


def _attached(config: Mapping[str, Any], model: nn.Module, folder: Path) -> EarlyExitModule:
    placement = _placement(config, folder)
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
            f"'{folder / CONFIG}': the exits do not go on this network: {error}"
        ) from error
    if ee.spec.classifier_is_new and not (config["classifier_is_new"] or config["holds_backbone"]):
        raise StorageError(
            f"'{folder / CONFIG}': num_classes: expected a network of {config['num_classes']} "
            f"classes of its own, found another: pass the backbone as model=."
        )
    ee.spec = replace(ee.spec, placement=replace(ee.spec.placement, strategy=placement.strategy))
    return ee.train(model.training)


def _method(config: Mapping[str, Any]) -> MethodConfig | None:
    kept = config.get("method")
    return None if kept is None else MethodConfig(kept["name"], kept["options"])


def _placement(config: Mapping[str, Any], folder: Path) -> Placement:
    kept = config["placement"]
    try:
        return Placement(kept["strategy"], tuple(kept["indices"]), tuple(kept["names"]))
    except (TypeError, KeyError) as error:
        raise StorageError(f"'{folder / CONFIG}': placement is {kept!r}.") from error


def _check_same(config: Mapping[str, Any], ee: EarlyExitModule, folder: Path, strict: bool) -> None:
    where = folder / CONFIG
    for key, found in (
        ("num_classes", ee.spec.num_classes),
        ("branch", ee.spec.branch),
        ("branch_options", ee.spec.branch_options),
        ("image_shape", list(ee.spec.image_shape)),
    ):
        if config[key] != found:
            raise StorageError(f"'{where}': {key}: expected {config[key]}, found {found}.")
    expected_names, found_names = config["placement"]["names"], list(ee.spec.placement.names)
    if expected_names != found_names:
        raise StorageError(
            f"'{where}': exits: expected after {expected_names}, found {found_names}."
        )
    before = "the input"
    for kept, stretch in zip(config["graph"], fingerprint(ee), strict=True):
        if kept != stretch:
            message = (
                f"'{where}': the network between {before} and '{stretch['up_to']}' is another "
                f"one: expected {kept['digest']}, found {stretch['digest']} "
                f"(made with {config.get('versions')})."
            )
            if strict:
                raise StorageError(f"{message} strict=False loads it all the same.")
            logger.warning("%s", message)
            return
        before = f"'{stretch['up_to']}'"


def _warn_of_other_weights(config: Mapping[str, Any], ee: EarlyExitModule) -> None:
    found = backbone_digest(ee)
    if config.get("backbone_digest") not in (None, found):
        logger.warning(
            "The backbone's weights are not those the exits were fitted on (digest %s, found %s): "
            "fit or calibrate anew.",
            config["backbone_digest"],
            found,
        )


def _read_weights(folder: Path, config: Mapping[str, Any]) -> dict[str, Tensor]:
    path = folder / WEIGHTS
    if not path.is_file():
        raise StorageError(f"Cannot read '{path}': no such file.")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if config.get("weights_sha256") != digest:
        raise StorageError(
            f"'{path}' is not the file that '{folder / CONFIG}' was written with: expected sha256 "
            f"{config.get('weights_sha256')}, found {digest}."
        )
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise StorageError(f"'{path}' is damaged: {error}.") from error


def _apart(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    seen: set[int] = set()
    apart = {}
    for name, tensor in weights.items():
        address = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if address in seen else tensor
        seen.add(address)
    return apart


def _to_json(config: Mapping[str, Any]) -> str:
    return json.dumps(config, indent=2, ensure_ascii=False) + "\n"


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"
