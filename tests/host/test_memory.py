"""What a host's memory is charged, what happens when it is short, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pterefd.engine import layout as lo
from pterefd.errors import BadInput
from pterefd.hookspecs import Cause, Kinds
from pterefd.host.host import Host
from pterefd.host.memory import GroupLimit, Memory, VmKnobs, Zone, oom_badness, oom_score, zone_watermarks
from pterefd.mm import events as ev
from tests.build import Event, batch, host, run
from tests.mm.test_invariants import EVENT, B

MIB = 1 << 20
RW = ("rw-", "private,anonymous")
NORESERVE = ("rw-", "private,anonymous,noreserve")  # as large as one likes
SHARED = ("rw-", "shared,anonymous")
AMPLE = Memory(4096 * MIB, swap_bytes=64 * MIB)


def mapped(machine: Host, pid: int, size: int, at: int = B, flags: tuple[str, str] = RW) -> None:
    """A process with a mapping, nothing of it touched."""
    run(machine, ("exec", pid), ("mmap", pid, at, size, flags))


def write(pid: int, size: int, at: int = B) -> Event:
    return ("fault", pid, at, size, 1)


# ---- a page is charged once --------------------------------------------------------------------------

programs = st.lists(EVENT, max_size=12)


HUGE = (1 << lo.PMD_ORDER) | (1 << 4) | lo.THP_ZERO_PAGE  # 2 MiB and 64 kB, always
profiles = st.sampled_from(["v6.18", "rfc-2022", "atomic-2021"])


@settings(max_examples=150, deadline=None)
@given(programs, programs, programs, profiles, st.sampled_from([0, HUGE]), st.sampled_from([4096, 4]))
def test_charges_are_what_the_entries_say(
    first: list[Event], then: list[Event], last: list[Event], profile: str, thp: int, mib: int
) -> None:
    """Forks of forks that write, move, discard and end; with memory enough nothing else is as without a host."""
    machine, plain = host(profile, Memory(mib * MIB, swap_bytes=2 * MIB)), host(profile)

    def run(machine: Host, *events: Event) -> None:
        whole = batch(events)
        whole.thp = thp
        assert machine.run(whole, 0, len(whole)) == len(whole)

    hosts = (machine, plain) if mib > 4 else (machine,)
    begin = [("exec", 1), ("exec", 3), ("mmap", 1, B, 6 * MIB, RW)]
    forks = [("fork", 1, 0, 0, 2), *then, ("fork", 2, 0, 0, 4), ("fork", 1, 0, 0, 5), *last, ("exit", 5)]
    for event in (*begin, *first, *forks, *first):
        if event[0] == "swap_out" or (event[0] == "state" and event[4] == "swap"):
            continue  # a host with memory decides itself
        for each in hosts:
            run(each, event)
        machine.validate()
    if mib > 4:
        assert [machine.counters(pid) for pid in machine.pids()] == [plain.counters(pid) for pid in plain.pids()]
    for pid in machine.pids():
        machine.free_ptes(pid, Kinds.BOTH, None)
        run(machine, ("exit", pid))
        machine.validate()
    left = machine.usage()
    assert (left.anon, left.shmem, left.pgtables, left.swap_free) == (0, 0, 0, left.swap_total)


def test_what_fork_shares_is_charged_once() -> None:
    machine = host(memory=AMPLE)
    mapped(machine, 1, 4 * MIB)
    run(machine, write(1, 4 * MIB), ("fork", 1, 0, 0, 2), ("fork", 2, 0, 0, 3))
    assert machine.usage().anon == 4 * MIB
    run(machine, write(2, MIB))
    assert machine.usage().anon == 5 * MIB
    run(machine, write(2, MIB), write(3, MIB), write(1, MIB))
    assert machine.usage().anon == 6 * MIB  # the last one to write had the old pages for itself
    run(machine, ("exit", 1))
    assert machine.usage().anon == 5 * MIB
    run(machine, ("exit", 3), ("exit", 2))
    assert machine.usage().anon == 0


def test_page_tables_and_shared_memory_are_charged() -> None:
    machine = host(memory=AMPLE)
    mapped(machine, 1, 4 * MIB, flags=SHARED)
    run(machine, write(1, 2 * MIB), ("fork", 1, 0, 0, 2), ("fault", 2, B, 4 * MIB, 0))
    usage = machine.usage()
    assert usage.shmem == 4 * MIB
    assert usage.pgtables == sum(machine.counters(pid).pgtables_bytes for pid in (1, 2))
    assert usage.free == usage.total - usage.shmem - usage.pgtables
    run(machine, ("exit", 1), ("exit", 2))
    assert machine.usage().shmem == 0


# ---- memory is short ---------------------------------------------------------------------------------


def test_kswapd_swaps_the_idle_mm_until_the_high_mark() -> None:
    """16 MiB, min_free_kbytes 512: marks of 128, 160 and 192 pages."""
    machine = host(memory=Memory(16 * MIB, swap_bytes=64 * MIB, knobs=VmKnobs(min_free_kbytes=512)))
    usage = machine.usage()
    assert (usage.min, usage.low, usage.high) == (512 << 10, 640 << 10, 768 << 10)
    mapped(machine, 1, 8 * MIB)
    mapped(machine, 2, 16 * MIB)
    run(machine, write(1, 8 * MIB), write(2, 12 * MIB))
    machine.validate()
    assert machine.counters(2).swap_bytes == 0
    assert machine.counters(1).swap_bytes >= 4 * MIB
    assert machine.usage().free >= usage.low
    assert machine.vmstat["pswpout"] * 4096 == machine.counters(1).swap_bytes
    assert machine.vmstat["pgsteal_kswapd"] > 0
    assert machine.kills == []
    run(machine, ("fault", 1, B, 8 * MIB, 0))  # comes back, and the other goes out
    assert machine.counters(1).swap_ins * 4096 >= 4 * MIB
    assert machine.vmstat["pgmajfault"] == machine.vmstat["pswpin"] > 0
    machine.validate()


def test_clean_madv_free_pages_go_before_swap() -> None:
    machine = host(memory=Memory(16 * MIB, swap_bytes=64 * MIB))
    mapped(machine, 1, 8 * MIB)
    mapped(machine, 2, 16 * MIB)
    run(machine, write(1, 8 * MIB), ("madvise", 1, B, 6 * MIB, "free"), write(2, 12 * MIB))
    assert machine.vmstat.get("pswpout", 0) == 0
    assert machine.counters(1).anon_bytes < 8 * MIB
    machine.validate()


def test_the_oom_killer_takes_the_largest_and_its_later_events_are_lost() -> None:
    machine = host(memory=Memory(16 * MIB))
    mapped(machine, 1, 8 * MIB)
    mapped(machine, 2, 64 * MIB, flags=NORESERVE)
    run(machine, write(1, 3 * MIB))
    run(machine, write(2, 32 * MIB), ("fork", 2, 0, 0, 3), write(3, MIB), ("exit", 3), write(1, MIB))
    assert [(kill.pid, kill.oom_score_adj) for kill in machine.kills] == [(2, 0)]
    assert machine.pids() == [1]
    assert machine.lost == 4  # the rest of the write, the fork, what the child would have done
    assert machine.usage().free > 8 * MIB
    kill = machine.kills[0]
    assert kill.badness == (kill.rss_bytes + kill.swap_bytes + kill.pgtables_bytes) // 4096
    run(machine, ("exit", 2), ("exec", 2))
    assert machine.pids() == [1, 2]  # the pid may be used again
    machine.validate()


def test_oom_score_adj_spares_and_condemns() -> None:
    """adj is worth totalpages/1000 each: 16 MiB are 4096 pages, so 4 pages a point."""
    machine = host(memory=Memory(16 * MIB))
    mapped(machine, 1, 8 * MIB)
    mapped(machine, 2, 64 * MIB, flags=NORESERVE)
    run(machine, write(1, 3 * MIB))
    machine.set_oom_score_adj(2, -1000)
    machine.set_oom_score_adj(1, 500)
    run(machine, write(2, 14 * MIB))
    assert [kill.pid for kill in machine.kills] == [1]
    assert machine.kills[0].badness == (3 * MIB + machine.kills[0].pgtables_bytes) // 4096 + 500 * 4
    assert machine.panicked is None
    run(machine, write(2, 32 * MIB))
    assert machine.panicked == "System is deadlocked on memory"
    lost = machine.lost
    run(machine, write(2, MIB))
    assert machine.lost == lost + 1


@pytest.mark.parametrize(("knob", "killed"), [(0, 1), (1, 2)])
def test_oom_kill_allocating_task(knob: int, killed: int) -> None:
    machine = host(memory=Memory(16 * MIB))
    machine.set_knob("oom_kill_allocating_task", knob)
    mapped(machine, 1, 16 * MIB)
    mapped(machine, 2, 16 * MIB)
    run(machine, write(1, 10 * MIB), write(2, 6 * MIB))
    assert [kill.pid for kill in machine.kills] == [killed]


def test_panic_on_oom() -> None:
    machine = host(memory=Memory(16 * MIB, knobs=VmKnobs(panic_on_oom=1)))
    mapped(machine, 1, 64 * MIB, flags=NORESERVE)
    run(machine, write(1, 32 * MIB))
    assert machine.kills == []
    assert machine.panicked == "Out of memory: panic_on_oom is set"


def test_page_tables_are_asked_for_before_a_kill() -> None:
    """64 MiB of address space read: 32 PTE pages of zero entries; then memory runs out for want of a few pages."""
    machine = host(memory=Memory(16 * MIB, knobs=VmKnobs(min_free_kbytes=64)))
    asked: list[tuple[Cause, str | None]] = []

    def ask(cause: Cause, group: str | None, nbytes: int) -> int:
        asked.append((cause, group))
        return sum(machine.free_ptes(1, Kinds.BOTH, None)) if cause is Cause.OOM else 0

    machine.on_pressure = ask
    mapped(machine, 1, 64 * MIB, flags=NORESERVE)
    run(machine, ("fault", 1, B, 64 * MIB, 0))
    free = machine.usage().free
    mapped(machine, 2, 64 * MIB, flags=NORESERVE)
    run(machine, write(2, free - 20 * 4096))
    assert machine.kills == []
    assert (Cause.LOW, None) in asked
    assert asked[-1] == (Cause.OOM, None)
    assert machine.counters(1).zero_bytes == 0


def test_a_group_at_its_limit_kills_its_own() -> None:
    groups = (GroupLimit("web", 8 * MIB), GroupLimit("rest"))
    machine = host(memory=Memory(64 * MIB, groups=groups))
    for pid, group in ((1, "web"), (2, "web"), (3, "rest")):
        events = batch([("exec", pid), ("mmap", pid, B, 32 * MIB, RW)])
        events.group = group
        machine.run(events, 0, 2)
    run(machine, write(3, 20 * MIB), write(1, 3 * MIB), write(2, 4 * MIB))
    assert machine.kills == []
    assert machine.usage("web").anon == 7 * MIB
    assert machine.usage("web").total == 8 * MIB
    run(machine, ("fork", 2, 0, 0, 4), write(4, 4 * MIB))
    assert [(kill.pid, kill.group) for kill in machine.kills] == [(4, "web")]
    assert machine.usage("rest").anon == 20 * MIB
    machine.validate()
    with pytest.raises(BadInput, match="no group 'db'; there are: web, rest"):
        machine.usage("db")


def test_a_locked_page_is_not_swapped() -> None:
    machine = host(memory=Memory(16 * MIB, swap_bytes=64 * MIB))
    mapped(machine, 1, 8 * MIB)
    mapped(machine, 2, 16 * MIB)
    run(machine, ("mlock", 1, B, 6 * MIB, 0), write(1, 8 * MIB), write(2, 12 * MIB))
    assert machine.counters(1).anon_bytes >= 6 * MIB
    assert machine.counters(1).swap_bytes + machine.counters(2).swap_bytes >= 4 * MIB
    machine.validate()


def test_shared_pages_leave_memory_when_all_have_let_go() -> None:
    machine = host(memory=Memory(16 * MIB, swap_bytes=64 * MIB))
    mapped(machine, 1, 8 * MIB)
    run(machine, write(1, 8 * MIB), ("fork", 1, 0, 0, 2), ("fork", 1, 0, 0, 3))
    mapped(machine, 9, 16 * MIB)
    run(machine, write(9, 12 * MIB))
    machine.validate()
    swapped = [machine.counters(pid).swap_bytes for pid in (1, 2, 3)]
    usage = machine.usage()
    assert min(swapped) > 0
    assert usage.swap_total - usage.swap_free <= max(swapped)  # one slot for the three
    assert machine.kills == []
    run(machine, write(2, 8 * MIB), ("exit", 1), ("exit", 2), ("exit", 3), ("exit", 9))
    machine.validate()
    assert machine.usage().swap_free == machine.usage().swap_total


def file_mapped(machine: Host, pid: int, size: int, flags: tuple[str, str] = ("r--", "private"), at: int = B) -> None:
    """A mapping of /lib/a.so, from its begin."""
    events = batch([("mmap", pid, at, size, flags)])
    events.ext[0, ev.X_PATH] = 0
    events.paths = PATHS
    assert machine.run(events, 0, 1) == 1


PATHS = ["/lib/a.so"]


def test_page_cache_stays_when_its_mappings_go_until_it_is_dropped() -> None:
    """Fault-around maps 16 pages; a page that is mapped is not dropped (invalidate_mapping_pages)."""
    machine = host(memory=Memory(64 * MIB))
    run(machine, ("exec", 1))
    file_mapped(machine, 1, 64 * 4096)
    run(machine, ("fault", 1, B, 4096, 0), ("fault", 1, B + 32 * 4096, 4096, 0))
    assert machine.usage().file == 32 * 4096
    run(machine, ("munmap", 1, B, 16 * 4096))
    assert machine.usage().file == 32 * 4096
    assert machine.drop_caches() == 16
    assert machine.usage().file == machine.counters(1).file_bytes == 16 * 4096
    run(machine, ("exit", 1))
    assert machine.drop_caches() == 16
    machine.validate()


def test_clean_page_cache_goes_before_anything_else_and_comes_back_as_a_major_fault() -> None:
    machine = host(memory=Memory(16 * MIB, swap_bytes=16 * MIB))
    run(machine, ("exec", 1))
    file_mapped(machine, 1, 6 * MIB)
    run(machine, ("fault", 1, B, 6 * MIB, 0))
    mapped(machine, 2, 16 * MIB)
    machine.set_knob("swappiness", 0)
    run(machine, write(2, 14 * MIB))
    assert machine.vmstat["pswpout"] == 0
    assert machine.usage().file == machine.counters(1).file_bytes < 2 * MIB
    before = machine.vmstat["pgmajfault"]
    run(machine, ("fault", 1, B, 4096, 0))
    assert machine.vmstat["pgmajfault"] == before + 1
    machine.validate()


def test_what_fork_shares_goes_to_swap_from_all_at_once() -> None:
    """33 pages short: not 8 MiB of the first mm, and a small swap is enough."""
    machine = host(memory=Memory(16 * MIB, swap_bytes=2 * MIB))
    mapped(machine, 1, 8 * MIB)
    run(machine, write(1, 8 * MIB), ("fork", 1, 0, 0, 2))
    mapped(machine, 9, 16 * MIB)
    run(machine, write(9, 8 * MIB))
    assert machine.kills == []
    assert machine.counters(1).swap_bytes == machine.counters(2).swap_bytes == machine.vmstat["pswpout"] * 4096
    machine.validate()


def test_unlocated_page_tables_go_with_their_mm() -> None:
    machine = host(memory=Memory(16 * MIB))
    run(machine, ("exec", 1))
    machine.set_unlocated(1, 10)
    machine.validate()
    assert machine.usage().pgtables == 10 * 4096
    run(machine, ("exit", 1))
    assert machine.usage().pgtables == 0


def test_a_recorded_swap_state_is_memory_here() -> None:
    machine = host(memory=Memory(64 * MIB))
    mapped(machine, 1, 8 * MIB)
    run(machine, ("state", 1, B, 8 * MIB, "swap"))
    assert (machine.counters(1).anon_bytes, machine.counters(1).swap_bytes) == (8 * MIB, 0)
    machine.validate()


def test_a_correction_may_bring_pressure_too() -> None:
    machine = host(memory=Memory(16 * MIB))
    mapped(machine, 1, 64 * MIB, flags=NORESERVE)
    run(machine, write(1, 4096), ("state", 1, B, 32 * MIB, "anon"))
    assert [kill.pid for kill in machine.kills] == [1]


@pytest.mark.parametrize("slices", [1, 8, 1000])
def test_who_is_asked_at_low_does_not_depend_on_how_events_are_cut(slices: int) -> None:
    machine = host(memory=Memory(16 * MIB))
    asked: list[int] = []

    def ask(cause: Cause, group: str | None, nbytes: int) -> int:
        asked.append(machine.usage().free // 4096 if cause is Cause.LOW else -1)
        return 0

    machine.on_pressure = ask
    mapped(machine, 1, 32 * MIB, flags=NORESERVE)
    events = batch([("fault", 1, B + page * 4096, 4096, 1) for page in range(4096)])
    for begin in range(0, 4096, slices):
        machine.run(events, begin, min(begin + slices, 4096))
    assert asked[:2] == [159, 127]  # below low, 160, and SWAP_CLUSTER_MAX further down


# ---- groups --------------------------------------------------------------------------------------------


def grouped(limit: int, *sizes: int, **knobs: int) -> Host:
    """A host with a group of such a limit, and mms 1, 2, ... in it with so much memory mapped."""
    machine = host(memory=Memory(64 * MIB, 64 * MIB, knobs=VmKnobs(**knobs), groups=(GroupLimit("web", limit),)))
    for pid, size in enumerate(sizes, 1):
        events = batch([("exec", pid), ("mmap", pid, B, size, RW)])
        events.group = "web"
        machine.run(events, 0, 2)
    return machine


def test_a_group_with_swappiness_0_kills_and_does_not_swap() -> None:
    """get_scan_count: SCAN_FILE for a cgroup; out_of_memory: oom_kill_allocating_task is not for one."""
    machine = grouped(8 * MIB, 8 * MIB, 8 * MIB, swappiness=0, oom_kill_allocating_task=1)
    run(machine, write(1, 5 * MIB), write(2, 4 * MIB))
    assert machine.vmstat["pswpout"] == 0
    assert [kill.pid for kill in machine.kills] == [1]


def test_a_group_in_which_nobody_may_be_killed_is_asked_now_and_then() -> None:
    machine = grouped(4 * MIB, 8 * MIB, swappiness=0)
    asked: list[Cause] = []
    machine.on_pressure = lambda cause, group, nbytes: asked.append(cause) or 0
    machine.set_oom_score_adj(1, -1000)
    run(machine, write(1, 5 * MIB), *[("fault", 1, B, 4096, 0)] * 500)
    assert machine.counters(1).anon_bytes == 5 * MIB  # the charge is forced
    assert 0 < len(asked) < 20


# ---- what is refused ------------------------------------------------------------------------------------


def test_overcommit_memory() -> None:
    """16 MiB, ratio 50: commit limit 8 MiB and the swap, less the administrators' 8 MiB."""
    knobs = VmKnobs(overcommit_memory=2)
    machine = host(memory=Memory(16 * MIB, swap_bytes=4 * MIB, knobs=knobs))
    run(machine, ("exec", 1), ("mmap", 1, B, 3 * MIB, RW), ("mmap", 1, B + 64 * MIB, MIB, RW))
    assert machine.counters(1).vmas == 1
    assert machine.vmstat["refused_maps"] == 1
    run(machine, ("fault", 1, B + 64 * MIB, 4096, 1))
    assert machine.lost == 2
    machine.set_knob("overcommit_memory", 1)
    run(machine, ("mmap", 1, B + 64 * MIB, 512 * MIB, RW))
    assert machine.counters(1).vmas == 2
    machine.set_knob("overcommit_memory", 0)
    run(machine, ("mmap", 1, B + 1024 * MIB, 20 * MIB + 4096, RW))  # more than memory and swap
    assert machine.counters(1).vmas == 2
    run(machine, ("mmap", 1, B + 1024 * MIB, 20 * MIB + 4096, ("rw-", "private,anonymous,noreserve")))
    assert machine.counters(1).vmas == 3


