"""Binds a port and serves an application."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import uvicorn

from leenet_fx.serving.settings import Settings
from leenet_fx.tiers.link import bind

BACKLOG = 1024
"""Connections that wait while requests are answered."""


def listen(settings: Settings) -> socket.socket:
    """Return a socket that listens.

    Raises:
        InputError: the port is in use, or the address is not one of this machine.
    """
    return bind(settings.host, settings.port, backlog=BACKLOG)


def address_of(listening: socket.socket) -> str:
    """Return the URL of a listening socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve_app(
    app: Any,
    listening: socket.socket,
    on_start: Callable[[], None] = lambda: None,
    on_server: Callable[[uvicorn.Server], None] = lambda server: None,
) -> None:
    """Serve an application until the process is interrupted.

    Args:
        app: from `create_app`.
        listening: from `listen`; closed at the end.
        on_start: called when requests are answered.
        on_server: called with the server, whose `should_exit = True` ends it.
    """
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        # Addresses that clients claim would make the limit of their rates void.
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=10,
    )
    server = _Server(config, on_start)
    on_server(server)
    with listening:
        server.run(sockets=[listening])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_start: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_start = on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_start()
