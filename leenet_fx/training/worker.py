"""Training of all phases of a plan, in one of the processes that share the work."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from leenet_fx.calibration.cached_outputs import batch_outputs, cached_exit_indices
from leenet_fx.features.feature_batch import FeatureBatch
from leenet_fx.progress import progress_display, report
from leenet_fx.storage.fingerprint import fingerprint
from leenet_fx.surgery.module import EarlyExitModule
from leenet_fx.training import checkpoint
from leenet_fx.training.feature_source import FeatureSource, FitData
from leenet_fx.training.metrics import Epoch, scalars, tensorboard_logger, write_metrics
from leenet_fx.training.plan import Plan
from leenet_fx.training.sanity import warn_if_at_chance, warn_if_one_exit
from leenet_fx.training.trainer import PhaseTrainer

logger = logging.getLogger("leenet_fx")


@dataclass(frozen=True)
class Worker:
    """Trains a network in place; can be sent to other processes.

    Attributes:
        data: of the run.
        plan: of the run.
        costs: (N+1,) relative costs.
        folder: for metrics and checkpoints, if any.
        resume: whether to resume from the checkpoint in `folder`.
        tensorboard: whether to write TensorBoard events to `folder`.
        show_progress: whether to show progress.
        evaluation_modules: names of modules that stay in evaluation mode.
    """

    data: FitData
    plan: Plan
    costs: Tensor
    folder: Path | None
    resume: bool
    tensorboard: bool
    show_progress: bool
    evaluation_modules: tuple[str, ...] = ()

    def __call__(
        self,
        fabric: Fabric,
        ee: EarlyExitModule,
        final: nn.Module | None,
        history: list[Epoch],
    ) -> None:
        """Train all phases.

        Args:
            fabric: of the processes that share each batch.
            ee: the network, on Fabric's device.
            final: the final classifier, if it is trained.
            history: is appended to.
        """
        plan = self.plan
        sources = self._sources(fabric, ee, final)
        train = sources["train"]
        generator = torch.Generator().manual_seed(plan.seed)
        first, trainer_state = self._resume(ee, generator, history)
        folder = self.folder if fabric.is_global_zero else None
        board = tensorboard_logger(folder) if folder is not None and self.tensorboard else None
        samples: FeatureBatch | None = None
        with progress_display(self.show_progress and fabric.is_global_zero):
            for index, (phase, epochs) in enumerate(zip(plan.phases, plan.epochs, strict=True)):
                if not epochs or index < first:
                    continue
                source = sources.get("calibration", train) if phase.held_out else train
                trainer = PhaseTrainer(
                    ee,
                    phase,
                    final,
                    fabric=fabric,
                    costs=self.costs.to(fabric.device),
                    cost_weight=plan.alpha,
                    lr=plan.lr,
                    epochs=epochs,
                    patience=plan.patience,
                    generator=generator,
                    evaluation_modules=self.evaluation_modules,
                )
                if trainer_state is not None and index == first:
                    trainer.load_state_dict(trainer_state)
                else:
                    trainer.prepare(source)
                    if fabric.is_global_zero and phase.parameter_groups & {"classifiers", "means"}:
                        self._check_backbone(ee, trainer.samples)

                def after_epoch(index: int = index, trainer: PhaseTrainer = trainer) -> None:
                    epoch = history[-1]
                    report(
                        f"training {epoch.phase}",
                        f"epoch {epoch.epoch} of {trainer.epochs}, loss {epoch.train_loss:.4f}"
                        + ("" if epoch.val_loss is None else f", val {epoch.val_loss:.4f}"),
                        epoch.epoch / trainer.epochs,
                    )
                    if folder is None:
                        return
                    state = self._state(ee, index, trainer, generator, history)
                    checkpoint.save_checkpoint(folder, state)
                    write_metrics(folder, history)
                    if board is not None:
                        board.log_metrics(scalars(epoch), epoch.epoch)

                trainer.run(source, sources.get("val"), history, after_epoch)
                samples = trainer.samples or samples
        if board is not None:
            board.finalize("success")
        if fabric.is_global_zero:
            self._check_exits(ee, samples)

    def _check_backbone(self, ee: EarlyExitModule, samples: FeatureBatch | None) -> None:
        """Warn if a final classifier that is trained predicts no better than by chance."""
        untrained = self.plan.final_path is not None and "final" not in self.plan.parameter_groups
        if samples is not None and samples.final is not None and not untrained:
            warn_if_at_chance(samples.final.argmax(1), samples.labels, "training images")

    def _check_exits(self, ee: EarlyExitModule, samples: FeatureBatch | None) -> None:
        """Warn if the policy lets nearly all samples exit at the same exit."""
        policy = self.plan.policy_for(ee.num_exits)
        if policy is None or samples is None or "backbone" in self.plan.parameter_groups:
            return
        outputs = batch_outputs(list(ee.exits.branches()), samples)
        exit_index = cached_exit_indices(ee, policy, outputs)
        warn_if_one_exit(exit_index, [row.name for row in ee.costs], "training images")

    def _sources(
        self, fabric: Fabric, ee: EarlyExitModule, final: nn.Module | None
    ) -> dict[str, FeatureSource]:
        labelled = self.plan.labelled
        return {
            name: FeatureSource(ee, data, name, fabric, final, labelled)
            for name, data in self.data.named()
        }

    def _resume(
        self, ee: EarlyExitModule, generator: torch.Generator, history: list[Epoch]
    ) -> tuple[int, dict[str, Any] | None]:
        """Restore the checkpoint, if there is one to resume from.

        Returns:
            The index of the first phase to train, and the state of its trainer.
        """
        if self.folder is None or not self.resume:
            return 0, None
        state = checkpoint.load_checkpoint(self.folder)
        if state is None:
            return 0, None
        path = self.folder / checkpoint.FILE
        former, own = state["run"], self._identity()
        if self._lengthens(former, state["phase"], state["trainer"]["done"]):
            former = {**former, "epochs": own["epochs"]}
        checkpoint.check_same_run(path, own, former)
        checkpoint.check_same_network(path, state["graph"], fingerprint(ee))
        history[:] = [Epoch(**epoch) for epoch in state["history"]]
        generator.set_state(state["generator"])
        checkpoint.set_random_state(state["random"], self.data.loaders())
        for cache, epochs_read in zip(self.data.caches(), state["epochs_read"], strict=True):
            cache.epochs_read = epochs_read
        return state["phase"], state["trainer"]

    def _lengthens(self, former: Mapping[str, Any], phase: int, done: int) -> bool:
        """Return whether this run adds epochs to phases that are not complete, and log a warning.

        Args:
            former: identity of the run to resume.
            phase: index of its last phase.
            done: number of epochs of that phase.
        """
        epochs, before = self.plan.epochs, former.get("epochs", ())
        if not checkpoint.is_lengthened(epochs, before) or list(epochs[:phase]) != before[:phase]:
            return False
        if epochs[phase] != before[phase]:
            logger.warning(
                "Phase '%s' goes on to %d epochs: its first %d had the learning rates of a run of "
                "%d, so the result is not that of an uninterrupted run.",
                self.plan.phases[phase].name,
                epochs[phase],
                done,
                before[phase],
            )
        return True

    def _identity(self) -> Mapping[str, Any]:
        """Return what a run must share with one to resume."""
        return {**self.plan.to_dict(), "phases": [phase.name for phase in self.plan.phases]}

    def _state(
        self,
        ee: EarlyExitModule,
        index: int,
        trainer: PhaseTrainer,
        generator: torch.Generator,
        history: list[Epoch],
    ) -> dict[str, Any]:
        """Return everything that another run needs to resume this one."""
        return {
            "run": self._identity(),
            "graph": fingerprint(ee),
            "phase": index,
            "trainer": trainer.state_dict(),
            "history": [asdict(epoch) for epoch in history],
            "generator": generator.get_state(),
            "random": checkpoint.random_state(self.data.loaders()),
            "epochs_read": [cache.epochs_read for cache in self.data.caches()],
        }
