"""A whole request: as many short stops as it takes, in a process of its own that is ended where one takes too long.

Ending it is safe at any moment: the kernel lets the threads go, and what a thread was made to do it ends by itself
(stub.py).
"""

from __future__ import annotations

import ctypes
import gc
import json
import math
import mmap
import os
import resource
import select
import signal
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NoReturn

from pterefd.errors import Missing, NoSuchMm, PterefdError
from pterefd.freeing import refuse
from pterefd.freeing.errors import PutOff, Refused
from pterefd.freeing.pace import Pace, within
from pterefd.freeing.proof import prove
from pterefd.freeing.stop import HANG_SECONDS, Stop, Target, Wanted, Watchdog, one_stop
from pterefd.live import procmem
from pterefd.live.procmem import PAGE
from pterefd.live.scan import NotSeen, TableUse, scan

KINDS = ("empty", "zero", "mixed")
STOP_SECONDS = 0.005
PATIENCE_SECONDS = 1.0
DUTY = 0.1  # of the time a process may stand while it is freed from
_TRIES = 5  # in a row that were put off
_LATER = frozenset({"call", "sleep", "slow", "changed", "rseq", "stub"})  # why it is put off, and tried again
_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 0.002
_told_to_end: list[bool] = []


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be freed. spans: ranges to look in, None for all.  kinds: of KINDS.  most: bytes, None for no limit.

    stop: seconds that a process may stand at a time.  seconds: for all of it.  writers: of refuse.WRITERS that may be
    there.  hang: seconds after which a stop is ended, as it hangs: more on machines that are very slow.
    """

    pid: int
    start_time: int
    spans: tuple[tuple[int, int], ...] | None = None
    kinds: tuple[str, ...] = ("empty", "zero")
    most: int | None = None
    stop: float = STOP_SECONDS
    seconds: float = math.inf
    patience: float = PATIENCE_SECONDS
    writers: tuple[str, ...] = ()
    hang: float = HANG_SECONDS


@dataclass(slots=True)
class Freed:
    """What came of a request. before, after: VmPTE, bytes.  freed, zero, mixed: bytes of page tables, all and by kind.

    stops: how many.  longest_stop: seconds for which all threads stood; longest_held: the one that did the work.
    back: pieces with data that had been moved, and were moved back.
    refused, put_off: why nothing, or not all, was done; label: the same in a word or two.
    """

    pid: int
    before: int = 0
    after: int = 0
    freed: int = 0
    zero: int = 0
    mixed: int = 0
    stops: int = 0
    longest_stop: float = 0.0
    longest_held: float = 0.0
    back: int = 0
    refused: str = ""
    put_off: str = ""
    label: str = ""
    stopped: list[float] = field(default_factory=list)

    @property
    def empty(self) -> int:
        """Bytes of tables that held no entry."""
        return self.freed - self.zero - self.mixed

    def add(self, stop: Stop) -> None:
        """One more stop."""
        self.before = self.before or stop.before
        self.after = stop.after
        self.freed += stop.freed
        self.zero += min(stop.zero * PAGE, stop.freed)
        self.mixed += min(stop.mixed * PAGE, max(0, stop.freed - stop.zero * PAGE))
        self.stops += 1
        self.back += stop.back
        self.longest_stop = max(self.longest_stop, stop.stopped)
        self.longest_held = max(self.longest_held, stop.held)
        self.stopped.append(stop.stopped)


class _Clock:
    """When the process began to stand, 0 while it goes on: seen by the parent.

    As long as it stands, this process does not wait for others to use the CPU.
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, PAGE)

    def stopped(self) -> None:
        """It stands."""
        with suppress(PermissionError):  # without CAP_SYS_NICE, and RLIMIT_RTPRIO
            os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
        self._memory[:8] = struct.pack("<d", time.monotonic())

    def going(self) -> None:
        """It goes on."""
        self._memory[:8] = bytes(8)
        os.sched_setscheduler(0, os.SCHED_OTHER | os.SCHED_RESET_ON_FORK, os.sched_param(0))

    def standing(self) -> float:
        """Seconds for which it has stood."""
        (began,) = struct.unpack("<d", self._memory[:8])
        return time.monotonic() - began if began else 0.0


def free(request: Request) -> Freed:
    """Carry out a request. PterefdError for a fault of its own; what is refused or put off is in the answer."""
    freed = Freed(request.pid)
    at, began = 0, time.monotonic()
    until = began + request.patience
    while True:
        before = freed.stops
        at = _try(request, at, began + request.seconds, freed)
        if freed.stops > before:
            until = time.monotonic() + request.patience
        if freed.label not in _LATER or time.monotonic() > min(until, began + request.seconds):
            return freed
        if freed.label == "stub":
            time.sleep(request.hang / 2)  # each stop begins the wait anew that the thread is in
        if request.most is not None:
            request = replace(request, most=request.most - freed.freed)


