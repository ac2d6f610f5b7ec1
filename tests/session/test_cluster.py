"""A sweep on a real Dask scheduler with two workers on loopback, one of which is killed in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pterefd.errors import Missing, PterefdError
from pterefd.session import cluster
from pterefd.session.scenario import Choices, Plan, comparison, load, plan
from pterefd.session.sweep import Kept, Task, here, run_all
from tests.house import spans, write_trace

Run = Callable[..., "subprocess.CompletedProcess[str]"]

SCENARIO = """
[scenario]
title = "Spans to free"

[[mm]]
trace = "a.jsonl"

[compare]
triggers = ["none", "interval"]
bound = true
"""


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    """A trace of 20 s, so that a run takes a while."""
    events = [{"t": k * 1_000_000, **event} for k, event in enumerate(spans(1, full=2, zero=3, empty=4))]
    write_trace(tmp_path / "a.jsonl", [*events, {"t": 20_000_000_000, "op": "exit", "pid": 1}])
    path = tmp_path / "scenario.toml"
    path.write_text(SCENARIO)
    return path


class Cluster:
    """A scheduler and its workers, a process each."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._environment = {**os.environ, "DASK_DISTRIBUTED__ADMIN__EVENT_LOOP": "tornado"}
        self.processes: list[subprocess.Popen[bytes]] = []
        contact = directory / "scheduler.json"
        self._start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", contact)
        _until(lambda: contact.exists() and contact.read_text().endswith("}"))
        self.address = json.loads(contact.read_text())["address"]
        self.workers = [
            self._start(
                "worker", self.address, "--host", "127.0.0.1", "--nthreads", "1", "--no-nanny", "--no-dashboard"
            )
            for _ in range(2)
        ]

    def _start(self, what: str, *args: str | Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.dask_{what}", *map(str, args)]
        log = (self._directory / f"{what}-{len(self.processes)}.log").open("wb")
        with log:
            process = subprocess.Popen(command, cwd=self._directory, stdout=log, stderr=log, env=self._environment)
        self.processes.append(process)
        return process

    def close(self) -> None:
        for process in reversed(self.processes):
            process.kill()
            process.wait(timeout=10)


def _until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.02)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Cluster]:
    (tmp_path / "dask").mkdir()
    started = Cluster(tmp_path / "dask")
    yield started
    started.close()


def reports(planned: Plan, results: list) -> tuple[str, str]:
    done = comparison(planned, results)
    return json.dumps(done.as_dict()), done.as_csv()


def test_a_worker_killed_in_the_middle_loses_nothing(scenario: Path, running: Cluster, tmp_path: Path) -> None:
    """The cluster's results, a worker having been killed, are byte for byte those of this machine."""
    planned = plan(load(scenario), Choices(seeds=range(6)))
    assert len(planned.tasks) == 18
    killed = threading.Event()

    def kill_one(done: int, total: int) -> None:
        if done == 3:
            running.workers[0].send_signal(signal.SIGKILL)
            killed.set()

    on_cluster = run_all(planned.tasks, cluster.on(running.address), Kept(tmp_path / "kept"), kill_one)
    assert killed.is_set()
    assert running.workers[0].wait(timeout=10) == -signal.SIGKILL
    assert len(list((tmp_path / "kept").glob("*.json"))) == 18
    assert reports(planned, on_cluster) == reports(planned, run_all(planned.tasks, here(2), Kept(None)))


def test_the_command_on_a_cluster_and_here(scenario: Path, running: Cluster, pterefd: Run) -> None:
    there = pterefd("compare", scenario, "--scheduler", running.address, "--json")
    assert (there.returncode, there.stderr) == (0, "")
    assert there.stdout == pterefd("compare", scenario, "--json", "--jobs", "1").stdout


def test_an_error_on_a_worker_is_one_line(scenario: Path, running: Cluster, tmp_path: Path) -> None:
    planned = plan(load(scenario), Choices())
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(PterefdError, match=r"a\.jsonl: cannot be read on this worker") as caught:
        run_all(planned.tasks, cluster.on(running.address), Kept(None))
    assert caught.value.exit_code == 2


def test_no_scheduler_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1)
    with pytest.raises(Missing, match=r"tcp://127\.0\.0\.1:1: no Dask scheduler answers there: ") as caught:
        list(cluster.on("tcp://127.0.0.1:1")([Task("{}", "0")]))
    assert "\n" not in str(caught.value)


def test_without_dask_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(Missing, match=r"install pterefd\[distributed\]"):
        list(cluster.on("tcp://127.0.0.1:1")([Task("{}", "0")]))
