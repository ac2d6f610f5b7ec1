"""The daemon: puts the parts together, owns their life and the signals.

All that can fail is tried before anything is mounted: configuration, traces, plugins, the port, the
mount point. Parts are started from the inside out and stopped the other way round.
"""

from __future__ import annotations

import functools
import os
import queue
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from prometheus_client import CollectorRegistry

from pterefd import __version__, config, log, paths, reload
from pterefd.errors import COMPILER, EXIT_DONE, BadInput, Missing, PterefdError
from pterefd.host.host import Host
from pterefd.host.memory import Kill
from pterefd.host.warm import warm
from pterefd.metrics import HostCollector, MetricsServer, shown_address
from pterefd.procfs import fuse_impl, mountpoint
from pterefd.procfs.caller import Callers
from pterefd.procfs.faces import Faces
from pterefd.procfs.helped import Helped
from pterefd.procfs.mount import Mount
from pterefd.procfs.root import proc_tree
from pterefd.procfs.sys_pterefd import shown_speed
from pterefd.reclaim.plugins import Plugins
from pterefd.reclaim.reclaimer import Reclaimer
from pterefd.service import Service, Watchdog
from pterefd.session.conductor import Conductor
from pterefd.session.machine import memory_of, profile_of
from pterefd.session.replay import FIRST_PID, Replay
from pterefd.session.sources import open_sources
from pterefd.statusline import Status, StatusLine, text

STOPPING_SIGNALS = (signal.SIGINT, signal.SIGTERM)
SAME_SIGNAL_SECONDS = 0.5
TICK_SECONDS = 0.2
LOCK_SECONDS = 5.0  # the host's lock is held for about a millisecond at a time
REPLAY_STOP_SECONDS = 5.0
# The threads of a replay give way to those that serve: without that a read of the mount takes ten times as long at its
# 99th percentile where all cores are busy, and half of this does not help (bench/mount_latency.py).
REPLAY_NICE = 10
# A thread that waits for Python's lock gets it after this long (5 ms by default): the time that a
# read of the mount may wait for the replay's or a scrape's Python code.
SWITCH_SECONDS = 0.0005


class Stopped(Exception):
    """By a signal, before all had started."""


