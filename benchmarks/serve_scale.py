"""The simulation of the serving benchmark: checked against the server, then beyond this machine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls
from serve_load import arrivals
from serve_networks import SHARES, open_served, stored
from serve_simulation import Simulation, Stage, System, random_requests

from leenet_fx.serving.served_network import ServedNetwork

SIZES = (1, 2, 4, 8, 16)
REPEATS = 4
CORES = 2
CALIBRATION = 0.2
"""Load whose median latency gives how long a batch is on its way to a replica and back."""

LONGEST_TRIP = 0.5
"""Seconds."""

ITERATIONS = 4

WANTED = (250.0, 1000.0, 4000.0)
UTILISATION = 0.7
LIFETIME = 300.0
SECONDS = 20.0


def stage_times(network: ServedNetwork, images: torch.Tensor) -> dict[str, Any]:
    """Measure the stages of a network on batches of several sizes.

    Args:
        network: it runs in this process.
        images: (n, C, H, W).

    Returns:
        "stages": seconds of a batch and of a sample of each, by least squares; "bytes": of the live
        values of a sample behind each stage but the last.
    """
    samples: list[list[tuple[int, float]]] = [[] for _ in range(network.num_stages)]
    live = [0.0] * (network.num_stages - 1)
    arrays = [image.numpy() for image in images]
    for turn in range(REPEATS):
        for size in SIZES:
            groups: list[Any] = []
            for place in range(0, 2 * max(SIZES), size):
                numbers = list(range(place, place + size))
                groups.append(network.first_group([arrays[n] for n in numbers], numbers))
            for stage in range(network.num_stages):
                groups, left = _in_sizes(network, stage, groups, size), []
                for group in groups:
                    count = len(group[1]) if isinstance(group, tuple) else group.count
                    start = time.process_time()
                    remaining = network.run(stage, "saved", group)[1]
                    if turn:
                        samples[stage].append((count, time.process_time() - start))
                    if remaining is not None:
                        left.append(remaining)
                        live[stage] = _bytes(remaining) / remaining.count
                groups = left
    fitted = []
    for found in samples:
        by_size = {n: np.median([t for size, t in found if size == n]) for n, _ in found}
        counts = np.array(sorted(by_size), float)
        times = np.array([by_size[int(n)] for n in counts])
        # Relative errors count alike at every size.
        matrix = np.stack([np.ones_like(counts), counts], 1) / times[:, None]
        fixed, each = np.linalg.lstsq(matrix, np.ones_like(times), rcond=None)[0]
        fitted.append([max(0.0, float(fixed)), float(each)])
    return {"stages": fitted, "bytes": live}


def _in_sizes(network: ServedNetwork, stage: int, groups: list[Any], size: int) -> list[Any]:
    """Return groups joined to about a size."""
    if stage == 0 or not groups:
        return groups
    joined, part = [], []
    for group in groups:
        part.append(group)
        if sum(member.count for member in part) >= size:
            joined.append(network.join(stage, part))
            part = []
    return joined + ([network.join(stage, part)] if part else [])


def _bytes(group: Any) -> int:
    tensors = [*group.live, group.previous_logits, group.logits_history, group.state]
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))


def simulate(
    name: str, folder: Path, done: Mapping[str, Any], keep: Callable[[str, Any], None]
) -> None:
    """Check the simulation against the measured loads of a network, and go beyond them.

    Args:
        name: of the network.
        folder: of its images.
        done: the finished measurements.
        keep: keeps another.
    """
    data = stored(folder)
    images = data["images"]
    for kind in ("exits", "backbone"):
        rows = {
            float(key.rpartition("/")[2]): row
            for key, row in done.items()
            if key.startswith(f"{name}/{kind}/")
        }
        if CALIBRATION not in rows:
            continue
        key = f"{name}/stages/{kind}"
        if key not in done:
            keep(key, stage_times(open_served(folder, kind), images))
        exits = data["exits"].tolist() if kind == "exits" else [0] * len(images)
        system = calibrated(kind, dict(_kept(done, key)), rows, exits)
        compared = [
            {"load": share, **compare(system, row, exits)}
            for share, row in sorted(rows.items())
            if share != CALIBRATION
        ]
        found = {name: getattr(system, name) for name in ("front", "call", "trip", "background")}
        values = {**found, "replica call": system.stages[0].fixed, "rows": compared}
        keep(f"{name}/simulated/{kind}", values)
        if kind == "exits":
            live = _kept(done, key)["bytes"]
            keep(f"{name}/scale", [*scales(replace(system, client=0.0), live)])


def _kept(done: Mapping[str, Any], key: str) -> Any:
    if key in done:
        return done[key]
    from serve import kept

    return kept()[key]


def calibrated(
    kind: str, times: Mapping[str, Any], rows: Mapping[float, Any], exits: Sequence[int]
) -> System:
    """Return the system on this machine.

    What a batch costs on its way, in the HTTP process and in a replica, is found by least squares
    from the processor time that they used. It depends on the number of batches, which is simulated.

    Args:
        kind: "exits" or "backbone".
        times: from `stage_times`.
        rows: measured loads.
        exits: stage at which each image exits.
    """
    from serve import REPLICAS

    shares = SHARES if kind == "exits" else (1.0,)
    replicas = [int(n) for n in REPLICAS[kind].split(",")]
    reached = [sum(shares[stage:]) for stage in range(len(shares))]
    modelled = sum(r * each for r, (_, each) in zip(reached, times["stages"], strict=True))
    stages = tuple(Stage(n, *t) for n, t in zip(replicas, times["stages"], strict=True))
    sending = [r.get("cpu of sending", 0.0) / r["count"] for r in rows.values()]
    system = System(stages, shares, front=0.0, client=float(np.median(sending)), cores=CORES)
    for _ in range(ITERATIONS):
        batches = {share: compare(system, row, exits)["batches"] for share, row in rows.items()}
        front, replica = (_cpu_use(rows, name, batches) for name in ("front", "replicas"))
        ray, others = (_cpu_use(rows, name) for name in ("ray", "others"))
        # Replicas share caches, and are no faster than their stages alone.
        slower = max(1.0, replica[1] / modelled)
        system = replace(
            system,
            stages=tuple(
                Stage(n, replica[2], each * slower)
                for n, (_, each) in zip(replicas, times["stages"], strict=True)
            ),
            front=front[1],
            call=front[2],
            background=front[0] + replica[0] + ray[0] + others[0],
        )
        system = replace(system, trip=_trip(system, rows[CALIBRATION], exits))
    return system


def _cpu_use(
    rows: Mapping[float, Any], name: str, batches: Mapping[float, int] | None = None
) -> list[float]:
    """Return the processor time of processes for each second, request, and batch if given."""
    used = np.array([row["used"][name] for row in rows.values()])
    columns = [[row["used"]["seconds"], row["answered"]] for row in rows.values()]
    if batches is not None:
        columns = [[*c, batches[share]] for c, share in zip(columns, rows, strict=True)]
    # Relative errors count alike at every load.
    return [float(x) for x in nnls(np.array(columns) / used[:, None], np.ones_like(used))[0]]


def _trip(system: System, light: Mapping[str, Any], exits: Sequence[int]) -> float:
    """Return the seconds of a batch on its way that give the median latency of a light load."""
    low, high = 0.0, LONGEST_TRIP
    for _ in range(12):
        middle = (low + high) / 2
        found = compare(replace(system, trip=middle), light, exits)
        low, high = (middle, high) if found["p50"] < light["p50"] else (low, middle)
    return low


def compare(system: System, row: Mapping[str, Any], exits: Sequence[int]) -> dict[str, Any]:
    """Return simulated figures of a measured load, beside the measured ones.

    Args:
        system: on this machine.
        row: the measured load, whose requests are simulated.
        exits: stage at which each image exits.
    """
    chosen, times = arrivals(row["rate"], row["count"], len(exits))
    requests = [(time, exits[image]) for time, image in zip(times, chosen, strict=True)]
    found = Simulation(system, requests).run()
    measured = {f"measured {name}": row[name] for name in ("p50", "p95", "p99", "throughput")}
    return {"rate": row["rate"], **found, **measured}


def scales(system: System, live: list[float]) -> list[dict[str, Any]]:
    """Return rows of larger systems, in which each process has a core of its own.

    Args:
        system: on this machine.
        live: bytes of a sample behind each stage but the last.
    """
    rows = []
    system = replace(system, cores=None, background=0.0)
    reached = [sum(system.shares[stage:]) for stage in range(len(system.shares))]
    for rate in WANTED:
        stages = tuple(
            replace(stage, replicas=math.ceil(rate * r * (stage.fixed + stage.each) / UTILISATION))
            for stage, r in zip(system.stages, reached, strict=True)
        )
        fronts = math.ceil(rate * (system.front + system.call * sum(reached)) / UTILISATION)
        cases = {
            "one HTTP process": replace(system, stages=stages),
            "enough HTTP processes": replace(system, stages=stages, fronts=fronts),
            f"replicas live {LIFETIME:g} s": replace(
                system, stages=stages, fronts=fronts, lifetime=LIFETIME
            ),
        }
        for text, case in cases.items():
            found = Simulation(case, random_requests(case, rate, int(rate * SECONDS))).run()
            moved = rate * sum(r * b for r, b in zip(reached[1:], live, strict=True))
            rows.append(
                {
                    "case": text,
                    "rate": rate,
                    "replicas": [stage.replicas for stage in stages],
                    "HTTP processes": case.fronts,
                    "live tensors, MB/s": moved / 1e6,
                    **found,
                }
            )
    return rows
