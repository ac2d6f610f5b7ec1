"""Operations done by the running kernel, and by a replay of them from Parquet, decoding included: how much longer.

    python -m bench.suite [--runs 5] [--operations N] [--only WORDS]... [--json FILE]

Each case is a list of operations: bench/kernel/ops.c carries it out, and the same list is a trace: with an event for
each (`each`), and as `record` and `import` store it, faults of one page after the other as one (`stored`; the same
where there are none). All start anew in each run and take turns; what prepares a case (mapping, filling) is timed on
the model's side alone. VmPTE grows by the same everywhere, or the bench ends with 1. Ratios are of medians.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bench.machine import begin, save
from pterefd.errors import Missing
from pterefd.host.host import Host
from pterefd.mm.events import OP_FAULT, OP_FORK, OP_MADVISE, OP_MMAP, OP_MPROTECT, OP_MREMAP, OP_MUNMAP
from pterefd.mm.profile import for_kernel
from pterefd.session.feed import Feed
from pterefd.source.pending import op_column
from pterefd.source.record.metadata import metadata
from pterefd.source.trace import open_trace
from pterefd.source.writer import TraceWriter

OPS_C = Path(__file__).parent / "kernel" / "ops.c"
PAGE, SPAN, GIB = 1 << 12, 1 << 21, 1 << 30
BASE = 1 << 44  # begins a PUD page of its own, on both sides
PID, CHILD = 1, 2
CHUNK = 1 << 18  # events that are written at a time

# of ops.c, in its order
(MAP, READ, WRITE, DONTNEED, LAZYFREE, UNMAP, MOVE, READ_ONLY, READ_WRITE, FORK) = range(10)
_TRACE_OP = np.array(
    [OP_MMAP, OP_FAULT, OP_FAULT, OP_MADVISE, OP_MADVISE, OP_MUNMAP, OP_MREMAP, OP_MPROTECT, OP_MPROTECT, OP_FORK],
    dtype=np.uint8,
)

I64 = npt.NDArray[np.int64]


@dataclass
class Operations:
    """Lists of (op, address, length), in order. prime: how many of them prepare the case."""

    parts: list[tuple[int, I64, I64]] = field(default_factory=list)
    prime: int = 0

    def add(self, op: int, at: I64 | int, length: I64 | int = PAGE) -> Operations:
        """One operation for each address. length: of all, or of each; the new address of MOVE."""
        addresses = np.atleast_1d(np.asarray(at, dtype=np.int64))
        self.parts.append((op, addresses, np.broadcast_to(np.asarray(length, dtype=np.int64), addresses.shape)))
        return self

    def primed(self) -> Operations:
        """What there is so far prepares the case."""
        self.prime = sum(len(at) for _, at, _ in self.parts)
        return self

    def columns(self) -> tuple[npt.NDArray[np.uint8], I64, I64]:
        """ops, addresses, arguments of all, in order."""
        ops = np.concatenate([np.full(len(at), op, dtype=np.uint8) for op, at, _ in self.parts])
        return ops, np.concatenate([at for _, at, _ in self.parts]), np.concatenate([arg for *_, arg in self.parts])


def mapped(nbytes: int) -> Operations:
    return Operations().add(MAP, BASE, nbytes).primed()


def filled(nbytes: int) -> Operations:
    return Operations().add(MAP, BASE, nbytes).add(WRITE, BASE, nbytes).primed()


def pages(first: int, count: int) -> I64:
    return BASE + PAGE * np.arange(first, first + count, dtype=np.int64)


def every(step: int, nbytes: int) -> I64:
    return np.arange(BASE, BASE + nbytes, step, dtype=np.int64)


def at_random(count: int, nbytes: int) -> I64:
    return BASE + PAGE * np.random.default_rng(1).integers(0, nbytes // PAGE, count)


# ---- the cases: n is how many operations, more or less ------------------------------------------------


def sequential_reads(n: int) -> Operations:
    return mapped(n * PAGE).add(READ, pages(0, n))


def sequential_writes(n: int) -> Operations:
    return mapped(n * PAGE).add(WRITE, pages(0, n))


def random_reads(n: int) -> Operations:
    return mapped(64 * GIB).add(READ, at_random(n, 64 * GIB))


def random_writes(n: int) -> Operations:
    return mapped(8 * GIB).add(WRITE, at_random(n, 8 * GIB))


def strides(n: int) -> Operations:
    n //= 4  # each takes two pages of the kernel's
    return mapped(n * SPAN).add(WRITE, every(SPAN, n * SPAN))


def dontneed_pages(n: int) -> Operations:
    return filled(n * PAGE).add(DONTNEED, pages(0, n))


def dontneed_64k(n: int) -> Operations:
    nbytes = n // 4 * PAGE * 4
    return filled(nbytes).add(DONTNEED, every(16 * PAGE, nbytes), 16 * PAGE)


def lazyfree(n: int) -> Operations:
    return filled(n * PAGE).add(LAZYFREE, pages(0, n))


def munmap_pieces(n: int) -> Operations:
    nbytes = n * PAGE
    return filled(nbytes).add(UNMAP, every(16 * PAGE, nbytes), 16 * PAGE)


def mremap_spans(n: int) -> Operations:
    count = n // 16
    away = BASE + 512 * GIB + np.random.default_rng(1).permutation(4 * count)[:count].astype(np.int64) * SPAN
    done = Operations().add(MAP, BASE, count * SPAN).add(WRITE, every(SPAN, count * SPAN)).primed()
    return done.add(MOVE, every(SPAN, count * SPAN), away)


def mprotect_flips(n: int) -> Operations:
    nbytes = n // 8 * PAGE
    done = filled(nbytes)
    at = every(16 * PAGE, nbytes)
    for _ in range(4):
        done.add(READ_ONLY, at, 16 * PAGE).add(READ_WRITE, at, 16 * PAGE)
    return done


def fork_and_writes(n: int) -> Operations:
    nbytes = n // 2 * PAGE
    return filled(nbytes).add(FORK, 0).add(WRITE, pages(0, n // 2))


def churn(n: int) -> Operations:
    """As jemalloc has it: extents of 8 MiB, runs of pages used, purged (MADV_DONTNEED) and used again."""
    rng = np.random.default_rng(1)
    extents = 64
    done = Operations().add(MAP, BASE, extents * 4 * SPAN).primed()
    made = 0
    while made < n:
        at = int(rng.integers(0, extents * 2048))
        length = min(int(rng.geometric(1 / 24)), extents * 2048 - at)
        if rng.random() < 0.55:
            done.add(WRITE, pages(at, length))
            made += length
        else:
            done.add(DONTNEED, BASE + at * PAGE, length * PAGE)
            made += 1
    return done


def range_events(n: int) -> Operations:
    """One fault of a range that is filled, MADV_DONTNEED in pieces of 1 MiB, one munmap."""
    nbytes = min(n * PAGE, GIB)
    done = mapped(nbytes).add(WRITE, BASE, nbytes).add(DONTNEED, every(1 << 20, nbytes), 1 << 20)
    return done.add(UNMAP, BASE, nbytes)


def fork_only(n: int) -> Operations:
    return filled(min(n * PAGE, GIB)).add(FORK, 0)


SUITE: dict[str, Callable[[int], Operations]] = {
    "sequential read faults": sequential_reads,
    "sequential write faults": sequential_writes,
    "random read faults, 64 GiB": random_reads,
    "random write faults, 8 GiB": random_writes,
    "writes in strides of 2 MiB": strides,
    "DONTNEED page by page": dontneed_pages,
    "DONTNEED in 64 KiB pieces": dontneed_64k,
    "MADV_FREE page by page": lazyfree,
    "munmap in 64 KiB pieces": munmap_pieces,
    "mremap of 2 MiB spans": mremap_spans,
    "mprotect flips of 64 KiB": mprotect_flips,
    "fork, then writes": fork_and_writes,
    "jemalloc-like churn": churn,
}
RANGES: dict[str, Callable[[int], Operations]] = {"range events over 1 GiB": range_events, "fork of 1 GiB": fork_only}


# ---- both sides ------------------------------------------------------------------------------------


def write_trace(done: Operations, path: Path, *, runs: bool) -> None:
    """The operations as a trace. runs: as record and import store them."""
    ops, at, arg = done.columns()
    meta = metadata(thp="never", command=["bench.suite"], perf_version=None)
    with TraceWriter(path, meta, force=True, runs=runs) as writer:
        writer.add("exec", t=0, pid=PID, comm="suite")
        for begin in range(0, len(ops), CHUNK):
            part = slice(begin, begin + CHUNK)
            writer.add_arrays(_trace_columns(ops[part], at[part], arg[part], begin), len(ops[part]))


def _trace_columns(ops: npt.NDArray[np.uint8], at: I64, arg: I64, first: int) -> dict[str, pa.Array]:
    n = len(ops)

    def where(present: npt.NDArray[np.bool_], values: Any) -> pa.Array:
        return pa.array(np.broadcast_to(values, (n,)), mask=~present)

    def words(present: npt.NDArray[np.bool_], values: npt.NDArray[Any]) -> pa.Array:
        return pa.array(values.astype(object), pa.string(), mask=~present).dictionary_encode()

    fault, is_map, move, is_fork = np.isin(ops, (READ, WRITE)), ops == MAP, ops == MOVE, ops == FORK
    advice, protect = np.isin(ops, (DONTNEED, LAZYFREE)), np.isin(ops, (READ_ONLY, READ_WRITE))
    return {
        "op": op_column(_TRACE_OP[ops]),
        "pid": pa.array(np.full(n, PID, dtype=np.int32)),
        "t": pa.array(1 + 1500 * np.arange(first, first + n, dtype=np.int64)),
        "addr": where(~is_fork, at),
        "len": where(~is_fork & ~(fault & (arg == PAGE)), np.where(move, SPAN, arg)),
        "write": where(fault, ops == WRITE),
        "new_addr": where(move, arg),
        "new_len": where(move, np.int64(SPAN)),
        "child": where(is_fork, np.int64(CHILD)),
        "prot": words(is_map | protect, np.where(ops == READ_ONLY, "r--", "rw-")),
        "flags": words(is_map, np.full(n, "private,anonymous,noreserve")),
        "advice": words(advice, np.where(ops == DONTNEED, "dontneed", "free")),
    }


def kernel_side(program: Path, file: Path, prime: int) -> tuple[float, int]:
    """Nanoseconds, and by how many bytes VmPTE grew."""
    done = subprocess.run([program, file, str(prime)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Missing(done.stderr.strip())
    took, before, after = done.stdout.split()
    return float(took), (int(after) - int(before)) << 10


def model_side(path: Path) -> tuple[float, int]:
    """The same of a replay, from the closed file to the last event; its host is there before, as the process is."""
    meta = open_trace(path).meta
    host = Host(for_kernel(meta.kernel_release, meta.kernel_config))
    gc.collect()
    began = time.perf_counter_ns()
    trace = open_trace(path)
    feed = Feed(trace, host)
    for batch in trace.batches():
        feed.run(batch, 0, len(batch))
    took = time.perf_counter_ns() - began
    return took, host.counters(PID).pgtables_bytes


@dataclass
class Compared:
    """One case. kernel, each, stored: nanoseconds of each run.  grew: VmPTE, bytes, of all runs."""

    name: str
    operations: int
    kernel: list[float]
    each: list[float]
    stored: list[float]
    grew: set[int]

    def ratio(self, side: str) -> float:
        """How many times as long the kernel takes."""
        return statistics.median(self.kernel) / statistics.median(getattr(self, side))

    def as_dict(self) -> dict[str, Any]:
        """For JSON: nanoseconds an operation."""
        numbers: dict[str, Any] = {"name": self.name, "operations": self.operations}
        for side in ("kernel", "each", "stored"):
            times = [time / self.operations for time in getattr(self, side)]
            numbers[f"{side}_ns"] = {"median": statistics.median(times), "min": min(times), "max": max(times)}
        ratios = {"ratio_each": self.ratio("each"), "ratio_stored": self.ratio("stored")}
        return {**numbers, **ratios, "grew": sorted(self.grew)}


def compare(name: str, done: Operations, program: Path, folder: Path, runs: int) -> Compared:
    """Run a case on all sides in turns, after one run that is not counted."""
    file, each, stored = folder / "operations", folder / "each.parquet", folder / "stored.parquet"
    ops, at, arg = done.columns()
    np.stack([ops.astype(np.int64), at, arg], axis=1).tofile(file)
    write_trace(done, each, runs=False)
    write_trace(done, stored, runs=True)
    shorter = open_trace(stored).events < open_trace(each).events
    found = Compared(name, len(ops) - done.prime, [], [], [], set())
    for number in range(runs + 1):
        took = [kernel_side(program, file, done.prime), model_side(each)]
        took.append(model_side(stored) if shorter else took[1])
        if number:
            for times, (ns, _) in zip((found.kernel, found.each, found.stored), took, strict=True):
                times.append(ns)
        found.grew.update(grew for _, grew in took)
    return found


def measure(runs: int, n: int, only: list[str]) -> list[Compared]:
    """All cases, or those whose name has one of these words."""
    found = []
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        program = folder / "ops"
        subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-o", program, OPS_C], check=True)
        for name, make in (SUITE | RANGES).items():
            if not only or any(word in name for word in only):
                found.append(compare(name, make(n), program, folder, runs))
                print(_line(found[-1]), flush=True)
    return found


def geometric_mean(found: list[Compared], side: str) -> float | None:
    """Of the suite's ratios; None where not all of it was run."""
    ratios = [one.ratio(side) for one in found if one.name in SUITE]
    return statistics.geometric_mean(ratios) if len(ratios) == len(SUITE) else None