def _try(request: Request, at: int, end: float, freed: Freed) -> int:
    """Free what lies behind an address, and add it up. The address behind what was done."""
    clock = _Clock()
    reader, writer = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _child(request, at, end, clock, writer, parent)
    os.close(writer)
    late = False
    parts = []
    with os.fdopen(reader, "rb", buffering=0) as answers:
        while True:
            if select.select([answers], [], [], _POLL_SECONDS)[0]:
                if not (part := answers.read(1 << 16)):
                    break
                parts.append(part)
            elif not late and clock.standing() > request.hang:
                late = True
                os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    freed.refused = freed.put_off = freed.label = ""
    for line in b"".join(parts).splitlines():
        said = json.loads(line)
        if "refused" in said:
            freed.refused, freed.put_off, freed.label = said["refused"], said["put_off"], said["label"]
        else:
            stop = Stop(**said)
            freed.add(stop)
            at = stop.end
    if late:
        freed.put_off, freed.label = f"{request.pid}: a stop took more than {request.hang:g} s and was ended", "ended"
    elif status:
        raise PterefdError(f"{request.pid}: freeing ended by itself, with status {os.waitstatus_to_exitcode(status)}")
    return at


def _child(request: Request, at: int, end: float, clock: _Clock, writer: int, parent: int) -> NoReturn:
    """Serve and end, however it goes: a tracer must not live on. A signal, or the parent's end: after this stop."""
    code = 1
    try:
        for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(sig, lambda *_: _told_to_end.append(True))
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() == parent:
            gc.disable()
            _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # one for each thread
            refused = put_off = label = ""
            try:
                for stop in stops(request, at, end, clock):
                    _say(writer, asdict(stop))
            except Refused as error:
                refused, label = str(error), error.label
            except PutOff as error:
                put_off, label = str(error), error.label
            except NotSeen as error:
                refused, label = str(error), error.reason
            except Missing as error:
                refused, label = str(error), "proof"
            except (NoSuchMm, *procmem.GONE):
                put_off, label = f"{request.pid}: ended meanwhile", "gone"
            except PermissionError as error:
                refused, label = f"{request.pid}: {error.strerror}: needs CAP_SYS_PTRACE, or to be its owner", "rights"
            _say(writer, {"refused": refused, "put_off": put_off, "label": label})
            code = 0
    except BaseException as error:
        with suppress(OSError):
            os.write(2, f"pterefd-free: {type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(code)


def prove_apart(hang: float = HANG_SECONDS) -> None:
    """The proof, in a process of its own: this one is no tracer. PterefdError with the reason where it fails."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            prove(hang)
        except PterefdError as error:
            os.write(writer, str(error).encode())
        except BaseException as error:
            os.write(writer, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        why = answer.read().decode()
    os.waitpid(pid, 0)
    if why:
        raise Missing(why if why.startswith("freeing does not work") else f"freeing does not work here: {why}")


def _say(writer: int, line: dict[str, Any]) -> None:
    os.write(writer, json.dumps(line).encode() + b"\n")


def stops(request: Request, at: int, end: float, watchdog: Watchdog) -> Iterator[Stop]:
    """The stops of a request from an address on, one after another, until a time. Refused, PutOff: no more."""
    refuse.check(request.pid, request.writers)
    target = Target(request.pid, request.start_time)
    _check_sharers(request, target)
    wanted = Wanted(*(kind in request.kinds for kind in KINDS))
    seen = scan(request.pid)
    if seen is None or not _has(seen.use, wanted):
        return  # as most have, most of the time: a look is all that it costs
    prove(request.hang)
    pace = Pace(request.stop)
    freed, put_off = 0, 0
    empty = seen.use.empty
    while request.most is None or freed < request.most:
        # A span without entries may have no PTE page: nobody stands for those once all empty ones are gone.
        wanted = replace(wanted, empty=wanted.empty and empty > 0)
        ranges = pace.next_ranges(target, within(target.ranges, request.spans, at), wanted)
        if not ranges:
            return
        try:
            stop = one_stop(
                target, ranges, wanted, watchdog, patience=request.patience, seconds=request.stop, hang=request.hang
            )
        except PutOff as error:
            put_off += 1
            if put_off == _TRIES or error.label not in ("changed", "rseq"):
                raise
            _look_again(request, target)
            continue
        put_off = 0
        yield stop
        freed += stop.freed
        empty -= max(0, stop.freed - (stop.zero + stop.mixed) * PAGE)
        at = stop.end
        pace.took(stop)
        if _told_to_end or time.monotonic() > end:
            raise PutOff("time", f"{request.pid}: its time is over, there may be more to do")
        time.sleep(max(stop.stopped, stop.held) * (1 / DUTY - 1))
        _look_again(request, target)


def _has(use: TableUse, wanted: Wanted) -> bool:
    """Whether there may be something of what is wanted: so where this kernel does not tell."""
    zero, mixed = use.zero is None or use.zero > 0, use.mixed is None or use.mixed > 0
    return (wanted.empty and use.empty > 0) or (wanted.zero and zero) or (wanted.mixed and mixed)


def _look_again(request: Request, target: Target) -> None:
    """It may be another than it was: filters, descriptors, who shares its memory. Refused, PutOff."""
    target.refresh()
    refuse.check(request.pid, request.writers)
    _check_sharers(request, target)


def _check_sharers(request: Request, target: Target) -> None:
    for tgid in target.tgids:
        if tgid != request.pid:
            with suppress(*procmem.GONE):
                refuse.check(tgid, request.writers)
