"""What a scrape says: the names that others rely on, the host's numbers, and a bound on the series."""

from __future__ import annotations

import http.client
import re
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.registry import Collector

from pterefd import __version__, log, paths
from pterefd.errors import EXIT_MISSING, Missing
from pterefd.hookspecs import Kinds, ReclaimRequest, ReclaimResult
from pterefd.host.host import Host
from pterefd.host.memory import GroupLimit, Memory
from pterefd.metrics import DURATION_BUCKETS, HostCollector, MetricsServer, shown_address, split
from pterefd.mm import profile
from pterefd.reclaim.plugins import Plugins
from pterefd.reclaim.reclaimer import Reclaimer
from pterefd.session.conductor import Conductor
from pterefd.session.replay import Replay
from pterefd.source.place import Placed
from pterefd.source.workload import WorkloadSource
from tests.house import AT, EVENTS, SPAN, Event, House, fault, house, spans

# Names and labels of design.md, as far as there is something to say yet.
NAMES = {
    "pterefd_build": {"version", "host_kind"},
    "pterefd_host_mms": {"host_kind"},
    "pterefd_mm_pgtables_bytes": {"pid", "comm", "host_kind"},
    "pterefd_mm_reclaimable_pt_bytes": {"pid", "comm", "host_kind", "kind"},
    "pterefd_mm_resident_bytes": {"pid", "comm", "host_kind", "kind"},
    "pterefd_mm_swap_bytes": {"pid", "comm", "host_kind"},
    "pterefd_reclaim_policy": {"trigger", "policy", "host_kind"},
    "pterefd_reclaimed_pt_bytes": {"trigger", "policy", "kind", "host_kind"},
    "pterefd_reclaim_runs": {"trigger", "policy", "outcome", "host_kind"},
    "pterefd_reclaim_duration_seconds": {"host_kind", "le"},
    "pterefd_made_again_pt_bytes": {"host_kind"},
    "pterefd_replay_events": {"op", "host_kind"},
    "pterefd_replay_state": {"replay", "source", "state", "host_kind"},
    "pterefd_replay_position_events": {"replay", "source", "host_kind"},
    "pterefd_replay_length_events": {"replay", "source", "host_kind"},
    "pterefd_replay_time_seconds": {"replay", "source", "host_kind"},
    "pterefd_replay_speed_ratio": {"replay", "source", "host_kind"},
    "pterefd_replay_stalled_seconds": {"replay", "source", "host_kind"},
    "pterefd_plugin_errors": {"plugin", "host_kind"},
    "pterefd_plugin_put_aside": {"kind", "plugin", "host_kind"},
}


@pytest.fixture
def here(tmp_path: Path) -> House:
    return house(tmp_path)


def registry_of(here: House, max_mms: int = 100) -> CollectorRegistry:
    registry = CollectorRegistry()
    collector = HostCollector(here.host, here.reclaimer, here.replays, max_mms=max_mms, version=__version__)
    here.reclaimer.on_result(collector.observe)
    registry.register(collector)
    return registry


def mm(pid: int, comm: str, **labels: str) -> dict[str, str]:
    return {"pid": str(pid), "comm": comm, "host_kind": "simulated", **labels}


def pids(registry: CollectorRegistry) -> set[str]:
    families = {family.name: family for family in registry.collect()}
    return {sample.labels["pid"] for sample in families["pterefd_mm_pgtables_bytes"].samples}


def test_names_and_labels_are_those_that_others_rely_on(here: House) -> None:
    registry = registry_of(here)
    here.reclaimer.free_ptes(1)
    seen: dict[str, set[str]] = {}
    for family in registry.collect():
        assert family.documentation.endswith(".")
        seen[family.name] = set().union(*(sample.labels for sample in family.samples))
        assert all(sample.labels["host_kind"] == "simulated" for sample in family.samples)
    assert {name: labels for name, labels in seen.items() if labels} == {
        name: labels for name, labels in NAMES.items() if name != "pterefd_plugin_put_aside"
    }
    assert set(seen) == set(NAMES)