def test_a_fork_is_refused_where_the_kernel_refuses_it() -> None:
    """dup_mmap asks for each mapping: in mode 0 none is too large by itself, in mode 2 all are counted."""
    for mode, children in ((0, [2]), (2, [])):
        machine = host(memory=Memory(128 * MIB, knobs=VmKnobs(overcommit_memory=0)))
        run(machine, ("exec", 1), *(("mmap", 1, B + n * 64 * MIB, 40 * MIB, RW) for n in range(3)))
        machine.set_knob("overcommit_memory", mode)
        run(machine, ("fork", 1, 0, 0, 2), write(2, MIB))
        assert [pid for pid in machine.pids() if pid != 1] == children
        assert machine.counters(1).vmas == 3
        run(machine, ("fault", 1, B + 1024 * MIB, 4096, 1))  # memory that the recording missed is still implied
        assert machine.counters(1).anon_bytes == 4096


def test_shared_files_are_not_committed_memory() -> None:
    machine = host(memory=Memory(64 * MIB))
    run(machine, ("exec", 1))
    file_mapped(machine, 1, 1024 * MIB, ("rw-", "shared"))
    assert machine.counters(1).vmas == 1
    run(machine, ("mmap", 1, B + 2048 * MIB, 1024 * MIB, SHARED))
    assert machine.counters(1).vmas == 1


