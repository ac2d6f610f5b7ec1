"""Several sources on one host at full speed, in an order that is the same on every machine.

The trace's time is cut into quanta. Quantum after quantum, the events of each source whose times lie in it are run, one
source after the other in the order in which they were given; within a source nothing ever changes its place. At the
end of each quantum, also of one without events, the host's clock stands at least there and `on_tick` is called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pterefd.host.host import Host
from pterefd.mm.events import Batch
from pterefd.session.feed import Feed
from pterefd.source.place import Placed
from pterefd.source.source import Source

QUANTUM_NS = 10_000_000
UNTIMED_NS = 1000  # an event without a time comes so long after the one before it
NEVER = (1 << 63) - 1
TOLD_EVENTS = 1 << 16  # between two words about the progress

OnExpect = Callable[[int, int, int, dict[str, Any]], None]  # number of the source, index in it, pid, fields


class Mix:
    """Sources that share a host.

    sources: with pids that do not collide (source.place: pid_bases, Placed).  on_free_ptes(pid), on_expect: as Feed's.
    on_tick: called once at the end of each quantum, None where nothing waits for it: stretches in which one source
    alone has events are then run at once, which comes to the same.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        host: Host,
        *,
        on_free_ptes: Callable[[int], object] | None = None,
        on_expect: OnExpect | None = None,
        on_tick: Callable[[], object] | None = None,
        quantum_ns: int = QUANTUM_NS,
    ) -> None:
        self.host = host
        self.events = 0
        self._on_tick = on_tick
        self._quantum_ns = quantum_ns
        self._cursors = [
            _Cursor(Placed(source, untimed_ns=UNTIMED_NS), host, on_free_ptes, _numbered(on_expect, number))
            for number, source in enumerate(sources)
        ]

    def run(self, progress: Callable[[int, int | None], None] | None = None) -> int:
        """Run all sources to their ends; the number of events. BadInput: as Source.batches and Feed.run.

        progress: called with (events done, None) now and then.
        """
        running = [cursor for cursor in self._cursors if cursor.next_ns < NEVER]
        quantum = 0  # the first one that has not been run
        told = 0
        while running:
            first = min(cursor.next_ns for cursor in running) // self._quantum_ns
            self._tick_up_to(quantum, first)
            quantum = first + 1
            stop = quantum * self._quantum_ns
            now = [cursor for cursor in running if cursor.next_ns < stop]
            if len(now) == 1 and self._on_tick is None:
                others = min((cursor.next_ns for cursor in running if cursor is not now[0]), default=NEVER)
                stop = max(stop, others // self._quantum_ns * self._quantum_ns)
                quantum = stop // self._quantum_ns
            for cursor in now:
                self.events += cursor.run(stop)
            self._tick(stop)
            if progress is not None and self.events - told >= TOLD_EVENTS:
                told = self.events
                progress(self.events, None)
            if any(cursor.next_ns == NEVER for cursor in now):
                running = [cursor for cursor in running if cursor.next_ns < NEVER]
        return self.events

    def _tick_up_to(self, begin: int, end: int) -> None:
        """The ends of quanta [begin, end), in which nothing happens."""
        if self._on_tick is not None:
            for quantum in range(begin, end):
                self._tick((quantum + 1) * self._quantum_ns)

    def _tick(self, time_ns: int) -> None:
        if self._on_tick is not None:
            self.host.time_ns = max(self.host.time_ns, time_ns)
            self._on_tick()


class _Cursor:
    """Where one source stands.

    Invariant: next_ns is the time of the next event, that of event `_index` of `_batch`; NEVER at the end.
    """

    def __init__(
        self,
        source: Source,
        host: Host,
        on_free_ptes: Callable[[int], object] | None,
        on_expect: Callable[[int, int, dict[str, Any]], None] | None,
    ) -> None:
        self._batches: Iterator[Batch] = source.batches()
        self._feed = Feed(source, host, on_expect, on_free_ptes)
        self._index = 0
        self._times: npt.NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._batch: Batch | None = None
        self.next_ns = 0
        self._next_batch()

    def run(self, stop: int) -> int:
        """Run the events before time `stop`; their number."""
        done = 0
        while self.next_ns < stop and self._batch is not None:
            n = len(self._times)
            end = n if self._times[-1] < stop else int(np.searchsorted(self._times, stop))
            self._feed.run(self._batch, self._index, end)
            done += end - self._index
            self._index = end
            if end == n:
                self._next_batch()
            else:
                self.next_ns = int(self._times[end])
        return done

    def _next_batch(self) -> None:
        """Go on to the next batch that is not empty."""
        for batch in self._batches:
            if len(batch):
                self._batch, self._index, self._times = batch, 0, batch.t
                self.next_ns = int(batch.t[0])
                return
        self._batch, self.next_ns = None, NEVER


def _numbered(on_expect: OnExpect | None, number: int) -> Callable[[int, int, dict[str, Any]], None] | None:
    if on_expect is None:
        return None
    return lambda index, pid, fields: on_expect(number, index, pid, fields)
