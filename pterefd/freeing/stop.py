"""One stop of a process: everything is looked at again, runs are moved away, looked at, and unmapped."""

from __future__ import annotations

import bisect
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pterefd.freeing.cave import Cave, find_cave
from pterefd.freeing.errors import PutOff, Refused
from pterefd.freeing.mover import Lost, Mover
from pterefd.freeing.refuse import check_limits, living, sharers
from pterefd.freeing.spans import eligible, gap, movable, with_data
from pterefd.freeing.stub import STUB_BYTES
from pterefd.freeing.threads import Threads
from pterefd.live import procmem
from pterefd.live.procmem import GIB_SHIFT, USER_END
from pterefd.live.ptrace import shares_mm
from pterefd.live.scan import start_time

_GIB = 1 << GIB_SHIFT
_TABLE_ROOM = 1 << 22  # for the list, whatever its length
HANG_SECONDS = 1.0  # a worker that waits for a CPU could not be ended without one either
# Of a stop: until when all have to stand, all has to be looked at, and moves are begun.
_STOPPING, _LOOKING, _MOVING = 0.5, 0.6, 0.5
_WAIT = 0.2  # of that, for which the stub waits for its tracer
_LOWEST = 1 << 32  # scratch addresses are far from where programs are linked to
_RANGE = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) ", re.MULTILINE)


class Watchdog(Protocol):
    """Told when a process stands and when it goes on, so that somebody can end a stop that takes too long."""

    def stopped(self) -> None:
        """It stands from now on."""

    def going(self) -> None:
        """It goes on."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which kinds of span are to go."""

    empty: bool
    zero: bool
    mixed: bool


@dataclass(slots=True)
class Stop:
    """What one stop did. before, after: VmPTE, bytes.  zero, mixed: spans among those that were moved.

    back: pieces with data that were moved back.  end: of what was looked at, an address.
    stopped: seconds for which all threads stood; held: for which the one that did the work did; work: of these, those
    that went with what there was to walk over and to move.
    """

    before: int = 0
    after: int = 0
    zero: int = 0
    mixed: int = 0
    back: int = 0
    end: int = 0
    stopped: float = 0.0
    held: float = 0.0
    work: float = 0.0

    @property
    def freed(self) -> int:
        """Bytes of page tables."""
        return max(0, self.before - self.after)


