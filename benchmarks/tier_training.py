"""Training of a network in two processes, over a link of a given bandwidth.

"halves": the device trains its stage by the loss of its exit and sends activations; the cloud
trains the rest by the final loss. "end to end": the cloud sends the gradients of the activations
back, and the device waits for them. ResNet-20 on random images of CIFAR-10's size, cut behind
layer2.0.
"""

from __future__ import annotations

import multiprocessing
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import leenet_fx
from leenet_fx.cli.options import BackboneOptions
from leenet_fx.cli.setup import build
from leenet_fx.data.digits import load_digits
from leenet_fx.demo.run import train_backbone
from leenet_fx.surgery.module import EarlyExitModule
from leenet_fx.tiers.link import Link, address_of, connect, listen
from leenet_fx.tiers.messages import Message

FACTORY = Path(__file__).parents[1] / "examples" / "cifar_resnet.py"
BATCHES, BATCH = 4, 32
BANDWIDTHS = (1.0, 10.0, 100.0)
SEEDS = (0,)
TIMEOUT = 300.0
FORK = multiprocessing.get_context("fork")


def network() -> EarlyExitModule:
    """Return the network with one exit, in training mode."""
    torch.manual_seed(0)
    model = build(f"{FACTORY}:resnet20", BackboneOptions())
    example = torch.zeros(1, 3, 32, 32)
    return leenet_fx.attach(model, ["layer2.0"], example_inputs=example).train()


def optimizer_of(ee: EarlyExitModule, *, cloud: bool) -> torch.optim.Optimizer:
    """Return the optimizer of the stages of a tier."""
    names = ("layer2.1", "layer2.2", "layer3", "linear")
    return torch.optim.SGD(
        [p for name, p in ee.named_parameters() if name.startswith(names) == cloud], lr=0.01
    )


def train_cloud(
    ee: EarlyExitModule, listening: socket.socket, gradients: bool, mbit: float
) -> None:
    """Train the second stage on what arrives; the body of the cloud's process."""
    optimizer = optimizer_of(ee, cloud=True)
    link = Link(listening.accept()[0], bandwidth=mbit, timeout=TIMEOUT)
    link.send(Message("ready"))
    for _ in range(BATCHES):
        tensors = link.receive().tensors
        features = tensors["features"].requires_grad_(gradients)
        logits = ee.stage_plan.runs[1](ee, features)
        F.cross_entropy(logits, tensors["labels"]).backward()
        if gradients:
            assert features.grad is not None
            link.send(Message("gradients", {}, {"features": features.grad}))
        optimizer.step()
        optimizer.zero_grad()
    link.send(Message("done"))


def train_device(ee: EarlyExitModule, link: Link, gradients: bool) -> float:
    """Train the first stage, and send its activations; returns seconds."""
    optimizer = optimizer_of(ee, cloud=False)
    generator = torch.Generator().manual_seed(0)
    link.receive()
    start = time.perf_counter()
    pending: Future[Any] | None = None
    with ThreadPoolExecutor(1) as sender:
        for _ in range(BATCHES):
            images = torch.randn(BATCH, 3, 32, 32, generator=generator)
            labels = torch.randint(10, (BATCH,), generator=generator)
            (features,) = ee.stage_plan.runs[0](ee, images)
            loss = F.cross_entropy(ee.exits[0](features)[0], labels)
            message = Message("features", {}, {"features": features.detach(), "labels": labels})
            if pending is not None:
                pending.result()
            pending = sender.submit(link.send, message)
            if gradients:
                received: Tensor = link.receive(TIMEOUT).tensors["features"]
                torch.autograd.backward([loss, features], [None, received])
            else:
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert pending is not None
        pending.result()
    link.receive(TIMEOUT)
    return time.perf_counter() - start


def train_over_links() -> Iterator[dict[str, Any]]:
    """Yield the rows of training times, and of accuracies after brief training."""
    for mbit in BANDWIDTHS:
        for what in ("halves", "end to end"):
            with listen("0") as listening:
                ee = network()
                arguments = (ee, listening, what == "end to end", mbit)
                process = FORK.Process(target=train_cloud, args=arguments)
                process.start()
                link = connect(address_of(listening), timeout=TIMEOUT, bandwidth=mbit)
                seconds = train_device(ee, link, what == "end to end")
                yield {
                    "part": "training",
                    "what": what,
                    "Mbit/s": mbit,
                    "seconds a batch": round(seconds / BATCHES, 3),
                    "forward bytes a batch": round(link.sent / BATCHES),
                    "backward bytes a batch": round(link.received / BATCHES),
                }
                link.close()
                process.join()
    yield from accuracies()


def accuracies() -> Iterator[dict[str, Any]]:
    """Yield the accuracy on digits after training end to end, and in tiers without gradients."""
    for seed in SEEDS:
        digits = load_digits(seed, views=1)
        model = train_backbone(digits["train"], 1, seed)
        for method in ("branchynet", "hierarchical"):
            generator = torch.Generator().manual_seed(seed)
            options: dict[str, Any] = {"exit_weights": (1, 1, 1)} if method == "branchynet" else {}
            ee = leenet_fx.attach(
                model, "linear", num_exits=2, example_inputs=digits["test"].images[:1], copy=True
            )
            leenet_fx.fit(
                ee,
                digits["train"].loader(64, generator),
                method=leenet_fx.get_method(method, **options),
                epochs=8,
                seed=seed,
                progress=False,
            )
            yield {
                "part": "training",
                "what": f"{method}, digits",
                "seed": seed,
                **_right(ee, digits),
            }


@torch.no_grad()
def _right(ee: nn.Module, digits: Any) -> dict[str, list[float]]:
    images, labels = next(iter(digits["test"].loader(10_000)))
    logits = ee.eval().all_exits(images).logits
    return {
        "accuracy of exits %": [
            round(100 * float((at.argmax(1) == labels).float().mean()), 1) for at in logits
        ]
    }
