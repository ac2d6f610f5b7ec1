"""The tree of a live host: its processes by pid, and the knobs."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from pterefd.errors import NoSuchMm
from pterefd.procfs.faces import Faces
from pterefd.procfs.sys_pterefd import SYS_PTEREFD
from pterefd.procfs.task import name_to_pid
from pterefd.procfs.tree import Dir, Family, File, Tree
from pterefd.procfs.vm import PT_RECLAIM, SYS_VM


def _file(name: str, help: str) -> File:
    def read(faces: Any, pid: int) -> str:
        return f"{getattr(faces.host.numbers(pid), name)}\n"

    return File(name, 0o444, help, unit="bytes", read=read)


def _names(faces: Faces, _: object) -> Iterable[str]:
    return map(str, faces.host.pids())


def _find(faces: Faces, _: object, name: str) -> int | None:
    pid = name_to_pid(name)
    if pid is not None:
        with suppress(NoSuchMm):
            faces.host.process(pid)
            return pid
    return None


_PID = Dir(
    "PID",
    (
        _file("reclaimable_pt_bytes", "Empty and zero PTE pages."),
        Dir(
            "pt_reclaim",
            tuple(
                _file(name, f"{name} of the process.")
                for name in ("pgtables_bytes", "empty_bytes", "zero_bytes", "mixed_bytes", "unlocated_bytes")
            ),
        ),
    ),
)

ROOT = Dir(
    "",
    (
        Dir(
            "sys",
            (
                Dir("vm", (SYS_VM.named["free_ptes"], PT_RECLAIM)),
                Dir("pterefd", (SYS_PTEREFD.named["version"], SYS_PTEREFD.named["pid"])),
            ),
        ),
        Family("PID", "One directory per process.", _names, _find, _PID),
    ),
)


def live_tree(faces: Any) -> Tree:
    """The whole tree, bound to what it shows."""
    return Tree(ROOT, faces)
