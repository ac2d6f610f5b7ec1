"""The daemon: puts the parts together, owns their life and the signals.

All that can fail is tried before anything is mounted: configuration, traces, plugins, the port, the
mount point. Parts are started from the inside out and stopped the other way round.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from prometheus_client import CollectorRegistry

from pterefd import __version__, config, log, paths
from pterefd.errors import EXIT_DONE, BadInput, Missing
from pterefd.host.host import Host
from pterefd.host.memory import Kill
from pterefd.host.warm import warm
from pterefd.metrics import HostCollector, MetricsServer, shown_address
from pterefd.mm.profile import AUTO, Profile, for_kernel, named
from pterefd.procfs import fuse_impl, mountpoint
from pterefd.procfs.caller import Callers
from pterefd.procfs.faces import Faces
from pterefd.procfs.mount import Mount
from pterefd.procfs.root import proc_tree
from pterefd.procfs.sys_pterefd import shown_speed
from pterefd.reclaim.plugins import Plugins
from pterefd.reclaim.reclaimer import Reclaimer
from pterefd.session.conductor import Conductor
from pterefd.session.machine import memory_of
from pterefd.session.replay import FIRST_PID, Replay
from pterefd.session.sources import open_sources
from pterefd.source.source import Source
from pterefd.statusline import Status, StatusLine

STOPPING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
TICK_SECONDS = 0.2
REPLAY_STOP_SECONDS = 5.0
# A thread that waits for Python's lock gets it after this long (5 ms by default): the time that a
# read of the mount may wait for the replay's or a scrape's Python code.
SWITCH_SECONDS = 0.0005


class Daemon:
    """One host with what feeds, frees and shows it. build() makes it; start(), stop()."""

    def __init__(self, settings: config.Config, logger: Any) -> None:
        """Make all parts and try what can fail; nothing is mounted, nothing runs. Raises PterefdError."""
        self.settings = settings
        self.log = logger
        self.failure: BaseException | None = None
        binding = fuse_impl.load()
        if settings.daemon.allow_other:
            mountpoint.check_allow_other()
        plugins = Plugins()
        with _named(settings, "plugins.directories"):
            plugins.load([paths.share("plugins"), *settings.plugins.directories])
        sources = open_sources(settings.mms, plugins.workloads, settings.where_mm)
        with _named(settings, "host.profile"):
            profile = _profile(settings.host.profile, sources)
        with _named(settings, "host"):
            memory = memory_of(settings.host, settings.group, settings.mms)
        self.host = Host(profile, seed=settings.host.seed, memory=memory)
        with _named(settings, "plugins"):
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
        self.metrics = self._metrics()
        self.mount = self._mount(binding, profile.name)
        self._thread = threading.Thread(target=self._replay, name="replay", daemon=True)
        self._ready = False
        self._panicked = False
        self._changing: dict[Path, tuple[int, int]] = {}  # plugin files as they were at the last look

    def _metrics(self) -> MetricsServer | None:
        registry = CollectorRegistry()
        registry.register(self.collector)
        address = self.settings.metrics.address
        if address is None:
            return None
        try:
            return MetricsServer(address, registry, lambda: self._ready)
        except Missing as error:
            raise Missing(f"{error} (--metrics-address names another, or off)") from error

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
        return Mount(
            proc_tree(faces),
            mountpoint.absolute(self.settings.daemon.mount),
            binding,
            allow_other=self.settings.daemon.allow_other,
            caller=log.caller,
            fault=lambda e: self.log.error("fault", exc_info=e),
        )

    # -- life -----------------------------------------------------------------------------------
    def start(self) -> None:
        """Mount, serve, replay. Where it raises, nothing is left mounted."""
        sys.setswitchinterval(SWITCH_SECONDS)
        if mountpoint.prepare(self.mount.point):
            self.log.warning("recovered the mount that a killed daemon left", mount=self.mount.point)
        self.mount.start()
        self._ready = True
        if self.metrics is not None:
            self.metrics.start()
        warm()  # before there is anything to wait for: a kernel is loaded under the host's lock
        self._thread.start()

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

    def _killed(self, kill: Kill) -> None:
        self.log.warning("oom-kill", **kill._asdict())

    def _replay(self) -> None:
        try:
            self.conductor.run()
        except BaseException as e:
            self.failure = e

    def check(self) -> None:
        """Raise what ended a part of the daemon that should go on."""
        if self.failure is not None:
            raise self.failure
        if self.host.panicked is not None and not self._panicked:
            self._panicked = True
            self.log.error("panic", reason=self.host.panicked)
        if self.mount.ended:
            raise Missing(f"{self.mount.point}: unmounted from outside")

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


@contextmanager
def _named(settings: config.Config, key: str) -> Iterator[None]:
    """What is wrong with a value that only its user can judge is said with its file and key."""
    try:
        yield
    except BadInput as error:
        raise BadInput(f"{settings.where(key)}: {key}: {error}") from error


def _profile(name: str, sources: list[Source]) -> Profile:
    if name == AUTO:
        if not sources:
            return for_kernel(None, {})
        meta = sources[0].meta
        return for_kernel(meta.kernel_release, meta.kernel_config, meta.kernel_version)
    return named(name)


def run(
    settings: config.Config,
    *,
    stop_event: threading.Event | None = None,
    out: TextIO | None = None,
    err: TextIO | None = None,
    started: Callable[[Daemon], None] | None = None,
) -> int:
    """Run the daemon until a signal, or stop_event; the exit code.

    out, err: what to try goes to out, the log and the status line to err; stdout and stderr by default.
    started: called once all runs.  Raises PterefdError for what kept it from starting, or ended it.
    """
    stopping = stop_event or threading.Event()
    line = StatusLine(sys.stderr if err is None else err)
    logger = log.setup(settings.daemon.log_format, settings.daemon.log_level, line)
    daemon = Daemon(settings, logger)
    with stopped_by_signals(stopping):
        try:
            daemon.start()
            print(daemon.hints(), end="", file=sys.stdout if out is None else out, flush=True)
            logger.info("started", mount=daemon.mount.point, profile=settings.host.profile, traces=len(daemon.replays))
            if not daemon.replays:
                logger.warning("nothing to run: no [[mm]], no traces", config=settings.where("mm"))
            if started is not None:
                started(daemon)
            while not stopping.wait(TICK_SECONDS):
                daemon.check()
                if settings.plugins.reload:
                    daemon.look_for_plugins()
                line.show(daemon.status())
        finally:
            line.close()
            daemon.stop()
    logger.info("stopped")
    return EXIT_DONE


@contextmanager
def stopped_by_signals(stopping: threading.Event) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP set the event; a second one acts as it would without us.

    Set before libfuse is started, which leaves signals alone that have a handler. Does nothing outside
    the main thread, where Python allows no handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: FrameType | None) -> None:
        stopping.set()
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, stop) for number in STOPPING_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
