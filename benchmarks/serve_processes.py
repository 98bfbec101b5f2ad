"""Processes of the serving benchmark: server, load, and what they use (Linux)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
START_SECONDS = 400
STAGE = "ray::ServeReplica:leenet-fx-stage-"


class Server:
    """A server that runs.

    Attributes:
        url: its address.
        process: of the HTTP server; Ray's processes descend from it.
    """

    def __init__(self, url: str, process: subprocess.Popen[str]) -> None:
        self.url = url
        self.process = process

    def tree(self) -> list[int]:
        """Return the numbers of its process and of all that descend from it."""
        parents: dict[int, list[int]] = {}
        for path in Path("/proc").glob("[0-9]*"):
            fields = _stat(int(path.name))
            if fields:
                parents.setdefault(int(fields[1]), []).append(int(path.name))
        found, new = [], [self.process.pid]
        while new:
            found += new
            new = [child for number in new for child in parents.get(number, [])]
        return found

    def replicas(self) -> dict[int, int]:
        """Return the stage of each replica by the number of its process."""
        found = {}
        for number in self.tree():
            title = title_of(number)
            if title.startswith(STAGE):
                found[number] = int(title[len(STAGE) :].partition(":")[0])
        return found


def _stat(number: int) -> list[str]:
    """Return the fields of a process behind its name; empty if it has ended."""
    try:
        text = Path(f"/proc/{number}/stat").read_text()
    except OSError:
        return []
    return text.rpartition(")")[2].split()


def title_of(number: int) -> str:
    """Return the title of a process; empty if it has ended."""
    try:
        return Path(f"/proc/{number}/cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        return ""


def memory_of(number: int) -> int:
    """Return the bytes of a process that are no memory shared with others."""
    try:
        resident, shared = Path(f"/proc/{number}/statm").read_text().split()[1:3]
    except OSError:
        return 0
    return (int(resident) - int(shared)) * PAGE


def cpu_of(number: int) -> float:
    """Return the seconds of processor time that a process has used."""
    fields = _stat(number)
    return (int(fields[11]) + int(fields[12])) / TICKS if fields else 0.0


def busy_seconds() -> float:
    """Return the seconds that all cores together were busy since the machine started."""
    fields = [int(x) for x in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / TICKS


@contextmanager
def serving(folder: Path, *arguments: str) -> Iterator[Server]:
    """Start a server, and end it.

    Args:
        folder: of its network.
        arguments: of serve_server.py.
    """
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, str(HERE / "serve_server.py"), str(folder), *arguments],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        assert process.stdout is not None
        try:
            url = process.stdout.readline().strip()
            while url and not url.startswith("http"):
                url = process.stdout.readline().strip()
            if not url:
                errors.seek(0)
                sys.exit(f"The server did not start:\n{errors.read()}")
            yield Server(url, process)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def load(
    server: Server, folder: Path, rate: float, count: int, seed: int = 0
) -> subprocess.Popen[bytes]:
    """Start the load process; `loaded` waits for it.

    Args:
        server: to which requests are sent.
        folder: of images and answers.
        rate: requests a second.
        count: number of requests.
        seed: of times and images.
    """
    out = folder / "load.json"
    out.unlink(missing_ok=True)
    return subprocess.Popen(
        [
            *(sys.executable, str(HERE / "serve_load.py"), server.url, str(folder)),
            *("--rate", str(rate), "--count", str(count), "--seed", str(seed)),
            *("--out", str(out)),
        ]
    )


def loaded(process: subprocess.Popen[bytes], folder: Path) -> dict[str, Any]:
    """Return what came back to a load process."""
    if process.wait():
        sys.exit("The load process failed.")
    found: dict[str, Any] = json.loads((folder / "load.json").read_text())
    return found


class Usage:
    """Processor time of a server from here to `read`."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.start = time.monotonic()
        self.busy = busy_seconds()
        self.before = {number: cpu_of(number) for number in server.tree()}

    def read(self) -> dict[str, float]:
        """Return seconds: that passed, of the HTTP process, the replicas, all others of Ray, and of
        programs that are no part of the benchmark."""
        replicas = self.server.replicas()
        own = {n: cpu_of(n) - self.before.get(n, 0.0) for n in self.server.tree()}
        front = own.pop(self.server.process.pid, 0.0)
        stages = sum(own.pop(number, 0.0) for number in replicas)
        rest = sum(own.values())
        return {
            "seconds": time.monotonic() - self.start,
            "front": front,
            "replicas": stages,
            "ray": rest,
            "others": max(0.0, busy_seconds() - self.busy - front - stages - rest),
        }