class Daemon:
    """One host with what feeds, frees and shows it. build() makes it; start(), stop()."""

    def __init__(self, settings: config.Config, logger: Any, stream: log.Stream | None = None) -> None:
        """Make all parts and try what can fail; nothing is mounted, nothing runs. Raises PterefdError.

        stream: what logger writes to, None for standard error.
        """
        self.settings = settings
        self.log = logger
        self.stream = stream
        self.failure: BaseException | None = None
        binding = fuse_impl.load()
        helper = settings.daemon.mount_helper
        if helper is None and settings.daemon.allow_other:
            mountpoint.check_allow_other()
        if helper is not None and binding.version < fuse_impl.MOUNTED_BEFORE:
            raise Missing("daemon.mount_helper: needs libfuse 3.3 or newer: install libfuse3-3")
        plugins = Plugins()
        with settings.blamed("plugins.directories"):
            plugins.load([paths.share("plugins"), *settings.plugins.directories])
        sources = open_sources(settings.mms, plugins.workloads, settings.where_mm)
        with settings.blamed("host.profile"):
            profile = profile_of(settings.host.profile, sources)
        with settings.blamed("host"):
            memory = memory_of(settings.host, settings.group, settings.mms)
        self.host = Host(profile, seed=settings.host.seed, memory=memory)
        with settings.blamed("plugins"):
            self.reclaimer = Reclaimer(
                self.host,
                plugins,
                logger,
                policy=settings.plugins.policy,
                triggers=settings.plugins.triggers,
                policy_tunables=settings.plugins.policies,
                trigger_tunables=settings.plugins.trigger_tunables(),
                policies_by_trigger=settings.plugins.policies_by_trigger(),
                deadline=settings.plugins.deadline,
                failures=settings.plugins.failures,
            )
        self.replays = [
            Replay(number, source, self.host, self.reclaimer, speed=settings.replay.speed, hold=settings.replay.hold)
            for number, source in enumerate(sources)
        ]
        self.conductor = Conductor(self.replays, self.host, self.reclaimer)
        self.collector = HostCollector(
            self.host, self.reclaimer, self.replays, max_mms=settings.metrics.max_mms, version=__version__
        )
        self.reclaimer.on_result(self.collector.observe)
        self.host.on_kill = self._killed
        self._ready = False
        self.metrics = self._metrics(settings.metrics.address)
        self.mount = self._mount(binding, profile.name)
        self._thread = threading.Thread(target=self._replay, name="replay", daemon=True)
        self._panicked = False
        self._changing: dict[Path, tuple[int, int]] = {}  # plugin files as they were at the last look

    def _metrics(self, address: tuple[str, int] | None) -> MetricsServer | None:
        registry = CollectorRegistry()
        registry.register(self.collector)
        if address is None:
            return None
        try:
            return MetricsServer(address, registry, lambda: self._ready, self._fault)
        except Missing as error:
            # A daemon that runs can be given no option.
            by = "[metrics] address" if self._ready else "--metrics-address"
            raise Missing(f"{error} ({by} names another, or off)") from error

    def serve_metrics(self, address: tuple[str, int] | None) -> None:
        """Serve at another address, None for nowhere. Missing where it cannot be: the old one goes on."""
        if self.metrics is not None:
            self.metrics.stop()  # its port may be part of the new address
            self.metrics = None
        try:
            self.metrics = self._metrics(address)
        except Missing:
            self.metrics = self._metrics(self.settings.metrics.address)
            raise
        finally:
            if self.metrics is not None:
                self.metrics.start()

    def _mount(self, binding: fuse_impl.Binding, profile: str) -> Mount:
        faces = Faces(
            self.host,
            self.reclaimer,
            self.replays,
            __version__,
            profile,
            note=self.log.info,
            callers=Callers(binding.caller),
        )
        helper = self.settings.daemon.mount_helper
        return Mount(
            proc_tree(faces),
            mountpoint.absolute(self.settings.daemon.mount),
            binding,
            allow_other=self.settings.daemon.allow_other,
            helped=Helped(helper) if helper is not None else None,
            caller=log.caller,
            fault=self._fault,
        )

    # -- life -----------------------------------------------------------------------------------
    def start(self, stopping: threading.Event) -> None:
        """Mount, serve, replay. Where it raises, nothing is left mounted. Stopped where it was, on the way."""
        sys.setswitchinterval(SWITCH_SECONDS)
        helped = self.settings.daemon.mount_helper is not None  # and takes away what is dead by itself
        if mountpoint.is_dead(self.mount.point) if helped else mountpoint.prepare(self.mount.point):
            self.log.warning("recovered the mount that a killed daemon left", mount=self.mount.point)
        self.mount.start()
        if self.metrics is not None:
            self.metrics.start()
        self._warm(stopping)
        self._ready = True
        self._thread.start()

    def _warm(self, stopping: threading.Event) -> None:
        """Load the kernels before there is anything to wait for: that is done under the host's lock.

        At a first start they are compiled, and no signal reaches a thread that is inside the compiler. It cannot be
        told to stop either, and is left behind.
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
                return
        raise Stopped

    def stop(self) -> None:
        """End the replays, unmount, free the port. May be called at any time, also after a failed start."""
        self._ready = False
        self.conductor.stop()
        if self._thread.is_alive():
            self._thread.join(REPLAY_STOP_SECONDS)
        if self.mount.mounted and not self.mount.stop():
            self.log.warning("somebody was still inside the mount; it is detached", mount=self.mount.point)
        if self.metrics is not None:
            self.metrics.stop()

    def _fault(self, error: BaseException) -> None:
        self.log.error("fault", exc_info=error)

    def _killed(self, kill: Kill) -> None:
        self.log.warning("oom-kill", **kill._asdict())

    def _compiling(self) -> None:
        self.log.info("compiling the kernels, once: two to three minutes")

    def _replay(self) -> None:
        """The replay's thread; those that it starts inherit how nice it is."""
        thread = threading.get_native_id()
        try:
            try:
                os.setpriority(os.PRIO_PROCESS, thread, min(os.getpriority(os.PRIO_PROCESS, thread) + REPLAY_NICE, 19))
            except PermissionError as error:  # of a system call filter; reads wait longer then
                self.log.warning("the replay cannot be made nice", error=error.strerror)
            self.conductor.run()
        except BaseException as e:
            self.failure = e

    def check(self) -> None:
        """Raise what ended a part of the daemon that should go on."""
        alive = self._thread.is_alive()  # asked first: its failure is there before it ends
        if self.failure is not None:
            raise self.failure
        if not alive and (left := [replay.number for replay in self.replays if not replay.ended]):
            raise RuntimeError(f"the replay's thread is gone, replays {left} are not at their end")
        if self.host.panicked is not None and not self._panicked:
            self._panicked = True
            self.log.error("panic", reason=self.host.panicked)
        if self.mount.ended:
            raise Missing(f"{self.mount.point}: unmounted from outside")

    def probes(self, seconds: float) -> dict[str, Callable[[], bool]]:
        """What a watchdog asks of this daemon: each may hang, and says False where a part has not moved for seconds."""
        return {
            "mount": self._mount_answers,
            "host": lambda: self.host.answers(LOCK_SECONDS),
            **{f"replay {it.number}": functools.partial(_moves, it, seconds) for it in self.replays},
        }

    def _mount_answers(self) -> bool:
        """By way of the kernel and libfuse, as everybody else; what is read is never cached."""
        try:
            return Path(self.mount.point, "sys/pterefd/pid").read_text() == f"{os.getpid()}\n"
        except OSError:
            return False

    def take_up(self, load: Callable[[], config.Config]) -> None:
        """Load the configuration anew and set what can change. A bad one changes nothing and is one line of the log."""
        try:
            reload.take_up(self, load())
        except PterefdError as error:
            self.log.error("configuration refused, the old one stays", error=str(error))

    def look_for_plugins(self) -> None:
        """Take up plugin files that are new or have changed, once they have stood still between two looks.

        One that does not fit is in the log, once.
        """
        found = self.reclaimer.changed_files()
        settled = [path for path, stamp in found.items() if self._changing.get(path) == stamp]
        self._changing = found
        if settled:
            with suppress(BadInput):
                self.reclaimer.reload(settled)

    # -- what it says -----------------------------------------------------------------------------
    def status(self) -> Status:
        """The numbers of the status line, as last published."""
        view = self.host.view()
        first = self.replays[0] if self.replays else None
        return Status(
            mms=len(view.pid),
            pgtables_bytes=int(view.pgtables_bytes.sum()),
            reclaimable_pt_bytes=int(view.reclaimable_bytes.sum()),
            replay=None if first is None else (first.state, first.position, first.events, shown_speed(first.speed)),
        )

    def hints(self) -> str:
        """What to try, for a person who has just started it."""
        mount = _near(self.mount.point)
        lines = [f"mounted at {mount}" + ("; try, in another shell:" if self.replays else "")]
        if self.replays:
            pid = FIRST_PID + self.replays[0].source.pid_base
            lines += [
                f"    cat {mount}/{pid}/reclaimable_pt_bytes        # bytes of page tables that could be freed now",
                f"    echo {pid} > {mount}/sys/vm/free_ptes         # free them",
                f"    grep VmPTE {mount}/{pid}/status",
            ]
        activate = Path(sys.prefix, "bin", "activate")
        if shutil.which("pterefd") is None and activate.is_file():
            lines.append(f"    . {_near(activate)}                   # then `pterefd` is a command: pterefd --help")
        if self.metrics is not None:
            lines.append(f"metrics: http://{shown_address(self.metrics.address)}/metrics")
        return "\n".join(lines) + "\n"