def test_values_are_the_hosts(here: House) -> None:
    registry = registry_of(here)
    for pid in here.host.pids():
        comm, counters = here.host.process(pid).comm, here.host.counters(pid)
        expected = {
            ("pterefd_mm_pgtables_bytes", ""): counters.pgtables_bytes,
            ("pterefd_mm_reclaimable_pt_bytes", "empty"): counters.empty_bytes,
            ("pterefd_mm_reclaimable_pt_bytes", "zero"): counters.zero_bytes,
            ("pterefd_mm_reclaimable_pt_bytes", "mixed"): counters.mixed_bytes,
            ("pterefd_mm_resident_bytes", "anon"): counters.anon_bytes,
            ("pterefd_mm_resident_bytes", "file"): counters.file_bytes,
            ("pterefd_mm_resident_bytes", "shmem"): counters.shmem_bytes,
            ("pterefd_mm_swap_bytes", ""): counters.swap_bytes,
        }
        for (name, kind), value in expected.items():
            labels = mm(pid, comm, **({"kind": kind} if kind else {}))
            assert registry.get_sample_value(name, labels) == value, (name, labels)


def test_events_are_counted_by_op(here: House) -> None:
    registry = registry_of(here)
    for op, count in here.host.events_total.items():
        assert registry.get_sample_value("pterefd_replay_events_total", {"op": op, "host_kind": "simulated"}) == count
    assert here.host.events_total["exec"] == 3


def test_what_is_freed_is_counted(here: House) -> None:
    registry = registry_of(here)
    could = here.host.counters(1)
    here.reclaimer.free_ptes(1)
    here.reclaimer.free_ptes(1)
    labels = {"trigger": "on_demand", "policy": "largest_first", "host_kind": "simulated"}
    for kind, value in (("empty", could.empty_bytes), ("zero", could.zero_bytes)):
        assert registry.get_sample_value("pterefd_reclaimed_pt_bytes_total", {**labels, "kind": kind}) == value > 0
    for outcome in ("done", "nothing"):
        assert registry.get_sample_value("pterefd_reclaim_runs_total", {**labels, "outcome": outcome}) == 1
    assert registry.get_sample_value("pterefd_reclaim_duration_seconds_count", {"host_kind": "simulated"}) == 2
    pgtables = registry.get_sample_value("pterefd_mm_pgtables_bytes", mm(1, "redis-server"))
    assert pgtables == could.pgtables_bytes - could.reclaimable_pt_bytes


def test_durations_fall_into_their_buckets(here: House) -> None:
    collector = HostCollector(here.host, here.reclaimer)
    registry = CollectorRegistry()
    registry.register(collector)
    for seconds in (0.0, 1e-5, 2e-5, 0.3, 60.0):
        collector.observe(
            ReclaimResult("on_demand", "p", ReclaimRequest(kinds=Kinds.BOTH), 0, 0, (), seconds, "nothing")
        )

    def upto(bound: str) -> float | None:
        labels = {"le": bound, "host_kind": "simulated"}
        return registry.get_sample_value("pterefd_reclaim_duration_seconds_bucket", labels)

    assert [upto("1e-05"), upto("0.0001"), upto("0.25"), upto("0.5"), upto("10.0"), upto("+Inf")] == [2, 3, 3, 4, 4, 5]
    total = registry.get_sample_value("pterefd_reclaim_duration_seconds_sum", {"host_kind": "simulated"})
    assert total == pytest.approx(60.30003)
    assert list(DURATION_BUCKETS) == sorted(DURATION_BUCKETS)


def test_what_may_come_is_there_before_it_comes(here: House) -> None:
    """A counter that begins at 1 has no increase that Prometheus could see."""
    registry = registry_of(here)
    labels = {"trigger": "on_demand", "policy": "round_robin", "host_kind": "simulated"}
    assert registry.get_sample_value("pterefd_reclaim_runs_total", {**labels, "outcome": "done"}) is None
    here.reclaimer.set_policy_of("on_demand", "round_robin")
    for outcome in ("done", "partly", "nothing", "failed"):
        assert registry.get_sample_value("pterefd_reclaim_runs_total", {**labels, "outcome": outcome}) == 0
    assert registry.get_sample_value("pterefd_reclaimed_pt_bytes_total", {**labels, "kind": "zero"}) == 0
    assert registry.get_sample_value("pterefd_reclaim_policy_info", labels) == 1
    for plugin in ("pre_oom", "largest_first"):
        assert (
            registry.get_sample_value("pterefd_plugin_errors_total", {"plugin": plugin, "host_kind": "simulated"}) == 0
        )


