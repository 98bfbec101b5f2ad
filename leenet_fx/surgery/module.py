"""EarlyExitModule: a torch.fx.GraphModule with exits."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from leenet_fx import tables
from leenet_fx.cost.cost_table import BranchCost, CostTable, cost_table
from leenet_fx.cost.latency import Latency
from leenet_fx.errors import InputError, ModeError
from leenet_fx.graph import compat
from leenet_fx.methods import MethodConfig
from leenet_fx.parts.branches import Branch
from leenet_fx.policies import NeverExit, Policy, policy_from_dict, policy_to_dict
from leenet_fx.runtime import conditional
from leenet_fx.runtime.stages import Cut, Stage
from placement import CostProfile, Placement


class ExitOutputs(NamedTuple):
    """What every exit says of every sample.

    Attributes:
        logits: N+1 tensors (B, classes), the final classifier's last.
        gates: gate logits (B, N), before the sigmoid.
    """

    logits: tuple[Tensor, ...]
    gate_logits: Tensor


@dataclass(frozen=True)
class Prediction:
    """What `predict` found for each sample.

    Attributes:
        logits: (B, classes).
        exit_index: (B,) where each sample left; N is the final classifier.
        confidence: (B,) largest class probability.
        cost: (B,) FLOPs spent, relative to the plain model.
    """

    logits: Tensor
    exit_index: Tensor
    confidence: Tensor
    cost: Tensor


@dataclass(frozen=True)
class ExitSpec:
    """What is known of a network with exits besides its weights.

    Attributes:
        profile: cost of the plain network up to each candidate boundary.
        refused: boundaries that cannot be cut, with the reason.
        placement: the boundaries that got an exit.
        cuts: what crosses at each exit.
        branch: name of the branches' type.
        branch_options: what they were made with.
        branch_costs: what each branch costs.
        image_shape: shape of one input without the batch axis.
        num_classes: width of the logits.
        final_classifier: module name of the final classifier, None where it is no single layer.
        classifier_is_new: whether `attach` replaced it for another number of classes.
        shares_weights: whether the backbone's tensors belong to the caller's model.
        captured: by "fx", or by "export": such a backbone takes images of one size and does not
            train.
        blocks: patterns that said which modules are blocks; None for the rule.
        changed: modules of the original whose weights are no longer its own, by name.
        method: the method that the exits were attached for, or trained by last; None where none
            was named.
    """

    profile: CostProfile
    rejected: dict[str, str]
    placement: Placement
    cuts: tuple[Cut, ...]
    branch: str
    branch_options: dict[str, Any]
    branch_costs: tuple[BranchCost, ...]
    image_shape: tuple[int, ...]
    num_classes: int
    final_classifier: str | None
    classifier_is_new: bool
    shares_weights: bool
    tracer: Literal["fx", "export"]
    blocks: tuple[str, ...] | None = None
    changed: tuple[str, ...] = ()
    method: MethodConfig | None = None


def collect_exits(final: Tensor, *exits: tuple[Tensor, ...]) -> ExitOutputs:
    """Joins what the exits and the final classifier answered; the last node of `ee.graph`."""
    logits = (*(answer[0] for answer in exits), final)
    return ExitOutputs(logits, torch.stack([answer[1] for answer in exits], 1))


class Exits(nn.ModuleList):
    """The branches, and the policy that says who leaves; the policy travels in the state dict.

    A class head that an encoder was given stands beside the branches as `final`.
    """

    def __init__(self, branches: list[Branch], final: nn.Module | None = None) -> None:
        super().__init__(branches)
        if final is not None:
            self.final = final
        self.policy: Policy = NeverExit()

    def __len__(self) -> int:
        return len(self._modules) - ("final" in self._modules)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter([self._modules[name] for name in self._modules if name != "final"])

    def get_extra_state(self) -> Tensor:
        """The policy as JSON in a tensor of bytes, so that safetensors can hold it."""
        encoded = json.dumps(policy_to_dict(self.policy)).encode()
        return torch.tensor(list(encoded), dtype=torch.uint8)

    def set_extra_state(self, state: Any) -> None:
        """Takes over the policy that `get_extra_state` wrote; raises as `read_policy` does."""
        self.policy = self.read_policy(state)

    def read_policy(self, state: Any) -> Policy:
        """The policy that `get_extra_state` wrote.

        Raises:
            InputError: not a policy, or one for another number of exits.
        """
        try:
            data = json.loads(bytes(state.tolist()))
        except (AttributeError, TypeError, ValueError) as error:
            raise InputError("'exits._extra_state' holds no policy.") from error
        policy = policy_from_dict(data)
        policy.check(len(self))
        return policy

    def branches(self) -> Iterator[Branch]:
        """The branches, in order."""
        return cast(Iterator[Branch], iter(self))


class EarlyExitModule(fx.GraphModule):
    """A network with exits.

    `ee.graph` is the flat graph that computes every exit: the plain network's nodes, a call of
    `exits.i` at each exit, and `collect_exits` at the end. It is what `ee.train(); ee(x)` and
    `ee.all_exits(x)` run. In evaluation mode the same nodes run stage by stage on the samples still
    inside; these `ee.conditional_stages` are derived from `ee.graph` when first needed and read the
    weights of this module, so there is one set of weights and one graph to edit.

    Made by `leenet_fx.attach`.
    """

    _NOT_COPIED = ("_graph", "_pieces", "_wrap", "_guide", "_costs", "_accepted")

    def __init__(self, root: nn.Module, graph: fx.Graph, exits: Exits, spec: ExitSpec) -> None:
        super().__init__(nn.Module(), fx.Graph(), "EarlyExitModule")
        names = {*root._modules, *root._parameters, *root._buffers}
        taken = sorted(
            name for name in names if name in ("exits", "spec") or hasattr(EarlyExitModule, name)
        )
        if taken:
            raise InputError(
                f"{spec.profile.model} has a member called '{taken[0]}', a name that a network "
                "with exits uses itself: wrap the model in another module, or rename it."
            )
        # The whole tree of the original stays, not only what the graph calls: keys, hooks,
        # buffers and modules that only training uses keep their names.
        for attribute in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            self.__dict__[attribute] = copy.copy(root.__dict__[attribute])
        # Of the state dict: some models read it to tell older files from newer ones.
        self._version = root._version
        self.exits = exits
        self.spec = spec
        self.training = root.training
        exits.train(root.training)
        self.graph = graph

    # --- running -------------------------------------------------------------------------------

    def recompile(self) -> Any:
        """Regenerates the code after `ee.graph` was edited; stages follow."""
        code = super().recompile()
        generated = type(self)
        generated._compute_all = generated.forward  # type: ignore[attr-defined]
        generated.forward = EarlyExitModule._dispatch
        self.__dict__.pop("_pieces", None)
        return code

    def _dispatch(self, images: Tensor) -> ExitOutputs | Tensor:
        """Training mode: `ExitOutputs` of every exit. Evaluation mode: logits (B, classes)."""
        if self.training:
            return self.all_exits(images)
        return conditional.in_order(self._run(images, self.policy))

    def all_exits(self, images: Tensor) -> ExitOutputs:
        """Every exit's answer for every sample, in the present mode.

        Args:
            images: (B, …).

        Raises:
            InputError: images of another rank, channel count or dtype.
        """
        if compat.is_symbolic_tracing():
            return cast(ExitOutputs, self._compute_all(images))  # type: ignore[operator]
        self.check_images(images)
        if images.shape[0] == 0:
            empty = self._no_rows(images)
            return ExitOutputs((empty,) * (self.num_exits + 1), empty.new_empty(0, self.num_exits))
        return cast(ExitOutputs, self._compute_all(images))  # type: ignore[operator]

    @torch.inference_mode()
    def predict(
        self,
        images: Tensor,
        exit_index: Tensor | int | None = None,
        *,
        alpha: float | None = None,
    ) -> Prediction:
        """Runs the conditional network and tells where each sample left and what it cost.

        Args:
            images: (B, …).
            exit_index: where each sample is to leave, (B,) integers in 0..N or one for all, through
                the same conditional path; None lets the policy decide.
            alpha: where the policy has a dial, the weight of the cost for this call.

        The cost of a sample is the row of `costs` it left at. While the gates are shut no branch
        runs, and a cost of 1 is charged to samples nobody sends elsewhere.

        Raises:
            ModeError: the module is in training mode.
            InputError: images or indices that do not fit; `alpha` for a policy without a dial.
        """
        if self.training:
            raise ModeError("predict needs evaluation mode: call ee.eval() first.")
        policy = self.policy if alpha is None else self.policy.with_alpha(alpha)
        shut = exit_index is None and policy.reads == "nothing"
        if exit_index is None:
            left = self._run(images, policy)
        else:
            self.check_images(images)
            left = self._run(images, self._check_indices(exit_index, images))
        return self.prediction(
            conditional.in_order(left), conditional.exit_indices_of(left), shut=shut
        )

    def prediction(self, logits: Tensor, exit_index: Tensor, *, shut: bool) -> Prediction:
        """What is to be said of samples that left.

        Args:
            logits: (B, classes).
            exit_index: (B,).
            shut: whether no branch ran.
        """
        table = torch.tensor(self.costs.relative("flops"), device=logits.device)
        cost = torch.ones(exit_index.shape, device=logits.device) if shut else table[exit_index]
        confidence = logits.float().softmax(1).amax(1) if len(logits) else cost.new_empty(0)
        return Prediction(logits, exit_index, confidence, cost)

    def run_with(self, images: Tensor, policy: Policy) -> tuple[Tensor, Tensor]:
        """Runs the conditional form under any policy, in any mode.

        Returns:
            Logits (B, classes) and where each sample left (B,).
        """
        left = self._run(images, policy)
        return conditional.in_order(left), conditional.exit_indices_of(left)

    def exit_features(self, images: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """What each exit reads, one tuple an exit, then the final logits; nobody leaves.

        Stages run as they are asked for, so a caller may stop early.
        """
        self.check_images(images)
        live: Any = (images,)
        for run, cut in zip(self.stage_plan.runs, self.spec.cuts, strict=False):
            live = run(self, *live)
            yield tuple(live[i] for i in cut.features)
        yield (self.stage_plan.runs[-1](self, *live),)

    def _run(
        self, images: Tensor, policy_or_index: Policy | Tensor
    ) -> list[conditional.ExitedSamples]:
        """Groups of samples that left together, by a policy or at exits (B,) given."""
        self.check_images(images)
        if images.shape[0] == 0:
            return [conditional.ExitedSamples(self.num_exits, None, self._no_rows(images))]
        if not isinstance(policy_or_index, Tensor) and policy_or_index.reads == "nothing":
            logits = conditional.run_backbone(self, self.stage_plan, images)
            return [conditional.ExitedSamples(self.num_exits, None, logits)]
        return conditional.run(self.controller(policy_or_index), images)

    def controller(self, policy_or_index: Policy | Tensor) -> conditional.ExitController:
        """What says who leaves: a policy, or exits (B,) given."""
        stage_plan, exits = self.stage_plan, self._modules["exits"]
        assert isinstance(exits, Exits)
        if isinstance(policy_or_index, Tensor):
            return conditional.ForcedController(
                self, stage_plan, list(exits.branches()), policy_or_index
            )
        # Made anew for each call it would show at batch 1 on a small network.
        made_for = (policy_or_index, policy_or_index.alpha, stage_plan, *exits._modules.values())
        known: tuple[Any, conditional.ExitController] = self.__dict__.get("_guide", ((), None))
        if known[0] == made_for:
            return known[1]
        controller = conditional.PolicyController(
            self, stage_plan, list(exits.branches()), policy_or_index
        )
        self.__dict__["_guide"] = (made_for, controller)
        return controller

    # --- what it is ----------------------------------------------------------------------------

    @property
    def num_exits(self) -> int:
        """N, the number of exits in front of the final classifier."""
        return len(self.exits)

    def backbone_parameters(self) -> list[nn.Parameter]:
        """Parameters of the original model, for recipes that train it.

        Raises:
            ModeError: the backbone was captured by torch.export, and knows evaluation mode only.
        """
        if self.spec.tracer == "export":
            raise ModeError(
                f"The backbone of {self.spec.profile.model} was captured by torch.export: dropout "
                "and BatchNorm are as in evaluation mode, and it cannot be trained. The warning "
                "of attach says what torch.fx needs."
            )
        named = self.named_parameters()
        return [parameter for name, parameter in named if not name.startswith("exits.")]

    @property
    def policy(self) -> Policy:
        """Who leaves at an exit; `Shut` on a freshly attached network."""
        # Asked in each call: as an attribute it would show at batch 1 on a small network.
        exits: Any = self._modules["exits"]
        found: Policy = exits.policy
        return found

    @policy.setter
    def policy(self, policy: Policy) -> None:
        if not isinstance(policy, Policy):
            raise InputError(f"Expected a Policy, got {type(policy).__name__}.")
        policy.check(self.num_exits)
        self.exits.policy = policy

    @property
    def costs(self) -> CostTable:
        """N+1 rows: what a sample costs that leaves at each exit, or runs to the end.

        Counted under the active policy; while shut, under the learned gates about to be fitted.
        """
        reads = "logits" if self.policy.reads in ("logits", "history") else "gate"
        tables: dict[str, CostTable] = self.__dict__.setdefault("_costs", {})
        if reads not in tables:
            spec = self.spec
            tables[reads] = cost_table(
                spec.profile, spec.placement, spec.branch_costs, cast(Any, reads), self.latency
            )
        return tables[reads]

    @property
    def latency(self) -> Latency | None:
        """What `leenet_fx.profile` measured last; None before."""
        return self.__dict__.get("_latency")

    @latency.setter
    def latency(self, measured: Latency | None) -> None:
        self.__dict__["_latency"] = measured
        self.__dict__.pop("_costs", None)

    @property
    def is_compiled(self) -> bool:
        """Whether `leenet_fx.compile` made this."""
        return "_wrap" in self.__dict__

    @property
    def conditional_stages(self) -> tuple[Stage, ...]:
        """The conditional form: N+1 pieces of the network, cut at the exits."""
        return self.stage_plan.stages

    @property
    def stage_plan(self) -> conditional.StagePlan:
        """What the conditional form runs."""
        found: conditional.StagePlan | None = self.__dict__.get("_pieces")
        if found is None:
            found = conditional.StagePlan(self.graph, self.spec.cuts, self.__dict__.get("_wrap"))
            self.__dict__["_pieces"] = found
        return found

    def summary(self) -> str:
        """Exits, their positions and costs as a table of text."""
        spec, costs = self.spec, self.costs
        policy = "gates shut (plain model)" if self.policy.reads == "nothing" else repr(self.policy)
        table = tables.new_table(
            f"{spec.profile.model}: {self.num_exits} exits, '{spec.placement.strategy}' placement, "
            f"'{spec.branch}' branches, {spec.num_classes} classes",
            "exit",
            "after",
            "features",
            "FLOPs",
            "rel.",
            "params",
            "rel.",
            caption=f"{costs.unit}; rel. = relative to the plain model "
            f"({tables.quantity(costs.backbone.flops)}FLOPs, {tables.quantity(costs.backbone.params)} "
            f"parameters). Policy: {policy}.",
        )
        for index, row in enumerate(costs):
            is_exit = index < self.num_exits
            table.add_row(
                str(index),
                row.name,
                self._feature_text(index) if is_exit else "",
                tables.quantity(row.flops),
                f"{row.relative_flops:.3f}",
                tables.quantity(row.params),
                f"{row.relative_params:.3f}",
            )
        return tables.render(table)

    def __repr__(self) -> str:
        return self.summary()

    def __str__(self) -> str:
        return self.summary()

    def _feature_text(self, index: int) -> str:
        branch = cast(Branch, self.exits[index])
        shapes = ["x".join(map(str, f.shape[1:])) for f in branch.features]
        return shapes[0] if len(shapes) == 1 else f"{shapes[-1]} +{len(shapes) - 1}"

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As of any module; a policy that does not fit is refused before a weight is changed.

        Raises:
            InputError: the state dict holds a policy for another number of exits.
        """
        if "exits._extra_state" in state_dict:
            self.exits.read_policy(state_dict["exits._extra_state"])
        return super().load_state_dict(state_dict, strict, assign)

    # --- copies --------------------------------------------------------------------------------

    def _state(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in self._NOT_COPIED}

    def __deepcopy__(self, memo: dict[int, Any]) -> EarlyExitModule:
        made = EarlyExitModule.__new__(EarlyExitModule)
        memo[id(self)] = made
        return _fill(made, copy.deepcopy(self._state(), memo), copy.deepcopy(self.graph))

    def __copy__(self) -> EarlyExitModule:
        made = EarlyExitModule.__new__(EarlyExitModule)
        return _fill(made, dict(self._state()), copy.deepcopy(self.graph))

    def __reduce__(self) -> Any:
        return _unpickle, (self._state(), _pack(self.graph))

    # --- checks --------------------------------------------------------------------------------

    def check_images(self, images: Tensor) -> None:
        """Raises InputError for images of another rank, channel count or dtype."""
        # The checks would show at batch 1 on a small network: what passed is not asked again.
        if isinstance(images, Tensor):
            kind = (images.shape[1:], images.dtype)
            if kind == self.__dict__.get("_accepted"):
                return
        mixed = self._check_kind(images)
        if not mixed:
            self.__dict__["_accepted"] = kind

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.__dict__.pop("_accepted", None)
        return super()._apply(fn, recurse)

    def _check_kind(self, images: Tensor) -> bool:
        """Returns whether autocast brings the images to the right dtype, as long as it is on."""
        expected = self.spec.image_shape
        if not isinstance(images, Tensor):
            raise InputError(
                f"Expected a batch of images as a tensor, got {type(images).__name__}."
            )
        if images.ndim != len(expected) + 1:
            axes = "(B, C, H, W)" if len(expected) == 3 else f"{len(expected) + 1} axes"
            raise InputError(f"Expected images of {axes}, got shape {tuple(images.shape)}.")
        if images.shape[1] != expected[0]:
            raise InputError(
                f"Expected images with {expected[0]} channels, got {images.shape[1]} "
                f"(shape {tuple(images.shape)})."
            )
        if self.spec.tracer == "export" and tuple(images.shape[1:]) != expected:
            raise InputError(
                f"{self.spec.profile.model} was captured by torch.export for images of "
                f"{expected}, got {tuple(images.shape[1:])}: attach with example_inputs of that "
                "size."
            )
        if not images.is_meta and torch.is_autocast_enabled(images.device.type):
            return True
        dtype = next((p.dtype for p in self.parameters() if p.is_floating_point()), None)
        if dtype is not None and images.dtype != dtype:
            raise InputError(f"Expected images of dtype {dtype}, got {images.dtype}.")
        return False

    def _check_indices(self, exit_index: Tensor | int, images: Tensor) -> Tensor:
        try:
            indices = torch.as_tensor(exit_index, device=images.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"exit_index must be whole numbers, got {exit_index!r}.") from error
        if indices.ndim == 0:
            indices = indices.expand(images.shape[0])
        if indices.shape != (images.shape[0],) or indices.dtype not in _WHOLE:
            raise InputError(
                f"exit_index needs one whole number for each of {images.shape[0]} images, "
                f"got {indices.dtype} of shape {tuple(indices.shape)}."
            )
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) <= self.num_exits:
            raise InputError(
                f"exit_index must lie in 0..{self.num_exits} ({self.num_exits} is the final "
                f"classifier), got {int(indices.min())}..{int(indices.max())}."
            )
        return indices

    def _no_rows(self, images: Tensor) -> Tensor:
        return images.new_empty(0, self.spec.num_classes)


