"""A process's memory, read while it stands still."""

from __future__ import annotations

import contextlib
import os
import stat

from pterefd.live import procmem
from pterefd.live.procmem import Entries, Map
from pterefd.source.record.marks import Snapshot


def read_snapshot(
    tid: int, *, attached: bool, flags: dict[int, frozenset[str]] | None = None
) -> tuple[Snapshot, Entries]:
    """Owner, mappings and entries of the mm of a task that stands still.

    attached: the process has lived for a while: flags that its calls may have set count too, and the tables that hold
    nothing are counted.  flags: VmFlags that were read a moment ago (reading them takes long); read again where the
    mappings are others by now.
    """
    status = procmem.read_status(tid)
    maps = procmem.read_maps(tid)
    entries = procmem.read_entries(tid, maps)
    snapshot = Snapshot(
        comm=status.name,
        cmdline=procmem.command_line(tid),
        uid=status.uid,
        gid=status.gid,
        oom_score_adj=procmem.oom_score_adj(tid),
        maps=maps,
        state=entries.state_rows(shmem_ranges(maps)),
        sizes=file_sizes(tid, maps),
    )
    with contextlib.suppress(OSError):
        snapshot.brk_start = procmem.start_brk(tid)
    if attached:
        known = flags is not None and flags.keys() >= {mapping.start for mapping in maps}
        snapshot.flags = flags if known and flags is not None else procmem.read_vm_flags(tid)
        snapshot.thp_disabled = status.thp_disabled
        snapshot.unlocated = max(0, status.kb.get("VmPTE", 0) // 4 - entries.tables())
    return snapshot, entries


def is_shmem(mapping: Map) -> bool:
    """Whether the mapping's file is one of shmem's without a name of its own (/dev/shm is told by its device)."""
    return mapping.path.startswith(("/dev/zero (deleted)", "/SYSV", "/memfd:", "/anon_hugepage"))


def shmem_ranges(maps: list[Map]) -> list[tuple[int, int]]:
    """Ranges whose file pages are shmem's."""
    devices: dict[str, bool] = {}
    ranges = []
    for mapping in maps:
        if not mapping.inode:
            continue
        if is_shmem(mapping) or devices.setdefault(mapping.device, _is_tmpfs(mapping)):
            ranges.append((mapping.start, mapping.end))
    return ranges


def _is_tmpfs(mapping: Map) -> bool:
    """Whether a named file lies on a tmpfs: its pages count as shmem."""
    return file_system(mapping.device) == "tmpfs"


def file_system(device: str) -> str:
    """Type of the file system on a device, written as maps does (hexadecimal major:minor); "" unknown."""
    try:
        major, minor = (int(part, 16) for part in device.split(":"))
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                if line.split(" ", 3)[2] == f"{major}:{minor}":
                    return line.rpartition(" - ")[2].split(" ", 1)[0]
    except (OSError, ValueError, IndexError):
        pass
    return ""


def file_sizes(tid: int, maps: list[Map]) -> dict[int, int]:
    """Sizes of the mapped files by start of mapping, of those that can be seen."""
    sizes: dict[int, int] = {}
    known: dict[tuple[str, int], int | None] = {}
    for mapping in maps:
        if mapping.inode:
            key = (mapping.device, mapping.inode)
            if key not in known:
                known[key] = _size(tid, mapping)
            size = known[key]
            if size is not None:
                sizes[mapping.start] = size
    return sizes


def _size(tid: int, mapping: Map) -> int | None:
    """Size of one mapped file: by map_files, which also knows deleted ones; by its name where that is not allowed."""
    for path in (f"/proc/{tid}/map_files/{mapping.start:x}-{mapping.end:x}", f"/proc/{tid}/root{mapping.path}"):
        try:
            found = os.stat(path)
        except OSError:
            continue
        if found.st_ino == mapping.inode and stat.S_ISREG(found.st_mode):
            return found.st_size
    return None
