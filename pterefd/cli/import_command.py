"""`pterefd import`: JSON Lines, or a perf.data, to Parquet."""

from __future__ import annotations

from pathlib import Path

import click

from pterefd.cli.options import FILE, force, output, progress

PERF_MAGIC = b"PERFILE2"


@click.command("import")
@click.argument("file", type=FILE)
@output("-o", "--output", metavar="OUT", required=True, what="The trace that is written (.parquet).")
@click.option("--maps", type=FILE, metavar="FILE", help="For perf.data: the maps that `record --script` saved.")
@force()
def command(file: Path, output: Path, maps: Path | None, force: bool) -> int:
    """Turn JSON Lines, or a recording of perf, into a Parquet trace."""
    if is_perf_data(file):
        from pterefd.source.record.perf_import import import_perf

        with progress("importing") as tell:
            import_perf(file, output, maps=maps, force=force, progress=tell)
        return 0
    if maps is not None:
        raise click.UsageError(f"--maps goes with a perf.data, and {file} is none")
    from pterefd.source.convert import import_jsonl

    with progress("importing") as tell:
        import_jsonl(file, output, force=force, progress=tell)
    return 0


def is_perf_data(file: Path) -> bool:
    """Whether the file begins as perf's own format does; a file that cannot be read is left to its reader's message."""
    try:
        with file.open("rb") as stream:
            return stream.read(len(PERF_MAGIC)) == PERF_MAGIC
    except OSError:
        return False
