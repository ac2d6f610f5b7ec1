"""How long a look at one running process takes: 1 TiB of address space, 1 GiB of it resident.

    python -m bench.scan [--runs 20]

Three layouts of the resident pages: in one piece; every second page, so that each is a run of its own; 64 KiB in every
64 MiB. Beside it, what `pterefd scan PID` takes as a whole, from the shell's point of view. Medians, and the largest.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from pterefd.live.scan import scan

SCRIPT = Path(sys.executable).parent / "pterefd"
VIRT, RESIDENT, PAGE = 1 << 40, 1 << 30, 4096
PR_SET_THP_DISABLE = 41


def one_piece() -> Iterator[tuple[int, int]]:
    yield 0, RESIDENT


def every_second_page() -> Iterator[tuple[int, int]]:
    for page in range(0, 2 * RESIDENT, 2 * PAGE):
        yield page, PAGE


def spread() -> Iterator[tuple[int, int]]:
    for place in range(0, VIRT, 64 << 20):
        yield place, 64 << 10


LAYOUTS: dict[str, Callable[[], Iterator[tuple[int, int]]]] = {
    "in one piece": one_piece,
    "every second page": every_second_page,
    "64 KiB in every 64 MiB": spread,
}


@contextmanager
def process(layout: Callable[[], Iterator[tuple[int, int]]]) -> Iterator[int]:
    """A child with that memory; its pid."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        libc = ctypes.CDLL(None)
        libc.prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *([ctypes.c_int] * 3), ctypes.c_long]
        noreserve = 0x4000
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | noreserve
        memory = libc.mmap(None, VIRT, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
        for offset, length in layout():
            ctypes.memset(memory + offset, 1, length)
        os.write(write_end, b"x")
        time.sleep(600)
        os._exit(0)
    os.read(read_end, 1)
    try:
        yield pid
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        os.close(read_end)
        os.close(write_end)


def milliseconds(work: Callable[[], object], runs: int) -> list[float]:
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - began))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.scan", description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    runs = parser.parse_args().runs
    print(f"{'1 TiB mapped, 1 GiB resident':<32}{'median':>10}{'largest':>10}   target 50 ms")
    for name, layout in LAYOUTS.items():
        with process(layout) as pid:
            scan(pid)
            times = milliseconds(partial(scan, pid), runs)
            print(f"{name:<32}{statistics.median(times):>7.1f} ms{max(times):>7.1f} ms")
            if layout is one_piece:
                whole = milliseconds(partial(subprocess.run, [SCRIPT, "scan", str(pid)], stdout=subprocess.DEVNULL), 5)
    print(f"{'pterefd scan PID, all of it':<32}{statistics.median(whole):>7.0f} ms{max(whole):>7.0f} ms")


if __name__ == "__main__":
    main()
