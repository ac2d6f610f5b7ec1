"""When memory is short: the kernel's own files, changed ones of the same format, a cgroup at its limit."""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pterefd.hookspecs import Cause
from pterefd.live.memory import Zone, missing_bytes, parse_zones, read_usage, read_zones
from pterefd.live.pressure import Cgroups, Short, Stalls, find_cgroups, machine_short
from tests.cgroup import memory_limit
from tests.live.grower_process import MIB, PAGE

pytestmark = pytest.mark.kernel

# Of a machine with two nodes, by mm/vmstat.c zoneinfo_show_print: the first with 2 zones that have pages.
ZONEINFO = """\
Node 0, zone      DMA
  per-node stats
      nr_inactive_anon 32376
  pages free     {dma}
        boost    0
        min      10
        low      20
        high     30
        promo    40
        spanned  4095
        present  3998
        managed  3840
        cma      0
        protection: (0, 0, 100, 100)
      nr_free_pages 3840
  pagesets
    cpu: 0
              count:    0
              high:     13
              batch:    1
Node 0, zone    DMA32
  pages free     0
        boost    0
        min      0
        low      0
        high     0
        promo    0
        spanned  0
        present  0
        managed  0
        cma      0
        protection: (0, 0, 0, 0)
Node 0, zone   Normal
  pages free     {normal}
        boost    0
        min      1000
        low      2000
        high     3000
        promo    4000
        spanned  100000
        present  100000
        managed  99000
        cma      0
        protection: (0, 0, 0, 0)
      nr_free_pages 1
  pagesets
    cpu: 0
              count:    5
              high:     999
  node_unreclaimable:  0
  start_pfn:           1048576
Node 1, zone   Normal
  pages free     {other}
        min      500
        low      600
        high     700
        managed  50000
        protection: (0, 0, 0, 0)
"""


def zones(dma: int = 3840, normal: int = 50000, other: int = 40000) -> list[Zone]:
    return parse_zones(ZONEINFO.format(dma=dma, normal=normal, other=other))


def test_zones_that_have_pages() -> None:
    assert zones() == [
        Zone(0, 0, "DMA", 3840, 10, 20, 30, 3840, (0, 0, 100, 100)),
        Zone(0, 2, "Normal", 50000, 1000, 2000, 3000, 99000, (0, 0, 0, 0)),
        Zone(1, 0, "Normal", 40000, 500, 600, 700, 50000, (0, 0, 0, 0)),
    ]


@pytest.mark.parametrize(
    ("free", "pages"),
    [
        ({}, 0),
        ({"normal": 1999}, 0),  # the small zone can still serve
        ({"dma": 119, "normal": 2000}, 0),
        ({"dma": 119, "normal": 1999}, (130 - 119) + (3000 - 1999)),  # 100 of it are kept for who needs the small zone
        ({"other": 599}, 101),  # each node has its own kswapd
        ({"dma": 0, "normal": 0, "other": 0}, 130 + 3000 + 700),
    ],
)
def test_missing_is_what_kswapd_would_want(free: dict[str, int], pages: int) -> None:
    assert missing_bytes(zones(**free)) == pages * PAGE


def test_this_machine() -> None:
    """Its zones hold its memory, their marks are its knob's, and it has more than is needed for a test."""
    found = read_zones()
    usage = read_usage()
    assert usage.total == sum(zone.managed for zone in found) * PAGE == os.sysconf("SC_PHYS_PAGES") * PAGE
    least = int(Path("/proc/sys/vm/min_free_kbytes").read_text()) << 10
    assert abs(usage.min - least) <= len(found) * PAGE * 2
    assert usage.min < usage.low < usage.high < usage.free
    assert machine_short(set()) == []


def test_a_machine_whose_zones_are_low_is_short(tmp_path: Path) -> None:
    """This machine's own text, with little free."""
    text = Path("/proc/zoneinfo").read_text()
    (tmp_path / "zoneinfo").write_text(re.sub(r"pages free +\d+", "pages free     0", text))
    shutil.copy("/proc/meminfo", tmp_path / "meminfo")
    (low,) = machine_short(set(), tmp_path)
    assert (low.cause, low.group) == (Cause.LOW, None)
    assert low.bytes >= read_usage(tmp_path).high
    assert machine_short({Cause.LOW}, tmp_path) == [low]
    assert machine_short({Cause.OOM}, tmp_path) == [low, low._replace(cause=Cause.OOM)]


def test_who_waits_although_there_is_memory_wants_as_much_as_kswapd_takes() -> None:
    usage = read_usage()
    assert machine_short({Cause.LOW}) == [Short(Cause.LOW, None, usage.high)]
    assert machine_short({Cause.OOM}) == [Short(Cause.OOM, None, usage.high)]


# -- pressure stall information -------------------------------------------------------------------

