"""attach: trace, place, insert exits."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from leenet_fx.digest import checksum, entries
from leenet_fx.errors import InputError, PlacementError, placement_errors
from leenet_fx.graph.catalog import library_name
from leenet_fx.graph.checks import check_module
from leenet_fx.graph.hf_models import class_names
from leenet_fx.graph.meta_modules import depends_on_batch_range
from leenet_fx.graph.traced_model import TracedModel, trace_model
from leenet_fx.keywords import check_keywords
from leenet_fx.methods import Method, as_method
from leenet_fx.parts.branches import Branch, BranchFactory, ExitSite, get_branch, make_branch
from leenet_fx.surgery.backbone_times import with_seconds
from leenet_fx.surgery.insert_exits import feature_shapes, insert_exits
from leenet_fx.surgery.module import EarlyExitModule
from placement import Placement, get_strategy, place
from placement.strategies import Position, Strategy

logger = logging.getLogger("leenet_fx")

LARGE_SHARE = 0.1
"""Share of the backbone's parameters above which `flatten` branches cause a warning."""


@contextmanager
def _garbage_collection_paused() -> Iterator[None]:
    """Pause the collector: a graph is hundreds of thousands of objects, all of them in use."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@check_keywords
@_garbage_collection_paused()
# Tensors that are created in inference mode cannot be traced or trained.
@torch.inference_mode(False)
def attach(
    model: nn.Module,
    strategy: str | Strategy | Placement | Sequence[Position] = "auto",
    *,
    num_exits: int | None = None,
    example_inputs: object = None,
    branch: str | BranchFactory | None = None,
    branch_options: Mapping[str, Any] | None = None,
    method: str | Method | None = None,
    num_classes: int | None = None,
    copy: bool = True,
    leaf_modules: Iterable[type[nn.Module]] = (),
    concrete_args: Mapping[str, Any] | None = None,
    blocks: Iterable[str | type[nn.Module]] | None = None,
    cost: str = "flops",
    seed: int = 0,
    name: str | None = None,
) -> EarlyExitModule:
    """Add exits to a trained image classifier; the model itself is not changed.

    Until it is fitted, the result predicts what the model predicts: early exits are disabled. It is
    in the model's mode, on its device and in its dtype.

    Args:
        model: an image classifier that returns logits (B, classes).
        strategy: a registered placement ("auto", "fine", "pareto", "golden", "linear", "every"), a
            list of positions (block names, indices, FLOP shares), a `Placement`, or a function of
            (profile, num_exits). "auto" places candidates, of which `calibrate` uses those that
            pay.
        num_exits: number of exits; None takes up to 12 for "auto", √(number of blocks), rounded,
            for other rules (see `placement.default_num_exits`), or what the strategy fixes.
        example_inputs: a batch of images of the size to count costs for; None takes the size in
            the model's configuration.
        branch: the branch architecture: "pool", "flatten", "bnpool", "conv", "side", another
            registered name, or a function of an `ExitSite`; None takes the method's, or "pool".
        branch_options: options of the branch, by name: for those above head= ("linear",
            "projection", "cascade", "additive", "means", …), gate= (see
            `leenet_fx.parts.gates.list_gates`), and the neck's (see `leenet_fx.parts.necks`). With
            gate="features", as in LEENet, a classifier runs only for exiting samples.
        method: a registered method or a `Method`, whose branch and branch options are taken unless
            given. The network remembers it: `fit` without a method trains by it.
        num_classes: number of classes; if it differs from the model's, the final classifier is
            replaced by a new one, and a model without classifier (an encoder) gets one, which `fit`
            trains.
        copy: whether to copy the weights; False shares them with `model`, for frozen backbones.
        leaf_modules: module classes that are not traced into.
        concrete_args: values of the arguments of `forward` other than images, by name.
        blocks: the modules that are blocks, after which exits may be placed: names with wildcards,
            such as "layer?.*", or classes. None takes the rule of `leenet_fx.graph.boundaries`.
        cost: the cost that placements count: "flops", or "seconds", measured on the device of the
            weights with `example_inputs` (one image, if there are none).
        seed: seed of the weights of branches and of a new classifier.
        name: the model's name in tables and files; by default timm's for its models, the class
            name for others. By `timm/NAME` or `torchvision/NAME` the model can be created again.

    Raises:
        InputError: not a module, images that do not fit, a classifier that cannot be replaced, an
            encoder without `num_classes`.
        UnknownNameError: no such strategy, method, branch, branch option, block, argument or cost.
        PlacementError: the model has too few usable boundaries.
        TraceError: the model cannot be captured as a graph.
    """
    check_module(model)
    if blocks is not None and not isinstance(blocks, str):
        blocks = tuple(blocks)
    leaf_modules = tuple(leaf_modules)
    if isinstance(model, EarlyExitModule):
        raise InputError("This model has exits already; attach to the original model.")
    if isinstance(strategy, str):
        with placement_errors():
            get_strategy(strategy)
    train = type(model).train
    # That of transformers' base class chooses kernels only.
    if train is not nn.Module.train and train.__module__ != "transformers.modeling_utils":
        logger.warning(
            "%s overrides train(), which the result does not: ee.train() puts every module in "
            "training mode.",
            type(model).__name__,
        )
    options = dict(branch_options or {})
    if method is not None:
        preset = as_method(method)
        same = branch is None or branch == preset.branch
        branch = preset.branch if branch is None else branch
        # Heads and gates fit any neck; other options are those of the method's neck.
        defaults = {k: v for k, v in preset.branch_options.items() if same or k in ("head", "gate")}
        options = {**defaults, **options}
    branch = "pool" if branch is None else branch
    factory = get_branch(branch) if isinstance(branch, str) else branch
    generator = torch.Generator().manual_seed(seed)
    traced = trace_model(
        model,
        example_inputs=example_inputs,
        leaf_modules=leaf_modules,
        concrete_args=concrete_args,
        blocks=blocks,
        num_classes=num_classes,
        generator=generator,
        tensors="copy" if copy else "share",
        name=name or library_name(model),
    )
    if not traced.boundaries and traced.rejected:
        reasons = "; ".join(f"{at}: {why}" for at, why in traced.rejected.items())
        raise PlacementError(f"{traced.profile.model} has no usable block boundary ({reasons}).")
    if any(map(depends_on_batch_range, traced.trace.root.modules())):
        logger.warning(
            "%s has dynamically quantised layers: the range of their inputs is taken over the "
            "batch, so the prediction of an image depends on the others in its batch.",
            traced.profile.model,
        )
    if cost == "seconds":
        traced = with_seconds(traced, example_inputs)
    with placement_errors():
        placement = place(traced.profile, strategy, num_exits, cost=cost)
    branches = _build(traced, placement, factory, options, seed)
    branch_name = branch if isinstance(branch, str) else getattr(branch, "__name__", repr(branch))
    if branch_name == "flatten":
        _warn_if_large(traced, branches)
    patterns = [pattern for pattern in blocks or () if isinstance(pattern, str)]
    ee = insert_exits(
        traced,
        placement,
        branches,
        branch=branch_name,
        branch_options=options,
        shares_weights=not copy,
        blocks=tuple(patterns) or None,
        concrete_args=concrete_args,
        leaf_modules=tuple(map(class_name, leaf_modules)),
        method=None if method is None else as_method(method).config,
    )
    names = class_names(model)
    known = names if names is not None and len(names) == traced.num_classes else None
    ee.spec = replace(ee.spec, checksums=_backbone_checksums(ee), class_names=known)
    return ee


def class_name(cls: type) -> str:
    """Return `module.Class`."""
    return f"{cls.__module__}.{cls.__qualname__}"


def _backbone_checksums(ee: EarlyExitModule) -> dict[str, str]:
    values = entries(ee)
    return {name: checksum(values[name]) for name in values if not name.startswith("exits.")}


def _build(
    traced: TracedModel,
    placement: Placement,
    factory: BranchFactory,
    options: Mapping[str, Any],
    seed: int,
) -> list[Branch]:
    root = traced.trace.root
    weight = next((p for p in root.parameters() if p.is_floating_point()), torch.empty(0))
    on_meta = weight.device.type == "meta"
    with torch.random.fork_rng(devices=[]), torch.device("meta" if on_meta else "cpu"):
        torch.default_generator.manual_seed(seed)
        sites = [
            ExitSite(
                feature_shapes(traced.boundaries[index]),
                traced.num_classes,
                position,
                traced.profile.candidates[index].flops / max(traced.profile.flops, 1),
            )
            for position, index in enumerate(placement.indices)
        ]
        branches = [make_branch(factory, site, options) for site in sites]
    if len({branch.carries_state for branch in branches}) > 1:
        without = next(i for i, branch in enumerate(branches) if not branch.carries_state)
        raise InputError(
            f"The branch of exit {without} carries no state, and others do: a state passes from "
            "each exit to the next, so give all exits branches with a state, or none."
        )
    return [branch.to(weight.device, weight.dtype) for branch in branches]


def _warn_if_large(traced: TracedModel, branches: list[Branch]) -> None:
    added = sum(p.numel() for branch in branches for p in branch.parameters())
    share = added / max(traced.profile.params, 1)
    if share > LARGE_SHARE:
        logger.warning(
            "'flatten' branches add %s parameters, %.0f %% of the backbone's %s; 'pool' branches "
            "are smaller.",
            f"{added:,}",
            100 * share,
            f"{traced.profile.params:,}",
        )
