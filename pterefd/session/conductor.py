"""The replays of one host, by the clock, in the order that session.mix has: the same on every machine.

The sources' time is cut into quanta. Where there are several, the events of a quantum are run once it is over, one
source after the other in the order in which they were given, and no quantum before all of those that run and are due
earlier. A source that has not made its events yet is waited for, and the others with it: so it does not depend on how
fast a machine is who asks for memory first, and who is killed for it. One source alone is run event by event.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pterefd.host.host import Host
from pterefd.session.ahead import Ahead
from pterefd.session.mix import NEVER, QUANTUM_NS
from pterefd.session.replay import RUNNING, Replay

if TYPE_CHECKING:
    from pterefd.reclaim.reclaimer import Reclaimer

STEP_SECONDS = 0.02  # how often the clock is looked at
TICKS = 64  # told at a time, before anything else is looked at


class Conductor:
    """Runs replays of one host. run() is a thread's work; stop() may be called from any thread."""

    def __init__(
        self,
        replays: Sequence[Replay],
        host: Host,
        reclaimer: Reclaimer,
        *,
        clock: Callable[[], float] = time.monotonic,
        quantum_ns: int = QUANTUM_NS,
    ) -> None:
        self._replays = list(replays)
        self._host = host
        self._reclaimer = reclaimer
        self._clock = clock
        self._quantum_ns = quantum_ns
        self._alone = len(self._replays) == 1
        self._told = 0  # quanta whose end the triggers know of
        self._stopping = False
        self._wake = threading.Event()
        self._ahead = Ahead([replay.source for replay in self._replays])
        for replay in self._replays:
            replay.conducted(self._wake.set, clock)

    def stop(self) -> None:
        """End run() soon."""
        self._stopping = True
        self._ahead.stop()
        self._wake.set()

    def run(self) -> None:
        """Run all replays to their ends, or to stop(). PterefdError where a source turns out to be bad.

        The clock starts once the first events of every source are there.
        """
        for replay in self._replays:
            replay.beat(self._clock())
        self._ahead.start()
        try:
            self._ahead.fill()
            start = self._clock()
            for replay in self._replays:
                replay.begin(start)
            while not self._stopping and not all(replay.ended for replay in self._replays):
                self._wake.clear()
                if not self._turn():
                    self._wake.wait(self._patience())
        finally:
            self._ahead.stop()

    # ---- one turn -----------------------------------------------------------------------------

    def _turn(self) -> bool:
        """The earliest quantum that is due, of all replays that have it. False where there is nothing to do."""
        running = [replay for replay in self._replays if replay.state == RUNNING and self._load(replay)]
        now = self._clock()
        due = {replay: replay.time_at(now) for replay in running}
        for replay in running:
            if due[replay] < replay.next_ns:
                replay.beat(now)
        ready = [replay for replay in running if self._end_of_next(replay) <= due[replay]]
        if not ready:
            return self._tick_up_to(min((self._quantum(due[replay]) for replay in running), default=0))
        quantum = min(self._quantum(replay.next_ns) for replay in ready)
        if self._tick_up_to(quantum):
            return True
        now_on = [replay for replay in ready if self._quantum(replay.next_ns) == quantum]
        stop = self._stop(quantum, now_on, running, due)
        for replay in now_on:
            self._through(replay, min(stop, due[replay] + 1))
        if not self._reclaimer.ticking:
            self._told = max(self._told, *(self._quantum(replay.now_ns) for replay in now_on))
        return True

    def _stop(self, quantum: int, now_on: list[Replay], running: list[Replay], due: dict[Replay, int]) -> int:
        """Up to where events are run: the quantum's end; further where no other source and no trigger has a say."""
        stop = (quantum + 1) * self._quantum_ns
        if len(now_on) > 1 or self._reclaimer.ticking:
            return stop
        (replay,) = now_on
        if self._alone:
            return NEVER
        others = min((other.next_ns for other in running if other is not replay), default=NEVER)
        return max(stop, self._floor(min(others, due[replay])))

    def _through(self, replay: Replay, stop: int) -> None:
        """Its events before time `stop`; fewer where it is paused or held."""
        while not self._stopping and replay.state == RUNNING and self._load(replay) and replay.next_ns < stop:
            replay.advance(stop)

    def _load(self, replay: Replay) -> bool:
        """See that its next event is there. False where it has ended, or at stop()."""
        if replay.has_batch:
            return True
        batch = self._ahead.take(replay.number)
        if batch is not None:
            replay.load(batch)
        elif not self._stopping:
            replay.end()
        return batch is not None

    # ---- time ---------------------------------------------------------------------------------

    def _quantum(self, time_ns: int) -> int:
        return time_ns // self._quantum_ns

    def _floor(self, time_ns: int) -> int:
        return time_ns // self._quantum_ns * self._quantum_ns

    def _end_of_next(self, replay: Replay) -> int:
        """When the next event is run: at its time, or with others beside it at the end of its quantum."""
        return replay.next_ns if self._alone else self._floor(replay.next_ns) + self._quantum_ns

    def _tick_up_to(self, quantum: int) -> bool:
        """Tell the triggers of the ends of quanta before this one, where one wants to know. Whether there were any."""
        if not self._reclaimer.ticking:
            self._told = max(self._told, quantum)
            return False
        end = min(quantum, self._told + TICKS)
        told = self._told < end
        while self._told < end:
            self._told += 1
            self._host.time_ns = max(self._host.time_ns, self._told * self._quantum_ns)
            self._reclaimer.tick()
        return told

    def _patience(self) -> float | None:
        """Seconds until something is due; None where somebody has to do something first."""
        now = self._clock()
        waits = [
            replay.seconds_to(min(self._end_of_next(replay), self._next_tick()), now)
            for replay in self._replays
            if replay.state == RUNNING and replay.has_batch
        ]
        if not waits:
            return None
        left = min(waits)
        return min(max(left, 0.001), STEP_SECONDS) if left < 1 else 1.0

    def _next_tick(self) -> int:
        return (self._told + 1) * self._quantum_ns if self._reclaimer.ticking else NEVER
