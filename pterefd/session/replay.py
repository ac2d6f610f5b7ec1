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
from pterefd.source.source import Source

if TYPE_CHECKING:
    from pterefd.reclaim.reclaimer import Reclaimer

RUNNING, PAUSED, HELD, ENDED = "running", "paused", "held", "ended"
FIRST_PID = 1
TICK_NS = 10_000_000  # of the trace's time, between two ticks that triggers are told of
STEP_SECONDS = 0.02  # how often a replay by the clock looks at it


class Replay:
    """One source of the daemon's host. run() is a thread's work; the rest may be called from any thread.

    speed: factor of real time, None for as fast as it goes.  position: index of the next event.
    """

    def __init__(
        self,
        number: int,
        source: Source,
        host: Host,
        reclaimer: Reclaimer,
        *,
        speed: float | None = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.number = number
        self.name = source.name
        self.position = 0
        self._source = source
        self._speed = speed
        self._state = RUNNING
        self._clock = clock
        self._changed = threading.Condition()
        self._stopping = False
        self._living: set[int] = set()
        self._has_first = False
        self._anchor = (clock(), 0)  # wall seconds, trace ns: where the present speed began
        self._beats = 0
        self._now = 0  # ns of the trace's time that have been run
        self._next_tick = 0
        self._reclaimer = reclaimer
        self._feed = Feed(source, host, on_free_ptes=reclaimer.free_ptes)

    # ---- from outside -------------------------------------------------------------------------

    @property
    def events(self) -> int | None:
        """The number of events; None where the source does not know it yet."""
        return self._source.events

    @property
    def state(self) -> str:
        """running, paused, held or ended."""
        return self._state

    @property
    def speed(self) -> float | None:
        """Factor of real time, None for max."""
        return self._speed

    @property
    def beats(self) -> int | None:
        """Moves on as long as run() does, every second at least but for a long batch; None where it need not."""
        return self._beats if self._state == RUNNING else None

    def pause(self) -> None:
        """Stop before the next event; nothing where it is held or has ended."""
        with self._changed:
            if self._state == RUNNING:
                self._state = PAUSED
                self._changed.notify_all()

    def resume(self) -> None:
        """Go on after a pause, or past the hold."""
        with self._changed:
            if self._state in (PAUSED, HELD):
                self._state = RUNNING
                self._anchor = (self._clock(), self._now)
                self._changed.notify_all()

    def set_speed(self, speed: float | None) -> None:
        """Another factor of real time from now on; None for max."""
        with self._changed:
            self._anchor = (self._clock(), self._now)
            self._speed = speed
            self._changed.notify_all()

    def stop(self) -> None:
        """End run() soon."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    # ---- the thread ---------------------------------------------------------------------------

    def run(self) -> None:
        """Replay to the end or to stop(). PterefdError where the trace turns out to be bad."""
        with self._changed:
            self._anchor = (self._clock(), 0)
        for batch in self._source.batches():
            if not self._batch(batch):
                return
        with self._changed:
            self._state = ENDED

    def _batch(self, batch: Batch) -> bool:
        """One batch, as far as the clock lets it. False where run() shall end."""
        times = np.maximum.accumulate(np.maximum(batch.t, self._now))
        stops = self._holds(batch)
        index, n = 0, len(batch)
        while index < n:
            self._beats += 1
            if not self._wait_running():
                return False
            if stops and index == stops[0]:
                stops.pop(0)
                self._hold()
                continue
            due = self._due(times, index)
            if due == index:
                self._sleep_until(int(times[index]))
                continue
            end = min(due, stops[0]) if stops else due
            end = min(end, index + 65536, self._until_tick(times, index))
            self._feed.run(batch, index, end)
            index = end
            self._now = int(times[end - 1])
            self.position = batch.first + end
            if self._now >= self._next_tick:
                self._next_tick = self._now + TICK_NS
                self._reclaimer.tick()
        return True

    def _until_tick(self, times: npt.NDArray[np.int64], index: int) -> int:
        """Index behind the event at which the triggers are asked again: only where one wants to know."""
        if not self._reclaimer.ticking:
            return len(times)
        return max(index, int(np.searchsorted(times, self._next_tick, side="left"))) + 1

    def _due(self, times: npt.NDArray[np.int64], index: int) -> int:
        """Index of the first event that is not due yet."""
        with self._changed:
            speed, (wall, base) = self._speed, self._anchor
        if speed is None:
            return len(times)
        now = base + int((self._clock() - wall) * speed * 1e9)
        return max(index, int(np.searchsorted(times, now, side="right")))

    def _sleep_until(self, t: int) -> None:
        with self._changed:
            if self._stopping or self._state != RUNNING or self._speed is None:
                return
            wall, base = self._anchor
            left = wall + (t - base) / 1e9 / self._speed - self._clock()
            self._changed.wait(min(max(left, 0.001), STEP_SECONDS) if left < 1 else min(left, 1.0))

    def _wait_running(self) -> bool:
        """Wait while paused or held. False where run() shall end."""
        with self._changed:
            while self._state != RUNNING and not self._stopping:
                self._changed.wait()
            return not self._stopping

    def _hold(self) -> None:
        with self._changed:
            self._state = HELD
            self._changed.notify_all()

    def _holds(self, batch: Batch) -> list[int]:
        """Indices of the exits before which the replay is held: pid 1's, without a pid 1 the last mm's."""
        found = []
        first = FIRST_PID + self._source.pid_base
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
