"""`pterefd export`: Parquet to JSON Lines."""

from __future__ import annotations

from pathlib import Path

import click

from pterefd.cli.options import FILE, force, output, progress


@click.command("export")
@click.argument("file", type=FILE)
@output("-o", "--output", metavar="OUT", stdout=True, what="Where to; standard output without it, or with -.")
@force()
def command(file: Path, output: Path | None, force: bool) -> int:
    """Turn a trace into JSON Lines, one object a line."""
    from pterefd.source.convert import export_jsonl

    with progress("exporting") as tell:
        export_jsonl(file, output, force=force, progress=tell)
    return 0
