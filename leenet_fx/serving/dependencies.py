"""Optional libraries of the server."""

from __future__ import annotations

import importlib

from leenet_fx.errors import DependencyError

HTTP = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")
RAY = ("ray.serve",)


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
