"""Progress on stderr: bars on a terminal, lines in a log.

A display is active within `progress_display`; `track` and `report` do nothing outside of it, so
that any layer may call them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol, TextIO, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

B = TypeVar("B", bound=Sequence[Any])

LINE_SECONDS = 10.0
"""Least time between two lines of a task in a log; it grows with the length of the run."""

LINE_SHARE = 0.05
"""Least time between two lines, relative to the time since the display began."""


class Display(Protocol):
    """Shows the progress of tasks."""

    def update(self, task: str, text: str, completed: float | None) -> None:
        """Show the state of a task.

        Args:
            task: its name.
            text: what is done.
            completed: share of the task in [0, 1]; None if it is unknown.
        """


_display: ContextVar[Display | None] = ContextVar("display", default=None)


class LogDisplay:
    """Prints the beginning and the end of each task, and lines at growing intervals in between.

    Args:
        stream: to print to.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.start = time.monotonic()
        self.printed: dict[str, float] = {}
        self.finished: set[str] = set()

    def update(self, task: str, text: str, completed: float | None) -> None:
        """Print a line if it is due."""
        now = time.monotonic()
        ends = completed is not None and completed >= 1 and task not in self.finished
        interval = max(LINE_SECONDS, LINE_SHARE * (now - self.start))
        if not ends and now - self.printed.get(task, float("-inf")) < interval:
            return
        self.printed[task] = now
        if ends:
            self.finished.add(task)
        seconds = int(now - self.start)
        print(
            f"[{seconds // 60:02}:{seconds % 60:02}] {task}: {text}", file=self.stream, flush=True
        )


class BarDisplay:
    """Shows a bar for each task.

    Args:
        bars: of rich, started.
    """

    def __init__(self, bars: Progress) -> None:
        self.bars = bars
        self.tasks: dict[str, TaskID] = {}

    def update(self, task: str, text: str, completed: float | None) -> None:
        """Move the bar of a task."""
        if task not in self.tasks:
            self.tasks[task] = self.bars.add_task(task, total=None if completed is None else 1.0)
        description = f"{task}: {text}"
        self.bars.update(self.tasks[task], description=description, completed=completed)


def shows_progress(progress: bool | None) -> bool:
    """Return whether to show progress; None shows it within a display and on a terminal."""
    if progress is None:
        return _display.get() is not None or sys.stderr.isatty()
    return progress


@contextmanager
def progress_display(show: bool) -> Iterator[None]:
    """Activate a display, unless one is active; or none, if `show` is False."""
    if show and _display.get() is not None:
        yield
        return
    if show and sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True)) as bars, _active(BarDisplay(bars)):
            yield
        return
    with _active(LogDisplay(sys.stderr) if show else None):
        yield


@contextmanager
def _active(display: Display | None) -> Iterator[None]:
    token = _display.set(display)
    try:
        yield
    finally:
        _display.reset(token)


def report(task: str, text: str, completed: float | None) -> None:
    """Show the state of a task on the active display, if any; see `Display.update`."""
    display = _display.get()
    if display is not None:
        display.update(task, text, completed)


def track(batches: Iterable[B], task: str, total: int | None) -> Iterator[B]:
    """Yield batches, and show how many images were processed.

    Args:
        batches: tuples whose first item has a length, the number of images.
        task: name of what is done with them.
        total: number of all images; None if it is unknown.
    """
    start, done = time.monotonic(), 0
    report(
        task,
        "first batch" if total is None else f"0 of {total} images",
        None if total is None else 0.0,
    )
    for batch in batches:
        yield batch
        if _display.get() is None:
            continue
        done += len(batch[0])
        rate = done / max(time.monotonic() - start, 1e-9)
        if total is None:
            report(task, f"{done} images, {rate:.3g} images/s", None)
        else:
            left = duration(max(total - done, 0) / rate)
            text = f"{done} of {total} images, {rate:.3g} images/s, {left} left"
            report(task, text, done / max(total, 1))


def duration(seconds: float) -> str:
    """Return a duration to two figures or so, such as "45 s", "12 min" or "3.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