def test_what_is_made_again_is_counted(tmp_path: Path) -> None:
    """Three PTE pages are freed and two of them written to again."""
    here = house(tmp_path, [*spans(1, full=0, zero=0, empty=3), *again(2), {"op": "exit", "pid": 1}])
    registry = registry_of(here)
    assert registry.get_sample_value("pterefd_made_again_pt_bytes_total", {"host_kind": "simulated"}) == 2 * 4096


def again(number: int) -> list[Event]:
    """All PTE pages of pid 1 are freed, and so many of its spans written to."""
    return [{"op": "free_ptes", "pid": 1}, *(fault(1, AT + i * SPAN, 4096, write=True) for i in range(number))]


# -- replays -----------------------------------------------------------------------------------------


def test_a_replay_is_seen(here: House) -> None:
    registry = registry_of(here)
    labels = {"replay": "0", "source": "trace.jsonl", "host_kind": "simulated"}
    for state in ("running", "paused", "held", "ended"):
        value = registry.get_sample_value("pterefd_replay_state", {**labels, "state": state})
        assert value == (state == "ended"), state
    events = len(EVENTS)
    for name, expected in (
        ("position_events", events),
        ("length_events", events),
        ("time_seconds", (events - 1) * 1e-6),
        ("speed_ratio", float("inf")),
        ("stalled_seconds", 0),
    ):
        assert registry.get_sample_value(f"pterefd_replay_{name}", labels) == pytest.approx(expected), name
    here.replays[0].set_speed(2.5)
    assert registry.get_sample_value("pterefd_replay_speed_ratio", labels) == 2.5


# -- one snapshot --------------------------------------------------------------------------------------


def test_a_scrape_is_of_one_moment(tmp_path: Path) -> None:
    """While processes are forked, grow and end at full speed, the host holds what its mms hold, in every scrape."""
    plugins = Plugins()
    plugins.load([paths.share("plugins")])
    memory = Memory(1 << 34, groups=(GroupLimit("forks"),))
    host = Host(profile.named("rfc-2022"), memory=memory)
    reclaimer = Reclaimer(host, plugins, log.get())
    parameters = {"heap_mib": 64, "children": 200, "every_ms": 1, "life_ms": 6, "written_share": 0.5}
    mix = [
        (WorkloadSource(plugins.workloads["fork_server"], parameters, seed), "forks" if seed else "") for seed in (0, 1)
    ]
    replays = [
        Replay(n, Placed(source, pid_base=1000 * n, group=group), host, reclaimer, speed=None)
        for n, (source, group) in enumerate(mix)
    ]
    registry = CollectorRegistry()
    registry.register(HostCollector(host, reclaimer, replays, max_mms=7))
    threading.Thread(target=Conductor(replays, host, reclaimer).run, daemon=True).start()
    scrapes = grown = 0
    while any(replay.state == "running" for replay in replays):
        families = {family.name: family.samples for family in registry.collect()}
        held = {s.labels["state"]: s.value for s in families["pterefd_host_memory_bytes"]}
        tables = sum(s.value for s in families["pterefd_mm_pgtables_bytes"])
        assert tables == held["pgtables"]
        assert held["total"] - held["free"] == sum(held[use] for use in ("anon", "file", "shmem", "pgtables"))
        scrapes += 1
        grown += tables > 0
    assert grown > 20, scrapes


def test_a_scrape_does_not_wait_for_who_has_the_lock(here: House) -> None:
    """As a batch has it, for a slice at a time, or a long write."""
    registry, scraped = registry_of(here), threading.Event()

    def scrape() -> None:
        generate_latest(registry)
        scraped.set()

    with here.host.lock:
        threading.Thread(target=scrape, daemon=True).start()
        assert scraped.wait(60)


# -- the bound on series -----------------------------------------------------------------------------


def test_the_largest_have_series_of_their_own_and_the_rest_are_summed(here: House) -> None:
    registry = registry_of(here, max_mms=1)
    assert pids(registry) == {"7", "other"}
    rest = [here.host.counters(pid) for pid in (1, 2)]
    other = {"pid": "other", "comm": "other", "host_kind": "simulated"}
    assert registry.get_sample_value("pterefd_mm_pgtables_bytes", other) == sum(c.pgtables_bytes for c in rest)
    for kind in ("empty", "zero", "mixed"):
        value = registry.get_sample_value("pterefd_mm_reclaimable_pt_bytes", {**other, "kind": kind})
        assert value == sum(getattr(c, f"{kind}_bytes") for c in rest)