def test_what_a_mapping_takes_the_place_of_is_given_back_first() -> None:
    """mode 2, limit 100 % of 64 MiB less 8: 40 MiB over 40 MiB fit, 40 beside them do not."""
    machine = host(memory=Memory(64 * MIB, knobs=VmKnobs(overcommit_memory=2, overcommit_ratio=100)))
    run(machine, ("exec", 1), ("mmap", 1, B, 40 * MIB, RW), ("mmap", 1, B, 40 * MIB, RW))
    assert machine.lost == 0
    run(machine, ("mmap", 1, B + 64 * MIB, 40 * MIB, RW))
    assert machine.lost == 1


def test_max_map_count() -> None:
    """do_mmap refuses where map_count is above the limit, not at it."""
    machine = host(memory=Memory(16 * MIB, knobs=VmKnobs(max_map_count=2)))
    run(machine, ("exec", 1), *(("mmap", 1, B + n * MIB, 4096, RW) for n in range(5)))
    assert machine.counters(1).vmas == 3
    assert machine.lost == 2


def test_a_host_without_memory_refuses_nothing_and_says_so() -> None:
    machine = host()
    with pytest.raises(BadInput, match="accounts no memory"):
        machine.usage()
    mapped(machine, 1, MIB)
    assert machine.oom_score(1) == 666


