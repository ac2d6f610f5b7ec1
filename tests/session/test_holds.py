"""Whom freeing keeps waiting: by the costs, and by how the mm faults after an act."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from pterefd.errors import NoSuchMm
from pterefd.session.holds import Holds

MS = 1_000_000


class FlatCosts:
    """1 us a hold with one thread, 2 us with more."""

    def hold_ns(self, threads: int) -> float:
        return 1000.0 if threads == 1 else 2000.0


@dataclass
class FakeHost:
    """Processes by pid: threads, start and faults so far."""

    time_ns: int = 0
    mms: dict[int, SimpleNamespace] = field(default_factory=dict)

    def add(self, pid: int, threads: int = 1, faults: int = 0) -> SimpleNamespace:
        self.mms[pid] = SimpleNamespace(threads=threads, start_ns=self.time_ns, faults=faults)
        return self.mms[pid]

    def process(self, pid: int) -> Any:
        if pid not in self.mms:
            raise NoSuchMm(f"no mm with pid {pid}")
        return self.mms[pid]

    counters = process


def test_faults_after_an_act_meet_its_holds_by_their_rate() -> None:
    """100 faults in 10 ms; the act holds the lock for 1000 x 1 us = 1 ms: a tenth of them."""
    host = FakeHost()
    mm = host.add(1, faults=7)
    holds = Holds(host, FlatCosts(), 10 * MS)  # type: ignore[arg-type]
    holds.freed(1, 1000)
    mm.faults += 60
    holds.settle(4 * MS)  # too little time for a rate
    assert holds.faults == 0
    mm.faults += 40
    holds.settle(10 * MS)
    holds.settle(20 * MS)
    assert holds.held_ns == 1 * MS
    assert holds.faults == pytest.approx(10)
    assert holds.wait_ns(0.5) == pytest.approx(500, rel=1e-6)
    assert holds.wait_ns(0.99) == pytest.approx(990, rel=1e-6)


def test_an_act_longer_than_the_time_after_it_keeps_all_waiting() -> None:
    host = FakeHost()
    mm = host.add(1)
    holds = Holds(host, FlatCosts(), 10 * MS)  # type: ignore[arg-type]
    holds.freed(1, 50_000)
    mm.faults = 30
    holds.settle(10 * MS)
    assert holds.faults == 30


def test_each_thread_can_wait_once_in_a_hold() -> None:
    """Three pages, two threads: six faults at most, however fast the mm faults."""
    host = FakeHost()
    mm = host.add(1, threads=2)
    holds = Holds(host, FlatCosts(), 10 * MS)  # type: ignore[arg-type]
    holds.freed(1, 3)
    mm.faults = 1_000_000
    holds.settle(10 * MS)
    assert holds.faults == 6


def test_more_threads_make_longer_holds() -> None:
    """10 faults wait up to 1 us, 30 up to 2 us: half of all wait less than 0.8 us: (10 * .8 + 30 * .4) / 40."""
    host = FakeHost()
    one, many = host.add(1), host.add(2, threads=4)
    holds = Holds(host, FlatCosts(), 10 * MS)  # type: ignore[arg-type]
    holds.freed(1, 1000)
    holds.freed(2, 1500)
    one.faults, many.faults = 100, 100
    holds.settle(10 * MS)
    assert holds.held_ns == 4 * MS
    assert holds.faults == pytest.approx(10 + 30)
    assert holds.wait_ns(0.5) == pytest.approx(800, rel=1e-6)


def test_who_is_gone_waits_for_nothing() -> None:
    host = FakeHost()
    host.add(1)
    holds = Holds(host, FlatCosts(), 10 * MS)  # type: ignore[arg-type]
    holds.freed(1, 10)
    holds.freed(9, 10)
    del host.mms[1]
    holds.settle(10 * MS)
    assert holds.faults == 0
    assert holds.wait_ns(0.99) == 0


def test_another_process_of_the_same_pid_is_another_one() -> None:
    host = FakeHost()
    host.add(1)
    holds = Holds(host, FlatCosts(), 10 * MS)  # type: ignore[arg-type]
    holds.freed(1, 10)
    host.time_ns = 5 * MS
    host.add(1, faults=99)
    holds.settle(10 * MS)
    assert holds.faults == 0
