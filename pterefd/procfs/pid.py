"""PID/: one directory per mm, as /proc has one per process."""

from __future__ import annotations

from collections.abc import Iterable

from pterefd.errors import NoSuchMm
from pterefd.procfs.faces import Faces
from pterefd.procfs.maps import maps
from pterefd.procfs.status import owner, status
from pterefd.procfs.tree import Dir, Family, File, Reader


def name_to_pid(name: str) -> int | None:
    """fs/proc/generic.c:name_to_int(): decimal digits without a leading zero."""
    if not (name.isascii() and name.isdecimal()) or name[0] == "0" or len(name) > 10:
        return None
    return int(name)


def _find(faces: Faces, _: object, name: str) -> int | None:
    pid = name_to_pid(name)
    if pid is None:
        return None
    try:
        faces.host.process(pid)
    except NoSuchMm:
        return None
    return pid


def _names(faces: Faces, _: object) -> Iterable[str]:
    return map(str, faces.host.pids())


def _owner(faces: Faces, pid: int) -> tuple[int, int]:
    return owner(faces.host.process(pid))


def _comm(faces: Faces, pid: int) -> str:
    return faces.host.process(pid).comm + "\n"


def _cmdline(faces: Faces, pid: int) -> str:
    return "".join(arg + "\0" for arg in faces.host.process(pid).cmdline)


def _counter(field: str) -> Reader:
    def read(faces: Faces, pid: int) -> str:
        return f"{getattr(faces.host.counters(pid), field)}\n"

    return read


def _bytes(name: str, help: str, field: str | None = None) -> File:
    return File(name, 0o444, help, unit="bytes", read=_counter(field or name))


PT_RECLAIM = Dir(
    "pt_reclaim",
    (
        _bytes("pgtables_bytes", "Page-table pages of the mm: PTE, PMD and PUD pages, 4096 bytes each."),
        _bytes("empty_bytes", "PTE pages with no entry set."),
        _bytes("zero_bytes", "PTE pages whose 512 entries all map the shared zero page."),
        _bytes("kept_bytes", "Empty and zero PTE pages that free_ptes passes over under the profile."),
        _bytes("mixed_bytes", "PTE pages whose entries are zero-page ones and none, both kinds. Never freed."),
        _bytes(
            "unlocated_bytes",
            "PTE pages that a recording of a running process counted but could not locate. Never freed.",
        ),
    ),
    "Page-table memory of the mm, by kind.",
)

PID = Dir(
    "PID",
    (
        File("status", 0o444, "Names, ids and memory of the process, in the kernel's lines.", read=status),
        File("comm", 0o444, "Name of the process, up to 15 characters.", read=_comm),
        File("cmdline", 0o444, "Arguments of the process, each ended by a NUL.", read=_cmdline),
        File("maps", 0o444, "Mappings of the mm, in ascending order.", read=maps),
        _bytes(
            "reclaimable_pt_bytes", "PTE pages that free_ptes would free now: empty and zero ones, less kept_bytes."
        ),
        PT_RECLAIM,
    ),
)

PIDS = Family("PID", "One directory per mm, named by its pid.", _names, _find, PID, _owner)
