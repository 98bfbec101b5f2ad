"""Messages of the library in the terms of the command line."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable

import typer

QUOTED = re.compile(r"('[^'\n]*'|\"[^\"\n]*\")")

PERCENT = ("max_drop", "max_disagreement", "budget")
"""Options in percent, which are fractions as keyword arguments."""

START = r"(?<![\w.=-])"


def option_names(app: typer.Typer) -> set[str]:
    """Return the names of the options of all verbs, as their parameters are named."""
    from typer.main import get_command

    verbs = get_command(app).commands.values()  # type: ignore[attr-defined]
    return {
        str(parameter.name)
        for verb in verbs
        for parameter in verb.params
        if parameter.param_type_name == "option"
    }


def as_options(message: str, names: Iterable[str]) -> str:
    """Replace keyword arguments by options, such as `max_drop=0.01` by `--max-drop 1`.

    Text in quotation marks, such as file names, is left as it is.

    Args:
        message: of an error or a warning.
        names: of the options, with underscores.
    """
    longest = sorted(names, key=len, reverse=True)
    any_name = "|".join(map(re.escape, longest))
    underscored = "|".join(re.escape(name) for name in longest if "_" in name)
    parts = QUOTED.split(message)
    for index in range(0, len(parts), 2):
        part = re.sub(rf"{START}({'|'.join(PERCENT)})=(\d[\d.e-]*\d|\d)", _percentage, parts[index])
        part = re.sub(rf"{START}({any_name})=True\b", _option, part)
        part = re.sub(rf"{START}({any_name})=(?=[\w\[.-]|$)", lambda m: f"{_option(m)} ", part)
        part = re.sub(rf"{START}({any_name})(?= must )", _option, part)
        parts[index] = re.sub(rf"{START}({underscored})\b(?![\w=.(])", _option, part)
    return "".join(parts)


def _option(match: re.Match[str]) -> str:
    return f"--{match[1].replace('_', '-')}"


def _percentage(match: re.Match[str]) -> str:
    return f"{_option(match)} {100 * float(match[2]):g}"


class OptionFormatter(logging.Formatter):
    """Formats log records with options in place of keyword arguments.

    Args:
        format: of the records.
        names: of the options.
    """

    def __init__(self, format: str, names: Iterable[str]) -> None:
        super().__init__(format)
        self.names = sorted(names)

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as text."""
        return as_options(super().format(record), self.names)
