"""How long freeing PTE pages holds mmap_lock for writing, and whom it keeps waiting.

The RFC of Aug 2022 takes the lock for each PTE page that it frees (mm/pte_ref.c kfreeptd_pmd_entry). An act that frees
n of them is n holds in a row. How many faults of the same mm fall into them is not recorded, as the recorded process
had no such holds: it is the rate of the mm's faults after the act, times how long the act holds the lock, and no more
than one fault a hold and thread. A fault comes at any moment of a hold alike, so it waits between nothing and a whole
hold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pterefd.errors import NoSuchMm

if TYPE_CHECKING:
    from pterefd.host.host import Host
    from pterefd.session.costs import Costs


class _Act(NamedTuple):
    pid: int
    start_ns: int  # of the process: another one may get its pid
    time_ns: int
    faults: int
    hold_ns: float
    held_ns: float
    most: int  # faults that can meet a hold


class Holds:
    """Collects the holds of a run.

    window_ns: of the trace's time after an act, at least, in which the rate of faults is taken.
    held_ns: the lock was held for writing so long, by PTE pages that were freed.  faults: expected to have met a hold.
    """

    def __init__(self, host: Host, costs: Costs, window_ns: int) -> None:
        self._host = host
        self._window_ns = window_ns
        self._costs = costs
        self._open: list[_Act] = []
        self._waits: dict[float, float] = {}  # length of a hold -> faults that met one of it
        self.held_ns = 0.0

    @property
    def faults(self) -> float:
        """Expected number of faults that fell into a hold."""
        return sum(self._waits.values())

    def freed(self, pid: int, pages: int) -> None:
        """So many PTE pages of the mm have just been freed."""
        try:
            process = self._host.process(pid)
            faults = self._host.counters(pid).faults
        except NoSuchMm:
            return
        hold = self._costs.hold_ns(process.threads)
        self.held_ns += pages * hold
        most = pages * process.threads
        self._open.append(_Act(pid, process.start_ns, self._host.time_ns, faults, hold, pages * hold, most))

    def settle(self, now_ns: int) -> None:
        """Time has moved on: what each mm has faulted since its act says whom the act kept waiting."""
        waiting = []
        for act in self._open:
            if now_ns < act.time_ns + self._window_ns:
                waiting.append(act)
                continue
            try:
                if self._host.process(act.pid).start_ns != act.start_ns:
                    continue
                since = self._host.counters(act.pid).faults - act.faults
            except NoSuchMm:
                continue
            met = min(max(since, 0) * min(act.held_ns / (now_ns - act.time_ns), 1.0), act.most)
            if met:
                self._waits[act.hold_ns] = self._waits.get(act.hold_ns, 0.0) + met
        self._open = waiting

    def wait_ns(self, share: float) -> float:
        """The wait that this share of the waiting faults does not exceed; 0 where none waited."""
        total = self.faults
        if not total:
            return 0.0
        low, high = 0.0, max(self._waits)
        for _ in range(64):
            middle = (low + high) / 2
            below = sum(weight * min(middle / hold, 1.0) if hold else weight for hold, weight in self._waits.items())
            low, high = (middle, high) if below < share * total else (low, middle)
        return high
