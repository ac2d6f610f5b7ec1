"""C programs of these tests: built once a run, started, spoken to."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from pterefd.freeing.work import Freed, Request, free
from pterefd.live import procmem
from pterefd.live.scan import start_time
from tests.live.grower_process import Asked

HERE = Path(__file__).resolve().parent
PAGE = procmem.PAGE
SPAN = 1 << procmem.SPAN_SHIFT


@cache
def built(name: str, *more: str) -> Path:
    """NAME.c, compiled. more: flags."""
    directory = Path(mkdtemp(prefix="pterefd-freeing-"))
    directory.chmod(0o755)
    out = directory / name
    flags = ["-O2", "-Wall", "-Wno-unused-result", "-Wno-format-truncation", "-pthread", *more]
    subprocess.run(["gcc", *flags, "-o", out, HERE / f"{name}.c"], check=True)
    return out


def compiled(name: str, source: str) -> Path:
    """A small program of one test."""
    path = built("known").parent / f"{name}.c"
    path.write_text(source)
    subprocess.run(["gcc", "-w", "-o", path.with_suffix(""), path], check=True)
    return path.with_suffix("")


def begun(*words: str | Path) -> Asked:
    """A program that says when it is ready."""
    process = Asked(list(map(str, words)))
    line = process.stdout.readline()
    if line != "ready\n":
        process.kill()
        process.communicate()
    assert line == "ready\n", line
    return process


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
        user: int | None = None,
        program: Path | None = None,
    ) -> None:
        words = [str(program or built("known")), *map(str, (empty, zero, mixed, data)), *(["busy"] if busy else [])]
        self.spans = empty + zero + mixed + data
        self.process = Asked(words, user)
        self.start = int(self.process.stdout.readline(), 16)
        self.pid = self.process.pid
        self.check()  # it has the buffer of its input from then on

    def check(self, *, read: bool = False) -> None:
        """That its memory is what it was; with read, also where it never wrote."""
        assert self.process.ask("r" if read else "d") == "fine"

    def kb(self) -> dict[str, int]:
        """VmPTE, RssAnon and so on."""
        return procmem.read_status(self.pid).kb

    def free(self, kinds: Sequence[str] = ("empty", "zero"), **more: object) -> Freed:
        """Have it freed from, on a machine that may be busy."""
        settings: dict[str, Any] = {"stop": 0.2, "patience": 20.0, **more}
        return free(Request(self.pid, start_time(self.pid), kinds=tuple(kinds), **settings))

    def close(self) -> None:
        """End it; it must have been well."""
        self.process.stdin.close()
        code = self.process.wait(30)
        self.process.stdout.close()
        assert code == 0
