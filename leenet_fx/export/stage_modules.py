"""The stages of a network with exits as independent modules on flat lists of tensors.

`export_plan(ee)` returns N+1 `StageModule`s. Each reads and returns the tensors that its `inputs`
and `outputs` list, all with one slice for each sample along `batch_axis`:

- stage 0 reads `images`; stage i reads what stage i−1 passes on: its `outputs` without the first
  two. Stages 0 to N−1 read a scalar `alpha` at the end if gates are conditioned on it.
- stages 0 to N−1 return `logits` (B, classes), `confidence` (B,), then the values at the cut, with
  the logits of earlier exits if a later branch or the policy reads them, and the exit's state if
  the next branch reads it.
- stage N returns `logits`.

A format exports each module by itself, with the plan's `examples` and a symbolic batch size, and
composes the results: samples whose confidence is below the bound (see `decision`) are selected
along `batch_axis` of each tensor, and the next stage runs on them. If the policy is `NeverExit`,
there is one stage, the backbone.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from leenet_fx.errors import ExportError, ModeError
from leenet_fx.export.decision import Decision, decision_of
from leenet_fx.export.live_values import CutLayout, TensorSpec, batch_size, tensor_spec
from leenet_fx.parts.branches import Branch
from leenet_fx.policies import Policy
from leenet_fx.runtime.active_batch import append_logits
from leenet_fx.runtime.network import check_network
from leenet_fx.runtime.stages import Cut
from leenet_fx.surgery.module import EarlyExitModule

EXAMPLE_BATCH = 2
"""Batch size of examples; exporters treat 0 and 1 as constants."""

LOGITS, CONFIDENCE, IMAGES, ALPHA = "logits", "confidence", "images", "alpha"


class StageModule(nn.Module):
    """A stage of the backbone, and the exit behind it.

    Attributes:
        index: of the stage.
        inputs: the tensors that `forward` takes.
        outputs: the tensors that it returns.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __init__(self, index: int, backbone: nn.Module, read: CutLayout | None) -> None:
        super().__init__()
        self.index = index
        self.backbone = backbone
        self._read = read

    @property
    def passed(self) -> tuple[TensorSpec, ...]:
        """The tensors that the next stage reads."""
        return self.outputs[2:]

    def live(self, tensors: Sequence[Tensor]) -> Any:
        """Run the backbone's part; returns the values at the next cut, or the final logits."""
        values = tensors if self._read is None else self._read.restore(tensors)
        return self.backbone(*values)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the final logits (B, classes)."""
        return (self.live(tensors),)


class ExitStage(StageModule):
    """A stage with an exit behind it.

    Attributes:
        branch: of the exit.
        policy: computes the confidence.
        cut: the values that are passed on.
        reads_alpha: whether the last input is α.
        passes_logits: whether the next stage reads the logits that exits pass on.
        passes_history: whether the next stage reads the class logits of all exits so far.
        passes_state: whether the next stage reads the exit's state.
        layout: of the values at the cut; set when an example has run.
    """

    layout: CutLayout

    def __init__(
        self,
        index: int,
        backbone: nn.Module,
        read: CutLayout | None,
        *,
        branch: Branch,
        policy: Policy,
        cut: Cut,
        states: tuple[bool, bool, bool],
        last: bool,
    ) -> None:
        super().__init__(index, backbone, read)
        self.branch = branch
        self.policy = policy
        self.cut = cut
        self.reads_alpha = policy.alpha is not None
        self._states = states
        self.passes_logits, self.passes_history, self.passes_state = (
            state and not last for state in states
        )

    def compute(
        self, tensors: Sequence[Tensor], alpha: Tensor | None
    ) -> tuple[Any, Tensor, Tensor, list[Tensor]]:
        """Return the values at the cut, class logits, confidence, and what later exits read."""
        num_live = 1 if self._read is None else len(self._read.specs)
        live = self.live(tensors[:num_live])
        states = iter(tensors[num_live:])
        needs_logits, needs_history, needs_state = (s and self.index > 0 for s in self._states)
        previous_logits = next(states) if needs_logits else None
        history = next(states) if needs_history else None
        previous_state = next(states) if needs_state else None
        branch = self.branch
        read = previous_logits if branch.reads_previous_logits else None
        pooled = branch.pool(*[live[i] for i in self.cut.features])
        inputs, state = branch.hidden_inputs(pooled, previous_state)
        hidden = branch.hidden(*inputs, previous_logits=read)
        logits = branch.classify(hidden)
        scores = logits
        if self.policy.reads_gates:
            scores = branch.gate_logit(branch.gate_inputs(hidden, read), alpha)
        if self.policy.reads_history:
            own = scores.unsqueeze(1) if self.policy.reads_gates else logits
            scores = history = append_logits(history, own)
        confidence = self.policy.confidence(self.index, scores)
        passed = []
        if self.passes_logits:
            passed.append(append_logits(previous_logits, branch.passed_logits(hidden)))
        if self.passes_history:
            assert history is not None
            passed.append(history)
        if self.passes_state:
            assert state is not None
            passed.append(state)
        return live, logits, confidence.float(), passed

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return class logits (B, classes), confidence (B,), and the tensors that are passed on."""
        inputs = tensors[:-1] if self.reads_alpha else tensors
        alpha = tensors[-1] if self.reads_alpha else None
        live, logits, confidence, passed = self.compute(inputs, alpha)
        count = batch_size(inputs, self.inputs)
        return (logits, confidence, *self.layout.flatten(live, count), *passed)


