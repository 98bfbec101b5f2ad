"""Open-loop load, in a process of its own: requests arrive at random times, answered or not.

    python benchmarks/serve_load.py URL FOLDER --rate 20 --count 600 --out FILE

Latencies count from the time at which a request was to be sent, so a load process that is late does
not hide waiting.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import time
from pathlib import Path
from typing import Any

import aiohttp
from safetensors.torch import save
from serve_networks import stored

HEADERS = {"content-type": "application/vnd.safetensors"}
TIMEOUT = aiohttp.ClientTimeout(total=180)


async def send(
    session: aiohttp.ClientSession, url: str, body: bytes, due: float
) -> tuple[int, Any, float]:
    """Return status, answer and latency of a request.

    Args:
        session: of all requests.
        url: of the server.
        body: of the request.
        due: when it was to be sent, by time.perf_counter.
    """
    try:
        async with session.post(f"{url}/predict", data=body, headers=HEADERS) as response:
            answer = await response.json()
            return response.status, answer, time.perf_counter() - due
    except (aiohttp.ClientError, TimeoutError) as error:
        return 0, {"detail": repr(error)}, time.perf_counter() - due


def arrivals(rate: float, count: int, images: int, seed: int = 0) -> tuple[list[int], list[float]]:
    """Return the image and the time of each request of a Poisson process.

    Args:
        rate: requests a second.
        count: number of requests.
        images: number of images.
        seed: of times and images.
    """
    generator = random.Random(seed)
    chosen = [generator.randrange(images) for _ in range(count)]
    gaps = (generator.expovariate(rate) for _ in range(count))
    return chosen, list(itertools.accumulate(gaps))


async def run(url: str, folder: Path, rate: float, count: int, seed: int) -> dict[str, Any]:
    """Send requests at the times of a Poisson process, and compare answers with those of predict.

    Args:
        url: of the server.
        folder: of images and answers.
        rate: requests a second.
        count: number of requests.
        seed: of times and images.
    """
    data = stored(folder)
    bodies = [save({"image": image.contiguous()}) for image in data["images"]]
    labels, exits = data["labels"].tolist(), data["exits"].tolist()
    chosen, times = arrivals(rate, count, len(bodies), seed)
    tasks = []
    # The server closes idle connections after 5 seconds; a request just then would fail.
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=2)
    async with aiohttp.ClientSession(connector=connector, timeout=TIMEOUT) as session:
        used = time.process_time()
        start = time.perf_counter()
        for index, after in zip(chosen, times, strict=True):
            due = start + after
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(asyncio.ensure_future(send(session, url, bodies[index], due)))
        found = await asyncio.gather(*tasks)
        seconds = time.perf_counter() - start
        used = time.process_time() - used
    answered = [
        (i, answer) for i, (status, answer, _) in zip(chosen, found, strict=True) if status == 200
    ]
    statuses: dict[str, int] = {}
    for status, _, _ in found:
        statuses[str(status)] = statuses.get(str(status), 0) + 1
    by_exit: dict[int, int] = {}
    for _, answer in answered:
        by_exit[answer["exit_index"]] = by_exit.get(answer["exit_index"], 0) + 1
    return {
        "rate": rate,
        "count": count,
        "seconds": seconds,
        "statuses": statuses,
        "errors": [answer for status, answer, _ in found if status != 200][:20],
        "latencies": [latency for status, _, latency in found if status == 200],
        "answered": len(answered),
        "same class": sum(answer["class_index"] == labels[i] for i, answer in answered),
        "same exit": sum(answer["exit_index"] == exits[i] for i, answer in answered),
        "by exit": by_exit,
        "cpu": time.process_time(),
        "cpu of sending": used,
    }


def main() -> None:
    """Send the load, and write what came back."""
    parser = argparse.ArgumentParser(description="Open-loop load.")
    parser.add_argument("url")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    found = asyncio.run(run(options.url, options.folder, options.rate, options.count, options.seed))
    options.out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
