"""smaps of a host: slice by slice the same as at once, and whatever runs between the slices does no harm."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest

from pterefd.host import maps
from pterefd.host import walks as walks_module
from pterefd.host.host import Host
from pterefd.host.memory import Memory
from pterefd.mm import smaps as sm
from pterefd.mm.thp import thp_bits
from tests.build import Event, batch, host

PAGE = 4096
SPAN = 2 << 20
A = 0x7000_0000_0000
B = A + 64 * SPAN
HUGE = A + 128 * SPAN
OFF = 3 * PAGE  # its mapping is not where the object's 512 pages begin
SHARED = ("rw-", "shared,anonymous")
PIDS = range(2, 6)
KERNELS = ("count_anon", "count_pmds", "object_spans", "count_object", "smaps_walk", "_count_entries", "next_mapping")


def run(machine: Host, *events: Event) -> None:
    """Run events on a machine with huge pages for who asks for them."""
    whole = batch(events)
    whole.thp = thp_bits("madvise,64kB=madvise")
    assert machine.run(whole, 0, len(whole)) == len(whole)


def crowd() -> Host:
    """Five processes that share memory, pages that fork has shared, and large folios, whole and cut."""
    machine = host("v6.18", Memory(8 << 30))
    run(machine, ("exec", 1), ("mmap", 1, A, 8 * SPAN, SHARED), ("mmap", 1, B + OFF, 5 * SPAN, SHARED))
    run(machine, ("fault", 1, A, 3 * SPAN, 1), ("fault", 1, B + OFF, 5 * SPAN, 0))
    run(machine, ("mmap", 1, B + 32 * SPAN, 4 * SPAN), ("fault", 1, B + 32 * SPAN, 3 * SPAN + 9 * PAGE, 1))
    large = 4 * SPAN + 64 * PAGE
    run(machine, ("mmap", 1, HUGE, large), ("madvise", 1, HUGE, large, "hugepage"), ("fault", 1, HUGE, large, 1))
    for pid in PIDS:
        run(machine, ("fork", 1, 0, 0, pid), ("fault", pid, A + pid * SPAN + 7 * PAGE, SPAN, 1))
        run(machine, ("fault", pid, B + OFF, pid * PAGE, 1), ("fault", pid, B + (32 * SPAN) + pid * PAGE, PAGE, 1))
        run(machine, ("munmap", pid, HUGE + (pid - 2) * SPAN + 16 * PAGE, pid * PAGE))
    return machine


def sums(machine: Host) -> dict[int, list[Any]]:
    """smaps of every process, with counts made anew."""
    found = {}
    for pid in machine.pids():
        machine.walks._sharing = None
        found[pid] = machine.walks.smaps(pid)
    return found


def in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few pages at a time, and no room for counts to begin with."""
    for name, number in {"SLICE_PAGES": 1, "SLICE_WALK": 1, "SLICE_MAPPINGS": 1, "ROOM": 2}.items():
        monkeypatch.setattr(walks_module, name, number)


def holds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts, in its one number, how often the lock is taken."""
    number, before = [0], Host.looking

    def looking(self: Host) -> AbstractContextManager[None]:
        number[0] += 1
        return before(self)

    monkeypatch.setattr(Host, "looking", looking)
    return number


def test_in_slices_it_is_what_it_is_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = crowd()
    number = holds(monkeypatch)
    wanted = sums(machine)
    at_once, number[0] = number[0], 0
    total = {name: sum(getattr(row[1], name) for row in wanted[1]) for name in ("rss", "pss", "anon_huge")}
    assert total["anon_huge"] == 4 * SPAN
    assert 0 < total["pss"] >> sm.PSS_SHIFT < total["rss"]
    in_slices(monkeypatch)
    assert sums(machine) == wanted
    assert number[0] > 5 * at_once


def test_what_shares_memory_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """PSS of all is what is there once: each page counts for as many parts as map it."""
    in_slices(monkeypatch)
    machine = host()
    run(machine, ("exec", 1), ("mmap", 1, A + OFF, 4 * SPAN, SHARED), ("fault", 1, A + OFF, 4 * SPAN, 1))
    for pid in (2, 3, 4):
        run(machine, ("fork", 1, 0, 0, pid), ("fault", pid, A + OFF, 4 * SPAN, 1))
    found = sums(machine)
    assert [sum(part.pss for _, part in found[pid]) >> sm.PSS_SHIFT for pid in (1, 2, 3, 4)] == [SPAN] * 4
    assert [sum(part.rss for _, part in found[pid]) for pid in (1, 2, 3, 4)] == [4 * SPAN] * 4


def test_rows_of_mappings_are_made_without_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of as many as an mm may have: 0.5 s of Python, and all else waits for who holds it."""
    machine, before, locked = crowd(), maps.rows, list[bool]()

    def rows(mappings: maps.Copied) -> list[maps.VmaRow]:
        locked.append(machine.lock.locked())
        return before(mappings)

    monkeypatch.setattr(maps, "rows", rows)
    assert len(machine.vmas(1)) == len(machine.walks.smaps(1)) == 4
    assert locked == [False, False]


def disturbances(seed: int) -> Iterator[Event]:
    """Whatever takes records away and makes others of them, for ever; pid 1 stays."""
    rng = random.Random(seed)
    fresh = 100
    while True:
        pid, span = rng.choice([1, *PIDS, fresh]), rng.randrange(8)
        at = rng.choice([A, B + OFF, B + 32 * SPAN, HUGE]) + span * SPAN
        yield rng.choice(
            [
                ("munmap", pid, at, SPAN * rng.randrange(1, 4)),
                ("munmap", pid, at + 16 * PAGE, 4 * PAGE),
                ("mmap", pid, at, SPAN * rng.randrange(1, 16), rng.choice([SHARED, 0])),
                ("madvise", pid, HUGE, 8 * SPAN, "hugepage"),
                ("fault", pid, at, rng.choice([PAGE, SPAN]), 1),
                ("exit", rng.choice([*PIDS, fresh])),
            ]
        )
        if rng.random() < 0.2:
            fresh = fresh + 1 if fresh < 140 else 100
            yield ("exit", fresh)
            yield ("fork", 1, 0, 0, fresh)


@pytest.mark.parametrize("seed", range(4))
def test_what_runs_between_the_slices_does_no_harm(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """The walks are run as Python here, where an index out of bounds is an error."""
    machine, events, before, within = crowd(), disturbances(seed), Host.looking, [False]
    for name in KERNELS:
        monkeypatch.setattr(sm, name, getattr(sm, name).py_func)

    def looking(self: Host) -> AbstractContextManager[None]:
        if not within[0]:
            within[0] = True
            for _ in range(3):
                run(machine, next(events))
            within[0] = False
        return before(self)

    in_slices(monkeypatch)
    with monkeypatch.context() as disturbed:
        disturbed.setattr(Host, "looking", looking)
        for _ in range(3):
            machine.walks._sharing = None
            assert machine.walks.smaps(1) is not None
    monkeypatch.undo()
    machine.validate()
    wanted = sums(machine)
    in_slices(monkeypatch)
    assert sums(machine) == wanted
