"""What the service manager is told, on a real socket; and the watchdog: no pings from a daemon that hangs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pterefd.procfs.fuse_impl import THREADS
from pterefd.service import PINGS
from tests.reclaim.built import plugin
from tests.systemd.manager import Manager, starting

pytestmark = pytest.mark.mount

SECONDS = 2.0  # of the watchdog
PING = "WATCHDOG=1"
HANGING = """
import time

import numpy as np

class Hanging(Workload):
    name = "hanging"

    def events(self, emit, rng):
        emit.exec(1, "hanging")
        start = emit.mmap(1, 1 << 30)
        for _ in range(128):  # more than a batch
            emit.fault(1, start + 4096 * np.arange(4096), 4096, spacing=1)
            yield
        time.sleep(3600)

@hookimpl
def pterefd_register_workloads(register):
    register(Hanging)
"""
SLOW = """
import os, time

class SlowTunables(Tunables):
    tunable: int = 1

    def __getattribute__(self, name):
        if name == "tunable" and os.path.exists("slow"):
            time.sleep(3600)
        return super().__getattribute__(name)

class Slow(Policy):
    name = "slow"
    Tunables = SlowTunables

@hookimpl
def pterefd_register_policies(register):
    register(Slow)
"""

Start = Callable[..., Manager]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a daemon under a manager, and waits until it says that it is ready."""
    with starting(tmp_path) as (start, managers):
        yield start
        for one in managers:
            if one.process.poll() is None:
                one.process.kill()
                one.process.wait()
            one.stop()


def until_silent(one: Manager, asked: str) -> None:
    """The daemon knows that a part hangs, says so, and from then on the manager hears no ping, though time goes on."""
    one.until_said("the watchdog gets no pings")
    assert asked in one.said().splitlines()[-1].partition("asked=")[2]
    one.hear()
    deadline = time.monotonic() + 3 * SECONDS / PINGS
    heard = []
    while time.monotonic() < deadline:
        heard += one.hear()
    assert PING not in heard
    assert one.process.poll() is None


def test_a_life_as_the_manager_hears_it(start: Start) -> None:
    one = start(watchdog_seconds=SECONDS)
    assert os.path.exists(one.mount / "sys/vm/free_ptes")  # ready is when it is mounted
    one.until(lambda: one.heard.count(PING) >= 3)
    one.until(lambda: any(re.match(r"STATUS=2 mms \| VmPTE .* held, event", line) for line in one.heard))
    assert one.stop() == 0
    told = [line for line in one.heard if not line.startswith(("STATUS=", PING))]
    assert told == ["READY=1", "STOPPING=1"]
    assert one.heard.index("READY=1") < one.heard.index(PING)


def test_without_a_watchdog_there_are_no_pings(start: Start) -> None:
    one = start()
    one.until(lambda: one.read("sys/pterefd/replay/state") == "held\n")
    assert one.stop() == 0
    assert PING not in one.heard


def test_a_watchdog_of_another_process_is_left_to_it(start: Start) -> None:
    one = start(watchdog_seconds=SECONDS, environment={"WATCHDOG_PID": "1"})
    assert one.stop() == 0
    assert PING not in one.heard


def test_a_paused_or_held_replay_does_not_hang(start: Start) -> None:
    one = start(watchdog_seconds=SECONDS, text="replay.speed = 0.000001")
    (one.mount / "sys/pterefd/replay/state").write_text("pause")
    for _ in range(2):
        one.heard.clear()
        one.until(lambda: one.heard.count(PING) > 2 * PINGS)
        (one.mount / "sys/pterefd/replay/state").write_text("resume")
    assert "no pings" not in one.said()


@pytest.mark.parametrize("first", ["", "time.sleep(3600); "], ids=["later", "first"])
def test_no_pings_where_a_replay_hangs(start: Start, tmp_path: Path, first: str) -> None:
    """A workload that never gives its next batch of events, or its first."""
    plugin(tmp_path / "p", "hangs", HANGING.replace("emit.exec(", f"{first}emit.exec("))
    one = start("plugins.directories = ['p']\n[[mm]]\nworkload = 'hanging'", watchdog_seconds=SECONDS)
    until_silent(one, "replay 0")
    assert one.read("sys/pterefd/replay/state") == "running\n"  # as everything else answers


def test_no_pings_where_the_mount_does_not_answer(start: Start, tmp_path: Path) -> None:
    """Every thread that libfuse may have is held up by the tunable of a plugin."""
    plugin(tmp_path / "p", "bad", SLOW)
    one = start("plugins.directories = ['p']", watchdog_seconds=SECONDS)
    one.until(lambda: PING in one.heard)
    assert one.read("sys/vm/pt_reclaim/policies/slow/tunable") == "1\n"
    (tmp_path / "slow").touch()
    readers = [
        subprocess.Popen(["cat", one.mount / "sys/vm/pt_reclaim/policies/slow/tunable"], stderr=subprocess.DEVNULL)
        for _ in range(THREADS)
    ]
    try:
        until_silent(one, "mount")
    finally:
        one.process.kill()
        for reader in readers:
            reader.wait()


def test_no_pings_where_the_main_loop_hangs(start: Start) -> None:
    """All of it is stopped; when it goes on, so do the pings."""
    one = start(watchdog_seconds=SECONDS)
    one.process.send_signal(signal.SIGSTOP)
    os.waitpid(one.process.pid, os.WUNTRACED)
    one.hear()
    time.sleep(SECONDS / PINGS * 2)
    assert one.hear() == []
    one.process.send_signal(signal.SIGCONT)
    one.heard.clear()
    one.until_heard(PING)
