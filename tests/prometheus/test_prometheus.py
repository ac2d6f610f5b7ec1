"""A real Prometheus on a daemon under pressure: every query of every panel, variable and rule returns data.

The host is that of docs/dashboards.toml, with a policy that fails and a workload that stops giving events, beside a
real node_exporter. Most alerts are driven; of the others the expression without its threshold is asked.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.house import spans, write_trace
from tests.prometheus.running import (
    ROOT,
    Prometheus,
    boards,
    daemon,
    filled,
    free_address,
    prometheus,
    stopped,
    wait_until_ready,
)

pytestmark = pytest.mark.mount

MOST_SECONDS = 150.0  # a busy machine; a third of it is usual
BOARDS = boards()
QUERIES = [
    pytest.param(target["expr"], id=f"{name}-{panel['title']}-{target['refId']}")
    for name, board in BOARDS.items()
    for panel in board["panels"]
    for target in panel["targets"]
]
VARIABLES = [
    pytest.param(variable, id=f"{name}-{variable['name']}")
    for name, board in BOARDS.items()
    for variable in board["templating"]["list"]
    if variable["type"] == "query"
]
# What Grafana puts in place of variables where all is chosen.
CHOSEN = {
    "host_kind": "simulated",
    "__rate_interval": "10s",
    **dict.fromkeys(("instance", "comm", "pid", "policy"), ".+"),
}
# Alerts whose conditions hold here. Those that wait for longer than a test does are pending.
DRIVEN = {
    "PterefdReclaimableMemory": "pending",
    "PterefdPageTablesOfMm": "pending",
    "PterefdMemoryFullWithinADay": "pending",
    "PterefdGroupFullWithinADay": "pending",
    "PterefdPreOomReclaim": "firing",
    "PterefdOomKill": "firing",
    "PterefdPluginFailing": "firing",
    "PterefdPluginPutAside": "firing",
}

PLUGINS = '''
"""A policy that cannot be relied on, and a workload that stops halfway."""

import time

import numpy as np

from pterefd.hookspecs import Policy, Workload, hookimpl

PTEREFD_API = 1


class Broken(Policy):
    """Raises."""

    name = "broken"

    def choose(self, view, request):
        raise RuntimeError("broken")
        yield


class Stuck(Workload):
    """Gives its first events, and nothing after them."""

    name = "stuck"

    def events(self, emit, rng):
        emit.exec(1, "stuck")
        emit.fault(1, emit.mmap(1, 1 << 20) + np.zeros(1 << 18, dtype=np.int64), 4096)  # enough that they are taken
        yield
        time.sleep(3600)
        yield


@hookimpl
def pterefd_register_policies(register):
    register(Broken)


@hookimpl
def pterefd_register_workloads(register):
    register(Stuck)
'''


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Debian's node_exporter on this machine: HOST:PORT."""
    program = shutil.which("prometheus-node-exporter")
    assert program is not None, "there is no prometheus-node-exporter: `make setup-test` installs it"
    address = free_address()
    log = tmp_path_factory.mktemp("node") / "log"
    with log.open("w") as err:
        process = subprocess.Popen(
            [program, "--collector.disable-defaults", "--collector.meminfo", f"--web.listen-address={address}"],
            stdout=err,
            stderr=err,
        )
    with stopped(process):
        wait_until_ready(f"http://{address}/", 60)
        yield address


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, node: str) -> Iterator[Prometheus]:
    """A Prometheus that has scraped, each second, a daemon to which all has happened that alerts are for."""
    directory = tmp_path_factory.mktemp("prometheus")
    plugins = directory / "plugins"
    plugins.mkdir()
    (plugins / "test_plugins.py").write_text(PLUGINS)
    text = (ROOT / "docs" / "dashboards.toml").read_text()
    for was, becomes in (
        ('policy = "idle_first"\nperiod_ms = 15000', 'policy = "broken"\nperiod_ms = 1000'),
        ("[plugins]\n", f"[[mm]]\nworkload = 'stuck'\n\n[plugins]\nfailures = 20\ndirectories = ['{plugins}']\n"),
    ):
        assert text.count(was) == 1
        text = text.replace(was, becomes)
    address = free_address()
    with (
        prometheus(directory, {"pterefd": {"daemon": address}, "node": {"machine": node}}) as running,
        daemon(text, directory / "daemon", address),
    ):
        until(lambda: states(running).items() >= DRIVEN.items(), lambda: states(running))
        until(lambda: stalled(running) == ["stuck"], lambda: running.query("pterefd_replay_stalled_seconds"))
        yield running


def until(condition: Callable[[], bool], say: Callable[[], Any]) -> None:
    deadline = time.monotonic() + MOST_SECONDS
    while not condition():
        assert time.monotonic() < deadline, say()
        time.sleep(0.5)


