"""Who is looked at when, within which budget. The clock and the CPU time are the test's, the processes are real."""

from __future__ import annotations

import mmap
import os

import pytest

from pterefd.live import procmem
from pterefd.live.scan import start_time
from pterefd.live.watch import Watch, Watched
from tests.live.grower_process import PAGE, SPAN, Grower

pytestmark = pytest.mark.kernel


class Time:
    """Wall and CPU time that go on when told to; each question about CPU time costs `cost`."""

    def __init__(self) -> None:
        self.wall = self.cpu = self.cost = 0.0

    def clock(self) -> float:
        return self.wall

    def spent(self) -> float:
        self.cpu += self.cost
        return self.cpu


@pytest.fixture
def time() -> Time:
    return Time()


def watch(time: Time, *growers: Grower, budget: float = 0.01) -> Watch:
    wanted = {grower.pid for grower in growers}

    def of_ours(pid: int, _: procmem.Status) -> bool:
        return pid in wanted

    return Watch(budget, of_ours, clock=time.clock, spent=time.spent)


def known(one: Watch, grower: Grower) -> Watched:
    return one.processes[grower.pid, start_time(grower.pid)]


def test_the_unchanged_are_scanned_less_and_less_often(grower: Grower, time: Time) -> None:
    one = watch(time, grower)
    scanned = []
    for second in range(200):
        time.wall = float(second)
        one.look()
        if known(one, grower).at == second:
            scanned.append(second)
    assert scanned == [0, 1, 3, 7, 15, 31, 63, 127, 191]  # twice as long each time, and never more than 64 s


def test_who_changes_is_scanned_again_soon(grower: Grower, time: Time) -> None:
    one = watch(time, grower)
    for second in range(40):
        time.wall = float(second)
        one.look()
    assert known(one, grower).at == 31.0
    grower.do("touch", 0, 20 * 512, 512)
    time.wall = 41.0
    one.look()
    seen = known(one, grower)
    assert seen.at == 41.0
    assert seen.use is not None
    assert seen.use.vm_pte == seen.vm_pte


def test_the_largest_come_first_and_the_budget_holds(grower: Grower, time: Time) -> None:
    other = Grower()
    try:
        grower.do("touch", 0, 50 * 512, 512)
        one = watch(time, grower, other)
        time.cost = 0.05  # a scan costs more than two seconds' budget, which is 0.02
        one.look()
        assert known(one, grower).use is not None  # one goes, all the same
        assert known(one, other).use is None
        time.wall = 2.0
        one.look()
        assert known(one, other).use is None  # 0.03 more than there was are paid back first
        time.wall = 4.0
        one.look()
        assert known(one, other).use is not None
        assert known(one, grower).at == 0.0
    finally:
        other.end()


def test_who_is_gone_is_forgotten(time: Time) -> None:
    grower = Grower()
    one = watch(time, grower)
    one.look()
    assert len(one.processes) == 1
    grower.end()
    time.wall = 1.0
    one.look()
    assert one.processes == {}


def test_what_it_knows_is_what_a_scan_says(grower: Grower, time: Time) -> None:
    grower.do("touch", 0, 1, 1)
    grower.do("touch", SPAN, 10 * 512, 512)
    grower.do("advise", SPAN, PAGE, mmap.MADV_DONTNEED)
    one = watch(time, grower)
    one.look()
    use = known(one, grower).use
    assert use is not None
    assert use.empty >= PAGE
    assert use.pid == grower.pid != os.getpid()
