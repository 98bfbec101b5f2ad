"""Limits and access of a server."""

from __future__ import annotations

from dataclasses import dataclass

from leenet_fx.errors import InputError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Names of this machine that only its own programs reach."""


@dataclass(frozen=True)
class Settings:
    """Limits and access of a server.

    Attributes:
        host: address to bind to.
        port: 0 takes a free one.
        api_key: that requests need; None for none.
        batch_size: largest number of samples that a stage runs at once. On a CPU, the values of
            larger batches leave its caches, and each image takes longer.
        max_delay: seconds that a sample may wait for others, over all stages, while the processor
            is free.
        queue: largest number of requests that are being answered; further ones get status 503.
        max_bytes: size of the largest request.
        max_pixels: number of pixels of the largest image.
        rate: requests a second of each client, on average over some seconds; 0 for no limit.
        read_seconds: time in which the body of a request must arrive.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    batch_size: int = 8
    max_delay: float = 0.002
    queue: int = 256
    max_bytes: int = 10_000_000
    max_pixels: int = 25_000_000
    rate: float = 100.0
    read_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name in ("batch_size", "queue", "max_bytes", "max_pixels"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} must be a whole number from 1, got {value!r}.")
        for name in ("max_delay", "rate"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise InputError(f"{name} must be a number from 0, got {value!r}.")
        if not 0 < self.read_seconds < float("inf"):
            raise InputError(
                f"read_seconds must be a number greater than 0, got {self.read_seconds!r}."
            )
        if not 0 <= self.port < 2**16:
            raise InputError(f"port must be a whole number from 0 to 65535, got {self.port!r}.")
        if self.api_key is not None and (not self.api_key or not self.api_key.isascii()):
            raise InputError("api_key must be text of ASCII characters, and not empty.")

    @property
    def is_local(self) -> bool:
        """Whether only programs of this machine reach the server."""
        return self.host in LOOPBACK or self.host.startswith("127.")