def test_where_all_have_room_nothing_is_summed(here: House) -> None:
    assert pids(registry_of(here, max_mms=3)) == {"1", "2", "7"}
    assert pids(registry_of(here, max_mms=0)) == {"other"}


def test_a_host_without_mms_has_no_series(tmp_path: Path) -> None:
    empty = house(tmp_path, [*spans(1, full=1, zero=0, empty=0), {"op": "exit", "pid": 1}])
    assert pids(registry_of(empty)) == {"1"}  # held
    empty.replays[0].resume()
    deadline = time.monotonic() + 10
    while empty.replays[0].state != "ended" and time.monotonic() < deadline:
        time.sleep(0.001)
    assert pids(registry_of(empty)) == set()


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1 << 40)), max_size=40),
    st.integers(0, 50),
)
def test_split_takes_the_largest(sizes: list[tuple[int, int]], k: int) -> None:
    pages = np.array(sizes, dtype=np.int64).reshape(-1, 2)
    own, rest = split(pages[:, 0] * 4096, pages[:, 1], k)
    assert sorted([*own.tolist(), *rest.tolist()]) == list(range(len(sizes)))
    assert len(own) == min(k, len(sizes))
    keys = [(reclaimable, pgtables >> 12) for reclaimable, pgtables in sizes]
    assert [keys[i] for i in own] == sorted(keys, reverse=True)[: len(own)]


# -- the server --------------------------------------------------------------------------------------


def no_fault(error: BaseException) -> None:
    raise AssertionError from error


@pytest.fixture
def server(here: House) -> Iterator[MetricsServer]:
    ended = lambda: here.replays[0].state == "ended"  # noqa: E731
    server = MetricsServer(("127.0.0.1", 0), registry_of(here), ended, no_fault)
    server.start()
    yield server
    server.stop()


def get(server: MetricsServer, path: str, accept: str = "") -> tuple[int, str, str]:
    """Status, content type and body."""
    request = urllib.request.Request(f"http://{shown_address(server.address)}{path}", headers={"Accept": accept})
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.headers["Content-Type"], response.read().decode()
    except urllib.error.HTTPError as e:
        with e:
            return e.code, e.headers["Content-Type"], e.read().decode()


def test_text_and_openmetrics_say_the_same(server: MetricsServer) -> None:
    status, kind, text = get(server, "/metrics")
    assert (status, kind.split(";")[0]) == (200, "text/plain")
    families = {family.name: family for family in parse_text(text)}
    accept = "application/openmetrics-text; version=1.0.0,text/plain;q=0.5"
    status, kind, text = get(server, "/metrics", accept)
    assert (status, kind.split(";")[0]) == (200, "application/openmetrics-text")
    assert text.endswith("# EOF\n")
    for family in parse_openmetrics(text):
        ours = families.get(family.name) or families[f"{family.name}_info"]
        assert [(s.name, s.labels, s.value) for s in family.samples] == [
            (s.name, s.labels, s.value) for s in ours.samples
        ]


@pytest.mark.parametrize("used", [False, True])
def test_promtool_finds_nothing_to_say(tmp_path: Path, used: bool) -> None:
    """Prometheus' own check of names, types, units and help texts, of every family there is."""
    memory = Memory(1 << 30, groups=(GroupLimit("web"),))
    here = house(tmp_path, EVENTS if used else EVENTS[:1], memory=memory)
    if used:
        here.reclaimer.free_ptes(None)
        here.reclaimer._conduct.aside["policy", "broken"] = "ZeroDivisionError"
    text = generate_latest(registry_of(here))
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    declared = set(re.findall(r"^# TYPE (\S+)", text.decode(), re.MULTILINE))
    assert {"pterefd_group_memory_bytes", "pterefd_reclaim_runs_total", "pterefd_replay_state"} <= declared


