"""Metrics for Prometheus: one snapshot of the host a scrape, in a registry of their own.

Every number is read from what the host last published, so a scrape waits for no batch. Per-mm series
are bounded: the mms with most reclaimable bytes have their own, the rest are summed as pid="other".
"""

from __future__ import annotations

import bisect
import math
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePath
from socket import AF_INET, AF_INET6
from socketserver import TCPServer
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from pterefd.errors import Missing
from pterefd.names import printable

if TYPE_CHECKING:
    from pterefd.hookspecs import ReclaimResult
    from pterefd.host.host import Host, Snapshot
    from pterefd.reclaim.reclaimer import Reclaimer
    from pterefd.session.replay import Replay

DURATION_BUCKETS = (1e-5, 1e-4, 1e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
SLOW_CLIENT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class MmGauge:
    """A per-mm metric: its name, and the view's columns by the value of its `kind` label ("" for none)."""

    name: str
    help: str
    columns: Mapping[str, str]


MM_GAUGES = (
    MmGauge("pterefd_mm_pgtables_bytes", "Page-table pages of the mm: PTE, PMD and PUD pages.", {"": "pgtables_bytes"}),
    MmGauge(
        "pterefd_mm_reclaimable_pt_bytes",
        "PTE pages that free_ptes would free, with no entry set (empty) or with 512 zero-page entries (zero); "
        "those with zero-page entries and none (mixed) it would not.",
        {"empty": "reclaimable_empty_bytes", "zero": "reclaimable_zero_bytes", "mixed": "mixed_bytes"},
    ),
    MmGauge(
        "pterefd_mm_resident_bytes",
        "Resident memory of the mm.",
        {"anon": "anon_bytes", "file": "file_bytes", "shmem": "shmem_bytes"},
    ),
    MmGauge("pterefd_mm_swap_bytes", "Anonymous memory of the mm that is swapped out.", {"": "swap_bytes"}),
)
OTHER = "other"
USES = ("total", "free", "anon", "file", "shmem", "pgtables")
OUTCOMES = ("done", "partly", "nothing", "failed")


@dataclass(frozen=True, slots=True)
class ReplayGauge:
    """A per-replay metric, and what it is of a replay; None where it is not known yet."""

    name: str
    help: str
    value: Callable[[Replay], float | None]


REPLAY_GAUGES = (
    ReplayGauge("pterefd_replay_position_events", "Index of the next event of the replay.", lambda r: r.position),
    ReplayGauge(
        "pterefd_replay_length_events", "Events of the replay; of a workload once it has ended.", lambda r: r.events
    ),
    ReplayGauge("pterefd_replay_time_seconds", "The trace's time that has been replayed.", lambda r: r.time_ns / 1e9),
    ReplayGauge(
        "pterefd_replay_speed_ratio",
        "Speed of the replay as a factor of real time; +Inf for max.",
        lambda r: math.inf if r.speed is None else r.speed,
    ),
    ReplayGauge(
        "pterefd_replay_stalled_seconds",
        "Wall time since the replay last ran an event or saw that none is due; up to about 1 is usual. "
        "0 while it is paused, held or ended.",
        lambda r: r.stalled_seconds,
    ),
)


class Shown(Protocol):
    """A host, as far as every kind is shown alike."""

    @property
    def kind(self) -> str:
        """simulated or live"""

    def snapshot(self) -> Any:
        """All mms, their names and the host's memory, of one publication: as host.Snapshot."""


class MmCollector(Collector):
    """What a scrape sees of a host and its reclaimer, whatever the host.

    max_mms: mms with series of their own.  What mms, groups and the host hold is of one publication.
    """

    def __init__(self, host: Shown, reclaimer: Reclaimer, *, max_mms: int = 100, version: str = "0") -> None:
        self._shown = host
        self._reclaimer = reclaimer
        self.max_mms = max_mms
        self._version = version
        self._durations = Durations()

    def observe(self, result: ReclaimResult) -> None:
        """Count how long an act of reclaim took; the reclaimer calls it after each."""
        self._durations.add(result.seconds)

    def collect(self) -> Iterator[Metric]:
        kind = self._shown.kind
        snapshot = self._shown.snapshot()
        yield InfoMetricFamily("pterefd_build", "The daemon that runs.", {"version": self._version, "host_kind": kind})
        yield gauge_of("pterefd_host_mms", "Mms on the host.", (), kind, {(): snapshot.mms})
        yield from self._mms(snapshot, kind)
        yield from self._memory(snapshot, kind)
        yield from self._reclaims(kind)
        yield from self._plugins(kind)
        yield from self._of_kind(snapshot, kind)

    def _of_kind(self, snapshot: Any, kind: str) -> Iterator[Metric]:
        """What a host of one kind alone has."""
        raise NotImplementedError

    def _split(self, view: Any) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Rows of mms with series of their own, and of the rest."""
        return split(view.reclaimable_bytes, view.pgtables_bytes, self.max_mms)

    def _known(self, view: Any, name: str) -> npt.NDArray[np.bool_]:
        """bool[n]: of which mms a column is known."""
        return np.ones(len(getattr(view, name)), dtype=np.bool_)

    def _mms(self, snapshot: Any, host_kind: str) -> Iterator[Metric]:
        view = snapshot.view
        own, rest = self._split(view)
        labels = [[str(pid), printable(snapshot.comm(pid)), host_kind] for pid in view.pid[own].tolist()]
        if len(rest):
            labels.append([OTHER, OTHER, host_kind])
        for gauge in MM_GAUGES:
            names = ["pid", "comm", "host_kind"] + ([] if "" in gauge.columns else ["kind"])
            family = GaugeMetricFamily(gauge.name, gauge.help, labels=names)
            for kind, name in gauge.columns.items():
                column = getattr(view, name)
                known = [*self._known(view, name)[own].tolist(), True]
                values = column[own].tolist() + ([int(column[rest].sum())] if len(rest) else [])
                for label, value, is_known in zip(labels, values, known, strict=False):
                    if is_known:
                        family.add_metric([*label, kind] if kind else label, value)
            yield family

    def _memory(self, snapshot: Any, kind: str) -> Iterator[Metric]:
        """What the host holds, nothing where no memory is accounted."""
        if not snapshot.usages:
            return
        usage = snapshot.usages[""]
        for name, help, label, values in (
            (
                "pterefd_host_memory_bytes",
                "Memory of the host: total, free, and what holds it.",
                "state",
                {state: getattr(usage, state) for state in USES},
            ),
            (
                "pterefd_host_swap_bytes",
                "Swap of the host.",
                "state",
                {"total": usage.swap_total, "free": usage.swap_free},
            ),
            (
                "pterefd_host_watermark_bytes",
                "Free memory at which kswapd begins (low) and ends (high), and direct reclaim begins (min).",
                "mark",
                {"min": usage.min, "low": usage.low, "high": usage.high},
            ),
        ):
            yield gauge_of(name, help, (label,), kind, values)

    def _reclaims(self, kind: str) -> Iterator[Metric]:
        """Series that may come are there, at 0, before their first act: what begins at 1 has no increase to see."""
        reclaimer = self._reclaimer
        served = [(trigger, reclaimer.policy_of(trigger) or reclaimer.policy) for trigger in reclaimer.triggers]
        policies = InfoMetricFamily(
            "pterefd_reclaim_policy", "The policy that serves each active trigger.", labels=["trigger", "policy"]
        )
        for trigger, policy in served:
            policies.add_metric([trigger, policy], {"host_kind": kind})
        yield policies
        yield counter_of(
            "pterefd_reclaimed_pt_bytes",
            "PTE pages freed, by trigger, policy and kind (empty, zero, mixed).",
            ("trigger", "policy", "kind"),
            kind,
            {(*pair, freed): 0 for pair in served for freed in ("empty", "zero")} | dict(reclaimer.totals),
        )
        yield counter_of(
            "pterefd_reclaim_runs",
            "Acts of reclaim, by outcome: done, partly, nothing, failed.",
            ("trigger", "policy", "outcome"),
            kind,
            {(*pair, outcome): 0 for pair in served for outcome in OUTCOMES} | dict(reclaimer.runs),
        )
        buckets, total = self._durations.snapshot()
        family = HistogramMetricFamily(
            "pterefd_reclaim_duration_seconds", "Wall time that an act of reclaim took.", labels=["host_kind"]
        )
        family.add_metric([kind], buckets, total)
        yield family

    def _plugins(self, kind: str) -> Iterator[Metric]:
        reclaimer = self._reclaimer
        names = dict.fromkeys([*reclaimer.available_policies(), *reclaimer.available_triggers()], 0)
        errors = names | dict(reclaimer.plugin_errors)
        yield counter_of("pterefd_plugin_errors", "Errors that plugins raised.", ("plugin",), kind, errors)
        aside = dict.fromkeys(reclaimer.put_aside(), 1)
        yield gauge_of(
            "pterefd_plugin_put_aside",
            "1 for each plugin that failed too often and is not called any more.",
            ("kind", "plugin"),
            kind,
            aside,
        )


class HostCollector(MmCollector):
    """What a scrape sees of a simulated host, its reclaimer and its replays."""

    def __init__(
        self,
        host: Host,
        reclaimer: Reclaimer,
        replays: Sequence[Replay] = (),
        *,
        max_mms: int = 100,
        version: str = "0",
    ) -> None:
        super().__init__(host, reclaimer, max_mms=max_mms, version=version)
        self._host = host
        self._replays = replays

    def _of_kind(self, snapshot: Any, kind: str) -> Iterator[Metric]:
        yield from self._accounts(snapshot, kind)
        yield counter_of(
            "pterefd_made_again_pt_bytes",
            "PTE pages that were freed, short of an munmap, and had to be made again: what reclaim came too early for.",
            (),
            kind,
            {(): self._host.made_again_bytes},
        )
        yield from self._replay(kind)

    def _accounts(self, snapshot: Snapshot, kind: str) -> Iterator[Metric]:
        """What the groups hold, and what came of it; nothing where no memory is accounted."""
        host = self._host
        if not snapshot.usages:
            return
        held = {
            (group, state): number
            for group, usage in snapshot.usages.items()
            if group
            for state, number in {**{use: getattr(usage, use) for use in USES[2:]}, "limit": usage.limit}.items()
        }
        yield gauge_of(
            "pterefd_group_memory_bytes",
            "Memory of a group, and its limit, 0 for none.",
            ("group", "state"),
            kind,
            held,
        )
        kills = Counter(kill.group for kill in host.kills)
        named: dict[str, float] = {group: kills[group] for group in snapshot.usages}
        yield counter_of(
            "pterefd_oom_kills", "Kills of the OOM killer, by the group at its limit.", ("group",), kind, named
        )
        yield counter_of("pterefd_vmstat", "What /proc/vmstat counts, by its names.", ("name",), kind, host.vmstat)
        yield counter_of(
            "pterefd_lost_events", "Events of mms that were killed, or mappings refused.", (), kind, {(): host.lost}
        )

    def _replay(self, kind: str) -> Iterator[Metric]:
        from pterefd.session.replay import STATES  # with it comes the engine

        labels = {(str(replay.number), printable(PurePath(replay.name).name)): replay for replay in self._replays}
        events = dict(self._host.events_total)
        yield counter_of("pterefd_replay_events", "Events replayed, by op.", ("op",), kind, events)
        states = {(*label, state): float(replay.state == state) for label, replay in labels.items() for state in STATES}
        yield gauge_of(
            "pterefd_replay_state",
            "1 for the state that the replay is in, 0 for the others: running, paused, held or ended.",
            ("replay", "source", "state"),
            kind,
            states,
        )
        for gauge in REPLAY_GAUGES:
            found = {label: gauge.value(replay) for label, replay in labels.items()}
            known = {label: value for label, value in found.items() if value is not None}
            yield gauge_of(gauge.name, gauge.help, ("replay", "source"), kind, known)


class Durations:
    """A histogram of seconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = [0] * (len(DURATION_BUCKETS) + 1)
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        """Count one duration."""
        with self._lock:
            self._counts[bisect.bisect_left(DURATION_BUCKETS, seconds)] += 1
            self._sum += seconds

    def snapshot(self) -> tuple[list[tuple[str, float]], float]:
        """Cumulative (upper bound, count), ending with +Inf; and the sum."""
        with self._lock:
            counts, total = np.cumsum(self._counts).tolist(), self._sum
        bounds = [*map(str, DURATION_BUCKETS), "+Inf"]
        return list(zip(bounds, counts, strict=True)), total


def split(
    reclaimable: npt.NDArray[np.int64], pgtables: npt.NDArray[np.int64], k: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows of the k mms with most reclaimable bytes (page tables decide between equals), and of the rest.

    reclaimable, pgtables: int64[n], bytes. Returns int64 row indices, the first in falling order. O(n).
    """
    n = len(reclaimable)
    # Both are whole pages: in one key, with 28 bits (1 TiB of tables) for the tie.
    key = ((reclaimable >> 12) << 28) + np.minimum(pgtables >> 12, (1 << 28) - 1)
    if n > k:
        order = np.argpartition(-key, k - 1) if k else np.arange(n)
        own, rest = order[:k], order[k:]
    else:
        own, rest = np.arange(n), np.arange(0)
    return own[np.argsort(-key[own], kind="stable")], rest


def counter_of(name: str, help: str, labels: tuple[str, ...], kind: str, values: Mapping[Any, float]) -> Metric:
    """A counter with `host_kind` after its labels. values: by label value, or by tuple of them."""
    return _filled(CounterMetricFamily(name, help, labels=[*labels, "host_kind"]), kind, values)


def gauge_of(name: str, help: str, labels: tuple[str, ...], kind: str, values: Mapping[Any, float]) -> Metric:
    """A gauge, as counter_of()."""
    return _filled(GaugeMetricFamily(name, help, labels=[*labels, "host_kind"]), kind, values)


def _filled(family: CounterMetricFamily | GaugeMetricFamily, kind: str, values: Mapping[Any, float]) -> Metric:
    for key, value in sorted(values.items()):
        family.add_metric([*(key if isinstance(key, tuple) else (key,)), kind], value)
    return family


# -- the server -------------------------------------------------------------------------------


class MetricsServer:
    """HTTP on one address: /metrics, /-/healthy, /-/ready.

    Bound when made (Missing where the address is taken), serving from start() to stop().
    fault: told of what should not have been raised.
    """

    def __init__(
        self,
        address: tuple[str, int],
        registry: CollectorRegistry,
        ready: Callable[[], bool],
        fault: Callable[[BaseException], None],
    ) -> None:
        members = {"registry": registry, "ready": staticmethod(ready), "fault": staticmethod(fault)}
        handler = type("Handler", (_Handler,), members)
        try:
            self._server = _Server(address, handler, fault)
        except OSError as e:
            raise Missing(f"metrics: {shown_address(address)}: {e.strerror or e}") from None
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="metrics", daemon=True
        )

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that are listened on; the port that was found where 0 was asked for."""
        host, port = self._server.server_address[:2]
        return str(host), int(port)

    def start(self) -> None:
        """Serve, in a thread for each request."""
        self._thread.start()

    def stop(self) -> None:
        """Stop serving and free the port."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


def shown_address(address: tuple[str, int]) -> str:
    """HOST:PORT, with brackets around an IPv6 host."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(
        self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler], fault: Callable[[BaseException], None]
    ) -> None:
        self._fault = fault
        self.address_family = AF_INET6 if ":" in address[0] else AF_INET
        super().__init__(address, handler)

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's own asks the name server who we are

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no matter of ours."""
        error = sys.exception()
        if error is not None and not isinstance(error, ConnectionError | TimeoutError):
            self._fault(error)


class _Handler(BaseHTTPRequestHandler):
    registry: CollectorRegistry
    ready: Callable[[], bool]
    fault: Callable[[BaseException], None]
    timeout = SLOW_CLIENT_SECONDS
    server_version = "pterefd"
    sys_version = ""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            self._metrics()
        elif path == "/-/healthy":
            self._answer(200, b"pterefd is healthy\n")
        elif path == "/-/ready":
            ready = self.ready()
            self._answer(200 if ready else 503, b"pterefd is ready\n" if ready else b"pterefd is not ready\n")
        elif path == "/":
            self._answer(200, b"pterefd: see /metrics, /-/healthy, /-/ready\n")
        else:
            self._answer(404, b"not found\n")

    def _metrics(self) -> None:
        encode, content_type = choose_encoder(self.headers.get("Accept", ""))
        try:
            body = encode(self.registry)
        except Exception as error:
            self.fault(error)
            self._answer(500, b"the metrics cannot be made: a fault of pterefd; its log says more\n")
        else:
            self._answer(200, body, content_type)

    def do_HEAD(self) -> None:
        self.do_GET()

    def _answer(self, status: int, body: bytes, content_type: str = "text/plain; charset=utf-8") -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are no acts: they are not logged."""