def _near(path: str | Path) -> str:
    """As it is written from the working directory, where it lies below that."""
    near = os.path.relpath(path)
    return str(path) if near.startswith("..") else near


def _moves(replay: Replay, seconds: float) -> bool:
    return replay.stalled_seconds <= seconds


def run(
    settings: config.Config,
    *,
    stop_event: threading.Event | None = None,
    out: TextIO | None = None,
    err: TextIO | None = None,
    started: Callable[[Daemon], None] | None = None,
    load: Callable[[], config.Config] | None = None,
) -> int:
    """Run the daemon until a signal, or stop_event; the exit code.

    out, err: what to try goes to out, the log and the status line to err; stdout and stderr by default.
    started: called once all runs.  load: the configuration again, for SIGHUP; None: SIGHUP ends it.
    Raises PterefdError for what kept it from starting, or ended it.
    """
    stopping, hup = stop_event or threading.Event(), threading.Event()
    line = StatusLine(sys.stderr if err is None else err)
    logger = log.setup(settings.daemon.log_format, settings.daemon.log_level, line)
    service = Service()
    daemon = Daemon(settings, logger, line)
    watchdog = Watchdog(service, daemon.probes(service.watchdog_seconds or 0), logger)
    hangs_up = load is None or (not service.present and has_terminal())
    with stopped_by_signals(stopping, stopping if hangs_up else hup):
        try:
            service.status("mounting, loading the kernels")  # which are compiled at a first start: minutes
            daemon.start(stopping)
            print(daemon.hints(), end="", file=sys.stdout if out is None else out, flush=True)
            logger.info("started", mount=daemon.mount.point, profile=settings.host.profile, traces=len(daemon.replays))
            service.ready()
            watchdog.start()
            if not daemon.replays:
                logger.warning("nothing to run: no [[mm]], no traces", config=settings.where("mm"))
            if started is not None:
                started(daemon)
            while not stopping.wait(TICK_SECONDS):
                daemon.check()
                if hup.is_set() and load is not None:
                    hup.clear()
                    service.reloading()
                    daemon.take_up(load)
                    service.ready()
                if daemon.settings.plugins.reload:
                    daemon.look_for_plugins()
                status = daemon.status()
                line.show(status)
                service.status(text(status))
                watchdog.tick()
        except Stopped:
            pass
        finally:
            service.stopping()
            watchdog.stop()
            line.close()
            daemon.stop()
            service.close()
    logger.info("stopped")
    return EXIT_DONE


def has_terminal() -> bool:
    """Whether there is a terminal to be hung up: then SIGHUP says that it was."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


@contextmanager
def stopped_by_signals(stopping: threading.Event, hup: threading.Event) -> Iterator[None]:
    """SIGINT and SIGTERM set `stopping`, and a later one acts as it would without us; SIGHUP sets `hup`.

    One that comes at once is the same, told twice: timeout(1) tells the whole group, and make(1) its children.
    Under nohup, SIGHUP stays ignored. Set before libfuse is started, which leaves signals alone that have
    a handler. Does nothing outside the main thread, where Python allows no handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    told: list[float] = []

    def stop(number: int, _: FrameType | None) -> None:
        told.append(time.monotonic())
        if told[-1] - told[0] > SAME_SIGNAL_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        stopping.set()

    def hang_up(number: int, frame: FrameType | None) -> None:
        if hup is stopping:
            stop(number, frame)
        hup.set()

    before = {number: signal.signal(number, stop) for number in STOPPING_SIGNALS}
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, hang_up)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