def states(server: Prometheus) -> dict[str, str]:
    """State of each alert."""
    return {rule["name"]: rule["state"] for rule in server.rules() if rule["type"] == "alerting"}


def stalled(server: Prometheus) -> list[str]:
    """Sources of the replays that have not moved for longer than any that is well."""
    return [series["metric"]["source"] for series in server.query("pterefd_replay_stalled_seconds > 15")]


def without_thresholds(expression: str) -> str:
    """The expression of an alert, whatever it is now: comparisons with numbers are left out."""
    return re.sub(r"\s*(==|!=|<=|>=|<|>)\s*[0-9.e+]+\b", "", expression)


@pytest.mark.parametrize("expression", QUERIES)
def test_every_panel_has_data(server: Prometheus, expression: str) -> None:
    """Now, as a stat panel asks, and over time, as the others do."""
    query = filled(expression, CHOSEN)
    series = server.query(query)
    assert series, query
    assert any(one["value"][1] != "NaN" for one in series)
    now = time.time()
    points = [point for one in server.query_range(query, now - 10, now, 1) for point in one["values"]]
    assert len(points) > 1


@pytest.mark.parametrize("variable", VARIABLES)
def test_every_variable_has_values(server: Prometheus, variable: dict[str, Any]) -> None:
    asked = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"], re.DOTALL)
    assert asked is not None
    values = server.label_values(filled(asked[1], CHOSEN), asked[2])
    expected = {
        "host_kind": {"simulated"},
        "pid": {"1", "2", "3", "4", "5"},
        "comm": {"jemalloc", "qemu-system-x86", "hash", "ydb-server", "hungry", "stuck"},
        "policy": {"largest_first", "oom_score_first", "broken"},
    }
    assert set(values) >= expected.get(variable["name"], set())
    assert values


def test_every_alert_that_is_driven_is_seen(server: Prometheus) -> None:
    found = states(server)
    assert {name: found[name] for name in DRIVEN} == DRIVEN
    assert found["PterefdDown"] == "inactive"
    assert stalled(server) == ["stuck"]


def test_every_rule_has_data(server: Prometheus) -> None:
    """Recording rules have their series; alerts are of something, whether or not it is above its threshold."""
    for rule in server.rules():
        assert (rule["health"], rule.get("lastError", "")) == ("ok", ""), rule
        query = rule["name"] if rule["type"] == "recording" else without_thresholds(rule["query"])
        assert server.query(query), query


def test_an_alert_says_whose_it_is(server: Prometheus) -> None:
    """Labels and texts of one that fires, in the daemon's own words."""
    (kill,) = [
        alert
        for rule in server.rules()
        if rule["name"] == "PterefdOomKill"
        for alert in rule["alerts"]
        if alert["labels"].get("group") == "batch"
    ]
    assert kill["annotations"]["summary"] == "the OOM killer took a process of group batch"
    assert kill["labels"]["severity"] == "critical"


def test_it_is_scraped_as_openmetrics(server: Prometheus) -> None:
    """Prometheus asks for OpenMetrics first, and its parser of that is strict; only there a build is an `info`."""
    assert [target["health"] for target in server.get("targets")["activeTargets"]] == ["up", "up"]
    metadata = server.get("metadata", metric="pterefd_build")
    assert [one["type"] for one in metadata["pterefd_build"]] == ["info"]


def test_what_prometheus_adds_up_is_what_the_host_says(server: Prometheus) -> None:
    """At every second of the run: the sum over all mms, as recorded, and the host's own number."""
    now = time.time()
    both = 'sum (pterefd_mm_pgtables_bytes) - sum (pterefd_host_memory_bytes{state="pgtables"})'
    (series,) = server.query_range(both, now - 30, now, 1)
    assert len(series["values"]) > 15
    assert {value for _, value in series["values"]} == {"0"}


def test_the_configuration_bounds_the_series(tmp_path: Path) -> None:
    """[metrics] max_mms: the mm with most to free for itself, the others as one."""
    events = [
        *spans(1, full=1, zero=0, empty=1),
        *spans(2, full=0, zero=0, empty=3),
        *spans(3, full=0, zero=2, empty=0),
    ]
    trace = write_trace(tmp_path / "trace.jsonl", [*events, {"op": "exit", "pid": 1}])
    address = free_address()
    settings = f"metrics.max_mms = 1\nreplay.traces = ['{trace}']\nreplay.speed = 'max'\n"
    with daemon(settings, tmp_path / "daemon", address):
        state = tmp_path / "daemon/mnt/sys/pterefd/replay/state"
        until(lambda: state.read_text() == "held\n", state.read_text)
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=20) as response:
            text = response.read().decode()
    found = re.findall(r'pterefd_mm_reclaimable_pt_bytes{.*kind="(?:empty|zero)",pid="(\w+)"} (\S+)', text)
    assert [(pid, float(value)) for pid, value in found] == [("2", 12288), ("other", 4096), ("2", 0), ("other", 8192)]
