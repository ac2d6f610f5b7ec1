"""C programs of these tests: built once a run, started, spoken to."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from pterefd.freeing.work import Freed, Request, free
from pterefd.live import procmem
from pterefd.live.scan import start_time

HERE = Path(__file__).resolve().parent
PAGE = procmem.PAGE
SPAN = 1 << procmem.SPAN_SHIFT


@cache
def built(name: str, *more: str) -> Path:
    """NAME.c, compiled. more: flags."""
    out = Path(mkdtemp(prefix="pterefd-freeing-")) / name
    flags = ["-O2", "-Wall", "-Wno-unused-result", "-Wno-format-truncation", "-pthread", *more]
    subprocess.run(["gcc", *flags, "-o", out, HERE / f"{name}.c"], check=True)
    return out


class Known:
    """known.c: a process with so many spans of each kind, and a second thread that is busy. program: it, compiled."""

    def __init__(
        self,
        empty: int = 0,
        zero: int = 0,
        mixed: int = 0,
        data: int = 0,
        *,
        busy: bool = False,
        program: Path | None = None,
    ) -> None:
        words = [str(program or built("known")), *map(str, (empty, zero, mixed, data)), *(["busy"] if busy else [])]
        self.spans = empty + zero + mixed + data
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.start = int(self._line(), 16)
        self.pid = self.process.pid
        self.check()  # its input has a buffer then, a page of its heap

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def check(self, *, read: bool = False) -> None:
        """That its memory is what it was; with read, also where it never wrote."""
        assert self.process.stdin is not None
        self.process.stdin.write("r\n" if read else "d\n")
        self.process.stdin.flush()
        assert self._line() == "fine\n"

    def kb(self) -> dict[str, int]:
        """VmPTE, RssAnon and so on."""
        return procmem.read_status(self.pid).kb

    def free(self, kinds: Sequence[str] = ("empty", "zero"), **more: object) -> Freed:
        """Have it freed from."""
        return free(Request(self.pid, start_time(self.pid), kinds=tuple(kinds), **more))  # type: ignore[arg-type]

    def close(self) -> None:
        """End it; it must have been well."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        code = self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()
        assert code == 0
