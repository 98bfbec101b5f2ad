"""Optional libraries of the server."""

from __future__ import annotations

import importlib
import logging
import os
import secrets
import sys

from leenet_fx.errors import DependencyError

HTTP = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")
RAY = ("ray.serve",)

logger = logging.getLogger("leenet_fx")


def require(modules: tuple[str, ...]) -> None:
    """Raise DependencyError if a library is missing, with the command that installs it.

    Args:
        modules: names to import.
    """
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise DependencyError(
                f"The server needs {name.split('.')[0].replace('_', '-')}: pip install "
                "'leenet-fx[serve]'."
            ) from error


def require_ray(address: str | None = None) -> None:
    """Import Ray Serve, so that a cluster of this machine's own answers nobody else.

    Ray's ports are open to the network, and what arrives there is unpickled. Ray reads whether it
    needs a token when it is imported, and it reports its use to its makers unless told otherwise.

    Args:
        address: of a cluster that runs, with the token of its users' own; None if one is to be
            started.

    Raises:
        DependencyError: Ray Serve is missing.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None and "RAY_AUTH_MODE" not in os.environ:
        if "ray" in sys.modules:
            logger.warning(
                "Ray was imported without a token: whoever reaches its ports can run code here. "
                "Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN before."
            )
        else:
            os.environ["RAY_AUTH_MODE"] = "token"
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    require(RAY)
