"""--config run.yaml: options read from a file, and written beside every result."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from leenet_fx.errors import InputError, StorageError, UnknownNameError, first_line
from leenet_fx.registry import unknown_name
from leenet_fx.storage.files import read_text, write_atomically
from leenet_fx.storage.upgrade import upgrade_options

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

G = TypeVar("G", bound="DataclassInstance")

FILE = "run.yaml"
PAGE = "report.html"
"""File name of the page of results."""

NO_RESULTS = (FILE, "transform.json", "README.md")
"""Files that are written before there are results, or that may be the user's own."""

NOT_SAVED = ("config", "ctx", "format", "as_json", "overwrite", "resume")


def _read(ctx: typer.Context, path: Path | None) -> Path | None:
    if path is not None:
        known = {str(parameter.name) for parameter in ctx.command.params} - set(NOT_SAVED)
        ctx.default_map = load_config(path, known)
    return path


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        callback=_read,
        is_eager=True,
        help="YAML file of options by name; command-line options take precedence.",
    ),
]


def load_config(path: Path, known: set[str]) -> dict[str, Any]:
    """Return options from a YAML file; names of schema 1 are upgraded.

    Args:
        path: of the file.
        known: names of the verb's options, with underscores.

    Raises:
        InputError: the file is no YAML mapping of plain values; the message names line and key.
        UnknownNameError: a key is no option.
        StorageError: the file cannot be read.
    """
    options: dict[str, Any] = {}
    for line, key, option in _entries(path):
        name = key.replace("-", "_")
        if name not in known:
            available = {option.replace("_", "-") for option in known}
            unknown = unknown_name("option", key, available)
            raise UnknownNameError(f"'{path}', line {line}: {unknown}")
        if option is not None:
            options[name] = option
    return upgrade_options(options)


def read_options(path: Path) -> dict[str, Any]:
    """Return the options in a `run.yaml` by name, whatever verb they are of.

    Raises:
        InputError, StorageError: as `load_config` raises.
    """
    options = {key.replace("-", "_"): value for _, key, value in _entries(path)}
    return upgrade_options({name: value for name, value in options.items() if value is not None})


def _entries(path: Path) -> list[tuple[int, str, Any]]:
    """Return line, key and value of each entry of a YAML mapping of plain values."""
    import yaml

    text = read_text(path)
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise InputError(f"'{path}', line {line}: {error.problem}.") from error
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
        # Values of YAML's own types, such as a date with month 13, raise other errors.
        raise InputError(f"'{path}' is not YAML: {first_line(error)}.") from error
    if root is None:
        return []
    if not isinstance(root, yaml.MappingNode):
        raise InputError(f"'{path}', line 1: expected 'option: value' lines.")
    found: list[tuple[int, str, Any]] = []
    for key, value in root.value:
        line = key.start_mark.line + 1
        name = str(key.value)
        if not isinstance(key, yaml.ScalarNode) or name not in values:
            raise InputError(f"'{path}', line {line}: '{name}': expected the name of an option.")
        if name in [other for _, other, _ in found]:
            raise InputError(f"'{path}', line {line}: '{name}' has two values.")
        option = values[name]
        items = option if isinstance(option, list) else [option]
        if isinstance(value, yaml.MappingNode) or not all(map(_is_plain, items)):
            raise InputError(f"'{path}', line {line}, '{name}': expected a value or a list.")
        found.append((line, name, option))
    return found


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def resolved(ctx: typer.Context) -> dict[str, Any]:
    """Return every option of this call as plain values, as --config reads them."""
    # In the order of declaration, so that the file has the order of --help.
    names = [str(parameter.name) for parameter in ctx.command.params]
    given = {name: ctx.params.get(name) for name in names if name not in NOT_SAVED}
    return {name: _plain(value) for name, value in given.items() if value not in (None, ())}


def is_default(ctx: typer.Context, name: str) -> bool:
    """Return whether neither the command line nor --config gives an option."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "DEFAULT"


def inherited(ctx: typer.Context, group: G, options: Mapping[str, Any]) -> G:
    """Return a group of options with those of another call where this call gives none.

    Args:
        ctx: of this call.
        group: its options.
        options: of the other call, by name.
    """
    names = [field.name for field in fields(group) if field.name in options]
    return replace(group, **{name: options[name] for name in names if is_default(ctx, name)})


def plain_values(group: DataclassInstance) -> dict[str, Any]:
    """Return a group of options as plain values, without those that are not set."""
    values = {field.name: getattr(group, field.name) for field in fields(group)}
    return {name: _plain(value) for name, value in values.items() if value is not None}


def begin_run(folder: Path, options: dict[str, Any], overwrite: bool = False) -> None:
    """Write `run.yaml`, before anything that takes long.

    Args:
        folder: of the results.
        options: of the command.
        overwrite: whether the folder may hold the results of another run.

    Raises:
        StorageError: the folder holds results of another run, or cannot be written to.
    """
    if not overwrite and (folder / FILE).exists():
        # Without results, the run ended before it had any.
        results = sorted(path.name for path in folder.iterdir() if path.name not in NO_RESULTS)
        if results:
            raise StorageError(
                f"'{folder}' holds '{results[0]}' of another run: choose another folder, or pass "
                "--overwrite."
            )
    write_config(folder, options)


def write_config(folder: Path, options: dict[str, Any]) -> None:
    """Write `run.yaml`.

    Raises:
        StorageError: it cannot be written.
    """
    import yaml

    write_atomically(folder / FILE, yaml.safe_dump(options, sort_keys=False, allow_unicode=True))


def resume_command(verb: str, folder: Path) -> str:
    """Return the command that resumes a run from the options in its folder."""
    return f"leenet-fx {verb} --config {shlex.quote(str(folder / FILE))} --resume"


def next_command(verb: str, folder: Path, result: str, model: str | None = None) -> str:
    """Return the command to call next on a folder, as it works in a shell.

    Args:
        verb: of the command.
        folder: its argument.
        result: file in the folder that the command writes.
        model: the backbone, which is named if it is a file, from which no verb reads by itself.
    """
    parts = ["leenet-fx", verb, str(folder)]
    if model is not None and ".py:" in model:
        parts += ["--model", model]
    if (folder / result).exists():
        parts.append("--overwrite")
    return f"Next: {shlex.join(parts)}"


def command_line(verb: str, ctx: typer.Context) -> str:
    """Return the command that reproduces this call: every option that is not the default."""
    parts = ["leenet-fx", verb]
    arguments = {str(p.name) for p in ctx.command.params if p.param_type_name == "argument"}
    for name, value in resolved(ctx).items():
        if is_default(ctx, name):
            continue
        option = [] if name in arguments else [f"--{name.replace('_', '-')}"]
        if isinstance(value, bool):
            parts += option if value else []
            continue
        for item in value if isinstance(value, list) else [value]:
            parts += [*option, shlex.quote(str(item))]
    return " ".join(parts)


def _plain(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value if isinstance(value, (bool, int, float, str)) else str(value)
