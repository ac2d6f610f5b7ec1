"""Running processes looked at again and again within a budget of CPU time: the largest first, the unchanged less often.

A look at the list of processes (pid, start time, VmPTE) is not of the budget, as it takes some 35 us a process; a scan
of one costs what its tables cost. What is
known of a process is as old as its last scan, and says so; a process that takes a pid anew is another one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from pterefd.errors import NoSuchMm
from pterefd.live import procmem
from pterefd.live.scan import NotSeen, TableUse, pids, read_cgroup, scan
from pterefd.names import printable

DEFAULT_BUDGET = 0.01  # of a core
_SAVED_SECONDS = 2.0  # of wall time, whose budget may be used at once
_AGAIN_SECONDS = 1.0  # until the next scan of a process that has changed; doubled while it does not
_SELDOM_SECONDS = 64.0

Identity = tuple[int, int]  # pid, start time


@dataclass(frozen=True, slots=True)
class Facts:
    """What a look at /proc/PID tells of a process. start_time: clock ticks after boot.

    comm, cgroup: fit to be shown (names.printable).  anon .. total_vm: bytes.  vm_pte: VmPTE, bytes.
    """

    start_time: int = 0
    comm: str = ""
    uid: int = -1
    gid: int = -1
    cgroup: str = ""
    vm_pte: int = 0
    anon: int = 0
    file: int = 0
    shmem: int = 0
    swap: int = 0
    total_vm: int = 0
    faults: int = 0
    major_faults: int = 0


@dataclass(frozen=True, slots=True)
class Watched:
    """One process. facts: as of the last look.  use: as of the last scan, None before the first or where it may not be
    seen.  at: when that was.  why: it is not seen, a sentence; reason: the same as one word (scan.NotSeen).
    """

    pid: int
    facts: Facts
    use: TableUse | None = None
    at: float = 0.0
    why: str = ""
    reason: str = ""

    @property
    def vm_pte(self) -> int:
        """Bytes, as of the last look."""
        return self.facts.vm_pte

    @property
    def start_time(self) -> int:
        """Clock ticks after boot: with the pid, what tells it from any other."""
        return self.facts.start_time

    @property
    def identity(self) -> Identity:
        """Pid and start time."""
        return self.pid, self.facts.start_time

    @property
    def comm(self) -> str:
        """Its name."""
        return self.facts.comm

    @property
    def uid(self) -> int:
        """Effective uid."""
        return self.facts.uid

    @property
    def gid(self) -> int:
        """Effective gid."""
        return self.facts.gid

    @property
    def cgroup(self) -> str:
        """Path of its cgroup, "" where there is none."""
        return self.facts.cgroup

    def age(self, now: float) -> float | None:
        """Seconds since the last scan, by the watch's clock; None before the first."""
        return None if self.use is None else max(0.0, now - self.at)


@dataclass(slots=True)
class _Turn:
    """When a process is due. scanned: VmPTE at its last scan, -1 before."""

    due: float = 0.0
    pause: float = _AGAIN_SECONDS
    scanned: int = -1


