"""The console command: errors, exit codes and the list of verbs.

Results go to stdout, everything else to stderr. Exit codes: 0 success, 1 failure, 2 wrong usage. A
verb imports torch when it runs, so that `--help` is fast.
"""

from __future__ import annotations

import logging
import sys

import typer

from leenet_fx.cli import (
    calibrate,
    compare,
    demo,
    env,
    evaluate,
    fit,
    inspect,
    models,
    report,
    strategies,
    sweep,
)
from leenet_fx.errors import EarlyExitError, UnknownNameError

app = typer.Typer(
    name="leenet-fx",
    help="Early exits for any trained image classifier.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for verb in (
    inspect.inspect,
    fit.fit,
    calibrate.calibrate,
    evaluate.evaluate,
    sweep.sweep,
    compare.compare,
    report.report,
    models.models,
    strategies.strategies,
    demo.demo,
    env.env,
):
    app.command()(verb)


def main() -> None:
    """Run the command line; an `EarlyExitError` becomes one line on stderr."""
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr)
    try:
        app()
    except UnknownNameError as error:
        _fail(error, 2)
    except EarlyExitError as error:
        _fail(error, 1)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(1)


def _fail(error: EarlyExitError, code: int) -> None:
    print(f"Error: {error}", file=sys.stderr)
    sys.exit(code)
