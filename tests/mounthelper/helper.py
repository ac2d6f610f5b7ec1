"""A mount helper as systemd runs it: one process a connection, started by systemd-socket-activate."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


PROGRAM = (sys.executable, "-m", "pterefd.mounthelper")


class MountHelper:
    """Listens at `socket` in a directory and goes by `table` there. stop() ends it with what it has started."""

    def __init__(self, directory: Path, table: str, program: Sequence[str | Path] = PROGRAM) -> None:
        self.socket = directory / "socket"
        self.table = directory / "mounts.toml"
        self.table.write_text(table)
        self.log = directory / "helper.log"
        command = ["systemd-socket-activate", "--accept", "--seqpacket", f"--listen={self.socket}"]
        command += [f"--setenv=PYTHONPATH={ROOT}", *map(str, program)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen([*command, f"--table={self.table}"], stderr=log, start_new_session=True)
        self.said("Listening on")
        self.socket.chmod(0o666)

    def connect(self) -> socket.socket:
        """A client of one's own."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.settimeout(30)
        connection.connect(str(self.socket))
        return connection

    def said(self, text: str) -> None:
        """Wait until its log has the text."""
        deadline = time.monotonic() + 30
        while text not in self.log.read_text():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.01)

    def stop(self) -> None:
        os.killpg(self.process.pid, 15)
        self.process.wait()
