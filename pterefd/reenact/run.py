"""Runs a trace's operations as real system calls and tells, as rows of a new trace, what was done and what came of it.

Every process of the trace becomes an agent, which lives in 512 GiB that the trace does not use; its own mappings are in
the new trace too, so that a replay of it must give the kernel's very numbers. What could not be done as it was is
counted by kind.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

from pterefd.engine.layout import OBJ_VDSO, OBJ_VVAR
from pterefd.errors import BadInput, Missing
from pterefd.host.host import kind_of_path
from pterefd.reenact.agent import (
    BATCH,
    FORCED_READ,
    FORCED_WRITE,
    IS_FILE,
    IS_GUARD,
    IS_PFNZERO,
    IS_PRESENT,
    IS_SWAPPED,
    KIND_ANON,
    KIND_FILE,
    KIND_VCLOCK,
    KIND_VDSO,
    KIND_VVAR,
    AgentError,
    AgentGroup,
    Answer,
    Counters,
    Outcome,
    Process,
    Run,
)
from pterefd.reenact.build import PGD_SLOT, build_agent
from pterefd.reenact.calls import ADVICE_NUMBER, PAGE, SPAN, command_of, mmap_command, touch_command
from pterefd.reenact.files import Files
from pterefd.reenact.kernel import Kernel
from pterefd.reenact.operations import Operation, Row, Survey

SLOTS = 64  # processes at a time, the keeper of the files included
FIELDS = Counters._fields[:-1]  # huge_entries has no field in a trace
BATCH_PAGES = 1 << 18  # accessed by one batch, so that the agent answers in time
LINES_AT_ONCE = 40  # each shorter than 100 bytes; init.c takes messages of up to 4095
ONE_BY_ONE = frozenset({"fault", "mmap", "munmap", "mremap", "mprotect", "brk", "madvise", "mlock", "munlock"})
NEVER = frozenset({"hwpoison", "soft_offline"})  # they take memory away from the machine itself
SPECIAL = {"[vvar]": KIND_VVAR, "[vvar_vclock]": KIND_VCLOCK, "[vdso]": KIND_VDSO}

Emit = Callable[[Row, int], None]  # a row of the new trace, and the index of the event that it came of


@dataclass(slots=True)
class Life:
    """One address space. own: what the agent itself has in it.

    parked: mappings of the kernel's own (KIND_*) that wait for their place, and are not told of yet.
    begun: an operation has been done that a snapshot cannot stand before.  snapshot: its entries are still to be told.
    heap: where the heap's mapping ends that was there before its first brk, by its start.  shmem: ranges that shared
    memory has been mapped in.
    """

    process: Process
    own: Counters
    parked: dict[int, Run] = field(default_factory=dict)
    begun: bool = False
    snapshot: list[tuple[int, Row]] = field(default_factory=list)
    shmem: list[tuple[int, int]] = field(default_factory=list)
    has_heap: bool = False
    heap: dict[int, int] = field(default_factory=dict)

    def is_shmem(self, addr: int, length: int) -> bool:
        """Whether shared memory is, or was, mapped in the range."""
        return any(addr < end and start < addr + length for start, end in self.shmem)


@dataclass(frozen=True, slots=True)
class Unlike:
    """A call that was answered otherwise than in the trace. "" is success."""

    index: int
    pid: int
    op: str
    traced: str
    here: str


@dataclass(slots=True)
class Done:
    """What came of a run.

    left_out: what was not done as it was, by kind.  unlike: answers that are not the trace's.  recorded: the trace's
    checkpoints without a window, by field; as_recorded: those of them where the kernel said the same again.  own: of
    each process, what the agent itself has in it.  kernel_ns: time that the kernel took for the events in batches.
    """

    operations: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    unlike: list[Unlike] = field(default_factory=list)
    recorded: Counter[str] = field(default_factory=Counter)
    as_recorded: Counter[str] = field(default_factory=Counter)
    own: dict[int, Counters] = field(default_factory=dict)
    kernel_ns: int = 0


def entry_name(categories: int, shmem: bool) -> str:
    """The word of the trace format for PAGE_IS_* bits of an entry that is there."""
    if categories & IS_GUARD:
        return "guard"
    if categories & IS_SWAPPED:
        return "swap"
    if categories & IS_PFNZERO:
        return "zero"
    if categories & IS_FILE:
        return "shmem" if shmem else "file"
    return "anon"


def changes(before: list[Run], after: list[Run], start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (start, end, categories before, after) of runs in [start, end) that differ."""
    marks = {start, end}
    for run in (*before, *after):
        marks |= {mark for mark in (run.start, run.end) if start < mark < end}

    def at(runs: list[Run], place: int) -> int:
        return next((run.categories for run in runs if run.start <= place < run.end), 0)

    for a, b in pairwise(sorted(marks)):
        old, new = at(before, a), at(after, a)
        if old != new:
            yield a, b, old, new


