"""Clients that hold their files open and rewind: they see a replay go on; and what such a file looks like."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from tests.clients.simulated import Simulated, daemon, public_directory, rows
from tests.house import AT, MIB, exec_, fault, mmap, write_trace

pytestmark = pytest.mark.mount

PID, SWAPPING = 7, 50
STEP_NS = 40_000_000  # a MiB is written every 40 ms, for 40 seconds
STEPS = 1000
LEAST = 2 << 10  # kB that are written between two reports, however busy the machine; it should be 25 MiB a second


def _growing(pid: int, comm: str) -> list[dict[str, Any]]:
    events = [exec_(1, "init"), exec_(pid, comm, cmdline=[comm]), mmap(pid, AT, STEPS * MIB)]
    return events + [{**fault(pid, AT + i * MIB, MIB, write=True), "t": i * STEP_NS} for i in range(1, STEPS)]


@pytest.fixture(scope="module")
def growing() -> Iterator[Simulated]:
    """A host on which one process grows in memory, and one in swap, since its group has little memory."""
    with public_directory() as directory:
        write_trace(directory / "memory.jsonl", _growing(PID, "growing"))
        write_trace(directory / "swap.jsonl", _growing(2, "swapping"))
        path = directory / "pterefd.toml"
        path.write_text(
            f"""
[daemon]
mount = "{directory}/mnt"
[metrics]
address = "off"
[host]
memory = "2GiB"
swap = "2GiB"
[replay]
traces = ["memory.jsonl"]
[[group]]
name = "small"
limit = "8MiB"
[[mm]]
trace = "swap.jsonl"
group = "small"
pid_base = {SWAPPING - 2}
"""
        )
        with daemon(directory, path) as running:
            deadline = time.monotonic() + 200
            while not (running.mount / str(SWAPPING)).exists() or running.swapped(SWAPPING) == 0:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield running


@pytest.mark.client("vmstat 1 3", "procps", "so and bo of the second and third line while a replay swaps")
def test_vmstat_sees_swapping(growing: Simulated) -> None:
    """Its memory columns do not change from line to line: procps 4.0.2 reads meminfo for the first one alone."""
    columns, _, *lines = rows(growing.in_shell("vmstat", "1", "3"), "procs")
    assert len(lines) == 2
    for line in lines:
        said = dict(zip(columns, map(int, line), strict=True))
        assert said["so"] == said["bo"] >= LEAST
        assert said["si"] == 0


@pytest.mark.client("top -b -n 2", "procps", "RES of a growing process, in two reports")
def test_top_sees_a_process_grow(growing: Simulated) -> None:
    text = growing.in_shell("top", "-b", "-n", "2", "-d", "1", "-E", "k", "-e", "k")
    sizes = [int(line.split()[5]) for line in text.splitlines() if line.split()[-1:] == ["growing"]]
    assert len(sizes) == 2
    assert sizes[1] - sizes[0] >= LEAST
    assert sizes[0] % (1 << 10) == 0


@pytest.mark.client("free -s", "procps", "free memory and free swap fall from report to report")
def test_free_sees_memory_go(growing: Simulated) -> None:
    """It reads meminfo once a second at most."""
    text = growing.in_shell("free", "-k", "-s", "1.1", "-c", "3")
    for name in ("Mem:", "Swap:"):
        free = [int(line.split()[3]) for line in text.splitlines() if line.startswith(name)]
        assert len(free) == 3
        assert all(before - after >= LEAST for before, after in pairwise(free))


def test_a_held_descriptor_is_rendered_anew_at_offset_0_alone(growing: Simulated) -> None:
    """And its size is 0, as that of the kernel's own files."""
    fd = os.open(growing.mount / f"{PID}/statm", os.O_RDONLY)
    try:
        assert os.fstat(fd).st_size == 0
        first = os.read(fd, 4096)
        resident = int(first.split()[1])
        deadline = time.monotonic() + 30
        while True:
            os.lseek(fd, 0, os.SEEK_SET)
            begin = os.read(fd, 3)
            rest = os.read(fd, 4096)
            now = int((begin + rest).split()[1])
            if now > resident:
                break
            assert time.monotonic() < deadline
        later = os.pread(fd, 4096, 3)
        assert later == rest  # of the same snapshot, while the process grows on
    finally:
        os.close(fd)
