"""All threads of the processes that share an mm, stopped and let go.

They are traced by this very process and thread. Where it ends, however it does, the kernel lets them go as they are.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from pterefd.freeing import stub
from pterefd.freeing.calls import BEGUN_AGAIN, Kind, call_of, cpu_time, is_cut_short, switches
from pterefd.freeing.errors import PutOff, Refused
from pterefd.live import procmem, ptrace
from pterefd.live.ptrace import Regs

FRESH_SECONDS = 0.01  # a call with a timeout that began so recently may begin again
_WATCH_SECONDS = 0.02  # a thread is watched so long before it is stopped
_CUT_NS = 20_000_000  # a thread has run so long since it was seen in a call that would be cut short
_SEEN_NS = 1_000_000  # ... since it was first looked at, where it was never seen asleep
_LOOK_SECONDS = 0.001
_LINGER_SECONDS = 5.0
_POLL_SECONDS = 20e-6
_USER_CS = 0x33  # of 64-bit code


@dataclass(slots=True)
class Stopped:
    """A stopped thread. regs: as it is to go on, an interrupted call that ends with EINTR set to begin again.

    sig: the signal that it was about to be given, or that stopped its process; 0: it was stopped by us alone.
    grouped: by a stop of ours or of its process.
    """

    tid: int
    regs: Regs
    changed: bool
    sig: int = 0
    grouped: bool = True


class Threads:
    """Those of some processes (thread group ids)."""

    def __init__(self, tgids: Sequence[int]) -> None:
        self._tgids = tgids
        self._seized: set[int] = set()
        self._dead: set[int] = set()  # listed as long as nobody has waited for them
        self._files: dict[int, int] = {}
        self._told = set(tgids)  # signals of the process are sent to these, and those of a child's end to its parent
        self.stopped: dict[int, Stopped] = {}
        self._began: dict[int, tuple[int, float]] = {}  # switches of a thread in a timed call, since when at the latest
        self._calls: dict[int, int] = {}  # what a thread was last seen in
        self._clear: dict[int, int] = {}  # the CPU time from which on a thread is no longer in a call it was seen in

    def wait_for_a_moment(self, patience: float) -> None:
        """Until no thread is, or is likely to be soon, in a call that a stop would cut short or lengthen.

        PutOff after `patience` seconds.
        """
        self._told |= {tid for _, tid in self._all() if _has_children(tid)}
        looked = began = time.monotonic()
        while True:
            now = time.monotonic()
            in_way = [found for tgid, tid in self._all() if (found := self._in_way(tgid, tid, now, looked)) is not None]
            looked = now
            if not in_way and now - began >= _WATCH_SECONDS:
                return
            if now - began > patience + _WATCH_SECONDS:
                raise PutOff("call", in_way[0]) if in_way else AssertionError
            time.sleep(_LOOK_SECONDS)

    def _in_way(self, tgid: int, tid: int, now: float, looked: float) -> str | None:
        """Why a thread is not to be stopped now. looked: when that was asked before."""
        try:
            call = call_of(tgid, self.file_of(tid))
            self._calls[tid] = call.number
            if call.kind is Kind.FREE:
                self._began.pop(tid, None)
                if not call.sleeps:
                    return self._not_asleep(tgid, tid)
                self._clear.setdefault(tid, 0)
                return None
            if call.kind is Kind.CUT_SHORT:
                self._clear[tid] = cpu_time(tgid, tid) + _CUT_NS
            elif self._fresh(tgid, tid, now, looked):
                return None
        except procmem.GONE:
            return None
        return f"thread {tid} is in {call.text}, which a stop would change"

    def file_of(self, tid: int) -> int:
        """A descriptor of what a thread is in, kept open: read once more just before it stops, while others stand.

        FileNotFoundError where it is gone.
        """
        if tid not in self._files:
            self._files[tid] = os.open(f"/proc/{tid}/syscall", os.O_RDONLY | os.O_CLOEXEC)
        return self._files[tid]

    def close(self) -> None:
        """Close what was kept open."""
        for file in self._files.values():
            os.close(file)
        self._files.clear()

    def _not_asleep(self, tgid: int, tid: int) -> str | None:
        """Why a thread that runs, or was woken and waits for a CPU, is not to be stopped now.

        It may still be in the call that it slept in, or enter the next such call between this look and the stop. How
        much it has run tells, not how long ago that was: on a busy machine it may not have run at all.
        """
        used = cpu_time(tgid, tid)
        if used >= self._clear.get(tid, 0) or procmem.read_stat(tid)[0] in "ZX":  # a first thread that has ended
            self._clear.setdefault(tid, used + _SEEN_NS)
            return None
        return f"thread {tid} may be in a call that a stop would cut short"

    def _fresh(self, tgid: int, tid: int, now: float, looked: float) -> bool:
        """Whether its timed call began FRESH_SECONDS ago at most."""
        count = switches(tgid, tid)
        known = self._began.get(tid)
        if known is None or known[0] != count:
            # It has run since the last look, so the call began after that.
            known = self._began[tid] = count, looked
        return now - known[1] <= FRESH_SECONDS

    def _all(self) -> Iterable[tuple[int, int]]:
        for tgid in self._tgids:
            with suppress(*procmem.GONE):
                yield from ((tgid, tid) for tid in procmem.tasks(tgid))

    def stop(self, seconds: float) -> None:
        """Stop all, also those that are begun meanwhile. PutOff where one does not stop in so many seconds; Refused.

        ProcessLookupError where none is left. give_up() and linger() are to be called then.
        """
        end = time.monotonic() + seconds
        while new := self._new():
            # Where the thread that is told of a signal is traced, one that is ignored is sent all the same, to any
            # thread, and ends its call (sig_ignored()): who is told is traced last and let go first, whose call would
            # end is traced first and let go last.
            for tgid, tid in sorted(new, key=self._order):
                now = time.monotonic()
                if (why := self._in_way(tgid, tid, now, now - FRESH_SECONDS)) is not None:
                    raise PutOff("call", why)
                if self._seize(tid):
                    ptrace.interrupt(tid)
            while self._wait():
                if time.monotonic() > end:
                    raise PutOff("sleep", f"thread {min(self._seized - self.stopped.keys())} does not stop")
                time.sleep(_POLL_SECONDS)
        if not self.stopped:
            raise ProcessLookupError(self._tgids[0])
        for thread in self.stopped.values():
            if thread.sig in ptrace.STOP_SIGNALS and thread.grouped:
                raise PutOff("stopped", f"the process is stopped by {signal.Signals(thread.sig).name}")
            if thread.regs.cs != _USER_CS:
                raise Refused("32bit", f"thread {thread.tid} runs 32-bit code")

    def _new(self) -> list[tuple[int, int]]:
        known = self._seized | self._dead
        return [pair for pair in self._all() if pair[1] not in known]

    def _order(self, pair: tuple[int, int]) -> tuple[bool, bool, tuple[int, int]]:
        return pair[1] in self._told, self._calls.get(pair[1]) not in BEGUN_AGAIN, pair

    def _seize(self, tid: int) -> bool:
        """Be its tracer. False where it is gone; Refused where somebody else is, or rights are missing."""
        try:
            if ptrace.seize(tid, ptrace.PTRACE_O_TRACESYSGOOD):
                self._seized.add(tid)
                return True
        except PermissionError:
            with suppress(*procmem.GONE):
                if procmem.read_stat(tid)[0] not in "ZX":  # of one that is about to be gone, too
                    text = f"thread {tid} may not be traced: rights, or somebody else traces it"
                    raise Refused("ptrace", text) from None
                self._dead.add(tid)
        return False

    def _wait(self) -> bool:
        """Take in those that have stopped or ended. Whether some still run."""
        for tid in self._seized - self.stopped.keys():
            try:
                answer = ptrace.wait(tid, block=False)
            except ChildProcessError:
                self._seized.discard(tid)
                continue
            if answer is not None:
                self._take(tid, answer[1])
        return len(self._seized) > len(self.stopped)

    def _take(self, tid: int, status: int) -> None:
        """One that has stopped."""
        regs = ptrace.registers(tid) if os.WIFSTOPPED(status) else None
        if regs is None:
            self._seized.discard(tid)
            return
        sig = ptrace.stop_signal(status)
        grouped = ptrace.stop_event(status) == ptrace.PTRACE_EVENT_STOP
        if grouped and sig == signal.SIGTRAP:  # by PTRACE_INTERRUPT
            sig = 0
        changed = (regs.call in BEGUN_AGAIN and regs.result == -stub.EINTR) or (
            grouped and is_cut_short(regs.call, regs.rsi, regs.result)
        )
        if changed:
            # The kernel itself begins it again, or ends it with EINTR where a signal has a handler.
            regs.rax = (1 << 64) - stub.ERESTARTNOHAND
        self.stopped[tid] = Stopped(tid, regs, changed, sig, grouped)

    def check_outside(self, address: int, length: int) -> None:
        """That no stopped thread is in a stub there: a worker that was killed left it. PutOff."""
        for thread in self.stopped.values():
            if address <= thread.regs.rip < address + length:
                raise PutOff("stub", f"thread {thread.tid} is still in the stub of a worker that has ended")

    def choose(self, memory: int, *, filtered: bool = False) -> Stopped:
        """The thread that is to run the stub: one that gets no signals for others, and sleeps, where there is one.

        PutOff, Refused where none may. memory: a descriptor of /proc/PID/mem.  filtered: one with a filter of its calls
        may be the one.
        """
        best, best_rank, why = None, (False, False), ""
        for thread in self.stopped.values():
            sleeps = thread.regs.call >= 0 and -thread.regs.result in _RESTARTS
            if not thread.grouped or thread.sig or not (sleeps or thread.regs.call < 0):
                continue
            rank = thread.tid not in self._told, sleeps
            if (best is not None and rank <= best_rank) or (not sleeps and _in_rseq(memory, thread)):
                continue
            if not filtered and (label := _filtered(thread.tid)):
                why = label
                continue
            best, best_rank = thread, rank
        if best is None and why:
            raise Refused(why, f"{self._tgids[0]}: the calls of its threads are filtered ({why})")
        if best is None:
            raise PutOff("rseq", "every thread is in a critical section, or about to take a signal")
        return best

    def let_go(self, but: int = 0) -> None:
        """Let all that have stopped go on, but for one."""
        for tid, thread in sorted(self.stopped.items(), key=lambda item: (item[0] not in self._told, item[1].changed)):
            if tid != but:
                self.release(thread)

    def give_up(self) -> None:
        """Let all that have stopped go on, where not all have: who is told of signals first, so it is waited for."""
        end = time.monotonic() + _LINGER_SECONDS
        while self._told & (self._seized - self.stopped.keys()) and time.monotonic() < end:
            self._wait()
            time.sleep(_POLL_SECONDS)
        self.let_go()

    def linger(self) -> None:
        """Wait for those that have not stopped yet, and let them go on: their calls are to begin again, too.

        Where that takes too long the kernel lets them go when this process ends.
        """
        end = time.monotonic() + _LINGER_SECONDS
        while time.monotonic() < end:
            running = self._wait()
            self.let_go()
            if not running:
                return
            time.sleep(_LOOK_SECONDS)

    def release(self, thread: Stopped) -> None:
        """Let one go on, with the registers that it should have."""
        if thread.changed:
            ptrace.set_registers(thread.tid, thread.regs)
        ptrace.detach(thread.tid, 0 if thread.grouped else thread.sig)
        self._seized.discard(thread.tid)
        self.stopped.pop(thread.tid, None)


_RESTARTS = (stub.ERESTARTSYS, stub.ERESTARTNOINTR, stub.ERESTARTNOHAND, stub.ERESTART_RESTARTBLOCK)


def _filtered(tid: int) -> str:
    """Why a stopped thread may not make any call, "" where it may: what a look before the stop saw may be over."""
    if ptrace.dispatches_calls(tid):
        return "dispatch"
    try:
        with open(f"/proc/{tid}/status", "rb") as file:
            return "seccomp" if any(line.startswith(b"Seccomp:") and int(line[8:]) for line in file) else ""
    except procmem.GONE:
        return "gone"


def _has_children(tid: int) -> bool:
    with suppress(OSError), open(f"/proc/{tid}/task/{tid}/children", "rb") as file:
        return bool(file.read(1))
    return False


def _in_rseq(memory: int, thread: Stopped) -> bool:
    """Whether it is inside a restartable sequence (struct rseq_cs: version, flags, start_ip, post_commit_offset)."""
    area = ptrace.rseq_area(thread.tid)
    if not area:
        return False
    try:
        section = int.from_bytes(os.pread(memory, 8, area + 8), "little")
        if not section:
            return False
        words = os.pread(memory, 32, section)
    except OSError:
        return True
    start, length = (int.from_bytes(words[at : at + 8], "little") for at in (8, 16))
    return start <= thread.regs.rip < start + length
