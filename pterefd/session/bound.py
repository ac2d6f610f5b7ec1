"""The optimum that knows the future: it frees a PTE page as soon as it is empty or zero, if it is not needed again.

What is needed is found by trying: the first pass frees all that can be freed after every quantum, and notes each span
whose PTE page had to be made again, and when. The next pass, over the same events, frees a span only once the last time
that it was needed has gone by. Under pressure a pass may go another way than the one before (other pages are swapped
out, other mms killed), so passes go on until one makes no PTE page again.

It is a bound for what frees at the end of quanta, at recorded requests and under pressure, as triggers do. It knows the
recording's future alone: reads of zero pages after their PTE page was freed are in no recording.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pterefd.errors import NoSuchMm
from pterefd.mm.free_ptes import MADE_AGAIN, MISSED

if TYPE_CHECKING:
    from collections.abc import Callable

    from pterefd.hookspecs import Cause
    from pterefd.host.counters import MmCounters
    from pterefd.host.host import Host
    from pterefd.host.process import Process

MOST_PASSES = 24
PATIENT_PASSES = 6  # from then on a span that was needed again is left alone for good
FOREVER = (1 << 63) - 1

I64 = npt.NDArray[np.int64]
Life = tuple[int, int, int]  # pid, start_ns, exec_number: one mm, whoever gets its pid later


def _none() -> I64:
    return np.zeros(0, dtype=np.int64)


def _living(host: Host, pid: int) -> Process | None:
    try:
        return host.process(pid)
    except NoSuchMm:
        return None


@dataclass(slots=True)
class _Needed:
    """spans: int64[n], ascending; last_ns: int64[n], until when each one's PTE page was needed."""

    spans: I64 = field(default_factory=_none)
    last_ns: I64 = field(default_factory=_none)


class Needs:
    """Which spans of which mms had to have their PTE page made again, and when last."""

    def __init__(self) -> None:
        self._mms: dict[Life, _Needed] = {}

    def add(self, life: Life, spans: I64, last_ns: int) -> None:
        """These were needed again, at this time or a little before."""
        known = self._mms.setdefault(life, _Needed())
        merged = np.union1d(known.spans, spans)
        last = np.zeros(len(merged), dtype=np.int64)
        last[np.searchsorted(merged, known.spans)] = known.last_ns
        places = np.searchsorted(merged, spans)
        last[places] = np.maximum(last[places], last_ns)
        known.spans, known.last_ns = merged, last

    def over(self, life: Life, spans: I64, now_ns: int) -> I64:
        """Those of the spans (ascending) that are not needed from now on."""
        known = self._mms.get(life)
        if known is None or not len(known.spans):
            return spans
        places = np.minimum(np.searchsorted(known.spans, spans), len(known.spans) - 1)
        return spans[(known.spans[places] != spans) | (known.last_ns[places] <= now_ns)]


@dataclass(slots=True)
class _Mm:
    """One mm in a pass. freed: int64[n], ascending, its spans whose PTE page is missing.  again: as last looked at."""

    life: Life
    freed: I64 = field(default_factory=_none)
    again: int = 0


class BoundReclaimer:
    """One pass: in the place of a reclaimer, for whoever drives the host.

    on_freed(pid, empty bytes, zero bytes) is called after each freeing.  again: PTE pages that were freed here and had
    to be made again.
    """

    def __init__(
        self, host: Host, needs: Needs, on_freed: Callable[[int, int, int], None], *, forgive: bool = True
    ) -> None:
        self._host = host
        self._needs = needs
        self._found = Needs()
        self._on_freed = on_freed
        self._forgive = forgive
        self._mms: dict[int, _Mm] = {}
        self.again = 0

    # ---- as a reclaimer is called -------------------------------------------------------------

    def free_ptes(self, pid: int | None) -> None:
        """A recorded request: all that is known not to be needed goes, wherever it is."""
        self.tick()

    def pressure(self, cause: Cause, group: str | None, nbytes: int) -> int:
        """The host is short of memory. Returns the bytes freed."""
        return self.tick()

    def tick(self) -> int:
        """Free every PTE page that can be freed and is not needed again. Returns the bytes freed."""
        host = self._host
        total = 0
        for pid in list(self._mms):
            if (process := _living(host, pid)) is not None:
                self._look(process, self._again(pid))
        for pid in list(host.ranking):
            mm = self._mm(host.process(pid))
            spans = self._needs.over(mm.life, host.reclaimable_spans(pid), host.time_ns)
            if not len(spans):
                continue
            empty, zero = host.free_spans(pid, spans)
            mm.freed = np.union1d(mm.freed, spans)
            mm.again = self._again(pid)
            total += empty + zero
            if empty + zero:
                self._on_freed(pid, empty, zero)
        return total

    # ---- what was needed again ----------------------------------------------------------------

    def _again(self, pid: int) -> int:
        return self._host.counters(pid).allocated_again

    def _mm(self, process: Process) -> _Mm:
        life = (process.pid, process.start_ns, process.exec_number)
        mm = self._mms.get(process.pid)
        if mm is None or mm.life != life:
            mm = self._mms[process.pid] = _Mm(life, again=self._again(process.pid))
        return mm

    def _look(self, process: Process, again: int) -> None:
        """Note the spans of an mm whose PTE page has been made again since it was looked at last."""
        mm = self._mms.get(process.pid)
        if mm is None or mm.life != (process.pid, process.start_ns, process.exec_number) or again == mm.again:
            return
        became = self._host.freed_spans(process, mm.freed)
        made = became == MADE_AGAIN
        if np.count_nonzero(made) < again - mm.again:
            made = became != MISSED  # some went with their mapping since: what is not known to have gone was needed
        spans = mm.freed[made]
        mm.again, mm.freed = again, mm.freed[became == MISSED]
        if len(spans):
            self.again += len(spans)
            self._found.add(mm.life, spans, self._host.time_ns if self._forgive else FOREVER)

    def ended(self, process: Process, counters: MmCounters) -> None:
        """An mm is about to go (Host.on_teardown)."""
        self._look(process, counters.allocated_again)
        self._mms.pop(process.pid, None)

    def close(self) -> Needs:
        """The pass is over: what it found is added to what was known."""
        for pid in list(self._mms):
            if (process := _living(self._host, pid)) is not None:
                self._look(process, self._again(pid))
        for life, found in self._found._mms.items():
            for last in np.unique(found.last_ns).tolist():
                self._needs.add(life, found.spans[found.last_ns == last], last)
        return self._needs
