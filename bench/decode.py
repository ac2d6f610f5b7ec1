#!/usr/bin/env python3
"""Time the reading of traces: Parquet into batches, JSON Lines into Parquet. Medians of 5 runs.

    bench/decode.py [--events 1000000] [NAME...]

Prints a line a trace: nanoseconds of wall time an event for Arrow alone (the same columns read and dropped) and for
checked batches, bytes an event in the file, and events imported a second.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import pyarrow.parquet as pq
from make_traces import NAMES, write

from pterefd.source.convert import export_jsonl, import_jsonl
from pterefd.source.trace import BATCH_EVENTS, open_trace

RUNS = 5


def median_seconds(work: Callable[[], object]) -> float:
    """Median wall time of RUNS runs, after one that is not counted."""
    times = []
    for _ in range(RUNS + 1):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])


def read_batches(path: Path) -> int:
    return sum(len(batch) for batch in open_trace(path).batches())


def read_arrow(path: Path) -> int:
    """Only what Arrow does: the columns that faults have."""
    with pq.ParquetFile(path, page_checksum_verification=True, read_dictionary=["op"]) as file:
        columns = ["t", "pid", "op", "addr", "write"]
        return sum(len(rows) for rows in file.iter_batches(BATCH_EVENTS, columns=columns, use_threads=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--events", type=int, default=1_000_000)
    options = parser.parse_args()
    events = options.events
    print(f"{'trace':<18}{'arrow ns':>10}{'batches ns':>12}{'bytes':>8}{'import M/s':>12}")
    with tempfile.TemporaryDirectory() as directory:
        for name in options.names:
            path = Path(directory) / f"{name}.parquet"
            write(path, name, events)
            count = open_trace(path).events
            lines = path.with_suffix(".jsonl")
            export_jsonl(path, lines)
            target = path.with_suffix(".imported")
            arrow = median_seconds(lambda path=path: read_arrow(path))  # type: ignore[misc]
            batches = median_seconds(lambda path=path: read_batches(path))  # type: ignore[misc]
            imported = median_seconds(lambda lines=lines, target=target: import_jsonl(lines, target, force=True))  # type: ignore[misc]
            size = path.stat().st_size / count
            speed = count / imported / 1e6
            print(f"{name:<18}{arrow / count * 1e9:>10.1f}{batches / count * 1e9:>12.1f}{size:>8.2f}{speed:>12.2f}")


if __name__ == "__main__":
    main()