THRASH = """
import mmap, os, sys
open(sys.argv[1], "w").write(str(os.getpid()))
with open(sys.argv[2], "rb") as file:
    memory = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
print("ok", flush=True)
while True:
    for at in range(0, len(memory), 4096):
        memory[at]
"""


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A memory cgroup that has 24 MiB."""
    with memory_limit() as (limit, _):
        limit.write_text(str(24 * MIB))
        yield limit.parent


def test_tasks_that_wait_for_memory_raise_a_trigger(small_group: Path, tmp_path: Path) -> None:
    """A process that reads a file over and over that its cgroup has no room for."""
    stalls = Stalls()
    assert stalls.refused == []
    poll = select.poll()
    stalls.register(poll)
    assert stalls.raised(poll.poll(0)) == set()
    file = tmp_path / "file"
    file.write_bytes(os.urandom(MIB) * 96)
    with file.open("rb") as written:
        os.fsync(written.fileno())
        os.posix_fadvise(written.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # or another cgroup has it
    process = subprocess.Popen([sys.executable, "-c", THRASH, small_group / "cgroup.procs", file])
    try:
        raised: set[Cause] = set()
        for _ in range(60):
            raised |= stalls.raised(poll.poll(1000))
            if Cause.LOW in raised:
                break
        assert Cause.LOW in raised
    finally:
        process.kill()
        process.wait()
        stalls.close()


def test_where_there_is_no_pressure_file_it_is_said(tmp_path: Path) -> None:
    stalls = Stalls(tmp_path / "memory")
    assert len(stalls.refused) == 2
    assert stalls.refused[0] == f"{tmp_path}/memory: no trigger `some 150000 1000000`: No such file or directory"


# -- memory.events of cgroup v2, as Documentation/admin-guide/cgroup-v2.rst has it --------------------


def events(directory: Path, name: str = "memory.events", **counts: int) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    all_of_them = {"low": 0, "high": 0, "max": 0, "oom": 0, "oom_kill": 0, "oom_group_kill": 0} | counts
    (directory / name).write_text("".join(f"{key} {value}\n" for key, value in all_of_them.items()))


def test_events_that_rise_are_told_once(tmp_path: Path) -> None:
    web = tmp_path / "system.slice" / "web.service"
    events(web, high=5, oom=1)
    events(tmp_path / "system.slice")
    cgroups = Cgroups(tmp_path)
    groups = ["/system.slice/web.service", "/gone"]
    assert cgroups.short(groups) == []  # what was before is past
    events(web, high=6, oom=1)
    (web / "memory.high").write_text("1048576\n")
    (web / "memory.current").write_text("1064960\n")
    assert cgroups.short(groups) == [Short(Cause.LOW, "/system.slice/web.service", 16384)]
    assert cgroups.short(groups) == []
    (web / "memory.high").write_text("max\n")
    events(web, high=6, max=2, oom=2)
    assert cgroups.short(groups) == [
        Short(Cause.LOW, "/system.slice/web.service", PAGE),
        Short(Cause.OOM, "/system.slice/web.service", PAGE),
    ]


def test_the_cgroup_whose_limit_it_was_is_told(tmp_path: Path) -> None:
    """memory.events counts what is below, too; memory.events.local does not."""
    web = tmp_path / "a" / "web"
    for count in (0, 1):
        events(tmp_path / "a", max=count)
        events(tmp_path / "a", "memory.events.local", max=count)
        events(web, max=0)
        if not count:
            cgroups = Cgroups(tmp_path)
            assert cgroups.short(["/a/web"]) == []
    assert cgroups.short(["/a/web"]) == [Short(Cause.LOW, "/a", PAGE)]
    events(tmp_path / "a", max=2)
    assert cgroups.short(["/a/web"]) == []


def test_limits(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "memory.max").write_text("33554432\n")
    assert Cgroups(tmp_path).limit("/a") == 32 * MIB
    (tmp_path / "a" / "memory.max").write_text("max\n")
    assert Cgroups(tmp_path).limit("/a") == 0
    assert Cgroups(None).limit("/a") == 0
    assert Cgroups(None).short(["/a"]) == []


def test_where_cgroups_are(tmp_path: Path) -> None:
    """proc_pid_mountinfo(5); a tree without the memory controller is of no use."""
    one, two = tmp_path / "one", tmp_path / "tw o"
    for root, controllers in ((one, "cpu pids"), (two, "cpu memory pids")):
        root.mkdir()
        (root / "cgroup.controllers").write_text(controllers + "\n")
    shown = str(two).replace(" ", "\\040")
    text = (
        f"31 24 0:27 / {one} rw,nosuid shared:9 - cgroup2 cgroup2 rw\n"
        f"32 24 0:28 / {shown} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
        "33 24 0:29 / /sys rw - sysfs sysfs rw\n"
    )
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text(text.splitlines(keepends=True)[0])
    assert find_cgroups(mountinfo) is None
    mountinfo.write_text(text)
    assert find_cgroups(mountinfo) == two
    assert find_cgroups(tmp_path / "none") is None
