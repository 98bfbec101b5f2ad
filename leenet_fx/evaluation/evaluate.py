"""evaluate: accuracy, cost and time of a network with exits, beside the plain model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from leenet_fx import text
from leenet_fx.errors import ModeError
from leenet_fx.parts.policies import Shut
from leenet_fx.surgery.model import EarlyExitModule
from leenet_fx.training.loaders import batches


@dataclass(frozen=True)
class Outlet:
    """An exit, or the final classifier.

    Attributes:
        name: the block it sits behind; "final" for the final classifier.
        relative_flops: FLOPs spent when leaving here, relative to the plain model.
        count: samples that left here.
        share: their share of all.
        accuracy: of those who left here; None where nobody did.
        accuracy_of_all: if every sample left here.
    """

    name: str
    relative_flops: float
    count: int
    share: float
    accuracy: float | None
    accuracy_of_all: float


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found. Every mean is over samples, not over batches.

    Attributes:
        samples: number of images.
        accuracy: of the network with exits under its policy.
        plain_accuracy: of the plain model.
        random_accuracy: expected if the same shares of samples left at the exits at random.
        relative_flops: mean FLOPs spent, relative to the plain model.
        mean_exit: mean exit index; N is the final classifier.
        seconds: measured time of the network with exits, all images.
        plain_seconds: measured time of the plain model in the same run.
        outlets: one for each exit, then the final classifier.
    """

    samples: int
    accuracy: float
    plain_accuracy: float
    random_accuracy: float
    relative_flops: float
    mean_exit: float
    seconds: float
    plain_seconds: float
    outlets: tuple[Outlet, ...]

    @property
    def time_ratio(self) -> float:
        """Measured time relative to the plain model."""
        return self.seconds / self.plain_seconds

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "time_ratio": self.time_ratio}

    def summary(self) -> str:
        """A table of text."""
        table = text.new_table(
            f"{self.samples} images: accuracy {100 * self.accuracy:.2f} % (plain model "
            f"{100 * self.plain_accuracy:.2f} %, same shares at random "
            f"{100 * self.random_accuracy:.2f} %), {100 * self.relative_flops:.1f} % of the FLOPs, "
            f"{100 * self.time_ratio:.0f} % of the time",
            "exit",
            "after",
            "FLOPs rel.",
            "share %",
            "accuracy %",
            "if all left here %",
            caption=f"Mean exit {self.mean_exit:.2f}; time {self.seconds:.3f} s, plain model "
            f"{self.plain_seconds:.3f} s.",
        )
        for index, outlet in enumerate(self.outlets):
            left = "" if outlet.accuracy is None else f"{100 * outlet.accuracy:.2f}"
            table.add_row(
                str(index),
                outlet.name,
                f"{outlet.relative_flops:.3f}",
                f"{100 * outlet.share:.1f}",
                left,
                f"{100 * outlet.accuracy_of_all:.2f}",
            )
        return text.render(table)

    def __str__(self) -> str:
        return self.summary()


@torch.no_grad()
def evaluate(
    ee: EarlyExitModule, loader: Iterable[Any], *, plain: nn.Module | None = None
) -> Evaluation:
    """Measures a network with exits under its policy.

    Args:
        ee: the network, in evaluation mode.
        loader: yields (images (B, …), labels (B,)).
        plain: the model to time beside it; None times this network with its gates shut, which runs
            the plain model's operations and no branch.

    Raises:
        ModeError: `ee` or `plain` is in training mode.
        InputError: the loader is empty or its batches do not fit.
    """
    if ee.training or (plain is not None and plain.training):
        raise ModeError("evaluate needs evaluation mode: call .eval() first.")
    device = next(ee.exits.parameters()).device
    shut = Shut()

    def run_plain(images: Tensor) -> Tensor:
        return plain(images) if plain is not None else ee.run_with(images, shut)[0]

    tally = _Tally(ee.num_exits + 1, device)
    clock = _Clock(device)
    for turn, (images, labels) in enumerate(batches(loader, "loader", ee.spec.num_classes, device)):
        if turn == 0:
            ee(images), run_plain(images)
        order: tuple[tuple[str, Callable[[Tensor], Tensor]], ...] = (
            ("ee", ee),
            ("plain", run_plain),
        )
        answers = {
            name: clock.time(name, model, images)
            for name, model in (order if turn % 2 == 0 else reversed(order))
        }
        tally.add(labels, answers["plain"], ee.predict(images), ee.all_exits(images).logits)
    return tally.evaluation(ee, clock)


class _Clock:
    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = {"ee": 0.0, "plain": 0.0}

    def time(self, name: str, model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        self._wait()
        start = time.perf_counter()
        answer = model(images)
        self._wait()
        self.seconds[name] += time.perf_counter() - start
        return answer

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class _Tally:
    def __init__(self, outlets: int, device: torch.device) -> None:
        self.samples = 0
        self.plain_right = 0
        self.cost = 0.0
        self.left = torch.zeros(outlets, dtype=torch.int64, device=device)
        self.left_right = torch.zeros_like(self.left)
        self.all_right = torch.zeros_like(self.left)

    def add(self, labels: Tensor, plain: Tensor, prediction: Any, logits: Any) -> None:
        outlets = len(self.left)
        right = prediction.logits.argmax(1) == labels
        self.samples += len(labels)
        self.plain_right += int((plain.argmax(1) == labels).sum())
        self.cost += float(prediction.cost.double().sum())
        self.left += prediction.exit_index.bincount(minlength=outlets)
        self.left_right += prediction.exit_index[right].bincount(minlength=outlets)
        self.all_right += torch.stack([(at.argmax(1) == labels).sum() for at in logits])

    def evaluation(self, ee: EarlyExitModule, clock: _Clock) -> Evaluation:
        n = self.samples
        left, right, of_all = (t.tolist() for t in (self.left, self.left_right, self.all_right))
        outlets = tuple(
            Outlet(
                name=row.name,
                relative_flops=row.relative_flops,
                count=left[i],
                share=left[i] / n,
                accuracy=right[i] / left[i] if left[i] else None,
                accuracy_of_all=of_all[i] / n,
            )
            for i, row in enumerate(ee.costs)
        )
        return Evaluation(
            samples=n,
            accuracy=sum(right) / n,
            plain_accuracy=self.plain_right / n,
            random_accuracy=sum(o.share * o.accuracy_of_all for o in outlets),
            relative_flops=self.cost / n,
            mean_exit=sum(i * count for i, count in enumerate(left)) / n,
            seconds=clock.seconds["ee"],
            plain_seconds=clock.seconds["plain"],
            outlets=outlets,
        )
