"""Serving on Ray Serve: the backbone beside the network with exits, losses, bad input, soak.

    python benchmarks/serve.py --data PATH --weights PATH [--part NAME…] [--network NAME…]

One machine runs the server, its replicas and the load, which a second process sends at random times
whether or not earlier requests were answered. Exits are forced by thresholds to take 50, 25 and
25 % of the images; their heads are not trained, which changes no time. Finished measurements are
kept in a file, so an interrupted benchmark goes on with the next.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from cifar10 import RESULTS, WORK
from serve_networks import SIZES, missing, open_served, prepare, stored
from serve_processes import Server, Usage, load, loaded, memory_of, serving
from serve_report import report
from serve_simulation import percentile

from leenet_fx.serving.settings import Settings

PARTIAL = WORK / "serve.json"
PARTS = ("kill", "malformed", "throughput", "simulation", "soak")
NETWORKS = ("resnet18", "lite0")
SMALL = "resnet18-small"

RATES = (0.2, 0.4, 0.7, 1.0, 1.2, 1.5, 2.0, 2.6)
"""Loads, relative to what one core would answer without a server."""

COST_IMAGES = 192
LOAD_SECONDS = 20.0
LOAD_COUNT = 100
"""Of a load, the least seconds and the least number of requests."""


REPLICAS = {"exits": "2,1,1", "backbone": "2"}
KILLED = (0, 1, 2, 0, 1)
SOAK_SECONDS = 1200.0


def kept() -> dict[str, Any]:
    """Return the finished measurements."""
    return json.loads(PARTIAL.read_text()) if PARTIAL.exists() else {}


def keep(key: str, values: Any) -> None:
    """Keep a finished measurement, and write the results of all."""
    WORK.mkdir(exist_ok=True)
    done = {**kept(), key: values}
    PARTIAL.write_text(json.dumps(done))
    report(done, RESULTS / "serve.json")
    print(key, json.dumps(values)[:400], file=sys.stderr, flush=True)


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """Return what is kept of a load: percentiles instead of latencies."""
    ordered = sorted(found.pop("latencies"))
    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
    return {
        **found,
        **{name: percentile(ordered, share) for name, share in shares.items()},
        "throughput": found["answered"] / found["seconds"],
    }


def costs(name: str, folder: Path) -> dict[str, float]:
    """Return median times of an image on one core, in batches as the server's and alone."""
    key = f"{name}/costs"
    if key not in kept():
        images = stored(folder)["images"]
        exits: Any = open_served(folder, "exits")
        backbone: Any = open_served(folder, "backbone")
        runs = {"backbone": backbone.model, "exits": exits.ee.predict}
        times: dict[str, list[float]] = {}
        # In turn, because other programs of a machine come and go.
        with torch.inference_mode():
            for batch, text in ((Settings.batch_size, ""), (1, ", alone")):
                for part in images[:COST_IMAGES].split(batch):
                    for kind, run in runs.items():
                        start = time.perf_counter()
                        run(part)
                        seconds = (time.perf_counter() - start) / len(part)
                        times.setdefault(kind + text, []).append(seconds)
        found = {kind: statistics.median(values) for kind, values in times.items()}
        found["relative"] = found["exits"] / found["backbone"]
        keep(key, found)
    return dict(kept()[key])


def throughput(name: str, folder: Path) -> None:
    """Measure latencies at several loads, of the backbone and of the network with exits.

    Both servers run, and the loads of the two alternate, because other programs of a machine come
    and go.
    """
    one = costs(name, folder)["backbone"]
    keys = [(share, kind) for share in RATES for kind in REPLICAS]
    todo = [(s, kind) for s, kind in keys if f"{name}/{kind}/{s:g}" not in kept()]
    if not todo:
        return
    with ExitStack() as stack:
        servers = {}
        for kind, replicas in REPLICAS.items():
            arguments = ("--kind", kind, "--replicas", replicas)
            servers[kind] = stack.enter_context(serving(folder, *arguments))
            loaded(load(servers[kind], folder, 0.2 / one, 30), folder)
        for share, kind in todo:
            rate = share / one
            usage = Usage(servers[kind])
            found = loaded(
                load(servers[kind], folder, rate, max(LOAD_COUNT, int(rate * LOAD_SECONDS))), folder
            )
            used = usage.read()
            used["others"] = max(0.0, used["others"] - found["cpu"])
            values = {**summary(found), "used": used, "load average": os.getloadavg()[0]}
            keep(f"{name}/{kind}/{share:g}", values)


