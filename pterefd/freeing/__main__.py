"""`pterefd-free`: proves that freeing works here, then serves daemons at a socket."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from pterefd.errors import PterefdError
from pterefd.freeing.serve import Server, listen, say
from pterefd.freeing.table import TABLE, table
from pterefd.freeing.work import prove_apart
from pterefd.live import machine
from pterefd.privileged import given_socket

_BY_HAND = "is started by systemd (pterefd-free.socket), or with --socket"


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Serve until a signal. Ends with one line where freeing does not work here, or the table is no good."""
    parser = argparse.ArgumentParser("pterefd-free", description=__doc__)
    parser.add_argument("--table", default=TABLE, metavar="FILE", help="what may be freed from (%(default)s)")
    parser.add_argument("--socket", metavar="PATH", help="where to listen; without it systemd has opened it")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        machine.check_arch("freeing")
        table(options.table)
        prove_apart()
        listener = given_socket(_BY_HAND) if options.socket is None else listen(options.socket)
        say("freeing works here: proved on a process of its own")
        Server(listener, options.table).serve()
    except KeyboardInterrupt:
        sys.exit(0)
    except (PterefdError, OSError) as error:
        say(str(error))
        sys.exit(getattr(error, "exit_code", 1))
    raise AssertionError


if __name__ == "__main__":
    main()
