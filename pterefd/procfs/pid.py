"""PID/: one directory per mm, as /proc has one per process."""

from __future__ import annotations

import re
from collections.abc import Iterable

from pterefd.errors import BadInput, NoSuchMm
from pterefd.host.memory import OOM_SCORE_ADJ_MAX, OOM_SCORE_ADJ_MIN
from pterefd.procfs.faces import Faces
from pterefd.procfs.maps import maps
from pterefd.procfs.status import owner, status
from pterefd.procfs.tree import Content, Dir, Family, File, Reader

_KSTRTOINT = re.compile(r"([+-]?)(0[xX][0-9a-fA-F]+|[0-9]+)")


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
        File("maps", 0o444, "Mappings of the mm, in ascending order.", read=maps),
        _bytes(
            "reclaimable_pt_bytes", "PTE pages that free_ptes would free now: empty and zero ones, less kept_bytes."
        ),
        PT_RECLAIM,
    ),
)

PIDS = Family("PID", "One directory per mm, named by its pid.", _names, _find, PID, _owner)
