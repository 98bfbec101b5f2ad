"""exit_config.json: where exits are, what they cost, when samples exit, and on which network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from leenet_fx.errors import InputError, StorageError
from leenet_fx.methods import MethodConfig
from leenet_fx.policies import policy_to_dict
from leenet_fx.storage.arguments import encode_arguments
from leenet_fx.storage.fingerprint import backbone_digest, fingerprint
from leenet_fx.storage.json_files import read_json, to_json, validated
from leenet_fx.storage.upgrade import upgrade_config
from leenet_fx.surgery.module import EarlyExitModule
from leenet_fx.surgery.operating_point import OperatingPoint
from placement import Placement

CONFIG = "exit_config.json"
SCHEMA: Literal[2] = 2
LIBRARIES = ("leenet-fx", "torch", "torchvision", "timm")

Count = Annotated[int, Field(gt=0, lt=2**31)]


@dataclass(frozen=True)
class Segment:
    """The digest of the backbone's operations up to a block; see `fingerprint`."""

    up_to: str
    digest: str


@dataclass(frozen=True)
class ExitConfig:
    """The content of `exit_config.json`.

    Attributes:
        schema: version of the form of the file.
        model: name of the backbone.
        image_shape: shape of one image, without the batch axis.
        num_classes: width of the logits.
        classifier_is_new: whether `attach` replaced or added the final classifier.
        changed: modules, weights and buffers of the backbone that are not the original's, and are
            therefore in `exits.safetensors`.
        branch: name of the branch architecture.
        branch_options: its options.
        placement: the boundaries with an exit.
        policy: name and options of the policy.
        graph: digests of the backbone's operations.
        holds_backbone: whether `exits.safetensors` holds all weights of the backbone.
        weights_sha256: digest of `exits.safetensors`.
        backbone_sha256: digest of the backbone's unchanged weights; None if not known.
        class_names: names of the classes; None if not known.
        operating_points: what `leenet_fx.calibrate` found.
        tracer: what captured the backbone.
        blocks: patterns of the modules that are blocks; None for the default rule.
        concrete_args: values of the arguments of the model's forward other than the images; tensors
            and other objects by `leenet_fx.storage.arguments.encode_arguments`.
        leaf_modules: classes that were not traced into, as `module.Class`.
        method: the method of the last training, or that the exits were attached for.
        costs: `CostTable.to_dict()`, for readers of the file.
        fit: the record of the training run; None if there was none.
        versions: of the libraries that wrote the file.
        upgraded_from: schema of the file, if it was an earlier one.
    """

    schema: Literal[2]
    model: str
    image_shape: tuple[Count, ...]
    num_classes: Count
    classifier_is_new: bool
    changed: tuple[str, ...]
    branch: str
    branch_options: dict[str, Any]
    placement: Placement
    policy: dict[str, Any]
    graph: tuple[Segment, ...]
    holds_backbone: bool
    weights_sha256: str
    backbone_sha256: str | None = None
    class_names: tuple[str, ...] | None = None
    operating_points: tuple[OperatingPoint, ...] = ()
    tracer: Literal["fx", "export"] = "fx"
    blocks: tuple[str, ...] | None = None
    concrete_args: dict[str, Any] = field(default_factory=dict)
    leaf_modules: tuple[str, ...] = ()
    method: MethodConfig | None = None
    costs: dict[str, Any] = field(default_factory=dict)
    fit: dict[str, Any] | None = None
    versions: dict[str, str] = field(default_factory=dict)
    upgraded_from: Literal[1] | None = None


def describe(
    ee: EarlyExitModule,
    *,
    changed: tuple[str, ...],
    holds_backbone: bool,
    weights_sha256: str,
    fit: Mapping[str, Any] | None,
) -> ExitConfig:
    """Return the description of a network.

    Args:
        ee: the network.
        changed: the entries of its state dict that are not the original's, see `changed_entries`.
        holds_backbone: whether the file of the weights holds the backbone.
        weights_sha256: digest of that file.
        fit: record of the training run.
    """
    spec = ee.spec
    return ExitConfig(
        schema=SCHEMA,
        model=spec.profile.model,
        image_shape=spec.image_shape,
        num_classes=spec.num_classes,
        classifier_is_new=spec.classifier_is_new,
        changed=changed,
        branch=spec.branch,
        branch_options=spec.branch_options,
        placement=spec.placement,
        policy=policy_to_dict(ee.policy),
        graph=tuple(Segment(**segment) for segment in fingerprint(ee)),
        holds_backbone=holds_backbone,
        weights_sha256=weights_sha256,
        backbone_sha256=backbone_digest(ee, changed),
        class_names=spec.class_names,
        operating_points=spec.operating_points,
        tracer=spec.tracer,
        blocks=spec.blocks,
        concrete_args=encode_arguments(spec.concrete_args),
        leaf_modules=spec.leaf_modules,
        method=spec.method,
        costs=ee.costs.to_dict(),
        fit=dict(fit) if fit else None,
        versions={library: _version(library) for library in LIBRARIES},
    )


def encode_config(config: ExitConfig) -> str:
    """Return a description as JSON.

    Raises:
        InputError: an option of the branches or of the method is no plain value.
    """
    values = {key: value for key, value in asdict(config).items() if key != "upgraded_from"}
    try:
        return to_json(values)
    except TypeError as error:
        raise InputError(
            f"Options of branches and methods must be plain values to be saved: {error}."
        ) from error


def read_config(folder: Path) -> ExitConfig:
    """Return the content of `exit_config.json`, upgraded to the present schema.

    Whether the branch, the policy or the method is registered, is not checked here.

    Args:
        folder: of the file.

    Raises:
        StorageError: the file is missing, no JSON, of an unknown schema, lacks a key, or has a
            value of another type.
    """
    path = folder / CONFIG
    content = read_json(path)
    if not isinstance(content, dict):
        raise StorageError(f"'{path}': expected an object, found {type(content).__name__}.")
    schema = content.get("schema")
    if schema not in (1, SCHEMA):
        raise StorageError(f"'{path}': expected schema 1 or {SCHEMA}, found {schema!r}.")
    config = validated(ExitConfig, upgrade_config(content) if schema == 1 else content, path)
    if len(config.graph) != len(config.placement.names) + 1:
        raise StorageError(
            f"'{path}': 'graph': expected {len(config.placement.names) + 1} digests, one for each "
            f"exit and one for the final classifier, found {len(config.graph)}."
        )
    if config.class_names is not None and len(config.class_names) != config.num_classes:
        raise StorageError(
            f"'{path}': 'class_names': expected {config.num_classes}, found "
            f"{len(config.class_names)}."
        )
    return replace(config, method=_with_hashable_options(config.method))


def _with_hashable_options(method: MethodConfig | None) -> MethodConfig | None:
    if method is None:
        return None
    # JSON has no tuples, and options must be hashable.
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in method.options.items()}
    return MethodConfig(method.name, options)


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"