class Watch:
    """The processes of this machine, or those that are wanted. look() is to be called every second or so.

    budget, wanted: may be set at any time.  scans, scan_seconds: so far, and the CPU time that they took.
    """

    def __init__(
        self,
        budget: float = DEFAULT_BUDGET,
        wanted: Callable[[int, procmem.Status], bool] = lambda _pid, _status: True,
        *,
        clock: Callable[[], float] = time.monotonic,
        spent: Callable[[], float] = time.thread_time,
    ) -> None:
        """budget: CPU seconds for each second.  wanted: of a pid and its status.  spent: CPU seconds of this thread."""
        self.budget = budget
        self.wanted = wanted
        self.clock = clock
        self._spent = spent
        self._left = budget * _SAVED_SECONDS
        self._looked = clock()
        self._turns: dict[Identity, _Turn] = {}
        self.processes: dict[Identity, Watched] = {}
        self.scan_seconds = 0.0
        self.scans = 0

    def look(self) -> None:
        """See who is there, and scan those that are due while the budget lasts."""
        now = self.clock()
        most = self.budget * _SAVED_SECONDS
        self._left = min(self._left + self.budget * (now - self._looked), most)
        self._looked = now
        self._list(now)
        began = spent = self._spent()
        for identity in self._due(now):
            if spent - began >= self._left:
                break
            self._scan(identity, now)
            spent = self._spent()
        self._charge(spent - began)

    def scan_now(self, identity: Identity) -> None:
        """Scan one process, due or not, on the budget of what comes after; nothing where it has ended."""
        if identity in self._turns:
            began = self._spent()
            self._scan(identity, self.clock())
            self._charge(self._spent() - began)

    def _charge(self, seconds: float) -> None:
        """A scan may take more than is left; what is owed is bounded."""
        self.scan_seconds += seconds
        self._left = max(self._left - seconds, -self.budget * _SAVED_SECONDS * _SAVED_SECONDS)

    def _list(self, now: float) -> None:
        """Take in who has come, leave out who has gone, note who has changed."""
        there: set[Identity] = set()
        for pid in pids():
            try:
                status = procmem.read_status(pid)
                if "VmPTE" not in status.kb or not self.wanted(pid, status):
                    continue
                facts = _facts(pid, status)
            except (*procmem.GONE, PermissionError):  # the last where /proc has hidepid=1
                continue
            identity = (pid, facts.start_time)
            there.add(identity)
            turn = self._turns.setdefault(identity, _Turn(due=now))
            if turn.scanned not in (-1, facts.vm_pte):
                turn.due, turn.pause = min(turn.due, now), _AGAIN_SECONDS
            known = self.processes.get(identity)
            self.processes[identity] = Watched(pid, facts) if known is None else replace(known, facts=facts)
        for gone in self._turns.keys() - there:
            del self._turns[gone], self.processes[gone]

    def _due(self, now: float) -> Iterable[Identity]:
        """Who is to be scanned, the largest VmPTE first; who has never been comes before who has."""
        due = [identity for identity, turn in self._turns.items() if turn.due <= now]
        return sorted(due, key=lambda each: (self._turns[each].scanned != -1, -self.processes[each].vm_pte))

    def _scan(self, identity: Identity, now: float) -> None:
        turn, known = self._turns[identity], self.processes[identity]
        self.scans += 1
        try:
            seen = scan(identity[0])
        except NoSuchMm:
            return
        except NotSeen as error:
            self.processes[identity] = replace(known, why=str(error), reason=error.reason)
            turn.due = now + _SELDOM_SECONDS
            return
        if seen is None or seen.use.start_time != identity[1]:
            return
        same = known.use is not None and replace(seen.use, rss=0, swap=0) == replace(known.use, rss=0, swap=0)
        turn.pause = min(2 * turn.pause, _SELDOM_SECONDS) if same else _AGAIN_SECONDS
        turn.due, turn.scanned = now + turn.pause, seen.use.vm_pte
        self.processes[identity] = replace(known, use=seen.use, at=now, why="", reason="")


def _facts(pid: int, status: procmem.Status) -> Facts:
    stat = procmem.read_stat(pid)
    kb = status.kb
    return Facts(
        start_time=int(stat[procmem.STAT_STARTTIME]),
        comm=printable(status.name),
        uid=status.uid,
        gid=status.gid,
        cgroup=printable(read_cgroup(pid)),
        vm_pte=kb["VmPTE"] << 10,
        anon=kb.get("RssAnon", 0) << 10,
        file=kb.get("RssFile", 0) << 10,
        shmem=kb.get("RssShmem", 0) << 10,
        swap=kb.get("VmSwap", 0) << 10,
        total_vm=int(stat[procmem.STAT_VSIZE]),
        faults=int(stat[procmem.STAT_MINFLT]) + int(stat[procmem.STAT_MAJFLT]),
        major_faults=int(stat[procmem.STAT_MAJFLT]),
    )
