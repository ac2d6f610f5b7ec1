"""pterefd scan: what is seen from outside is what is known by construction, or by the exact model."""

from __future__ import annotations

import json
import mmap
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from pterefd.errors import NoSuchMm
from pterefd.live import procmem
from pterefd.live.explain import Cause, explain
from pterefd.live.procmem import PAGE_IS_GUARD, PAGE_IS_PFNZERO, PAGE_IS_PRESENT, USER_END, WINDOW, Entries
from pterefd.live.scan import NotSeen, Seen, TableUse, _may_be_a_device, count_spans, cut, read_cgroup, scan
from tests.kernel.execute import Execution, Machine
from tests.kernel.generate import generate
from tests.kernel.hugepages import huge_pages
from tests.kernel.oracle import encode
from tests.kernel.swapfile import swap_file
from tests.live.grower_process import MIB, PAGE, SPAN, Asked, Grower
from tests.systemd.installed import NOBODY

pytestmark = pytest.mark.kernel
Run = Callable[..., "subprocess.CompletedProcess[str]"]

MADV_GUARD_INSTALL = 102
BATCH = 31  # pages of a CPU's folio_batch, of which the kernel has not counted all yet
KINDS = ("empty", "zero", "mixed", "guard", "deposited", "explained", "unseen")


def seen(pid: int) -> Seen:
    found = scan(pid)
    assert found is not None
    return found


