#!/usr/bin/env python3
"""Write synthetic traces for measurements: one process, one mapping, then single-page faults.

    bench/make_traces.py DIR [--events 5000000] [--jsonl] [NAME...]

NAME: sequential_reads, random_reads (over 64 GiB), random_writes (over 8 GiB), mixed (random writes over 8 GiB with a
system call after every 20). With --jsonl each is written as JSON Lines, too.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pterefd.mm.events import OP_FAULT
from pterefd.source.convert import export_jsonl
from pterefd.source.meta import TraceMeta
from pterefd.source.writer import TraceWriter

PAGE = 4096
BASE = 0x7F0000000000 - (64 << 30)
GIB = 1 << 30
PART = 1 << 20

Columns = dict[str, np.ndarray]


def faults(pages: np.ndarray, write: bool) -> Columns:
    """Columns of faults on these pages of the mapping."""
    n = len(pages)
    return {
        "pid": np.ones(n, dtype=np.int32),
        "op": np.full(n, OP_FAULT, dtype=np.uint8),
        "addr": BASE + pages * PAGE,
        "write": np.full(n, write),
    }


def parts(name: str, events: int, rng: np.random.Generator) -> Iterator[Columns]:
    """The faults of a trace, PART at a time."""
    for begin in range(0, events, PART):
        n = min(PART, events - begin)
        if name == "sequential_reads":
            yield faults(np.arange(begin, begin + n), write=False)
        elif name == "random_reads":
            yield faults(rng.integers(0, 64 * GIB // PAGE, n), write=False)
        else:
            yield faults(rng.integers(0, 8 * GIB // PAGE, n), write=True)


def add_mixed(writer: TraceWriter, columns: Columns) -> None:
    """The same faults, after each 20 of them a madvise or munlock of two pages at the last one's address."""
    for at, begin in enumerate(range(0, len(columns["op"]), 20)):
        part = {name: column[begin : begin + 20] for name, column in columns.items()}
        writer.add_columns(part)
        where = {"t": int(part["t"][-1]), "pid": 1, "addr": int(part["addr"][-1]), "len": 2 * PAGE}
        if at % 3:
            writer.add("madvise", **where, advice="dontneed")
        else:
            writer.add("munlock", **where)


def write(path: Path, name: str, events: int) -> None:
    """Write one trace. The clock ticks as that of a fast recording: 1.5 us a fault, give or take."""
    rng = np.random.default_rng(1)
    meta = TraceMeta(arch="x86_64", page_size=PAGE, command=["make_traces", name])
    now = 2
    with TraceWriter(path, meta, force=True) as writer:
        writer.add("exec", t=0, pid=1, comm=name[:15])
        flags = "private,anonymous,noreserve"
        length = max(64 * GIB, events * PAGE)
        writer.add("mmap", t=1, pid=1, addr=BASE, len=length, prot="rw-", flags=flags)
        for columns in parts(name, events, rng):
            n = len(columns["op"])
            columns["t"] = now + np.cumsum(rng.exponential(1500, n)).astype(np.int64)
            now = int(columns["t"][-1])
            if name == "mixed":
                add_mixed(writer, columns)
            else:
                writer.add_columns(columns)


NAMES = ("sequential_reads", "random_reads", "random_writes", "mixed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--events", type=int, default=5_000_000)
    parser.add_argument("--jsonl", action="store_true", help="as JSON Lines, too")
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    for name in options.names:
        path = options.directory / f"{name}.parquet"
        write(path, name, options.events)
        print(f"{path}: {path.stat().st_size / options.events:.2f} bytes an event")
        if options.jsonl:
            export_jsonl(path, path.with_suffix(".jsonl"), force=True)


if __name__ == "__main__":
    main()
