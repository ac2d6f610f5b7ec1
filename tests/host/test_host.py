"""A host: publication, ranking, views, limits."""

from __future__ import annotations

import threading

import pytest

from pterefd.engine import layout as lo
from pterefd.engine.arena import Limits
from pterefd.errors import BadInput, NoSuchMm
from pterefd.hookspecs import Kinds
from pterefd.host.host import EventError, Host, kind_of_path
from pterefd.mm.profile import PROFILES, for_kernel, named
from tests.build import SMALL, batch, host, run

M = 1 << 20
B = 0x7000_0000_0000


def waste(machine: Host, pid: int, spans: int) -> None:
    """An mm with that many empty PTE pages."""
    size = spans * 2 * M
    run(machine, ("exec", pid), ("mmap", pid, B, size), ("fault", pid, B, size, 1))
    run(machine, *(("madvise", pid, B + i * M, M, "dontneed") for i in range(size // M)))


def test_views_and_ranking_show_what_was_published() -> None:
    machine = host("rfc-2022")
    for pid, spans in ((5, 3), (9, 8), (7, 1)):
        waste(machine, pid, spans)
    run(machine, ("exec", 8), ("mmap", 8, B, 4 * M), ("fault", 8, B, 4 * M, 0))
    view = machine.view()
    assert view.pid.tolist() == [5, 7, 8, 9]
    assert (view.empty_bytes // 4096).tolist() == [3, 1, 0, 8]
    assert (view.zero_bytes // 4096).tolist() == [0, 0, 2, 0]
    assert list(view.ranking(Kinds.BOTH)) == [9, 5, 8, 7]
    assert list(view.ranking(Kinds.EMPTY)) == [9, 5, 7]
    assert list(view.ranking(Kinds.ZERO)) == [8]
    assert machine.free_ptes(9, Kinds.BOTH, 5 * 4096) == (5 * 4096, 0, 0)
    assert list(machine.view().ranking(Kinds.BOTH)) == [5, 9, 8, 7]
    with pytest.raises(ValueError, match="read-only"):
        view.empty_bytes[0] = 1
    run(machine, ("exit", 5))
    assert list(machine.view().ranking(Kinds.BOTH)) == [9, 8, 7]


def test_exec_keeps_the_owner_where_it_does_not_say() -> None:
    machine = host()
    run(machine, ("exec", 1, 0, 0, {"comm": "sh", "uid": 33, "gid": 34, "oom_score_adj": -900}))
    run(machine, ("fork", 1, 0, 0, 2), ("exec", 2, 0, 0, {"comm": "ls", "gid": 100}))
    process = machine.process(2)
    assert (process.uid, process.gid, process.oom_score_adj) == (33, 100, -900)


def test_kinds_that_are_not_asked_for_stay() -> None:
    machine = host("rfc-2022")
    waste(machine, 1, 2)
    run(machine, ("fault", 1, B, 2 * M, 0))
    assert machine.free_ptes(1, Kinds.ZERO, None) == (0, 4096, 0)
    assert machine.counters(1).empty_bytes == 4096


def test_exec_begins_a_new_mm() -> None:
    machine = host()
    ended = []
    machine.on_teardown = lambda process, counters: ended.append((process.comm, counters.anon_bytes))
    run(machine, ("exec", 1, 0, 0, {"comm": "sh"}), ("mmap", 1, B, M), ("fault", 1, B, M, 1))
    run(machine, ("thread", 1, 0, 0, 77), ("exec", 1, 0, 0, {"comm": "ls", "uid": 7}))
    process = machine.process(1)
    assert (process.comm, process.exec_number, process.uid, process.threads) == ("ls", 1, 7, 1)
    assert machine.counters(1).pgtables_bytes == 0
    assert ended == [("sh", M)]
    run(machine, ("exit", 1))
    with pytest.raises(NoSuchMm, match="no mm with pid 1"):
        machine.counters(1)
    run(machine, ("fault", 1, B, 4096, 1))
    assert machine.skipped["no_mm"] == 1


def test_a_limit_is_said_with_its_event() -> None:
    small = Limits(**{name: getattr(SMALL, name) for name in Limits.__slots__} | {"pte_pages": 8})
    machine = Host(named("v6.18"), limits=small)
    run(machine, ("exec", 1), ("mmap", 1, B, 64 * M))
    events = batch([("fault", 1, B + i * 2 * M, 4096, 1) for i in range(20)])
    with pytest.raises(EventError, match="event 7: the host's limit of PTE pages is reached"):
        machine.run(events, 0, len(events))


def test_readers_see_whole_publications() -> None:
    """Anonymous bytes and tables of one mm move together; a reader never sees one without the other."""
    machine = host("v5.19")
    run(machine, ("exec", 1), ("mmap", 1, B, 64 * M))
    torn, done = [], threading.Event()

    def read() -> None:
        while not done.is_set():
            c = machine.counters(1)
            if c.anon_bytes // (2 * M) != c.pte_bytes // 4096:
                torn.append(c)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(150):
        run(machine, ("fault", 1, B, 64 * M, 1))
        run(machine, ("munmap", 1, B, 64 * M), ("mmap", 1, B, 64 * M))
    done.set()
    reader.join()
    assert torn == []


def test_maps_name_heap_and_stack() -> None:
    machine = host()
    run(
        machine,
        ("exec", 1),
        ("mmap", 1, B, M, ("rw-", "private,anonymous,growsdown,stack")),
        ("mmap", 1, 0x1000_0000, M, ("r-x", "shared,anonymous")),
        ("brk", 1, 0x5000_0000 + M, 0, 0x5000_0000),
    )
    rows = [(row.start, row.end - row.start, row.prot, row.shared, row.path) for row in machine.vmas(1)]
    assert rows == [
        (0x1000_0000, M, "r-x", True, "/dev/zero (deleted)"),
        (0x5000_0000, M, "rw-", False, "[heap]"),
        (B, M, "rw-", False, "[stack]"),
    ]


@pytest.mark.parametrize(
    ("release", "config", "name"),
    [
        ("5.19.17", None, "v5.19"),
        ("5.10.0-30-amd64", None, "v5.19"),
        ("6.1.0-56-amd64", None, "v6.1"),
        ("6.12.117", None, "v6.12"),
        ("6.14.2", {"PT_RECLAIM": "y"}, "v6.14"),
        ("6.18.44-fc", {"PT_RECLAIM": "y"}, "v6.18"),
        ("7.1", {}, "v6.18"),
        (None, None, "v6.18"),
        ("6.18.1", {"PT_RECLAIM": "n"}, "v6.18 without PT_RECLAIM"),
    ],
)
def test_auto_takes_the_kernels_own_rules(release: str | None, config: dict[str, str] | None, name: str) -> None:
    assert for_kernel(release, config).name == name


def test_unknown_profiles_and_releases_are_named() -> None:
    with pytest.raises(BadInput, match="profile 'v9': not one of v5.19"):
        named("v9")
    with pytest.raises(BadInput, match="kernel_release 'mainline'"):
        for_kernel("mainline", None)
    assert all(profile.name == name for name, profile in PROFILES.items())


def test_paths_tell_what_is_mapped() -> None:
    kinds = {"/lib/libc.so.6": lo.OBJ_FILE, "/dev/shm/x": lo.OBJ_SHMEM, "/memfd:a (deleted)": lo.OBJ_SHMEM}
    kinds |= {"[vdso]": lo.OBJ_VDSO, "[vvar_vclock]": lo.OBJ_VVAR, "[heap]": -1, "[anon:x]": -1}
    assert {path: kind_of_path(path) for path in kinds} == kinds


def test_a_pid_beyond_the_limit_is_refused() -> None:
    machine = host()
    run(machine, ("exec", SMALL.pid_max))
    for event in (("exec", SMALL.pid_max + 1), ("fork", SMALL.pid_max, 0, 0, SMALL.pid_max + 1)):
        with pytest.raises(EventError, match="a pid above 32768, the host's limit"):
            run(machine, event)


def test_calls_that_failed_make_and_end_nothing() -> None:
    machine = host()
    run(machine, ("exec", 1, 0, 0, {"comm": "sh"}), ("mmap", 1, B, M), ("fault", 1, B, M, 1))
    failed = batch([("fork", 1), ("exec", 1, 0, 0, {"comm": "x"}), ("exit", 1), ("munmap", 1, B, M)])
    failed.err[:] = 12
    assert machine.run(failed, 0, len(failed)) == len(failed)
    assert (machine.pids(), machine.process(1).comm, machine.counters(1).anon_bytes) == ([1], "sh", M)


def test_memory_shared_without_a_name_leaves_nothing_behind() -> None:
    machine = host()
    shared = ("rw-", "shared,anonymous")
    run(machine, ("exec", 1))
    for _ in range(SMALL.files + 10):
        run(machine, ("mmap", 1, B, M, shared), ("fault", 1, B, M, 1), ("munmap", 1, B, M))
    assert machine.counters(1).vmas == 0


def test_a_heap_grows_over_what_an_early_access_implied() -> None:
    machine = host()
    run(machine, ("exec", 1), ("brk", 1, B, 0, B), ("fault", 1, B + 0x3000, 4096, 1), ("brk", 1, B + 0x10000))
    machine.validate()
    run(machine, ("brk", 1, 0))
    assert [(row.start, row.end) for row in machine.vmas(1)] == [(B, B + 0x10000)]
