"""`pterefd calibrate`: what page tables cost on the running kernel."""

from __future__ import annotations

import os
from pathlib import Path

import click

from pterefd import outputs
from pterefd.cli.options import force, output, progress
from pterefd.errors import BadInput


@click.command("calibrate")
@output("-o", "--output", what="Write the costs here (.json), for `compare --costs`.")
@force("FILE")
@click.option(
    "--threads",
    type=click.IntRange(1, 64),
    default=lambda: min(os.cpu_count() or 1, 64),
    metavar="N",
    help="Measure with 1 to N threads.  [default: as many as processors]",
)
@click.option("--runs", type=click.IntRange(1, 1000), default=15, show_default=True, help="Of which to take medians.")
def command(output: Path | None, force: bool, threads: int, runs: int) -> int:
    """Measure what operations on page tables take on this kernel; needs gcc.

    The figures are medians, with the least and the most beside them: a busy machine shows.
    """
    if output is not None:
        outputs.check(output, force=force, ending=".json")
    from pterefd.calibrate.calibrate import calibrate, render

    with progress("measuring", "numbers of threads") as tell:
        costs = calibrate(threads, runs=runs, progress=tell)
    click.echo(render(costs), nl=False)
    if output is not None:
        try:
            output.write_text(costs.model_dump_json(indent=1) + "\n")
        except OSError as error:
            raise BadInput(f"{output}: cannot be written: {error.strerror}") from None
    return 0
