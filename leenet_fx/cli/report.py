"""leenet-fx report: results as one self-contained HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leenet_fx.cli import options as o
from leenet_fx.cli.config import PAGE


def report(
    folders: Annotated[
        list[Path], typer.Argument(help="Folders with comparison, sweep or evaluation.json.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="The page; default: report.html in the first folder.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="The page's title.")] = None,
    overwrite: o.OverwriteOption = False,
) -> None:
    """Write an HTML page: frontiers, trends over α, exits per class, the network, samples."""
    from leenet_fx.report.page import write_page
    from leenet_fx.report.records import read_records
    from leenet_fx.storage.files import check_free

    path = folders[0] / PAGE if out is None else out
    check_free(path, overwrite)
    records = [record for folder in folders for record in read_records(folder)]
    first = records[0]["network"] or records[0]["comparison"]
    write_page(path, records, title or f"Early exits: {first['model']}")
    typer.echo(f"Wrote {path}", err=True)
