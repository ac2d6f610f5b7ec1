"""What is known of a process beside its page tables."""

from __future__ import annotations

from dataclasses import dataclass, field, replace


@dataclass(slots=True)
class Process:
    """A process of the host.

    mm: record in the engine.  serial: its number among all processes that there have been; exec keeps it (struct pid).
    exec_number: 0 for the first program of the pid, one more with each exec.
    start_ns: the trace's time at which it was first seen.  uid, gid: -1 where the trace does not say.
    group: the group of mms that it belongs to, "" none; children inherit it.
    start_stack: an address in its main stack, 0 while nobody has asked for it.
    """

    pid: int
    mm: int
    serial: int
    comm: str = ""
    cmdline: list[str] = field(default_factory=list)
    uid: int = -1
    gid: int = -1
    oom_score_adj: int = 0
    ppid: int = 0
    start_ns: int = 0
    exec_number: int = 0
    tids: set[int] = field(default_factory=set)
    group: str = ""
    start_stack: int = 0

    @property
    def threads(self) -> int:
        """Number of threads, the first one included."""
        return 1 + len(self.tids)

    def child(self, pid: int, mm: int, serial: int, start_ns: int) -> Process:
        """A forked child: named and owned as its parent."""
        return replace(self, pid=pid, mm=mm, serial=serial, ppid=self.pid, start_ns=start_ns, exec_number=0, tids=set())
