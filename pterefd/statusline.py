"""The terminal of a running daemon: what to try, the log, and under it one live line of status.

Log lines scroll by above the line. Where the stream is no terminal there is no line.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import TextIO

CLEAR = "\r\x1b[K"
PALE, PLAIN = "\x1b[2m", "\x1b[0m"


@dataclass(frozen=True, slots=True)
class Status:
    """What the line shows: sums over all mms in bytes, and where the first replay stands (None without one)."""

    mms: int
    pgtables_bytes: int
    reclaimable_pt_bytes: int
    replay: tuple[str, int, int | None, str] | None  # state, position, events (None: not known), speed


def text(status: Status) -> str:
    """The line, without colours."""
    parts = [
        f"{status.mms} mm" + ("s" if status.mms != 1 else ""),
        f"VmPTE {status.pgtables_bytes >> 10:,} kB",
        f"reclaimable {status.reclaimable_pt_bytes >> 10:,} kB",
    ]
    if status.replay is not None:
        state, position, events, speed = status.replay
        factor = f" at {speed}x" if state == "running" and speed != "max" else ""
        of = "" if events is None else f" of {events:,} ({100 * position // events if events else 100} %)"
        parts.append(f"{state}{factor}, event {position:,}{of}")
    return " | ".join(parts)


class StatusLine:
    """A stream to log to, that keeps a status line at the bottom of a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._line = ""
        self._live = stream.isatty()

    def show(self, status: Status) -> None:
        """Draw the line anew, where there is a terminal."""
        if not self._live:
            return
        line = text(status)[: max(self._columns() - 1, 10)]
        with self._lock:
            if line != self._line:
                self._line = line
                self._stream.write(f"{CLEAR}{PALE}{line}{PLAIN}")
                self._stream.flush()

    def close(self) -> None:
        """Take the line away."""
        with self._lock:
            if self._line:
                self._line = ""
                self._stream.write(CLEAR)
                self._stream.flush()

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or 80
        except (OSError, ValueError):
            return 80

    # -- as a stream --------------------------------------------------------------------------
    def write(self, text: str) -> int:
        """Write above the line."""
        with self._lock:
            if not self._line:
                return self._stream.write(text)
            self._stream.write(CLEAR + text)
            if text.endswith("\n"):
                self._stream.write(f"{PALE}{self._line}{PLAIN}")
            return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return self._live