@dataclass(frozen=True)
class ExportPlan:
    """A network with exits, ready to be exported.

    Attributes:
        ee: the network, on the CPU and not compiled.
        stages: N+1, or one if early exits are disabled.
        decision: which samples exit.
        examples: inputs of each stage, for `EXAMPLE_BATCH` samples.
    """

    ee: EarlyExitModule
    stages: tuple[StageModule, ...]
    decision: Decision
    examples: tuple[tuple[Tensor, ...], ...]

    @property
    def num_exits(self) -> int:
        """N of the network, also if early exits are disabled."""
        return self.ee.num_exits

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one image."""
        return self.ee.spec.image_shape


def export_plan(ee: EarlyExitModule, generator: torch.Generator | None = None) -> ExportPlan:
    """Build the stages of a network, which share its weights if it is on the CPU.

    Args:
        ee: the network, in evaluation mode and float32.
        generator: of the example's images; None seeds one with 0.

    Raises:
        ModeError: the network is in training mode.
        InputError: not a network with exits.
        ExportError: weights of another dtype, or a policy that cannot be exported.
    """
    check_network(ee, "export")
    if ee.training:
        raise ModeError("export needs evaluation mode: call ee.eval() first.")
    tensors = [*ee.parameters(), *ee.buffers()]
    if any(tensor.is_meta for tensor in tensors):
        raise ExportError("The network is on the meta device and has no weights to export.")
    dtypes = {p.dtype for p in ee.parameters() if p.is_floating_point()} - {torch.float32}
    if dtypes:
        raise ExportError(
            f"Only float32 networks can be exported, got {min(map(str, dtypes))}: export "
            "copy.deepcopy(ee).float()."
        )
    decision = decision_of(ee.policy, ee.num_exits)
    on_cpu = all(tensor.device.type == "cpu" for tensor in tensors)
    ee = copy.copy(ee) if on_cpu else copy.deepcopy(ee).cpu()
    generator = generator or torch.Generator().manual_seed(0)
    images = torch.randn(EXAMPLE_BATCH, *ee.spec.image_shape, generator=generator)
    with torch.no_grad():
        stages, examples = _stages(ee, images) if decision.enabled else _backbone(ee, images)
    return ExportPlan(ee, tuple(stages), decision, tuple(examples))


def _backbone(ee: EarlyExitModule, images: Tensor) -> tuple[list[StageModule], list[Any]]:
    modules = [fx.GraphModule(ee, stage.graph) for stage in ee.conditional_stages]
    stage = StageModule(0, _Sequence(modules), None)
    stage.inputs = (tensor_spec(IMAGES, images, 0),)
    stage.outputs = (tensor_spec(LOGITS, stage(images)[0], 0),)
    return [stage.eval()], [(images,)]


def _stages(ee: EarlyExitModule, images: Tensor) -> tuple[list[StageModule], list[Any]]:
    policy, branches = ee.policy, list(ee.exits.branches())
    passes_logits = any(branch.reads_previous_logits for branch in branches)
    passes_state = any(branch.carries_state for branch in branches)
    states = (passes_logits, policy.reads_history, passes_state)
    alpha = () if policy.alpha is None else (torch.tensor(policy.alpha),)
    read: CutLayout | None = None
    specs: tuple[TensorSpec, ...] = (tensor_spec(IMAGES, images, 0),)
    tensors: tuple[Tensor, ...] = (images,)
    stages: list[StageModule] = []
    examples = []
    for index, (branch, cut) in enumerate(zip(branches, ee.spec.cuts, strict=True)):
        stage = ExitStage(
            index,
            fx.GraphModule(ee, ee.conditional_stages[index].graph),
            read,
            branch=branch,
            policy=policy,
            cut=cut,
            states=states,
            last=index == ee.num_exits - 1,
        )
        stage.eval()
        stage.inputs = (*specs, *(tensor_spec(ALPHA, value, None) for value in alpha))
        values, logits, confidence, _ = stage.compute(tensors, *alpha or (None,))
        stage.layout = read = CutLayout(cut, values, EXAMPLE_BATCH, f"cut{index}_")
        examples.append((*tensors, *alpha))
        outputs = stage(*examples[-1])
        specs = (*read.specs, *_state_specs(stage, outputs[2 + len(read.specs) :]))
        stage.outputs = (
            tensor_spec(LOGITS, logits, 0),
            tensor_spec(CONFIDENCE, confidence, 0),
            *specs,
        )
        tensors = outputs[2:]
        stages.append(stage)
    final = StageModule(ee.num_exits, fx.GraphModule(ee, ee.conditional_stages[-1].graph), read)
    final.inputs, final.outputs = specs, (tensor_spec(LOGITS, final(*tensors)[0], 0),)
    return [*stages, final.eval()], [*examples, tensors]


def _state_specs(stage: ExitStage, tensors: Sequence[Tensor]) -> list[TensorSpec]:
    flags = (
        (stage.passes_logits, "previous_logits"),
        (stage.passes_history, "logits_history"),
        (stage.passes_state, "state"),
    )
    names = [f"cut{stage.index}_{name}" for passes, name in flags if passes]
    return [tensor_spec(name, t, 0) for name, t in zip(names, tensors, strict=True)]


class _Sequence(nn.Module):
    """Stages one after the other."""

    def __init__(self, stages: Sequence[nn.Module]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)

    def forward(self, images: Tensor) -> Tensor:
        live: Any = (images,)
        for stage in list(self.stages)[:-1]:
            live = stage(*live)
        return cast(Tensor, self.stages[-1](*live))
