"""What the tracer saw at its stops, with the time: what perf's events cannot tell.

t: nanoseconds of CLOCK_MONOTONIC throughout, read while the tasks in question stood still.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pterefd.live.procmem import Entries, Map, StateRow


@dataclass(slots=True)
class Snapshot:
    """A process's memory as it stood: right after an exec, or when recording began on a running process.

    flags: VmFlags by start of mapping, where they were read.  sizes: file sizes by start of mapping, where known.
    brk_start: where the heap begins, 0 unknown.  unlocated: PTE and upper table pages that hold nothing, which
    cannot be located (None after an exec, where there are none).
    """

    comm: str
    cmdline: list[str]
    uid: int | None
    gid: int | None
    oom_score_adj: int | None
    maps: list[Map]
    state: list[StateRow]
    flags: dict[int, frozenset[str]] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)
    brk_start: int = 0
    unlocated: int | None = None
    thp_disabled: bool = False


@dataclass(slots=True)
class ExecMark:
    """A process's mm is new (or seen for the first time: attached).

    former: the tid that called exec.  threads: where attached, the other threads that are there.
    """

    t: int
    tgid: int
    former: int
    snapshot: Snapshot
    attached: bool = False
    threads: list[int] = field(default_factory=list)


@dataclass(slots=True)
class CloneMark:
    """A task was made.

    shares_mm: it has its parent's mm; a thread has its parent's tgid too.  entries: of a forked child, where its parent
    had other threads, what it has inherited.
    """

    t: int
    parent: int
    child: int
    tgid: int
    shares_mm: bool
    entries: Entries | None = None


@dataclass(slots=True)
class CheckpointMark:
    """What the kernel said of the mm of process tgid: fields of an `expect` row.

    stopped: tids that were stopped for it.  entries: where memory was reclaimed since the mm's last one, all entries.
    """

    t: int
    tgid: int
    fields: dict[str, int]
    stopped: list[int] = field(default_factory=list)
    entries: Entries | None = None


@dataclass(slots=True)
class RefusedMark:
    """The kernel answered a fault of task tid on this page with a signal: it has mapped nothing."""

    t: int
    tid: int
    addr: int


@dataclass(slots=True)
class ExitMark:
    """The task is gone."""

    t: int
    tid: int


@dataclass(slots=True)
class Marks:
    """All of them, each list in the order of time, and what was noticed on the way."""

    execs: list[ExecMark] = field(default_factory=list)
    clones: list[CloneMark] = field(default_factory=list)
    checkpoints: list[CheckpointMark] = field(default_factory=list)
    refused: list[RefusedMark] = field(default_factory=list)  # SIGSEGV: no access there
    beyond_file: list[RefusedMark] = field(default_factory=list)  # SIGBUS: beyond the end of the mapped file
    exits: list[ExitMark] = field(default_factory=list)
    huge_pages: int = 0
    programs_32bit: list[str] = field(default_factory=list)
    missed_checkpoints: int = 0
    end: int = 0  # when the tracer let go; what perf has seen later is left out. 0: everybody ended by then

    def forget_before(self, t: int) -> None:
        """Forget which tasks came and went before t: a snapshot of that time has who was there."""
        self.clones = [mark for mark in self.clones if mark.t > t]
        self.refused = [mark for mark in self.refused if mark.t > t]
        self.beyond_file = [mark for mark in self.beyond_file if mark.t > t]
        self.exits = [mark for mark in self.exits if mark.t > t]

    def cut(self, t: int) -> None:
        """Forget what came after t: perf's events end there."""
        self.execs = [mark for mark in self.execs if mark.t <= t]
        self.clones = [mark for mark in self.clones if mark.t <= t]
        self.checkpoints = [mark for mark in self.checkpoints if mark.t <= t]
        self.refused = [mark for mark in self.refused if mark.t <= t]
        self.beyond_file = [mark for mark in self.beyond_file if mark.t <= t]
        self.exits = [mark for mark in self.exits if mark.t <= t]
        self.end = t
