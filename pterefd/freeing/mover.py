"""The stub at work in one stopped thread: from its entry until the thread is as it was."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

import numpy as np

from pterefd.freeing import stub
from pterefd.freeing.boost import boost, may_be_boosted, unboost
from pterefd.freeing.cave import Cave
from pterefd.freeing.errors import PutOff, Refused
from pterefd.freeing.spans import Run
from pterefd.freeing.threads import Stopped, Threads
from pterefd.live import procmem, ptrace
from pterefd.live.procmem import PAGE

BACK_PIECES = 1024  # beyond so many pieces with data whole runs are moved back
_ALL_SIGNALS = (1 << 64) - 1
_PAUSE_SECONDS = 20e-6
_BEFORE_MOVES = 2  # records of the list


class Lost(Exception):
    """The thread went its own way home: it was not spoken to for too long."""


class Mover:
    """One thread's stub.

    memory, pagemap: descriptors of the process's.  scratch: where runs are moved to, as far from `low` there as they
    are where they come from.  table: where the list is mapped; both are free now.  wait: seconds for which the thread
    waits to be spoken to.
    """

    def __init__(
        self,
        threads: Threads,
        thread: Stopped,
        cave: Cave,
        *,
        memory: int,
        pagemap: int,
        low: int,
        length: int,
        scratch: int,
        table: int,
        runs: Sequence[Run],
        wait: float,
    ) -> None:
        self._threads = threads
        self.thread = thread
        self._cave = cave
        self._memory = memory
        self._pagemap = pagemap
        self._shift = scratch - low
        self._scratch = scratch
        self._length = length
        self._table = table
        self._runs = runs
        self._wait = wait
        self._sleeps = threads.file_of(thread.tid)
        self._inside = False
        self._boosts = may_be_boosted(thread.tid)
        self._mask = ptrace.signal_mask(thread.tid) or 0
        # The list, as long as it may become, and a result for each run behind it.
        size = (len(runs) + 11 + 2 * (BACK_PIECES + len(runs))) * stub.RECORD + 8 * (len(runs) + 1)
        self._table_bytes = -(-size // PAGE) * PAGE
        home = stub.as_restarted(thread.regs)
        self._stub = stub.placed(cave.address, home, self._mask, table, self._table_bytes, wait, boosted=self._boosts)

    # ---- the list ------------------------------------------------------------------------------

    def _list(self) -> bytes:
        """Reserve, move, wait for the look; then unmap, and home.

        Others go on before it is unmapped, and may fork(2): a child would keep what nobody unmaps there.
        """
        results = self._table + self._table_bytes - 8 * len(self._runs)
        records = [
            stub.fork_copies(self._table, self._table_bytes, copies=False),
            stub.reserve(self._scratch, self._length),
        ]
        records += [
            stub.move(run.start, run.start + self._shift, run.end - run.start, result=results + 8 * i)
            for i, run in enumerate(self._runs)
        ]
        records += [
            stub.fork_copies(self._scratch, self._length, copies=False),
            stub.wait_at(stub.LOOK, self._stub.timeout),
            stub.jump(self._after_look + stub.RECORD),
            # Unmapping takes long, and nobody waits for it. The parameter: a field of the jump above that is always 0.
            stub.as_others(self._after_look + 16) if self._boosts else stub.jump(self._after_look + 2 * stub.RECORD),
            stub.unmap(self._scratch, self._length),
            stub.jump(self._stub.end),
        ]
        return b"".join(records)

    @property
    def _after_look(self) -> int:
        """Where the jump behind the look lies."""
        return self._table + (_BEFORE_MOVES + len(self._runs) + 2) * stub.RECORD

    @property
    def _back_list(self) -> int:
        return self._after_look + 4 * stub.RECORD

    # ---- the thread ----------------------------------------------------------------------------

    def enter(self) -> None:
        """Let the thread map the list. Refused, PutOff."""
        tid = self.thread.tid
        try:
            os.pwrite(self._memory, self._stub.image, self._cave.address)
        except OSError as error:  # CONFIG_PROC_MEM_NO_FORCE
            raise Refused("proc mem", f"program text of thread {tid} may not be written: {error.strerror}") from None
        self._inside = True
        regs = self.thread.regs.copy()
        regs.rip, regs.rbx, regs.orig_rax = self._stub.entry, self._stub.first, (1 << 64) - 1
        ptrace.set_registers(tid, regs)
        ptrace.set_signal_mask(tid, _ALL_SIGNALS)  # behind the registers: from there on the stub puts it back
        if self._boosts:  # behind the registers: from here on its list undoes it, whoever ends
            boost(tid)
        self._run(stub.READY)
        try:
            os.pwrite(self._memory, self._list(), self._table)
        except OSError:  # it is not mapped
            self.finish()
            raise PutOff("limits", f"thread {tid} could not map a list of {self._table_bytes >> 10} kB") from None
        self._point(self._stub.after_ready, self._table)

    def move(self, until: float) -> tuple[int, list[Run]]:
        """Let it move the runs, in order, the first one at least and others until a time (of time.monotonic).

        How many it came to, and those of them that the kernel did not move.
        """
        came = self._go_on(stub.LOOK, len(self._runs), until=until)
        size = 8 * len(self._runs)
        results = np.frombuffer(os.pread(self._memory, size, self._table + self._table_bytes - size), dtype="<i8")
        tried = zip(self._runs[:came], results[:came].tolist(), strict=True)
        return came, [run for run, result in tried if -4096 < result < 0]

    def entries_moved(self) -> procmem.Entries:
        """What is found where the runs were moved to."""
        if procmem.scan_abilities():
            ranges = [(self._scratch, self._scratch + self._length)]
        else:  # the file has 8 bytes for each page of what was only reserved, too
            ranges = [(run.start + self._shift, run.end + self._shift) for run in self._runs]
        return procmem.read_ranges(self._pagemap, ranges)

    def move_back(self, pieces: Sequence[tuple[int, int]]) -> None:
        """Let it move these back, (start, end) where they are now; the pages there that were written since are kept."""
        if len(pieces) > BACK_PIECES:
            ends = np.array([run.end + self._shift for run in self._runs])
            hit = sorted({int(np.searchsorted(ends, start, "right")) for start, _ in pieces})
            pieces = [(self._runs[i].start + self._shift, self._runs[i].end + self._shift) for i in hit]
        back = []
        for start, end in pieces:
            back.append(stub.fork_copies(start, end - start, copies=True))
            back.append(stub.move(start, start - self._shift, end - start, back=True))
        back.append(stub.wait_at(stub.BACK, self._stub.timeout))
        back.append(stub.jump(self._after_look + stub.RECORD))
        os.pwrite(self._memory, b"".join(back), self._back_list)
        self._point(self._after_look + 8, self._back_list)
        # At the last moment, each: whoever writes between the two loses what is written.
        self._go_on(stub.BACK, len(pieces), lambda number: self._merge(*pieces[number]))

    def _merge(self, start: int, end: int) -> None:
        """Pages that somebody wrote again where they had been: both writes are kept, byte by byte."""
        again = procmem.read_ranges(self._pagemap, [(start - self._shift, end - self._shift)])
        for low, high in zip(again.start.tolist(), again.end.tolist(), strict=True):
            for page in range(low, high, PAGE):
                new = np.frombuffer(os.pread(self._memory, PAGE, page), dtype=np.uint8)
                old = np.frombuffer(os.pread(self._memory, PAGE, page + self._shift), dtype=np.uint8)
                os.pwrite(self._memory, np.where(new != 0, new, old).tobytes(), page + self._shift)

    def finish(self) -> None:
        """Let it unmap what was moved, and go on as it was. Lost: it went on by itself."""
        self._go_on(stub.DONE)
        self.thread.changed = True
        self._leave()

    def abandon(self) -> None:
        """Let the thread go after Lost, Refused or PutOff, as it was."""
        if self._inside:
            if self.thread.changed:
                ptrace.set_signal_mask(self.thread.tid, self._mask)
            self._leave()

    def _leave(self) -> None:
        self._inside = False
        if self._boosts:  # where its list did not come to it
            unboost(self.thread.tid)
        if self.thread.changed:  # home first: this process may be killed before the next line
            ptrace.set_registers(self.thread.tid, self.thread.regs)
        os.pwrite(self._memory, self._cave.before, self._cave.address)
        self._threads.release(self.thread)

    def _point(self, at: int, address: int) -> None:
        """One word, written whole: the list has either the one way to go on or the other."""
        os.pwrite(self._memory, address.to_bytes(8, "little"), at)

    def _registers(self) -> ptrace.Regs:
        regs = ptrace.registers(self.thread.tid)
        if regs is None:
            raise ProcessLookupError(self.thread.tid)
        return regs

    def _skip(self, number: int) -> None:
        """Let move `number` and those behind it be: the thread stands in the one before."""
        behind = self._table + (_BEFORE_MOVES + len(self._runs)) * stub.RECORD
        os.pwrite(self._memory, stub.jump(behind), self._table + (_BEFORE_MOVES + number) * stub.RECORD)

    def _go_on(
        self,
        wait: int,
        moves: int = 0,
        before: Callable[[int], None] = lambda _: None,
        until: float = math.inf,
    ) -> int:
        """From one wait to the next, with so many moves between them, none begun after a time but the first.

        before: told of each move's number.  How many were made.
        """
        regs = self._registers()
        regs.rax, regs.orig_rax = 0, (1 << 64) - 1
        ptrace.set_registers(self.thread.tid, regs)
        number = 0
        while number < moves:
            self._step()  # into a call
            regs = self._registers()
            if regs.call == stub.SYS_GETPPID:
                regs.orig_rax = stub.SYS_MREMAP
                before(number)
                ptrace.set_registers(self.thread.tid, regs)
                number += 1
                if number < moves and time.monotonic() > until:
                    self._skip(number)
                    moves = number
            self._step()  # and out of it
        self._run(wait)
        return number

    def _step(self) -> None:
        """To the next border of a system call."""
        sig = 0
        while True:
            ptrace.until_call(self.thread.tid, sig)
            while (answer := ptrace.wait(self.thread.tid)) is None:
                pass  # a signal to this process
            if not os.WIFSTOPPED(answer[1]):
                raise ProcessLookupError(self.thread.tid)
            sig = ptrace.stop_signal(answer[1])
            if ptrace.stop_event(answer[1]):
                sig = 0  # its process is stopped
            elif sig == ptrace.SYSCALL_STOP:
                return
            elif sig != signal.SIGSTOP:
                self._disturbed(sig)

    def _disturbed(self, sig: int) -> NoReturn:
        self.thread.changed = True
        raise PutOff("stub", f"thread {self.thread.tid} was given {signal.Signals(sig).name} inside the stub")

    def _run(self, until: int) -> None:
        """Run it to one of its waits, and stop it there."""
        tid = self.thread.tid
        ptrace.cont(tid)
        end = time.monotonic() + self._wait / 2
        asked = False
        while True:
            if not asked and (self._is_waiting(until) or time.monotonic() > end):
                ptrace.interrupt(tid)
                asked = True
            answer = ptrace.wait(tid, block=False)
            if answer is not None:
                if self._arrived(answer[1], until):
                    return
                asked = False
            else:
                # Not a yield: that leaves nothing to others where this process is SCHED_FIFO.
                time.sleep(_PAUSE_SECONDS)

    def _is_waiting(self, number: int) -> bool:
        words = os.pread(self._sleeps, 200, 0).split(None, 2)
        return len(words) > 2 and int(words[0]) == stub.SYS_PPOLL and int(words[1], 16) == number

    def _arrived(self, status: int, until: int) -> bool:
        """Whether a stop is the one that was asked for. Lost, PutOff."""
        regs = ptrace.registers(self.thread.tid) if os.WIFSTOPPED(status) else None
        if regs is None:
            raise ProcessLookupError(self.thread.tid)
        sig, event = ptrace.stop_signal(status), ptrace.stop_event(status)
        inside = self._cave.address <= regs.rip < self._cave.address + stub.STUB_BYTES
        if event == 0:
            if inside and regs.rbx >= self._stub.end + 2 * stub.RECORD:
                self.thread.sig, self.thread.grouped = sig, False  # its mask is its own again: given when it goes on
                return True
            if sig != signal.SIGSTOP:
                self._disturbed(sig)
            # The process is stopped from now on, but for this thread until it is let go: SIGCONT may still undo that.
            ptrace.cont(self.thread.tid, sig)
            return False
        if not inside:
            self.thread.changed = False
            raise Lost
        if regs.call == stub.SYS_PPOLL and regs.rdi == until:
            return True
        ptrace.cont(self.thread.tid)  # stopped before it got there: it is asked for again
        return False
