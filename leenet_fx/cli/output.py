"""What verbs share: the --format option and JSON on stdout."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated, Any

import typer


class Format(StrEnum):
    """How a verb answers."""

    human = "human"
    json = "json"


FormatOption = Annotated[Format, typer.Option("--format", help="How to print the answer.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="The same as --format json.")]


def wants_json(format: Format, as_json: bool) -> bool:
    """Whether the answer is for a program."""
    return as_json or format is Format.json


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(value, indent=2))
