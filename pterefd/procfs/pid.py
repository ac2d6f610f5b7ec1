"""PID/: one directory per mm, as /proc has one per process."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from pterefd.errors import BadInput, NoSuchMm
from pterefd.host.memory import OOM_SCORE_ADJ_MAX, OOM_SCORE_ADJ_MIN
from pterefd.procfs.faces import Faces
from pterefd.procfs.maps import maps
from pterefd.procfs.smaps import smaps, smaps_rollup
from pterefd.procfs.stat import cgroup, exe, io, limits, mounts, schedstat, stat, statm, wchan
from pterefd.procfs.status import owner, status
from pterefd.procfs.task import TASKS, cmdline, comm, name_to_pid, set_comm, text
from pterefd.procfs.tree import Content, Dir, Family, File, Link, Reader

_KSTRTOINT = re.compile(r"([+-]?)(0[xX][0-9a-fA-F]+|[0-9]+)")


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


def _serial(faces: Faces, pid: int) -> int:
    return faces.host.process(pid).serial


def _oom_score_adj(faces: Faces, pid: int, text: str) -> None:
    """fs/proc/base.c oom_score_adj_write: kstrtoint with base 0, -1000 to 1000."""
    match = _KSTRTOINT.fullmatch(text)
    if match is None:
        raise BadInput(f"oom_score_adj takes a number, not {text!r}")
    digits = match[2]
    base = 16 if digits[:2] in ("0x", "0X") else 8 if digits.startswith("0") and len(digits) > 1 else 10
    try:
        value = int(digits, base)
    except ValueError:
        raise BadInput(f"oom_score_adj takes a number, not {text!r}") from None
    value = -value if match[1] == "-" else value
    if not OOM_SCORE_ADJ_MIN <= value <= OOM_SCORE_ADJ_MAX:
        raise BadInput(f"oom_score_adj {value} is not within {OOM_SCORE_ADJ_MIN}..{OOM_SCORE_ADJ_MAX}")
    faces.host.set_oom_score_adj(pid, value)
    faces.note("oom_score_adj set", target=pid, value=value)


def _counter(field: str) -> Reader:
    def read(faces: Faces, pid: int) -> str:
        return f"{getattr(faces.host.counters(pid), field)}\n"

    return read


def _bytes(name: str, help: str, field: str | None = None) -> File:
    return File(name, 0o444, help, unit="bytes", read=_counter(field or name))


def _pte_pages(faces: Faces, pid: int) -> Iterator[str]:
    for part in faces.host.walks.pte_pages(pid):
        yield "".join(
            f"{run.start:08x}-{run.start + (run.pages << 21):08x} {run.pages} {run.mapped} {run.zero} {run.kind}\n"
            for run in part
        )


PT_RECLAIM = Dir(
    "pt_reclaim",
    (
        _bytes("pgtables_bytes", "Page-table pages of the mm: PTE, PMD and PUD pages, 4096 bytes each."),
        _bytes("empty_bytes", "PTE pages with no entry set."),
        _bytes("zero_bytes", "PTE pages whose 512 entries all map the shared zero page."),
        _bytes("kept_bytes", "Empty and zero PTE pages that free_ptes passes over under the profile."),
        _bytes(
            "mixed_bytes",
            "PTE pages whose entries are zero-page ones and none, both kinds. Freed only where a trigger asks.",
        ),
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
        text("stat", "State, ids, faults and sizes of the process, in the kernel's 52 fields.", stat),
        text("statm", "Sizes of the mm, in pages: total, resident, shared, text, 0, data, 0.", statm),
        text("status", "Names, ids and memory of the process, in the kernel's lines.", status),
        File("comm", 0o644, "Name of the process; no other may set it.", Content.STRING, read=comm, write=set_comm),
        text("cmdline", "Arguments of the process, each ended by a NUL.", cmdline),
        File(
            "oom_score",
            0o444,
            "How likely the OOM killer is to take it: 666 for a small process of no weight.",
            read=lambda faces, pid: f"{faces.host.oom_score(pid)}\n",
        ),
        File(
            "oom_score_adj",
            0o644,
            "What is added to its score, in thousandths of memory and swap; -1000: never killed.",
            Content.STRING,
            read=lambda faces, pid: f"{faces.host.process(pid).oom_score_adj}\n",
            write=_oom_score_adj,
        ),
        text("maps", "Mappings of the mm, in ascending order.", maps),
        text("smaps", "What each mapping holds: the kernel's lines, and Reclaimable_PT.", smaps),
        text("smaps_rollup", "The same of all mappings together.", smaps_rollup),
        File(
            "pte_pages",
            0o444,
            "PTE pages of the mm: addresses, number, entries of each that are mapped and that map the zero page, "
            "and kind; equal neighbours on one line.",
            Content.STREAM,
            read=_pte_pages,
        ),
        _bytes(
            "reclaimable_pt_bytes", "PTE pages that free_ptes would free now: empty and zero ones, less kept_bytes."
        ),
        PT_RECLAIM,
        text("cgroup", "The group of mms that the process belongs to.", cgroup),
        File("io", 0o400, "I/O of the process, in the kernel's lines: pages read from swap.", read=io),
        text("limits", "Limits of the process, which are a fresh one's.", limits),
        text("mounts", "Mounts of the machine: none but its root and proc.", mounts),
        text("schedstat", "Times of the process, which are 0.", schedstat),
        text("wchan", "Where the process waits, which is not known: 0.", wchan),
        File("environ", 0o400, "Environment of the process, which is not known: empty.", read=lambda _faces, _pid: ""),
        Link("exe", "The program: the lowest file that is mapped.", exe),
        Link("cwd", "Working directory, which is not known: /.", lambda _faces, _pid: "/"),
        Link("root", "Root directory.", lambda _faces, _pid: "/"),
        Dir("fd", (), "Descriptors of the process, which are not known: empty.", mode=0o500),
        TASKS,
    ),
)

PIDS = Family("PID", "One directory per mm, named by its pid.", _names, _find, PID, _owner, _serial)
