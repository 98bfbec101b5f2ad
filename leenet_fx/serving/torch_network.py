"""A saved network with exits, in torch, for a server."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leenet_fx.data.transforms import TransformConfig
from leenet_fx.policies import Policy, evaluated_exits
from leenet_fx.runtime.active_batch import ActiveBatch, concatenate
from leenet_fx.runtime.conditional import run_any_stage
from leenet_fx.runtime.controller import ExitController
from leenet_fx.serving.served_network import SAVED, Answers, ServedNetwork, ServedPoint
from leenet_fx.surgery.module import EarlyExitModule
from leenet_fx.surgery.operating_point import weights_fingerprint

logger = logging.getLogger("leenet_fx")


class TorchNetwork(ServedNetwork):
    """An `EarlyExitModule` that a server runs."""

    def __init__(self, ee: EarlyExitModule, transform: TransformConfig | None) -> None:
        """Prepare a network.

        Args:
            ee: the network; it is put into evaluation mode.
            transform: how images become its input.
        """
        self.ee = ee.eval()
        self.transform = transform
        spec = ee.spec
        self.name = spec.profile.model
        self.image_shape = spec.image_shape
        self.num_classes = spec.num_classes
        self.class_names = spec.class_names
        self.exit_names = (*spec.placement.names, "final classifier")
        self.num_stages = ee.num_exits + 1
        self.policies: dict[str, Policy] = {}
        found: dict[str, ServedPoint] = {}
        fingerprint = weights_fingerprint(ee)
        for name, point in ee.operating_points.items():
            if point.fingerprint != fingerprint:
                logger.warning(
                    "The operating point '%s' is for other weights and is left out: calibrate "
                    "again.",
                    name,
                )
                continue
            self.policies[name] = point.build_policy()
            found[name] = ServedPoint(
                name, self._costs(self.policies[name]), point.exit_shares, point.samples
            )
        in_use = [name for name, policy in self.policies.items() if policy == ee.policy]
        if not in_use:
            in_use = [SAVED if SAVED not in found else f"{SAVED} policy"]
            self.policies[in_use[0]] = ee.policy
            found[in_use[0]] = ServedPoint(in_use[0], self._costs(ee.policy))
        self.points = found
        self.default_point = in_use[-1]
        self._controllers: dict[str, ExitController] = {}
        weight = next((p for p in ee.parameters() if p.is_floating_point()), torch.empty(0))
        self._dtype = torch.float32 if spec.casts_images else weight.dtype

    def __getstate__(self) -> dict[str, Any]:
        # Controllers hold generated functions, which are made where they are needed.
        return {**self.__dict__, "_controllers": {}}

    def _costs(self, policy: Policy) -> tuple[float, ...]:
        if policy.reads == "nothing":
            return (1.0,) * self.num_stages
        return tuple(self.ee.costs_for(policy).relative("flops"))

    def first_group(self, images: Sequence[NDArray[np.float32]], numbers: Sequence[int]) -> Any:
        batch = self._batch(images)
        return ActiveBatch((batch,), len(batch), torch.tensor(numbers, device=batch.device))

    def join(self, stage: int, groups: Sequence[Any]) -> Any:
        if stage:
            return concatenate(groups, self.ee.stage_plan.cuts[stage - 1])
        images = torch.cat([group.live[0] for group in groups])
        return ActiveBatch((images,), len(images), torch.cat([group.indices for group in groups]))

    @torch.inference_mode()
    def run(self, stage: int, point: str, group: Any) -> tuple[list[Answers], Any | None]:
        exited = run_any_stage(self._controller(point), stage, group)
        answers = []
        if exited is not None:
            assert exited.indices is not None
            probabilities = self._softmax(exited.logits, exited.exit_index, point)
            best, labels = probabilities.max(1)
            answers.append(
                Answers(exited.exit_index, exited.indices.tolist(), labels.tolist(), best.tolist())
            )
        return answers, group if group.count else None

    @torch.inference_mode()
    def probabilities(
        self, image: NDArray[np.float32], point: str, last: int
    ) -> dict[int, NDArray[np.float32]]:
        logits = self.ee.all_exits(self._batch([image])).logits
        policy = self.policies[point]
        reads = [branch.reads_previous_logits for branch in self.ee.exits.branches()]
        used = (*evaluated_exits(policy, reads), True)
        return {
            index: self._softmax(logits[index], index, point)[0].cpu().numpy()
            for index in range(last + 1)
            if used[index]
        }

    def _batch(self, images: Sequence[NDArray[np.float32]]) -> Tensor:
        return torch.from_numpy(np.stack(images)).to(self.ee.device, self._dtype)

    def _softmax(self, logits: Tensor, exit_index: int, point: str) -> Tensor:
        divided, temperatures = logits.float(), self.policies[point].temperatures
        if temperatures is not None:
            divided = divided / temperatures[exit_index]
        return divided.softmax(1)

    def _controller(self, point: str) -> ExitController:
        if point not in self._controllers:
            self._controllers[point] = self.ee.controller(self.policies[point])
        return self._controllers[point]
