"""The view's loop: numbers every so often, keys in between."""

from __future__ import annotations

import os
import re
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.live import Live as Display

from pterefd.top.screen import HEADER_LINES, History, drawn, plain
from pterefd.top.sources import Snapshot, Source

_UP, _DOWN = ("k", "\x1b[A", "\x1bOA"), ("j", "\x1b[B", "\x1bOB")
_KEY = re.compile("\x1b[\\[O][A-Z]|.", re.DOTALL)
_MOST_IN_BATCH = 1000


def batch(source: Source, interval: float, times: int | None) -> None:
    """Print it so many times, None for ever, as `top -b` does."""
    done = 0
    while True:
        print(plain(source.title, source.snapshot(_MOST_IN_BATCH)), flush=True)
        done += 1
        if done == times:
            return
        time.sleep(interval)


def interactive(source: Source, interval: float) -> None:
    """Show it on the terminal until q, Ctrl-C or the end of the input. Missing where the source goes."""
    console = Console()
    view = _View(source, console)
    with _keys(sys.stdin.fileno()), Display(console=console, screen=True, auto_refresh=False) as display:
        due = time.monotonic()
        while True:
            now = time.monotonic()
            if now >= due:
                view.refresh()
                due = now + interval
            display.update(view.draw(), refresh=True)
            if select.select([sys.stdin], [], [], max(due - time.monotonic(), 0))[0] and not view.keys(_typed()):
                return


def _typed() -> list[str]:
    """The keys that were typed since; none at the end of the input."""
    return _KEY.findall(os.read(sys.stdin.fileno(), 64).decode(errors="replace"))


@contextmanager
def _keys(fd: int) -> Iterator[None]:
    """Keys come one by one, and are not shown."""
    before = termios.tcgetattr(fd)
    tty.setcbreak(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


class _View:
    """What is shown, and which row is chosen: it stays with its process when the order changes."""

    def __init__(self, source: Source, console: Console) -> None:
        self._source = source
        self._console = console
        self._history = History()
        self._snapshot = Snapshot([], 0, 0, 0)
        self._chosen: tuple[int, int] | None = None
        self._message = ""

    def refresh(self) -> None:
        self._snapshot = self._source.snapshot(max(self._console.height - HEADER_LINES, 1))
        self._history.note(self._snapshot.rows)

    def draw(self) -> RenderableType:
        return drawn(self._source.title, self._snapshot, self._history, self._place(), self._message)

    def _place(self) -> int:
        keys = [row.key for row in self._snapshot.rows]
        return keys.index(self._chosen) if self._chosen in keys else 0

    def keys(self, keys: Sequence[str]) -> bool:
        """Act on keys; False for the end."""
        return bool(keys) and all(self._key(key) for key in keys)

    def _key(self, key: str) -> bool:
        rows = self._snapshot.rows
        if key in ("q", "\x03"):
            return False
        if rows and (key in _UP or key in _DOWN):
            place = self._place() + (1 if key in _DOWN else -1)
            self._chosen = rows[min(max(place, 0), len(rows) - 1)].key
        elif rows and key == "f":
            self._message = self._source.free(rows[self._place()])
            self.refresh()
        return True
