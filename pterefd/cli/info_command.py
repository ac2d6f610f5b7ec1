"""`pterefd info`: what is in a trace."""

from __future__ import annotations

from pathlib import Path

import click

from pterefd.cli.options import FILE, print_json


@click.command("info")
@click.argument("file", type=FILE)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def command(file: Path, as_json: bool) -> int:
    """Show a trace's processes, events by op, duration, peak VmPTE, metadata and size."""
    from pterefd.source.info import describe, render

    described = describe(file)
    if as_json:
        print_json(described)
    else:
        click.echo(render(described), nl=False)
    return 0