@contextmanager
def agents_for(kernel: Kernel, found: Survey) -> Iterator[tuple[AgentGroup, int]]:
    """A first agent, and the PGD slot that it keeps to, which the trace does not use.

    BadInput: the trace uses all.  Missing: no compiler, or the agents did not survive.
    """
    slot = found.free_slot()
    if slot is None:
        raise BadInput("the trace uses every 512 GiB of the address space: there is no room for the agent")
    try:
        with kernel.agents(build_agent(pgd_slot=slot), slots=SLOTS) as group:
            yield group, slot
    except AgentError as error:
        raise Missing(f"Linux {kernel.release}: an agent did not survive ({error}): is there enough memory?") from None


class Reenactment:
    """One run of a trace's operations.

    group: whose first agent starts all others and keeps the files; it must live in PGD slot `pgd_slot`.
    emit: takes the new trace's rows.  swap: there is somewhere to swap to.  every: a checkpoint after every so many
    events after the first `since`, beside those of the trace.
    counting False: no checkpoints, no listing: for the time alone.
    """

    def __init__(
        self,
        group: AgentGroup,
        survey: Survey,
        pgd_slot: int,
        emit: Emit,
        *,
        swap: bool = False,
        every: int = 0,
        since: int = 0,
        counting: bool = True,
    ) -> None:
        self._group = group
        self._survey = survey
        self._own = range(pgd_slot * PGD_SLOT, (pgd_slot + 1) * PGD_SLOT)
        self._emit = emit
        self._swap = swap
        self._every = every
        self._since = since
        self._counting = counting
        self._keeper = group.first
        self._lives: dict[int, Life] = {}
        self._pid = 0  # whose operations wait
        self._waiting: list[tuple[int, Row | None, str]] = []  # index, row, command
        self._pages = 0
        self._paged_out: tuple[int, int, int] | None = None  # pid, range of the MADV_PAGEOUT just done
        self.done = Done()
        self._files = Files(self._keeper, survey, self.done.left_out)
        self._path = "/agent"  # the agent's own, as the new trace calls it
        while self._path in survey.sizes:
            self._path += "-too"

    def run(self, trace_operations: Iterable[Operation]) -> Done:
        """Run them all. AgentError: an agent did not survive."""
        for row in self._files.make(self._survey):
            self._emit(row, 0)
        index = 0
        for operation in trace_operations:
            index = operation.event
            self._do(operation)
            self.done.operations += operation.events
            if (
                self._every
                and operation.events
                and index >= self._since
                and (index + operation.events) % self._every == 0
            ):
                self._checkpoint_of_begun(operation.row.get("pid") or 0, index)
        self._flush()
        for pid in list(self._lives):
            self._checkpoint(pid, index)
        return self.done

    # -- operations ------------------------------------------------------------------------------

    def _do(self, operation: Operation) -> None:
        index, row = operation.event, operation.row
        op = row["op"]
        pid = row.get("pid")
        life = self._lives.get(pid) if pid is not None else None
        if op in ("cache", "truncate"):
            self._do_file(index, row)
        elif op == "exec":
            self._do_exec(index, row)
        elif life is None:
            self.done.left_out["events of processes that were left out"] += 1
        elif op in ONE_BY_ONE:
            self._one(index, row, life)
        else:
            getattr(self, "_do_" + op)(index, row, life)
        if op not in ("swap_out", "madvise", "expect"):
            self._paged_out = None

    def _one(self, index: int, row: Row, life: Life) -> None:
        """What a batch takes, and what of it needs more than its own row."""
        op = row["op"]
        if op not in ("mmap", "brk"):
            self._begin(row["pid"], life)
        if op == "mmap":
            self._do_mmap(index, row, life)
        elif op == "mremap":
            if life.is_shmem(row["addr"], row["len"]):
                life.shmem.append((row["new_addr"], row["new_addr"] + row["new_len"]))
            self._queue(index, row, command_of(row))
        elif op == "brk":
            self._do_brk(index, row, life)
        elif op == "madvise" and (row["advice"] == "pageout" or row["advice"] in NEVER):
            self._do_pageout(index, row, life)
        elif op == "madvise" and row["advice"] not in ADVICE_NUMBER:
            self.done.left_out[f"madvise {row['advice']}"] += 1
        else:
            self._queue(index, row, command_of(row))

    def _queue(self, index: int, row: Row | None, command: str, pid: int = 0) -> None:
        """Let an operation wait for its batch. row None: nothing is told of it."""
        pid = pid or (row or {})["pid"]
        pages = int(command.split()[2], 16) if command[0] == "t" else 0
        if pid != self._pid or len(self._waiting) == BATCH or self._pages + pages > BATCH_PAGES:
            self._flush()
        self._pid = pid
        self._pages += pages
        self._waiting.append((index, row, command))

    def _flush(self, counted: bool = False) -> Answer | None:
        """Do what waits. counted: the answer has the counters."""
        if not self._waiting:
            return None
        waiting, self._waiting, self._pages = self._waiting, [], 0
        answer = self._batch(self._lives[self._pid].process, [command for _, _, command in waiting], counted)
        self.done.kernel_ns += answer.result
        for number, (index, row, _) in enumerate(waiting):
            if row is not None:
                self._answered(index, row, answer.outcomes.get(number))
        return answer

    @staticmethod
    def _batch(process: Process, commands: list[str], counted: bool) -> Answer:
        """Send a batch, in pieces that a guest's port takes."""
        process.send(f"n {len(commands):x} {int(counted)}")
        for at in range(0, len(commands), LINES_AT_ONCE):
            process.send("\n".join(commands[at : at + LINES_AT_ONCE]))
        return process.receive()

    def _answered(self, index: int, row: Row, outcome: Outcome | None) -> None:
        """Tell an operation, and what the kernel answered."""
        if row["op"] == "fault":
            self._touched(index, row, outcome.failed if outcome is not None else [])
            return
        code = errno.errorcode[outcome.errno] if outcome is not None and outcome.errno else ""
        self._compare_answers(index, row, code)
        row = {name: value for name, value in row.items() if name != "errno"}
        if code:
            row["errno"] = code
        elif outcome is not None and row["op"] in ("mmap", "mremap"):
            row["addr" if row["op"] == "mmap" else "new_addr"] = outcome.result
        self._emit(row, index)

    def _touched(self, index: int, row: Row, failed: list[tuple[int, int, int]]) -> None:
        """An access: a row for each run of pages that could be accessed, or could not."""
        self._compare_answers(index, row, "EFAULT" if failed else "")
        if not failed:
            self._emit({name: value for name, value in row.items() if name != "errno"}, index)
            return
        at, pages = 0, row.get("len", PAGE) // PAGE
        for first, count, _ in [*failed, (pages, 0, 0)]:
            for begin, length, code in ((at, first - at, None), (first, count, "EFAULT")):
                if length:
                    piece = row | {"addr": row["addr"] + begin * PAGE, "len": length * PAGE, "errno": code}
                    self._emit(piece, index)
            at = first + count

    def _compare_answers(self, index: int, row: Row, code: str) -> None:
        if row.get("errno", "") != code:
            name = f"madvise {row['advice']}" if row["op"] == "madvise" else row["op"]
            self.done.unlike.append(Unlike(index, row["pid"], name, row.get("errno", ""), code))

    def _ask(self, life: Life, command: str) -> Answer:
        """One command by itself, after what waits."""
        self._flush()
        return life.process.ask(command)

    def _do_mmap(self, index: int, row: Row, life: Life) -> None:
        path = row.get("path", "")
        kind = kind_of_path(path) if path else -1
        words = row["flags"].split(",")
        if "hugetlb" in words:
            self.done.left_out["mappings of hugetlb pages"] += 1
            return
        if path == "[heap]" or "heap" in words:
            life.heap[row["addr"]] = row["addr"] + row["len"]
        if kind in (OBJ_VDSO, OBJ_VVAR) and not row.get("errno"):
            self._do_special(index, row, life, path)
        elif kind < 0 or "anonymous" in words:
            if "shared" in words:
                life.shmem.append((row["addr"], row["addr"] + row["len"]))
            self._queue(index, row, mmap_command(row))
        else:
            self._map_file(index, row, life, path)

    def _map_file(self, index: int, row: Row, life: Life, path: str) -> None:
        file = self._files.get(path)
        if file is None:
            self.done.left_out["mappings of files that could not be made"] += 1
            return
        offset = row.get("offset", 0)
        if not file.zero:
            wanted = row.get("file_size", offset + row["len"])
            if wanted > file.size:
                self._flush()
                for line in self._files.grow(path, wanted):
                    self._emit(line, index)
            row = row | {"file_size": file.size}
        if file.shmem or (file.zero and "shared" in row["flags"]):
            life.shmem.append((row["addr"], row["addr"] + row["len"]))
        self._queue(index, row, mmap_command(row, file.fd, offset))

    def _do_special(self, index: int, row: Row, life: Life, path: str) -> None:
        """[vvar], [vdso]: the agent's own one moves there, or read-only memory stands in for it."""
        kind = SPECIAL.get(path, KIND_VVAR)
        answer = self._ask(life, f"v {kind:x} {row['addr']:x} {row['len']:x}")
        if answer.errno:
            self.done.left_out[f"{path} (anonymous memory stands in for it)"] += 1
            self._queue(index, {name: value for name, value in row.items() if name != "path"}, mmap_command(row))
            return
        life.own = self.done.own[row["pid"]] = life.own._replace(vmas=life.own.vmas - 1)
        if life.parked.pop(kind, None) is not None:
            self._emit(row, index)
            return
        at = self._own.start + PGD_SLOT // 2 + (kind << 20)
        move = {"op": "mremap", "pid": row["pid"], "addr": at, "len": row["len"]}
        self._emit(move | {"new_addr": row["addr"], "new_len": row["len"]}, index)

    def _do_brk(self, index: int, row: Row, life: Life) -> None:
        if life.has_heap or row.get("errno"):
            self._queue(index, row, command_of(row))
            return
        start: int = row["start"] if "start" in row else row["addr"]
        end = life.heap.get(start, start)
        answer = self._ask(life, f"h {start:x} {end:x}")
        if answer.errno:
            self.done.left_out[f"the place of the heap ({errno.errorcode[answer.errno]})"] += 1
            return
        life.has_heap = True
        self._queue(index, row, command_of(row))

    def _do_pageout(self, index: int, row: Row, life: Life) -> None:
        """MADV_PAGEOUT: what went is read from the entries, as the kernel takes what it likes."""
        if row["advice"] in NEVER:
            self.done.left_out[f"madvise {row['advice']}, which would take memory from this machine"] += 1
            return
        self._page_out(index, row, life, tell=True)
        self._paged_out = (row["pid"], row["addr"], row["addr"] + row["len"])

    def _page_out(self, index: int, row: Row, life: Life, tell: bool) -> int:
        """Returns the number of pages that went. tell: the call itself is part of the new trace."""
        if not self._swap and life.is_shmem(row["addr"], row["len"]):
            # It would unmap the pages and find no place for them; a trace has no word for that.
            self.done.left_out["madvise pageout of shared memory, as there is no swap"] += 1
            return 0
        before = self._ask(life, "s").runs if self._counting else []
        self._queue(index, row if tell else None, f"a {row['addr']:x} {row['len']:x} 15", row["pid"])
        after = self._ask(life, "s").runs if self._counting else []
        gone = 0
        for start, end, _, new in changes(before, after, row["addr"], row["addr"] + row["len"]):
            if new & IS_PRESENT:
                continue  # its huge page was split, no more
            out: Row = {"op": "swap_out", "pid": row["pid"], "addr": start, "len": end - start}
            self._emit(out if new & IS_SWAPPED else out | {"dropped": True}, index)
            gone += (end - start) // PAGE
        return gone

    def _do_swap_out(self, index: int, row: Row, life: Life) -> None:
        """What reclaim took: the call before it has taken what it would, else it is asked for now."""
        if self._paged_out is not None:
            pid, start, end = self._paged_out
            if pid == row["pid"] and start <= row["addr"] and row["addr"] + row["len"] <= end:
                return
        self._begin(row["pid"], life)
        missing = row["len"] // PAGE - self._page_out(index, row, life, tell=False)
        if missing and self._counting:
            self.done.left_out["pages that the kernel did not swap out again"] += missing

    def _do_file(self, index: int, row: Row) -> None:
        if self._files.get(row["path"]) is None or row.get("errno"):
            return  # nothing here maps it
        self._flush()
        if row["op"] == "cache":
            rows = self._files.cache(row["path"], row["offset"], row["len"])
        else:
            rows = self._files.truncate(row["path"], row["len"])
        for line in rows:
            self._emit(line, index)

    def _do_free_ptes(self, index: int, row: Row, life: Life) -> None:
        answer = self._ask(life, "g")
        if answer.errno:
            self.done.left_out["free_ptes (this kernel has no such file)"] += 1
        else:
            self._emit(row, index)

    def _do_thread(self, index: int, row: Row, life: Life) -> None:
        """Threads share an address space: nothing to do, and kept for what a replay shows."""
        self._flush()
        self._emit(row, index)

    _do_thread_exit = _do_thread

    def _do_mlockall(self, index: int, row: Row, life: Life) -> None:
        """It would lock the agent's own memory, too."""
        self.done.left_out[row["op"]] += 1

    _do_munlockall = _do_mlockall

    def _do_mbind(self, index: int, row: Row, life: Life) -> None:
        """Agents have no policies."""
        self.done.left_out["mbind"] += 1

    def _do_thp(self, index: int, row: Row, life: Life) -> None:
        """Agents have no huge pages from the start on."""
        if not row["disabled"]:
            self.done.left_out["huge pages allowed again (agents have none)"] += 1

    # -- snapshots -------------------------------------------------------------------------------

    def _do_state(self, index: int, row: Row, life: Life) -> None:
        """Before a life has begun: make the entries so, and tell afterwards what they are. Later: as accesses."""
        if life.begun:
            self.done.left_out["states in the middle of a life (done as accesses)"] += 1
            self._correct(index, row, life)
            return
        if row.get("huge"):
            self.done.left_out["huge pages of a snapshot (small ones stand in)"] += row["len"] // SPAN
            row = {name: value for name, value in row.items() if name != "huge"}
        life.snapshot.append((index, row))
        addr, length, entry = row["addr"], row["len"], row["entry"]
        pid = row["pid"]
        if entry in ("anon", "swap"):
            self._touch(index, row, FORCED_WRITE)
        elif entry in ("zero", "file", "shmem"):
            self._touch(index, row, FORCED_READ)
        elif entry == "guard":
            self._queue(index, None, f"a {addr:x} {length:x} {ADVICE_NUMBER['guard_install']:x}", pid)
        elif row.get("tables"):
            for span in range(addr & -SPAN, addr + length, SPAN):
                at = max(span, addr)
                self._queue(index, None, f"t {at:x} 1 {FORCED_READ}", pid)
                self._queue(index, None, f"a {at:x} {PAGE:x} {ADVICE_NUMBER['dontneed']:x}", pid)
        if entry == "swap":
            self._queue(index, None, f"a {addr:x} {length:x} {ADVICE_NUMBER['pageout']:x}", pid)

    def _touch(self, index: int, row: Row, how: int) -> None:
        for at in range(0, row["len"], BATCH_PAGES // 4 * PAGE):
            piece = row | {"addr": row["addr"] + at, "len": min(BATCH_PAGES // 4 * PAGE, row["len"] - at)}
            self._queue(index, None, touch_command(piece, how), row["pid"])

    def _begin(self, pid: int, life: Life) -> None:
        """An operation that a snapshot cannot stand before."""
        life.begun = True
        self._tell_snapshot(pid, life)

    def _tell_snapshot(self, pid: int, life: Life) -> None:
        """What the snapshot's entries are, by what the kernel says, and what the agent kept for itself."""
        for run in life.parked.values():
            self._emit(self._own_mapping(pid, run), life.snapshot[-1][0] if life.snapshot else 0)
        life.parked.clear()
        if not life.snapshot:
            return
        rows, life.snapshot = life.snapshot, []
        index = rows[-1][0]
        wanted: Counter[str] = Counter()
        for _, row in rows:
            wanted[row["entry"]] += row["len"] // PAGE
            if row.get("tables"):
                self._flush()
                self._emit(row, index)
        found: Counter[str] = Counter()
        if self._counting:
            for row in self._states(pid, life, self._ask(life, "s").runs):
                found[row["entry"]] += row["len"] // PAGE
                self._emit(row, index)
            for entry in ("anon", "zero", "swap", "guard"):
                if wanted[entry] > found[entry]:
                    self.done.left_out[f"{entry} entries of a snapshot"] += wanted[entry] - found[entry]

    def _states(self, pid: int, life: Life, runs: list[Run], own: bool = False) -> Iterator[Row]:
        """`state` rows of what is there, the agent's own pages apart or (own) alone."""
        for run in runs:
            if (run.start in self._own) is not own:
                continue
            # One run may go over the end of a mapping: from a file's pages to shmem's.
            cuts = {mark for area in life.shmem for mark in area if run.start < mark < run.end}
            for start, end in pairwise(sorted({run.start, run.end, *cuts})):
                shmem = any(a <= start < b for a, b in life.shmem)
                row: Row = {"op": "state", "pid": pid, "addr": start, "len": end - start}
                yield row | {"entry": entry_name(run.categories, shmem)}

    def _correct(self, index: int, row: Row, life: Life) -> None:
        """A correction of the recording's: the nearest operations that a process could do."""
        at = {name: row[name] for name in ("pid", "addr", "len")}
        if row["entry"] in ("anon", "swap"):
            self._one(index, {"op": "fault", **at, "write": True}, life)
        elif row["entry"] in ("zero", "file", "shmem"):
            self._one(index, {"op": "fault", **at, "write": False}, life)
        elif row["entry"] == "none":
            self._one(index, {"op": "madvise", **at, "advice": "dontneed"}, life)
        else:
            self._one(index, {"op": "madvise", **at, "advice": "guard_install"}, life)
        if row["entry"] == "swap":
            self._one(index, {"op": "madvise", **at, "advice": "pageout"}, life)

    # -- lives -----------------------------------------------------------------------------------

    def _do_exec(self, index: int, row: Row) -> None:
        self._flush()
        pid = row["pid"]
        if row.get("errno"):
            return
        old = self._lives.get(pid)
        if old is not None:
            process = old.process
            self._checkpoint(pid, index)
        else:
            forked = self._group.fork(self._keeper)[1] if self._group.free_slots else None
            if forked is None:
                self.done.left_out["processes, as too many live at a time"] += 1
                return
            process = forked
        answer = self._group.exec(process)
        life = self._lives[pid] = Life(process, answer.counters)
        self.done.own[pid] = life.own
        self._emit({name: value for name, value in row.items() if name != "errno"}, index)
        self._emit({"op": "thp", "pid": pid, "disabled": True}, index)  # by the agent's first start
        for run in process.ask("y").runs:
            if run.categories >> 3 in (KIND_ANON, KIND_FILE):
                self._emit(self._own_mapping(pid, run), index)
            else:
                life.parked[run.categories >> 3] = run
        for state in self._states(pid, life, process.ask("s").runs, own=True):
            self._emit(state, index)

    def _own_mapping(self, pid: int, run: Run) -> Row:
        """The row of one of the agent's own mappings."""
        bits, kind = run.categories & 7, run.categories >> 3
        prot = "".join(letter if bits >> bit & 1 else "-" for bit, letter in enumerate("rwx"))
        row: Row = {"op": "mmap", "pid": pid, "addr": run.start, "len": run.end - run.start, "prot": prot}
        if kind == KIND_FILE:
            return row | {"flags": "private", "path": self._path, "offset": 0, "file_size": run.end - run.start}
        row["flags"] = "private,anonymous"
        if kind == KIND_ANON:
            return row
        return row | {"path": next((path for path, special in SPECIAL.items() if special == kind), "[vvar]")}

    def _do_fork(self, index: int, row: Row, parent: Life) -> None:
        self._flush()
        if row.get("errno"):
            return  # it made nothing
        self._begin(row["pid"], parent)
        if not self._group.free_slots:
            self.done.left_out["processes, as too many live at a time"] += 1
            return
        answer, child, hello = self._group.fork(parent.process)
        if child is None or hello is None:
            code = errno.errorcode[answer.errno]
            self._compare_answers(index, row, code)
            self._emit({"op": "fork", "pid": row["pid"], "errno": code}, index)
            return
        self._lives[row["child"]] = Life(
            child, parent.own, begun=True, has_heap=parent.has_heap, heap=dict(parent.heap), shmem=list(parent.shmem)
        )
        self.done.own[row["child"]] = parent.own
        self._emit(row, index)
        # The child reads its text, which fork did not copy (a file mapping that was only read).
        start, pages = self._own.start, parent.own.RssFile * 1024 // PAGE
        text: Row = {"op": "fault", "pid": row["child"], "addr": start, "len": pages * PAGE, "write": False}
        self._emit(text, index)

    def _do_exit(self, index: int, row: Row, life: Life) -> None:
        if row.get("errno"):
            return
        self._checkpoint(row["pid"], index)
        self._emit(row, index)
        del self._lives[row["pid"]]
        self._group.exit(life.process)

    # -- checkpoints -----------------------------------------------------------------------------

    def _counters(self, pid: int) -> Counters:
        """What the kernel says of the process now."""
        life = self._lives[pid]
        self._tell_snapshot(pid, life)
        answer = self._flush(counted=True) if self._pid == pid else None
        return (answer or self._ask(life, "q")).counters

    def _checkpoint_of_begun(self, pid: int, index: int) -> None:
        """A checkpoint that may wait until the snapshot is whole."""
        life = self._lives.get(pid)
        if life is not None and life.begun:
            self._checkpoint(pid, index)

    def _checkpoint(self, pid: int, index: int) -> Counters | None:
        """Tell what the kernel says of a process now."""
        if not self._counting:
            self._flush()
            return None
        counters = self._counters(pid)
        self._emit({"op": "expect", "pid": pid, **dict(zip(FIELDS, counters[:-1], strict=True))}, index)
        return counters

    def _do_expect(self, index: int, row: Row, life: Life) -> None:
        counters = self._checkpoint(row["pid"], index)
        if counters is None or row.get("t0") is not None:
            return
        for name in FIELDS:
            if row.get(name) is not None:
                self.done.recorded[name] += 1
                self.done.as_recorded[name] += getattr(counters, name) - getattr(life.own, name) == row[name]