def unequal(found: list[Compared]) -> list[Compared]:
    """Cases in which VmPTE did not grow by the same on all sides; said, too."""
    wrong = [one for one in found if len(one.grew) > 1]
    for one in wrong:
        print(f"{one.name}: VmPTE did not grow by the same: {', '.join(f'{n >> 10} kB' for n in sorted(one.grew))}")
    return wrong


def _line(one: Compared) -> str:
    numbers = one.as_dict()
    spread = f"{min(one.kernel) / max(one.stored):.0f} .. {max(one.kernel) / min(one.stored):.0f}"
    kernel, each, stored = (numbers[f"{side}_ns"]["median"] for side in ("kernel", "each", "stored"))
    return (
        f"{one.name:<28}{one.operations:>10,}{kernel:>10,.1f}{each:>9,.2f}{stored:>9,.2f}{one.ratio('each'):>9,.1f}"
        f"{one.ratio('stored'):>9,.1f}  {spread:<14}{max(one.grew) >> 10:>9,} kB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--operations", type=int, default=1 << 19, help="of a case, more or less")
    parser.add_argument("--only", action="append", default=[], metavar="WORDS", help="cases whose name has these")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    options = parser.parse_args()
    where = begin()
    print(
        f"{'ns an operation':<28}{'operations':>10}{'kernel':>10}{'each':>9}{'stored':>9}{'ratio':>9}{'stored':>9}"
        f"  {'least, most':<14}{'VmPTE':>12}"
    )
    found = measure(options.runs, options.operations, options.only)
    means = {side: geometric_mean(found, side) for side in ("each", "stored")}
    if means["each"] is not None:
        print(f"geometric mean of the suite: {means['each']:.1f} times, as stored {means['stored']:.1f}")
    save(options.json, where, rows=[one.as_dict() for one in found], means=means)
    sys.exit(bool(unequal(found)))


if __name__ == "__main__":
    main()
