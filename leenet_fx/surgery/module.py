"""EarlyExitModule: a torch.fx.GraphModule with exits."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from leenet_fx.cost.cost_table import CostTable, cost_table, reads_of
from leenet_fx.cost.latency import Latency
from leenet_fx.errors import InputError, ModeError
from leenet_fx.graph import compat
from leenet_fx.policies import Policy, evaluated_exits
from leenet_fx.registry import unknown_name
from leenet_fx.runtime import conditional, outputs
from leenet_fx.runtime.active_batch import ExitedSamples, detach
from leenet_fx.runtime.controller import ExitController, ForcedController, PolicyController
from leenet_fx.runtime.outputs import ExitOutputs, Prediction, build_prediction
from leenet_fx.runtime.stage_plan import StageWrapper
from leenet_fx.surgery import checks
from leenet_fx.surgery.copying import restore, state_of, unpickle
from leenet_fx.surgery.exits import Exits
from leenet_fx.surgery.graph_module import ExitGraphModule
from leenet_fx.surgery.graph_pickle import pack
from leenet_fx.surgery.operating_point import OperatingPoint, weights_fingerprint
from leenet_fx.surgery.summary import summary

__all__ = ["EarlyExitModule", "ExitOutputs", "Prediction", "final_classifier"]


class EarlyExitModule(ExitGraphModule):
    """A network with exits, built by `leenet_fx.attach`.

    `ee.graph` is the flat graph that computes every exit: the backbone's nodes, a call of
    `exits.i` at each exit, and `collect_exits` at the end. `ee(x)` in training mode and
    `ee.all_exits(x)` run it; tools that run it in evaluation mode get the final logits, or an
    error if early exits are enabled. In evaluation mode the same nodes run stage by stage on the
    remaining samples; these `ee.conditional_stages` are generated from `ee.graph` when first
    needed, and read the weights of this module.

    After `ee.graph` was edited, or a part of a branch was replaced, call `ee.recompile()`.
    """

    def _dispatch(self, images: Any) -> ExitOutputs | Tensor:
        """Return `ExitOutputs` in training mode, and logits (B, classes) in evaluation mode."""
        if self.training:
            return self.all_exits(images)
        if isinstance(images, fx.Proxy) or torch.compiler.is_exporting():
            return cast(Tensor, self._run_graph(images))  # type: ignore[operator]
        return conditional.merge_logits(self._run(images, self.policy))

    def all_exits(self, images: Tensor) -> ExitOutputs:
        """Compute every exit for every sample, in the present mode.

        Args:
            images: (B, …).

        Raises:
            InputError: images of another rank, channel count or dtype.
        """
        if compat.is_symbolic_tracing():
            return cast(ExitOutputs, self._compute_all(images))  # type: ignore[operator]
        self.check_images(images)
        if images.shape[0] == 0:
            empty = self._empty_logits(images)
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
        """Run conditionally; returns logits, and the exit and cost of each sample.

        The cost of a sample is that of its exit's row in `costs`. The branch of an exit whose
        threshold is infinite does not run; if early exits are disabled, none does and the cost is
        1.

        Args:
            images: (B, …).
            exit_index: (B,) integers in 0..N, the exit of each sample, or one for all; None lets
                the policy decide.
            alpha: the cost weight for this call, if the policy is conditioned on it.

        Raises:
            ModeError: the module is in training mode.
            InputError: images or indices that do not fit; `alpha` for another policy.
        """
        if self.training:
            raise ModeError("predict needs evaluation mode: call ee.eval() first.")
        policy = self.policy if alpha is None else self.policy.with_alpha(alpha)
        disabled = exit_index is None and policy.reads == "nothing"
        if exit_index is None:
            exited = self._run(images, policy)
        else:
            self.check_images(images)
            exited = self._run(images, checks.as_exit_indices(exit_index, images, self.num_exits))
        return self.prediction(
            conditional.merge_logits(exited),
            conditional.merge_exit_indices(exited),
            early_exits_disabled=disabled,
        )

    def prediction(
        self, logits: Tensor, exit_index: Tensor, *, early_exits_disabled: bool
    ) -> Prediction:
        """Build a prediction from logits and exits.

        Args:
            logits: (B, classes).
            exit_index: (B,).
            early_exits_disabled: whether no branch ran, so that the cost is 1.
        """
        costs = None if early_exits_disabled else self.costs.relative("flops")
        return build_prediction(logits, exit_index, costs, self.policy.temperatures)

    def run_with(self, images: Tensor, policy: Policy) -> tuple[Tensor, Tensor]:
        """Run conditionally under any policy, in the present mode.

        Args:
            images: (B, …).
            policy: decides instead of `ee.policy`.

        Returns:
            Logits (B, classes) and the exit of each sample (B,).
        """
        exited = self._run(images, policy)
        return conditional.merge_logits(exited), conditional.merge_exit_indices(exited)

    def exit_features(
        self, images: Tensor, detached: Collection[int] = ()
    ) -> Iterator[tuple[Tensor, ...]]:
        """Yield the features that each exit reads, then the final logits, for all samples.

        Each stage runs when its features are requested.

        Args:
            images: (B, …).
            detached: indices of exits behind which no gradient flows back.
        """
        self.check_images(images)
        live: Any = (images,)
        stages = zip(self.stage_plan.runs, self.spec.cuts, strict=False)
        for index, (run, cut) in enumerate(stages):
            live = run(self, *live)
            yield tuple(live[i] for i in cut.features)
            if index in detached:
                live = detach(live)
        yield (self.stage_plan.runs[-1](self, *live),)

    def _run(self, images: Tensor, policy_or_index: Policy | Tensor) -> list[ExitedSamples]:
        self.check_images(images)
        if images.shape[0] == 0:
            return [ExitedSamples(self.num_exits, None, self._empty_logits(images))]
        if not isinstance(policy_or_index, Tensor) and policy_or_index.reads == "nothing":
            logits = conditional.run_backbone(self, self.stage_plan, images)
            return [ExitedSamples(self.num_exits, None, logits)]
        if compat.is_exporting():
            raise outputs.early_exits_enabled()
        run: Any = self._run_stages
        if torch.compiler.is_compiling():
            # Which samples remain depends on values: leenet_fx.compile compiles stage by stage.
            run = torch.compiler.disable(run)
        return cast(list[ExitedSamples], run(policy_or_index, images))

    def _run_stages(self, policy_or_index: Policy | Tensor, images: Tensor) -> list[ExitedSamples]:
        return conditional.run(self.controller(policy_or_index), images)

    def controller(self, policy_or_index: Policy | Tensor) -> ExitController:
        """Return a controller for conditional execution.

        Args:
            policy_or_index: a policy, or the exit of each sample (B,).
        """
        stage_plan, exits = self.stage_plan, self._modules["exits"]
        assert isinstance(exits, Exits)
        if isinstance(policy_or_index, Tensor):
            return ForcedController(self, stage_plan, list(exits.branches()), policy_or_index)
        # Building it in each call would be measurable on a small network.
        key = (policy_or_index, policy_or_index.alpha, stage_plan, *exits._modules.values())
        cache = self._cached
        if cache.controller is not None and cache.controller[0] == key:
            return cache.controller[1]
        controller = PolicyController(self, stage_plan, list(exits.branches()), policy_or_index)
        cache.controller = (key, controller)
        return controller

    @property
    def num_exits(self) -> int:
        """N, the number of exits before the final classifier."""
        return len(self.exits)

    @property
    def device(self) -> torch.device:
        """Device of the exits, where images are expected."""
        return next(self.exits.parameters()).device

    def backbone_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the original model, for methods that train it.

        Raises:
            ModeError: the backbone was captured by torch.export, in evaluation mode.
        """
        if self.spec.tracer == "export":
            raise ModeError(
                f"The backbone of {self.spec.profile.model} was captured by torch.export: dropout "
                "and BatchNorm are in evaluation mode, so it cannot be trained. The warning of "
                "attach gives the reason why torch.fx could not trace it."
            )
        named = self.named_parameters()
        return [parameter for name, parameter in named if not name.startswith("exits.")]

    @property
    def policy(self) -> Policy:
        """The policy that decides which samples exit early; `NeverExit` after `attach`."""
        # Attribute access of nn.Module would be measurable at batch size 1 on a small network.
        exits: Any = self._modules["exits"]
        policy: Policy = exits.policy
        return policy

    @policy.setter
    def policy(self, policy: Policy) -> None:
        if not isinstance(policy, Policy):
            raise InputError(f"Expected a Policy, got {type(policy).__name__}.")
        policy.check(self.num_exits)
        self.exits.policy = policy

    @property
    def operating_points(self) -> dict[str, OperatingPoint]:
        """The points that `leenet_fx.calibrate` found for the present weights, by name."""
        return {point.name: point for point in self.spec.operating_points}

    def use(self, point: str | OperatingPoint) -> OperatingPoint:
        """Set the policy of an operating point, and return the point.

        Args:
            point: the name of one of `operating_points`, or a point.

        Raises:
            UnknownNameError: no point of that name.
            InputError: the point was found with other weights, or for another network.
        """
        if not isinstance(point, OperatingPoint):
            points = self.operating_points
            if point not in points:
                raise unknown_name("operating point", point, points)
            point = points[point]
        found = weights_fingerprint(self)
        if point.fingerprint != found:
            raise InputError(
                f"The operating point '{point.name}' is for other weights or another network "
                f"(fingerprint {point.fingerprint[:16]}, found {found[:16]}): calibrate again."
            )
        self.policy = point.build_policy()
        return point

    @property
    def costs(self) -> CostTable:
        """`costs_for` the present policy."""
        return self.costs_for(self.policy)

    def costs_for(self, policy: Policy, *, enabled: bool = False) -> CostTable:
        """Return N+1 rows: the cost of a sample that exits at each exit, and of one that does not.

        Branches that the policy does not evaluate, since their thresholds are infinite, are counted
        for samples that are made to exit there, and not for those that pass.

        Args:
            policy: determines whether gate or class logits decide; `NeverExit` is counted as gates
                with all exits enabled.
            enabled: whether to count all exits as enabled, whatever the thresholds.
        """
        reads = reads_of(policy)
        exits = cast(Exits, self._modules["exits"])
        if enabled or policy.reads == "nothing":
            evaluated = (True,) * len(exits)
        else:
            evaluated = evaluated_exits(policy, [b.reads_previous_logits for b in exits.branches()])
        tables = self._cached.costs
        if (reads, evaluated) not in tables:
            spec = self.spec
            tables[reads, evaluated] = cost_table(
                spec.profile, spec.placement, spec.branch_costs, reads, self.latency, evaluated
            )
        return tables[reads, evaluated]

    @property
    def latency(self) -> Latency | None:
        """The times that `leenet_fx.profile` measured last; None if not measured.

        Copied and pickled with the network; kept by changes of device, dtype and weights, because
        times are measured on the device where the network is to run, which need not be the one
        where it is trained; dropped by `recompile`.
        """
        return self.__dict__.get("_latency")

    @latency.setter
    def latency(self, latency: Latency | None) -> None:
        self.__dict__["_latency"] = latency
        self._cached.costs.clear()

    def summary(self) -> str:
        """Return exits, their positions and costs as a table of text."""
        return summary(self.spec, self.exits.branches(), self.policy, self.costs)

    def __repr__(self) -> str:
        return self.summary()

    __str__ = __repr__

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load as `nn.Module` does; raise InputError before any change if thresholds do not fit."""
        self.exits.read_policy(state_dict)
        self._clear_cache()
        return super().load_state_dict(state_dict, strict, assign)

    def check_images(self, images: Tensor) -> None:
        """Raise InputError for images of another rank, channel count or dtype."""
        # The checks would be measurable at batch size 1 on a small network.
        cache = self._cached
        if isinstance(images, Tensor) and cache.images == (images.shape[1:], images.dtype):
            return
        checks.check_shape(images, self.spec)
        if self.spec.casts_images or checks.casts_images(images):
            return
        dtype = next((p.dtype for p in self.parameters() if p.is_floating_point()), None)
        checks.check_dtype(images, dtype)
        cache.images = (images.shape[1:], images.dtype)

    def _empty_logits(self, images: Tensor) -> Tensor:
        dtype = images.dtype if images.is_floating_point() else next(self.parameters()).dtype
        return images.new_empty(0, self.spec.num_classes, dtype=dtype)

    def with_stage_wrapper(self, wrapper: StageWrapper) -> EarlyExitModule:
        """Return a copy that shares all modules and wraps the functions of its stages.

        Args:
            wrapper: returns the function to call for a stage's generated one.
        """
        copied = copy.copy(self)
        copied.__dict__["_stage_wrapper"] = wrapper
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> EarlyExitModule:
        copied = memo[id(self)] = EarlyExitModule.__new__(EarlyExitModule)
        return restore(copied, copy.deepcopy(state_of(self), memo), copy.deepcopy(self.graph))

    def __copy__(self) -> EarlyExitModule:
        copied = EarlyExitModule.__new__(EarlyExitModule)
        return restore(copied, state_of(self), copy.deepcopy(self.graph))

    def __reduce__(self) -> Any:
        return unpickle, (EarlyExitModule, state_of(self), pack(self.graph))


def final_classifier(ee: EarlyExitModule) -> nn.Module | None:
    """Return the layer that computes the final logits; None if it is no single layer."""
    path = ee.spec.final_classifier
    return None if path is None else ee.get_submodule(path)
