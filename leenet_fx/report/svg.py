"""Matplotlib figures as SVG elements of an HTML page.

Text remains text, so that it can be searched and copied. Widths and font sizes are chosen so that a
figure is readable on a phone, where it shrinks to the width of the screen.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

from leenet_fx.report.plots import pyplot

WIDTH = 4.8
"""Width of a figure in inches."""

FONT = 11.5
"""Font size in points."""

LONGEST_LABEL = 20
"""Largest number of letters of a label."""


@contextmanager
def svg_style(name: str) -> Iterator[Any]:
    """Yield pyplot with the settings of SVG figures.

    Args:
        name: unique name of the figure, which the ids in its SVG are derived from.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    plt = pyplot()
    options = {
        "font.size": FONT,
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "text.parse_math": False,
        "hatch.linewidth": 0.7,
        "axes.edgecolor": "#555555",
    }
    with plt.rc_context(options), warnings.catch_warnings():
        # Matplotlib's font lacks some letters and estimates their widths; the browser has them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield plt


def to_svg(figure: Any, description: str) -> str:
    """Return a figure as an `svg` element without a fixed size, and close the figure.

    Args:
        figure: the figure.
        description: text for screen readers.
    """
    buffer = io.StringIO()
    figure.savefig(
        buffer,
        format="svg",
        transparent=True,
        metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")),
    )
    pyplot().close(figure)
    text = buffer.getvalue()
    opening, content = text[text.index("<svg") :].split(">", 1)
    view_box = re.search(r'viewBox="[^"]*"', opening)
    assert view_box is not None
    # The ids of groups repeat in every figure, and nothing refers to them.
    content = re.sub(r'<g id="[^"]*"', "<g", content)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'{view_box[0]} role="img" aria-label="{escape(description)}">{content}'
    )


def shorten(name: str, longest: int = LONGEST_LABEL) -> str:
    """Return a name, cut to a number of letters."""
    return name if len(name) <= longest else name[: longest - 1] + "…"