class Target:
    """A process that is to be freed from: what is known of it without stopping it. close() it.

    Raises Refused, and ProcessLookupError or FileNotFoundError where it is gone.
    """

    def __init__(self, pid: int, start: int, *, ours: bool = False) -> None:
        """ours: a child of this process, whose filter of system calls is this process's own."""
        self.pid = pid
        self.ours = ours
        self.start = start
        self.tid = living(pid)
        self.memory = os.open(f"/proc/{self.tid}/mem", os.O_RDWR | os.O_CLOEXEC)
        self.pagemap = os.open(f"/proc/{self.tid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        self.maps_file = os.open(f"/proc/{self.tid}/maps", os.O_RDONLY | os.O_CLOEXEC)
        self.refresh()

    def close(self) -> None:
        """Close its descriptors."""
        for fd in (self.memory, self.pagemap, self.maps_file):
            os.close(fd)

    def refresh(self) -> None:
        """Look at it anew. PutOff where it runs another program now."""
        self.last = _last_pid()  # before: who comes while it is looked at is to be noticed later
        self.tgids = sharers(self.pid)
        self.text = self.maps_text()
        self.maps = list(procmem.parse_maps(self.text.decode("utf-8", "surrogateescape").splitlines(keepends=True)))
        if not self.maps:
            if start_time(self.pid) == self.start and procmem.read_maps(self.tid):
                raise PutOff("changed", f"{self.pid}: runs another program now")
            raise ProcessLookupError(self.pid)
        flags = procmem.read_vm_flags(self.tid)
        self.locked = _locked_kb(self.tid)
        self.ranges = eligible(self.maps, flags)
        self._starts = [mapping.start for mapping in self.maps]
        self._lines = self.text.splitlines(keepends=True)
        cave = find_cave(self.memory, self.maps)
        if cave is None:
            if not os.pread(self.pagemap, 8, 0):  # of an mm that is gone, whose memory reads as nothing
                raise ProcessLookupError(self.pid)
            raise Refused("room", f"{self.pid}: no page of its program text has room for the stub")
        self.cave: Cave = cave

    def maps_text(self) -> bytes:
        """/proc/PID/maps"""
        parts = []
        os.lseek(self.maps_file, 0, os.SEEK_SET)
        while part := os.read(self.maps_file, 1 << 16):
            parts.append(part)
        return b"".join(parts)

    def line_of(self, address: int) -> bytes:
        """The line of maps of the mapping that an address of `ranges` lies in."""
        return self._lines[bisect.bisect_right(self._starts, address) - 1]


def _locked_kb(tid: int) -> bytes:
    with open(f"/proc/{tid}/status", "rb") as file:
        return next((line for line in file if line.startswith(b"VmLck:")), b"")


def one_stop(
    target: Target,
    ranges: Sequence[tuple[int, int]],
    wanted: Wanted,
    watchdog: Watchdog,
    *,
    patience: float,
    seconds: float,
    hang: float = HANG_SECONDS,
) -> Stop:
    """Free what can be in ranges, whole spans of `target.ranges` in ascending order, within one window.

    patience: seconds to wait for a moment at which no call would be changed.  seconds: for all threads to stop.
    hang: seconds after which the watchdog ends it; what it makes a thread do ends by itself before that.
    Refused, PutOff: nothing was done; this process has to end then, so that threads that were about to stop go on.
    """
    threads = Threads(target.tgids)
    try:
        return _one_stop(target, ranges, wanted, watchdog, threads, patience, seconds, hang)
    finally:
        threads.close()


def _one_stop(
    target: Target,
    ranges: Sequence[tuple[int, int]],
    wanted: Wanted,
    watchdog: Watchdog,
    threads: Threads,
    patience: float,
    seconds: float,
    hang: float,
) -> Stop:
    low = ranges[0][0] // _GIB * _GIB
    length = -(-(ranges[-1][1] - low) // _GIB) * _GIB
    done = Stop(end=ranges[-1][1])
    scratch = gap(target.maps, length + 2 * _GIB, _GIB, _LOWEST, USER_END - _GIB)
    if scratch is None:
        raise Refused("address space", f"{target.pid}: {length >> 30} GiB of addresses are not free anywhere")
    table = scratch + length + _GIB
    threads.wait_for_a_moment(patience)
    last = _last_pid()
    if last != target.last:  # as nearly always: seen to before the stop, so that less is left in it
        _check_sharers(target)
    watchdog.stopped()
    began = time.monotonic()
    try:
        threads.stop(_STOPPING * seconds)
        threads.check_outside(target.cave.address, STUB_BYTES)
        _check_again(target, ranges, last, (scratch, table + _TABLE_ROOM))
        done.before = _vm_pte(target.tid)
        entered = time.monotonic()
        runs = movable(
            procmem.read_ranges(target.pagemap, ranges),
            ranges,
            empty=wanted.empty,
            zero=wanted.zero,
            mixed=wanted.mixed,
        )
        done.work = time.monotonic() - entered
        if time.monotonic() - began > _LOOKING * seconds:
            raise PutOff(
                "slow", f"{target.pid}: to stop it and to look at it took more than {_LOOKING * seconds * 1000:g} ms"
            )
        if not runs:
            threads.let_go()
            done.stopped = done.held = time.monotonic() - began
            done.after = done.before
            watchdog.going()
            return done
        check_limits(target.tid, len(target.maps), runs, length)
        executor = threads.choose(target.memory, filtered=target.ours)
    except (PutOff, Refused, *procmem.GONE):
        threads.give_up()
        watchdog.going()
        threads.linger()
        raise
    mover = Mover(
        threads,
        executor,
        target.cave,
        memory=target.memory,
        pagemap=target.pagemap,
        low=low,
        length=length,
        scratch=scratch,
        table=table,
        runs=runs,
        wait=_WAIT * hang,
    )
    try:
        mover.enter()
        entered = time.monotonic()
        came, left = mover.move(began + _MOVING * seconds)
        if data := with_data(mover.entries_moved()):
            mover.move_back(data)
        done.work += time.monotonic() - entered
        threads.let_go(but=executor.tid)
        done.stopped = time.monotonic() - began
        mover.finish()
    except (Lost, PutOff, Refused) as error:
        mover.abandon()
        threads.let_go()
        if isinstance(error, Lost):
            raise PutOff("slow", f"{target.pid}: took too long, so that it went on by itself") from None
        raise
    finally:
        watchdog.going()
    done.held = time.monotonic() - began
    done.after = _vm_pte(target.tid)
    if came < len(runs):
        done.end = runs[came].start
    moved = [run for run in runs[:came] if run not in left]
    done.zero, done.mixed = sum(run.zero for run in moved), sum(run.mixed for run in moved)
    done.back = len(data)
    return done


def _check_again(target: Target, ranges: Sequence[tuple[int, int]], last: bytes, room: tuple[int, int]) -> None:
    """That what was looked at before the stop is so still. PutOff."""
    if start_time(target.pid) != target.start:
        raise ProcessLookupError(target.pid)
    if _last_pid() != last:
        _check_sharers(target)
    # exec(2) takes no new pid, and what was opened before it is still of the memory before.
    if not all(shares_mm(target.tid, living(tgid)) for tgid in target.tgids[1:]):
        raise PutOff("changed", f"{target.pid}: a process that shared its memory runs another program now")
    if _locked_kb(target.tid) != target.locked:
        raise PutOff("changed", f"{target.pid}: what is locked has changed")
    text = target.maps_text()
    if text == target.text:
        return
    for start, _ in ranges:
        if target.line_of(start) not in text:
            raise PutOff("changed", f"{target.pid}: its mappings have changed")
    for found in _RANGE.finditer(text):
        if int(found[1], 16) < room[1] and int(found[2], 16) > room[0]:
            raise PutOff("changed", f"{target.pid}: its mappings have changed")


def _check_sharers(target: Target) -> None:
    if sharers(target.pid) != target.tgids:
        raise PutOff("changed", f"{target.pid}: another process shares its memory now")


def _last_pid() -> bytes:
    """The number that was last given to a thread or process here: while it is the same, nobody has come."""
    with open("/proc/loadavg", "rb") as file:
        return file.read().split()[-1]


def _vm_pte(tid: int) -> int:
    return procmem.read_status(tid).kb.get("VmPTE", 0) << 10
