"""The thread that keeps a live host up to date, and says that time goes on, and when memory is short."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from pterefd.config import Config
from pterefd.hookspecs import Cause
from pterefd.live import machine, procmem
from pterefd.live.host import Freer, LiveHost
from pterefd.live.match import Match
from pterefd.live.pressure import Cgroups, Stalls, find_cgroups, machine_short
from pterefd.live.watch import Watch

STOP_SECONDS = 5.0
_WAKE_SECONDS = 0.2  # how soon it sees that it is to stop


class Ticking(Protocol):
    """Who wants to know that time goes on."""

    def tick(self) -> None:
        """It did."""


class Keeper:
    """Looks at the processes every `interval` seconds, in one thread, from start() to stop().

    profile, replays: "" and none, as the kernel's own rules hold and nothing is replayed.
    failure: what ended the thread.  looked: when it last ended a look, of time.monotonic.
    """

    profile = ""

    def __init__(self, host: LiveHost, interval: float, cgroups: Cgroups, log: Any) -> None:
        self.host = host
        self.replays: Sequence[Any] = ()
        self.failure: BaseException | None = None
        self.looked = time.monotonic()
        self._interval = interval
        self._cgroups = cgroups
        self._log = log
        self._said: set[str] = set()
        self._tick: Callable[[], None] = lambda: None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    @classmethod
    def of(cls, settings: Config, log: Any, freer: Freer | None = None) -> Keeper:
        """As [live] says. freer: None: freeing is off.  Missing where this machine is none that can be looked at."""
        machine.check_arch("a live host")
        cgroups = Cgroups(find_cgroups())
        watch = Watch(settings.live.budget / 100, Match.of(settings.live))
        host = LiveHost(watch, freer=freer, seed=settings.host.seed, limit_of=cgroups.limit)
        return cls(host, settings.live.interval, cgroups, log)

    @property
    def example_pid(self) -> int | None:
        """The process with most page tables."""
        rows = self.host.published.rows.values()
        return max(rows, key=lambda row: row.process.vm_pte).process.pid if rows else None

    def about(self) -> dict[str, Any]:
        """For the log."""
        return {"host": self.host.kind, "mms": self.host.mms}

    def serve(self, reclaimer: Ticking) -> None:
        """Tell it after each look that time went on. Before start()."""
        self._tick = reclaimer.tick

    def start(self, stopping: threading.Event) -> bool:
        """Have a first look, then go on. False where it was stopped before."""
        if stopping.is_set():
            return False
        if not procmem.scan_abilities():
            self._log.warning("no PAGEMAP_SCAN (Linux 6.7): less is seen, and more slowly")
        if not self.host.published.usage.high:
            self._log.warning("memory of the machine is not shown: no marks", files=["meminfo", "zoneinfo"])
        self._look()
        self._thread.start()
        return True

    def stop(self) -> None:
        """End it. May be called at any time."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)

    def check(self) -> None:
        """Raise what ended the thread, which should go on."""
        alive = self._thread.is_alive()  # asked first: its failure is there before it ends
        if self.failure is not None:
            raise self.failure
        if not alive:
            raise RuntimeError("the watch's thread is gone")

    def probes(self, seconds: float) -> dict[str, Callable[[], bool]]:
        """What a watchdog asks: whether it has looked within so many seconds."""
        return {"watch": lambda: time.monotonic() - self.looked <= max(seconds, 2 * self._interval)}

    def take_up(self, _: Config, now: Config) -> None:
        """Which processes, within which budget, how often: from the next look on."""
        self.host.watch.wanted = Match.of(now.live)
        self.host.watch.budget = now.live.budget / 100
        self._interval = now.live.interval

    def _run(self) -> None:
        try:
            self._keep()
        except BaseException as error:
            self.failure = error

    def _keep(self) -> None:
        stalls = Stalls(self.host.proc / "pressure" / "memory")
        for reason in stalls.refused:
            self._log.warning("pressure is not seen", reason=reason)
        poll = select.poll()
        stalls.register(poll)
        due = time.monotonic() + self._interval
        try:
            while not self._stopping.is_set():
                left = min(max(due - time.monotonic(), 0.0), _WAKE_SECONDS)
                causes = stalls.raised(poll.poll(left * 1000))
                looks = time.monotonic() >= due
                if looks:
                    due = time.monotonic() + self._interval
                    self._look()
                if looks or causes:
                    self._press(causes)
                if looks:
                    self._tick()
        finally:
            stalls.close()

    def _look(self) -> None:
        """Each reason for which processes are not seen is said once; the metrics count them."""
        self.host.look()
        self.looked = time.monotonic()
        for row in self.host.published.rows.values():
            if row.process.reason not in self._said | {""}:
                self._said.add(row.process.reason)
                self._log.warning("some processes are not seen", reason=row.process.reason, first=row.process.why)

    def _press(self, causes: set[Cause]) -> None:
        """Say what is short. Short memory is told at every look as long as it lasts."""
        tell = self.host.on_pressure
        short = [*machine_short(causes, self.host.proc), *self._cgroups.short(self.host.published.groups)]
        for one in short:
            if tell is not None:
                tell(one.cause, one.group, one.bytes)
