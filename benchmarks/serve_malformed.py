"""Damaged images, tensors and forms for a server, and what it makes of them."""

from __future__ import annotations

import io
import json
import random
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save
from serve_networks import stored
from serve_processes import Server, memory_of

WARM_UP = 200
"""Requests after which memory is first read."""


def contents(image: torch.Tensor) -> list[tuple[bytes, str]]:
    """Return well-formed contents and their media types."""
    pixels = Image.effect_noise((64, 64), 50).convert("RGB")
    found = [(save({"image": image.contiguous()}), "application/vnd.safetensors")]
    found.append((json.dumps({"tensor": image.tolist()}).encode(), "application/json"))
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP"):
        file = io.BytesIO()
        pixels.save(file, kind)
        found.append((file.getvalue(), f"image/{kind.lower()}"))
    head = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    form = head + found[2][0] + b"\r\n--b--\r\n"
    found.append((form, "multipart/form-data; boundary=b"))
    return found


def damaged(content: bytes, generator: random.Random) -> bytes:
    """Return content with its start destroyed, some bytes changed, and often cut short."""
    values = bytearray(content)
    for place in [*range(4), *(generator.randrange(len(values)) for _ in range(20))]:
        values[place] = generator.randrange(256)
    return bytes(values[: generator.randrange(len(values))] if generator.random() < 0.5 else values)


def status_of(url: str, content: bytes, kind: str) -> int:
    """Return the status of a request; 0 if there was no answer."""
    request = urllib.request.Request(f"{url}/predict", content, {"content-type": kind})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def send_malformed(server: Server, folder: Path, count: int) -> dict[str, Any]:
    """Send damaged contents, and a good one now and then.

    Args:
        server: that runs.
        folder: of its network.
        count: number of damaged contents after the first `WARM_UP`.
    """
    generator = random.Random(0)
    good = contents(stored(folder)["images"][0])
    statuses: dict[str, int] = {}
    answered = asked = 0
    before = 0
    for turn in range(WARM_UP + count):
        if turn == WARM_UP:
            time.sleep(1)
            before = memory_of(server.process.pid)
        content, kind = good[turn % len(good)]
        status = str(status_of(server.url, damaged(content, generator), kind))
        if turn >= WARM_UP:
            statuses[status] = statuses.get(status, 0) + 1
        if turn % 20 == 0:
            asked += 1
            answered += status_of(server.url, *good[0]) == 200
    time.sleep(1)
    return {
        "count": count,
        "statuses": statuses,
        "good requests": asked,
        "good requests answered": answered,
        "memory before, MB": before / 1e6,
        "memory after, MB": memory_of(server.process.pid) / 1e6,
        "server runs": server.process.poll() is None,
    }
