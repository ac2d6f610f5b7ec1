"""What the daemon runs on a simulated host: the mms of a configuration, by the clock, in a thread of its own."""

from __future__ import annotations

import functools
import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from pterefd.config import Config
from pterefd.errors import COMPILER
from pterefd.hookspecs import Workload
from pterefd.host.host import Host
from pterefd.host.memory import Kill
from pterefd.host.warm import warm
from pterefd.reclaim.reclaimer import Reclaimer
from pterefd.session.conductor import Conductor
from pterefd.session.machine import memory_of, profile_of
from pterefd.session.replay import FIRST_PID, Replay
from pterefd.session.sources import open_sources

TICK_SECONDS = 0.2
LOCK_SECONDS = 5.0  # the host's lock is held for about a millisecond at a time
STOP_SECONDS = 5.0
# The threads of a replay give way to those that serve: without that a read of the mount takes ten times as long at its
# 99th percentile where all cores are busy, and half of this does not help (bench/mount_latency.py).
REPLAY_NICE = 10


class Simulation:
    """The host of a configuration, and what feeds it. Raises PterefdError where something does not fit.

    workloads: classes by name.  failure: what ended its thread.
    """

    def __init__(self, settings: Config, workloads: Mapping[str, type[Workload]], log: Any) -> None:
        self._settings = settings
        self._log = log
        self._sources = open_sources(settings.mms, workloads, settings.where_mm)
        with settings.blamed("host.profile"):
            profile = profile_of(settings.host.profile, self._sources)
        with settings.blamed("host"):
            memory = memory_of(settings.host, settings.group, settings.mms)
        self.host = Host(profile, seed=settings.host.seed, memory=memory)
        self.host.on_kill = self._killed
        self.profile = profile.name
        self.replays: Sequence[Replay] = ()
        self.failure: BaseException | None = None
        self._panicked = False
        self._thread = threading.Thread(target=self._replay, name="replay", daemon=True)

    @property
    def example_pid(self) -> int | None:
        """The first process of the first replay."""
        return FIRST_PID + self._sources[0].pid_base if self._sources else None

    def about(self) -> dict[str, Any]:
        """For the log."""
        return {"profile": self._settings.host.profile, "traces": len(self.replays)}

    def serve(self, reclaimer: Reclaimer) -> None:
        """Make the replays, which tell the reclaimer of moments. Before start()."""
        replay = self._settings.replay
        self.replays = [
            Replay(number, source, self.host, reclaimer, speed=replay.speed, hold=replay.hold)
            for number, source in enumerate(self._sources)
        ]
        self.conductor = Conductor(self.replays, self.host, reclaimer)

    def start(self, stopping: threading.Event) -> bool:
        """Load the kernels, then replay. False where it was stopped before.

        The kernels come before there is anything to wait for: loading is done under the host's lock. At a first start
        they are compiled, and no signal reaches a thread that is inside the compiler. It cannot be told to stop either,
        and is left behind.
        """
        result: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

        def work() -> None:
            try:
                warm(self._compiling)
            except BaseException as error:
                result.put(error)
            else:
                result.put(None)

        threading.Thread(target=work, name=COMPILER, daemon=True).start()
        while not stopping.is_set():
            with suppress(queue.Empty):
                if (error := result.get(timeout=TICK_SECONDS)) is not None:
                    raise error
                self._thread.start()
                return True
        return False

    def stop(self) -> None:
        """End the replays. May be called at any time, also after a failed start."""
        self.conductor.stop()
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)

    def check(self) -> None:
        """Raise what ended the replays' thread, which should go on."""
        alive = self._thread.is_alive()  # asked first: its failure is there before it ends
        if self.failure is not None:
            raise self.failure
        if not alive and (left := [replay.number for replay in self.replays if not replay.ended]):
            raise RuntimeError(f"the replay's thread is gone, replays {left} are not at their end")
        if self.host.panicked is not None and not self._panicked:
            self._panicked = True
            self._log.error("panic", reason=self.host.panicked)

    def probes(self, seconds: float) -> dict[str, Callable[[], bool]]:
        """What a watchdog asks: each may hang, and says False where a part has not moved for seconds."""
        return {
            "host": lambda: self.host.answers(LOCK_SECONDS),
            **{f"replay {it.number}": functools.partial(_moves, it, seconds) for it in self.replays},
        }

    def take_up(self, before: Config, now: Config) -> None:
        """Set what differs, of what can be set while it runs."""
        if self.host.memory is not None:
            for name, value in now.host.vm.model_dump().items():
                if value != getattr(before.host.vm, name):
                    self.host.set_knob(name, value)
        if now.replay.speed != before.replay.speed:
            for replay in self.replays:
                replay.set_speed(now.replay.speed)

    def _killed(self, kill: Kill) -> None:
        self._log.warning("oom-kill", **kill._asdict())

    def _compiling(self) -> None:
        self._log.info("compiling the kernels, once: two to three minutes")

    def _replay(self) -> None:
        """The replay's thread; those that it starts inherit how nice it is."""
        thread = threading.get_native_id()
        try:
            try:
                os.setpriority(os.PRIO_PROCESS, thread, min(os.getpriority(os.PRIO_PROCESS, thread) + REPLAY_NICE, 19))
            except PermissionError as error:  # of a system call filter; reads wait longer then
                self._log.warning("the replay cannot be made nice", error=error.strerror)
            self.conductor.run()
        except BaseException as e:
            self.failure = e


def _moves(replay: Replay, seconds: float) -> bool:
    return replay.stalled_seconds <= seconds
