"""`pterefd doctor`: what works on this machine."""

from __future__ import annotations

import click

from pterefd.cli.options import print_json


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def command(as_json: bool) -> int:
    """Say what works here, what does not, and what to do about it."""
    from pterefd import doctor

    rows = doctor.table()
    if as_json:
        print_json({"checks": rows})
    else:
        click.echo(doctor.render(rows), nl=False)
    return doctor.exit_code(rows)
