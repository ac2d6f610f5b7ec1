"""Processes of the tests' own whose page-table memory is known by construction."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import IO

PAGE, MIB = 4096, 1 << 20
SPAN = 2 * MIB


class Asked(subprocess.Popen[str]):
    """A process that is told a line at a time and answers with one."""

    stdin: IO[str]
    stdout: IO[str]

    def __init__(self, command: list[str], user: int | None = None) -> None:
        super().__init__(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, user=user)

    def ask(self, line: str = "") -> str:
        """Its answer."""
        self.stdin.write(line + "\n")
        self.stdin.flush()
        return self.stdout.readline().rstrip("\n")


class Grower:
    """grower.py, running. arena: an address aligned to 1 GiB, 2 GiB of private anonymous memory, nothing there."""

    def __init__(self) -> None:
        program = str(Path(__file__).with_name("grower.py"))
        self.process = Asked([sys.executable, "-I", program])
        self.pid = self.process.pid
        self.arena = int(self.process.stdout.readline())
        self.do("touch", 0, 0, 1)  # it has what it takes to answer from then on: no fault is its first

    def do(self, word: str, offset: int, *numbers: int) -> None:
        """One line of its commands, at an offset into the arena."""
        assert self.process.ask(" ".join(map(str, (word, self.arena + offset, *numbers)))) == "ok"

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()
