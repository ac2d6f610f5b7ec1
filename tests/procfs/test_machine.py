"""Files of the whole machine: what its mms hold and did, in the kernel's lines."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from pterefd.host.memory import Memory
from pterefd.procfs.root import proc_tree
from pterefd.procfs.tree import Tree
from tests.house import AT, MIB, SPAN, Event, exec_, fault, house, mmap

PAGE = 4096
GIB = 1 << 30
TOTAL = 64 * MIB
SWAP = 32 * MIB


def read(tree: Tree, path: str) -> str:
    return tree.open(path, os.O_RDONLY).read(1 << 24, 0).decode()


def meminfo(tree: Tree) -> dict[str, int]:
    return {line.split(":")[0]: int(line.split()[1]) for line in read(tree, "/meminfo").splitlines()}


def vmstat(tree: Tree) -> dict[str, int]:
    return {name: int(value) for name, value in map(str.split, read(tree, "/vmstat").splitlines())}


EVENTS: list[Event] = [
    *(
        exec_(1, "one"),
        mmap(1, AT, 8 * SPAN),
        fault(1, AT, 6 * MIB, write=True),
        fault(1, AT + 4 * SPAN, PAGE, write=False),
    ),
    {"op": "fork", "pid": 1, "child": 2},
    mmap(1, 0x400000, 5 * PAGE, prot="r--", flags="private", path="/lib/x", offset=0, file_size=5 * PAGE),
    fault(1, 0x400000, 5 * PAGE, write=False),
    {"op": "thread", "pid": 2, "tid": 9},
]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return proc_tree(house(tmp_path, EVENTS, Memory(TOTAL, swap_bytes=SWAP)).faces)


def test_meminfo(tree: Tree) -> None:
    here = meminfo(tree)
    # 4 spans of a fork's parent, 1 of them with the zero page; fork copies what is not empty; PMD, PUD page each
    tables = sum(int(read(tree, f"/{pid}/pt_reclaim/pgtables_bytes")) for pid in (1, 2)) >> 10
    assert here["PageTables"] == tables > 0
    assert here["AnonPages"] == 2 * 6 * 1024  # the sum of RssAnon: both map them
    assert here["Cached"] == here["Mapped"] == 20
    assert (here["MemTotal"], here["SwapTotal"], here["SwapFree"]) == (TOTAL >> 10, SWAP >> 10, SWAP >> 10)
    # what is charged is charged once
    assert here["MemFree"] == (TOTAL >> 10) - 6 * 1024 - 20 - tables
    assert 0 < here["MemAvailable"] <= here["MemFree"] + 20


def test_keys_are_the_kernels(tree: Tree) -> None:
    theirs = re.findall(r"^([\w()]+):", Path("/proc/meminfo").read_text(), re.MULTILINE)
    ours = list(meminfo(tree))
    assert [key for key in ours if key in theirs] == [key for key in theirs if key in ours]
    assert set(ours) - set(theirs) <= {
        "Zswap",
        "NFS_Unstable",
        "WritebackTmp",
        "Bounce",
        "AnonHugePages",
        "ShmemHugePages",
    }
    kernels = {line.split()[0] for line in Path("/proc/vmstat").read_text().splitlines()}
    assert vmstat(tree).keys() - kernels <= {"pgsteal_kswapd", "pgscan_kswapd"}
    width = len("MemTotal:       24606328 kB")
    assert len(read(tree, "/meminfo").splitlines()[0]) == width


def test_vmstat_counts_faults(tree: Tree) -> None:
    here = vmstat(tree)
    assert here["pgfault"] == 6 * 256 + 1 + int(read(tree, "/2/stat").rpartition(") ")[2].split()[7]) + 5 - 4
    assert here["nr_page_table_pages"] * 4 == meminfo(tree)["PageTables"]
    assert (here["oom_kill"], here["pswpout"]) == (0, 0)


def test_a_kill_and_swapping_are_counted(tmp_path: Path) -> None:
    events: list[Event] = [
        *(exec_(1, "small"), mmap(1, AT, SPAN), fault(1, AT, PAGE, write=True)),
        exec_(2, "large"),
        *(
            event
            for i in range(5)
            for event in (mmap(2, AT + i * GIB, 40 * MIB), fault(2, AT + i * GIB, 40 * MIB, write=True))
        ),
    ]
    tree = proc_tree(house(tmp_path, events, Memory(TOTAL, swap_bytes=SWAP)).faces)
    here = vmstat(tree)
    assert here["oom_kill"] == 1
    assert here["pswpout"] >= (SWAP >> 12) - 64
    assert here["allocstall_normal"] > 0
    some, full = read(tree, "/pressure/memory").splitlines()
    match = re.fullmatch(r"some avg10=\d+\.\d\d avg60=\d+\.\d\d avg300=\d+\.\d\d total=(\d+)", some)
    assert match is not None
    assert int(match[1]) > 0
    assert full.replace("full", "some") == some


def test_stat_and_loadavg(tree: Tree) -> None:
    text = read(tree, "/stat")
    assert re.search(r"^processes 2$", text, re.MULTILINE)  # a fork and a thread
    assert read(tree, "/loadavg") == "0.00 0.00 0.00 0/5 2\n"  # three, and two of the kernel's own
    seconds, idle = map(float, read(tree, "/uptime").split())
    assert seconds == idle
    assert read(tree, "/swaps").splitlines()[1].split() == ["/swap", "partition", str(SWAP >> 10), "0", "-2"]


def test_zoneinfo_has_the_marks(tree: Tree) -> None:
    found = dict(
        re.findall(r"^ +(free|pages free|min|low|high|managed) +(\d+)$", read(tree, "/zoneinfo"), re.MULTILINE)
    )
    assert int(found["managed"]) == TOTAL // PAGE
    assert int(found["min"]) < int(found["low"]) < int(found["high"])
    assert int(found["pages free"]) * 4 == meminfo(tree)["MemFree"]


def test_a_host_without_memory_has_what_oom_score_is_a_share_of(tmp_path: Path) -> None:
    tree = proc_tree(house(tmp_path, EVENTS).faces)
    here = meminfo(tree)
    assert here["MemTotal"] == 4 << 30
    assert here["MemTotal"] - here["MemFree"] == here["AnonPages"] + here["Mapped"] + here["PageTables"]


def test_the_kernel_is_the_profiles(tree: Tree) -> None:
    assert read(tree, "/sys/kernel/osrelease") == "5.19.0-rfc-2022\n"
    assert read(tree, "/version").startswith("Linux version 5.19.0-rfc-2022 ")
