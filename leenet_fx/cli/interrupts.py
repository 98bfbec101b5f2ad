"""Ctrl-C: what is kept, and how to go on."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import typer

from leenet_fx.errors import StorageError

F = TypeVar("F", bound=Callable[..., None])

INTERRUPTED = 130
"""Exit code of an interrupted command: 128 and the number of SIGINT, as shells have it."""


def exits_on_interrupt(verb: F) -> F:
    """Return a verb that ends with `INTERRUPTED` on Ctrl-C, after a line that says what is kept."""

    @functools.wraps(verb)
    def interruptible(*args: object, **options: object) -> None:
        try:
            verb(*args, **options)
        except KeyboardInterrupt as interrupt:
            kept = " ".join(map(str, interrupt.args)) or "Nothing was written."
            print(f"Interrupted. {kept}", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None

    return interruptible  # type: ignore[return-value]


@contextmanager
def on_interrupt(kept: Callable[[], str]) -> Iterator[None]:
    """Add to a Ctrl-C what is kept and how to go on.

    Args:
        kept: returns the sentence; called if there is a Ctrl-C.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(kept()) from None


def kept_of_fit(out: Path, resume: str) -> str:
    """Return what an interrupted fit has kept.

    Args:
        out: its folder.
        resume: the command that resumes it.
    """
    from leenet_fx.storage.config import CONFIG
    from leenet_fx.training.checkpoint import FILE, load_checkpoint

    try:
        state = load_checkpoint(out)
    except StorageError as error:
        return f"{error}"
    if state is not None and state["history"]:
        last = state["history"][-1]
        done = f"'{out / FILE}' has epoch {last['epoch']} of phase '{last['phase']}'."
    elif (out / CONFIG).exists():
        done = f"'{out}' has the fitted network."
    else:
        done = f"No epoch is complete; '{out}' has the options."
    return f"{done} Resume: {resume}"
