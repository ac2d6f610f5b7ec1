"""pterefd-free, running with a table of the tests' own."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pterefd.freeing.client import Freer

FOR_KNOWN = '[[free]]\ndaemon = "root"\ncomm = "known"\nacts_per_minute = 3\n'


class Log:
    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def info(self, _event: str, **fields: Any) -> None:
        self.lines.append(fields)


class Helper:
    """pterefd-free with a table of its own."""

    def __init__(self, directory: Path, text: str, prefix: Sequence[str] = ()) -> None:
        """prefix: of its command."""
        self.table = directory / "free.toml"
        self.table.write_text(text)
        self.path = str(directory / "free.socket")
        command = [*prefix, sys.executable, "-m", "pterefd.freeing", "--socket", self.path, "--table", str(self.table)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self.first = self.process.stderr.readline()
        self.log = Log()
        self.freer = Freer(self.path, self.log)

    def ask(self, line: bytes) -> dict[str, Any]:
        """A line from somebody who need not be a daemon."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(self.path)
            connection.sendall(line)
            with connection.makefile("rb") as answers:
                return dict(json.loads(answers.readline()))

    def end(self) -> tuple[int, str]:
        self.freer.close()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.stderr is not None
        said = self.process.stderr.read()
        self.process.stderr.close()
        return self.process.wait(10), said
