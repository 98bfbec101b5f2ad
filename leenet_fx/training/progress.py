"""Progress bars on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def shows_progress(progress: bool | None) -> bool:
    """Return whether to show progress bars; None shows them on a terminal."""
    return sys.stderr.isatty() if progress is None else progress


@contextmanager
def progress_bars(show: bool) -> Iterator[Callable[[str, str, float], None]]:
    """Yield a function (phase, text, completed share) that updates the bar of a phase.

    Args:
        show: whether to show bars; if not, the function does nothing.
    """
    if not show:
        yield lambda phase, text, completed: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {}

        def update(phase: str, text: str, completed: float) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase, total=1.0)
            bars.update(tasks[phase], description=f"{phase}: {text}", completed=completed)

        yield update
