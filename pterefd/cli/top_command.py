"""`pterefd top`: who has most page-table memory to give back, on a terminal."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from pterefd.cli import options
from pterefd.cli.options import Quantity
from pterefd.quantities import seconds


@click.command("top")
@click.option("--live", is_flag=True, help="This machine's own processes, instead of those of a mounted tree.")
@options.mount
@click.option(
    "--interval",
    type=Quantity("DURATION", seconds),
    default="2s",
    show_default=True,
    help="How often numbers are taken anew.",
)
@click.option(
    "--budget",
    type=click.FloatRange(0, 100, min_open=True),
    default=5.0,
    show_default=True,
    metavar="PERCENT",
    help="With --live, how much of a core scans may take: the largest VmPTE first, the unchanged less often.",
)
@click.option("-b", "--batch", is_flag=True, help="Print lines instead of drawing a screen.")
@click.option("-n", "--times", type=click.IntRange(min=1), help="With --batch, so many times.  [default: for ever]")
def command(live: bool, mount: Path | None, interval: float, budget: float, batch: bool, times: int | None) -> int:
    """Show processes by the page-table memory that they could give back, refreshing.

    Up and down choose a process, f frees from the chosen one, q ends. One of this machine stands for milliseconds then:
    docs/live.md.
    """
    from pterefd import shell
    from pterefd.live import machine
    from pterefd.top import run
    from pterefd.top.sources import Live, Mounted, Source

    if live and mount is not None:
        raise click.UsageError("--live and --mount exclude each other")
    if times is not None and not batch:
        raise click.UsageError("--times goes with --batch")
    if live:
        machine.check_arch("scanning")
    source: Source = Live(budget / 100) if live else Mounted(shell.choose_mount(mount, shell.DEFAULT_MOUNT))
    if batch:
        run.batch(source, interval, times)
    elif not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.UsageError("no terminal here: --batch prints lines")
    else:
        run.interactive(source, interval)
    return 0
