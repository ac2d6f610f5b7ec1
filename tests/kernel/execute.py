"""Runs a program on the running kernel and writes down, as rows of a trace, what was done and what the kernel said.

After every operation an `expect` row holds what the kernel says of the process that acted, at the end of every process.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from pterefd.reenact.agent import (
    FILE_DISK,
    FILE_MEMFD,
    IS_HUGE,
    IS_PRESENT,
    IS_SWAPPED,
    KERNEL_READ,
    KERNEL_WRITE,
    READ,
    WRITE,
    AgentError,
    Answer,
    Counters,
    Process,
)
from pterefd.reenact.build import build_agent, heap_start
from pterefd.reenact.calls import (
    ADVICE_NUMBER,
    MAP_FIXED,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    flags_number,
    prot_number,
)
from pterefd.reenact.kernel import Kernel, ThisKernel
from pterefd.reenact.run import changes, entry_name

from .program import PAGE, FileSpec, Op, Program

Row = dict[str, Any]
FIELDS = Counters._fields[:-1]  # huge_entries has no field in a trace
SHORT = {  # name in a directed case -> counter, its unit
    "tables": ("VmPTE", 4),
    "anon": ("RssAnon", 4),
    "file": ("RssFile", 4),
    "shmem": ("RssShmem", 4),
    "zero": ("zero_entries", 1),
    "present": ("present_entries", 1),
    "swap": ("swap_entries", 1),
    "guard": ("guard_entries", 1),
    "vmas": ("vmas", 1),
    "huge": ("huge_entries", 1),
}
FILE_FD0 = 40  # the agents' descriptor of the first file
SHARED_ADVICE = ("remove", "free", "cold", "pageout", "collapse")  # may change the entries of other processes


@dataclass(frozen=True, slots=True)
class Machine:
    """What every run has in common: the kernel, and how much the trace is told of it.

    states: at the end, a `state` row for every run of entries, which says where the entries are, not only how many.
    thp: the setting of huge pages in force (hugepages.py); None: whatever it is, programs have none (prctl).
    """

    kernel: Kernel
    states: bool = False
    every_process: bool = False
    thp: str | None = None

    @property
    def heap_start(self) -> int:
        """Where the agent's heap begins."""
        return heap_start(build_agent())

    @classmethod
    def this(cls, *, states: bool = False, every_process: bool = False, cpu: int | None = None) -> Machine:
        """The running kernel."""
        return cls(ThisKernel(cpu), states, every_process)

    def header(self, program: Program) -> Row:
        """The trace's first line."""
        return {
            "op": "trace",
            "format_version": 1,
            "arch": "x86_64",
            "page_size": PAGE,
            "kernel_release": self.kernel.release,
            "kernel_version": self.kernel.version,
            "kernel_config": self.kernel.config,
            "thp": self.thp or "never",
            "fault_around_bytes": self.kernel.fault_around_bytes,
            "command": ["oracle", program.family, str(program.seed), str(len(program.ops))],
        }


class TestFiles:
    """The files of one program, without a name. The agent makes them, and what it starts can map them too.

    paths: what the trace calls them.  sizes: in bytes, now.
    """

    __test__ = False

    def __init__(self, agent: Process, specs: list[FileSpec]) -> None:
        self.specs = specs
        self.paths: list[str] = []
        self.sizes: list[int] = []
        for index, spec in enumerate(specs):
            shmem = spec.kind == "tmpfs"
            self.paths.append(f"/memfd:oracle-{index}" if shmem else f"/oracle-{index}")
            self._make(agent, f"o {FILE_FD0 + index:x} {FILE_MEMFD if shmem else FILE_DISK:x}")
            for first, pages in spec.cached:
                self._make(agent, f"c {FILE_FD0 + index:x} {first:x} {pages:x}")
            self.sizes.append(0)
            self.truncate(agent, index, spec.pages * PAGE)

    def _make(self, agent: Process, command: str) -> None:
        failed = agent.ask(command).errno
        if failed:
            raise AgentError(f"a file for the program: {command}: {errno.errorcode[failed]}")

    def truncate(self, agent: Process, index: int, size: int) -> None:
        """Set a file's size. agent: any that lives."""
        self._make(agent, f"z {FILE_FD0 + index:x} {size:x}")
        self.sizes[index] = size

    def rows(self) -> Iterator[Row]:
        """What the page cache holds of them at the start."""
        for spec, path in zip(self.specs, self.paths, strict=True):
            yield {"op": "truncate", "path": path, "len": spec.pages * PAGE}
            for first, pages in spec.cached:
                yield {"op": "cache", "path": path, "offset": first * PAGE, "len": pages * PAGE}