def device_of(ee: EarlyExitModule) -> torch.device:
    """Where the exits are, and so where images are needed."""
    return next(ee.exits.parameters()).device


def final_classifier(ee: EarlyExitModule) -> nn.Module | None:
    """The layer that the logits come from; None where it is no single layer."""
    path = ee.spec.final_classifier
    return None if path is None else ee.get_submodule(path)


_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True)
class _Ref:
    """A node of a packed graph, by position."""

    index: int


@dataclass(frozen=True)
class _Op:
    """An operator of torch.ops, which does not pickle, by name."""

    name: str


@dataclass(frozen=True)
class _Function:
    """A module's function by name; some of torch's own do not pickle."""

    module: str
    name: str


def _pack(graph: fx.Graph) -> list[tuple[Any, ...]]:
    position: dict[fx.Node, Any] = {node: _Ref(i) for i, node in enumerate(graph.nodes)}

    def packed(value: Any) -> Any:
        return map_arg(value, position.__getitem__)

    return [
        (
            node.op,
            node.name,
            _packed_target(node.target),
            packed(node.args),
            packed(node.kwargs),
        )
        for node in graph.nodes
    ]


def _packed_target(target: Any) -> Any:
    if compat.is_operator_overload(target):
        return _Op(str(target))
    module, name = getattr(target, "__module__", None), getattr(target, "__name__", "")
    if module is not None and getattr(sys.modules.get(module), name, None) is target:
        return _Function(module, name)
    return target


