"""Transparent huge pages set as a run of the oracle wants them, for as long as a block runs.

A setting is written as a trace's `thp` has it: the mode (`never`, `madvise`, `always`), then, after commas,
`no-zero-page`, `2048kB=never`, and the smaller sizes that are on: `64kB=madvise`, `16kB=always`.
"""

from __future__ import annotations

import fcntl
import mmap
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pterefd.live.machine import PMD_KB, THP, read_setting, thp_setting
from pterefd.live.machine import thp_sizes as sizes

SYSFS = THP
QUIET = {"khugepaged/pages_to_scan": "1", "khugepaged/scan_sleep_millisecs": "3600000"}


def wanted_files(setting: str) -> dict[str, str]:
    """Name under SYSFS -> value of a setting. ValueError where it is not one of this kernel's."""
    mode, *words = setting.split(",")
    wanted = {"enabled": mode, "use_zero_page": "1"}
    wanted |= {f"hugepages-{size}kB/enabled": "inherit" if size == PMD_KB else "never" for size in sizes()}
    for word in words:
        size, _, value = word.partition("=")
        name = "use_zero_page" if word == "no-zero-page" else f"hugepages-{size}/enabled"
        if name not in wanted:
            raise ValueError(f"{setting!r}: no {word!r} here")
        wanted[name] = value or "0"
    return wanted


@contextmanager
def _alone() -> Iterator[None]:
    """One run at a time: the settings are the whole machine's."""
    with Path(tempfile.gettempdir(), "pterefd-oracle-thp.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _written(values: dict[str, str]) -> Iterator[None]:
    """These values, put back afterwards, last first."""
    before: list[tuple[str, str]] = []
    try:
        for name, value in values.items():
            old = read_setting(name)
            if old != value:
                before.append((name, old))
                (SYSFS / name).write_text(value)
        yield
    finally:
        for name, old in reversed(before):
            (SYSFS / name).write_text(old)


@contextmanager
def _known_to_khugepaged() -> Iterator[None]:
    """This process on khugepaged's list: it scans at once what comes onto an empty one (__khugepaged_enter)."""
    with mmap.mmap(-1, 4 * PMD_KB << 10, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory[0] = 1  # a mapping without an anon_vma is not for khugepaged
        memory.madvise(mmap.MADV_HUGEPAGE)
        yield


def _settled() -> None:
    """Wait until khugepaged sleeps: each of these settings wakes it for one scan, which could take a new program."""
    deadline = time.monotonic() + 10
    asleep = 0  # looks in a row: a thread that is about to sleep may still find that it is wanted
    while asleep < 3:
        asleep = 0 if any(state in "RD" for state in _states_of("khugepaged")) else asleep + 1
        if time.monotonic() > deadline:
            raise TimeoutError("khugepaged does not come to rest")
        time.sleep(0.002)


def _states_of(name: str) -> list[str]:
    """The letters of /proc/PID/stat of every process of this name."""
    states = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            comm, _, rest = path.read_text(errors="replace").partition(" (")[2].rpartition(") ")
            if comm == name:
                states.append(rest[0])
    return states


def refused_splits() -> int:
    """Huge pages that the kernel left whole, since the boot: somebody held the folio (mm/huge_memory.c folio_split)."""
    rows = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return int(rows.get("thp_split_page_failed", 0))


@contextmanager
def huge_pages(setting: str) -> Iterator[None]:
    """Set them so, keep khugepaged quiet, and put all of it back. OSError where that is not allowed."""
    with ExitStack() as stack:
        stack.enter_context(_alone())
        stack.enter_context(_written(QUIET | wanted_files(setting)))
        if setting.partition(",")[0] != "never":
            stack.enter_context(_known_to_khugepaged())
        _settled()
        assert thp_setting() == setting, f"{setting} was asked for, {thp_setting()} is here"
        yield
