"""The torture of torture.c for a long time: all its threads in turns, then its memory while the worker is killed.

    python -m tests.freeing.long [--minutes 30] [--seconds 15] [--stop MS] [--seed N]

In the first half each set of threads is freed from again and again. In the second one the freeing worker is killed with
SIGKILL, every other time while the process stands; only memory is held to what it was there, as a call may end with
EINTR then. Ends with `wrong: 0`; exits 1 where anything was wrong.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pterefd.errors import PterefdError
from pterefd.freeing.work import KINDS, STOP_SECONDS, Request, free
from pterefd.live import procmem
from pterefd.live.scan import start_time
from tests.freeing.programs import built

LENGTHENED = ("epoll_timed", "sigtimedwait", "semtimedop", "recv_timed")
CUT_SHORT = ("recv_all", "write")
SETS: tuple[tuple[str, ...], ...] = ((), ("single",), ("memory",), *((word,) for word in (*LENGTHENED, *CUT_SHORT)))
KILLED_SETS: tuple[tuple[str, ...], ...] = (("memory",), ("single",))
_GONE = (FileNotFoundError, ProcessLookupError)
_END_SECONDS = 60.0  # for a program to end, after its time


@dataclass(slots=True)
class Figures:
    """What came of one half. stops: seconds, each.  killed, standing: workers, and those that were killed in a stop."""

    programs: int = 0
    requests: int = 0
    stops: list[float] = field(default_factory=list)
    freed: int = 0
    back: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    killed: int = 0
    standing: int = 0
    ended: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For people."""
        stops = sorted(self.stops)
        labels = ", ".join(f"{label} {count}" for label, count in self.labels.most_common())
        found = [
            f"programs {self.programs}, requests {self.requests}, stops {len(stops)}",
            f"freed {self.freed >> 10} kB of page tables, pieces moved back {self.back}",
            f"put off: {labels or 'nothing'}",
        ]
        if stops:
            middle, tail, most = (1000 * stops[int(share * (len(stops) - 1))] for share in (0.5, 0.99, 1.0))
            found.insert(1, f"a stop: median {middle:.2f} ms, p99 {tail:.2f} ms, most {most:.2f} ms")
        if self.killed:
            found.append(f"workers killed {self.killed}, {self.standing} of them while the process stood")
        return [*found, *self.ended, *(f"wrong: {line}" for line in self.wrong)]


class Killer:
    """Kills the worker that this process's next request is carried out by, at a random moment."""

    def __init__(self, pid: int, figures: Figures, chance: random.Random) -> None:
        self._pid = pid
        self._figures = figures
        self._chance = chance
        self._over = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """No more."""
        self._over = True
        self._thread.join()

    def _run(self) -> None:
        aimed = False
        while not self._over:
            if aimed := not aimed:
                while not self._over and not self._tracer():
                    time.sleep(0.0002)
                time.sleep(self._chance.choice((0.0, 0.001, 0.004)) * self._chance.random())
            else:
                time.sleep(0.02 + 0.08 * self._chance.random())
            self._kill()

    def _tracer(self) -> int:
        with suppress(*_GONE, ValueError):
            for tid in procmem.tasks(self._pid):
                with open(f"/proc/{self._pid}/task/{tid}/status", encoding="ascii", errors="replace") as file:
                    tracer = next((line for line in file if line.startswith("TracerPid:")), "TracerPid: 0")
                if number := int(tracer.split()[1]):
                    return number
        return 0

    def _kill(self) -> None:
        tracer = self._tracer()
        for worker in children(os.getpid()):
            if worker == self._pid:
                continue
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
                self._figures.killed += 1
                self._figures.standing += worker == tracer


def children(pid: int) -> list[int]:
    """Those of its first thread."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def torture(words: Sequence[str], seconds: float, stop: float, figures: Figures, killed: random.Random | None) -> None:
    """One program from its beginning to its end."""
    process = subprocess.Popen([built("torture"), f"{seconds:g}", *words], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        figures.wrong.append(f"{' '.join(words)}: does not begin")
    figures.programs += 1
    began = start_time(process.pid)
    killer = Killer(process.pid, figures, killed) if killed is not None else None
    end = time.monotonic() + seconds - 1
    while time.monotonic() < end and process.poll() is None:
        figures.requests += 1
        try:
            found = free(Request(process.pid, began, kinds=KINDS, stop=stop, patience=0.5))
        except PterefdError as error:
            if killer is None:
                figures.wrong.append(str(error))
            figures.labels["killed"] += 1
            continue
        figures.stops += found.stopped
        figures.freed += found.freed
        figures.back += found.back
        if found.label:
            figures.labels[found.label] += 1
        if found.label == "ended":
            figures.ended.append(f"{' '.join(words) or 'all'}: {found.put_off}")
        # A tracer that was killed may not be quite gone; and a program that has found something wrong ends.
        if found.refused and not (killer and found.label in ("traced", "ptrace")):
            time.sleep(0.2)
            if process.poll() is None:
                figures.wrong.append(found.refused)
    if killer is not None:
        killer.close()
    with suppress(*_GONE):
        time.sleep(0.3)  # a stub ends by itself
        if any(os.sched_getscheduler(tid) != os.SCHED_OTHER for tid in procmem.tasks(process.pid)):
            figures.wrong.append(f"torture {' '.join(words)}: a thread is not scheduled as it was")
    try:
        text = process.communicate(timeout=_END_SECONDS)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        text = process.communicate()[0] + "does not end"
    if process.returncode or not text.startswith("fine"):
        figures.wrong.append(f"torture {' '.join(words)}: {text.strip()} (status {process.returncode})")


def half(
    name: str, sets: Sequence[Sequence[str]], end: float, options: argparse.Namespace, killed: random.Random | None
) -> Figures:
    """All sets in turns, until a time; at least once."""
    figures = Figures()
    number = 0
    while number < len(sets) or time.monotonic() < end:
        torture(sets[number % len(sets)], options.seconds, options.stop / 1000, figures, killed)
        number += 1
        if figures.wrong:
            print(*(f"wrong: {line}" for line in figures.wrong), sep="\n", flush=True)
    print(name, *(f"    {line}" for line in figures.lines()), sep="\n", flush=True)
    return figures


def main() -> None:
    """Print the figures of both halves."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.freeing.long", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each program (%(default)g)")
    parser.add_argument("--stop", type=float, default=1000 * STOP_SECONDS, metavar="MS", help="at a time (%(default)g)")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    began = time.monotonic()
    middle, end = began + 30 * options.minutes, began + 60 * options.minutes
    found = [
        half("freed again and again", SETS, middle, options, None),
        half("the worker killed", KILLED_SETS, end, options, random.Random(options.seed)),
    ]
    wrong = sum(len(figures.wrong) for figures in found)
    print(f"{(time.monotonic() - began) / 60:.1f} minutes, wrong: {wrong}")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
