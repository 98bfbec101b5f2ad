"""The console command: errors, exit codes and the list of verbs.

Results go to stdout, everything else to stderr. Exit codes: 0 success, 1 failure, 2 wrong usage,
130 interrupted. A verb imports torch when it runs, so that `--help` is fast.
"""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from leenet_fx.cli import (
    calibrate,
    compare,
    demo,
    env,
    evaluate,
    export,
    fit,
    inspect,
    models,
    report,
    run,
    serve,
    strategies,
    sweep,
    tier,
)
from leenet_fx.cli.interrupts import exits_on_interrupt
from leenet_fx.cli.messages import OptionFormatter, as_options, option_names
from leenet_fx.cost.page_faults import keep_memory
from leenet_fx.errors import EarlyExitError, UnknownNameError

SERVERS = ("serve", "tier")
"""Verbs that run for long, and hand back memory."""

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
    export.export,
    run.run,
    serve.serve,
    tier.tier,
    models.models,
    strategies.strategies,
    demo.demo,
    env.env,
):
    app.command()(exits_on_interrupt(verb))


def _print_version(given: bool) -> None:
    if given:
        from leenet_fx import __version__

        print(f"leenet-fx {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    ctx: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Early exits for any trained image classifier."""
    del version
    if ctx.invoked_subcommand not in SERVERS:
        keep_memory()


def main() -> None:
    """Run the command line; an `EarlyExitError` becomes one line on stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OptionFormatter("%(levelname)s: %(message)s", option_names(app)))
    logging.basicConfig(handlers=[handler])
    try:
        app()
    except UnknownNameError as error:
        _fail(error, 2)
    except EarlyExitError as error:
        _fail(error, 1)


def _fail(error: EarlyExitError, code: int) -> None:
    print(f"Error: {as_options(str(error), option_names(app))}", file=sys.stderr)
    sys.exit(code)
