"""Any program at all leaves every counter as a recount finds it: validate after every event."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from pterefd.hookspecs import Kinds
from pterefd.mm.events import ADVICE
from tests.build import Event, host, run

B = 0x7000_0000_0000 - (3 << 20)  # spans, a GiB slot and a PGD slot meet within the first few MiB
PAGE = 4096
PLACES = [0, 1, 255, 511, 512, 513, 767, 768, 769, 1024, 1279, 1280, 1535, 1536, 2048]

addr = st.sampled_from(PLACES).map(lambda page: B + page * PAGE)
length = st.sampled_from([1, 2, 255, 256, 512, 513, 1024, 1536]).map(lambda pages: pages * PAGE)
pid = st.sampled_from([1, 1, 1, 2, 3])
prot = st.sampled_from(["rw-", "r--", "---", "rw-"])
flags = st.sampled_from(
    ["private,anonymous"] * 4 + ["shared,anonymous", "private,anonymous,noreserve", "private,anonymous,populate"]
)
advice = st.sampled_from([*ADVICE, *["dontneed"] * 8, *["free"] * 3, "guard_install", "guard_remove"])

EVENT = st.one_of(
    st.tuples(st.just("mmap"), pid, addr, length, st.tuples(prot, flags)),
    st.tuples(st.just("munmap"), pid, addr, length),
    st.tuples(st.just("fault"), pid, addr, length, st.integers(0, 1)),
    st.tuples(st.just("fault"), pid, addr, st.just(PAGE), st.integers(0, 1)),
    st.tuples(st.just("madvise"), pid, addr, length, advice),
    st.tuples(st.just("mprotect"), pid, addr, length, prot),
    st.tuples(st.just("swap_out"), pid, addr, length, st.integers(0, 1)),
    st.tuples(st.just("mlock"), pid, addr, length, st.integers(0, 1)),
    st.tuples(st.just("munlock"), pid, addr, length),
    st.tuples(st.just("state"), pid, addr, length, st.sampled_from(["none", "zero", "anon", "swap", "guard"])),
    st.builds(
        lambda p, a, size, to, keep: ("mremap", p, a, size, (to + (1 << 33), size, keep)),
        pid,
        addr,
        length,
        addr,
        st.integers(0, 1),
    ),
)


@settings(max_examples=120, deadline=None)
@given(st.lists(EVENT, max_size=25), st.lists(EVENT, max_size=25), st.sampled_from(["v6.18", "v5.19", "rfc-2022"]))
def test_counters_are_what_the_entries_say(first: list[Event], then: list[Event], profile: str) -> None:
    machine = host(profile)
    run(machine, ("exec", 1), ("exec", 3), ("mmap", 1, B, 6 << 20, ("rw-", "private,anonymous")))
    for event in (*first, ("fork", 1, 0, 0, 2), *then):
        run(machine, event)
        machine.validate()
    for number in machine.pids():
        before = machine.counters(number)
        empty, zero, _ = machine.free_ptes(number, Kinds.BOTH, None)
        machine.validate()
        after = machine.counters(number)
        assert (empty, zero) == (before.empty_bytes, before.zero_bytes)
        assert after.reclaimable_pt_bytes == 0
        assert before.pgtables_bytes - after.pgtables_bytes == empty + zero
        assert (after.anon_bytes, after.swap_bytes) == (before.anon_bytes, before.swap_bytes)
        run(machine, ("exit", number))
    assert machine.pids() == []
