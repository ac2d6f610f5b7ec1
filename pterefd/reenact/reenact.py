"""`reenact`: a trace's operations on a kernel, and what it says held against the model, replayed to the same point."""

from __future__ import annotations

import os
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pterefd.engine.arena import Limits
from pterefd.engine.layout import THP_ZERO_PAGE
from pterefd.live import machine
from pterefd.mm.profile import AUTO, Profile, named
from pterefd.mm.thp import thp_bits
from pterefd.reenact.guest import Guest
from pterefd.reenact.kernel import Kernel, ThisKernel
from pterefd.reenact.operations import Operation, Survey, operations, survey
from pterefd.reenact.run import Done, Reenactment, Row, agents_for
from pterefd.reenact.timing import Timing, time_both
from pterefd.session.check import FIELDS as CHECK_FIELDS
from pterefd.session.check import Checker, CheckOptions, FileResult, Tolerance, profile_for
from pterefd.source.meta import TraceMeta
from pterefd.source.trace import Piece, Trace, open_trace
from pterefd.source.writer import TraceWriter

# RssFile and the counts follow from how large the page cache's folios are; these do not.
FIELDS = frozenset({"VmPTE", "RssAnon", "RssShmem", "VmSwap"})
# Before 6.2 a thread adds what it counted after 64 faults only (mm/memory.c check_sync_rss_stat).
LAGGING = ("RssAnon", "RssFile", "RssShmem", "VmSwap")
LAG_KB = 63 * 4


Progress = Callable[[int, int | None], None]


class Reenacted(Trace):
    """The new trace, whose events are named by those of the trace that they came of."""

    def __init__(self, path: Path, of: Trace, origins: array[int]) -> None:
        self._new = open_trace(path)
        self._of = of
        self._origins = origins
        self.path = of.path
        self.meta = self._new.meta

    @property
    def events(self) -> int:
        return self._new.events

    def pieces(self) -> Iterator[Piece]:
        return self._new.pieces()

    def where(self, index: int) -> str:
        return self._of.where(self._origins[index])


@dataclass(slots=True)
class Result:
    """What a re-enactment gave. check: of the new trace; done: of the run."""

    kernel: str
    check: FileResult
    done: Done
    trace: Trace
    profile: Profile
    options: CheckOptions
    timing: Timing | None = None

    @property
    def fields(self) -> frozenset[str]:
        """Those that were compared."""
        return self.options.fields if self.options.fields is not None else frozenset(CHECK_FIELDS)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        done = self.done
        unlike = [
            {"where": self.where(one.index), "pid": one.pid, "op": one.op, "trace": one.traced, "here": one.here}
            for one in done.unlike
        ]
        return {
            **self.check.as_dict(),
            "kernel": self.kernel,
            "operations": done.operations,
            "left_out": dict(done.left_out),
            "unlike": unlike,
            "recorded": dict(done.recorded),
            "as_recorded": dict(done.as_recorded),
            "time": None if self.timing is None else self.timing.as_dict(),
        }

    def where(self, index: int) -> str:
        """Where an event of the trace stands."""
        return self.trace.where(index)


def header(kernel: Kernel) -> TraceMeta:
    """What a trace made on that kernel says of it. Huge pages are off for the agents."""
    around = kernel.fault_around_bytes
    return TraceMeta(kernel_release=kernel.release, kernel_config=kernel.config, thp="never", fault_around_bytes=around)


def options_for(meta: TraceMeta, options: CheckOptions) -> CheckOptions:
    """The options with what the kernel's counters cannot tell allowed for, unless something is said about them."""
    words = (meta.kernel_release or "").replace("-", ".").split(".")
    version = tuple(int(word) for word in words[:2] if word.isdigit()) or (6, 2)
    if version >= (6, 2):
        return options
    lag = {name: Tolerance(absolute=LAG_KB) for name in LAGGING}
    return replace(options, tolerances=lag | dict(options.tolerances))


def enact(
    kernel: Kernel, found: Survey, steps: Iterable[Operation], writer: TraceWriter, *, every: int = 0, since: int = 0
) -> tuple[Done, array[int]]:
    """Run operations and write what came of them. Returns, beside the run's, the event that each new row came of.

    Missing: the agents did not survive.
    """
    origins = array("q")

    def emit(row: Row, index: int) -> None:
        origins.append(index)
        fields = dict(row)
        writer.add(fields.pop("op"), **fields)

    with agents_for(kernel, found) as (group, slot):
        done = Reenactment(group, found, slot, emit, swap=kernel.swap, every=every, since=since).run(steps)
    return done, origins


def reenact(
    path: Path,
    kernel: Kernel,
    *,
    profile: str = AUTO,
    options: CheckOptions | None = None,
    every: int = 0,
    keep: Path | None = None,
    force: bool = False,
    timed: bool = False,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> Result:
    """Run a trace's operations on a kernel and compare every checkpoint with the model.

    profile: `auto` is the kernel's own.  every: a checkpoint after so many events, too.  keep: where the new trace
    goes.  force: an existing one is replaced.
    TraceError, BadInput: as open_trace and Trace.batches.  Missing: no compiler, or the agents did not survive.
    """
    if profile != AUTO:
        named(profile)
    trace = open_trace(path)
    found = survey(trace)
    meta = replace(header(kernel), command=trace.meta.command)
    options = options_for(meta, options or CheckOptions(FIELDS))
    steps = _told(operations(trace, every), trace, progress) if progress is not None else operations(trace, every)
    with tempfile.TemporaryDirectory(prefix="pterefd-reenact-") as scratch:
        target = keep if keep is not None else Path(scratch) / "trace.parquet"
        with TraceWriter(target, meta, force=force) as writer:
            done, origins = enact(kernel, found, steps, writer, every=every)
        if thp_bits(trace.meta.thp) & ~THP_ZERO_PAGE:
            done.left_out[f"huge pages, which the trace's machine gave ({trace.meta.thp})"] += 1
        new = Reenacted(target, trace, origins)
        rules = profile_for(new, profile)
        check = Checker(new, rules, options, strict=False, limits=limits or Limits()).run()
    timing = time_both(trace, kernel, found, rules) if timed else None
    return Result(kernel.release, check, done, trace, rules, options, timing)


def _told(steps: Iterable[Operation], trace: Trace, progress: Progress) -> Iterator[Operation]:
    """The operations, with a word about each thousandth."""
    for number, step in enumerate(steps):
        if number % 1000 == 0:
            progress(step.event, trace.events)
        yield step


@contextmanager
def kernel_for(image: Path | None) -> Iterator[Kernel]:
    """The kernel of an image, in a guest, or the running one."""
    if image is None:
        machine.check_arch("reenacting")
        yield ThisKernel(max(os.sched_getaffinity(0)))
        return
    with Guest(image) as guest:
        yield guest
