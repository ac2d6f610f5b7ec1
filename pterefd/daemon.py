"""The daemon: puts the parts together, owns their life and the signals.

All that can fail is tried before anything is mounted: configuration, traces, plugins, the port, the
mount point. Parts are started from the inside out and stopped the other way round.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from prometheus_client import CollectorRegistry

from pterefd import __version__, config, log, paths, reload
from pterefd.errors import EXIT_DONE, BadInput, Missing, PterefdError
from pterefd.metrics import HostCollector, MetricsServer, MmCollector, shown_address
from pterefd.metrics_live import LiveCollector
from pterefd.procfs import fuse_impl, mountpoint
from pterefd.procfs.caller import Callers
from pterefd.procfs.faces import Faces
from pterefd.procfs.helped import Helped
from pterefd.procfs.mount import CACHE_SECONDS, Mount
from pterefd.procfs.sys_pterefd import shown_speed
from pterefd.procfs.tree import Tree
from pterefd.reclaim.plugins import Plugins
from pterefd.reclaim.reclaimer import Reclaimer
from pterefd.service import Service, Watchdog
from pterefd.statusline import Status, StatusLine, text

if TYPE_CHECKING:
    from pterefd.session.replay import Replay

STOPPING_SIGNALS = (signal.SIGINT, signal.SIGTERM)
SAME_SIGNAL_SECONDS = 0.5
TICK_SECONDS = 0.2
# A thread that waits for Python's lock gets it after this long (5 ms by default): the time that a
# read of the mount may wait for the replay's or a scrape's Python code.
SWITCH_SECONDS = 0.0005


class Stopped(Exception):
    """By a signal, before all had started."""


class Works(Protocol):
    """What runs on a host and moves it: a simulation, or the watch on this machine's processes.

    host: the host.  profile: the rules that its mms live under, "" for the kernel's own.  replays: what feeds it.
    """

    host: Any
    profile: str
    replays: Sequence[Replay]

    @property
    def example_pid(self) -> int | None:
        """A pid to try things out on."""

    def about(self) -> dict[str, Any]:
        """What the log says of it once it runs."""

    def serve(self, reclaimer: Reclaimer) -> None:
        """Tell the reclaimer of moments. Before start()."""

    def start(self, stopping: threading.Event) -> bool:
        """Run. False where it was stopped on the way."""

    def stop(self) -> None:
        """End. May be called at any time, also after a failed start."""

    def check(self) -> None:
        """Raise what ended a part that should go on."""

    def probes(self, seconds: float) -> dict[str, Callable[[], bool]]:
        """What a watchdog asks: each may hang, and says False where a part has not moved for seconds."""

    def take_up(self, before: config.Config, now: config.Config) -> None:
        """Set what differs, of what can be set while it runs."""


def make_works(settings: config.Config, plugins: Plugins, logger: Any) -> Works:
    """What runs on the host that is configured. Raises PterefdError.

    The one kind needs nothing of the other: a live host no compiled kernels.
    """
    if settings.host.kind == "live":
        from pterefd.live.keeper import Keeper

        return Keeper.of(settings, logger, _freer(settings, logger))
    from pterefd.session.simulation import Simulation

    return Simulation(settings, plugins.workloads, logger)


def _freer(settings: config.Config, logger: Any) -> Any:
    """What frees from running processes; None where that is off."""
    if settings.live.freeing is None:
        return None
    from pterefd.freeing.client import Freer

    freer = Freer(settings.live.freeing, logger)
    if missing := freer.missing():
        logger.warning("nothing can be freed yet", why=missing)
    return freer


class Daemon:
    """One host with what feeds, frees and shows it. build() makes it; start(), stop()."""

    def __init__(self, settings: config.Config, logger: Any, stream: log.Stream | None = None) -> None:
        """Make all parts and try what can fail; nothing is mounted, nothing runs. Raises PterefdError.

        stream: what logger writes to, None for standard error.
        """
        self.settings = settings
        self.log = logger
        self.stream = stream
        binding = fuse_impl.load()
        helper = settings.daemon.mount_helper
        if helper is None and settings.daemon.allow_other:
            mountpoint.check_allow_other()
        if helper is not None and binding.version < fuse_impl.MOUNTED_BEFORE:
            raise Missing("daemon.mount_helper: needs libfuse 3.3 or newer: install libfuse3-3")
        plugins = Plugins()
        with settings.blamed("plugins.directories"):
            plugins.load([paths.share("plugins"), *settings.plugins.directories])
        self.works = make_works(settings, plugins, logger)
        with settings.blamed("plugins"):
            self.reclaimer = Reclaimer(
                self.works.host,
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
        self.works.serve(self.reclaimer)
        self.collector = self._collector()
        self.reclaimer.on_result(self.collector.observe)
        self._ready = False
        self.metrics = self._metrics(settings.metrics.address)
        self.mount = self._mount(binding)
        self._changing: dict[Path, tuple[int, int]] = {}  # plugin files as they were at the last look

    @property
    def replays(self) -> Sequence[Replay]:
        """What runs on a simulated host; nothing on a live one."""
        return self.works.replays

    def _collector(self) -> MmCollector:
        most, host = self.settings.metrics.max_mms, self.works.host
        if self.settings.host.kind == "live":
            return LiveCollector(host, self.reclaimer, max_mms=most, version=__version__)
        return HostCollector(host, self.reclaimer, self.replays, max_mms=most, version=__version__)

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

    def _mount(self, binding: fuse_impl.Binding) -> Mount:
        live = self.settings.host.kind == "live"
        helper = self.settings.daemon.mount_helper
        return Mount(
            self._live_tree(binding) if live else self._tree(binding),
            mountpoint.absolute(self.settings.daemon.mount),
            binding,
            allow_other=self.settings.daemon.allow_other,
            helped=Helped(helper) if helper is not None else None,
            caller=log.caller,
            fault=self._fault,
            name_seconds=0.0 if live else CACHE_SECONDS,
        )

    def _tree(self, binding: fuse_impl.Binding) -> Tree:
        from pterefd.procfs.root import proc_tree

        host, profile, callers = self.works.host, self.works.profile, Callers(binding.caller)
        faces = Faces(host, self.reclaimer, self.replays, __version__, profile, note=self.log.info, callers=callers)
        return proc_tree(faces)

    def _live_tree(self, binding: fuse_impl.Binding) -> Tree:
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each open file of the mount is one of the kernel's
        from pterefd.procfs.live.caller import LiveCallers
        from pterefd.procfs.live.faces import LiveFaces
        from pterefd.procfs.live.root import live_tree

        callers = LiveCallers(binding.caller)
        return live_tree(LiveFaces(self.works.host, self.reclaimer, callers, __version__, self.log.info))

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
        if not self.works.start(stopping):
            raise Stopped
        self._ready = True

    def stop(self) -> None:
        """End what runs, unmount, free the port. May be called at any time, also after a failed start."""
        self._ready = False
        self.works.stop()
        if self.mount.mounted and not self.mount.stop():
            self.log.warning("somebody was still inside the mount; it is detached", mount=self.mount.point)
        if self.metrics is not None:
            self.metrics.stop()

    def _fault(self, error: BaseException) -> None:
        self.log.error("fault", exc_info=error)

    def check(self) -> None:
        """Raise what ended a part of the daemon that should go on."""
        self.works.check()
        if self.mount.ended:
            raise Missing(f"{self.mount.point}: unmounted from outside")

    def probes(self, seconds: float) -> dict[str, Callable[[], bool]]:
        """What a watchdog asks of this daemon: each may hang, and says False where a part has not moved for seconds."""
        return {
            "mount": self._mount_answers,
            **self.works.probes(seconds),
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
        view = self.works.host.view()
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
        pid = self.works.example_pid
        lines = [f"mounted at {mount}" + ("; try, in another shell:" if pid is not None else "")]
        if pid is not None:
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
            logger.info("started", mount=daemon.mount.point, **daemon.works.about())
            service.ready()
            watchdog.start()
            if settings.host.kind == "simulated" and not daemon.replays:
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
