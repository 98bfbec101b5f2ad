"""A tier: the stages that one machine runs."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from leenet_fx.errors import InputError, ModeError
from leenet_fx.policies.base import policy_to_dict
from leenet_fx.runtime.active_batch import ActiveBatch
from leenet_fx.runtime.conditional import run_any_stage
from leenet_fx.runtime.controller import PolicyController
from leenet_fx.storage.fingerprint import fingerprint
from leenet_fx.surgery.module import EarlyExitModule
from leenet_fx.surgery.operating_point import weights_fingerprint
from leenet_fx.tiers.answers import Answers
from leenet_fx.tiers.cut_format import CutFormat

LocalAnswer = Callable[[], tuple[Tensor, int]]
"""Returns logits (n, classes) and index of the last local exit, for samples that remain."""


@dataclass(frozen=True)
class Identity:
    """What two tiers must share.

    Attributes:
        network: digest of the operations, the exits and all weights.
        policy: as plain JSON values.
    """

    network: str
    policy: str

    @classmethod
    def of(cls, ee: EarlyExitModule) -> Identity:
        """Return the identity of a network."""
        parts = [fingerprint(ee), weights_fingerprint(ee)]
        digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        return cls(digest[:32], json.dumps(policy_to_dict(ee.policy)))


class Tier:
    """Stages of a network, run on batches of samples.

    Attributes:
        ee: the network.
        first: index of the first stage.
        stop: one more than the index of the last; equal to `first` for a tier that passes all
            samples on.
        identity: of the network.
        before: format of the samples that arrive.
        behind: format of the samples that remain; None behind the final classifier.
    """

    def __init__(self, ee: EarlyExitModule, first: int, stop: int) -> None:
        """Check the stages.

        Args:
            ee: the network, in evaluation mode; its policy decides.
            first: index of the first stage.
            stop: one more than that of the last.

        Raises:
            ModeError: `ee` is in training mode.
            InputError: no such stages.
        """
        if ee.training:
            raise ModeError("A tier needs evaluation mode: call ee.eval() first.")
        stages = ee.num_exits + 1
        if not 0 <= first <= stop <= stages or first == stages:
            raise InputError(
                f"The network has stages 0 to {ee.num_exits}, so a tier is given as 0:1 up to "
                f"0:{stages} (its first stage, and the one behind its last), got {first}:{stop}."
            )
        self.ee = ee
        self.first = first
        self.stop = stop
        self.identity = Identity.of(ee)
        self._lock = threading.Lock()
        branches = list(ee.exits.branches())
        self._controller = _RecordingController(ee, ee.stage_plan, branches, ee.policy)
        self.before = CutFormat(ee, self._controller, first)
        self.behind = CutFormat(ee, self._controller, stop) if stop < stages else None

    @property
    def is_last(self) -> bool:
        """Whether the final classifier is among its stages."""
        return self.behind is None

    def run(self, active: ActiveBatch, logits: Tensor) -> tuple[Answers, LocalAnswer | None]:
        """Run the stages.

        Args:
            active: the samples, with indices; the remaining ones when the call returns.
            logits: (B, classes) to be filled in.

        Returns:
            Answers for the samples that exit here, and a function that answers the remaining ones
            at the last exit of this tier; None if it has evaluated no exit.
        """
        answers = Answers.empty(logits)
        with self._lock, torch.inference_mode():
            self._controller.last = None
            for stage in range(self.first, self.stop):
                group = run_any_stage(self._controller, stage, active)
                if group is not None:
                    assert group.indices is not None
                    answers.record(group.indices, group.logits, group.exit_index)
                if not active.count:
                    return answers, None
            last = self._controller.last
        return answers, None if last is None else last.answer_for(self._controller, active)


@dataclass(frozen=True)
class _LastExit:
    """What the last evaluated exit has computed: (B, k) inputs of its classifier, and (B,) indices
    of the samples."""

    index: int
    inputs: Tensor
    indices: Tensor

    def answer_for(self, controller: PolicyController, active: ActiveBatch) -> LocalAnswer:
        """Return the function that classifies the samples of `active`, which all reached it."""
        assert active.indices is not None
        remaining = active.indices
        reached = ActiveBatch((), len(self.inputs), classifier_inputs=self.inputs)

        @torch.inference_mode()
        def answer() -> tuple[Tensor, int]:
            # Both are ascending.
            positions = torch.searchsorted(self.indices, remaining)
            return controller.classify(self.index, reached, positions), self.index

        return answer


class _RecordingController(PolicyController):
    """Keeps what the last evaluated exit has computed for the samples that pass it."""

    last: _LastExit | None = None

    def decide(self, index: int, active: ActiveBatch) -> Tensor:
        exits = super().decide(index, active)
        assert active.classifier_inputs is not None
        assert active.indices is not None
        self.last = _LastExit(index, active.classifier_inputs, active.indices)
        return exits


def parse_stages(text: str) -> tuple[int, int]:
    """Return the first stage and the one behind the last, from FIRST:STOP.

    Raises:
        InputError: another form.
    """
    found = re.fullmatch(r"([0-9]{1,6}):([0-9]{1,6})", text.strip())
    if found is None:
        raise InputError(f"Expected stages such as 0:2, which are stages 0 and 1, got '{text}'.")
    return int(found[1]), int(found[2])
