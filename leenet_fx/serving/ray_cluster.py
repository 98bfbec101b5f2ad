"""Stages as deployments of Ray Serve, one for each, whose replicas follow its load.

Every replica holds the network and runs one stage. What remains of a batch stays in Ray's object
store, from where replicas of the next stage fetch it; the server only holds references.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import sysconfig
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import ray
import torch
from ray import serve
from ray.exceptions import RayError
from ray.serve.schema import ApplicationStatus

from leenet_fx.errors import InputError, first_line
from leenet_fx.serving import ray_tensors
from leenet_fx.serving.ray_settings import RaySettings
from leenet_fx.serving.served_network import Answers, ServedNetwork, numbers_of
from leenet_fx.serving.torch_network import TorchNetwork

logger = logging.getLogger("leenet_fx")

BATCHES = 2
"""Batches at a replica: one runs, one waits, so that it is not idle between two."""

POLL_SECONDS = 0.2

ARENAS = "MALLOC_ARENA_MAX"
"""Of glibc. A replica's threads have one heap, unless the environment says otherwise: with a heap
each, tensors of ever other sizes leave gaps that nothing fills, and memory grows."""


class StageResult(NamedTuple):
    """What a replica made of a batch.

    Attributes:
        answers: samples that exited.
        remaining: a list of one reference to the group of those that did not; empty for none. A
            reference by itself would be replaced by its value.
        numbers: of the samples that did not exit.
    """

    answers: list[Answers]
    remaining: list[Any]
    numbers: list[int]


class StageReplica:
    """Runs one stage on batches of samples."""

    def __init__(self, network: Sequence[Any], stage: int, threads: int) -> None:
        """Fetch the network from the object store.

        Args:
            network: a list of one reference to it.
            stage: index of the stage.
            threads: number of threads of each operator.
        """
        torch.set_num_threads(threads)
        ray_tensors.register()
        self.network: ServedNetwork = ray.get(network[0])
        self.stage = stage
        self._thread = ThreadPoolExecutor(1)

    async def __call__(
        self, point: str, groups: Sequence[Any], numbers: Sequence[int]
    ) -> StageResult | None:
        """Run the stage on a batch.

        Args:
            point: name of the operating point.
            groups: images before the first stage; before others, references to groups.
            numbers: of the samples.

        Returns:
            None if a group was lost with the replica that made it.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._run, point, groups, numbers)

    def _run(self, point: str, groups: Sequence[Any], numbers: Sequence[int]) -> StageResult | None:
        if self.stage == 0:
            group = self.network.first_group(groups, numbers)
        else:
            try:
                found = ray.get(list(groups))
            except RayError:
                return None
            group = found[0] if len(found) == 1 else self.network.join(self.stage, found)
        answers, remaining = self.network.run(self.stage, point, group)
        if remaining is None:
            return StageResult(answers, [], [])
        return StageResult(answers, [ray.put(remaining)], numbers_of(remaining))


class StageDeployments:
    """The deployments of a network's stages.

    Attributes:
        handles: one for each stage.
        limits: number of batches that each stage takes at a time.
    """

    def __init__(self, network: ServedNetwork, settings: RaySettings, threads: int = 1) -> None:
        """Start the deployments, and wait for their replicas.

        Args:
            network: copied to each replica.
            settings: replicas and cluster.
            threads: number of threads of each operator.

        Raises:
            InputError: the cluster cannot be reached, or the replicas do not start.
        """
        replicas = settings.of_stages(network.num_stages)
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        self.settings = settings
        self.names = [f"{settings.name}-stage-{stage}" for stage in range(network.num_stages)]
        self._owns_ray = not ray.is_initialized()
        if self._owns_ray:
            connect(settings.address)
        try:
            serve.start(
                proxy_location="Disabled",
                logging_config={"log_level": "WARNING", "enable_access_log": False},
            )
            pickle_by_value(network)
            # Replicas that start later fetch the network too: the reference must live on.
            self._network = [ray.put(network)]
            targets = [
                serve.RunTarget(
                    self._deployment(*replicas[stage]).bind(self._network, stage, threads),
                    name=name,
                    route_prefix=None,
                )
                for stage, name in enumerate(self.names)
            ]
            serve.run_many(targets, wait_for_applications_running=False)
            self._wait()
        except BaseException:
            self.stop()
            raise
        self.handles = [serve.get_app_handle(name) for name in self.names]
        self.limits = [BATCHES * high for _, high in replicas]

    def _deployment(self, low: int, high: int) -> Any:
        number: dict[str, Any] = {"num_replicas": low}
        if high > low:
            number = {
                "autoscaling_config": {
                    "min_replicas": low,
                    "max_replicas": high,
                    "target_ongoing_requests": 1,
                }
            }
        return serve.deployment(
            StageReplica,
            max_ongoing_requests=BATCHES,
            ray_actor_options={
                "num_cpus": self.settings.cpus,
                "runtime_env": {"env_vars": {ARENAS: os.environ.get(ARENAS, "1")}},
            },
            health_check_period_s=1,
            max_constructor_retry_count=2,
            **number,
        )

    def _wait(self) -> None:
        until = time.monotonic() + self.settings.start_seconds
        while True:
            found = serve.status().applications
            states = [found[name].status if name in found else None for name in self.names]
            if all(state == ApplicationStatus.RUNNING for state in states):
                return
            for name, state in zip(self.names, states, strict=True):
                if state in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY):
                    parts = found[name].deployments.values()
                    message = "\n".join([found[name].message, *(part.message for part in parts)])
                    raise InputError(f"'{name}' does not start on Ray: {message}")
            if time.monotonic() > until:
                raise InputError(
                    f"The replicas have not started within {self.settings.start_seconds:g} "
                    f"seconds: the cluster needs {self.settings.cpus:g} free CPUs for each."
                )
            time.sleep(POLL_SECONDS)

    def stop(self) -> None:
        """End the deployments, and Ray if it was started here."""
        if self._owns_ray and self.settings.address is None:
            serve.shutdown()
        else:
            for name in self.names:
                serve.delete(name)
        if self._owns_ray:
            ray.shutdown()


def connect(address: str | None) -> None:
    """Connect to a Ray cluster.

    Args:
        address: of the cluster; None starts one on this machine.

    Raises:
        InputError: it cannot be reached.
    """
    options: dict[str, Any] = {"address": address}
    if address is None:
        options = {"address": "local", "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    try:
        ray.init(log_to_driver=False, logging_level="warning", **options)
    except (OSError, RuntimeError, ValueError, RayError) as error:
        where = "on this machine" if address is None else f"at '{address}'"
        raise InputError(f"There is no Ray cluster {where}: {first_line(error)}") from error


def pickle_by_value(network: ServedNetwork) -> None:
    """Send modules that replicas cannot import, like that of `--model path.py:factory`, with it.

    Args:
        network: whose layers' classes are looked at.
    """
    if not isinstance(network, TorchNetwork):
        return
    installed = tuple(sysconfig.get_paths()[key] for key in ("stdlib", "purelib", "platlib"))
    for name in {type(module).__module__ for module in network.ee.modules()}:
        module = sys.modules[name]
        file = getattr(module, "__file__", None)
        is_ours = name.partition(".")[0] == "leenet_fx"
        if name != "__main__" and file and not is_ours and not file.startswith(installed):
            ray.cloudpickle.register_pickle_by_value(module)
