"""The daemon under a service manager: what it is told (sd_notify), and the watchdog, which has to be earned.

Imports nothing of pterefd.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from sdnotify import SystemdNotifier

PINGS = 4  # in the time after which the manager gives up
STATUS_SECONDS = 5.0

Probe = Callable[[], bool]


class Service:
    """The manager at $NOTIFY_SOCKET; where there is none, all of this does nothing.

    watchdog_seconds: how long the manager goes without a ping before it kills; None: no watchdog.
    """

    def __init__(self) -> None:
        self.present = bool(os.environ.get("NOTIFY_SOCKET"))
        self.watchdog_seconds = _watchdog_seconds() if self.present else None
        self._notifier = SystemdNotifier() if self.present else None
        self._status = ("", 0.0)

    def ready(self) -> None:
        """Started, or done with a reload."""
        self._tell("READY=1")

    def reloading(self) -> None:
        """A reload begins; ready() ends it."""
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """The end begins."""
        self._tell("STOPPING=1")

    def alive(self) -> None:
        """A ping of the watchdog."""
        self._tell("WATCHDOG=1")

    def status(self, text: str) -> None:
        """What `systemctl status` shows; told every few seconds at most."""
        told, when = self._status
        if text != told and time.monotonic() - when >= STATUS_SECONDS:
            self._status = (text, time.monotonic())
            self._tell("STATUS=" + text.encode("ascii", "replace").decode().replace("\n", " "))

    def close(self) -> None:
        """Say nothing more."""
        notifier, self._notifier = self._notifier, None
        if notifier is not None and notifier.socket is not None:
            notifier.socket.close()

    def _tell(self, state: str) -> None:
        if self._notifier is not None:
            self._notifier.notify(state)


def _watchdog_seconds() -> float | None:
    """sd_watchdog_enabled(3)."""
    microseconds, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not microseconds.isascii() or not microseconds.isdigit() or int(microseconds) == 0:
        return None
    return int(microseconds) / 1e6 if pid in ("", str(os.getpid())) else None


class Watchdog:
    """Pings the manager as long as every probe says yes. tick() is the main loop's, whose own life counts too.

    probes: by what they ask. They run one after another in a thread of their own, as one that hangs never answers;
    each ping needs a round of answers that is newer than the ping before. log: told once of each probe that fails.
    """

    def __init__(self, service: Service, probes: Mapping[str, Probe], log: Any) -> None:
        self._service = service
        self._probes = probes
        self._log = log
        self._period = (service.watchdog_seconds or 0) / PINGS
        self._asking: tuple[str, float] | None = None  # who does not answer, and since when not all have answered
        self._silent: str | None = None  # the probe that was complained about
        self._answered = False
        self._next = time.monotonic()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin; nothing where the manager wants no pings."""
        if self._period:
            self._thread.start()

    def stop(self) -> None:
        """No pings any more."""
        self._stopping.set()

    def tick(self) -> None:
        """Ping where one is due and has been earned."""
        now = time.monotonic()
        if not self._period or now < self._next:
            return
        asking = self._asking
        if self._answered:
            self._answered = False
            self._next = now + self._period
            self._silent = None
            self._service.alive()
        elif asking is not None and now - asking[1] > 2 * self._period and self._silent != asking[0]:
            self._silent = asking[0]
            self._log.error("no answer: the watchdog gets no pings", asked=self._silent)

    def _ask(self) -> None:
        since, refused = time.monotonic(), None
        while not self._stopping.is_set():
            for what, probe in self._probes.items():
                self._asking = (refused or what, since)
                if not probe():
                    refused = what
                    break
            else:
                since, refused = time.monotonic(), None
                self._asking = None
                self._answered = True
            self._stopping.wait(self._period / 2)
