"""`pterefd shell`: the mounted tree on the /proc of a shell, or of one command."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from pterefd.cli import options
from pterefd.errors import PterefdError


@click.command("shell", context_settings={"allow_interspersed_args": False})
@options.mount
@click.argument("argv", nargs=-1, metavar="[-- COMMAND [ARG]...]")
def command(mount: Path | None, argv: tuple[str, ...]) -> int:
    """Start a shell, or run COMMAND, with the mounted tree on /proc: ps, top and pmap 1 just work.

    It has a mount and a pid namespace of its own; nothing changes outside. Without root it takes user namespaces, and a
    mount that this user may read. Ends with COMMAND's own exit code (128+n for a signal), and with 125 where it could
    not be tried.
    """
    from pterefd import shell

    try:
        point = shell.choose_mount(mount, shell.DEFAULT_MOUNT)
        shell.check_simulated(point)
        if not argv:
            argv = (os.environ.get("SHELL") or "/bin/sh",)
            print(f"pterefd: {point} is on /proc in this shell", file=sys.stderr)
        return shell.run(point, argv)
    except PterefdError as error:
        print(f"pterefd: {error}", file=sys.stderr)
        return shell.EXIT_NOT_STARTED
