"""Stages on Ray Serve: answers, operating points, back-pressure, and the loss of replicas.

Tests that start a cluster, a process of a gigabyte for each stage, are slow ones.
"""

import asyncio
import os
import random
import signal
import subprocess
import sys
import warnings
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from networks import images
from pydantic import PydanticDeprecatedSince20
from serving_helpers import TRANSFORM, client, network_with_points

from leenet_fx.serving.dependencies import require_ray
from leenet_fx.serving.predictor import OverloadedError
from leenet_fx.serving.settings import Settings
from leenet_fx.serving.torch_network import TorchNetwork

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="needs ray[serve]")

NAME = f"tested-{os.getpid()}"
SETTINGS = Settings(batch_size=8)


@pytest.fixture(scope="module")
def network():
    return TorchNetwork(network_with_points(), TRANSFORM)


JOIN = "import ray, sys; ray.init(address=sys.argv[1]); print(len(ray.nodes()))"


def import_ray():
    with warnings.catch_warnings():
        # Ray describes its settings by fields in a way that pydantic is to drop.
        warnings.simplefilter("ignore", PydanticDeprecatedSince20)
        require_ray()


@pytest.fixture(scope="module")
def deployments(network):
    import_ray()
    from leenet_fx.serving.ray_cluster import StageDeployments
    from leenet_fx.serving.ray_settings import RaySettings

    found = StageDeployments(network, RaySettings(name=NAME))
    yield found
    found.stop()


@pytest.fixture
def stages(deployments):
    """A fresh predictor, because each belongs to one event loop."""
    from leenet_fx.serving.ray_stages import RayStages

    class Kept(RayStages):
        def stop(self):
            """Leave the deployments to the next test."""

    return Kept(deployments, SETTINGS)


