"""Who may send requests, and how many."""

from __future__ import annotations

import hmac
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fastapi import HTTPException, Request

from leenet_fx.serving.settings import Settings

CLIENTS = 10_000
"""Number of clients whose rate is remembered."""

BURST_SECONDS = 2.0
"""Seconds of the rate that a client may use at once."""

RETRY_AFTER = {"Retry-After": "1"}


class RateLimiter:
    """A token bucket for each client (leaky bucket as a meter, ITU-T I.371)."""

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with full buckets.

        Args:
            rate: requests a second; 0 for no limit.
            clock: returns seconds.
        """
        self.rate = rate
        self.capacity = max(1.0, rate * BURST_SECONDS)
        self.clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def accepts(self, client: str) -> bool:
        """Return whether a client may send a request now, and count it if so.

        Args:
            client: its address.
        """
        if not self.rate:
            return True
        now = self.clock()
        tokens, last = self._buckets.pop(client, (self.capacity, now))
        tokens = min(self.capacity, tokens + (now - last) * self.rate)
        accepted = tokens >= 1
        self._buckets[client] = (tokens - accepted, now)
        if len(self._buckets) > CLIENTS:
            self._buckets.popitem(last=False)
        return accepted


class Admission:
    """Bounds the number of requests that are being answered."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.pending = 0

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Count a request while it is answered.

        Raises:
            HTTPException: 503 if there are too many.
        """
        if self.pending >= self.limit:
            raise HTTPException(
                503, f"{self.limit} requests are being answered: try again later.", RETRY_AFTER
            )
        self.pending += 1
        try:
            yield
        finally:
            self.pending -= 1


class Guard:
    """Checks the rate and the key of a request; a dependency of FastAPI."""

    def __init__(self, settings: Settings) -> None:
        self.limiter = RateLimiter(settings.rate)
        self.key = None if settings.api_key is None else settings.api_key.encode()

    async def __call__(self, request: Request) -> None:
        """Raise HTTPException: 429 above the rate, 401 without a key, 403 for a wrong one."""
        client = request.client.host if request.client else ""
        if not self.limiter.accepts(client):
            raise HTTPException(429, "Too many requests of this client.", RETRY_AFTER)
        if self.key is None:
            return
        given = request.headers.get("x-api-key")
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if given is None and scheme.lower() == "bearer":
            given = token.strip()
        if given is None:
            raise HTTPException(
                401,
                "A key is needed: send it as X-API-Key, or as Authorization: Bearer.",
                {"WWW-Authenticate": "Bearer"},
            )
        if not hmac.compare_digest(given.encode(), self.key):
            raise HTTPException(403, "The key is wrong.")
