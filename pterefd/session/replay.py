"""A source run in the daemon: by the clock, paused and resumed, held before its first process ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pterefd.host.host import Host
from pterefd.mm.events import OP_EXEC, OP_EXIT, OP_FORK, Batch
from pterefd.session.feed import Feed
from pterefd.session.mix import NEVER, UNTIMED_NS
from pterefd.source.place import Placed
from pterefd.source.source import Source

if TYPE_CHECKING:
    from pterefd.reclaim.reclaimer import Reclaimer

STATES = RUNNING, PAUSED, HELD, ENDED = "running", "paused", "held", "ended"
FIRST_PID = 1
MOST_EVENTS = 65536  # before it is looked whether it shall pause


class Replay:
    """One source of the daemon's host, run by its conductor. What files need may be called from any thread.

    speed: factor of real time, None for as fast as it goes.  hold: stop before pid 1 exits, to be looked at.
    position: index of the next event.
    """

    def __init__(
        self,
        number: int,
        source: Source,
        host: Host,
        reclaimer: Reclaimer,
        *,
        speed: float | None = 1.0,
        hold: bool = True,
    ) -> None:
        self.number = number
        self.name = source.name
        self.source = Placed(source, untimed_ns=UNTIMED_NS)
        self.position = 0
        self._speed = speed
        self._hold = hold
        self._state = RUNNING
        self._clock: Callable[[], float] = time.monotonic
        self._wake: Callable[[], None] = lambda: None
        self._changing = threading.Lock()
        self._living: set[int] = set()
        self._has_first = False
        self._anchor = (0.0, 0)  # wall seconds, ns of the source's time: where the present speed began
        self._now = 0  # ns of the source's time that have been run
        self._beat: float | None = None  # when it last got on, or nothing was due; None before anybody waits for it
        self._feed = Feed(self.source, host, on_free_ptes=reclaimer.free_ptes)
        self._batch: Batch | None = None
        self._index = 0  # in the batch, of the next event
        self._times: npt.NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._holds: list[int] = []  # indices in the batch that it is held before

    # ---- for files ----------------------------------------------------------------------------

    @property
    def events(self) -> int | None:
        """The number of events; None where the source does not know it yet."""
        return self.source.events

    @property
    def state(self) -> str:
        """running, paused, held or ended."""
        return self._state

    @property
    def speed(self) -> float | None:
        """Factor of real time, None for max."""
        return self._speed

    @property
    def time_ns(self) -> int:
        """The trace's time that has been run."""
        return self._now

    @property
    def stalled_seconds(self) -> float:
        """Since it last ran events or none was due; up to about a second is usual. 0 unless it is running."""
        beat = self._beat
        return 0.0 if beat is None or self._state != RUNNING else max(self._clock() - beat, 0.0)

    def pause(self) -> None:
        """Stop before the next event; nothing where it is held or has ended."""
        with self._changing:
            if self._state == RUNNING:
                self._state = PAUSED
        self._wake()

    def resume(self) -> None:
        """Go on after a pause, or past the hold."""
        with self._changing:
            if self._state in (PAUSED, HELD):
                self._beat = self._clock()
                self._anchor = (self._clock(), self._now)
                self._state = RUNNING
        self._wake()

    def set_speed(self, speed: float | None) -> None:
        """Another factor of real time from now on; None for max."""
        with self._changing:
            self._anchor = (self._clock(), self._now)
            self._speed = speed
        self._wake()

    # ---- for the conductor --------------------------------------------------------------------

    def conducted(self, wake: Callable[[], None], clock: Callable[[], float]) -> None:
        """Whom to tell when something has changed, and what the time is."""
        self._wake, self._clock = wake, clock

    def begin(self, wall: float) -> None:
        """The clock starts."""
        with self._changing:
            self._anchor = (wall, 0)
        self._beat = wall

    @property
    def ended(self) -> bool:
        """Whether there is nothing more to come."""
        return self._state == ENDED

    def end(self) -> None:
        """There is no further batch."""
        with self._changing:
            self._state = ENDED

    @property
    def has_batch(self) -> bool:
        """Whether the next event is there."""
        return self._batch is not None

    @property
    def next_ns(self) -> int:
        """The time of the next event, which is there."""
        return int(self._times[self._index])

    @property
    def now_ns(self) -> int:
        """The time of the last event that was run."""
        return self._now

    def load(self, batch: Batch) -> None:
        """Take up the next batch, which is not empty."""
        self._times = np.maximum.accumulate(np.maximum(batch.t, self._now))
        self._holds = self._ends(batch) if self._hold else []
        self._batch, self._index = batch, 0

    def time_at(self, wall: float) -> int:
        """ns of the source's time up to which events are due; NEVER for all of them."""
        with self._changing:
            speed, (start, base) = self._speed, self._anchor
        return NEVER - 1 if speed is None else base + int((wall - start) * speed * 1e9)

    def beat(self, wall: float) -> None:
        """No stall as of now: its first events are waited for from here on, or the next one's time has not come."""
        self._beat = wall

    def seconds_to(self, time_ns: int, wall: float) -> float:
        """Until a time of the source's is there."""
        with self._changing:
            speed, (start, base) = self._speed, self._anchor
        return 0.0 if speed is None else start + (time_ns - base) / 1e9 / speed - wall

    def advance(self, stop: int) -> None:
        """Run events before time `stop`, the next of which is there: as many as go at once, or up to the hold."""
        assert self._batch is not None
        self._beat = self._clock()
        if self._holds and self._index == self._holds[0]:
            self._holds.pop(0)
            with self._changing:
                self._state = HELD
            return
        end = int(np.searchsorted(self._times, stop, side="left"))
        end = min(end, self._index + MOST_EVENTS, *self._holds[:1])
        self._feed.run(self._batch, self._index, end)
        self._now = int(self._times[end - 1])
        self._index = end
        self.position = self._batch.first + end
        if end == len(self._batch):
            self._batch = None

    def _ends(self, batch: Batch) -> list[int]:
        """Indices of the exits before which it is held: pid 1's, without a pid 1 the last mm's."""
        found = []
        first = FIRST_PID + self.source.pid_base
        rare = np.isin(batch.op, (OP_EXEC, OP_FORK, OP_EXIT)).nonzero()[0]
        for i in rare.tolist():
            pid, op = int(batch.pid[i]), int(batch.op[i])
            if batch.err[i]:
                continue
            if op == OP_EXEC:
                self._living.add(pid)
                self._has_first |= pid == first
            elif op == OP_FORK:
                self._living.add(int(batch.arg[i]))
            else:
                if pid == first or (not self._has_first and len(self._living) == 1):
                    found.append(i)
                self._living.discard(pid)
        return found