def replicas(stage):
    """Process numbers of a stage's replicas, by the titles that Ray gives them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            title = path.read_text()
        except OSError:
            continue
        if title.startswith(f"ray::ServeReplica:{NAME}-stage-{stage}:"):
            found.append(int(path.parent.name))
    return found


class Unreliable:
    """Handles of stages that run in this process, and that lose batches or what they made."""

    def __init__(self, network, generator):
        self.network, self.generator = network, generator
        self.limits = [4] * network.num_stages
        self.handles = [SimpleNamespace(remote=partial(self.run, i)) for i in range(3)]

    async def run(self, stage, point, groups, numbers):
        from ray.exceptions import ActorDiedError, ActorUnavailableError

        await asyncio.sleep(0)
        event = self.generator.random()
        if event < 0.2:
            raise ActorDiedError()
        if event < 0.3:
            raise ActorUnavailableError("", None)
        if event < 0.4:
            return None
        network = self.network
        make = network.join if stage else lambda _, images: network.first_group(images, numbers)
        answers, remaining = network.run(stage, point, make(stage, groups))
        if remaining is None:
            return answers, [], []
        return answers, [remaining], remaining.indices.tolist()


@pytest.fixture
def unreliable(network, monkeypatch):
    import_ray()
    from leenet_fx.serving import ray_stages

    monkeypatch.setattr(ray_stages, "PAUSE_SECONDS", 0.001)
    return ray_stages.RayStages(Unreliable(network, random.Random(0)), SETTINGS)


def test_batches_that_are_lost_begin_anew(network, unreliable, caplog):
    batch = images(120, 3, 16, 16)
    check(asyncio.run(ask(unreliable, batch)), network.ee.predict(batch))
    assert unreliable.restarted > 20
    assert "samples begin anew" in caplog.text
    assert not unreliable.samples
    assert unreliable.running == [0, 0, 0]


def test_samples_that_are_lost_again_and_again_are_refused(unreliable, monkeypatch, caplog):
    from leenet_fx.serving import ray_stages

    monkeypatch.setattr(ray_stages, "GIVE_UP_SECONDS", 0.05)
    monkeypatch.setattr(unreliable.deployments.generator, "random", lambda: 0.0)
    with pytest.raises(OverloadedError, match="again and again"):
        asyncio.run(ask(unreliable, images(3, 3, 16, 16)))


def test_a_stage_that_fails_is_an_error_of_its_requests_only(network, unreliable, monkeypatch):
    from ray.exceptions import RayTaskError

    batch = images(16, 3, 16, 16)
    run = network.run
    monkeypatch.setattr(unreliable.deployments.generator, "random", lambda: 1.0)

    def fails_once(stage, point, group):
        if 0 in group.indices.tolist():
            raise RayTaskError("run", "", ValueError("a stage failed"))
        return run(stage, point, group)

    monkeypatch.setattr(network, "run", fails_once)

    async def ask_all():
        asked = (unreliable.answer(image.numpy(), "saved") for image in batch)
        return await asyncio.gather(*asked, return_exceptions=True)

    found = asyncio.run(ask_all())
    assert all(isinstance(answer, RayTaskError) for answer in found[:8])
    check(found[8:], network.ee.predict(batch[8:]))


async def ask(stages, batch, point="saved"):
    return await asyncio.gather(*(stages.answer(image.numpy(), point) for image in batch))


def check(found, expected):
    assert [answer.exit_index for answer in found] == expected.exit_index.tolist()
    assert [answer.label for answer in found] == expected.logits.argmax(1).tolist()
    given = [answer.probability for answer in found]
    assert given == pytest.approx(expected.confidence.tolist(), abs=1e-5)


@pytest.mark.slow
def test_answers_are_those_of_predict(network, stages):
    batch = images(40, 3, 16, 16)
    expected = network.ee.predict(batch)
    ran = [0, 0, 0]

    def on_batch(stage, count):
        ran[stage] += count

    stages.on_batch = on_batch
    check(asyncio.run(ask(stages, batch)), expected)
    counts = expected.exit_index.bincount(minlength=3).tolist()
    assert all(counts)
    assert ran == [40, 40 - counts[0], counts[2]]


@pytest.mark.slow
def test_http_answers_and_points_are_those_of_one_process(network, stages):
    batch = images(6, 3, 16, 16, seed=8)
    ee = network.ee
    own = ee.predict(batch).exit_index.tolist()
    cheap = ee.run_with(batch, ee.operating_points["cheap"].build_policy())[1].tolist()
    with client(network, stages) as http:

        def found(query=""):
            given = [http.post(f"/predict{query}", json={"tensor": x.tolist()}) for x in batch]
            return [answer.json()["exit_index"] for answer in given]

        assert found() == own
        assert found("?point=cheap") == cheap
        assert http.post("/admin/point", json={"point": "cheap"}).status_code == 200
        assert found() == cheap
        text = http.get("/metrics").text
    assert 'leenet_exits_total{exit="0",point="cheap"}' in text
    assert 'leenet_stage_batch_size_sum{stage="0"} 18.0' in text


@pytest.mark.slow
def test_samples_beyond_the_queue_are_refused(network, stages):
    stages.queue = 3
    batch = images(10, 3, 16, 16, seed=9)

    async def ask_all():
        asked = (stages.answer(image.numpy(), "saved") for image in batch)
        return await asyncio.gather(*asked, return_exceptions=True)

    found = asyncio.run(ask_all())
    assert [isinstance(answer, OverloadedError) for answer in found] == [False] * 3 + [True] * 7
    assert [a.exit_index for a in found[:3]] == network.ee.predict(batch[:3]).exit_index.tolist()


def kill(stage):
    (number,) = replicas(stage)
    os.kill(number, signal.SIGKILL)


@pytest.mark.slow
def test_a_lost_replica_loses_no_request(network, stages):
    batch = images(80, 3, 16, 16)

    async def ask_and_kill():
        held, stages.limits[1] = stages.limits[1], 0
        asked = asyncio.ensure_future(ask(stages, batch[:40]))
        exited = int((network.ee.predict(batch[:40]).exit_index == 0).sum())
        await asyncio.sleep(0)
        while len(stages.samples) > 40 - exited:
            await asyncio.sleep(0.01)
        # What waits before the next stage was made by this replica.
        kill(0)
        stages.limits[1] = held
        more = await ask(stages, batch[40:])
        return [*await asked, *more]

    check(asyncio.run(ask_and_kill()), network.ee.predict(batch))


@pytest.mark.slow
def test_lost_replicas_lose_no_request(network, stages):
    lost = (1, 0, 2, 0, 1)
    batch = images(240, 3, 16, 16)

    async def ask_and_kill():
        first, *rest = batch.split(40)
        asked = [asyncio.ensure_future(ask(stages, first))]
        for stage, part in zip(lost, rest, strict=True):
            asked.append(asyncio.ensure_future(ask(stages, part)))
            while not stages.running[stage]:
                await asyncio.sleep(0)
            kill(stage)
            await asyncio.gather(*asked)
        return [answer for found in await asyncio.gather(*asked) for answer in found]

    check(asyncio.run(ask_and_kill()), network.ee.predict(batch))


def joined(address, **environment):
    """Whether another process becomes a client of the cluster."""
    others = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
    command = [sys.executable, "-c", JOIN, address]
    found = subprocess.run(
        command, env={**others, **environment}, capture_output=True, text=True, timeout=170
    )
    return found.returncode == 0


@pytest.mark.slow
def test_a_cluster_needs_the_token_of_its_server(deployments):
    import ray

    address = ray.get_runtime_context().gcs_address
    own = os.environ["RAY_AUTH_TOKEN"]
    assert joined(address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=own)
    assert not joined(address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * len(own))
    assert not joined(address)
