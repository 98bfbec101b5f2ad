"""Plain-text tables."""

from __future__ import annotations

import math
from io import StringIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

WIDTH = 80
"""Width of a table in columns."""


def new_table(title: str, *columns: str, caption: str | None = None) -> Table:
    """Return an empty table with the first column left-aligned and the others right-aligned.

    Args:
        title: line above the table.
        columns: headers of the columns.
        caption: text below the table.
    """
    from rich import box
    from rich.table import Table

    table = Table(
        title=title,
        caption=caption,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    return table


def render(*tables: object, width: int = WIDTH) -> str:
    """Render Rich renderables as plain text of at most `width` columns."""
    from rich.console import Console

    console = Console(file=StringIO(), width=width, color_system=None, highlight=False)
    for table in tables:
        console.print(table)
    text = console.file
    assert isinstance(text, StringIO)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def quantity(value: float) -> str:
    """Format a count with three significant digits and an SI prefix: 1.81 G, 25.6 M, 512."""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {prefix}"
    return f"{value:.0f}"


def percent(value: float | None, digits: int = 2) -> str:
    """Format a share in percent, without the sign; a dash for None and NaN."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:.{digits}f}"