class Execution:
    """One run of a program. `rows` grows to the whole trace."""

    def __init__(self, machine: Machine, program: Program) -> None:
        self.machine = machine
        self.program = program
        self.rows: list[Row] = [machine.header(program)]
        self.processes: dict[int, Process] = {}
        self.checkpoints = 0
        self.first: Counters | None = None
        self.after: list[Counters | None] = []  # by operation: what the kernel said of the process that acted
        self.errnos: list[int] = []  # by operation
        self.children: dict[int, Counters] = {}  # what it said of a child when it was forked
        self.ends: list[int] = []  # by operation: the number of rows when it was done
        self.text = (0, 0)

    def run(self) -> list[Row]:
        """Run it all and return the rows. AgentError: the agent did not survive."""
        with ExitStack() as stack:
            self.group = stack.enter_context(self.machine.kernel.agents(thp=self.machine.thp is not None))
            self.files = TestFiles(self.group.first, self.program.files)
            self.rows += self.files.rows()
            self.processes[1] = self.group.first
            self.first = self.group.first_answer.counters
            self._started(1, self.group.first_answer)
            if self.machine.thp is None:
                self.rows.append({"op": "thp", "pid": 1, "disabled": True})
            for number, op in enumerate(self.program.ops):
                try:
                    self._do(op)
                except AgentError as error:
                    raise AgentError(f"{error} at operation {number}: {op}") from None
                self.ends.append(len(self.rows))
            self._end()
        return self.rows

    # -- what the kernel says --------------------------------------------------------------------

    def _expect(self, pid: int, counters: Counters) -> None:
        values = dict(zip(FIELDS, counters[:-1], strict=True))
        self.rows.append({"op": "expect", "pid": pid, **values})
        self.checkpoints += 1

    def _expect_others(self, pid: int | None) -> None:
        for other, process in self.processes.items():
            if other != pid:
                self._expect(other, process.ask("q").counters)

    def _started(self, pid: int, answer: Answer) -> None:
        """exec, then the mappings and entries that are there before the first operation."""
        process = self.processes[pid]
        self.rows.append({"op": "exec", "pid": pid, "comm": "agent"})
        heap = 0
        for line in process.maps():
            words = line.split()
            start, end = (int(word, 16) for word in words[0].split("-"))
            path = words[5] if len(words) > 5 else ""
            if start >= 1 << 47:
                continue
            row: Row = {"op": "mmap", "pid": pid, "addr": start, "len": end - start, "prot": words[1][:3]}
            if path.startswith("/"):
                self.text = (start, end)
                row |= {"flags": "private", "path": "/agent", "offset": int(words[2], 16)}
                row["file_size"] = build_agent().stat().st_size
            elif path == "[stack]":
                row["flags"] = "private,anonymous,growsdown,stack"
            else:
                row["flags"] = "private,anonymous"
                heap = heap or end
            self.rows.append(row)
        self.rows += self._state_rows(pid)
        self.rows.append({"op": "brk", "pid": pid, "addr": heap, "start": heap})
        self._expect(pid, answer.counters)

    def _state_rows(self, pid: int) -> Iterator[Row]:
        process = self.processes[pid]
        shared: list[tuple[int, int]] = []
        for line in process.maps():
            words = line.split()
            if len(words) > 5 and words[5].startswith(("/memfd:", "/dev/zero")):
                start, end = (int(word, 16) for word in words[0].split("-"))
                shared.append((start, end))
        for run in process.ask("s").runs:
            # One run may go over the end of a mapping: from a file's pages to shmem's.
            cuts = sorted(
                {run.start, run.end, *(mark for area in shared for mark in area if run.start < mark < run.end)}
            )
            for start, end in pairwise(cuts):
                shmem = any(a <= start < b for a, b in shared)
                row: Row = {"op": "state", "pid": pid, "addr": start, "len": end - start}
                row["entry"] = entry_name(run.categories, shmem)
                yield row | {"huge": True} if run.categories & IS_HUGE else row

    def _end(self) -> None:
        for pid, process in self.processes.items():
            self._expect(pid, process.ask("q").counters)
            if self.machine.states:
                self.rows += self._state_rows(pid)
                self._expect(pid, process.ask("q").counters)
        for pid in reversed(list(self.processes)):
            self.rows.append({"op": "exit", "pid": pid})
            self.group.exit(self.processes[pid])

    def changes_by(self, index: int) -> dict[str, int]:
        """What an operation changed, by short names (SHORT), in tables, pages or entries; of a fork, child_* is the
        child's less the parent's."""
        op = self.program.ops[index]
        now = self.after[index]
        earlier = [
            self.children[past["child"]] if past.get("child") == op["pid"] else self.after[at]
            for at, past in enumerate(self.program.ops[:index])
            if op["pid"] in (past.get("pid"), past.get("child"))
        ]
        known = [counters for counters in earlier if counters is not None]
        before = known[-1] if known else self.first
        assert now is not None
        assert before is not None
        out = {"errno": self.errnos[index]}
        for name, (field, unit) in SHORT.items():
            out[name] = (getattr(now, field) - getattr(before, field)) // unit
            if op.get("child") in self.children:
                out[f"child_{name}"] = (getattr(self.children[op["child"]], field) - getattr(now, field)) // unit
        return out

    # -- operations ------------------------------------------------------------------------------

    def _do(self, op: Op) -> None:
        self.after.append(None)
        self.errnos.append(0)
        if op["op"] == "truncate":
            self._truncate(op)
            return
        if op["pid"] not in self.processes:
            return  # a shrunk program may have lost the fork
        getattr(self, "_do_" + op["op"])(op, self.processes[op["pid"]])
        if self.machine.every_process or op.get("advice") in SHARED_ADVICE:
            self._expect_others(op["pid"])

    def _record(self, row: Row, answer: Answer) -> None:
        """The operation's row, and what the kernel says after it."""
        if answer.errno:
            row["errno"] = errno.errorcode[answer.errno]
        self.rows.append(row)
        self._answered(row["pid"], answer)

    def _answered(self, pid: int, answer: Answer) -> None:
        self._expect(pid, answer.counters)
        self.after[-1] = answer.counters
        self.errnos[-1] = answer.errno

    def _do_mmap(self, op: Op, process: Process) -> None:
        row = {key: op[key] for key in ("op", "pid", "addr", "len", "prot", "flags")}
        fd, offset = 0xFFFFFFFF, 0
        if "file" in op:
            fd, offset = FILE_FD0 + op["file"], op["offset"]
            row |= {"path": self.files.paths[op["file"]], "offset": offset}
            row["file_size"] = self.files.sizes[op["file"]]
        flags = flags_number(op["flags"]) | MAP_FIXED
        command = f"m {op['addr']:x} {op['len']:x} {prot_number(op['prot']):x} {flags:x} {fd:x} {offset:x}"
        self._record(row, process.ask(command))

    def _do_munmap(self, op: Op, process: Process) -> None:
        self._record(dict(op), process.ask(f"u {op['addr']:x} {op['len']:x}"))

    def _do_mremap(self, op: Op, process: Process) -> None:
        flags = {"fixed": MREMAP_MAYMOVE | MREMAP_FIXED, "any": MREMAP_MAYMOVE, "stay": 0}[op["place"]]
        if op.get("dontunmap"):
            flags |= MREMAP_DONTUNMAP
        answer = process.ask(f"r {op['addr']:x} {op['len']:x} {op['new_len']:x} {flags:x} {op['new_addr']:x}")
        row = {key: op[key] for key in ("op", "pid", "addr", "len", "new_addr", "new_len")}
        if op.get("dontunmap"):
            row["dontunmap"] = True
        if not answer.errno:
            row["new_addr"] = answer.result
        elif not flags & MREMAP_FIXED:
            row["new_addr"] = op["addr"]
        self._record(row, answer)

    def _do_mprotect(self, op: Op, process: Process) -> None:
        self._record(dict(op), process.ask(f"p {op['addr']:x} {op['len']:x} {prot_number(op['prot']):x}"))

    def _do_brk(self, op: Op, process: Process) -> None:
        self._record(dict(op), process.ask(f"b {op['addr']:x}"))

    def _do_mlock(self, op: Op, process: Process) -> None:
        self._record(dict(op), process.ask(f"l {op['addr']:x} {op['len']:x} {1 if op.get('onfault') else 0}"))

    def _do_munlock(self, op: Op, process: Process) -> None:
        self._record(dict(op), process.ask(f"k {op['addr']:x} {op['len']:x}"))

    def _has_no_word(self, op: Op, process: Process) -> bool:
        """Whether a trace has no word for what advice would do, which the generator knows only roughly.

        Paging out shared memory for which there is no swap unmaps it, no more. A hole in a file on disk is filled by
        readahead, in folios of any size.
        """
        swaps = len(Path("/proc/swaps").read_text().splitlines()) > 1
        if op["advice"] != "remove" and (op["advice"] != "pageout" or swaps):
            return False
        for line in process.maps():
            words = line.split()
            start, end = (int(word, 16) for word in words[0].split("-"))
            shmem = len(words) > 5 and words[5].startswith(("/memfd:", "/dev/zero"))
            disk = len(words) > 5 and not shmem and words[1][3] == "s"
            if start < op["addr"] + op["len"] and op["addr"] < end and (disk if op["advice"] == "remove" else shmem):
                return True
        return False

    def _do_madvise(self, op: Op, process: Process) -> None:
        if self._has_no_word(op, process):
            op = op | {"advice": "cold"}
        before = process.ask("s").runs if op["advice"] == "pageout" else []
        answer = process.ask(f"a {op['addr']:x} {op['len']:x} {ADVICE_NUMBER[op['advice']]:x}")
        if op["advice"] != "pageout":
            self._record(dict(op), answer)
            return
        row = dict(op)
        if answer.errno:
            row["errno"] = errno.errorcode[answer.errno]
        self.rows.append(row)
        for start, end, _, new in changes(before, process.ask("s").runs, op["addr"], op["addr"] + op["len"]):
            if new & IS_PRESENT:
                continue  # its huge page was split, no more
            gone: Row = {"op": "swap_out", "pid": op["pid"], "addr": start, "len": end - start}
            if not new & IS_SWAPPED:
                gone["dropped"] = True
            self.rows.append(gone)
        self._answered(op["pid"], answer)

    def _do_thp(self, op: Op, process: Process) -> None:
        self._record(dict(op), process.ask(f"j {int(op['disabled'])}"))

    def _do_fault(self, op: Op, process: Process) -> None:
        """One row for each run of pages that could be accessed, or could not (errno EFAULT)."""
        if op.get("via") == "kernel":
            how = KERNEL_WRITE if op["write"] else KERNEL_READ
        else:
            how = WRITE if op["write"] else READ
        pages = op["len"] // PAGE
        answer = process.ask(f"t {op['addr']:x} {pages:x} {how:x}")
        at = 0
        for first, count, _ in [*answer.failed, (pages, 0, 0)]:
            for begin, length, bad in ((at, first - at, False), (first, count, True)):
                if length:
                    row: Row = {"op": "fault", "pid": op["pid"], "addr": op["addr"] + begin * PAGE}
                    row |= {"len": length * PAGE, "write": op["write"]}
                    self.rows.append(row | {"errno": "EFAULT"} if bad else row)
            at = first + count
        self._answered(op["pid"], answer)

    def _do_fork(self, op: Op, process: Process) -> None:
        answer, child, hello = self.group.fork(process)
        row: Row = {"op": "fork", "pid": op["pid"], "child": op["child"]}
        if child is None or hello is None:
            self._record({"op": "fork", "pid": op["pid"]}, answer)
            return
        self.processes[op["child"]] = child
        self.rows.append(row)
        # The child reads its text, which fork did not copy (a file mapping that was only read).
        start, end = self.text
        self.rows.append({"op": "fault", "pid": op["child"], "addr": start, "len": end - start, "write": False})
        self._answered(op["pid"], answer)
        self._expect(op["child"], hello.counters)
        self.children[op["child"]] = hello.counters

    def _do_exec(self, op: Op, process: Process) -> None:
        self._started(op["pid"], self.group.exec(process))

    def _do_exit(self, op: Op, process: Process) -> None:
        if len(self.processes) == 1:
            return
        del self.processes[op["pid"]]
        self.rows.append({"op": "exit", "pid": op["pid"]})
        self.group.exit(process)
        self._expect_others(None)

    def _truncate(self, op: Op) -> None:
        index = op["file"]
        self.files.truncate(next(iter(self.processes.values())), index, op["len"])
        self.rows.append({"op": "truncate", "path": self.files.paths[index], "len": op["len"]})
        self._expect_others(None)


def execute(machine: Machine, program: Program) -> list[Row]:
    """Run the program here; returns the rows of its trace."""
    return Execution(machine, program).run()
