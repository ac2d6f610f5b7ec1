"""A host's memory against the running kernel's: watermarks of its zones, oom_score of its processes."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pterefd.host.memory import Marks, Zone, oom_badness, oom_score, zone_watermarks

MIN_FREE = Path("/proc/sys/vm/min_free_kbytes")
SCALE = Path("/proc/sys/vm/watermark_scale_factor")
HOLDER = """
import ctypes, mmap, sys
size = int(sys.argv[1]) << 20
m = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for at in range(0, size, 4096): m[at] = 1
print("ready", flush=True)
sys.stdin.read()
"""


def zoneinfo() -> dict[str, dict[str, int]]:
    """Of each zone with memory: managed, boost, min, low, high, as /proc/zoneinfo says."""
    zones: dict[str, dict[str, int]] = {}
    name = ""
    for line in Path("/proc/zoneinfo").read_text().splitlines():
        header = re.match(r"Node 0, zone +(\w+)", line)
        if header:
            name = header[1]
            zones[name] = {}
        elif (field := re.match(r" +(managed|boost|min|low|high|promo) +(\d+)$", line)) and name:
            zones[name].setdefault(field[1], int(field[2]))
    return {zone: fields for zone, fields in zones.items() if fields.get("managed")}


@pytest.fixture
def knobs() -> Iterator[None]:
    """min_free_kbytes and watermark_scale_factor are as they were, whatever the test did."""
    before = [(path, path.read_text()) for path in (MIN_FREE, SCALE)]
    yield
    for path, text in before:
        path.write_text(text)


@pytest.mark.parametrize("scale", [10, 100])
@pytest.mark.parametrize("kbytes", [8192, 20000, 67584, 131071])
@pytest.mark.usefixtures("knobs")
def test_watermarks_are_those_of_zoneinfo(kbytes: int, scale: int) -> None:
    MIN_FREE.write_text(str(kbytes))
    SCALE.write_text(str(scale))
    for _ in range(5):  # memory that is hot-added meanwhile changes both
        real = zoneinfo()
        zones = [Zone(name, fields["managed"]) for name, fields in real.items()]
        if zoneinfo() == real:
            break
    ours = zone_watermarks(zones, kbytes, scale)
    # a boost (watermark_boost_factor) stands in all three until kswapd takes it off
    theirs = [tuple(f[mark] - f.get("boost", 0) for mark in ("min", "low", "high")) for f in real.values()]
    assert [marks[:3] for marks in ours] == theirs
    assert ours[0] == Marks(*theirs[0], theirs[0][2] + theirs[0][2] - theirs[0][1])


def status(pid: int) -> dict[str, int]:
    """Numbers of /proc/PID/status, in kB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith(" kB")}


@pytest.mark.parametrize(("mib", "adj"), [(200, 0), (500, 100), (1024, 7), (2048, 0), (4096, 333), (256, 999)])
def test_oom_score_is_the_kernels(mib: int, adj: int) -> None:
    memory = {line.split(":")[0]: int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines()}
    total = (memory["MemTotal"] + memory["SwapTotal"]) // 4
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(mib)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        Path(f"/proc/{holder.pid}/oom_score_adj").write_text(str(adj))
        seen = status(holder.pid)
        score = int(Path(f"/proc/{holder.pid}/oom_score").read_text())
        holder.communicate()
    rss = (seen["RssAnon"] + seen["RssFile"] + seen["RssShmem"]) // 4
    badness = oom_badness(rss, seen["VmSwap"] // 4, seen["VmPTE"] // 4, adj, total)
    assert oom_score(badness, total) == score
