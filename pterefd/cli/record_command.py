"""`pterefd record`: a real process and all its children, through perf."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from pterefd import quantities
from pterefd.cli.options import Quantity, force, output, progress
from pterefd.errors import BadInput, PterefdError

EXIT_RECORDER = 125  # what env(1) and its like end with when they fail themselves, not the command


@click.command("record", context_settings={"allow_interspersed_args": False})
@output("-o", "--output", what="The trace that is written (.parquet).")
@click.option(
    "--checkpoint-every",
    type=Quantity("duration", quantities.seconds),
    metavar="DURATION",
    help="Between exact checkpoints, for which a process is stopped; one before each exit. DURATION: 200ms, 1s, 2m; a "
    "bare number is seconds.  [default: 200ms; 0: none]",
)
@click.option(
    "--thp",
    type=click.Choice(["keep", "off"]),
    default="off",
    show_default=True,
    help="Huge pages: off for the recorded command, or as the machine has them.",
)
@force("FILE")
@click.option("--anonymize", is_flag=True, help="Leave out names, paths and command lines; rebase addresses.")
@click.option(
    "-p",
    "--pid",
    type=Quantity("pid", quantities.pid),
    metavar="PID",
    help="Record a running process; Ctrl-C detaches.",
)
@click.option("--script", is_flag=True, help="Print shell commands for a machine that has only perf and sh.")
@click.argument("argv", nargs=-1, metavar="[-- COMMAND [ARG]...]")
def command(
    output: Path | None,
    checkpoint_every: float | None,
    thp: str,
    force: bool,
    anonymize: bool,
    pid: int | None,
    script: bool,
    argv: tuple[str, ...],
) -> int:
    """Record a command, or a running process, into a trace.

    Ends with COMMAND's own exit code (128+n for a signal), with 2 where what was asked for cannot be done and COMMAND
    was not started, and with 125 where the recorder itself failed.
    """
    if script:
        from pterefd.source.record.script import script_text

        click.echo(script_text(), nl=False)
        return 0
    if (pid is None) == (not argv):
        raise click.UsageError("give either a command after -- or a running process with -p PID")
    if output is None:
        raise click.UsageError("-o FILE is missing: where is the trace to be written?")
    from pterefd.source.record import recorder

    with progress("recording") as tell:
        options = recorder.Options(
            output=output, checkpoint_every=checkpoint_every, thp=thp, force=force, anonymize=anonymize, progress=tell
        )
        if pid is not None:
            recorder.record_pid(pid, options)
            return 0
        try:
            return recorder.record_command(list(argv), options)
        except BadInput:
            raise
        except PterefdError as error:
            print(f"pterefd: {error}", file=sys.stderr)
            return EXIT_RECORDER
