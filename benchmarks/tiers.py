"""Bytes, latency and accuracy of a network cut between device, edge and cloud.

    python benchmarks/tiers.py --data PATH --weights PATH

tf_efficientnet_lite0 at 160 pixels with three exits, fitted to images of Caltech-101. Tiers are
processes of this machine, joined by sockets that carry bytes at a given bandwidth. A device that is
8 times, and an edge that is twice as slow as the cloud sleep after they have computed. Images are
answered one at a time. The same images are sent as JPEG files to a cloud that runs the whole
backbone, and are run by the device alone. `tier_link.py` compares the paced sockets with links that
the kernel throttles, `tier_training.py` has the training over a link.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tier_link import compare_links
from tier_network import CLASSES, EXITS, NETWORK, as_tensors, fitted, some_images
from tier_training import train_over_links
from torch import Tensor

import leenet_fx
from leenet_fx.data.splits import open_data
from leenet_fx.environment import environment
from leenet_fx.report.results import Criterion, Result
from leenet_fx.runtime.active_batch import ActiveBatch
from leenet_fx.surgery.module import EarlyExitModule
from leenet_fx.tiers.answers import Answers
from leenet_fx.tiers.chain import Chain, NextTier
from leenet_fx.tiers.coding import CODINGS, Coding
from leenet_fx.tiers.cuts import StageCosts, choose_stages, measure_stages
from leenet_fx.tiers.link import Link, address_of, connect, listen
from leenet_fx.tiers.messages import Message, encode
from leenet_fx.tiers.server import TierServer
from leenet_fx.tiers.tier import LocalAnswer, Tier

RESULT = Path(__file__).parent / "results" / "tiers.json"
COMMAND = "python benchmarks/tiers.py --data PATH --weights PATH"
TIMEOUT = 120.0
WARM_UP = 2
BANDWIDTHS = (1.0, 10.0, 100.0)
SENT: tuple[Coding, ...] = ("unchanged", "uint8")
SLOWNESS = {"device": 8.0, "edge": 2.0, "cloud": 1.0}
FORK = multiprocessing.get_context("fork")
PARTS = ("accuracy", "latency", "link", "training")
Stages = Sequence[tuple[int, int]]


class SlowTier(Tier):
    """A tier whose machine is slower than this one."""

    slowness = 1.0

    def run(self, active: ActiveBatch, logits: Tensor) -> tuple[Answers, LocalAnswer | None]:
        start, computed = time.perf_counter(), time.thread_time()
        found = super().run(active, logits)
        # Of time on the processor, so that other programs of this machine do not slow it further.
        end = start + self.slowness * (time.thread_time() - computed)
        time.sleep(max(0.0, end - time.perf_counter()))
        return found


def make_tier(ee: EarlyExitModule, stages: tuple[int, int], slowness: float) -> Tier:
    """Return a tier of a machine of the given slowness."""
    tier = SlowTier(ee, *stages)
    tier.slowness = slowness
    return tier


@contextmanager
def started(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """The address of a process that serves."""
    listening = listen("0")
    process = FORK.Process(target=serve, args=(listening,), daemon=True)
    process.start()
    yield address_of(listening)
    listening.close()
    process.kill()
    process.join()


@contextmanager
def device_of(
    ee: EarlyExitModule, stages: Stages, names: Sequence[str], mbit: float, coding: Coding
) -> Iterator[Chain]:
    """The first of a chain of tiers, each in a process of its own."""
    with ExitStack() as stack:
        following = None
        for pair, name in reversed(list(zip(stages, names, strict=True))[1:]):
            tier = make_tier(ee, pair, SLOWNESS[name])
            server = partial(serve_tier, tier, following)
            following = NextTier(stack.enter_context(started(server)), coding, mbit, TIMEOUT)
        chain = Chain(make_tier(ee, stages[0], SLOWNESS[names[0]]), following)
        yield chain
        chain.close()


def serve_tier(tier: Tier, following: NextTier | None, listening: socket.socket) -> None:
    """Serve a tier; the body of its process."""
    TierServer(tier, following, timeout=TIMEOUT).serve(listening)


def serve_files(ee: EarlyExitModule, transform: Any, listening: socket.socket) -> None:
    """Answer image files by the whole backbone; the body of the process."""
    link = Link(listening.accept()[0])
    link.bandwidth = link.receive().number("bandwidth")
    with torch.inference_mode():
        while True:
            content = link.receive().tensors["file"].numpy().tobytes()
            image = transform(Image.open(io.BytesIO(content)).convert("RGB"))
            link.send(Message("answers", {}, {"logits": ee(image[None])}))


def measure_files(
    ee: EarlyExitModule, transform: Any, pairs: Sequence[tuple[Any, int]], mbit: float
) -> dict[str, Any]:
    """Return the row of images that are sent as JPEG files."""
    policy, ee.policy = ee.policy, leenet_fx.NeverExit()
    seconds, sent = [], 0
    with started(partial(serve_files, ee, transform)) as address:
        link = connect(address, timeout=TIMEOUT, bandwidth=mbit)
        link.send(Message("hello", {"bandwidth": mbit}))
        for image, _ in pairs:
            file = io.BytesIO()
            image.convert("RGB").save(file, "JPEG", quality=90)
            content = torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)
            start = time.perf_counter()
            sent += link.send(Message("image", {}, {"file": content}))
            link.receive()
            seconds.append(time.perf_counter() - start)
        link.close()
    ee.policy = policy
    return row("JPEG file to the cloud", mbit, seconds, sent)


def row(
    what: str, mbit: float, seconds: Sequence[float], sent: float, **more: Any
) -> dict[str, Any]:
    """Return a row of latencies of images that were answered one at a time."""
    return {
        "part": "latency",
        "what": what,
        "Mbit/s": mbit,
        **more,
        "ms": round(1e3 * statistics.mean(seconds), 1),
        "median ms": round(1e3 * statistics.median(seconds), 1),
        "bytes an image": round(sent / len(seconds)),
    }


def measure_tiers(
    ee: EarlyExitModule,
    stages: Stages,
    names: Sequence[str],
    mbit: float,
    coding: Coding,
    images: Tensor,
    costs: StageCosts,
) -> dict[str, Any]:
    """Return the row of a chain of tiers."""
    here, seconds, sent = 0, [], 0
    with device_of(ee, stages, names, mbit, coding) as device:
        for image in images[:WARM_UP].split(1):
            device.predict(image)
        for image in images.split(1):
            start = time.perf_counter()
            found = device.predict(image)
            seconds.append(time.perf_counter() - start)
            assert not found.fallback.any()
            here += int(found.tier == 0)
            sent += sum(found.sent)
    cuts = ", ".join(f"{name} {a}:{b}" for name, (a, b) in zip(names, stages, strict=True))
    expected = expected_seconds(costs, stages, names, mbit)
    return row(
        cuts,
        mbit,
        seconds,
        sent,
        **{
            "sent as": coding if len(stages) > 1 else "",
            "on the device %": round(100 * here / len(seconds)),
            "predicted ms": round(1e3 * expected, 1),
        },
    )


def way_back(mbit: float) -> float:
    """Return the seconds of a message of answers."""
    answers = Answers.empty(torch.zeros(1, CLASSES))
    return len(encode(answers.message())) * 8 / (mbit * 1e6)


def expected_seconds(costs: StageCosts, stages: Stages, names: Sequence[str], mbit: float) -> float:
    """Return the time of an image for given cuts, as `placement.choose_cuts` counts it."""
    reached = [1.0, *costs.continuing]
    total = 0.0
    for (first, stop), name in zip(stages, names, strict=True):
        total += sum(reached[i] * costs.seconds[i] * SLOWNESS[name] for i in range(first, stop))
    for _, stop in stages[:-1]:
        total += reached[stop] * (way_back(mbit) + costs.sent_bytes[stop] * 8 / (mbit * 1e6))
    return total


def chosen_stages(
    costs: StageCosts, names: Sequence[str], mbit: float
) -> tuple[tuple[tuple[int, int], ...], float]:
    """Return the stages that are expected to take the shortest time, and that time."""
    links = len(names) - 1
    found = choose_stages(
        costs,
        speeds=[1 / SLOWNESS[name] for name in names],
        bandwidths=[mbit] * links,
        latencies=[way_back(mbit)] * links,
    )
    return found.stages, found.seconds


def latencies(
    ee: EarlyExitModule, transform: Any, pairs: Sequence[tuple[Any, int]]
) -> Iterator[dict[str, Any]]:
    """Yield the rows of latencies."""
    images, _ = as_tensors(pairs, transform)
    last = ee.num_exits + 1
    for mbit in BANDWIDTHS:
        yield measure_files(ee, transform, pairs, mbit)
        for coding in SENT:
            # Measured again each time, because the load of the machine changes.
            costs = measure_stages(ee, images, coding=coding)
            run = partial(measure_tiers, ee, mbit=mbit, images=images, costs=costs)
            measured = {
                cut: run(((0, cut), (cut, last)), ("device", "cloud"), coding=coding)
                for cut in range(last)
            }
            if coding == "unchanged":
                yield run(((0, last),), ("device",), coding=coding)
            best, _ = chosen_stages(costs, ("device", "cloud"), mbit)
            for cut, found in measured.items():
                yield {**found, "chosen": len(best) == 2 and best[1][0] == cut}
            yield run(((0, 1), (1, 2), (2, last)), ("device", "edge", "cloud"), coding=coding)
            three, seconds = chosen_stages(costs, ("device", "edge", "cloud"), mbit)
            names = ("device", "edge", "cloud")[: len(three)]
            yield {
                **run(three, names, coding=coding),
                "chosen": True,
                "predicted ms": round(1e3 * seconds, 1),
            }


def accuracies(ee: EarlyExitModule, images: Tensor, labels: Tensor) -> Iterator[dict[str, Any]]:
    """Yield the accuracy with each dtype and cut, without limits of bandwidth."""
    parts = images.split(25)
    whole = torch.cat([ee.predict(part).logits for part in parts]).argmax(1)
    for cut in range(ee.num_exits + 1):
        tier, later = Tier(ee, 0, cut), Tier(ee, cut, ee.num_exits + 1)
        assert tier.behind is not None
        classes: dict[str, list[Tensor]] = {coding: [] for coding in CODINGS}
        sent, count = dict.fromkeys(CODINGS, 0), 0
        for part in parts:
            active = ActiveBatch((part,), len(part), torch.arange(len(part)))
            answers, _ = tier.run(active, torch.empty(len(part), CLASSES))
            count += active.count
            for coding in CODINGS:
                logits = answers.logits.clone()
                if active.count:
                    message = tier.behind.message(active, coding)
                    sent[coding] += len(encode(message))
                    received = later.before.samples(message)
                    found, _ = later.run(received, torch.empty(active.count, CLASSES))
                    logits[active.indices] = found.logits
                classes[coding].append(logits.argmax(1))
        for coding in CODINGS:
            found_classes = torch.cat(classes[coding])
            differs = 100 * float((found_classes != whole).float().mean())
            yield {
                "part": "accuracy",
                "what": f"cut before stage {cut}",
                "sent as": coding,
                "images": len(labels),
                "accuracy %": round(100 * float((found_classes == labels).float().mean()), 2),
                "differs from predict %": round(differs, 2),
                "bytes an image": round(sent[coding] / max(count, 1)),
            }


def criteria(rows: Sequence[dict[str, Any]]) -> list[Criterion]:
    """Return what was asked beside what was measured."""
    parts: dict[str, list[dict[str, Any]]] = {part: [] for part in PARTS}
    for found in rows:
        parts[found["part"]].append(found)
    asked = []

    def ask(name: str, value: float, target: str, met: bool) -> None:
        asked.append(Criterion(name, value, "%", target, met))

    for coding, most in (("unchanged", 0.0), ("float16", 1.0), ("uint8", 2.0)):
        differs = [r["differs from predict %"] for r in parts["accuracy"] if r["sent as"] == coding]
        if differs:
            worst = max(differs)
            name = f"answers that differ from predict, {coding}"
            ask(name, worst, f"at most {most:g} %", worst <= most)
    errors = [100 * abs(r["ms"] / r["predicted ms"] - 1) for r in parts["latency"] if _cut(r)]
    if errors:
        error = statistics.median(errors)
        ask("latency beside choose_cuts' prediction, median", error, "at most 15 %", error <= 15)
    errors = [
        100 * abs(r["ms"] / r["throttled by the kernel, ms"] - 1)
        for r in parts["link"]
        if r["throttled by the kernel, ms"]
    ]
    if errors:
        error = statistics.median(errors)
        ask("paced socket beside a throttled link, median", error, "at most 10 %", error <= 10)
    timed = [r for r in parts["training"] if "seconds a batch" in r]
    for mbit in sorted({r["Mbit/s"] for r in timed}):
        seconds = {r["what"]: r["seconds a batch"] for r in timed if r["Mbit/s"] == mbit}
        saved = 100 * (1 - seconds["halves"] / seconds["end to end"])
        target = "29 to 61 % (paper, slow link)"
        ask(f"training time saved by halves, {mbit:g} Mbit/s", saved, target, saved >= 29)
    return asked


def _cut(found: dict[str, Any]) -> bool:
    return "predicted ms" in found


def measured(part: str, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the rows of a part."""
    if part == "link":
        yield from compare_links()
    elif part == "training":
        yield from train_over_links()
    else:
        data = open_data(arguments.data)
        ee, transform = fitted(data, arguments.weights, arguments.train)
        test = some_images(data, "test", arguments.test)
        if part == "accuracy":
            yield from accuracies(ee, *as_tensors(test, transform))
        else:
            yield from latencies(ee, transform, test[: arguments.images])


def main() -> None:
    """Run the benchmark, or a part of it, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="Caltech-101: train and test")
    parser.add_argument("--weights", type=Path, required=True, help=f"{NETWORK}.safetensors")
    parser.add_argument("--train", type=int, default=1200, help="images to fit to")
    parser.add_argument("--images", type=int, default=12, help="images answered one at a time")
    parser.add_argument("--test", type=int, default=200, help="images of accuracies")
    parser.add_argument("--part", choices=PARTS, help="measure this again, and keep the others")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for part in [arguments.part] if arguments.part else PARTS:
        for found in measured(part, arguments):
            rows.append(found)
            print(found, flush=True)
    if arguments.part and RESULT.exists():
        kept = json.loads(RESULT.read_text())["rows"]
        rows += [found for found in kept if found["part"] != arguments.part]
    rows.sort(key=lambda found: PARTS.index(found["part"]))
    details = {"slowness": SLOWNESS, "exits": list(EXITS), "load average": os.getloadavg()}
    result = Result(COMMAND, rows, criteria(rows), {**environment(), **details})
    result.write(RESULT, "Tiers: bytes, latency, accuracy and training time")


if __name__ == "__main__":
    sys.exit(main())