def test_every_name_has_the_prefix_and_the_unit_of_its_kind(server: MetricsServer) -> None:
    for line in get(server, "/metrics")[2].splitlines():
        if found := re.match(r"# TYPE (\S+) (\S+)", line):
            name, kind = found.groups()
            assert name.startswith("pterefd_")
            assert name.endswith("_total") == (kind == "counter"), name


def test_health(server: MetricsServer, here: House) -> None:
    assert get(server, "/-/healthy")[0] == 200
    assert get(server, "/-/ready")[0] == 200
    here.replays[0]._state = "running"
    assert get(server, "/-/ready")[0] == 503
    assert get(server, "/nothing")[0] == 404
    assert get(server, "/")[0] == 200


def test_head_has_no_body(server: MetricsServer) -> None:
    connection = http.client.HTTPConnection(*server.address, timeout=10)
    connection.request("HEAD", "/metrics")
    response = connection.getresponse()
    assert (response.status, response.read()) == (200, b"")
    connection.close()


class Failing(Collector):
    """Metrics that cannot be had, as long as `label` is None; then one that cannot be written, or can."""

    label: str | None = None

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily("pterefd_x", "X.", labels=["x"])
        if self.label is None:
            raise ZeroDivisionError("division by zero")
        family.add_metric([self.label], 1)
        yield family


def test_metrics_that_cannot_be_made_are_an_error_and_told() -> None:
    registry, failing, told = CollectorRegistry(auto_describe=False), Failing(), list[BaseException]()
    registry.register(failing)
    failing.label, server = None, MetricsServer(("127.0.0.1", 0), registry, lambda: True, told.append)
    server.start()
    try:
        assert get(server, "/metrics")[0] == 500
        assert [type(error) for error in told] == [ZeroDivisionError]
        failing.label = "\udcff"
        status, _, text = get(server, "/metrics")
        assert (status, "\n") == (500, text[-1])
        assert [type(error) for error in told[1:]] == [UnicodeEncodeError]
        failing.label = "fine"
        assert get(server, "/metrics")[0] == 200
        assert len(told) == 2
    finally:
        server.stop()


def test_what_ends_a_request_is_told_but_for_a_client_that_went_away(here: House) -> None:
    told: list[BaseException] = []
    server = MetricsServer(("127.0.0.1", 0), registry_of(here), lambda: 1 / 0 > 0, told.append)
    server.start()
    try:
        with pytest.raises(http.client.RemoteDisconnected):
            get(server, "/-/ready")
        assert [type(error) for error in told] == [ZeroDivisionError]
        for error in (ConnectionResetError(), BrokenPipeError(), TimeoutError()):
            try:
                raise error
            except OSError:
                server._server.handle_error(None, None)
        assert len(told) == 1
    finally:
        server.stop()


def test_a_name_of_any_bytes_is_a_label(tmp_path: Path) -> None:
    """A comm that is no text, as a workload may have it: a scrape of all the others goes on."""
    here = house(tmp_path, [*spans(1, full=1, zero=0, empty=1)])
    here.host.process(1).comm = "a\udcff\ud800z"
    text = generate_latest(registry_of(here)).decode()
    (family,) = (family for family in parse_text(text) if family.name == "pterefd_mm_pgtables_bytes")
    assert [sample.labels["comm"] for sample in family.samples] == ["a\\xff\\ud800z"]


def test_a_client_that_says_nothing_keeps_nobody_waiting(server: MetricsServer) -> None:
    with socket.create_connection(server.address, timeout=10):
        assert get(server, "/metrics")[0] == 200


def test_a_port_in_use_is_one_line(server: MetricsServer, here: House) -> None:
    with pytest.raises(Missing, match=rf"^metrics: 127\.0\.0\.1:{server.address[1]}: Address already in use$") as taken:
        MetricsServer(server.address, registry_of(here), lambda: True, no_fault)
    assert taken.value.exit_code == EXIT_MISSING


def test_the_port_is_free_after_stop(here: House) -> None:
    server = MetricsServer(("127.0.0.1", 0), registry_of(here), lambda: True, no_fault)
    address = server.address
    server.stop()
    again = MetricsServer(address, registry_of(here), lambda: True, no_fault)
    again.start()
    again.stop()


def test_an_address_is_shown_as_it_is_written() -> None:
    assert shown_address(("127.0.0.1", 9738)) == "127.0.0.1:9738"
    assert shown_address(("::1", 9738)) == "[::1]:9738"
