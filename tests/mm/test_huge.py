"""Huge pages: what a trace says of the machine, and that folios' counts stay right whatever happens to them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pterefd.engine import layout as lo
from pterefd.engine.validate import ValidationError
from pterefd.mm.thp import thp_bits
from tests.build import batch, host

SPAN = 1 << 21
BASE = 0x7F00_0000_0000 // (1 << 30) * (1 << 30)
ADVISED = 1 << lo.THP_ADVISED


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        (None, 0),
        ("kept", 0),
        ("never", lo.THP_ZERO_PAGE),
        ("madvise", lo.THP_ZERO_PAGE | ADVISED << 9),
        ("always", lo.THP_ZERO_PAGE | ADVISED << 9 | 1 << 9),
        ("always,no-zero-page", ADVISED << 9 | 1 << 9),
        ("madvise,64kB=always,2048kB=never", lo.THP_ZERO_PAGE | ADVISED << 4 | 1 << 4),
        ("never,16kB=madvise", lo.THP_ZERO_PAGE | ADVISED << 2),
    ],
)
def test_what_a_trace_says_of_huge_pages(text: str | None, bits: int) -> None:
    assert thp_bits(text) == bits


RANGES = st.tuples(st.sampled_from([0, 1, 256, 511, 512, 513, 1024]), st.sampled_from([1, 2, 256, 511, 512, 1024]))
STEPS = st.one_of(
    st.tuples(st.just("fault"), st.sampled_from([1, 2, 3]), RANGES, st.booleans()),
    st.tuples(
        st.just("madvise"),
        st.sampled_from([1, 2, 3]),
        RANGES,
        st.sampled_from(["dontneed", "free", "cold", "pageout", "collapse", "guard_install", "nohugepage", "hugepage"]),
    ),
    st.tuples(st.just("munmap"), st.sampled_from([1, 2, 3]), RANGES, st.just(0)),
    st.tuples(st.just("swap_out"), st.sampled_from([1, 2, 3]), RANGES, st.booleans()),
    st.tuples(st.just("move"), st.sampled_from([1, 2, 3]), RANGES, st.sampled_from([512, 511, 2048])),
    st.tuples(st.just("mlock"), st.sampled_from([1, 2, 3]), RANGES, st.just(0)),
    st.tuples(st.just("fork"), st.sampled_from([1, 2]), RANGES, st.sampled_from([2, 3])),
    st.tuples(st.just("exit"), st.sampled_from([2, 3]), RANGES, st.just(0)),
)


@settings(max_examples=150, deadline=None)
@given(steps=st.lists(STEPS, max_size=25), thp=st.sampled_from(["always", "always,no-zero-page,64kB=always"]))
def test_folios_are_counted_as_the_entries_map_them(steps: list[tuple], thp: str) -> None:
    machine = host()
    alive = {1}

    def run(*event: object) -> None:
        whole = batch([event])
        whole.thp = thp_bits(thp)
        assert machine.run(whole, 0, 1) == 1

    run("exec", 1)
    run("mmap", 1, BASE, 4 * SPAN)
    for op, pid, (first, pages), arg in steps:
        addr, length = BASE + first * 4096, pages * 4096
        if op == "fork":
            if pid in alive and arg not in alive and arg != pid:
                alive.add(arg)
                run("fork", pid, 0, 0, arg)
        elif pid not in alive:
            continue
        elif op == "exit":
            alive.discard(pid)
            run("exit", pid)
        elif op == "move":
            run("mremap", pid, addr, length, (addr + arg * 4096 + (8 << 30), length))
        else:
            run(op, pid, addr, length, arg)
        machine.validate()


def test_a_wrong_count_is_seen() -> None:
    machine = host()
    whole = batch([("exec", 1), ("mmap", 1, BASE, SPAN), ("fault", 1, BASE, 4096, 1)])
    whole.thp = thp_bits("always")
    machine.run(whole, 0, 3)
    machine.validate()
    machine._s.fol[1, lo.F_MAPS] += 1
    with pytest.raises(ValidationError, match="folio 1: 2 mappings are kept, recounted 1"):
        machine.validate()


def test_prctl_keeps_huge_pages_away_also_after_exec() -> None:
    machine = host()
    events = [
        ("exec", 1),
        ("thp", 1, 0, 0, 1),
        ("fork", 1, 0, 0, 2),
        ("exec", 2),
        ("mmap", 2, BASE, SPAN),
        ("fault", 2, BASE, 4096, 1),
        ("mmap", 1, BASE, 2 * SPAN),
        ("fault", 1, BASE, 4096, 1),
        ("thp", 1, 0, 0, 0),
        ("fault", 1, BASE + SPAN, 4096, 1),
    ]
    whole = batch(events)
    whole.thp = thp_bits("always")
    machine.run(whole, 0, len(whole))
    assert machine.counters(2).anon_bytes == 4096
    assert machine.counters(1).anon_bytes == 4096 + SPAN
    assert machine.counters(1).anon_huge_bytes == SPAN
