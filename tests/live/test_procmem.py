"""Readers of /proc/PID, on this very process and on memory whose state is known."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator

import numpy as np
import pytest

from pterefd.live import procmem
from pterefd.live.procmem import Entries, parse_maps

pytestmark = pytest.mark.kernel

MIB = 1 << 20
PAGE = 4096


@pytest.fixture
def memory() -> Iterator[tuple[mmap.mmap, int]]:
    """8 MiB and where they begin: 1 MiB is written to, 1 MiB read, the rest untouched."""
    m = mmap.mmap(-1, 8 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    m.madvise(mmap.MADV_NOHUGEPAGE)
    for at in range(0, MIB, PAGE):
        m[at] = 1
    for at in range(MIB, 2 * MIB, PAGE):
        m[at]
    view = ctypes.c_char.from_buffer(m)
    start = ctypes.addressof(view)
    del view
    yield m, start
    m.close()


def _within(entries: Entries, start: int, end: int) -> list[tuple[int, int, str]]:
    return [
        (max(row.start, start) - start, min(row.end, end) - start, row.entry)
        for row in entries.state_rows()
        if row.end > start and row.start < end
    ]


def test_entries(memory: tuple[mmap.mmap, int]) -> None:
    m, start = memory
    m.madvise(102, 2 * MIB, MIB)  # MADV_GUARD_INSTALL
    found = _within(procmem.read_entries(os.getpid()), start, start + 8 * MIB)
    assert found == [(0, MIB, "anon"), (MIB, 2 * MIB, "zero"), (2 * MIB, 3 * MIB, "guard")]


@pytest.mark.parametrize("told", [True, False])
def test_the_pagemap_file_says_the_same(
    memory: tuple[mmap.mmap, int], told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the kernel has no PAGEMAP_SCAN; without CAP_SYS_ADMIN it shows no frames, and the zero page is not told."""
    _, start = memory
    if not told:
        monkeypatch.setattr(procmem, "zero_pfn", lambda: 0)
    maps = [line for line in procmem.read_maps(os.getpid()) if line.start <= start < line.end]
    fd = os.open("/proc/self/pagemap", os.O_RDONLY)
    found = procmem._read_pagemap(fd, ((m.start, m.end) for m in maps))
    os.close(fd)
    both = [(0, MIB, "anon"), (MIB, 2 * MIB, "zero")]
    assert _within(found, start, start + 8 * MIB) == (both if told else [(0, 2 * MIB, "anon")])


def test_tables_explain_a_fresh_process() -> None:
    """VmPTE = 4 kB for each span, GiB slot and PGD slot that holds an entry."""
    pid = os.posix_spawn("/bin/sleep", ["sleep", "9"], {})
    try:
        while procmem.read_status(pid).state != "S" or procmem.read_status(pid).name != "sleep":
            pass
        assert procmem.read_entries(pid).tables() * 4 == procmem.read_status(pid).kb["VmPTE"]
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def test_tables_of_runs() -> None:
    span = 2 * MIB
    runs = [
        (0, span),
        (span, 3 * span),
        (5 * span + PAGE, 5 * span + 2 * PAGE),
        (1 << 30, (1 << 30) + PAGE),
        (1 << 39, (1 << 39) + PAGE),
    ]
    start, end = (np.array(column, dtype=np.int64) for column in zip(*runs, strict=True))
    assert Entries(start, end, start).tables() == 6 + 3 + 2
    assert Entries(start[:0], end[:0], start[:0]).tables() == 0


def test_checkpoint_agrees_with_status() -> None:
    checkpoint = procmem.read_checkpoint(os.getpid())
    assert checkpoint is not None
    assert abs(checkpoint.fields["VmPTE"] - procmem.read_status(os.getpid()).kb["VmPTE"]) <= 16
    assert checkpoint.fields["vmas"] == len(procmem.read_maps(os.getpid()))
    assert procmem.read_checkpoint(2) is None  # kthreadd
    assert procmem.read_checkpoint(1 << 22) is None


def test_maps() -> None:
    lines = [
        "7f0000000000-7f0000002000 rw-s 00001000 00:01 77                         /a b\\012c (deleted)\n",
        "7ffd00000000-7ffd00001000 rw-p 00000000 00:00 0 \n",
        "ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n",
    ]
    one, two = parse_maps(lines)
    assert (one.end - one.start, one.prot, one.shared, one.offset, one.inode) == (8192, "rw-", True, 4096, 77)
    assert one.path == "/a b\nc (deleted)"
    assert (two.path, two.shared) == ("", False)


def test_shmem_ranges_cut_runs() -> None:
    present = procmem.PAGE_IS_PRESENT | procmem.PAGE_IS_FILE
    run = Entries(np.array([0]), np.array([10 * PAGE]), np.array([present]))
    rows = run.state_rows([(2 * PAGE, 4 * PAGE), (9 * PAGE, 20 * PAGE)])
    assert [row[:3] for row in rows] == [
        (0, 2 * PAGE, "file"),
        (2 * PAGE, 4 * PAGE, "shmem"),
        (4 * PAGE, 9 * PAGE, "file"),
        (9 * PAGE, 10 * PAGE, "shmem"),
    ]


def test_other_readers() -> None:
    pid = os.getpid()
    status = procmem.read_status(pid)
    assert (status.tgid, status.ppid, status.uid) == (pid, os.getppid(), os.getuid())
    assert pid in procmem.tasks(pid)
    assert procmem.command_line(pid)[0]
    assert -1000 <= procmem.oom_score_adj(pid) <= 1000
    assert not procmem.is_32bit(pid)
    heap = [line for line in procmem.read_maps(pid) if line.path == "[heap]"]
    assert not heap or heap[0].start <= procmem.start_brk(pid) < heap[0].end
    flags = procmem.read_vm_flags(pid)
    stack = next(line for line in procmem.read_maps(pid) if line.path == "[stack]")
    assert {"rd", "wr", "gd", "ac"} <= flags[stack.start]
