"""How long a process stands while it is freed from: by its threads, by its mappings, and by what there is to free.

    python -m bench.live_free [--runs 10] [--json FILE]

A process with so many threads that sleep, mappings and empty PTE pages, one of these varied at a time. Milliseconds for
which all threads stood, and for which the one that did the work did: medians and the largest, all in one stop.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pterefd.freeing.spans import SPAN
from pterefd.freeing.work import Freed, Request, free
from pterefd.live import procmem, ptrace
from pterefd.live.procmem import PAGE
from pterefd.live.scan import start_time

THREADS, MAPPINGS, SPANS = (1, 10, 100), (100, 1000, 10_000), (16, 256, 4096)
STOP_SECONDS = 0.5  # that one stop takes all


@contextmanager
def process(threads: int, mappings: int, spans: int) -> Iterator[tuple[int, int]]:
    """A child, and a descriptor: it has its empty PTE pages again after each byte that is written there."""
    ours, theirs = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(ours[1])
            _child(threads, mappings, spans, ours[0], theirs[1])
        finally:
            os._exit(1)
    os.close(ours[0])
    os.close(theirs[1])
    try:
        os.read(theirs[0], 1)
        yield pid, ours[1]
    finally:
        os.close(ours[1])
        os.waitpid(pid, 0)
        os.close(theirs[0])


def _child(threads: int, mappings: int, spans: int, told: int, tells: int) -> None:
    ptrace.disable_thp()
    for _ in range(threads - 1):
        threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
    memory = mmap.mmap(-1, (spans + 1) * SPAN, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
        more = max(0, mappings - len(file.readlines())) // 2
    many = mmap.mmap(-1, (2 * more + 1) * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    protect = ctypes.CDLL(None).mprotect
    protect.argtypes = [ctypes.c_ulong, ctypes.c_ulong, ctypes.c_int]
    begin = procmem.address_of(many)
    for number in range(more):
        protect(begin + 2 * number * PAGE, PAGE, mmap.PROT_READ)
    first = -procmem.address_of(memory) % SPAN
    while True:
        for at in range(first, first + spans * SPAN, SPAN):
            memory[at] = 1
            memory.madvise(mmap.MADV_DONTNEED, at, PAGE)
        os.write(tells, b"x")
        if not os.read(told, 1):
            os._exit(0)


def measure(threads: int, mappings: int, spans: int, runs: int) -> dict[str, Any]:
    """One row."""
    found: list[Freed] = []
    labels: list[str] = []
    with process(threads, mappings, spans) as (pid, again):
        for _ in range(runs):
            one = free(Request(pid, start_time(pid), kinds=("empty",), stop=STOP_SECONDS, patience=5.0))
            (labels if one.label else found).append(one.label or one)  # type: ignore[arg-type]
            os.write(again, b"x")
            time.sleep(0.05)
    stood = [1000 * one.longest_stop for one in found]
    held = [1000 * one.longest_held for one in found]
    row: dict[str, Any] = {"threads": threads, "mappings": mappings, "spans": spans, "labels": labels}
    row |= {"stops": max(one.stops for one in found), "freed_kb": found[-1].freed >> 10}
    for name, values in (("stood", stood), ("held", held)):
        row[name], row[f"{name}_most"] = statistics.median(values), max(values)
    return row


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.live_free", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    options = parser.parse_args()
    cases = [(threads, MAPPINGS[0], SPANS[1]) for threads in THREADS]
    cases += [(THREADS[0], mappings, SPANS[1]) for mappings in MAPPINGS[1:]]
    cases += [(THREADS[0], MAPPINGS[0], spans) for spans in SPANS if spans != SPANS[1]]
    print(f"{'threads':>8}{'mappings':>10}{'spans':>8}", end="")
    print(f"{'all stood':>12}{'most':>8}{'one stood':>12}{'most':>8}{'freed':>12}")
    rows = []
    for case in cases:
        rows.append(row := measure(*case, options.runs))
        print(
            f"{row['threads']:>8}{row['mappings']:>10}{row['spans']:>8}{row['stood']:>9.2f} ms{row['stood_most']:>8.2f}"
            f"{row['held']:>9.2f} ms{row['held_most']:>8.2f}{row['freed_kb']:>9} kB  {' '.join(row['labels'])}"
        )
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