def kill(count: int, rate: float) -> None:
    """Lose a replica five times under load; every accepted request must get predict's answer."""
    folder = prepare(SMALL, Path(), Path())
    with serving(folder, "--replicas", "2", "--queue", "4096") as server:
        process = load(server, folder, rate, count)
        killed = []
        for turn, stage in enumerate(KILLED):
            time.sleep(count / rate / (len(KILLED) + 1))
            alive = [n for n, s in server.replicas().items() if s == stage]
            if process.poll() is None and alive:
                os.kill(alive[0], signal.SIGKILL)
                killed.append({"stage": stage, "turn": turn})
        values = summary(loaded(process, folder))
        keep("kill", {**values, "killed": killed, "load average": os.getloadavg()[0]})


def soak(rate: float, seconds: float) -> None:
    """Watch the memory of all processes of the server at a steady load."""
    folder = prepare(SMALL, Path(), Path())
    with serving(folder, "--replicas", "1") as server:
        process = load(server, folder, rate, int(rate * seconds))
        start, samples = time.monotonic(), []
        while process.poll() is None:
            samples.append({"seconds": time.monotonic() - start, **memory(server)})
            time.sleep(10)
        values = summary(loaded(process, folder))
        keep("soak", {**values, "memory": samples, "load average": os.getloadavg()[0]})


def memory(server: Server) -> dict[str, float]:
    """Return MB of the HTTP process, of the replicas, and of Ray's other processes."""
    replicas = server.replicas()
    own = {number: memory_of(number) / 1e6 for number in server.tree()}
    front = own.pop(server.process.pid, 0.0)
    stages = sum(own.pop(number, 0.0) for number in replicas)
    return {"front": front, "replicas": stages, "ray": sum(own.values())}


def malformed(count: int) -> None:
    """Send damaged content, and watch the memory of the HTTP process."""
    from serve_malformed import send_malformed

    folder = prepare(SMALL, Path(), Path())
    with serving(folder, "--replicas", "1") as server:
        values = send_malformed(server, folder, count)
    keep("malformed", {**values, "load average": os.getloadavg()[0]})


def main() -> None:
    """Measure what is not finished, and write all."""
    parser = argparse.ArgumentParser(description="Serving on Ray Serve.")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--weights", type=Path, default=Path("models"))
    parser.add_argument("--part", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--network", nargs="+", default=list(NETWORKS), choices=[*SIZES])
    parser.add_argument("--count", type=int, default=10_000, help="Requests of the part 'kill'.")
    parser.add_argument("--rate", type=float, default=50.0, help="Of 'kill', requests a second.")
    parser.add_argument("--soak-rate", type=float, default=15.0)
    parser.add_argument("--soak-seconds", type=float, default=SOAK_SECONDS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    WORK.mkdir(exist_ok=True)
    if "kill" in options.part and "kill" not in kept():
        kill(options.count, options.rate)
    if "malformed" in options.part and "malformed" not in kept():
        malformed(1000)
    for name in options.network if {"throughput", "simulation"} & {*options.part} else ():
        if path := missing(name, options.data, options.weights):
            print(f"Skipped {name}: needs '{path}'.", file=sys.stderr)
            continue
        folder = prepare(name, options.data, options.weights)
        if "throughput" in options.part:
            throughput(name, folder)
        if "simulation" in options.part:
            from serve_scale import simulate

            simulate(name, folder, kept(), keep)
    if "soak" in options.part and "soak" not in kept():
        soak(options.soak_rate, options.soak_seconds)
    report(kept(), RESULTS / "serve.json")


if __name__ == "__main__":
    main()
