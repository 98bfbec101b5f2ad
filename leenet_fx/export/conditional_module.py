"""The stages as one module with `torch.cond`, for torch.export and AOTInductor."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from leenet_fx.errors import ExportError, StorageError, first_line
from leenet_fx.export.formats import Runner
from leenet_fx.export.onnx_stages import quiet
from leenet_fx.export.stage_modules import ExportPlan
from leenet_fx.run import Prediction


class ConditionalModule(nn.Module):
    """The stages of a network, each in a branch of `torch.cond` inside the one before.

    `forward(images, thresholds[, alpha])` returns `logits` (B, classes), `exit_index` (B,) and
    `confidence` (B,), the largest class probability. Thresholds (N,) are on the policy's scale.
    Without early exits there are no thresholds.
    """

    def __init__(self, plan: ExportPlan) -> None:
        """Compose stages, which keep their weights.

        Args:
            plan: the network.
        """
        super().__init__()
        self.stages = nn.ModuleList(plan.stages)
        self.sign = plan.decision.sign
        temperatures = plan.decision.temperatures
        self.temperatures: Tensor | None
        values = None if temperatures is None else torch.tensor(temperatures)
        self.register_buffer("temperatures", values)
        self.num_exits = plan.num_exits

    def forward(self, images: Tensor, *settings: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits, exits and confidences."""
        logits, exit_index = self._stage(0, (images,), settings)
        divided = logits
        if self.temperatures is not None:
            divided = logits / self.temperatures[exit_index].unsqueeze(1)
        return logits, exit_index, divided.softmax(1).amax(1)

    def _stage(
        self, index: int, tensors: Sequence[Tensor], settings: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Run a stage and, if samples remain, the later ones."""
        stage: Any = self.stages[index]
        is_last = index == len(self.stages) - 1
        logits, *others = stage(*tensors) if is_last else stage(*tensors, *settings[1:])
        number = self.num_exits if is_last else index
        own = torch.full_like(logits[:, 0], number, dtype=torch.int64)
        if is_last:
            return logits, own
        confidence, *passed = others
        stays = (confidence >= self.sign * settings[0][index]).logical_not()
        num_settings = len(settings)

        def rest(
            logits: Tensor, own: Tensor, stays: Tensor, *read: Tensor
        ) -> tuple[Tensor, Tensor]:
            rows = stays.nonzero().squeeze(1)
            # Without it, the later stages would have to be right for an empty batch, too.
            torch._check(rows.shape[0] > 0)
            remaining = [
                tensor if spec.batch_axis is None else tensor.index_select(spec.batch_axis, rows)
                for tensor, spec in zip(read[num_settings:], stage.passed, strict=True)
            ]
            later, exits = self._stage(index + 1, remaining, read[:num_settings])
            return logits.index_copy(0, rows, later), own.index_copy(0, rows, exits)

        def nothing(logits: Tensor, own: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
            # Branches must not return what they are given.
            return logits.clone(), own.clone()

        operands = (logits, own, stays, *settings, *passed)
        found: tuple[Tensor, Tensor] = torch.cond(stays.any(), rest, nothing, operands)
        return found


def example_settings(plan: ExportPlan) -> tuple[Tensor, ...]:
    """Return the active thresholds (N,), and α if gates are conditioned on it."""
    decision = plan.decision
    if not decision.enabled:
        return ()
    thresholds = torch.tensor(decision.thresholds, dtype=torch.float32)
    return (thresholds,) if decision.alpha is None else (thresholds, torch.tensor(decision.alpha))


def conditional_program(plan: ExportPlan, device: str = "cpu") -> torch.export.ExportedProgram:
    """Capture a network with `torch.cond` and a symbolic batch size.

    Args:
        plan: the network.
        device: of the program.

    Raises:
        ExportError: torch.export cannot capture it.
    """
    # A program of parameters that need gradients fails outside of no_grad.
    module = copy.deepcopy(ConditionalModule(plan)).eval().requires_grad_(False).to(device)
    examples = tuple(t.to(device) for t in (plan.examples[0][0], *example_settings(plan)))
    batch = torch.export.Dim("batch", min=0)
    axes = ({0: batch}, *(None for _ in examples[1:]))
    try:
        with torch.no_grad(), quiet():
            settings = (axes[1:],) if axes[1:] else ()
            return torch.export.export(module, examples, dynamic_shapes=(axes[0], *settings))
    except Exception as error:
        # It raises errors of any kind.
        raise ExportError(
            f"torch.export cannot capture the network: {first_line(error)}"
        ) from error


def check_suffix(path: Path) -> None:
    """Raise StorageError if a path does not have the ending that torch requires."""
    if path.suffix != ".pt2":
        raise StorageError(f"torch reads files whose names end with '.pt2', got '{path.name}'.")


def program_runner(program: Callable[..., Any], plan: ExportPlan, device: str = "cpu") -> Runner:
    """Return how to run a loaded program.

    Args:
        program: takes and returns what `ConditionalModule` does.
        plan: the network.
        device: of the program.
    """

    def run(
        images: NDArray[np.float32], thresholds: Sequence[float] | None, alpha: float | None
    ) -> Prediction:
        settings = list(example_settings(plan))
        if thresholds is not None:
            settings[0] = torch.tensor(thresholds, dtype=torch.float32)
        if alpha is not None:
            settings[1] = torch.tensor(alpha)
        inputs = [tensor.to(device) for tensor in (torch.from_numpy(images), *settings)]
        with torch.no_grad():
            return Prediction(*(tensor.cpu().numpy() for tensor in program(*inputs)))

    return run
