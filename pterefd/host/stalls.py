"""How long events waited for reclaim, averaged as the kernel's pressure files do: kernel/sched/psi.c.

Differs from Linux: the time is the daemon's own. Reclaim takes no time of the trace, but whoever replays has waited for
it. One replay runs at a time on a host, so that a stall of some is one of all.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

PERIOD_NS = 2_000_000_000  # PSI_FREQ
WINDOWS_S = (10, 60, 300)
_DECAYS = tuple(math.exp(-PERIOD_NS / 1e9 / window) for window in WINDOWS_S)


class Averages(NamedTuple):
    """Share of the last 10, 60 and 300 s, in percent, and the sum in microseconds."""

    avg10: float
    avg60: float
    avg300: float
    total_us: int


class Stalls:
    """Stalls of one kind.  clock: monotonic nanoseconds."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._depth = 0  # stalls that go on
        self._until = clock()  # all before is summed up
        self._total = 0  # ns
        self._sample = 0  # of it, in the current period
        self._period_end = self._until + PERIOD_NS
        self._averages = [0.0] * len(WINDOWS_S)

    @contextmanager
    def stalled(self) -> Iterator[None]:
        """What is done inside is a stall; one inside another is part of it."""
        self._step(1)
        try:
            yield
        finally:
            self._step(-1)

    def averages(self) -> Averages:
        """As of now."""
        self._step(0)
        with self._lock:
            avg10, avg60, avg300 = self._averages
            return Averages(avg10, avg60, avg300, self._total // 1000)

    def _step(self, change: int) -> None:
        """Sum up until now, when a stall begins (1) or ends (-1)."""
        with self._lock:
            now = max(self._clock(), self._until)
            whole = (now - self._period_end) // PERIOD_NS + 1  # periods that have ended
            if whole > 0:
                self._pass(self._period_end)
                self._average(100 * self._sample / PERIOD_NS, 1)
                self._sample = 0
                last = self._period_end + (whole - 1) * PERIOD_NS
                self._pass(last)
                self._average(100.0 if self._depth else 0.0, whole - 1)
                self._sample = 0
                self._period_end = last + PERIOD_NS
            self._pass(now)
            self._depth += change

    def _pass(self, now: int) -> None:
        if self._depth:
            self._total += now - self._until
            self._sample += now - self._until
        self._until = now

    def _average(self, percent: float, periods: int) -> None:
        """calc_avgs, of so many periods alike."""
        for k, decay in enumerate(_DECAYS):
            left = decay**periods
            self._averages[k] = self._averages[k] * left + percent * (1 - left)