def _unpacked_target(target: Any) -> Any:
    if isinstance(target, _Op):
        namespace, operator, overload = target.name.split(".")
        return getattr(getattr(getattr(torch.ops, namespace), operator), overload)
    if isinstance(target, _Function):
        return getattr(import_module(target.module), target.name)
    return target


def _unpack(nodes: list[tuple[Any, ...]]) -> fx.Graph:
    graph = fx.Graph()
    made: list[fx.Node] = []

    def unpacked(value: Any) -> Any:
        if isinstance(value, _Ref):
            return made[value.index]
        if isinstance(value, (tuple, list)):
            items = [unpacked(item) for item in value]
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        if isinstance(value, dict):
            return {key: unpacked(item) for key, item in value.items()}
        if isinstance(value, slice):
            return slice(unpacked(value.start), unpacked(value.stop), unpacked(value.step))
        return value

    for op, name, target, args, kwargs in nodes:
        made.append(
            graph.create_node(
                op, _unpacked_target(target), unpacked(args), unpacked(kwargs), name=name
            )
        )
    return graph


def _fill(made: EarlyExitModule, state: dict[str, Any], graph: fx.Graph) -> EarlyExitModule:
    made.__dict__.update(state)
    made.graph = graph
    return made


def _unpickle(state: dict[str, Any], nodes: list[tuple[Any, ...]]) -> EarlyExitModule:
    return _fill(EarlyExitModule.__new__(EarlyExitModule), state, _unpack(nodes))