def test_bad_memory() -> None:
    with pytest.raises(BadInput, match="less than 1 MiB"):
        Memory(4096)
    with pytest.raises(BadInput, match="group 'a': a limit of 100 bytes is less than a page"):
        GroupLimit("a", 100)
    with pytest.raises(BadInput, match="two groups are named 'a'"):
        Memory(16 * MIB, groups=(GroupLimit("a"), GroupLimit("a")))


# ---- figures of kernel-rules.md, 5.3 and 6 ------------------------------------------------------------------


def test_watermarks_of_the_rules() -> None:
    """67584 kB; DMA32 managed 772915 of 1432115 pages: min 9118, low 11397, high 13676."""
    zones = (Zone("DMA32", 772915), Zone("Normal", 1432115 - 772915))
    assert zone_watermarks(zones, 67584)[0][:3] == (9118, 11397, 13676)


@pytest.mark.parametrize(
    ("badness", "total", "score"), [(0, 1 << 20, 666), (1 << 19, 1 << 20, 1000), (1 << 20, 1 << 20, 1333), (None, 9, 0)]
)
def test_oom_score(badness: int | None, total: int, score: int) -> None:
    assert oom_score(badness, total) == score


def test_oom_badness_rounds_totalpages_first() -> None:
    assert oom_badness(10, 20, 30, 7, 1999) == 60 + 7
    assert oom_badness(10, 20, 30, -1000, 1999) is None
