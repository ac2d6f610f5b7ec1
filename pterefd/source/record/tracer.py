"""The ptrace side of a recording: follows every task, stops them for checkpoints, notes what only stops can tell.

All requests come from one thread, the tracer's own (ptrace wants that); when that thread ends, the kernel lets go of
whoever is still traced, without stopping anybody. Sleepers are not woken for a checkpoint: a task that sleeps in a
system call stands still as it is, and its scheduler count proves that it did.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto

from pterefd.live import procmem, ptrace
from pterefd.source.record.marks import CheckpointMark, CloneMark, ExecMark, ExitMark, Marks, RefusedMark
from pterefd.source.record.snapshot import read_snapshot

now = time.monotonic_ns

_MS = 1_000_000
_STOP_TIMEOUT = 200 * _MS  # a task that has not stopped by then is in the kernel for longer: no checkpoint now
_SETTLE = 50 * _MS
_ORPHAN = 200 * _MS  # so long after its first stop nobody will tell of a child any more
_COST_FACTOR = 20  # a checkpoint that takes c is not repeated within 20 c: at most 5 % of the time standing still
_SEGV_REFUSED = range(1, 5)  # SEGV_MAPERR, SEGV_ACCERR, SEGV_BNDERR, SEGV_PKUERR
_BUS_ADRERR = 2


class State(Enum):
    """What a task does, as far as the tracer knows."""

    RUNNING = auto()  # runs or sleeps
    HELD = auto()  # stopped, and kept so
    GROUP_STOP = auto()  # stopped by SIGSTOP or the like
    VFORK = auto()  # waits in the kernel for a vfork child
    EXITING = auto()  # past its exit stop: runs no more user code


@dataclass(slots=True, eq=False)
class Mm:
    """An address space and the tasks that have it."""

    tasks: set[int] = field(default_factory=set)
    owner: int = 0  # tgid of the process it belongs to
    due: int = 0  # when the next checkpoint is to be
    waiting: set[int] = field(default_factory=set)  # who has yet to stop
    asleep: dict[int, bytes] = field(default_factory=dict)  # who sleeps, with the scheduler's count
    stopping_since: int = 0  # 0: nobody is being stopped
    holding: bool = False  # they are to stand still until `release`, not only for a checkpoint
    ran: bytes = b""  # scheduler counts at the last checkpoint
    reclaimed: bytes = b""  # the machine's counts of reclaimed pages at the last checkpoint
    execed: bool = False  # it is a program's: what stood before the first exec is the recorder's own


@dataclass(slots=True, eq=False)
class Task:
    """A traced task. resume: signal to deliver when it goes on."""

    tid: int
    tgid: int
    mm: Mm
    state: State = State.RUNNING
    resume: int = 0
    group_stop: bool = False


class Tracer:
    """Traces tasks until they have all gone, or `stop` is asked for.

    every_ns: how often a checkpoint of each mm, 0 for none in between.  leader: the process whose end counts
    (exit_status, and the end of the recording where `only_leader`).
    """

    def __init__(self, marks: Marks, every_ns: int, leader: int, *, only_leader: bool = False) -> None:
        self.marks = marks
        self.exit_status: int | None = None
        self.stop_requested: Callable[[], bool] = lambda: False
        self.on_foreign: Callable[[int, int], None] = lambda pid, status: None
        self._every = every_ns
        self._leader = leader
        self._only_leader = only_leader
        self._tasks: dict[int, Task] = {}
        self._mms: set[Mm] = set()
        self._early: dict[int, tuple[int, int]] = {}  # first stops (status, time) whose parent has yet to tell
        self._last_tick = 0

    # -- who is traced ------------------------------------------------------------------------

    def add_process(self, pid: int, tids: list[int], *, execed: bool) -> Mm:
        """Count tasks in that were seized; they have one mm."""
        mm = Mm(owner=pid, due=now() + self._every, execed=execed, reclaimed=procmem.read_reclaimed())
        self._mms.add(mm)
        for tid in tids:
            self._add_task(tid, pid, mm)
        return mm

    def _add_task(self, tid: int, tgid: int, mm: Mm) -> Task:
        task = self._tasks[tid] = Task(tid, tgid, mm)
        mm.tasks.add(tid)
        return task

    def _forget(self, task: Task) -> None:
        self._tasks.pop(task.tid, None)
        self._leave(task)

    def _leave(self, task: Task) -> None:
        mm = task.mm
        mm.tasks.discard(task.tid)
        mm.waiting.discard(task.tid)
        mm.asleep.pop(task.tid, None)
        if not mm.tasks:
            self._mms.discard(mm)
        elif mm.stopping_since:
            self._complete(mm)

    # -- the loop -----------------------------------------------------------------------------

    def run(self) -> None:
        """Handle stops until nobody is left, the leader has ended (only_leader) or a stop was asked for."""
        tick = max(5 * _MS, min(50 * _MS, self._every // 4)) if self._every else 50 * _MS
        ticker = ptrace.Ticker(tick / 1e9)
        try:
            while self._tasks and not self._done():
                try:
                    met = ptrace.wait()
                except ChildProcessError:
                    break
                if met is not None:
                    self._handle(*met)
                moment = now()
                if moment - self._last_tick >= tick:
                    self._last_tick = moment
                    self._tick(moment)
        finally:
            ticker.close()

    def _done(self) -> bool:
        done = self.stop_requested() or (self._only_leader and self.exit_status is not None)
        if done:
            self.last_checkpoints()
        return done

    def last_checkpoints(self) -> None:
        """A checkpoint of everybody who is left, as far as they can be stopped now."""
        for mm in list(self._mms):
            if mm.execed and not mm.stopping_since:
                self._start(mm, always=True)
        self._pump(_STOP_TIMEOUT, lambda: any(mm.stopping_since for mm in self._mms))
        for mm in self._mms:
            if mm.stopping_since:
                self._abandon(mm)

    def hold(self, mm: Mm) -> bool:
        """Make all tasks of an mm stand still, and keep them so until `release`; False where that failed."""
        mm.holding = True
        self._begin_stop(mm)
        self._pump(10 * _STOP_TIMEOUT, lambda: bool(mm.waiting))
        return not mm.waiting

    def stood_still(self, mm: Mm, *, wake: bool = False) -> bool:
        """Whether nobody of a held mm has moved since. Sleepers who woke (with wake: all sleepers) are stopped."""
        moved = [tid for tid, count in mm.asleep.items() if _scheduled(tid) != count]
        for tid in list(mm.asleep) if moved and wake else moved:
            del mm.asleep[tid]
            if ptrace.interrupt(tid):
                mm.waiting.add(tid)
        self._pump(10 * _STOP_TIMEOUT, lambda: bool(mm.waiting))
        return not moved

    def release(self, mm: Mm) -> None:
        """Let the tasks of an mm go on."""
        mm.stopping_since = 0
        mm.holding = False
        mm.waiting.clear()
        mm.asleep.clear()
        for tid in list(mm.tasks):
            task = self._tasks[tid]
            if task.state is State.HELD:
                self._go_on(task)

    def _pump(self, timeout: int, busy: Callable[[], bool]) -> None:
        """Handle stops for a bounded time, as long as somebody is waited for."""
        end = now() + timeout
        while busy() and now() < end:
            try:
                met = ptrace.wait(block=False)
            except ChildProcessError:
                return
            if met is None:
                time.sleep(0.0005)
            else:
                self._handle(*met)

    # -- stops --------------------------------------------------------------------------------

    def _handle(self, tid: int, status: int) -> None:
        """One answer of wait(2)."""
        task = self._tasks.get(tid)
        if not os.WIFSTOPPED(status):
            if task is not None:
                self._gone(task, status)
            else:
                self._early.pop(tid, None)
                self.on_foreign(tid, status)
            return
        if task is None:
            self._early[tid] = status, now()
            return
        self._stopped(task, ptrace.stop_signal(status), ptrace.stop_event(status))

    def _stopped(self, task: Task, sig: int, event: int) -> None:
        task.group_stop = False
        task.resume = 0
        if event in (ptrace.PTRACE_EVENT_FORK, ptrace.PTRACE_EVENT_VFORK, ptrace.PTRACE_EVENT_CLONE):
            self._cloned(task, vfork=event == ptrace.PTRACE_EVENT_VFORK)
        elif event == ptrace.PTRACE_EVENT_EXEC:
            self._exec(task)
        elif event == ptrace.PTRACE_EVENT_EXIT:
            self._exit_stop(task)
        elif event == ptrace.PTRACE_EVENT_VFORK_DONE:
            self._let_go(task)
        elif event == ptrace.PTRACE_EVENT_STOP:
            task.group_stop = sig in ptrace.STOP_SIGNALS
            self._let_go(task)
        else:
            self._signal(task, sig)

    def _signal(self, task: Task, sig: int) -> None:
        """A signal is about to be delivered: note a refused fault, and pass it on."""
        info = ptrace.signal_info(task.tid) if sig in (signal.SIGSEGV, signal.SIGBUS) else None
        if info is not None:
            mark = RefusedMark(now(), task.tid, info.addr & -procmem.PAGE)
            if sig == signal.SIGSEGV and info.code in _SEGV_REFUSED:
                self.marks.refused.append(mark)
            elif sig == signal.SIGBUS and info.code == _BUS_ADRERR:
                self.marks.beyond_file.append(mark)
        task.resume = sig
        self._let_go(task)

    def _cloned(self, parent: Task, *, vfork: bool) -> None:
        """The parent stands at its call's end, the child before its first instruction: whose mm has the child?"""
        child = ptrace.event_message(parent.tid)
        early = self._early.pop(child, None)
        try:
            tgid = procmem.read_status(child).tgid
        except procmem.GONE:
            tgid = 0  # killed already
        if child and tgid and child not in self._tasks:
            shared = tgid == parent.tgid or self._shares(parent, child, vfork=vfork)
            mm = parent.mm
            if not shared:
                mm = Mm(owner=tgid, due=now() + self._every, execed=parent.mm.execed, reclaimed=parent.mm.reclaimed)
                self._mms.add(mm)
            entries = None if shared or len(parent.mm.tasks) == 1 else _inherited(child)
            self.marks.clones.append(CloneMark(now(), parent.tid, child, tgid, shared, entries))
            task = self._add_task(child, tgid, mm)
            if mm.stopping_since:
                mm.waiting.add(child)
            if early is not None:
                self._stopped(task, ptrace.stop_signal(early[0]), ptrace.stop_event(early[0]))
        self._let_go(parent, vfork=vfork)

    def _adopt(self, tid: int, status: int) -> None:
        """A child whose parent was killed before it could tell of it."""
        try:
            found = procmem.read_status(tid)
        except procmem.GONE:
            return
        relatives = [task for task in self._tasks.values() if task.tgid in (found.tgid, found.ppid)]
        mm = next((task.mm for task in relatives if ptrace.shares_mm(task.tid, tid)), None)
        self.marks.clones.append(CloneMark(now(), found.ppid, tid, found.tgid, mm is not None))
        if mm is None:
            mm = Mm(owner=found.tgid, due=now() + self._every, execed=True)
            self._mms.add(mm)
        task = self._add_task(tid, found.tgid, mm)
        self._stopped(task, ptrace.stop_signal(status), ptrace.stop_event(status))

    def _shares(self, parent: Task, child: int, *, vfork: bool) -> bool:
        answer = ptrace.shares_mm(parent.tid, child)
        return vfork if answer is None else answer

    def _exec(self, task: Task) -> None:
        """The process has a new mm; whatever other threads it had are gone."""
        former = ptrace.event_message(task.tid) or task.tid
        for other in [t for t in self._tasks.values() if t.tgid == task.tgid and t is not task]:
            self._forget(other)
        self._leave(task)
        task.mm = Mm(tasks={task.tid}, owner=task.tgid, due=now() + self._every, execed=True)
        task.mm.reclaimed = procmem.read_reclaimed()
        self._mms.add(task.mm)
        try:
            snapshot, entries = read_snapshot(task.tid, attached=False)
        except OSError:  # killed in its exec
            self._let_go(task)
            return
        if procmem.is_32bit(task.tid):
            self.marks.programs_32bit.append(snapshot.comm)
        self.marks.huge_pages += entries.huge_files
        self.marks.execs.append(ExecMark(now(), task.tgid, former, snapshot))
        self._let_go(task)

    def _exit_stop(self, task: Task) -> None:
        """A task is about to end. The last of its mm ends with a checkpoint."""
        mm = task.mm
        if mm.stopping_since and not mm.holding:  # an exec or a core dump may wait for this task: no checkpoint now
            self._abandon(mm)
        others = [self._tasks[tid] for tid in mm.tasks if tid != task.tid]
        if mm.execed and all(other.state is State.EXITING for other in others):
            self._settle(others)
            self._read(mm, task.tid, [task.tid])
        task.state = State.EXITING
        ptrace.cont(task.tid)

    def _settle(self, tasks: list[Task]) -> None:
        """Wait until tasks that are past their exit stop have let go of their mm."""
        end = now() + _SETTLE
        for task in tasks:
            while now() < end:
                try:
                    if procmem.read_stat(task.tid)[0] in "ZX":
                        break
                except procmem.GONE:
                    break
                time.sleep(0.0002)

    def _gone(self, task: Task, status: int) -> None:
        self.marks.exits.append(ExitMark(now(), task.tid))
        if task.tid == self._leader:
            self.exit_status = status
        self._forget(task)

    def _let_go(self, task: Task, *, vfork: bool = False) -> None:
        """Let a stopped task go on, unless its mm is to stand still."""
        mm = task.mm
        if mm.stopping_since:
            task.state = State.HELD
            mm.waiting.discard(task.tid)
            mm.asleep.pop(task.tid, None)
            if vfork:  # goes on into its wait; that is standing still, too
                self._go_on(task)
                task.state = State.VFORK
            self._complete(mm)
            return
        self._go_on(task)
        if vfork:
            task.state = State.VFORK

    def _go_on(self, task: Task) -> None:
        if task.group_stop:
            task.state = State.GROUP_STOP
            ptrace.listen(task.tid)
        else:
            task.state = State.RUNNING
            ptrace.cont(task.tid, task.resume)
        task.resume = 0

    # -- checkpoints --------------------------------------------------------------------------

    def _tick(self, moment: int) -> None:
        """Start the checkpoints that are due, give up those that hang."""
        for tid, (status, since) in list(self._early.items()):
            if moment - since > _ORPHAN:
                del self._early[tid]
                self._adopt(tid, status)
        for mm in list(self._mms):
            if mm.stopping_since and not mm.holding:
                if moment - mm.stopping_since > _STOP_TIMEOUT:
                    self._abandon(mm)
            elif self._every and mm.execed and moment >= mm.due:
                self._start(mm)

    def _start(self, mm: Mm, *, always: bool = False) -> None:
        """Begin a checkpoint: stop who runs, note who sleeps. Nothing to do where nobody ran since the last."""
        ran = b"".join(_scheduled(tid) for tid in sorted(mm.tasks))
        if ran and ran == mm.ran and not always:
            mm.due = now() + self._every
            return
        self._begin_stop(mm)
        self._complete(mm)

    def _begin_stop(self, mm: Mm) -> None:
        mm.stopping_since = now()
        mm.waiting.clear()
        mm.asleep.clear()
        for tid in mm.tasks:
            task = self._tasks[tid]
            if task.state is State.RUNNING:
                count = _sleeps(tid)
                if count:
                    mm.asleep[tid] = count
                elif ptrace.interrupt(tid):
                    mm.waiting.add(tid)

    def _complete(self, mm: Mm) -> None:
        """Take the checkpoint if everybody stands still by now, and let them go on."""
        if mm.waiting or mm.holding or not mm.stopping_since:
            return
        if not self._stood_still(mm):  # a sleeper woke before the others had stopped
            for tid in list(mm.asleep):
                del mm.asleep[tid]
                if ptrace.interrupt(tid):
                    mm.waiting.add(tid)
            if mm.waiting:
                return
        exiting = [self._tasks[tid] for tid in mm.tasks if self._tasks[tid].state is State.EXITING]
        self._settle(exiting)
        alive = [tid for tid in mm.tasks if self._tasks[tid].state is not State.EXITING]
        if alive:
            self._read(mm, alive[0], [tid for tid in alive if self._tasks[tid].state is State.HELD])
        self.release(mm)

    def _stood_still(self, mm: Mm) -> bool:
        return all(_scheduled(tid) == count for tid, count in mm.asleep.items())

    def _read(self, mm: Mm, tid: int, stopped: list[int]) -> None:
        """Read and note a checkpoint, if the sleepers slept through it."""
        begin = now()
        checkpoint = procmem.read_checkpoint(tid)
        if checkpoint is not None and self._stood_still(mm):
            # the time before the reading: whoever stood still did so from then on
            reclaimed = procmem.read_reclaimed()
            entries = checkpoint.entries if reclaimed != mm.reclaimed else None
            mm.reclaimed = reclaimed
            self.marks.checkpoints.append(CheckpointMark(begin, mm.owner, checkpoint.fields, stopped, entries))
            self.marks.huge_pages += checkpoint.huge_files
            mm.ran = b"".join(_scheduled(task) for task in sorted(mm.tasks))
        elif checkpoint is not None:
            self.marks.missed_checkpoints += 1
        end = now()
        mm.due = end + max(self._every, _COST_FACTOR * (end - begin))

    def _abandon(self, mm: Mm) -> None:
        """No checkpoint this time."""
        self.marks.missed_checkpoints += 1
        mm.due = now() + self._every
        self.release(mm)


def _inherited(child: int) -> procmem.Entries | None:
    """Entries of a child that has not run yet."""
    try:
        return procmem.read_entries(child)
    except OSError:
        return None


def _scheduled(tid: int) -> bytes:
    """How long and how often a task has run; equal answers: it has not run in between. Empty where it is gone."""
    try:
        with open(f"/proc/{tid}/schedstat", "rb", buffering=0) as file:
            return file.read(100)
    except OSError:
        return b""


def _sleeps(tid: int) -> bytes:
    """The scheduler's count of a task that sleeps in a system call, empty for one that does not."""
    count = _scheduled(tid)
    try:
        with open(f"/proc/{tid}/syscall", "rb", buffering=0) as file:
            call = file.read(20)
        if not call[:1].isdigit() or procmem.read_stat(tid)[0] != "S":
            return b""
    except OSError:
        return b""
    return count if _scheduled(tid) == count else b""
