"""`pterefd-mount`: serves the one connection that systemd has accepted (Accept=yes), to its end."""

from __future__ import annotations

import argparse
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from pterefd.errors import EXIT_DONE, PterefdError
from pterefd.mounthelper.serve import packet, say, serve
from pterefd.mounthelper.table import TABLE
from pterefd.privileged import given_socket


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Serve and exit, with 0 where all went well; whoever is refused is told why, and so is the log."""
    parser = argparse.ArgumentParser("pterefd-mount", description=__doc__)
    parser.add_argument("--table", default=TABLE, metavar="FILE", help="the mounts that may be asked for (%(default)s)")
    options = parser.parse_args(arguments)
    try:
        with given_socket("is started by systemd, for a connection (pterefd-mount.socket)") as connection:
            # As if the daemon had gone: it may be just then that this is unmounting, which must go on.
            signal.signal(signal.SIGTERM, lambda *_: _end(connection))
            try:
                serve(connection, options.table)
            except PterefdError as refusal:
                connection.send(packet(refused=str(refusal)))
                raise
    except (PterefdError, OSError) as error:
        say(str(error))
        sys.exit(getattr(error, "exit_code", 1))
    sys.exit(EXIT_DONE)


def _end(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RD)


if __name__ == "__main__":
    main()
