"""`pterefd replay`: traces through the model at full speed, no daemon; with --check against their checkpoints."""

from __future__ import annotations

from pathlib import Path

import click

from pterefd.cli.options import FILE
from pterefd.errors import BadInput


@click.command("replay")
@click.argument("files", type=FILE, nargs=-1, required=True, metavar="FILE...")
@click.option("--profile", metavar="P", help="Which kernel's rules; default rfc-2022, with --check auto.")
@click.option("--check", is_flag=True, help="Compare with every checkpoint; exit code 1 where one differs.")
@click.option("--fields", metavar="A,B", help="With --check: compare these fields alone.")
@click.option("--tolerance", "tolerances", multiple=True, metavar="FIELD=16kB|1%", help="With --check; repeatable.")
@click.option("--strict", is_flag=True, help="A fault outside every mapping is an error.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def command(
    files: tuple[Path, ...],
    profile: str | None,
    check: bool,
    fields: str | None,
    tolerances: tuple[str, ...],
    strict: bool,
    as_json: bool,
) -> int:
    """Replay each FILE on a host of its own and show every mm at its end and at its peak."""
    if not check and (fields or tolerances):
        raise click.UsageError("--fields and --tolerance go with --check")
    raise BadInput("not here yet")
