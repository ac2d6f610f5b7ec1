"""A client on a terminal: what a person types, what appears, and the screen that it makes of it."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import termios
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import pyte

SECONDS = 30


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, *command: str | Path, lines: int = 24, columns: int = 80, **environment: str) -> None:
        self.screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self.screen)
        self.shown = ""
        self._ended = False
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
            os.environ.pop("COLUMNS", None)
            os.environ.update(environment)
            os.execvp(command[0], [str(word) for word in command])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if not self._ended:
            os.kill(self.pid, 9)
            self.end()

    def _read(self) -> None:
        if select.select([self.fd], [], [], 0.1)[0]:
            data = os.read(self.fd, 65536)
            self._stream.feed(data)
            self.shown += data.decode(errors="replace")

    def wait_for(self, text: str) -> None:
        """Until it appears, after what was waited for before."""
        deadline = time.monotonic() + SECONDS
        while text not in self.shown:
            assert time.monotonic() < deadline, self.shown
            self._read()
        self.shown = self.shown.partition(text)[2]

    def wait_for_screen(self, right: Callable[[Sequence[str]], bool]) -> None:
        """Until the screen's lines are right."""
        deadline = time.monotonic() + SECONDS
        while not right(self.screen.display):
            assert time.monotonic() < deadline, "\n".join(self.screen.display)
            self._read()

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def end(self) -> int:
        """Exit code, once it has ended."""
        while True:
            try:
                if not os.read(self.fd, 65536):
                    break
            except OSError:
                break
        os.close(self.fd)
        self._ended = True
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