def growth(before: TableUse, pid: int) -> dict[str, int]:
    """What has changed since, in pages, of the kinds that did."""
    after = seen(pid).use
    pages = {kind: (getattr(after, kind) - getattr(before, kind)) // PAGE for kind in KINDS}
    assert sum(pages[kind] for kind in ("empty", "deposited", "explained", "unseen")) == (
        (after.vm_pte - before.vm_pte) // PAGE
    )
    return {kind: n for kind, n in pages.items() if n}


# -- known by construction --------------------------------------------------------------------------------------


def test_every_kind_of_pte_page(grower: Grower) -> None:
    grower.do("touch", 0, 1, 1)
    before = seen(grower.pid).use
    grower.do("touch", SPAN, 40 * 512, 512)
    assert growth(before, grower.pid) == {"explained": 40}
    for page in range(SPAN, 41 * SPAN, SPAN):
        grower.do("advise", page, PAGE, mmap.MADV_DONTNEED)
    assert growth(before, grower.pid) == {"empty": 40}
    grower.do("read", 50 * SPAN, 10 * 512, 1)
    assert growth(before, grower.pid) == {"empty": 40, "zero": 10, "explained": 10}
    grower.do("read", 70 * SPAN, 7 * 512, 256)
    assert growth(before, grower.pid) == {"empty": 40, "zero": 10, "mixed": 7, "explained": 17}
    for span in range(80, 85):
        grower.do("advise", span * SPAN, 3 * PAGE, MADV_GUARD_INSTALL)
    assert growth(before, grower.pid) == {"empty": 40, "zero": 10, "mixed": 7, "guard": 5, "explained": 22}
    grower.do("touch", 70 * SPAN, 1, 1)  # a page of its own beside a zero page: neither kind
    assert growth(before, grower.pid) == {"empty": 40, "zero": 10, "mixed": 6, "guard": 5, "explained": 22}


def test_upper_tables_without_entries_are_empty_too(grower: Grower) -> None:
    before = seen(grower.pid).use
    grower.do("touch", 0, 1024, 512)
    for page in (0, SPAN):
        grower.do("advise", page, PAGE, mmap.MADV_DONTNEED)
    assert growth(before, grower.pid) == {"empty": 3}  # two PTE pages and the PMD page above them


def test_huge_pages_keep_a_pte_page_each(grower: Grower) -> None:
    grower.do("touch", 0, 1, 1)
    before = seen(grower.pid).use
    with huge_pages("madvise"):
        grower.do("huge", 0)
        grower.do("advise", 4 * SPAN, 20 * SPAN, mmap.MADV_HUGEPAGE)
        grower.do("touch", 4 * SPAN, 4 * 512, 512)
        assert growth(before, grower.pid) == {"deposited": 4}
        grower.do("read", 10 * SPAN, 3 * 512, 512)  # the huge zero page
        assert growth(before, grower.pid) == {"deposited": 7}
        grower.do("advise", 4 * SPAN, MIB, mmap.MADV_DONTNEED)
        grower.do("advise", 4 * SPAN + MIB, MIB, mmap.MADV_DONTNEED)
        assert growth(before, grower.pid) == {"empty": 1, "deposited": 6}
        assert growth(before, grower.pid).get("zero", 0) == 0


HUGE_TLB = """
import mmap, sys
memory = mmap.mmap(-1, 8 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000)
sys.stdin.readline()
for page in range(4):
    memory[page << 21] = 1
print("ok", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def huge_tlb() -> Iterator[None]:
    """Four pages of hugetlb more than there were."""
    path = Path("/proc/sys/vm/nr_hugepages")
    before = path.read_text()
    path.write_text(str(int(before) + 4))
    yield
    path.write_text(before)


TWO_HUGE_TLB = """
import ctypes, sys
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
whole = libc.mmap(None, 16 << 20, 0, 0x22, -1, 0)
start = -(-whole // (2 << 20)) * (2 << 20)
for k in range(2):
    assert libc.mmap(start + (k << 22), 4 << 20, 3, 0x40032, -1, 0) == start + (k << 22)
sys.stdin.readline()
for page in range(4):
    ctypes.memset(start + (page << 21), 1, 1)
print("ok", flush=True)
sys.stdin.readline()
"""


@pytest.mark.usefixtures("huge_tlb")
@pytest.mark.parametrize("program", [HUGE_TLB, TWO_HUGE_TLB], ids=["one mapping", "two side by side"])
def test_hugetlb_has_no_pte_pages(program: str) -> None:
    """PAGEMAP_SCAN tells of both mappings as one."""
    with Asked([sys.executable, "-I", "-c", program]) as process:
        while "anon_hugepage" not in Path(f"/proc/{process.pid}/maps").read_text():
            pass
        before = seen(process.pid).use
        assert process.ask() == "ok"
        after = growth(before, process.pid)
        process.kill()
    assert after.get("deposited", 0) == after.get("empty", 0) == 0


@pytest.mark.parametrize("shift", [0, 1, 511])
def test_spans_are_counted_as_a_plain_loop_counts_them(shift: int) -> None:
    rng = np.random.default_rng(shift)
    cuts = np.unique(rng.integers(0, 40 * 512, 300)) + shift
    categories = rng.choice([0, PAGE_IS_PRESENT, PAGE_IS_PRESENT | PAGE_IS_PFNZERO, PAGE_IS_GUARD], len(cuts) - 1)
    runs = [(a, b, c) for a, b, c in zip(cuts, cuts[1:], categories, strict=False) if c]
    columns = [np.array(column, dtype=np.int64) for column in zip(*runs, strict=True)]
    spans = count_spans(Entries(columns[0] * PAGE, columns[1] * PAGE, columns[2]))
    plain: dict[int, list[int]] = {}
    for first, last, bits in runs:
        for page in range(first, last):
            kind = 1 if bits & PAGE_IS_GUARD else 0 if bits & PAGE_IS_PFNZERO else 2
            plain.setdefault(page // 512, [0, 0, 0])[kind] += 1
    found = zip(spans.number.tolist(), spans.zero.tolist(), spans.guard.tolist(), spans.other.tolist(), strict=True)
    assert {number: counts for number, *counts in found} == plain


def test_cutting_is_what_a_plain_loop_does() -> None:
    rng = np.random.default_rng(2022)
    for _ in range(50):
        edges = np.unique(rng.integers(0, 200, 40)) * PAGE
        start, end = edges[:-1:2], edges[1::2]
        runs = Entries(start[: len(end)], end, rng.integers(0, 5, len(end)))
        borders = rng.integers(0, 200, rng.integers(0, 9)) * PAGE
        found = cut(runs, np.unique(borders))
        plain = []
        for first, last, kind in zip(runs.start, runs.end, runs.categories, strict=True):
            at = first
            for border in sorted({*borders.tolist()}):
                if at < border < last:
                    plain.append((at, border, kind))
                    at = border
            plain.append((at, last, kind))
        assert list(zip(found.start, found.end, found.categories, strict=True)) == plain


@pytest.mark.parametrize(
    "ranges",
    [
        [(0x1000, 0x2000)],
        [(0x1000, 0x2000), (0x2000, 0x9000), (1 << 40, (1 << 40) + 3 * WINDOW + 0x1000), (1 << 46, (1 << 46) + 0x1000)],
        [(USER_END - 0x21000, USER_END - 0x1000)],
        [],
    ],
)
def test_windows_hold_all_mappings_and_are_small(ranges: list[tuple[int, int]]) -> None:
    """PAGEMAP_SCAN holds the mmap_lock for as long as it finds nothing: over empty PTE pages, all of a window."""
    maps = [procmem.Map(start, end, "rw-p", 0, "00:00", 0, "") for start, end in ranges]
    found = list(procmem.windows(maps))
    assert all(0 < end - start <= WINDOW for start, end in found)
    assert all(one[1] <= other[0] for one, other in pairwise(found))
    for start, end in ranges:
        inside = sum(max(0, min(end, b) - max(start, a)) for a, b in found)
        assert inside == end - start


# -- known by the exact model -----------------------------------------------------------------------------------


class Watched(Execution):
    """An execution that scans each of its processes before they exit."""

    uses: dict[int, TableUse]

    def _end(self) -> None:
        self.uses = {pid: seen(process.real_pid).use for pid, process in self.processes.items()}
        super()._end()


@pytest.mark.parametrize("thp", [None, "always"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("family", ["anon", "mixed", "broad"])
def test_the_exact_model_says_the_same(family: str, seed: int, thp: str | None, tmp_path: Path, pterefd: Run) -> None:
    machine = Machine.this(cpu=max(os.sched_getaffinity(0)))
    with huge_pages(thp or "never"), swap_file(128):
        program = generate(family, seed, 100, machine.heap_start)
        execution = Watched(replace(machine, thp=thp), program)
        rows = execution.run()
    (tmp_path / "a.jsonl").write_bytes(encode(rows))
    done = pterefd("replay", "a.jsonl", "--profile", "auto", "--json")
    assert done.returncode == 0, done.stderr
    model = {mm["pid"]: mm for mm in json.loads(done.stdout)["files"][0]["mms"]}
    assert execution.uses
    for pid, use in execution.uses.items():
        assert use.vm_pte == model[pid]["VmPTE"] << 10
        assert use.zero == model[pid]["zero_bytes"]
        above = (use.empty - model[pid]["empty_bytes"]) // PAGE  # PMD and PUD pages that lead to no entry
        assert 0 <= above <= 6


# -- who may be seen --------------------------------------------------------------------------------------------


def test_what_is_not_there_and_what_has_no_memory() -> None:
    with pytest.raises(NoSuchMm, match=r"^4194304: no such process$"):
        scan(1 << 22)
    assert scan(2) is None  # kthreadd


def test_others_are_not_seen_without_rights() -> None:
    """As nobody, on a process of root: what is asked for is said to be not seen, and why."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        try:
            scan(os.getppid())
        except NotSeen as error:
            os.write(write_end, str(error).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(write_end)
    with open(read_end) as file:
        assert file.read() == f"{os.getpid()}: Permission denied: its entries are for its owner and for CAP_SYS_PTRACE"


LEADER_GONE = """
import ctypes, sys, threading
memory = bytearray(b"x") * (64 << 20)
def stay():
    sys.stdin.readline()
threading.Thread(target=stay).start()
print("ok", flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""


def test_a_process_whose_first_thread_has_exited(pterefd: Run) -> None:
    """Its own status has no memory any more; a thread's has."""
    with Asked([sys.executable, "-I", "-c", LEADER_GONE]) as process:
        assert process.stdout.readline() == "ok\n"
        while procmem.read_status(process.pid).state != "Z":
            pass
        use = seen(process.pid).use
        process.kill()
    assert use.pid == process.pid
    assert use.rss > 64 << 20
    assert use.vm_pte >= 32 * PAGE


@pytest.mark.parametrize(
    ("path", "device"),
    [
        ("/dev/mem", True),
        ("/sys/devices/pci0000:00/0000:00:02.0/resource0", True),
        ("/dmabuf:", True),
        ("anon_inode:[vfio-device]", True),
        ("/dev/zero (deleted)", False),
        ("/dev/shm/a", False),
        ("/memfd:a (deleted)", False),
        ("/usr/bin/python3.11", False),
        ("[heap]", False),
        ("", False),
    ],
)
def test_mappings_that_may_be_of_a_device_are_looked_at(path: str, device: bool) -> None:
    """PAGEMAP_SCAN passes over VM_PFNMAP, so that its tables would count as empty; only smaps tells."""
    assert _may_be_a_device(path) is device


STRANGE = """
import ctypes, sys
ctypes.CDLL(None).prctl(15, b"a\\xffb\\x1b[31m", 0, 0, 0)
print("ok", flush=True)
sys.stdin.readline()
"""


def test_names_of_any_bytes_are_shown(pterefd: Run) -> None:
    with Asked([sys.executable, "-I", "-c", STRANGE]) as process:
        assert process.stdout.readline() == "ok\n"
        as_json = pterefd("scan", str(process.pid), "--json", "--by", "comm")
        strict = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
        text = pterefd("scan", str(process.pid), env=strict)
        lines = pterefd("top", "--live", "-b", "-n", "1", "--budget", "100", env=strict)
        process.kill()
    assert json.loads(as_json.stdout)["processes"][0]["comm"] == "a\\xffb\\x1b[31m"
    for done in (text, lines):
        assert (done.returncode, done.stderr) == (0, "")
        assert "a\\xffb\\x1b[31m" in done.stdout


def test_who_is_there_is_shown_beside_who_is_not(grower: Grower, pterefd: Run) -> None:
    done = pterefd("scan", str(grower.pid), "4194304", "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 4
    assert [row["pid"] for row in report["processes"]] == [grower.pid]
    assert report["not_seen"] == ["4194304: no such process"]


def test_too_much_to_read_without_pagemap_scan(grower: Grower, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(procmem, "scan_abilities", lambda: 0)
    monkeypatch.setattr("pterefd.live.scan.READABLE_BYTES", 1 << 30)
    with pytest.raises(NotSeen, match=r"TiB are mapped, and without PAGEMAP_SCAN \(Linux 6\.7\)"):
        scan(grower.pid)


def test_the_pagemap_file_tells_the_same(grower: Grower, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of kernels before 6.7: zero pages by their frame."""
    grower.do("touch", 0, 3 * 512, 512)
    grower.do("advise", SPAN, PAGE, mmap.MADV_DONTNEED)
    grower.do("read", 10 * SPAN, 2 * 512, 1)
    grower.do("read", 20 * SPAN, 512, 256)
    new = seen(grower.pid).use
    monkeypatch.setattr(procmem, "scan_abilities", lambda: 0)
    assert seen(grower.pid).use == new


def test_cgroup_of_this_process() -> None:
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    assert any(line.endswith(f":{read_cgroup(os.getpid())}") for line in lines)


# -- why --------------------------------------------------------------------------------------------------------


def causes(pid: int) -> dict[str, Cause]:
    return {cause.kind: cause for cause in explain(seen(pid))}


def test_causes_are_named_with_what_they_cost(grower: Grower) -> None:
    before = causes(grower.pid)
    grower.do("touch", 0, 1, 1)
    grower.do("touch", 10 * SPAN, 30 * 512, 512)
    for span in range(10, 40):
        grower.do("advise", span * SPAN, PAGE, mmap.MADV_DONTNEED)
    grower.do("read", 50 * SPAN, 8 * 512, 1)
    grower.do("advise", 90 * SPAN, PAGE, MADV_GUARD_INSTALL)
    grower.do("touch", 100 * SPAN, 512, 1)
    grower.do("advise", 100 * SPAN, SPAN, mmap.MADV_FREE)
    after = causes(grower.pid)
    assert after["empty"].bytes - (before["empty"].bytes if "empty" in before else 0) == 30 * PAGE
    assert any(start <= grower.arena < end for start, end in after["empty"].places)
    assert after["zero"].bytes == 8 * PAGE
    start = grower.arena + 50 * SPAN
    assert after["zero"].places[0] == (start, start + 8 * SPAN)
    assert after["guard"].bytes == PAGE
    lazy = re.match(r"(\d+) kB were given back with MADV_FREE", after["lazyfree"].why)
    assert lazy is not None
    assert 2048 - 4 * BATCH <= int(lazy[1]) <= 2048
    assert after["empty"].why.startswith("pages were given back in pieces smaller than 2 MiB")


# -- the command ------------------------------------------------------------------------------------------------


def test_command(grower: Grower, pterefd: Run) -> None:
    grower.do("touch", 0, 1, 1)
    grower.do("read", 50 * SPAN, 8 * 512, 1)
    done = pterefd("scan", str(grower.pid), "--json", "--explain", "--by", "comm")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    (row,) = report["processes"]
    assert row["pid"] == grower.pid
    assert row["zero"] == 8 * PAGE
    assert row["reclaimable"] == row["empty"] + row["zero"]
    assert [cause["bytes"] for cause in row["explain"] if cause["kind"] == "zero"] == [8 * PAGE]
    assert report["groups"][0]["zero"] == 8 * PAGE
    text = pterefd("scan", str(grower.pid), "--explain").stdout
    assert re.search(rf"^ +{grower.pid}  python", text, re.MULTILINE)
    assert "zero 32 KiB: every page of these spans was read before it was written" in text


def test_command_sees_every_process(grower: Grower, pterefd: Run) -> None:
    done = pterefd("scan", "--all", "--json")
    report = json.loads(done.stdout)
    assert grower.pid in {row["pid"] for row in report["processes"]}
    assert done.returncode == (4 if report["not_seen"] else 0)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "which processes? PID... or --all (see 'pterefd scan --help')"),
        (("1", "--all"), "which processes? PID... or --all (see 'pterefd scan --help')"),
        (("4194304",), "4194304: no such process"),
        (("2",), "2: no memory of its own: a kernel thread, or a process that has ended"),
    ],
)
def test_mistakes_are_one_line(args: tuple[str, ...], message: str, pterefd: Run) -> None:
    done = pterefd("scan", *args)
    assert (done.returncode, done.stderr) == (2, f"pterefd: {message}\n")
