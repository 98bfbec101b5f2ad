"""Time of messages over a paced socket, beside a link that the kernel throttles.

The second link is the loopback of a network namespace of its own, behind a token bucket
(`tc qdisc … tbf`). Where namespaces are refused, only the paced socket is measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch

from leenet_fx.tiers.link import Link, address_of, connect, listen
from leenet_fx.tiers.messages import Message

SIZES = (20_000, 200_000, 1_000_000)
BANDWIDTHS = (1.0, 10.0, 100.0)
THROTTLE = (
    "ip link set lo mtu 1500 up && "
    "tc qdisc add dev lo root tbf rate {mbit:g}mbit burst 4kb limit 4mb && "
    "exec {python} {script} {mbit:g}"
)


def seconds_of(size: int, mbit: float | None) -> float:
    """Return the seconds until a message of a size has arrived and was confirmed."""
    listening = listen("0")

    def answer() -> None:
        link = Link(listening.accept()[0])
        for _ in range(2):
            link.receive()
            link.send(Message("received"))
        link.close()

    thread = threading.Thread(target=answer)
    thread.start()
    with listening:
        link = connect(address_of(listening), timeout=300, bandwidth=mbit)
        link.send(Message("first"))
        link.receive()
        message = Message("samples", {}, {"x": torch.zeros(size, dtype=torch.uint8)})
        start = time.perf_counter()
        link.send(message)
        link.receive()
        seconds = time.perf_counter() - start
        link.close()
        thread.join()
    return seconds


def throttled_seconds(mbit: float) -> list[float] | None:
    """Return the seconds of each size in a network namespace; None where that is refused."""
    script = THROTTLE.format(mbit=mbit, python=sys.executable, script=__file__)
    found = subprocess.run(
        ["unshare", "--net", "sh", "-c", script], capture_output=True, text=True, check=False
    )
    return json.loads(found.stdout) if found.returncode == 0 else None


def compare_links() -> Iterator[dict[str, Any]]:
    """Yield a row for each bandwidth and size."""
    for mbit in BANDWIDTHS:
        throttled = throttled_seconds(mbit)
        for index, size in enumerate(SIZES):
            yield {
                "part": "link",
                "what": f"{size} bytes",
                "Mbit/s": mbit,
                "ms": round(1e3 * seconds_of(size, mbit), 1),
                "throttled by the kernel, ms": throttled and round(1e3 * throttled[index], 1),
                "size / bandwidth, ms": round(8 * size / (1e3 * mbit), 1),
            }


if __name__ == "__main__":
    print(json.dumps([seconds_of(size, None) for size in SIZES]))
