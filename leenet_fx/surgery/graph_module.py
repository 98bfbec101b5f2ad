"""The part of a network with exits that concerns its graph, generated code and stages."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, fx, nn

from leenet_fx.errors import InputError, ModeError
from leenet_fx.runtime import outputs
from leenet_fx.runtime.stage_plan import StagePlan
from leenet_fx.runtime.stages import Stage, compile_forward
from leenet_fx.surgery import checks
from leenet_fx.surgery.cache import Cache
from leenet_fx.surgery.exits import Exits
from leenet_fx.surgery.named_logits import NamedLogits
from leenet_fx.surgery.spec import ExitSpec
from leenet_fx.surgery.unreached_hooks import warn_of_unreached_hooks


class ExitGraphModule(fx.GraphModule):
    """A GraphModule that computes every exit, and its stages; a subclass defines `_dispatch`.

    Attributes:
        exits: the branches, and the policy.
        spec: the description of the network.
    """

    exits: Exits
    spec: ExitSpec

    def __init__(self, root: nn.Module, graph: fx.Graph, exits: Exits, spec: ExitSpec) -> None:
        super().__init__(nn.Module(), fx.Graph(), "EarlyExitModule")
        names = {*root._modules, *root._parameters, *root._buffers}
        taken = sorted(
            name for name in names if name in ("exits", "spec") or hasattr(type(self), name)
        )
        if taken:
            raise InputError(
                f"{spec.profile.model} has a member called '{taken[0]}', a name that "
                "EarlyExitModule uses: wrap the model in another module, or rename the member."
            )
        # The original's whole tree, and not only what the graph calls: keys, hooks, buffers and
        # modules that are used in training only keep their names.
        for attribute in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            self.__dict__[attribute] = copy.copy(root.__dict__[attribute])
        # The version of the state dict, by which some models recognise older files.
        self._version = root._version
        self.exits = exits
        self.spec = spec
        self.training = root.training
        exits.train(root.training)
        self.graph = graph
        warn_of_unreached_hooks(self, graph)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call with a batch of images, by position or by the original model's name for them.

        By name, the result has the form of the original's: `ee(pixel_values=x).logits` for a model
        that returns its logits by name.
        """
        if not kwargs:
            return super().__call__(*args)
        images = checks.images_by_name(self.spec, args, kwargs)
        outputs = super().__call__(images)
        named = self.spec.returns_mapping and isinstance(outputs, Tensor)
        return NamedLogits(logits=outputs) if named else outputs

    def recompile(self) -> Any:
        """Generate the code again after `ee.graph` or a branch was edited.

        Drops the stages, and the measured latency, which is that of the code before.
        """
        code = super().recompile()
        generated: Any = type(self)
        generated._run_graph = generated.forward
        guarded, unguarded = outputs.collect_exits, outputs.collect_all_exits
        names = {k: unguarded if v is guarded else v for k, v in code.globals.items()}
        generated._compute_all = compile_forward(code.src, names)
        generated.forward = generated._dispatch
        self._clear_cache()
        self.__dict__.pop("_latency", None)
        return code

    @property
    def is_compiled(self) -> bool:
        """Whether the network was returned by `leenet_fx.compile`."""
        return "_stage_wrapper" in self.__dict__

    @property
    def conditional_stages(self) -> tuple[Stage, ...]:
        """N+1 stages of the backbone, cut at the exits."""
        return self.stage_plan.stages

    @property
    def stage_plan(self) -> StagePlan:
        """The stages, and their fusions with the exits."""
        cache = self._cached
        if cache.stage_plan is None:
            wrapper = self.__dict__.get("_stage_wrapper")
            cache.stage_plan = StagePlan(self.graph, self.spec.cuts, wrapper)
        return cache.stage_plan

    @property
    def _cached(self) -> Cache:
        cache: Cache | None = self.__dict__.get("_cache")
        if cache is None:
            cache = self.__dict__["_cache"] = Cache()
        return cache

    def _clear_cache(self) -> None:
        self.__dict__.pop("_cache", None)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._clear_cache()
        return super()._apply(fn, recurse)

    def __prepare_scriptable__(self) -> nn.Module:
        raise ModeError(
            "torch.jit.script cannot express a network with exits: export with leenet_fx.export, "
            "or script the original model."
        )
