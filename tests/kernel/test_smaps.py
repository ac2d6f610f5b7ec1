"""smaps against the running kernel's: random programs run on both, then compared mapping by mapping."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pterefd.host.host import Host
from pterefd.host.memory import Memory
from pterefd.mm.smaps import PSS_SHIFT
from pterefd.reenact.agent import LocalProcess
from pterefd.session.check import profile_for
from pterefd.session.feed import Feed
from pterefd.source.trace import open_trace

from .execute import Execution, Machine, Row
from .generate import FAMILIES, HUGE_FAMILIES, MERGE_FAMILIES, generate
from .hugepages import huge_pages
from .oracle import LIMITS, encode
from .swapfile import swap_file

PLENTY = 64 << 30
AGENTS_END = 1 << 32  # below it the agent itself is mapped
PROGRAMS = 10  # of each family
FOLIO_BATCH = 31
Block = dict[str, int]


class Watched(Execution):
    """A run that reads smaps of every process when all is done. rows ends before the first exit then."""

    def _end(self) -> None:
        self.smaps = {
            pid: (Path(f"/proc/{process.real_pid}/smaps").read_text())
            for pid, process in self.processes.items()
            if isinstance(process, LocalProcess)
        }
        self.last = len(self.rows)
        super()._end()


def blocks(text: str) -> dict[tuple[int, int], Block]:
    """(start, end) -> kB by key."""
    found: dict[tuple[int, int], Block] = {}
    for line in text.splitlines():
        if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            block = found[int(match[1], 16), int(match[2], 16)] = {}
        elif match := re.match(r"(\w+): +(\d+) kB$", line):
            block[match[1]] = int(match[2])
    return found


def ours(tmp_path: Path, rows: list[Row]) -> Host:
    """The model after the same. A host with memory does its own swapping, so one without replays what went to swap."""
    trace = tmp_path / "trace.jsonl"
    trace.write_bytes(encode(rows))
    source = open_trace(trace)
    memory = None if any(row["op"] == "swap_out" for row in rows) else Memory(PLENTY)
    host = Host(profile_for(source, "auto"), limits=LIMITS, memory=memory)
    feed = Feed(source, host)
    for batch in source.batches():
        feed.run(batch, 0, len(batch))
    return host


# key of smaps -> what is compared with it
SAME = {
    "Size": lambda row, sums: row.end - row.start,
    "Rss": lambda _, sums: sums.rss,
    "Pss": lambda _, sums: sums.pss >> PSS_SHIFT,
    "Shared": lambda _, sums: sums.shared_clean + sums.shared_dirty,
    "Private": lambda _, sums: sums.private_clean + sums.private_dirty,
    "Anonymous": lambda _, sums: sums.anonymous,
    "AnonHugePages": lambda _, sums: sums.anon_huge,
    "Swap": lambda _, sums: sums.swap,
    "SwapPss": lambda _, sums: sums.swap_pss >> PSS_SHIFT,
    "Locked": lambda _, sums: sums.locked >> PSS_SHIFT,
}


NOT_KNOWN = {"Pss", "Shared", "Private", "SwapPss", "Locked"}  # of what fork shares, without accounts of memory


def differences(execution: Watched, host: Host) -> tuple[int, list[str]]:
    """How many mappings were compared, and what differs.

    The agents' own mappings are left out: the programs that they are go on writing to them.
    """
    compared, found = 0, []
    for pid, text in execution.smaps.items():
        theirs = blocks(text)
        for row, sums in host.walks.smaps(pid):
            if row.start < AGENTS_END or row.path == "[stack]":
                continue
            block = theirs[row.start, row.end]
            for kind in ("Shared", "Private"):
                block[kind] = block[f"{kind}_Clean"] + block[f"{kind}_Dirty"]
            keys = SAME.keys() - (NOT_KNOWN if host.memory is None else set())
            wanted = {key: block[key] for key in keys}
            got = {key: SAME[key](row, sums) >> 10 for key in keys}
            if execution.machine.thp is None:
                # pages become lazyfree in batches, a CPU's own (mm/swap.c folio_batch); of large folios it is not kept
                assert block["LazyFree"] <= sums.lazyfree >> 10 <= block["LazyFree"] + 4 * FOLIO_BATCH
            compared += 1
            if got != wanted:
                differing = {key: (wanted[key], got[key]) for key in wanted if wanted[key] != got[key]}
                found.append(f"{execution.program.family} {execution.program.seed}: pid {pid} {row}: {differing}")
    return compared, found


def run(tmp_path: Path, family: str, seed: int, thp: str | None = None) -> tuple[int, list[str]]:
    machine = Machine(Machine.this().kernel, thp=thp)
    execution = Watched(machine, generate(family, seed, 80, machine.heap_start))
    execution.run()
    return differences(execution, ours(tmp_path, execution.rows[: execution.last]))


@pytest.mark.kernel
@pytest.mark.parametrize("family", sorted(FAMILIES | MERGE_FAMILIES))
def test_smaps(family: str, tmp_path: Path) -> None:
    with swap_file(64):
        results = [run(tmp_path, family, seed) for seed in range(PROGRAMS)]
    assert [text for _, texts in results for text in texts] == []
    assert sum(n for n, _ in results) >= PROGRAMS


@pytest.mark.kernel
@pytest.mark.parametrize("family", sorted(HUGE_FAMILIES))
def test_smaps_with_huge_pages(family: str, tmp_path: Path) -> None:
    with swap_file(64), huge_pages("always"):
        results = [run(tmp_path, family, seed, "always") for seed in range(PROGRAMS)]
    assert [text for _, texts in results for text in texts] == []
    assert sum(n for n, _ in results) >= PROGRAMS
